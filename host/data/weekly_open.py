"""The check of a file's clock by its weekends: FX closes on Friday and opens on Sunday at 17:00 in New York.

Metals and American indices open an hour later.  Daily bars, markets without weekends and markets that open on Monday
prove nothing.  A warning names the flag that would change the clock; the program never changes it itself.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from host.data.file_checks import observes_weekends
from host.data.formats import DataError, ReadOptions
from host.data.instruments import DAILY_BREAK, FX, Instrument
from host.data.parsing import BoolArray, IntArray, ParseRules, to_utc
from host.data.resample import to_wall_time
from kernels.market.bars import SECOND_NS
from kernels.market.calendar import DAY_NS, HOUR_NS, WEEK_NS

AUTO_TIMEZONE = "auto"  # --timezone auto infers the clock from the weekly open
NEW_YORK = "America/New_York"
# The clocks of servers come first.  New York + 7 h is a server with American dates, Athens - 7 h is HistData.
CANDIDATE_CLOCKS = (
    *("UTC", "Europe/Athens", "America/New_York+7h", "UTC+2h", "UTC+3h", NEW_YORK, "Europe/Athens-7h", "UTC-5h"),
    *("UTC-4h", "America/Chicago", "Europe/London", "Europe/Berlin", "UTC+1h", "Asia/Kolkata", "UTC+8h", "Asia/Tokyo"),
    "Australia/Sydney",
)
FIVE_PM_NS = {"Friday": 1 * DAY_NS + 17 * HOUR_NS, "Sunday": 3 * DAY_NS + 17 * HOUR_NS}  # 1970-01-02 and 04
MAX_BAR_NS = 4 * HOUR_NS
MIN_PROOF_WEEKS = 2  # weekends by which the best clock must lead, and which summer and winter must each have


class Weekends(NamedTuple):
    """Where a week ends and the next begins, in UTC or as the clock of a file shows it, for each weekend."""

    close: IntArray  # end of the last bar
    open: IntArray  # begin of the first bar


class WeekendCheck(NamedTuple):
    """The weekends of a file in New York, if the file has a given clock, for each weekend."""

    is_ordinary: BoolArray  # no holiday before or after
    opens_on_time: BoolArray
    closes_on_time: BoolArray
    is_dst: BoolArray


def find_weekends(opening: IntArray, interval_ns: int) -> Weekends:
    """The weekends between bars that open at `opening` [T], of whichever clock."""
    missing = np.diff(opening) - interval_ns
    fits = (missing >= 44 * HOUR_NS - 2 * interval_ns) & (missing <= 54 * HOUR_NS) & (interval_ns <= MAX_BAR_NS)
    before = np.flatnonzero(fits)
    return Weekends(opening[before] + interval_ns, opening[before + 1])


def check_weekends(weekends: Weekends, clock: str, interval_ns: int, instrument: Instrument) -> WeekendCheck:
    """Whether each weekend begins and ends on time if `clock` is the clock of the file."""
    none_utc = np.zeros(len(weekends.open), np.bool_)
    utc = [to_utc(wall, none_utc, clock) for wall in weekends]
    close, opening = (to_wall_time(t, NEW_YORK) for t in utc)
    gap = opening - close
    open_offset, close_offset = (
        (t - FIVE_PM_NS[day] + WEEK_NS // 2) % WEEK_NS - WEEK_NS // 2
        for t, day in ((opening, "Sunday"), (close, "Friday"))
    )
    at_five, at_six = ((open_offset - x > -interval_ns) & (open_offset - x < HOUR_NS) for x in (0, HOUR_NS))
    longer = gap > 48.5 * HOUR_NS  # by the hour of a daily break
    opens_on_time = np.where(longer, at_six, at_five)
    if instrument.hours == FX:
        # An unknown symbol may be a metal or an index.
        unsure = observes_weekends(instrument) is None
        opens_on_time = at_five | (unsure & at_six & longer & (gap < 49.5 * HOUR_NS))
    slack = 2 * interval_ns if interval_ns > HOUR_NS else 0
    return WeekendCheck(
        is_ordinary=(gap >= 46.5 * HOUR_NS - slack) & (gap <= 50 * HOUR_NS),
        opens_on_time=opens_on_time,
        closes_on_time=(close_offset > -1.5 * HOUR_NS) & (close_offset < max(interval_ns, SECOND_NS)),
        is_dst=utc[1] - opening == 4 * HOUR_NS,
    )


def count_misfits(
    weekends: Weekends, among: BoolArray, clocks: tuple[str, ...], interval_ns: int, instrument: Instrument
) -> dict[str, int]:
    """The number of weekends, of those whose mask `among` is set, that contradict each clock."""
    checks = {clock: check_weekends(weekends, clock, interval_ns, instrument) for clock in clocks}
    return {clock: int((among & ~(c.opens_on_time & c.closes_on_time)).sum()) for clock, c in checks.items()}


def clock_warning(utc: Weekends, rules: ParseRules, options: ReadOptions, is_local_time: bool) -> str | None:
    """The warning that the weekends contradict the clock of `rules`, with the flag that fits; None without doubt."""
    instrument, interval_ns, clock = rules.instrument, rules.interval_ns, rules.timezone if is_local_time else "UTC"
    if observes_weekends(instrument) is False or not len(utc.open):
        return None
    try:
        weekends = Weekends(*(to_wall_time(t, clock) for t in utc))
        check = check_weekends(weekends, clock, interval_ns, instrument)
        bad, count = check.is_ordinary & ~check.opens_on_time, int(check.is_ordinary.sum())
        if not bad.any():
            return None
        misfits = count_misfits(weekends, check.is_ordinary, CANDIDATE_CLOCKS, interval_ns, instrument)
        earlier = Weekends(*(wall - interval_ns for wall in weekends))
        by_label = count_misfits(earlier, check.is_ordinary, (clock,), interval_ns, instrument)[clock]
    except DataError:  # a machine without time zones
        return None
    fewest = min(misfits.values())
    fitting = [f"--timezone {name}" for name in CANDIDATE_CLOCKS if misfits[name] == fewest and 10 * fewest <= count]
    if not (bad.sum() - fewest >= max(1, count / 20) if fitting else 2 * bad.sum() > count):
        return None
    if options.label is None and by_label <= fewest and 10 * by_label <= count:
        fitting.insert(0, "--label close")
    remedy = " or ".join(fitting) + " fits" if fitting else "no clock that I know fits: are Sunday's bars missing?"
    if fitting and not is_local_time:
        remedy = f"no flag moves stamps with an offset of their own: write them without it, and {remedy}"
    origin = "of the stamps" if not is_local_time else "given" if options.timezone else "assumed"
    market, hour, in_utc = "FX", 17, "21:00 or 22:00"
    if instrument.hours == DAILY_BREAK:
        market, hour, in_utc = instrument.symbol, 18, "22:00 or 23:00"
    opens, closes = common_time_text(weekends.open[bad]), common_time_text(weekends.close[bad])
    return (
        f"clock {clock}, {origin}, is doubtful: by it {bad.sum()} of {count} weeks open {opens}, after a close "
        f"{closes}; {market} opens on Sunday, {hour}:00 in New York, {in_utc} UTC: {remedy}"
    )


def common_time_text(wall: IntArray) -> str:
    """The commonest time of the week among `wall` times of a clock, in words: `on Monday 00:00`."""
    times, counts = np.unique(wall % WEEK_NS, return_counts=True)
    at = np.datetime64(int(times[np.argmax(counts)]), "ns").astype("datetime64[s]").item()
    return f"on {at:%A %H:%M}"


def infer_clock(opening: IntArray, interval_ns: int, instrument: Instrument, name: str) -> str:
    """The one clock that the weekly opens prove; DataError if they prove none.

    `opening` [T] holds the opens of the bars as the clock of the file shows them.
    """
    weekends = find_weekends(opening, interval_ns)
    check = check_weekends(weekends, "UTC", interval_ns, instrument)
    count = int(check.is_ordinary.sum())
    if not count or observes_weekends(instrument) is False:
        raise DataError(f"{name}: --timezone {AUTO_TIMEZONE}: there are no weekends to tell the clock by; name it")
    misfits = count_misfits(weekends, check.is_ordinary, CANDIDATE_CLOCKS, interval_ns, instrument)
    fewest = min(misfits.values())
    if 10 * fewest > count:
        reason = f"no clock that I know opens the {count} weeks of the file rightly; name it"
        raise DataError(f"{name}: --timezone {AUTO_TIMEZONE}: {reason}")
    fitting = [clock for clock in CANDIDATE_CLOCKS if misfits[clock] == fewest]
    runner_up = min((misfits[clock] for clock in CANDIDATE_CLOCKS if clock not in fitting), default=fewest)
    seasons = [int((check.is_ordinary & (check.is_dst == summer)).sum()) for summer in (False, True)]
    if len(fitting) > 1 or runner_up < fewest + MIN_PROOF_WEEKS or min(seasons) < MIN_PROOF_WEEKS:
        lack = f"{seasons[1]} weekends of summer and {seasons[0]} of winter do not prove a clock"
        raise DataError(f"{name}: --timezone {AUTO_TIMEZONE}: {' and '.join(fitting)} fit, but {lack}: name it")
    return fitting[0]
