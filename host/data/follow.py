"""The lines of a file that another program appends to, rewrites in place or replaces while it is read.

A line is taken only once two reads in a row have found it, and before it the text that was read last time.  Where that
text is another, the file is read again from line 1: `RewriteDetector` says what is another now, or missing.
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

from host.console import log
from host.data.containers import UTF8_BOM, decode_utf16_line, detect_utf16
from host.data.formats import MAX_LINE, DataError
from host.data.parsing import format_utc

OVERLAP_BYTES = 1 << 16  # bytes before the place of reading that each look reads again: about a thousand bars
MAX_NEW_BYTES = 1 << 20  # bytes of new text that a look takes at most
REREAD_DELAY_S = 0.05  # between the two reads of a text that may be half overwritten
MAX_REMEMBERED_BARS = 4096  # bars
KEEPS_FILE_OPEN = sys.platform != "win32"  # a file between two looks: there, nobody could replace it

NumberedLine = tuple[int, str]  # number and text
OhlcPrices = tuple[float, ...]  # open, high, low and close


class FileTail:
    """Where the reader of a file stands.  A text is settled if no writer can be in the middle of overwriting it."""

    def __init__(self, start: int, is_stable: bool) -> None:
        self._start, self._is_stable = start, is_stable
        self._line, self._offset, self._overlap = 0, start, b""
        self._encoding = ""  # of UTF-16, told by line 1

    def read_lines(self, file: BinaryIO, name: str, yield_partial: bool) -> Iterator[NumberedLine]:
        """Number and text of the complete lines up to the end; from line 1 if the text before has changed."""
        while True:
            text, is_end = self._read_twice(file, name)
            if text is None:
                self._line, self._offset, self._overlap, self._is_stable = 0, self._start, b"", False
                continue
            complete, newline, half = text.rpartition(b"\n")
            self._offset += len(complete + newline)
            self._overlap = (self._overlap + complete + newline)[-OVERLAP_BYTES:]
            for line in complete.split(b"\n") if newline else []:
                yield self._next_line(line, name)
            if len(half) > MAX_LINE + 2 or (is_end and yield_partial and half):
                yield self._next_line(half, name)
            if is_end:
                return

    def _read_twice(self, file: BinaryIO, name: str) -> tuple[bytes | None, bool]:
        """What two reads find alike behind the text before, None if that has changed; and whether it ends there."""
        begin, size = self._offset - len(self._overlap), len(self._overlap) + MAX_NEW_BYTES
        try:
            first = read_at(file, begin, size)
            if not self._is_stable:
                time.sleep(REREAD_DELAY_S)
            second = read_at(file, begin, size)
        except OSError as error:
            raise DataError(f"{name}: {error.strerror}") from None
        same = common_prefix(first, second)
        self._is_stable = self._is_stable or len(same) == len(second) < size
        text = same[len(self._overlap) :] if same.startswith(self._overlap) else None
        return text, len(same) < size

    def _next_line(self, line: bytes, name: str) -> NumberedLine:
        self._line += 1
        self._encoding = detect_utf16(line) if self._line == 1 else self._encoding
        return decode_numbered_line(self._line, line, name, self._encoding)


def decode_numbered_line(number: int, line: bytes, name: str, encoding: str) -> NumberedLine:
    """Number and text of a line; DataError if it is too long for one of bars."""
    text = line.rstrip(b"\r\n")
    if len(text) > MAX_LINE or len(line) > MAX_LINE + 2:
        raise DataError(f"{name}: line {number}: longer than {MAX_LINE} bytes, this is no file of bars")
    said = decode_utf16_line(line, encoding, f"{name}: line {number}") if encoding else text.decode("latin-1")
    return number, (said.removeprefix(UTF8_BOM) if number == 1 else said).rstrip("\r")


def read_at(file: BinaryIO, begin: int, size: int) -> bytes:
    """Up to `size` bytes of an unbuffered file."""
    file.seek(begin)
    return file.read(size)


def common_prefix(first: bytes, second: bytes) -> bytes:
    """The longest beginning of both."""
    size = min(len(first), len(second))
    if first[:size] != second[:size]:
        a, b = (np.frombuffer(text, np.uint8, size) for text in (first, second))
        size = int((a != b).argmax())
    return first[:size]


def path_lines(path: Path, follow: bool, wait: Callable[[], None]) -> Iterator[NumberedLine]:
    """Lines of a file; with `follow`, `wait` passes the time at its end."""
    file, place = open_when_there(path, None), FileTail(0, is_stable=not follow)
    try:
        if not is_regular_file(file):
            with io.BufferedReader(file) as pipe:
                yield from stream_lines(pipe, follow, wait)
            return
        yield from place.read_lines(file, str(path), yield_partial=not follow)
        while follow:
            known = os.fstat(file.fileno())
            if not KEEPS_FILE_OPEN:
                file.close()
            wait()
            old, file = file, open_when_there(path, wait)
            with closing(old):
                if not os.path.samestat(known, os.fstat(file.fileno())):
                    if not old.closed:  # it may have grown before it was moved away
                        yield from place.read_lines(old, str(path), yield_partial=False)
                    place = FileTail(0, is_stable=True)
            yield from place.read_lines(file, str(path), yield_partial=False)
    finally:
        file.close()


def open_when_there(path: Path, wait: Callable[[], None] | None) -> io.FileIO:
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


def stream_lines(file: BinaryIO, follow: bool, wait: Callable[[], None]) -> Iterator[NumberedLine]:
    """Lines of an open stream; only a file can grow beyond its end."""
    name = str(getattr(file, "name", "feed"))
    if not is_regular_file(file):
        yield from pipe_lines(file, name, yield_partial=not follow)
        return
    place, raw = FileTail(file.tell(), is_stable=not follow), getattr(file, "raw", file)
    yield from place.read_lines(raw, name, yield_partial=not follow)
    while follow:
        wait()
        yield from place.read_lines(raw, name, yield_partial=False)


def pipe_lines(file: BinaryIO, name: str, yield_partial: bool) -> Iterator[NumberedLine]:
    """Lines of what can be read once, until its writer ends it."""
    number, line = 1, file.readline(MAX_LINE + 3)
    encoding = detect_utf16(line)
    while line.endswith(b"\n") or len(line) > MAX_LINE or (yield_partial and line):
        yield decode_numbered_line(number, line.removesuffix(b"\n"), name, encoding)
        number, line = number + 1, file.readline(MAX_LINE + 3)


def is_regular_file(file: BinaryIO) -> bool:
    """Whether a stream is a file on a disk."""
    try:
        return stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    except OSError:
        return False


class RewriteDetector:
    """The last bars that were taken from a feed, to be held against what it says of them when it is read again."""

    def __init__(self, name: str, interval_ns: int) -> None:
        self._name, self._interval_ns = name, interval_ns
        self._prices = OrderedDict[int, OhlcPrices]()  # by time
        self._last_ns = 0  # the newest time
        self._is_rereading = False

    def start_rereading(self) -> None:
        """The feed is read again."""
        self._is_rereading = True

    def remember(self, time_ns: int, prices: OhlcPrices, line: int = 0) -> None:
        """Remember a new bar; says so if the feed that is read again begins behind the bar that was due."""
        if self._is_rereading and self._prices and time_ns - self._last_ns > self._interval_ns:
            self._warn(
                line,
                f"the feed begins at {format_utc(time_ns)}; what followed {format_utc(self._last_ns)} was never read",
            )
        self._is_rereading = False
        self._prices[time_ns], self._last_ns = prices, time_ns
        if len(self._prices) > MAX_REMEMBERED_BARS:
            self._prices.popitem(last=False)

    def compare(self, time_ns: int, prices: OhlcPrices, line: int = 0) -> None:
        """Hold a bar that is not new against the one that was taken; says where they differ."""
        self._is_rereading = False
        known = self._prices.get(time_ns)
        if known == prices or time_ns < next(iter(self._prices), time_ns):
            return
        self._prices[time_ns] = prices
        if known is None:
            what = f"was not there in its turn: {format_prices(prices)} is left out"
        else:
            what = (
                f"was rewritten: taken as {format_prices(known)}, now {format_prices(prices)}; what was decided stands"
            )
        self._warn(line, f"the bar of {format_utc(time_ns)} {what}")

    def _warn(self, line: int, text: str) -> None:
        log(f"{self._name}: line {line}: {text}" if line else f"{self._name}: {text}")


def format_prices(prices: OhlcPrices) -> str:
    """Prices for people."""
    return "/".join(f"{price:.10g}" for price in prices)
