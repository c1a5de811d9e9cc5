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
from host.instruments import ALWAYS
from host.judging import (
    FEW,
    HOLE_BARS,
    LONG_GAP,
    LONGEST,
    MOST_DROPPED,
    MOVED,
    ORDERS,
    Spell,
    cell_text,
    change_text,
    check_divides,
    go_on,
    has_weekends,
    interval_of,
    is_another_length,
    is_moved,
    is_still,
    move_text,
    on_saturday,
    order_fault,
    other_dates,
    row_faults,
)
from host.parsing import Ints, Rules, parse_line, quotes, rules_for, stamp_utc
from host.progress import say
from host.resample import join_bars, periods
from host.weekly_open import AUTO, Weekends, clock_doubt, find_weekends
from kernels.bars import NS, Bars

POLL_S = 0.2
LEARN = 64  # lines that the length of a bar is learnt from, or checked with
UNJUDGED = 1000  # bars after which the share of bad ones is judged


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
        self.clock = options.timezone or layout.format.timezone
        self.dropped = 0  # bad rows
        self._options = options
        self._interval_ns = options.interval_s * NS
        self._name = name
        self._rules: Rules | None = None
        self._has_volume = layout.format.ticks
        self._unsure = self._always = False  # of weekends: bars on a Saturday would tell, or there are none
        self._catching_up = False
        self._last: tuple[int, float] | None = None  # opening and close of the last bar
        self._before: tuple[int, int] | None = None  # opening and line of the last row good by itself
        self._text = ""  # of the last bar
        self._first: list[int] = []  # openings of the first bars, to check their distance
        self._rows = self._faults = 0  # judged, and bad without the filler
        self._bad: list[
            tuple[int, str, dict[str, float]]
        ] = []  # line, kind and quote of rows since the last bar
        self._spell, self._steady = Spell(), False  # whether two bars have been as far apart as they are long
        self._weekends: list[Weekends] = []
        self._doubted = False

    def reopen(self) -> None:
        """The feed starts over: skip what is not newer than the last bar."""
        self._catching_up = True

    def parse(self, text: str, line: int) -> Bar | None:
        """The bar of a line; None for a blank, already seen or dropped one.  DataError if it is bad."""
        if not text.strip():
            return None
        self._rows += 1
        parsed = parse_line(text, self.layout)
        if parsed is None:
            self._check_dates(text, line)
            self._refuse("unparsable", text, line, {})
            return None
        stamp, is_utc, numbers = parsed
        if numbers.pop("complete", 1.0) == 0:
            return None  # it comes again once it is closed
        rules = self._rules or self._learn(numbers["open"])
        opening = stamp_utc(stamp, is_utc, self.clock) - (self._interval_ns if rules.label == "close" else 0)
        if self._catching_up and self._last and opening <= self._last[0]:
            return None
        quote = quotes(numbers, rules, self.layout.point)
        if self._last and opening - self._last[0] > max(LONG_GAP, HOLE_BARS * self._interval_ns):
            self._check_dates(text, line)
        kind = self._fault(quote, opening, line)
        if kind:
            self._refuse(kind, text, line, quote)
            return None
        self._keep(opening, quote["close"], not is_utc)
        self._text = text
        return Bar(opening + self._interval_ns, **quote)

    def _learn(self, price: float) -> Rules:
        """What holds for the feed, from its first price."""
        self._rules, notes = rules_for(self.layout, self._options, self._name, price, self._interval_ns)
        self._always, self._unsure = (
            self._rules.instrument.hours == ALWAYS,
            has_weekends(self._rules.instrument) is None,
        )
        said = f"{self.layout.format.name}, clock {self.clock}, stamps mark the {self._rules.label}"
        say(f"{self._name}: {'; '.join([said, *notes])}")
        return self._rules

    def _check_dates(self, text: str, line: int) -> None:
        """Refuse --dates where a line follows the last bar by the other order of dates only."""
        if self._options.dates is None or self.layout.format.stamp != self._options.dates:
            return
        other = other_dates(self.layout)
        last, now = parse_line(self._text, other), parse_line(text, other)
        if now and (last is None or 0 < now[0] - last[0] <= max(LONG_GAP, self._interval_ns)):
            order = self._options.dates
            raise DataError(
                f"{self._name}: line {line}: read with --dates {order}, it does not follow the line before; with "
                f"--dates {ORDERS[order]} it does: {text[:160]!r}"
            )

    def _keep(self, opening: int, close: float, local: bool) -> None:
        """Remember the last bar; once there are LEARN of them, refuse bars of another length."""
        if self._last and not self._doubted:
            self._doubt(np.array([self._last[0], opening]), local)
        self._last, self._catching_up, self._bad = (opening, close), False, []
        if len(self._first) < LEARN:
            self._first.append(opening)
            if len(self._first) == LEARN:
                interval_of(np.array(self._first, np.int64), self._options, self._name)

    def _doubt(self, openings: Ints, local: bool) -> None:
        """Doubt the clock aloud, once, if a weekend between two bars speaks against it."""
        weekend = find_weekends(openings, self._interval_ns)
        if len(weekend.open) and self._rules and not self._always:
            self._weekends.append(weekend)
            seen = Weekends(*map(np.concatenate, zip(*self._weekends, strict=True)))
            doubt = clock_doubt(seen, self._rules, self._options, local)
            self._doubted = doubt is not None
            if doubt:
                say(f"{self._name}: {doubt}")

    def _fault(self, quote: dict[str, float], opening: int, line: int) -> str | None:
        """The kind of fault of a row; DataError where bars are of another length from a row on."""
        self._has_volume = self._has_volume or quote["volume"] > 0
        self._always = self._always or bool(
            self._unsure and on_saturday(opening, self._interval_ns) and not is_still(quote)
        )
        for kind, found in row_faults(quote, opening, self._has_volume, self._always).items():
            if found:
                return kind
        before, at = self._before or (opening - 2 * self._interval_ns, line)
        self._before = opening, line
        self._watch(opening - before, line if self._rules and self._rules.label == "close" else at)
        if is_moved(
            quote,
            self._last[1] if self._last else quote["close"],
            opening - before,
            self._interval_ns,
            self._always,
        ):
            return "damaged"
        return order_fault(opening - self._last[0], self._interval_ns) if self._last else None

    def _watch(self, step_ns: int, line: int) -> None:
        """DataError once the steps from row to row, the last one from `line`, tell of bars of another length."""
        if self._rows > 1:
            self._spell = go_on(self._spell, step_ns, self._interval_ns, line)
            self._steady = self._steady or self._spell.exact == 0
        if is_another_length(self._spell, self._interval_ns):
            if not self._steady:
                check_divides(self._spell.step_ns, self._interval_ns, self._name)
            text = change_text(self._interval_ns, self._spell.step_ns)
            raise DataError(f"{self._name}: line {self._spell.first}: {text}")

    def _refuse(self, kind: str, text: str, line: int, quote: dict[str, float]) -> None:
        """Say that a row is dropped; DataError if it may not be, or if it is not the only one."""
        cells = cell_text(kind, quote, self._last[1] if self._last else np.nan) if quote else ""
        where = f"{self._name}: line {line}: {KINDS[kind]}{cells}: {text[:160]!r}"
        if not self._options.drop_bad:
            raise DataError(f"{where}; if few rows are so, --drop-bad drops them")
        if kind != "flat":
            self._bad.append((line, kind, quote))
            self._faults += 1
        if len(self._bad) == MOVED:
            first, _, moved = self._bad[0]
            level = all(
                k == "damaged" and not is_moved(q, moved["close"], 2, 1, self._always)
                for _, k, q in self._bad
            )
            if self._last and level:
                raise DataError(f"{self._name}: line {first}: {move_text(self._last[1], moved['open'])}")
            raise DataError(f"{where}; so are the rows before it, from line {first} on: these are no slips")
        if self._faults > max(FEW, max(self._rows, UNJUDGED) // MOST_DROPPED):
            raise DataError(
                f"{where}; {self._faults} of {self._rows} rows are bad, more than 1 %: these are no slips"
            )
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
    read, layout, step_ns = learn_step(lines, options, name)
    parser = LineParser(layout, replace(options, interval_s=step_ns // NS), name)
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
    if options.timezone == AUTO:
        raise DataError(
            f"{name}: a feed cannot prove its clock: name what data-check --timezone {AUTO} finds in a history"
        )
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
