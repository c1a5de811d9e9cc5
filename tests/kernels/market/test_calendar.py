"""When a market is open: nights of swap, where sessions may start, and hours that are learnt from the bars."""

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
from kernels.market import calendar, episodes
from kernels.market.bars import SECOND_NS, Bars
from kernels.market.calendar import (
    ALWAYS_OPEN,
    CLOSED_DAILY,
    CLOSED_ON_WEEKENDS,
    QUARTERS_PER_WEEK,
    ClosedHours,
    closed_duration_ns,
    closed_periods,
    format_closed_hours,
    infer_closed_hours,
    is_dst,
    new_closed_hours,
    rollovers,
    weekly_close,
)
from kernels.market.episodes import episode_starts, longest_episodes
from tests.fixtures.markets import closes, gold, index, pair, two_pauses
from tests.fixtures.paths import REAL, SAMPLE
from tests.oracles.naive import MONDAY, NEW_YORK, moment, rolls, wandering_bars

MINUTES_FILE = "GBPJPY_M1_histdata_ascii_2021-01_02.csv"
MINUTE, HOUR, DAY = 60 * SECOND_NS, 3600 * SECOND_NS, 86_400 * SECOND_NS
few = settings(deadline=None, max_examples=30)


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 20 * 365 * 24 * 2), st.integers(0, 24 * 2 * 30))
def test_nights_are_those_of_the_new_york_calendar(halves: int, length: int) -> None:
    start = int(datetime(2007, 1, 1, tzinfo=UTC).timestamp()) * SECOND_NS + halves * HOUR // 2
    stop = start + length * HOUR // 2
    assert rollovers(start, stop, True) == rolls(moment(start), moment(stop))


def test_summer_is_new_yorks() -> None:
    first, days = (moment(0).replace(year=2007) - moment(0)).days, 31 * 365
    for day in range(first, first + days):
        evening = moment((day * 24 + 20) * HOUR).astimezone(NEW_YORK)
        assert is_dst(day) == bool(evening.dst()), evening


def test_a_week_has_seven_nights() -> None:
    for day in range(0, 3 * 365, 5):
        start = MONDAY + day * DAY
        seven = rollovers(start, start + 7 * DAY, True)
        assert seven == 7, f"week from {moment(start)}"


def brute_starts(bars: Bars, first: int, stop: int, length: int, history: int, interval_ns: int) -> list[int]:
    """Starts by looking at every hole of every session."""
    found = []
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
            found.append(s)
    return found


def without(bars: Bars, gone: slice) -> Bars:
    """A copy of the bars with a hole."""
    return Bars(*(np.delete(column, gone) for column in bars))  # type: ignore[arg-type]


@few
@given(st.integers(0, 2**20), st.sampled_from([1, 5, 15, 30, 60, 240, 1440]), st.integers(1, 9), st.integers(1, 30))
def test_every_start_is_used_or_rejected(seed: int, minutes: int, length: int, history: int) -> None:
    draw = np.random.default_rng(seed)
    begin = MONDAY + 4 * DAY + 20 * HOUR + int(draw.integers(-90, 90)) * minutes * MINUTE
    bars = wandering_bars(seed, 400, minutes, first_ns=begin // (minutes * MINUTE) * minutes * MINUTE)
    weekday = (bars.time - MONDAY) % (7 * DAY) < 4 * DAY  # holes that have nothing to do with the weekend
    hole = int(draw.integers(20, 300))
    size = int(draw.integers(1, 25))
    if weekday[hole - 1 : hole + size + 1].all():
        bars = without(bars, slice(hole, hole + size))
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


def test_hours_missing_on_a_saturday_that_trades_are_a_hole() -> None:
    time = MONDAY + MINUTE * np.arange(7 * 24 * 60, dtype=np.int64)
    time = np.delete(time, slice(5 * 24 * 60 + 600, 5 * 24 * 60 + 780))
    bars = Bars(time, *(np.ones(len(time)) for _ in range(7)))
    rejects = episode_starts(bars, 0, len(time), 5, 1, MINUTE, CLOSED_ON_WEEKENDS)[1]
    assert (rejects["across a hole"], rejects["across the weekly close"]) == (5, 0)


def test_a_holiday_beside_the_weekend_is_a_hole() -> None:
    bars = wandering_bars(0, 200, 60)
    friday = int(np.argmax((bars.time - MONDAY) > 4 * DAY))
    shortened = without(bars, slice(friday, friday + 15))
    assert episode_starts(bars, 0, 200, 10, 1, HOUR, CLOSED_ON_WEEKENDS)[1]["across a hole"] == 0
    assert episode_starts(shortened, 0, 185, 10, 1, HOUR, CLOSED_ON_WEEKENDS)[1]["across a hole"] == 10


def test_sessions_out_of_range_are_refused() -> None:
    bars = wandering_bars(0, 50, 60)
    with pytest.raises(ValueError, match="no sessions"):
        episode_starts(bars, 0, 51, 10, 1, HOUR, CLOSED_ON_WEEKENDS)


def test_sessions_of_real_hours_span_weekends() -> None:
    bars, _ = read_bars(SAMPLE, ReadOptions(side="ask"))
    starts, rejects = episode_starts(bars, 0, len(bars.time), 360, 256, HOUR, CLOSED_ON_WEEKENDS)
    assert len(starts) + sum(rejects.values()) == len(bars.time)
    assert rejects["across the weekly close"] == 0
    assert len(starts) > 0.6 * len(bars.time)
    few_starts, _ = episode_starts(bars, 500, 1500, 40, 256, HOUR, CLOSED_ON_WEEKENDS)
    assert few_starts.tolist() == brute_starts(bars, 500, 1500, 40, 256, HOUR)


@pytest.mark.skipif(not (REAL / MINUTES_FILE).exists(), reason="no real minutes here")
def test_sessions_of_real_minutes_do_not() -> None:
    bars, _ = read_bars(REAL / MINUTES_FILE)
    starts, rejects = episode_starts(bars, 0, len(bars.time), 60, 256, MINUTE, CLOSED_ON_WEEKENDS)
    assert len(starts) + sum(rejects.values()) == len(bars.time)
    assert rejects["across the weekly close"] > 0
    steps = np.lib.stride_tricks.sliding_window_view(np.diff(bars.time), 60)[starts]
    assert steps.max() <= 11 * MINUTE


def test_years_of_minutes_are_judged_in_a_moment() -> None:
    bars = wandering_bars(0, 1_300_000, 1)
    episode_starts(bars, 0, 9, 1, 1, MINUTE, CLOSED_ON_WEEKENDS)
    begin = perf_counter()
    starts, rejects = episode_starts(bars, 0, len(bars.time), 360, 256, MINUTE, CLOSED_ON_WEEKENDS)
    assert perf_counter() - begin < 1
    assert len(starts) + sum(rejects.values()) == len(bars.time)


def bars_at(time: Any) -> Bars:
    return Bars(time, *(np.ones(len(time)) for _ in range(7)))


WINTER = datetime(2024, 12, 2, tzinfo=UTC)


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


def test_hours_of_one_season_reach_an_hour_into_the_other() -> None:
    """Gold trained in winter acts in summer: its break is no fault of the feed."""
    winter = infer_closed_hours(closes(WINTER, 60, 5, gold), 5 * MINUTE, CLOSED_ON_WEEKENDS)
    summer = infer_closed_hours(closes(datetime(2025, 5, 5, tzinfo=UTC), 60, 5, gold), 5 * MINUTE, CLOSED_ON_WEEKENDS)
    np.testing.assert_array_equal(winter, CLOSED_DAILY)
    np.testing.assert_array_equal(summer, CLOSED_DAILY)


@pytest.mark.parametrize("minutes", [1, 5, 15, 60])
def test_an_outage_of_a_market_that_never_closes_is_a_hole(minutes: int) -> None:
    """51 hours over a weekend are the weekly close of EURUSD and a hole of BTCUSD."""
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


def test_few_weeks_tell_nothing_and_silent_ones_neither() -> None:
    time = closes(WINTER, 13, 5, gold)
    np.testing.assert_array_equal(infer_closed_hours(time, 5 * MINUTE, ALWAYS_OPEN), ALWAYS_OPEN)
    years = np.concatenate([closes(WINTER, 60, 5, gold), closes(WINTER + timedelta(days=400), 60, 5, gold)])
    np.testing.assert_array_equal(infer_closed_hours(years, 5 * MINUTE, CLOSED_ON_WEEKENDS), CLOSED_DAILY)


@pytest.mark.parametrize("minutes", [240, 1440])
def test_long_bars_do_not_open_a_market_that_they_cover(minutes: int) -> None:
    """An H4 bar from 20:00 on Friday ends at 21:00 or 22:00, whatever its stamp says."""
    time = closes(WINTER, 200, minutes, pair)
    hours = infer_closed_hours(time, minutes * MINUTE, CLOSED_ON_WEEKENDS)
    assert not (CLOSED_ON_WEEKENDS & ~hours).any()
    assert not infer_closed_hours(
        closes(WINTER, 200, minutes, lambda t: True), minutes * MINUTE, CLOSED_ON_WEEKENDS
    ).any()


def test_hours_of_the_bundled_bars_are_those_of_the_table() -> None:
    bars, _ = read_bars(SAMPLE, ReadOptions(side="ask"))
    np.testing.assert_array_equal(infer_closed_hours(bars.time, HOUR, ALWAYS_OPEN), CLOSED_ON_WEEKENDS)


@few
@given(st.lists(st.tuples(st.integers(0, QUARTERS_PER_WEEK - 1), st.integers(1, 300)), max_size=5))
def test_closed_stretches_make_the_week_again(stretches: list[tuple[int, int]]) -> None:
    hours = new_closed_hours(*((first, first + length) for first, length in stretches))
    np.testing.assert_array_equal(new_closed_hours(*closed_periods(hours)), hours)
    assert all(0 <= a < QUARTERS_PER_WEEK and a < b <= a + QUARTERS_PER_WEEK for a, b in closed_periods(hours))


@few
@given(st.integers(0, 10**6), st.integers(0, 10**5), st.sampled_from([CLOSED_ON_WEEKENDS, CLOSED_DAILY, ALWAYS_OPEN]))
def test_closed_time_is_counted_minute_by_minute(start: int, length: int, hours: ClosedHours) -> None:
    minutes = MONDAY // MINUTE + np.arange(start, start + length % 20_000)
    closed = int(hours[(minutes - MONDAY // MINUTE) % 10_080 // 15].sum())
    begin = MONDAY + start * MINUTE
    assert closed_duration_ns(begin, begin + length % 20_000 * MINUTE, hours) == closed * MINUTE


def test_hours_in_words() -> None:
    assert format_closed_hours(CLOSED_ON_WEEKENDS) == "Fri 21:00-Sun 22:00"
    assert format_closed_hours(ALWAYS_OPEN) == "never"
    assert format_closed_hours(CLOSED_DAILY).startswith("Mon 21:00-Mon 23:00, Tue 21:00-")
    assert (
        format_closed_hours(new_closed_hours((QUARTERS_PER_WEEK - 4, QUARTERS_PER_WEEK + 2))) == "Sun 23:00-Mon 00:30"
    )


def test_swap_of_a_market_without_a_weekend_is_booked_every_day() -> None:
    saturday = MONDAY + 5 * DAY
    assert rollovers(saturday, saturday + DAY, False) == 1
    assert rollovers(saturday, saturday + DAY, True) == 0
    wednesday = MONDAY + 2 * DAY
    assert rollovers(wednesday, wednesday + DAY, False) == 1


@few
@given(st.integers(0, 2**20), st.integers(10, 120))
def test_the_longest_session_is_the_longest_that_starts(seed: int, history: int) -> None:
    draw = np.random.default_rng(seed)
    time = np.delete(MONDAY + MINUTE * np.arange(500), np.unique(draw.integers(1, 480, 3))[:, None] + np.arange(1, 12))
    longest, whole = longest_episodes(time, 400, history, MINUTE, CLOSED_ON_WEEKENDS)
    for length, found in ((longest, longest > 0), (longest + 1, False)):
        if length:
            starts = episode_starts(bars_at(time), 0, 400, length, history, MINUTE, CLOSED_ON_WEEKENDS)[0]
            assert bool(len(starts)) == found
    assert whole > 0


def test_the_interpreter_judges_as_the_compiler_does(monkeypatch: pytest.MonkeyPatch) -> None:
    bars = wandering_bars(3, 400, 15)
    compiled = episode_starts(bars, 0, 400, 5, 9, 15 * MINUTE, CLOSED_ON_WEEKENDS)
    for module, name in ((episodes, "judge_starts"), (calendar, "nights"), (calendar, "is_summer")):
        monkeypatch.setattr(module, name, getattr(vars(module)[name], "py_func", vars(module)[name]))
    np.testing.assert_array_equal(compiled[0], episode_starts(bars, 0, 400, 5, 9, 15 * MINUTE, CLOSED_ON_WEEKENDS)[0])
    assert calendar.rollovers(0, 30 * DAY, True) == rollovers(0, 30 * DAY, True)
