"""Which bars may begin an episode: enough history before them, no hole of bars within."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.jit import kernel
from kernels.market.bars import Bars
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

MAX_MISSING_BARS = 10  # bars of an unscheduled hole that a session may span


MAX_INTRADAY_NS = HOUR_NS // 4  # up to here a session does not span the weekly close


OK, NO_HISTORY, NEAR_END, GAP, WEEKLY_CLOSE = 0, 1, 2, 3, 4


REJECT_REASONS = ("", "without history", "too near the end", "across a hole", "across the weekly close")


def episode_starts(
    bars: Bars, first: int, stop: int, length: int, history: int, interval_ns: int, hours: ClosedHours
) -> tuple[NDArray[np.int64], dict[str, int]]:
    """(start bars, rejected starts by reason): every bar of [first, stop) is in one or the other.

    A session decides at bars s .. s + length - 1 and fills at s + 1 .. s + length, all within [first, stop), with
    `history` bars up to s.
    """
    if not 0 <= first <= stop <= len(bars.time) or length < 1:
        raise ValueError(f"no sessions of {length} bars in [{first}, {stop}) of {len(bars.time)} bars")
    verdict = np.zeros(stop - first, np.int8)
    classify_starts(verdict, classify_gaps(bars.time, interval_ns, hours), first, length, history)
    counts = np.bincount(verdict, minlength=len(REJECT_REASONS))
    rejects = {REJECT_REASONS[r]: int(counts[r]) for r in range(1, len(REJECT_REASONS))}
    return first + np.flatnonzero(verdict == OK).astype(np.int64), rejects


@kernel
def classify_starts(verdict: NDArray[np.int8], gap: NDArray[np.int8], first: int, length: int, history: int) -> None:
    """verdict [n]: STARTS or why no session starts at bar first + i; the first reason that applies."""
    stop = first + verdict.shape[0]
    next_hole = next_close = stop + length  # first bar beyond s that comes after a hole
    for s in range(stop - 1, first - 1, -1):
        reason = OK
        if s - history + 1 < 0:
            reason = NO_HISTORY
        elif s + length >= stop:
            reason = NEAR_END
        elif next_hole <= s + length:
            reason = GAP
        elif next_close <= s + length:
            reason = WEEKLY_CLOSE
        verdict[s - first] = reason
        if gap[s] == GAP:
            next_hole = s
        elif gap[s] == WEEKLY_CLOSE:
            next_close = s


class Gaps(NamedTuple):
    """Stretches of at least one bar without any."""

    end_bar: NDArray[np.int64]  # [N] the bar that ends each
    open_duration_ns: NDArray[np.int64]  # of each while the market is open
    is_weekly_close: NDArray[np.bool_]  # it takes most of the weekly close
    is_unscheduled: NDArray[np.bool_]  # more than MOST_MISSING bars are missing while the market is open


def find_gaps(time: NDArray[np.int64], interval_ns: int, hours: ClosedHours) -> Gaps:
    """The gaps between bars that close at `time` [T].

    A daily break may be as long as it is: a session spans it.  The weekly close is taken off a gap only where the gap
    takes most of it, so a holiday beside a weekend is not hidden.
    """
    after = np.flatnonzero(np.diff(time) >= 2 * interval_ns) + 1
    start_ns, stop_ns = time[after - 1], time[after] - interval_ns
    begin, length = (ns // QUARTER_NS for ns in weekly_close(hours))
    weekly = new_closed_hours((begin, begin + length))
    weekly_ns = closed_duration_ns(start_ns, stop_ns, weekly)
    is_weekly = weekly_ns >= MIN_WEEKLY_CLOSE_NS
    scheduled_ns = closed_duration_ns(start_ns, stop_ns, hours & ~weekly) + is_weekly * weekly_ns
    open_ns = stop_ns - start_ns - scheduled_ns
    return Gaps(after, open_ns, is_weekly, open_ns // interval_ns > MAX_MISSING_BARS)


def classify_gaps(time: NDArray[np.int64], interval_ns: int, hours: ClosedHours) -> NDArray[np.int8]:
    """[T] HOLE or WEEKLY_CLOSE where a session must not run into a bar that closes at `time`, else STARTS."""
    hole, gaps = np.zeros(len(time), np.int8), find_gaps(time, interval_ns, hours)
    hole[gaps.end_bar[gaps.is_weekly_close]] = WEEKLY_CLOSE if interval_ns <= MAX_INTRADAY_NS else OK
    hole[gaps.end_bar[gaps.is_unscheduled]] = GAP
    return hole


def longest_episodes(
    time: NDArray[np.int64], stop: int, history: int, interval_ns: int, hours: ClosedHours
) -> tuple[int, float]:
    """Decisions of the longest session in bars [0, stop), and of the longest between any two holes.

    The latter is inf where more bars may tell of longer ones: there are no two holes, or no weeks to learn hours from.
    """
    edge = np.flatnonzero(classify_gaps(time[:stop], interval_ns, hours))
    first, last = np.concatenate([[0], edge]), np.concatenate([edge, [stop]]) - 1
    longest = int((last - np.maximum(first, history - 1)).max())
    known = len(edge) > 1 and time[stop - 1] - time[0] >= MIN_SEASON_WEEKS * WEEK_NS
    return max(longest, 0), float(np.diff(edge).max() - 1) if known else math.inf
