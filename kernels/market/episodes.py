"""Which bars may start an episode: those with enough history before them and no gap within the episode."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.jit import kernel
from kernels.market.bars import MAX_MISSING_BARS, Bars
from kernels.market.calendar import (
    HOUR_NS,
    MIN_SEASON_WEEKS,
    MIN_WEEKLY_CLOSE_NS,
    QUARTER_NS,
    WEEK_NS,
    ClosedHours,
    closed_duration_ns,
    new_closed_hours,
    weekly_close,
)

MAX_INTRADAY_NS = HOUR_NS // 4  # an episode of bars up to this long does not span the weekly close
OK, NO_HISTORY, NEAR_END, GAP, WEEKLY_CLOSE = 0, 1, 2, 3, 4
REJECT_REASONS = ("", "without history", "too near the end", "across a hole", "across the weekly close")


def episode_starts(
    bars: Bars, first: int, stop: int, length: int, history: int, interval_ns: int, hours: ClosedHours
) -> tuple[NDArray[np.int64], dict[str, int]]:
    """(start bars, number of rejected bars by reason); every bar of [first, stop) is in one of the two.

    An episode that starts at bar s decides at the closes of bars s .. s + length - 1 and fills at the opens of bars
    s + 1 .. s + length.  All of them are within [first, stop), and `history` bars end with bar s.
    """
    if not 0 <= first <= stop <= len(bars.time) or length < 1:
        raise ValueError(f"no episodes of {length} bars in [{first}, {stop}) of {len(bars.time)} bars")
    reason = np.zeros(stop - first, np.int8)
    classify_starts(reason, classify_gaps(bars.time, interval_ns, hours), first, length, history)
    counts = np.bincount(reason, minlength=len(REJECT_REASONS))
    rejects = {REJECT_REASONS[r]: int(counts[r]) for r in range(1, len(REJECT_REASONS))}
    return first + np.flatnonzero(reason == OK).astype(np.int64), rejects


@kernel
def classify_starts(reason: NDArray[np.int8], gap: NDArray[np.int8], first: int, length: int, history: int) -> None:
    """Write into reason [n] why no episode starts at bar first + i, or OK; the first reason that applies.  gap [T]."""
    stop = first + reason.shape[0]
    next_gap = next_close = stop + length  # first bar behind s that ends a gap, or the weekly close
    for s in range(stop - 1, first - 1, -1):
        i = s - first
        reason[i] = OK
        if s - history + 1 < 0:
            reason[i] = NO_HISTORY
        elif s + length >= stop:
            reason[i] = NEAR_END
        elif next_gap <= s + length:
            reason[i] = GAP
        elif next_close <= s + length:
            reason[i] = WEEKLY_CLOSE
        if gap[s] == GAP:
            next_gap = s
        elif gap[s] == WEEKLY_CLOSE:
            next_close = s


class Gaps(NamedTuple):
    """The places where one bar or more is missing, the oldest first; every array is [number of gaps]."""

    end_bar: NDArray[np.int64]  # first bar after the gap
    open_duration_ns: NDArray[np.int64]  # the part of the gap in which the market is open
    is_weekly_close: NDArray[np.bool_]  # the gap contains most of the weekly close
    is_unscheduled: NDArray[np.bool_]  # more than MAX_MISSING_BARS are missing in open time


def find_gaps(time: NDArray[np.int64], interval_ns: int, hours: ClosedHours) -> Gaps:
    """The gaps between bars that close at `time` [T].

    A scheduled break is no open time, however long it is.  The weekly close counts as scheduled only in a gap that
    contains most of it: otherwise a holiday beside a weekend would be hidden.
    """
    end_bar = np.flatnonzero(np.diff(time) >= 2 * interval_ns) + 1
    start_ns, stop_ns = time[end_bar - 1], time[end_bar] - interval_ns
    begin, length = (ns // QUARTER_NS for ns in weekly_close(hours))
    weekly = new_closed_hours((begin, begin + length))
    weekly_ns = closed_duration_ns(start_ns, stop_ns, weekly)
    is_weekly = weekly_ns >= MIN_WEEKLY_CLOSE_NS
    scheduled_ns = closed_duration_ns(start_ns, stop_ns, hours & ~weekly) + is_weekly * weekly_ns
    open_ns = stop_ns - start_ns - scheduled_ns
    return Gaps(end_bar, open_ns, is_weekly, open_ns // interval_ns > MAX_MISSING_BARS)


def classify_gaps(time: NDArray[np.int64], interval_ns: int, hours: ClosedHours) -> NDArray[np.int8]:
    """[T] GAP or WEEKLY_CLOSE for each bar that no episode may contain after its start, else OK.  time [T]: closes."""
    kind, gaps = np.zeros(len(time), np.int8), find_gaps(time, interval_ns, hours)
    kind[gaps.end_bar[gaps.is_weekly_close]] = WEEKLY_CLOSE if interval_ns <= MAX_INTRADAY_NS else OK
    kind[gaps.end_bar[gaps.is_unscheduled]] = GAP
    return kind


def longest_episodes(
    time: NDArray[np.int64], stop: int, history: int, interval_ns: int, hours: ClosedHours
) -> tuple[int, float]:
    """(decisions of the longest episode in bars [0, stop), decisions of the longest episode between two gaps).

    The second is inf where more bars could allow a longer episode: with fewer than two gaps, or with too few weeks to
    learn the hours of the market.
    """
    edge = np.flatnonzero(classify_gaps(time[:stop], interval_ns, hours))
    first, last = np.concatenate([[0], edge]), np.concatenate([edge, [stop]]) - 1
    longest = int((last - np.maximum(first, history - 1)).max())
    is_final = len(edge) > 1 and time[stop - 1] - time[0] >= MIN_SEASON_WEEKS * WEEK_NS
    return max(longest, 0), float(np.diff(edge).max() - 1) if is_final else math.inf
