"""Where episodes may start, against a look at every gap of every episode."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host.data.csv_reader import read_bars
from host.data.formats import ReadOptions
from kernels.market import episodes
from kernels.market.bars import SECOND_NS, Bars
from kernels.market.calendar import (
    ALWAYS_OPEN,
    CLOSED_DAILY,
    CLOSED_ON_WEEKENDS,
    ClosedHours,
    closed_duration_ns,
    infer_closed_hours,
    weekly_close,
)
from kernels.market.episodes import episode_starts, longest_episodes
from tests.fixtures.markets import closes, gold, index, two_pauses
from tests.fixtures.paths import REAL, SAMPLE
from tests.oracles.naive import MONDAY, moment, wandering_bars

MINUTES_FILE = "GBPJPY_M1_histdata_ascii_2021-01_02.csv"
MINUTE, HOUR, DAY = 60 * SECOND_NS, 3600 * SECOND_NS, 86_400 * SECOND_NS
WINTER = datetime(2024, 12, 2, tzinfo=UTC)
few = settings(deadline=None, max_examples=30)


def brute_starts(bars: Bars, first: int, stop: int, length: int, history: int, interval_ns: int) -> list[int]:
    """Starts by looking at every gap of every episode."""
    starts = []
    for s in range(max(first, history - 1), stop - length):
        gaps = [(moment(bars.time[i - 1]), moment(bars.time[i] - interval_ns)) for i in range(s + 1, s + length + 1)]
        good = True
        for a, b in gaps:
            missing = (b - a).total_seconds() * SECOND_NS // interval_ns
            if a.weekday() in (4, 5) and (b - a).days < 4 and b.weekday() in (6, 0) and (b - a).days >= 1:
                good &= interval_ns > 15 * MINUTE
            else:
                good &= missing <= 10
        if good:
            starts.append(s)
    return starts


def without(bars: Bars, gone: slice) -> Bars:
    """A copy of the bars with a gap."""
    return Bars(*(np.delete(column, gone) for column in bars))  # type: ignore[arg-type]


@few
@given(st.integers(0, 2**20), st.sampled_from([1, 5, 15, 30, 60, 240, 1440]), st.integers(1, 9), st.integers(1, 30))
def test_every_start_is_used_or_rejected(seed: int, minutes: int, length: int, history: int) -> None:
    draw = np.random.default_rng(seed)
    begin = MONDAY + 4 * DAY + 20 * HOUR + int(draw.integers(-90, 90)) * minutes * MINUTE
    bars = wandering_bars(seed, 400, minutes, first_ns=begin // (minutes * MINUTE) * minutes * MINUTE)
    weekday = (bars.time - MONDAY) % (7 * DAY) < 4 * DAY  # gaps that have nothing to do with the weekend
    gap = int(draw.integers(20, 300))
    size = int(draw.integers(1, 25))
    if weekday[gap - 1 : gap + size + 1].all():
        bars = without(bars, slice(gap, gap + size))
    first, stop = int(draw.integers(0, 50)), len(bars.time) - int(draw.integers(0, 50))
    starts, rejects = episode_starts(bars, first, stop, length, history, minutes * MINUTE, CLOSED_ON_WEEKENDS)
    assert len(starts) + sum(rejects.values()) == stop - first
    assert starts.tolist() == brute_starts(bars, first, stop, length, history, minutes * MINUTE)


@pytest.mark.parametrize(("missing", "crossing"), [(10, 0), (11, 5)])
def test_ten_missing_bars_are_borne(missing: int, crossing: int) -> None:
    bars = without(wandering_bars(0, 200, 1), slice(100, 100 + missing))
    assert episode_starts(bars, 0, 200 - missing, 5, 1, MINUTE, CLOSED_ON_WEEKENDS)[1]["across a hole"] == crossing


@pytest.mark.parametrize(("minutes", "crossing"), [(1, 5), (15, 5), (30, 0), (60, 0), (240, 0)])
def test_weekly_close_is_spanned_by_long_bars_only(minutes: int, crossing: int) -> None:
    bars = wandering_bars(0, 100, minutes, first_ns=MONDAY + 4 * DAY + 22 * HOUR - 50 * minutes * MINUTE)
    rejects = episode_starts(bars, 0, 100, 5, 1, minutes * MINUTE, CLOSED_ON_WEEKENDS)[1]
    assert (rejects["across the weekly close"], rejects["across a hole"]) == (crossing, 0)


def test_hours_missing_on_a_saturday_that_trades_are_a_gap() -> None:
    time = MONDAY + MINUTE * np.arange(7 * 24 * 60, dtype=np.int64)
    time = np.delete(time, slice(5 * 24 * 60 + 600, 5 * 24 * 60 + 780))
    bars = Bars(time, *(np.ones(len(time)) for _ in range(7)))
    rejects = episode_starts(bars, 0, len(time), 5, 1, MINUTE, CLOSED_ON_WEEKENDS)[1]
    assert (rejects["across a hole"], rejects["across the weekly close"]) == (5, 0)


def test_a_holiday_beside_the_weekend_is_a_gap() -> None:
    bars = wandering_bars(0, 200, 60)
    friday = int(np.argmax((bars.time - MONDAY) > 4 * DAY))
    shortened = without(bars, slice(friday, friday + 15))
    assert episode_starts(bars, 0, 200, 10, 1, HOUR, CLOSED_ON_WEEKENDS)[1]["across a hole"] == 0
    assert episode_starts(shortened, 0, 185, 10, 1, HOUR, CLOSED_ON_WEEKENDS)[1]["across a hole"] == 10


def test_episodes_out_of_range_are_refused() -> None:
    bars = wandering_bars(0, 50, 60)
    with pytest.raises(ValueError, match="no episodes"):
        episode_starts(bars, 0, 51, 10, 1, HOUR, CLOSED_ON_WEEKENDS)


def test_episodes_of_real_hours_span_weekends() -> None:
    bars, _ = read_bars(SAMPLE, ReadOptions(side="ask"))
    starts, rejects = episode_starts(bars, 0, len(bars.time), 360, 256, HOUR, CLOSED_ON_WEEKENDS)
    assert len(starts) + sum(rejects.values()) == len(bars.time)
    assert rejects["across the weekly close"] == 0
    assert len(starts) > 0.6 * len(bars.time)
    few_starts, _ = episode_starts(bars, 500, 1500, 40, 256, HOUR, CLOSED_ON_WEEKENDS)
    assert few_starts.tolist() == brute_starts(bars, 500, 1500, 40, 256, HOUR)


@pytest.mark.skipif(not (REAL / MINUTES_FILE).exists(), reason="no real minutes here")
def test_episodes_of_real_minutes_do_not() -> None:
    bars, _ = read_bars(REAL / MINUTES_FILE)
    starts, rejects = episode_starts(bars, 0, len(bars.time), 60, 256, MINUTE, CLOSED_ON_WEEKENDS)
    assert len(starts) + sum(rejects.values()) == len(bars.time)
    assert rejects["across the weekly close"] > 0
    steps = np.lib.stride_tricks.sliding_window_view(np.diff(bars.time), 60)[starts]
    assert steps.max() <= 11 * MINUTE


def test_years_of_minutes_are_classified_in_a_moment() -> None:
    bars = wandering_bars(0, 1_300_000, 1)
    episode_starts(bars, 0, 9, 1, 1, MINUTE, CLOSED_ON_WEEKENDS)
    begin = perf_counter()
    starts, rejects = episode_starts(bars, 0, len(bars.time), 360, 256, MINUTE, CLOSED_ON_WEEKENDS)
    assert perf_counter() - begin < 1
    assert len(starts) + sum(rejects.values()) == len(bars.time)


def bars_at(time: Any) -> Bars:
    return Bars(time, *(np.ones(len(time)) for _ in range(7)))


@pytest.mark.parametrize("usual", [CLOSED_ON_WEEKENDS, CLOSED_DAILY])
@pytest.mark.parametrize("minutes", [1, 5, 15, 30])
@pytest.mark.parametrize("trades", [gold, index, two_pauses])
def test_a_daily_break_is_learnt_and_spanned(trades: Any, minutes: int, usual: ClosedHours) -> None:
    time = closes(WINTER, 180 if minutes > 1 else 40, minutes, trades)
    hours = infer_closed_hours(time, minutes * MINUTE, usual)
    starts, rejects = episode_starts(bars_at(time), 0, len(time), 360, 257, minutes * MINUTE, hours)
    assert rejects["across a hole"] == 0
    assert len(starts) > 100 or (minutes, trades) == (15, two_pauses)
    for a, b in pairwise(time):
        missing = int(b - a) - minutes * MINUTE
        assert closed_duration_ns(int(a), int(b) - minutes * MINUTE, hours) == missing, (
            "all that is missing is scheduled"
        )


@pytest.mark.parametrize("minutes", [1, 5, 15, 60])
def test_an_outage_of_a_market_that_never_closes_is_a_gap(minutes: int) -> None:
    """51 hours over a weekend are the weekly close of EURUSD and a gap of BTCUSD."""
    time = closes(WINTER, 60, minutes, lambda t: True)
    friday = int(datetime(2024, 12, 20, 20, tzinfo=UTC).timestamp()) * SECOND_NS
    time = time[(time <= friday) | (time > friday + 51 * HOUR)]
    for usual, days in ((CLOSED_ON_WEEKENDS, 60), (ALWAYS_OPEN, 60), (ALWAYS_OPEN, 25)):
        part = time[time < int((WINTER + timedelta(days=days)).timestamp()) * SECOND_NS]
        hours = infer_closed_hours(part, minutes * MINUTE, usual)
        assert not hours.any()
        assert weekly_close(hours) == (0, 0)
        rejects = episode_starts(bars_at(part), 0, len(part), 50, 10, minutes * MINUTE, hours)[1]
        assert (rejects["across a hole"], rejects["across the weekly close"]) == (50, 0)


@few
@given(st.integers(0, 2**20), st.integers(10, 120))
def test_the_longest_episode_is_the_longest_that_starts(seed: int, history: int) -> None:
    draw = np.random.default_rng(seed)
    time = np.delete(MONDAY + MINUTE * np.arange(500), np.unique(draw.integers(1, 480, 3))[:, None] + np.arange(1, 12))
    longest, whole = longest_episodes(time, 400, history, MINUTE, CLOSED_ON_WEEKENDS)
    for length, fits in ((longest, longest > 0), (longest + 1, False)):
        if length:
            starts = episode_starts(bars_at(time), 0, 400, length, history, MINUTE, CLOSED_ON_WEEKENDS)[0]
            assert bool(len(starts)) == fits
    assert whole > 0


def test_interpreted_kernels_classify_the_same_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    bars = wandering_bars(3, 400, 15)
    compiled = episode_starts(bars, 0, 400, 5, 9, 15 * MINUTE, CLOSED_ON_WEEKENDS)
    classify = episodes.classify_starts
    monkeypatch.setattr(episodes, "classify_starts", getattr(classify, "py_func", classify))
    np.testing.assert_array_equal(compiled[0], episode_starts(bars, 0, 400, 5, 9, 15 * MINUTE, CLOSED_ON_WEEKENDS)[0])
