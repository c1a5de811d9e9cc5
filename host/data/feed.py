"""Following a feed: one line, one closed bar, the same to the bit as `bars.py` reads it in bulk.

A line is complete with its newline; the bars of a file are closed, so a complete line is a closed bar.  Unlike the bulk
reader a feed knows no later rows: damage is judged by the last close, and the size of a pip by the first price.
Formats that list the newest bar first are no feeds.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from host.console import say
from host.data.containers import is_plain, read_text
from host.data.file_checks import LONG_GAP, LONGEST, interval_of, other_dates
from host.data.follow import Taken, path_lines, pipe_lines, stream_lines
from host.data.formats import LEARN, ORDERS, DataError, Layout, ReadOptions, is_head, recognise, refusal
from host.data.parsing import Rules, explain_line, parse_line, quotes, rules_for, stamp_utc
from host.data.resample import join_bars, periods
from host.data.row_checks import RowJudge
from host.data.weekly_open import AUTO
from kernels.market.bars import NS, Bars
from kernels.market.episodes import MOST_MISSING

POLL_S = 0.2


class Bar(NamedTuple):
    """One closed bar: a row of `kernels.market.bars.Bars`."""

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
        check: Callable[[Rules], None] = lambda rules: None,
    ) -> None:
        if options.interval_s is None:
            raise DataError(f"{name}: a line does not tell how long its bar is")
        self.layout = layout
        self.clock = layout.format.timezone
        self._options, self._check = options, check
        self._interval_ns = options.interval_s * NS
        self._name = name
        self._rules: Rules | None = None
        self._judge = RowJudge(options, self._interval_ns, name, layout.format.ticks)
        self._catching_up = False
        self._text = ""  # of the last bar
        self._taken = Taken(name, self._interval_ns)

    def reopen(self) -> None:
        """The feed starts over: skip what is not newer than the last bar."""
        self._catching_up = True
        self._taken.start_over()

    def parse(self, text: str, line: int) -> Bar | None:
        """The bar of a line; None for a blank, already seen or dropped one.  DataError if it is bad."""
        if not text.strip():
            return None
        parsed, last = parse_line(text, self.layout), self._judge.last
        if parsed is None:
            self._check_dates(text, line)
            self._judge.refuse("unparsable", text, line, {}, f": {explain_line(text, self.layout)}")
            return None
        stamp, is_utc, numbers = parsed
        if numbers.pop("complete", 1.0) == 0:
            return None  # it comes again once it is closed
        if self._rules is None:
            price = numbers["open"]
            self._rules, notes = rules_for(self.layout, self._options, self._name, price, self._interval_ns)
            said = f"{self.layout.format.name}, clock {self.clock}, stamps mark the {self._rules.label}"
            say(f"{self._name}: {'; '.join([said, *notes])}")
            self._check(self._rules)
        opening = stamp_utc(stamp, is_utc, self.clock)
        opening -= self._interval_ns if self._rules.label == "close" else 0
        prices = numbers["open"], numbers["high"], numbers["low"], numbers["close"]
        if self._catching_up and last and opening <= last[0]:
            self._taken.compare(opening, prices, line)
            return None
        if last and opening - last[0] > max(LONG_GAP, MOST_MISSING * self._interval_ns):
            self._check_dates(text, line)
        quote = quotes(numbers, self._rules)
        kind = self._judge.fault(quote, opening, line, self._rules)
        if kind:
            self._judge.refuse(kind, text, line, quote)
            return None
        self._judge.keep(opening, quote, self._rules, not is_utc)
        self._catching_up, self._text = False, text
        self._taken.take(opening, prices, line)
        return Bar(opening + self._interval_ns, **quote)

    def _check_dates(self, text: str, line: int) -> None:
        """Refuse --dates where a line follows the last bar by the other order of dates only."""
        order = self._options.dates
        if order is None or self.layout.format.stamp != order:
            return
        other = other_dates(self.layout)
        last, now = parse_line(self._text, other), parse_line(text, other)
        if now and (last is None or 0 < now[0] - last[0] <= max(LONG_GAP, self._interval_ns)):
            raise DataError(
                f"{self._name}: line {line}: read with --dates {order}, it does not follow the line before; with "
                f"--dates {ORDERS[order]} it does: {text[:160]!r}"
            )


def feed_bars(
    source: Path | str | BinaryIO,
    options: ReadOptions | None = None,
    follow: bool = False,
    wait: Callable[[], None] = lambda: time.sleep(POLL_S),
    check: Callable[[Rules], None] = lambda rules: None,
) -> Iterator[Bar]:
    """The closed bars of a file, a stream or stdin ("-"); with `follow`, `wait` passes the time at the end of a file.

    A stream that is no file ends with its writer.  Without `options.interval_s` the first LEARN lines are awaited.
    `check` is shown how the first line is read, and may refuse that.
    """
    options = options or ReadOptions()
    if source == "-":
        source = sys.stdin.buffer
    if isinstance(source, str | Path):
        name, lines = open_lines(Path(source), follow, wait)
    else:
        name, lines = str(getattr(source, "name", "feed")), stream_lines(source, follow, wait)
    read, layout, step_ns = learn_step(lines, options, name)
    parser = LineParser(layout, replace(options, interval_s=step_ns // NS), name, check)
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
    stamps: list[tuple[int, bool]] = []
    layout: Layout | None = None
    wanted_ns = LONGEST if options.interval_s is None else options.interval_s * NS
    for line, text in lines:
        read.append((line, text))
        head, layout = ([text], None) if line == 1 else ([*head, text], layout)
        if is_head(head) if layout is None else not layout.settled:
            layout = recognise(head, options, name)
        parsed = parse_line(text, layout) if layout else None
        if parsed and parsed[2].get("complete", 1.0):
            stamps.append(parsed[:2])
        if len(read) >= LEARN or (layout and layout.settled and is_step(stamps, wanted_ns, layout)):
            break
    if layout is None:
        raise DataError(f"{name}: {refusal(chr(10).join(head))}")
    if not stamps:
        line, text = read[-len(head) :][min(layout.header, len(head) - 1)]
        raise DataError(f"{name}: no bars: line {line}: {explain_line(text, layout)}: {text[:80]!r}")
    layout = recognise(head, options, name)
    utc = [stamp_utc(*stamp, layout.format.timezone) for stamp in stamps]
    if len(utc) > 1 and utc[0] > utc[-1]:
        raise DataError(f"{name}: lists the newest bar first: a feed appends it")
    step = np.diff(np.array(utc, np.int64))
    shorter = ((step > 0) & (step < wanted_ns)).any()
    if options.interval_s is None or shorter:
        wanted_ns = interval_of(np.array(utc, np.int64), options, name)
    return read, layout, wanted_ns


def is_step(stamps: list[tuple[int, bool]], wanted_ns: int, layout: Layout) -> bool:
    """Whether the last two bars are as far apart as wanted, or farther."""
    utc = [stamp_utc(*stamp, layout.format.timezone) for stamp in stamps[-2:]]
    return len(utc) > 1 and utc[1] - utc[0] >= wanted_ns


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
            if (layout.format.head, *layout[1:4]) != (parser.layout.format.head, *parser.layout[1:4]):
                raise DataError(f"{name}: the format has changed from {parser.layout.format.name}")
            parser.reopen()
        bar = parser.parse(text, line)
        if bar:
            yield bar


def open_lines(path: Path, follow: bool, wait: Callable[[], None]) -> tuple[str, Iterator[tuple[int, str]]]:
    """Name and lines of a path: of text as they come, of anything else once it is unpacked."""
    if is_plain(path, follow):
        return str(path), path_lines(path, follow, wait)
    name, data, _ = read_text(path)
    return name, pipe_lines(io.BytesIO(data), name, keep_half=True)
