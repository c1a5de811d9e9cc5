"""Following a feed: one line, one closed bar, the same to the bit as `bars.py` reads it in bulk.

A line is complete with its newline; the bars of a file are closed, so a complete line is a closed bar.  Unlike the bulk
reader a feed knows no later rows: damage is judged by the last close, and the size of a pip by the first price.
"""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from host.formats import (
    KINDS,
    MAX_LINE,
    QUARTER_S,
    DataError,
    Layout,
    ReadOptions,
    Rules,
    interval_of,
    is_damaged,
    offset_ns,
    order_fault,
    parse_line,
    quotes,
    recognise,
    row_faults,
    rules_for,
    to_utc,
)
from host.progress import say
from kernels.bars import NS

POLL_S = 0.2
LEARN = 64  # lines that the length of a bar is learnt from, or checked with
MOVED = 3  # damaged prices in a row: these are no slips, the level or the unit is another


class Bar(NamedTuple):
    """One closed bar: a row of `kernels.bars.Bars`."""

    time: int  # UTC close, nanoseconds since the epoch
    open: float
    high: float
    low: float
    close: float
    ask_open: float
    ask_close: float
    volume: float


class LineParser:
    """Turns the lines of one feed into bars, in their order."""

    def __init__(self, layout: Layout, options: ReadOptions, name: str) -> None:
        if options.interval_s is None:
            raise DataError(f"{name}: a line does not tell how long its bar is")
        self.layout = layout
        self.dropped = 0  # bad rows
        self._options = options
        self._interval_ns = options.interval_s * NS
        self._clock = options.timezone or layout.format.timezone
        self._name = name
        self._rules: Rules | None = None
        self._has_volume = False
        self._catching_up = False
        self._last: tuple[int, float] | None = None  # stamp and close of the last bar
        self._first: list[int] = []  # stamps of the first bars, to check their distance
        self._moved = 0  # damaged prices since the last bar

    def reopen(self) -> None:
        """The feed starts over: skip what is not newer than the last bar."""
        self._catching_up = True

    def parse(self, text: str, line: int) -> Bar | None:
        """The bar of a line; None for a blank, already seen or dropped one.  DataError if it is bad."""
        if not text.strip():
            return None
        parsed = parse_line(text, self.layout)
        if parsed is None:
            self._refuse("unparsable", text, line)
            return None
        stamp, is_utc, numbers = parsed
        utc = stamp if is_utc else stamp - offset_ns(self._clock, stamp // (QUARTER_S * NS))
        if self._catching_up and self._last and utc <= self._last[0]:
            return None
        if self._rules is None:
            price = numbers["open"]
            self._rules, notes = rules_for(self.layout, self._options, self._name, price, self._interval_ns)
            for note in notes:
                say(f"{self._name}: {note}")
        quote = quotes(numbers, self._rules, self.layout.point)
        kind = self._fault(quote, utc)
        if kind:
            self._refuse(kind, text, line)
            return None
        self._keep(utc, quote["close"])
        return Bar(utc + (self._interval_ns if self._rules.label == "open" else 0), **quote)

    def _keep(self, utc: int, close: float) -> None:
        """Remember the last bar; once there are LEARN of them, refuse bars of another length."""
        self._last, self._catching_up, self._moved = (utc, close), False, 0
        if len(self._first) < LEARN:
            self._first.append(utc)
            if len(self._first) == LEARN:
                interval_of(np.array(self._first, np.int64), self._options, self._name)

    def _fault(self, quote: dict[str, float], utc: int) -> str | None:
        self._has_volume = self._has_volume or quote["volume"] > 0
        for kind, found in row_faults(quote, utc, self._has_volume).items():
            if found:
                return kind
        last_utc, near = self._last or (None, quote["close"])
        if is_damaged(quote, near):
            return "damaged"
        return None if last_utc is None else order_fault(utc - last_utc, self._interval_ns)

    def _refuse(self, kind: str, text: str, line: int) -> None:
        where = f"{self._name}: line {line}: {KINDS[kind]}: {text[:160]!r}"
        if not self._options.drop_bad:
            raise DataError(f"{where}; --drop-bad drops such rows")
        self._moved += kind == "damaged"
        if self._moved == MOVED:
            raise DataError(f"{where}; so are the rows before it: prices have moved to another level or unit")
        self.dropped += 1
        say(f"{where}; dropped")


def feed_bars(
    source: Path | str | BinaryIO,
    options: ReadOptions | None = None,
    follow: bool = False,
    wait: Callable[[], None] = lambda: time.sleep(POLL_S),
) -> Iterator[Bar]:
    """The closed bars of a file, a stream or stdin ("-"); with `follow`, `wait` passes the time at the end of a file.

    A stream that is no file ends with its writer.  Without `options.interval_s` the first LEARN lines are awaited.
    """
    options = options or ReadOptions()
    if source == "-":
        source = sys.stdin.buffer
    if isinstance(source, str | Path):
        name, lines = str(source), path_lines(Path(source), follow, wait)
    else:
        name, lines = str(getattr(source, "name", "feed")), stream_lines(source, follow, wait)
    if options.interval_s is None:
        head = list(islice(lines, LEARN))
        options = replace(options, interval_s=learn_interval(head, options, name))
        lines = chain(head, lines)
    yield from parse_lines(lines, options, name)


def parse_lines(lines: Iterator[tuple[int, str]], options: ReadOptions, name: str) -> Iterator[Bar]:
    """The bars of numbered lines; when the numbers start over, so did the file."""
    parser: LineParser | None = None
    first, text = "", ""
    for line, text in lines:
        if line == 1:
            first = text
        header = 0 if first[:1].isdigit() else 1
        if line <= header:
            continue
        if line == header + 1:
            layout = recognise(first, text, name)
            if parser is None:
                parser = LineParser(layout, options, name)
            elif layout[:3] != parser.layout[:3]:
                raise DataError(f"{name}: the format has changed from {parser.layout.format.name}")
            else:
                parser.reopen()
        bar = parser.parse(text, line) if parser else None
        if bar:
            yield bar
    if parser is None:
        raise DataError(f"{name}: {'no bars' if first.strip() else 'empty'}")


def learn_interval(head: list[tuple[int, str]], options: ReadOptions, name: str) -> int:
    """Length of a bar in seconds from the first lines of a feed."""
    texts = [text for _, text in head] or [""]
    layout = recognise(texts[0], texts[1] if len(texts) > 1 else "", name)
    parsed = [p for p in (parse_line(text, layout) for text in texts[layout.header :]) if p]
    stamps = np.array([stamp for stamp, _, _ in parsed], np.int64)
    is_utc = np.array([utc for _, utc, _ in parsed], np.bool_)
    return (
        interval_of(to_utc(stamps, is_utc, options.timezone or layout.format.timezone), options, name) // NS
    )


def read_lines(
    file: BinaryIO, name: str, at_end: Callable[[bytes], bool], keep_half: bool
) -> Iterator[tuple[int, str]]:
    """Number and text of each complete line.  `at_end`, given the last bytes read, says whether to go on reading."""
    line, last, half = 0, b"", b""
    while True:
        half += file.readline(MAX_LINE + 3 - len(half))
        if len(half.rstrip(b"\r\n")) > MAX_LINE or len(half) > MAX_LINE + 2:
            raise DataError(f"{name}: line {line + 1}: longer than {MAX_LINE} bytes, this is no file of bars")
        complete = half.endswith(b"\n")
        if not complete and at_end(last + half):
            continue
        if complete or (keep_half and half):
            line += 1
            text = half.removeprefix(b"\xef\xbb\xbf") if line == 1 else half
            yield line, text.rstrip(b"\r\n").decode("latin-1")
            last, half = half, b""
        if not complete:
            return


def stream_lines(file: BinaryIO, follow: bool, wait: Callable[[], None]) -> Iterator[tuple[int, str]]:
    """Lines of an open stream; only a file can grow beyond its end."""
    grows = follow and is_file(file)

    def at_end(_: bytes) -> bool:
        if grows:
            wait()
        return grows

    return read_lines(file, str(getattr(file, "name", "feed")), at_end, keep_half=not follow)


def is_file(file: BinaryIO) -> bool:
    """Whether a stream is a file on a disk."""
    try:
        return stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    except OSError:
        return False


def path_lines(path: Path, follow: bool, wait: Callable[[], None]) -> Iterator[tuple[int, str]]:
    """Lines of a file; one that was cut, rewritten or replaced is read again from line 1."""
    opened = False
    while True:
        try:
            file = path.open("rb")
        except FileNotFoundError:
            if not opened:
                raise DataError(f"{path}: no such file") from None
            wait()  # a writer that replaces the file is at it
            continue
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: {error}") from None
        opened = True
        with file:
            grows = follow and is_file(file)
            yield from read_lines(file, str(path), watch(path, file, grows, wait), keep_half=not grows)
        if not grows:
            return


def watch(path: Path, file: BinaryIO, follow: bool, wait: Callable[[], None]) -> Callable[[bytes], bool]:
    """What `read_lines` asks at the end of a file: after a pause, whether it is still the one that was read."""

    def at_end(last: bytes) -> bool:
        if not follow:
            return False
        wait()
        position = file.tell()
        try:
            same = os.path.samestat(path.stat(), os.fstat(file.fileno()))
        except FileNotFoundError:
            return True
        begin = position - len(last)
        return same and os.pread(file.fileno(), len(last), begin) == last

    return at_end
