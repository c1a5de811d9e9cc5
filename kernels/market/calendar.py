"""When a market is open: its week in quarters of an hour, the nights of swap, and the bars where a session may start.

`ClosedHours` says which quarters of a week are closed.  Clocks move the hours of most markets twice a year, so what is closed
in summer or in winter counts as closed in both.  A hole in the bars is scheduled as far as the market is closed in it.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.jit import kernel
from kernels.market.bars import SECOND_NS

ClosedHours = NDArray[np.bool_]  # [QUARTERS] of a week from Monday 00:00 UTC: whether the market is closed

HOUR_NS = 3600 * SECOND_NS
DAY_NS = 24 * HOUR_NS
WEEK_NS = 7 * DAY_NS
QUARTER_NS = HOUR_NS // 4
QUARTERS_PER_WEEK = WEEK_NS // QUARTER_NS
FIRST_MONDAY_QUARTER = 4 * DAY_NS // QUARTER_NS  # quarters from the epoch, which was a Thursday, to a Monday
SATURDAY_NOON = int(5.5 * DAY_NS) // QUARTER_NS  # no market that closes over the weekend is open then
DAY_NAMES = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")

MIN_WEEKLY_CLOSE_NS = 40 * HOUR_NS  # a hole with less of it is not the weekly close; H4 bars cut it to 44 hours
MIN_SEASON_WEEKS = 2  # of a season, to learn its hours from


def new_closed_hours(*periods: tuple[int, int]) -> ClosedHours:
    """A week closed in each [first, stop) of `periods`, quarters from Monday 00:00 UTC; the week may turn in one."""
    hours = np.zeros(QUARTERS_PER_WEEK, np.bool_)
    for first, stop in periods:
        hours[np.arange(first, stop) % QUARTERS_PER_WEEK] = True
    return hours


ALWAYS_OPEN = new_closed_hours()
CLOSED_ON_WEEKENDS = new_closed_hours(((4 * 24 + 21) * 4, (6 * 24 + 22) * 4))  # Friday 21:00 to Sunday 22:00
CLOSED_DAILY = CLOSED_ON_WEEKENDS | new_closed_hours(*(((24 * day + 21) * 4, (24 * day + 23) * 4) for day in range(7)))


def closed_periods(hours: ClosedHours) -> list[tuple[int, int]]:
    """[first, stop) of each closed stretch, quarters from Monday 00:00 UTC; the last may turn the week."""
    if hours.all():
        return [(0, QUARTERS_PER_WEEK)]
    first = np.flatnonzero(hours & ~np.roll(hours, 1))
    stop = np.flatnonzero(hours & ~np.roll(hours, -1)) + 1
    if len(first) and stop[0] <= first[0]:
        stop = np.append(stop[1:], stop[0] + QUARTERS_PER_WEEK)
    return list(zip(first.tolist(), stop.tolist(), strict=True))


def format_closed_hours(hours: ClosedHours) -> str:
    """The closed stretches of a week in words."""

    def moment(quarter: int) -> str:
        day, of_day = divmod(quarter % QUARTERS_PER_WEEK, QUARTERS_PER_WEEK // 7)
        return f"{DAY_NAMES[day]} {of_day // 4:02}:{of_day % 4 * 15:02}"

    return ", ".join(f"{moment(a)}-{moment(b)}" for a, b in closed_periods(hours)) or "never"


def weekly_close(hours: ClosedHours) -> tuple[int, int]:
    """(begin after Monday 00:00 UTC, length) in nanoseconds of the close over the weekend; length 0: there is none."""
    first, stop = max(closed_periods(hours), key=lambda s: s[1] - s[0], default=(0, 0))
    length_ns = (stop - first) * QUARTER_NS
    return (first * QUARTER_NS, length_ns) if length_ns >= MIN_WEEKLY_CLOSE_NS else (0, 0)


def closed_duration_ns(start_ns: Any, stop_ns: Any, hours: ClosedHours) -> Any:
    """Nanoseconds of [start, stop] at which the market is closed, of numbers or arrays of them."""
    before = np.append(0, np.cumsum(hours)) * QUARTER_NS  # closed since Monday 00:00, by quarter

    def closed(time_ns: Any) -> Any:
        week, since = np.divmod(time_ns - FIRST_MONDAY_QUARTER * QUARTER_NS, WEEK_NS)
        quarter, rest = np.divmod(since, QUARTER_NS)
        return week * before[-1] + before[quarter] + hours[quarter] * rest

    return closed(stop_ns) - closed(start_ns)


def infer_closed_hours(time: NDArray[np.int64], interval_ns: int, usual: ClosedHours) -> ClosedHours:
    """The hours that bars closing at `time` [T] show: a quarter without bars in most weeks is closed.

    A season tells with LEAST_WEEKS whole weeks.  A season that does not is taken for the other, moved by an hour; where
    neither does, or bars are longer than a day, the hours are the `usual` ones.  A bar longer than an hour may cover
    more than the market was open, so what is usually closed stays so, but for a weekend that is traded.
    """
    start_ns, stop_ns = (int(time[0]) - interval_ns, int(time[-1])) if len(time) else (0, 0)
    first = start_ns // QUARTER_NS
    origin = first * QUARTER_NS
    weeks = (stop_ns - origin) // WEEK_NS
    if weeks < MIN_SEASON_WEEKS or interval_ns > DAY_NS:
        return usual
    n = weeks * QUARTERS_PER_WEEK
    begin = np.clip((time - interval_ns - origin) // QUARTER_NS, 0, n)
    end = np.clip((time - 1 - origin) // QUARTER_NS + 1, 0, n)
    covered = np.cumsum(np.bincount(begin, minlength=n + 1) - np.bincount(end, minlength=n + 1))[:n]
    silent = (covered == 0).reshape(weeks, QUARTERS_PER_WEEK)
    traded = ~silent.all(axis=1)
    summer = np.array([is_dst(origin // DAY_NS + 7 * week + 2) for week in range(weeks)])
    seasons = traded & summer, traded & ~summer
    closed = [silent[season].mean(axis=0) > 0.5 for season in seasons if season.sum() >= MIN_SEASON_WEEKS]
    if len(closed) < 2:
        hour = HOUR_NS // QUARTER_NS
        shift = hour if seasons[0].sum() >= MIN_SEASON_WEEKS else -hour  # in winter all comes an hour later
        closed = (
            [closed[0], np.roll(closed[0], shift)] if closed else [np.roll(usual, FIRST_MONDAY_QUARTER - first)] * 2
        )
    hours: ClosedHours = np.roll(closed[0] | closed[1], first - FIRST_MONDAY_QUARTER)
    return hours | usual if interval_ns > HOUR_NS and hours[SATURDAY_NOON] else hours


@kernel
def rollovers(start_ns: int, stop_ns: int, closes_weekends: bool) -> int:
    """Nights of swap in (start_ns, stop_ns], at 17:00 New York.

    Where the market closes over `closes_weekends`: one from Monday to Friday, three on Wednesday; elsewhere one every day.
    17:00 New York is 21:00 UTC from the second Sunday of March to the first of November, else 22:00: the rule of the
    United States since 2007, used for earlier years too.
    """
    count = 0
    for day in range(start_ns // DAY_NS, stop_ns // DAY_NS + 1):
        weekday = (day + 4) % 7  # 0 = Sunday
        evening_ns = day * DAY_NS + 21 * HOUR_NS
        if evening_ns > stop_ns or evening_ns + HOUR_NS <= start_ns or (closes_weekends and weekday in (0, 6)):
            continue  # most bars: spare them the calendar
        roll_ns = evening_ns if is_dst(day) else evening_ns + HOUR_NS
        if start_ns < roll_ns <= stop_ns:
            count += 3 if closes_weekends and weekday == 3 else 1
    return count


@kernel
def is_dst(day: int) -> bool:
    """Whether New York has summer time on the evening of `day`, counted from the epoch."""
    # civil_from_days of H. Hinnant, "chrono-Compatible Low-Level Date Algorithms": years begin in March
    shifted = day + 719_468
    of_era = shifted % 146_097
    year = (of_era - of_era // 1_460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * year + year // 4 - year // 100)
    month = (5 * of_year + 2) // 153  # 0 = March, 8 = November
    sunday = of_year - (153 * month + 2) // 5 + 1 - (day + 4) % 7  # date of the last Sunday, today included
    if month == 0:
        return sunday >= 8
    if month == 8:
        return sunday < 1
    return month < 8


def open_duration_ns(since_ns: int, now_ns: int, hours: ClosedHours) -> int:
    """Nanoseconds of (since, now] at which the market is open."""
    return max(0, now_ns - since_ns - int(closed_duration_ns(since_ns, now_ns, hours)))
