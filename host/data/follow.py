"""The lines of a file that another program appends to, rewrites in place or replaces while it is read.

A line counts once two consecutive reads return it, after the same text as last time.  If that text has changed, the
file is read again from line 1, and `RewriteDetector` reports which bars have changed or are missing.
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

OVERLAP_BYTES = 1 << 16  # of text before the offset, read again each time: about a thousand bars
MAX_NEW_BYTES = 1 << 20  # of new text, read at a time
REREAD_DELAY_S = 0.05  # between the two reads of a text that may be half overwritten
MAX_REMEMBERED_BARS = 4096
KEEPS_FILE_OPEN = sys.platform != "win32"  # while it waits: on Windows nobody could replace an open file

NumberedLine = tuple[int, str]  # number and text
OhlcPrices = tuple[float, ...]  # open, high, low and close


class FileTail:
    """The position of a reader in a file that grows.  `is_stable`: no writer is in the middle of overwriting it."""

    def __init__(self, start: int, is_stable: bool) -> None:
        self._start, self._is_stable = start, is_stable
        self._line, self._offset, self._overlap = 0, start, b""
        self._encoding = ""  # utf-16-le or utf-16-be, if line 1 shows it

    def read_lines(self, file: BinaryIO, name: str, yield_partial: bool) -> Iterator[NumberedLine]:
        """The complete lines up to the end of the file; all lines from line 1 if the text before has changed.

        With `yield_partial`, a last line without newline is complete.
        """
        while True:
            text, is_end = self._read_twice(file, name)
            if text is None:
                self._line, self._offset, self._overlap, self._is_stable = 0, self._start, b"", False
                continue
            complete, newline, partial = text.rpartition(b"\n")
            self._offset += len(complete + newline)
            self._overlap = (self._overlap + complete + newline)[-OVERLAP_BYTES:]
            for line in complete.split(b"\n") if newline else []:
                yield self._next_line(line, name)
            if len(partial) > MAX_LINE + 2 or (is_end and yield_partial and partial):
                yield self._next_line(partial, name)
            if is_end:
                return

    def _read_twice(self, file: BinaryIO, name: str) -> tuple[bytes | None, bool]:
        """The new text on which two reads agree, and whether it ends the file; None if the text before has changed."""
        begin, size = self._offset - len(self._overlap), len(self._overlap) + MAX_NEW_BYTES
        try:
            first = read_at(file, begin, size)
            if not self._is_stable:
                time.sleep(REREAD_DELAY_S)
            second = read_at(file, begin, size)
        except OSError as error:
            raise DataError(f"{name}: {error.strerror}") from None
        agreed = common_prefix(first, second)
        self._is_stable = self._is_stable or len(agreed) == len(second) < size
        text = agreed[len(self._overlap) :] if agreed.startswith(self._overlap) else None
        return text, len(agreed) < size

    def _next_line(self, line: bytes, name: str) -> NumberedLine:
        self._line += 1
        self._encoding = detect_utf16(line) if self._line == 1 else self._encoding
        return decode_numbered_line(self._line, line, name, self._encoding)


def decode_numbered_line(number: int, line: bytes, name: str, encoding: str) -> NumberedLine:
    """The number and the text of a line; DataError if it is longer than MAX_LINE."""
    text = line.rstrip(b"\r\n")
    if len(text) > MAX_LINE or len(line) > MAX_LINE + 2:
        raise DataError(f"{name}: line {number}: longer than {MAX_LINE} bytes, this is no file of bars")
    decoded = decode_utf16_line(line, encoding, f"{name}: line {number}") if encoding else text.decode("latin-1")
    return number, (decoded.removeprefix(UTF8_BOM) if number == 1 else decoded).rstrip("\r")


def read_at(file: BinaryIO, begin: int, size: int) -> bytes:
    """Up to `size` bytes of an unbuffered file, from offset `begin`."""
    file.seek(begin)
    return file.read(size)


def common_prefix(first: bytes, second: bytes) -> bytes:
    """The longest common beginning of two texts."""
    size = min(len(first), len(second))
    if first[:size] != second[:size]:
        a, b = (np.frombuffer(text, np.uint8, size) for text in (first, second))
        size = int((a != b).argmax())
    return first[:size]


def path_lines(path: Path, follow: bool, wait: Callable[[], None]) -> Iterator[NumberedLine]:
    """The lines of a file; with `follow`, `wait` is called at its end until it grows."""
    file, tail = open_when_there(path, None), FileTail(0, is_stable=not follow)
    try:
        if not is_regular_file(file):
            with io.BufferedReader(file) as pipe:
                yield from stream_lines(pipe, follow, wait)
            return
        yield from tail.read_lines(file, str(path), yield_partial=not follow)
        while follow:
            status = os.fstat(file.fileno())
            if not KEEPS_FILE_OPEN:
                file.close()
            wait()
            previous, file = file, open_when_there(path, wait)
            with closing(previous):
                if not os.path.samestat(status, os.fstat(file.fileno())):
                    if not previous.closed:  # the file may have grown before it was replaced
                        yield from tail.read_lines(previous, str(path), yield_partial=False)
                    tail = FileTail(0, is_stable=True)
            yield from tail.read_lines(file, str(path), yield_partial=False)
    finally:
        file.close()


def open_when_there(path: Path, wait: Callable[[], None] | None) -> io.FileIO:
    """The file at `path`, unbuffered; `wait` is called while a writer replaces it; DataError if it does not open."""
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
    """The lines of an open stream; with `follow`, those of a file that grows."""
    name = str(getattr(file, "name", "feed"))
    if not is_regular_file(file):
        yield from pipe_lines(file, name, yield_partial=not follow)
        return
    tail, raw = FileTail(file.tell(), is_stable=not follow), getattr(file, "raw", file)
    yield from tail.read_lines(raw, name, yield_partial=not follow)
    while follow:
        wait()
        yield from tail.read_lines(raw, name, yield_partial=False)


def pipe_lines(file: BinaryIO, name: str, yield_partial: bool) -> Iterator[NumberedLine]:
    """The lines of a stream that can be read only once, until its writer ends it."""
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
    """The last bars of a feed, compared with the same bars when the feed is read again."""

    def __init__(self, name: str, interval_ns: int) -> None:
        self._name, self._interval_ns = name, interval_ns
        self._prices = OrderedDict[int, OhlcPrices]()  # by time
        self._last_ns = 0  # newest time
        self._is_rereading = False

    def start_rereading(self) -> None:
        """Expect bars that were read before."""
        self._is_rereading = True

    def remember(self, time_ns: int, prices: OhlcPrices, line: int = 0) -> None:
        """Remember a new bar; log a warning if a feed that is read again begins after the bar that was due."""
        if self._is_rereading and self._prices and time_ns - self._last_ns > self._interval_ns:
            last = format_utc(self._last_ns)
            self._warn(line, f"the feed begins at {format_utc(time_ns)}; what followed {last} was never read")
        self._is_rereading = False
        self._prices[time_ns], self._last_ns = prices, time_ns
        if len(self._prices) > MAX_REMEMBERED_BARS:
            self._prices.popitem(last=False)

    def compare(self, time_ns: int, prices: OhlcPrices, line: int = 0) -> None:
        """Log a warning if a bar that is not new differs from the remembered one."""
        self._is_rereading = False
        remembered = self._prices.get(time_ns)
        if remembered == prices or time_ns < next(iter(self._prices), time_ns):
            return
        self._prices[time_ns] = prices
        if remembered is None:
            what = f"was not there in its turn: {format_prices(prices)} is left out"
        else:
            change = f"taken as {format_prices(remembered)}, now {format_prices(prices)}"
            what = f"was rewritten: {change}; what was decided stands"
        self._warn(line, f"the bar of {format_utc(time_ns)} {what}")

    def _warn(self, line: int, text: str) -> None:
        log(f"{self._name}: line {line}: {text}" if line else f"{self._name}: {text}")


def format_prices(prices: OhlcPrices) -> str:
    """Prices as text, with slashes between them."""
    return "/".join(f"{price:.10g}" for price in prices)
