"""When a market is open, and how many rollovers lie between two times.

`ClosedHours` marks the quarters of an hour of a week in which a market is closed.  Daylight saving moves the hours of
most markets twice a year: a quarter that is closed in summer or in winter counts as closed in both.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.jit import kernel
from kernels.market.bars import SECOND_NS

# [QUARTERS_PER_WEEK] from Monday 00:00 UTC: whether the market is closed in that quarter of an hour
ClosedHours = NDArray[np.bool_]

HOUR_NS = 3600 * SECOND_NS
DAY_NS = 24 * HOUR_NS
WEEK_NS = 7 * DAY_NS
QUARTER_NS = HOUR_NS // 4
QUARTERS_PER_WEEK = WEEK_NS // QUARTER_NS
FIRST_MONDAY_NS = 4 * DAY_NS  # the epoch was a Thursday
SATURDAY_NOON = int(5.5 * DAY_NS) // QUARTER_NS  # closed in a market that closes over weekends
DAY_NAMES = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")

# A gap that has less than this of the weekly close is another gap.  H4 bars cut the close to 44 hours.
MIN_WEEKLY_CLOSE_NS = 40 * HOUR_NS
MIN_SEASON_WEEKS = 2  # whole weeks of a season from which its hours can be learned


def new_closed_hours(*periods: tuple[int, int]) -> ClosedHours:
    """A week that is closed in each [first, stop) of `periods`, in quarters from Monday 00:00 UTC.

    A period may run past Sunday midnight into Monday.
    """
    hours = np.zeros(QUARTERS_PER_WEEK, np.bool_)
    for first, stop in periods:
        hours[np.arange(first, stop) % QUARTERS_PER_WEEK] = True
    return hours


ALWAYS_OPEN = new_closed_hours()
# Friday 21:00 to Sunday 22:00
CLOSED_ON_WEEKENDS = new_closed_hours(((4 * 24 + 21) * 4, (6 * 24 + 22) * 4))
CLOSED_DAILY = CLOSED_ON_WEEKENDS | new_closed_hours(*(((24 * day + 21) * 4, (24 * day + 23) * 4) for day in range(7)))


def closed_periods(hours: ClosedHours) -> list[tuple[int, int]]:
    """[first, stop) of each closed period, in quarters from Monday 00:00 UTC; the last may run into Monday."""
    if hours.all():
        return [(0, QUARTERS_PER_WEEK)]
    first = np.flatnonzero(hours & ~np.roll(hours, 1))
    stop = np.flatnonzero(hours & ~np.roll(hours, -1)) + 1
    if len(first) and stop[0] <= first[0]:
        stop = np.append(stop[1:], stop[0] + QUARTERS_PER_WEEK)
    return list(zip(first.tolist(), stop.tolist(), strict=True))


def format_closed_hours(hours: ClosedHours) -> str:
    """The closed periods of a week as text."""

    def moment(quarter: int) -> str:
        day, of_day = divmod(quarter % QUARTERS_PER_WEEK, QUARTERS_PER_WEEK // 7)
        return f"{DAY_NAMES[day]} {of_day // 4:02}:{of_day % 4 * 15:02}"

    return ", ".join(f"{moment(a)}-{moment(b)}" for a, b in closed_periods(hours)) or "never"


def weekly_close(hours: ClosedHours) -> tuple[int, int]:
    """(begin after Monday 00:00 UTC, length) of the close over the weekend, ns; (0, 0) where the market has none."""
    first, stop = max(closed_periods(hours), key=lambda s: s[1] - s[0], default=(0, 0))
    length_ns = (stop - first) * QUARTER_NS
    return (first * QUARTER_NS, length_ns) if length_ns >= MIN_WEEKLY_CLOSE_NS else (0, 0)


def closed_duration_ns(start_ns: Any, stop_ns: Any, hours: ClosedHours) -> Any:
    """Nanoseconds of [start, stop] in which the market is closed; start and stop are numbers or arrays."""
    before = np.append(0, np.cumsum(hours)) * QUARTER_NS  # closed from Monday 00:00 to each quarter

    def closed(time_ns: Any) -> Any:
        week, since = np.divmod(time_ns - FIRST_MONDAY_NS, WEEK_NS)
        quarter, rest = np.divmod(since, QUARTER_NS)
        return week * before[-1] + before[quarter] + hours[quarter] * rest

    return closed(stop_ns) - closed(start_ns)


def infer_closed_hours(time: NDArray[np.int64], interval_ns: int, usual: ClosedHours) -> ClosedHours:
    """The closed hours of a market whose bars close at `time` [T]: the quarters without bars in most weeks.

    The hours of a season take MIN_SEASON_WEEKS whole weeks of bars.  A season with fewer gets the hours of the other
    season, moved by an hour.  Where both have fewer, or bars are longer than a day, the result is `usual`.  A bar
    longer than an hour may cover time in which the market was closed: the hours of `usual` then stay closed, unless
    there are bars on weekends.
    """
    start_ns, stop_ns = (int(time[0]) - interval_ns, int(time[-1])) if len(time) else (0, 0)
    first, monday = start_ns // QUARTER_NS, FIRST_MONDAY_NS // QUARTER_NS
    origin = first * QUARTER_NS
    weeks = (stop_ns - origin) // WEEK_NS
    if weeks < MIN_SEASON_WEEKS or interval_ns > DAY_NS:
        return usual
    n = weeks * QUARTERS_PER_WEEK
    begin = np.clip((time - interval_ns - origin) // QUARTER_NS, 0, n)
    end = np.clip((time - 1 - origin) // QUARTER_NS + 1, 0, n)
    covered = np.cumsum(np.bincount(begin, minlength=n + 1) - np.bincount(end, minlength=n + 1))[:n]
    without_bars = (covered == 0).reshape(weeks, QUARTERS_PER_WEEK)
    traded = ~without_bars.all(axis=1)
    summer = np.array([is_dst(origin // DAY_NS + 7 * week + 2) for week in range(weeks)])
    seasons = traded & summer, traded & ~summer
    closed = [without_bars[season].mean(axis=0) > 0.5 for season in seasons if season.sum() >= MIN_SEASON_WEEKS]
    if len(closed) < 2:
        hour = HOUR_NS // QUARTER_NS
        # in winter the market opens and closes an hour later
        shift = hour if seasons[0].sum() >= MIN_SEASON_WEEKS else -hour
        closed = [closed[0], np.roll(closed[0], shift)] if closed else [np.roll(usual, monday - first)] * 2
    hours: ClosedHours = np.roll(closed[0] | closed[1], first - monday)
    return hours | usual if interval_ns > HOUR_NS and hours[SATURDAY_NOON] else hours


@kernel
def rollovers(start_ns: int, stop_ns: int, closes_weekends: bool) -> int:
    """Nights that are financed in (start_ns, stop_ns]; a position is rolled over at 17:00 New York.

    A market that closes over weekends has one night on Monday, Tuesday, Thursday and Friday, and three on Wednesday.
    Another market has one night every day.  17:00 New York is 21:00 UTC during daylight saving time, else 22:00 UTC.
    """
    count = 0
    for day in range(start_ns // DAY_NS, stop_ns // DAY_NS + 1):
        weekday = (day + 4) % 7  # 0 = Sunday
        evening_ns = day * DAY_NS + 21 * HOUR_NS
        if evening_ns > stop_ns or evening_ns + HOUR_NS <= start_ns or (closes_weekends and weekday in (0, 6)):
            continue  # most bars: they need no calendar
        roll_ns = evening_ns if is_dst(day) else evening_ns + HOUR_NS
        if start_ns < roll_ns <= stop_ns:
            count += 3 if closes_weekends and weekday == 3 else 1
    return count


@kernel
def is_dst(day: int) -> bool:
    """Whether New York has daylight saving time on the evening of `day`, counted from the epoch.

    The rule of the United States since 2007, for earlier years too: second Sunday of March to first Sunday of November.
    """
    # civil_from_days of H. Hinnant, "chrono-Compatible Low-Level Date Algorithms": years begin in March
    shifted = day + 719_468
    of_era = shifted % 146_097
    year = (of_era - of_era // 1_460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * year + year // 4 - year // 100)
    month = (5 * of_year + 2) // 153  # 0 = March, 8 = November
    # day of the month of the last Sunday, today included
    sunday = of_year - (153 * month + 2) // 5 + 1 - (day + 4) % 7
    if month == 0:
        return sunday >= 8
    if month == 8:
        return sunday < 1
    return month < 8


def open_duration_ns(since_ns: int, now_ns: int, hours: ClosedHours) -> int:
    """Nanoseconds of (since, now] in which the market is open."""
    return max(0, now_ns - since_ns - int(closed_duration_ns(since_ns, now_ns, hours)))
