"""The lines of a file that another program appends to, rewrites in place or replaces while it is read.

A line is taken only once two reads in a row have found it, and before it the text that was read last time.  Where that
text is another, the file is read again from line 1: `Taken` says what is another now, or missing.
"""

from __future__ import annotations

import io
import os
import stat
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

import numpy as np

from host.console import say
from host.data.containers import MARK, utf16_line, utf16_of
from host.data.formats import MAX_LINE, DataError
from host.data.parsing import iso

BEFORE = 1 << 16  # bytes before the place of reading that each look reads again: about a thousand bars
CHUNK = 1 << 20  # bytes of new text that a look takes at most
SETTLE_S = 0.05  # between the two reads of a text that may be half overwritten
REMEMBERED = 4096  # bars
HOLDS = sys.platform != "win32"  # a file between two looks: there, nobody could replace it

Line = tuple[int, str]  # number and text
Prices = tuple[float, ...]  # open, high, low and close


class Place:
    """Where the reader of a file stands.  A text is settled if no writer can be in the middle of overwriting it."""

    def __init__(self, start: int, settled: bool) -> None:
        self._start, self._settled = start, settled
        self._line, self._offset, self._before = 0, start, b""
        self._encoding = ""  # of UTF-16, told by line 1

    def lines(self, file: BinaryIO, name: str, keep_half: bool) -> Iterator[Line]:
        """Number and text of the complete lines up to the end; from line 1 if the text before has changed."""
        while True:
            text, is_end = self._look(file, name)
            if text is None:
                self._line, self._offset, self._before, self._settled = 0, self._start, b"", False
                continue
            complete, newline, half = text.rpartition(b"\n")
            self._offset += len(complete + newline)
            self._before = (self._before + complete + newline)[-BEFORE:]
            for line in complete.split(b"\n") if newline else []:
                yield self._next(line, name)
            if len(half) > MAX_LINE + 2 or (is_end and keep_half and half):
                yield self._next(half, name)
            if is_end:
                return

    def _look(self, file: BinaryIO, name: str) -> tuple[bytes | None, bool]:
        """What two reads find alike behind the text before, None if that has changed; and whether it ends there."""
        begin, size = self._offset - len(self._before), len(self._before) + CHUNK
        try:
            first = read_at(file, begin, size)
            if not self._settled:
                time.sleep(SETTLE_S)
            second = read_at(file, begin, size)
        except OSError as error:
            raise DataError(f"{name}: {error.strerror}") from None
        same = common_start(first, second)
        self._settled = self._settled or len(same) == len(second) < size
        text = same[len(self._before) :] if same.startswith(self._before) else None
        return text, len(same) < size

    def _next(self, line: bytes, name: str) -> Line:
        self._line += 1
        self._encoding = utf16_of(line) if self._line == 1 else self._encoding
        return numbered(self._line, line, name, self._encoding)


def numbered(number: int, line: bytes, name: str, encoding: str) -> Line:
    """Number and text of a line; DataError if it is too long for one of bars."""
    text = line.rstrip(b"\r\n")
    if len(text) > MAX_LINE or len(line) > MAX_LINE + 2:
        raise DataError(f"{name}: line {number}: longer than {MAX_LINE} bytes, this is no file of bars")
    said = utf16_line(line, encoding, f"{name}: line {number}") if encoding else text.decode("latin-1")
    return number, (said.removeprefix(MARK) if number == 1 else said).rstrip("\r")


def read_at(file: BinaryIO, begin: int, size: int) -> bytes:
    """Up to `size` bytes of an unbuffered file."""
    file.seek(begin)
    return file.read(size)


def common_start(first: bytes, second: bytes) -> bytes:
    """The longest beginning of both."""
    size = min(len(first), len(second))
    if first[:size] != second[:size]:
        a, b = (np.frombuffer(text, np.uint8, size) for text in (first, second))
        size = int((a != b).argmax())
    return first[:size]


def path_lines(path: Path, follow: bool, wait: Callable[[], None]) -> Iterator[Line]:
    """Lines of a file; with `follow`, `wait` passes the time at its end."""
    file, place = opened(path, None), Place(0, settled=not follow)
    try:
        if not is_file(file):
            with io.BufferedReader(file) as pipe:
                yield from stream_lines(pipe, follow, wait)
            return
        yield from place.lines(file, str(path), keep_half=not follow)
        while follow:
            known = os.fstat(file.fileno())
            if not HOLDS:
                file.close()
            wait()
            old, file = file, opened(path, wait)
            with closing(old):
                if not os.path.samestat(known, os.fstat(file.fileno())):
                    if not old.closed:  # it may have grown before it was moved away
                        yield from place.lines(old, str(path), keep_half=False)
                    place = Place(0, settled=True)
            yield from place.lines(file, str(path), keep_half=False)
    finally:
        file.close()


def opened(path: Path, wait: Callable[[], None] | None) -> io.FileIO:
    """The file at `path`, unbuffered; `wait` passes the time while a writer that replaces it is at it."""
    while True:
        try:
            return path.open("rb", 0)
        except (FileNotFoundError, PermissionError) as error:
            if wait is None:
                raise DataError(f"{path}: {error.strerror}") from None
            wait()
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: {error}") from None


def stream_lines(file: BinaryIO, follow: bool, wait: Callable[[], None]) -> Iterator[Line]:
    """Lines of an open stream; only a file can grow beyond its end."""
    name = str(getattr(file, "name", "feed"))
    if not is_file(file):
        yield from pipe_lines(file, name, keep_half=not follow)
        return
    place, raw = Place(file.tell(), settled=not follow), getattr(file, "raw", file)
    yield from place.lines(raw, name, keep_half=not follow)
    while follow:
        wait()
        yield from place.lines(raw, name, keep_half=False)


def pipe_lines(file: BinaryIO, name: str, keep_half: bool) -> Iterator[Line]:
    """Lines of what can be read once, until its writer ends it."""
    number, line = 1, file.readline(MAX_LINE + 3)
    encoding = utf16_of(line)
    while line.endswith(b"\n") or len(line) > MAX_LINE or (keep_half and line):
        yield numbered(number, line.removesuffix(b"\n"), name, encoding)
        number, line = number + 1, file.readline(MAX_LINE + 3)


def is_file(file: BinaryIO) -> bool:
    """Whether a stream is a file on a disk."""
    try:
        return stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    except OSError:
        return False


class Taken:
    """The last bars that were taken from a feed, to be held against what it says of them when it is read again."""

    def __init__(self, name: str, interval_ns: int) -> None:
        self._name, self._interval_ns = name, interval_ns
        self._prices = OrderedDict[int, Prices]()  # by time
        self._last = 0  # the newest time
        self._is_read_again = False

    def start_over(self) -> None:
        """The feed is read again."""
        self._is_read_again = True

    def take(self, time_ns: int, prices: Prices, line: int = 0) -> None:
        """Remember a new bar; says so if the feed that is read again begins behind the bar that was due."""
        if self._is_read_again and self._prices and time_ns - self._last > self._interval_ns:
            self._say(
                line, f"the feed begins at {iso(time_ns)}; what followed {iso(self._last)} was never read"
            )
        self._is_read_again = False
        self._prices[time_ns], self._last = prices, time_ns
        if len(self._prices) > REMEMBERED:
            self._prices.popitem(last=False)

    def compare(self, time_ns: int, prices: Prices, line: int = 0) -> None:
        """Hold a bar that is not new against the one that was taken; says where they differ."""
        self._is_read_again = False
        known = self._prices.get(time_ns)
        if known == prices or time_ns < next(iter(self._prices), time_ns):
            return
        self._prices[time_ns] = prices
        if known is None:
            what = f"was not there in its turn: {shown(prices)} is left out"
        else:
            what = f"was rewritten: taken as {shown(known)}, now {shown(prices)}; what was decided stands"
        self._say(line, f"the bar of {iso(time_ns)} {what}")

    def _say(self, line: int, text: str) -> None:
        say(f"{self._name}: line {line}: {text}" if line else f"{self._name}: {text}")


def shown(prices: Prices) -> str:
    """Prices for people."""
    return "/".join(f"{price:.10g}" for price in prices)
