"""When a market is open: rollovers, and hours that are learnt from the bars."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host.data.csv_reader import read_bars
from host.data.formats import ReadOptions
from kernels.market import calendar
from kernels.market.bars import SECOND_NS
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
)
from tests.fixtures.markets import closes, gold, pair
from tests.fixtures.paths import SAMPLE
from tests.oracles.naive import MONDAY, NEW_YORK, moment, rolls

MINUTE, HOUR, DAY = 60 * SECOND_NS, 3600 * SECOND_NS, 86_400 * SECOND_NS
few = settings(deadline=None, max_examples=30)


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 20 * 365 * 24 * 2), st.integers(0, 24 * 2 * 30))
def test_rollovers_are_those_of_the_new_york_calendar(halves: int, length: int) -> None:
    start = int(datetime(2007, 1, 1, tzinfo=UTC).timestamp()) * SECOND_NS + halves * HOUR // 2
    stop = start + length * HOUR // 2
    assert rollovers(start, stop, True) == rolls(moment(start), moment(stop))


def test_daylight_saving_time_is_new_yorks() -> None:
    first, days = (moment(0).replace(year=2007) - moment(0)).days, 31 * 365
    for day in range(first, first + days):
        evening = moment((day * 24 + 20) * HOUR).astimezone(NEW_YORK)
        assert is_dst(day) == bool(evening.dst()), evening


def test_a_week_has_seven_rollovers() -> None:
    for day in range(0, 3 * 365, 5):
        start = MONDAY + day * DAY
        seven = rollovers(start, start + 7 * DAY, True)
        assert seven == 7, f"week from {moment(start)}"


WINTER = datetime(2024, 12, 2, tzinfo=UTC)


def test_hours_of_one_season_reach_an_hour_into_the_other() -> None:
    """Gold trained in winter acts in summer: its break is no fault of the feed."""
    winter = infer_closed_hours(closes(WINTER, 60, 5, gold), 5 * MINUTE, CLOSED_ON_WEEKENDS)
    summer = infer_closed_hours(closes(datetime(2025, 5, 5, tzinfo=UTC), 60, 5, gold), 5 * MINUTE, CLOSED_ON_WEEKENDS)
    np.testing.assert_array_equal(winter, CLOSED_DAILY)
    np.testing.assert_array_equal(summer, CLOSED_DAILY)


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
def test_closed_periods_make_the_week_again(periods: list[tuple[int, int]]) -> None:
    hours = new_closed_hours(*((first, first + length) for first, length in periods))
    np.testing.assert_array_equal(new_closed_hours(*closed_periods(hours)), hours)
    assert all(0 <= a < QUARTERS_PER_WEEK and a < b <= a + QUARTERS_PER_WEEK for a, b in closed_periods(hours))


@few
@given(st.integers(0, 10**6), st.integers(0, 10**5), st.sampled_from([CLOSED_ON_WEEKENDS, CLOSED_DAILY, ALWAYS_OPEN]))
def test_closed_time_is_counted_minute_by_minute(start: int, length: int, hours: ClosedHours) -> None:
    minutes = MONDAY // MINUTE + np.arange(start, start + length % 20_000)
    closed = int(hours[(minutes - MONDAY // MINUTE) % 10_080 // 15].sum())
    begin = MONDAY + start * MINUTE
    assert closed_duration_ns(begin, begin + length % 20_000 * MINUTE, hours) == closed * MINUTE


def test_hours_as_text() -> None:
    assert format_closed_hours(CLOSED_ON_WEEKENDS) == "Fri 21:00-Sun 22:00"
    assert format_closed_hours(ALWAYS_OPEN) == "never"
    assert format_closed_hours(CLOSED_DAILY).startswith("Mon 21:00-Mon 23:00, Tue 21:00-")
    assert (
        format_closed_hours(new_closed_hours((QUARTERS_PER_WEEK - 4, QUARTERS_PER_WEEK + 2))) == "Sun 23:00-Mon 00:30"
    )


def test_a_market_without_a_weekend_rolls_over_every_day() -> None:
    saturday = MONDAY + 5 * DAY
    assert rollovers(saturday, saturday + DAY, False) == 1
    assert rollovers(saturday, saturday + DAY, True) == 0
    wednesday = MONDAY + 2 * DAY
    assert rollovers(wednesday, wednesday + DAY, False) == 1


def test_interpreted_kernels_count_the_same_rollovers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("rollovers", "is_dst"):
        monkeypatch.setattr(calendar, name, getattr(vars(calendar)[name], "py_func", vars(calendar)[name]))
    assert calendar.rollovers(0, 30 * DAY, True) == rollovers(0, 30 * DAY, True)
