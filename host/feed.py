"""Following a feed: one line, one closed bar, the same to the bit as `bars.py` reads it in bulk.

A line is complete with its newline; the bars of a file are closed, so a complete line is a closed bar.  Unlike the bulk
reader a feed knows no later rows: damage is judged by the last close, and the size of a pip by the first price.
Formats that list the newest bar first are no feeds.
"""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from host.formats import KINDS, MAX_LINE, DataError, Layout, ReadOptions, is_head, recognise, refusal
from host.parsing import (
    LONGEST,
    Rules,
    interval_of,
    is_damaged,
    order_fault,
    parse_line,
    quotes,
    row_faults,
    rules_for,
    stamp_utc,
)
from host.progress import say
from host.resample import join_bars, periods
from kernels.bars import NS, Bars

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

    def __init__(
        self,
        layout: Layout,
        options: ReadOptions,
        name: str,
        judge: Callable[[Rules], None] = lambda rules: None,
    ) -> None:
        if options.interval_s is None:
            raise DataError(f"{name}: a line does not tell how long its bar is")
        self.layout = layout
        self.clock = options.timezone or layout.format.timezone
        self.dropped = 0  # bad rows
        self._options, self._judge = options, judge
        self._interval_ns = options.interval_s * NS
        self._name = name
        self._rules: Rules | None = None
        self._has_volume = layout.format.ticks
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
        if numbers.pop("complete", 1.0) == 0:
            return None  # it comes again once it is closed
        utc = stamp_utc(stamp, is_utc, self.clock)
        if self._catching_up and self._last and utc <= self._last[0]:
            return None
        if self._rules is None:
            price = numbers["open"]
            self._rules, notes = rules_for(self.layout, self._options, self._name, price, self._interval_ns)
            said = f"{self.layout.format.name}, clock {self.clock}, stamps mark the {self._rules.label}"
            say(f"{self._name}: {'; '.join([said, *notes])}")
            self._judge(self._rules)
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
    judge: Callable[[Rules], None] = lambda rules: None,
) -> Iterator[Bar]:
    """The closed bars of a file, a stream or stdin ("-"); with `follow`, `wait` passes the time at the end of a file.

    A stream that is no file ends with its writer.  Without `options.interval_s` the first LEARN lines are awaited.
    `judge` is shown how the first line is read, and may refuse that.
    """
    options = options or ReadOptions()
    if source == "-":
        source = sys.stdin.buffer
    if isinstance(source, str | Path):
        name, lines = str(source), path_lines(Path(source), follow, wait)
    else:
        name, lines = str(getattr(source, "name", "feed")), stream_lines(source, follow, wait)
    read, layout, step_ns = learn_step(lines, options, name)
    parser = LineParser(layout, replace(options, interval_s=step_ns // NS), name, judge)
    bars = parse_lines(chain(read, lines), parser, options, name)
    if options.interval_s in (None, step_ns // NS):
        yield from bars
    else:
        say(f"{name}: bars of {step_ns // NS} s are put together into bars of {options.interval_s} s")
        yield from longer_bars(bars, step_ns, options.interval_s * NS, parser.clock)


def learn_step(
    lines: Iterator[tuple[int, str]], options: ReadOptions, name: str
) -> tuple[list[tuple[int, str]], Layout, int]:
    """The first lines of a feed, their layout and the length of a bar: two bars tell if they are as long as wanted."""
    read: list[tuple[int, str]] = []
    head: list[str] = []
    utc: list[int] = []
    wanted_ns = LONGEST if options.interval_s is None else options.interval_s * NS
    for line, text in lines:
        read.append((line, text))
        head = [] if line == 1 else head
        if not is_head(head):
            head.append(text)
            if not is_head(head):
                continue
            layout = recognise(head, options, name)
            if layout.format.newest_first:
                raise DataError(f"{name}: {layout.format.name} lists the newest bar first: a feed appends it")
        parsed = parse_line(text, layout)
        if parsed and parsed[2].get("complete", 1.0):
            utc.append(stamp_utc(parsed[0], parsed[1], options.timezone or layout.format.timezone))
        if len(read) >= LEARN or (len(utc) > 1 and utc[-1] - utc[-2] >= wanted_ns):
            break
    if not is_head(head):
        raise DataError(f"{name}: {refusal(head)}")
    step = np.diff(np.array(utc, np.int64))
    shorter = ((step > 0) & (step < wanted_ns)).any()
    if options.interval_s is None or shorter:
        wanted_ns = interval_of(np.array(utc, np.int64), options, name)
    return read, layout, wanted_ns


def longer_bars(bars: Iterable[Bar], step_ns: int, interval_ns: int, clock: str) -> Iterator[Bar]:
    """`merge_bars` one by one: each as soon as it is closed."""
    part: list[Bar] = []
    end = torn = 0  # torn: the end of a first period whose beginning is not there
    for bar in bars:
        opened = bar.time - step_ns
        if opened >= end:
            if part:
                yield join_part(part, end)
                part = []
            start, due = (int(t[0]) for t in periods(np.array([opened], np.int64), interval_ns, clock))
            torn = due if end == 0 and opened != start else torn
            end = due
        if end != torn:
            part.append(bar)
        if part and bar.time >= end:
            yield join_part(part, end)
            part = []


def join_part(part: list[Bar], end: int) -> Bar:
    """One bar from those of a period."""
    bars = Bars._make(np.array(column) for column in zip(*part, strict=True))
    joined = join_bars(bars, np.array([end], np.int64), np.zeros(1, np.int64))
    return Bar._make(column[0].item() for column in joined)


def parse_lines(
    lines: Iterator[tuple[int, str]], parser: LineParser, options: ReadOptions, name: str
) -> Iterator[Bar]:
    """The bars of numbered lines; when the numbers start over, so did the file."""
    head: list[str] = []
    for line, text in lines:
        head = [] if line == 1 else head
        if not is_head(head):
            head.append(text)
            if not is_head(head):
                continue
            layout = recognise(head, options, name)
            if layout[:4] != parser.layout[:4]:
                raise DataError(f"{name}: the format has changed from {parser.layout.format.name}")
            parser.reopen()
        bar = parser.parse(text, line)
        if bar:
            yield bar


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
        except (FileNotFoundError, PermissionError) as error:
            if not opened:
                raise DataError(f"{path}: {error.strerror}") from None
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
    replaced = False

    def at_end(last: bytes) -> bool:
        nonlocal replaced
        if not follow or replaced:
            return False
        wait()
        try:
            with path.open("rb") as now:
                if not os.path.samestat(os.fstat(now.fileno()), os.fstat(file.fileno())):
                    replaced = True
                    return True  # to its end: it may have grown before it was moved away
                now.seek(file.tell() - len(last))
                return now.read(len(last)) == last
        except (FileNotFoundError, PermissionError):
            return True  # a writer is at it

    return at_end
