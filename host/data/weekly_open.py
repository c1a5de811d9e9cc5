"""What the weekends in a file tell of its clock: FX closes on Friday and opens on Sunday at 17:00 in New York.

Metals and American indices open an hour later.  Bars of a day, markets without weekends, and those that open on Monday
tell nothing.  A clock in doubt is never changed, only named: the user has the flag.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from host.data.file_checks import observes_weekends
from host.data.formats import DataError, ReadOptions
from host.data.instruments import DAILY_BREAK, FX, Instrument
from host.data.parsing import DAY, HOUR, WEEK, IntArray, ParseRules, to_utc
from host.data.resample import to_wall_time
from kernels.market.bars import SECOND_NS

AUTO_TIMEZONE = "auto"  # the timezone that is found by the weekly open
NEW_YORK = "America/New_York"
CANDIDATE_CLOCKS = (  # those that files are written in; of servers first
    "UTC",
    "Europe/Athens",
    "America/New_York+7h",  # a server with American dates
    "UTC+2h",
    "UTC+3h",
    NEW_YORK,
    "Europe/Athens-7h",  # HistData
    "UTC-5h",
    "UTC-4h",
    "America/Chicago",
    "Europe/London",
    "Europe/Berlin",
    "UTC+1h",
    "Asia/Kolkata",
    "UTC+8h",
    "Asia/Tokyo",
    "Australia/Sydney",
)
FIVE_PM_NS = {"Friday": 1 * DAY + 17 * HOUR, "Sunday": 3 * DAY + 17 * HOUR}  # 1970-01-02 and 04
MAX_BAR_NS = 4 * HOUR
MIN_PROOF_WEEKS = 2  # weeks that must speak for one clock and against another, and in summer as in winter


class Weekends(NamedTuple):
    """Where a week ends and the next begins, in UTC or by the hands of the clock of a file."""

    close: IntArray  # [N] end of the last bar
    open: IntArray  # [N] begin of the first


class WeekendCheck(NamedTuple):
    """How the weekends look in New York under a clock."""

    is_ordinary: NDArray[np.bool_]  # [N] no holiday before or after
    opens_on_time: NDArray[np.bool_]  # at the hour
    closes_on_time: NDArray[np.bool_]
    is_dst: NDArray[np.bool_]


def find_weekends(opening: IntArray, interval_ns: int) -> Weekends:
    """The weekends between bars that open at `opening` [T]; about as long by any clock."""
    missing = np.diff(opening) - interval_ns
    fits = (missing >= 44 * HOUR - 2 * interval_ns) & (missing <= 54 * HOUR) & (interval_ns <= MAX_BAR_NS)
    before = np.flatnonzero(fits)
    return Weekends(opening[before] + interval_ns, opening[before + 1])


def check_weekends(weekends: Weekends, clock: str, interval_ns: int, instrument: Instrument) -> WeekendCheck:
    """Which weekends are where they should be if `clock` is that of the file."""
    none_utc = np.zeros(len(weekends.open), np.bool_)
    utc = [to_utc(wall, none_utc, clock) for wall in weekends]
    close, opening = (to_wall_time(t, NEW_YORK) for t in utc)
    gap = opening - close
    late, over = (
        (t - FIVE_PM_NS[day] + WEEK // 2) % WEEK - WEEK // 2 for t, day in ((opening, "Sunday"), (close, "Friday"))
    )
    at_five, at_six = ((late - x > -interval_ns) & (late - x < HOUR) for x in (0, HOUR))
    longer = gap > 48.5 * HOUR  # by the hour that a daily break takes
    if instrument.hours == FX:
        opens = at_five if observes_weekends(instrument) else at_five | (at_six & longer & (gap < 49.5 * HOUR))
    else:
        opens = np.where(longer, at_six, at_five)
    slack = 2 * interval_ns if interval_ns > HOUR else 0
    return WeekendCheck(
        is_ordinary=(gap >= 46.5 * HOUR - slack) & (gap <= 50 * HOUR),
        opens_on_time=opens,
        closes_on_time=(over > -1.5 * HOUR) & (over < max(interval_ns, SECOND_NS)),
        is_dst=utc[1] - opening == 4 * HOUR,
    )


def count_misfits(
    weekends: Weekends, among: NDArray[np.bool_], clock: str, interval_ns: int, instrument: Instrument
) -> int:
    """How many weekends `among` [N] contradict `clock`."""
    seen = check_weekends(weekends, clock, interval_ns, instrument)
    return int((among & ~(seen.opens_on_time & seen.closes_on_time)).sum())


def clock_warning(utc: Weekends, rules: ParseRules, options: ReadOptions, local: bool) -> str | None:
    """Why the clock of `rules` is hardly that of a file, and the flag that fits; None if little speaks against it.

    `local`: the stamps have no offset of their own, so that a flag moves them.
    """
    instrument, interval_ns, clock = rules.instrument, rules.interval_ns, rules.timezone if local else "UTC"
    if observes_weekends(instrument) is False or not len(utc.open):
        return None
    try:
        weekends = Weekends(*(to_wall_time(t, clock) for t in utc))
        seen = check_weekends(weekends, clock, interval_ns, instrument)
        bad, count = seen.is_ordinary & ~seen.opens_on_time, int(seen.is_ordinary.sum())
        if not bad.any():
            return None
        wrong = {
            name: count_misfits(weekends, seen.is_ordinary, name, interval_ns, instrument) for name in CANDIDATE_CLOCKS
        }
        earlier = Weekends(*(wall - interval_ns for wall in weekends))
        by_label = count_misfits(earlier, seen.is_ordinary, clock, interval_ns, instrument)
    except DataError:  # a machine without time zones
        return None
    least = min(wrong.values())
    fitting = [f"--timezone {name}" for name in CANDIDATE_CLOCKS if wrong[name] == least and 10 * least <= count]
    if not (bad.sum() - least >= max(1, count / 20) if fitting else 2 * bad.sum() > count):
        return None
    if options.label is None and by_label <= least and 10 * by_label <= count:
        fitting.insert(0, "--label close")
    way = " or ".join(fitting) + " fits" if fitting else "no clock that I know fits: are Sunday's bars missing?"
    if fitting and not local:
        way = f"no flag moves stamps with an offset of their own: write them without it, and {way}"
    how = "of the stamps" if not local else "given" if options.timezone else "assumed"
    kind, hour, in_utc = "FX", 17, "21:00 or 22:00"
    if instrument.hours == DAILY_BREAK:
        kind, hour, in_utc = instrument.symbol, 18, "22:00 or 23:00"
    return (
        f"clock {clock}, {how}, is doubtful: by it {bad.sum()} of {count} weeks open "
        f"{common_time_text(weekends.open[bad])}, after a close {common_time_text(weekends.close[bad])}; {kind} opens on Sunday, "
        f"{hour}:00 in New York, {in_utc} UTC: {way}"
    )


def common_time_text(wall: IntArray) -> str:
    """The commonest time of the week among `wall`: `on Monday 00:00`."""
    times, counts = np.unique(wall % WEEK, return_counts=True)
    at = np.datetime64(int(times[np.argmax(counts)]), "ns").astype("datetime64[s]").item()
    return f"on {at:%A %H:%M}"


def infer_clock(opening: IntArray, interval_ns: int, instrument: Instrument, name: str) -> str:
    """The one clock that the weekly open proves, or DataError; `opening` [T] by the hands of the file."""
    weekends = find_weekends(opening, interval_ns)
    seen = check_weekends(weekends, "UTC", interval_ns, instrument)
    count = int(seen.is_ordinary.sum())
    if not count or observes_weekends(instrument) is False:
        raise DataError(f"{name}: --timezone {AUTO_TIMEZONE}: there are no weekends to tell the clock by; name it")
    wrong = {
        clock: count_misfits(weekends, seen.is_ordinary, clock, interval_ns, instrument) for clock in CANDIDATE_CLOCKS
    }
    least = min(wrong.values())
    if 10 * least > count:
        raise DataError(
            f"{name}: --timezone {AUTO_TIMEZONE}: no clock that I know opens the {count} weeks of the file rightly; name it"
        )
    fitting = [clock for clock in CANDIDATE_CLOCKS if wrong[clock] == least]
    runner_up = min((wrong[clock] for clock in CANDIDATE_CLOCKS if clock not in fitting), default=least)
    seasons = [int((seen.is_ordinary & (seen.is_dst == summer)).sum()) for summer in (False, True)]
    if len(fitting) > 1 or runner_up < least + MIN_PROOF_WEEKS or min(seasons) < MIN_PROOF_WEEKS:
        raise DataError(
            f"{name}: --timezone {AUTO_TIMEZONE}: {' and '.join(fitting)} fit, but {seasons[1]} weekends of summer and "
            f"{seasons[0]} of winter do not prove a clock: name it"
        )
    return fitting[0]
