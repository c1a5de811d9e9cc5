"""Aggregation of closed bars to longer bars; a file read in bulk and a feed give the same bars.

A period begins where the clock of the file shows a multiple of its length.  The last bar of a period closes it; if that
bar is missing, the next one does.  Bars missing within a period are ignored.  A first period without its beginning and
a last period without its end are left out.
"""

from __future__ import annotations

from datetime import timedelta
from functools import lru_cache

import numpy as np

from host.data.parsing import EPOCH_UTC, MICROSECOND, QUARTER_S, IntArray, parse_clock, to_utc
from kernels.market.bars import SECOND_NS, Bars, slice_bars
from kernels.market.calendar import HOUR_NS


def resample_bars(bars: Bars, step_ns: int, interval_ns: int, clock: str) -> tuple[Bars, IntArray]:
    """Bars of `interval_ns` aggregated from bars of `step_ns`, and the index of the first bar in each."""
    if len(bars.time) == 0:
        return bars, bars.time
    start, end = period_bounds(bars.time - step_ns, interval_ns, clock)
    begin = 0 if bars.time[0] - step_ns == start[0] else int(np.searchsorted(end, end[0], "right"))
    stop = len(end) if bars.time[-1] >= end[-1] else int(np.searchsorted(end, end[-1]))
    first = begin + np.flatnonzero(np.diff(end[begin:stop], prepend=-1))
    if begin >= stop:
        return slice_bars(bars, 0, 0), first
    return aggregate_bars(slice_bars(bars, begin, stop), end[first], first - begin), first


def aggregate_bars(bars: Bars, end: IntArray, first: IntArray) -> Bars:
    """One bar for each run of bars that begins at an index of `first`; `end` has their closes, one each."""
    last = np.append(first[1:], len(bars.time)) - 1
    number = np.repeat(np.arange(len(first)), last + 1 - first)
    return Bars(
        time=end,
        open=bars.open[first],
        high=np.maximum.reduceat(bars.high, first),
        low=np.minimum.reduceat(bars.low, first),
        close=bars.close[last],
        ask_open=bars.ask_open[first],
        ask_close=bars.ask_close[last],
        volume=np.bincount(number, bars.volume).astype(np.float64),  # adds in order, however many there are
    )


def period_bounds(open_ns: IntArray, interval_ns: int, clock: str) -> tuple[IntArray, IntArray]:
    """Start and end [T], UTC, of the period that each bar, opening at `open_ns` [T], is in."""
    wall, start = to_wall_time(open_ns, clock), open_ns - open_ns % interval_ns
    # Where clock and UTC agree on the period, UTC gives it: UTC has no hour twice.
    differs = ((wall - open_ns) % interval_ns != 0) | (interval_ns > HOUR_NS)
    wall, none_utc = wall - wall % interval_ns, np.zeros(len(wall), np.bool_)
    start = np.where(differs, to_utc(wall, none_utc, clock), start)
    return start, np.where(differs, to_utc(wall + interval_ns, none_utc, clock), start + interval_ns)


def to_wall_time(utc: IntArray, clock: str) -> IntArray:
    """The time that `clock` shows at each time [T] in UTC."""
    quarter, quarter_index = np.unique(utc // (QUARTER_S * SECOND_NS), return_inverse=True)
    return utc + np.array([utc_offset_ns(clock, q) for q in quarter.tolist()], np.int64)[quarter_index]


@lru_cache(maxsize=1024)
def utc_offset_ns(clock: str, quarter: int) -> int:
    """Nanoseconds by which `clock` is ahead of UTC in a quarter of an hour since 1970, UTC."""
    zone, shift_s = parse_clock(clock)
    offset = (EPOCH_UTC + timedelta(seconds=quarter * QUARTER_S)).astimezone(zone).utcoffset() or timedelta()
    return (offset // MICROSECOND) * 1000 + shift_s * SECOND_NS
