"""The reader of a feed: each complete line is one closed bar, the same to the bit as `csv_reader.py` reads it in bulk.

A newline completes a line.  A feed has no later rows: the last close shows whether a price is damaged, and the first
price how large a pip is.  A format that lists the newest bar first cannot be a feed.
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

from host.console import log
from host.data.containers import is_plain_text, read_text
from host.data.file_checks import MAX_INTERVAL_NS, MAX_WEEKEND_NS, infer_interval, swap_date_order
from host.data.follow import RewriteDetector, path_lines, pipe_lines, stream_lines
from host.data.formats import DataError, ReadOptions
from host.data.layout import (
    OTHER_DATE_ORDER,
    SNIFF_LINES,
    FileLayout,
    detect_layout,
    is_complete_head,
    unsupported_reason,
)
from host.data.parsing import ParseRules, explain_line, parse_line, resolve_rules, stamp_to_utc, to_quotes
from host.data.resample import aggregate_bars, period_bounds
from host.data.row_checks import RowChecker
from host.data.weekly_open import AUTO_TIMEZONE
from kernels.market.bars import MAX_MISSING_BARS, SECOND_NS, Bars

POLL_S = 0.2
RulesCheck = Callable[[ParseRules], None]


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
    """The parser of the lines of one feed, in their order."""

    def __init__(
        self, layout: FileLayout, options: ReadOptions, name: str, check: RulesCheck = lambda rules: None
    ) -> None:
        if options.interval_s is None:
            raise DataError(f"{name}: a line does not tell how long its bar is")
        self.layout = layout
        self.clock = layout.format.timezone
        self._options, self._check = options, check
        self._interval_ns = options.interval_s * SECOND_NS
        self._name = name
        self._rules: ParseRules | None = None
        self._checker = RowChecker(options, self._interval_ns, name, layout.format.volume_required)
        self._catching_up = False
        self._last_text = ""  # of the last bar
        self._rewrites = RewriteDetector(name, self._interval_ns)

    def reopen(self) -> None:
        """Start reading the feed again from line 1; bars that are not newer than the last one are skipped."""
        self._catching_up = True
        self._rewrites.start_rereading()

    def parse(self, text: str, line: int) -> Bar | None:
        """The bar of a line; None for a line that is blank, was read before or is dropped; DataError for a bad one."""
        if not text.strip():
            return None
        parsed, last = parse_line(text, self.layout), self._checker.last_bar
        if parsed is None:
            self._check_date_order(text, line)
            self._checker.reject("unparsable", text, line, {}, f": {explain_line(text, self.layout)}")
            return None
        stamp, is_utc, numbers = parsed
        if numbers.pop("complete", 1.0) == 0:
            return None  # the same bar comes again once it is closed
        if self._rules is None:
            price = numbers["open"]
            self._rules, notes = resolve_rules(self.layout, self._options, price, self._interval_ns)
            reading = f"{self.layout.format.name}, clock {self.clock}, stamps mark the {self._rules.label}"
            log(f"{self._name}: {'; '.join([reading, *notes])}")
            self._check(self._rules)
        opening = stamp_to_utc(stamp, is_utc, self.clock)
        opening -= self._interval_ns if self._rules.label == "close" else 0
        prices = numbers["open"], numbers["high"], numbers["low"], numbers["close"]
        if self._catching_up and last and opening <= last[0]:
            self._rewrites.compare(opening, prices, line)
            return None
        if last and opening - last[0] > max(MAX_WEEKEND_NS, MAX_MISSING_BARS * self._interval_ns):
            self._check_date_order(text, line)
        quote = to_quotes(numbers, self._rules)
        kind = self._checker.find_fault(quote, opening, line, self._rules)
        if kind:
            self._checker.reject(kind, text, line, quote)
            return None
        self._checker.accept(opening, quote, self._rules, not is_utc)
        self._catching_up, self._last_text = False, text
        self._rewrites.remember(opening, prices, line)
        return Bar(opening + self._interval_ns, **quote)

    def _check_date_order(self, text: str, line: int) -> None:
        """DataError if a line follows the last bar in the other order of dates, and not in that of --dates."""
        order = self._options.dates
        if order is None or self.layout.format.stamp_style != order:
            return
        other = swap_date_order(self.layout)
        last, now = parse_line(self._last_text, other), parse_line(text, other)
        if now and (last is None or 0 < now[0] - last[0] <= max(MAX_WEEKEND_NS, self._interval_ns)):
            raise DataError(
                f"{self._name}: line {line}: read with --dates {order}, it does not follow the line before; with "
                f"--dates {OTHER_DATE_ORDER[order]} it does: {text[:160]!r}"
            )


def feed_bars(
    source: Path | str | BinaryIO,
    options: ReadOptions | None = None,
    follow: bool = False,
    wait: Callable[[], None] = lambda: time.sleep(POLL_S),
    check: RulesCheck = lambda rules: None,
) -> Iterator[Bar]:
    """The closed bars of a file, a stream or stdin ("-"); DataError for a bad line.

    With `follow`, the end of a file is not the end of the feed: `wait` is called until the file grows.  A stream that
    is no file ends with its writer.  Without `options.interval_s`, SNIFF_LINES lines are read before the first bar.
    `check` is called with the rules of the first line, and may raise.
    """
    options = options or ReadOptions()
    if source == "-":
        source = sys.stdin.buffer
    if isinstance(source, str | Path):
        name, lines = open_lines(Path(source), follow, wait)
    else:
        name, lines = str(getattr(source, "name", "feed")), stream_lines(source, follow, wait)
    read, layout, step_ns = sniff_interval(lines, options, name)
    parser = LineParser(layout, replace(options, interval_s=step_ns // SECOND_NS), name, check)
    bars = parse_feed(chain(read, lines), parser, options, name)
    if options.interval_s in (None, step_ns // SECOND_NS):
        yield from bars
    else:
        log(f"{name}: bars of {step_ns // SECOND_NS} s are put together into bars of {options.interval_s} s")
        yield from resample_feed(bars, step_ns, options.interval_s * SECOND_NS, parser.clock)


def sniff_interval(
    lines: Iterator[tuple[int, str]], options: ReadOptions, name: str
) -> tuple[list[tuple[int, str]], FileLayout, int]:
    """The first lines of a feed, their layout and the length of a bar, nanoseconds.

    Two bars that are as far apart as `options.interval_s` show the length; otherwise SNIFF_LINES lines are read.
    """
    if options.timezone == AUTO_TIMEZONE:
        remedy = f"name what data-check --timezone {AUTO_TIMEZONE} finds in a history"
        raise DataError(f"{name}: a feed cannot prove its clock: {remedy}")
    read: list[tuple[int, str]] = []
    head: list[str] = []
    stamps: list[tuple[int, bool]] = []
    layout: FileLayout | None = None
    wanted_ns = MAX_INTERVAL_NS if options.interval_s is None else options.interval_s * SECOND_NS
    for line, text in lines:
        read.append((line, text))
        head, layout = ([text], None) if line == 1 else ([*head, text], layout)
        if is_complete_head(head) if layout is None else not layout.is_final:
            layout = detect_layout(head, options, name)
        parsed = parse_line(text, layout) if layout else None
        if parsed and parsed[2].get("complete", 1.0):
            stamps.append(parsed[:2])
        if len(read) >= SNIFF_LINES or (layout and layout.is_final and spans_interval(stamps, wanted_ns, layout)):
            break
    if layout is None:
        raise DataError(f"{name}: {unsupported_reason(chr(10).join(head))}")
    if not stamps:
        line, text = read[-len(head) :][min(layout.header_lines, len(head) - 1)]
        raise DataError(f"{name}: no bars: line {line}: {explain_line(text, layout)}: {text[:80]!r}")
    layout = detect_layout(head, options, name)
    utc = [stamp_to_utc(*stamp, layout.format.timezone) for stamp in stamps]
    if len(utc) > 1 and utc[0] > utc[-1]:
        raise DataError(f"{name}: lists the newest bar first: a feed appends it")
    step = np.diff(np.array(utc, np.int64))
    shorter = ((step > 0) & (step < wanted_ns)).any()
    if options.interval_s is None or shorter:
        wanted_ns = infer_interval(np.array(utc, np.int64), options, name)
    return read, layout, wanted_ns


def spans_interval(stamps: list[tuple[int, bool]], wanted_ns: int, layout: FileLayout) -> bool:
    """Whether the last two stamps are at least `wanted_ns` apart."""
    utc = [stamp_to_utc(*stamp, layout.format.timezone) for stamp in stamps[-2:]]
    return len(utc) > 1 and utc[1] - utc[0] >= wanted_ns


def resample_feed(bars: Iterable[Bar], step_ns: int, interval_ns: int, clock: str) -> Iterator[Bar]:
    """The bars of `resample.resample_bars`, each as soon as it is closed."""
    period: list[Bar] = []
    end = torn_end = 0  # torn_end: the end of a first period without its beginning
    for bar in bars:
        opened = bar.time - step_ns
        if opened >= end:
            if period:
                yield aggregate_part(period, end)
                period = []
            start, period_end = (int(t[0]) for t in period_bounds(np.array([opened], np.int64), interval_ns, clock))
            torn_end = period_end if end == 0 and opened != start else torn_end
            end = period_end
        if end != torn_end:
            period.append(bar)
        if period and bar.time >= end:
            yield aggregate_part(period, end)
            period = []


def aggregate_part(period: list[Bar], end: int) -> Bar:
    """One bar that closes at `end`, from the bars of its period."""
    bars = Bars._make(np.array(column) for column in zip(*period, strict=True))
    joined = aggregate_bars(bars, np.array([end], np.int64), np.zeros(1, np.int64))
    return Bar._make(column[0].item() for column in joined)


def parse_feed(lines: Iterator[tuple[int, str]], parser: LineParser, options: ReadOptions, name: str) -> Iterator[Bar]:
    """The bars of numbered lines; a line 1 in between starts the file over."""
    head: list[str] = []
    for line, text in lines:
        head = [] if line == 1 else head
        if not is_complete_head(head):
            head.append(text)
            if not is_complete_head(head):
                continue
            layout = detect_layout(head, options, name)
            if (layout.format.pattern, *layout[1:4]) != (parser.layout.format.pattern, *parser.layout[1:4]):
                raise DataError(f"{name}: the format has changed from {parser.layout.format.name}")
            parser.reopen()
        bar = parser.parse(text, line)
        if bar:
            yield bar


def open_lines(path: Path, follow: bool, wait: Callable[[], None]) -> tuple[str, Iterator[tuple[int, str]]]:
    """The name and the lines of a path: text is read as it grows, anything else is unpacked as a whole."""
    if is_plain_text(path, follow):
        return str(path), path_lines(path, follow, wait)
    name, data, _ = read_text(path)
    return name, pipe_lines(io.BytesIO(data), name, yield_partial=True)
