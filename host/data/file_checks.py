"""The checks of bars: bad rows, prices that move to another level, bars that become longer or shorter.

`csv_reader.py` applies these rules to a whole file, and `row_checks.py` to each bar of a feed.  A function marked
"number or array" takes either, so that both decide alike.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from host.data.formats import OHLC, DataError, Problem, ReadOptions
from host.data.instruments import DEFAULT_HOURS, ROUND_THE_CLOCK, Instrument, find_instrument, hours_of
from host.data.layout import OTHER_DATE_ORDER, FileLayout
from host.data.parsing import MAX_SPREAD_RATIO, PRICES, BoolArray, Columns, IntArray, ParseRules, format_utc
from kernels.market.bars import MAX_MISSING_BARS, SECOND_NS
from kernels.market.calendar import DAY_NS, HOUR_NS, QUARTER_NS, WEEK_NS, format_closed_hours
from kernels.market.episodes import find_gaps

MAX_JUMP = 0.2  # a price farther from the close before, relative, is damaged
MAX_JUMP_FACTOR = 3.0  # the limit instead of MAX_JUMP in a market that never closes, or after a long pause
LONG_PAUSE_NS = 28 * DAY_NS
LEVEL_SHIFT_ROWS = 3  # so many bad rows in sequence are another level or unit
FIRST_SATURDAY_NS = 2 * DAY_NS  # 1970-01-03
WEEKEND_CLOSED_NS = 44 * HOUR_NS  # from Saturday 00:00 UTC, every market with a weekend is closed
MAX_INTERVAL_NS = 31 * DAY_NS  # of a bar
MAX_WEEKEND_NS = 4 * DAY_NS  # with holidays
MIN_ROWS_PER_DROP = 100  # --drop-bad drops at most one row of so many, or MAX_FREE_DROPS
MAX_FREE_DROPS = 3
MEND_REMEDY = "mend them where the file is made, or export it again"
MAX_LISTED = 1000  # problems of a kind
BLOCK_ROWS = 1 << 16  # judged at a time, so that what is computed on the way takes no memory to speak of
# Steps that prove bars of another length: of shorter bars, of bars at least three times as long, of any other.
MIN_SHORTER_STEPS, MIN_LONGER_STEPS, MIN_OTHER_STEPS = 3, 12, 20


def row_faults(quote: Any, opening: Any, has_volume: Any, always: Any) -> dict[str, Any]:
    """Whether a bar has each fault that needs no other bar; number or array.

    A flat bar is filler if the file `has_volume` so far, or at a weekend unless the market is `always` open.
    """
    low, high, volume = quote["low"], quote["high"], quote["volume"]
    number = (volume != volume) | (volume < 0) | (volume == np.inf)
    for name in PRICES:
        number = number | (quote[name] != quote[name]) | (quote[name] <= 0) | (quote[name] == np.inf)
    outside = high < low
    spread = low != low
    for name in ("open", "close"):
        bid, ask = quote[name], quote[f"ask_{name}"]
        outside = outside | (bid < low) | (bid > high)
        spread = spread | (ask < bid) | (ask - bid > MAX_SPREAD_RATIO * bid)
    weekend = (always == 0) & ((opening - FIRST_SATURDAY_NS) % WEEK_NS < WEEKEND_CLOSED_NS)
    flat = is_flat_bar(quote) & (has_volume | weekend)
    return {"number": number, "range": outside, "spread": spread, "flat": flat}


def is_flat_bar(quote: Any) -> Any:
    """Whether a bar has one price and no volume; number or array."""
    low, high = quote["low"], quote["high"]
    return (quote["open"] == high) & (high == low) & (low == quote["close"]) & (quote["volume"] == 0)


@lru_cache(maxsize=64)
def observes_weekends(instrument: Instrument) -> bool | None:
    """Whether an instrument is closed on Saturdays; None if its symbol is unknown and only its bars can show it."""
    is_listed = find_instrument(instrument.symbol) is not None
    return instrument.hours != ROUND_THE_CLOCK if is_listed or instrument.hours == ROUND_THE_CLOCK else None


def is_saturday(opening: Any, interval_ns: int) -> Any:
    """Whether the middle of a bar is from 12:00 to 20:00 UTC of a Saturday; number or array."""
    middle = (opening + interval_ns // 2 - FIRST_SATURDAY_NS) % WEEK_NS
    return (interval_ns <= DAY_NS) & (middle >= DAY_NS // 2) & (middle < 20 * HOUR_NS)


def is_price_jump(quote: Any, last_close: Any, step_ns: Any, interval_ns: int, always: Any) -> Any:
    """Whether a price of a bar is too far from `last_close`; number or array.

    The bar opens `step_ns` after the row before.  The limit is MAX_JUMP.  In a market that is `always` open, or after
    LONG_PAUSE_NS, the limit is MAX_JUMP_FACTOR, except for the open of a bar that follows the row before directly.
    """
    is_factor_rule = (always != 0) | (step_ns >= LONG_PAUSE_NS)
    up = 1 + MAX_JUMP + is_factor_rule * (MAX_JUMP_FACTOR - 1 - MAX_JUMP)
    down = 1 - MAX_JUMP - is_factor_rule * (1 - MAX_JUMP - 1 / MAX_JUMP_FACTOR)
    moved = is_factor_rule & (step_ns <= interval_ns) & (abs(quote["open"] - last_close) > MAX_JUMP * last_close)
    for name in PRICES:
        moved = moved | (quote[name] > up * last_close) | (quote[name] < down * last_close)
    return moved


def find_level_shifts(
    quote: Columns, opening: IntArray, interval_ns: int, always: BoolArray
) -> tuple[list[int], dict[int, float]]:
    """The rows with damaged prices, and the last close before each row where prices move to another level and stay."""
    damaged: list[int] = []
    shifts: dict[int, float] = {}
    if not len(opening):
        return damaged, shifts
    last_close = np.append(quote["close"][0], quote["close"][:-1])
    previous_opening = np.append(opening[0] - 2 * interval_ns, opening[:-1])
    blocks = [slice(first, first + BLOCK_ROWS) for first in range(0, len(opening), BLOCK_ROWS)]
    moved = np.concatenate(
        [
            is_price_jump(
                {name: quote[name][k] for name in PRICES},
                last_close[k],
                opening[k] - previous_opening[k],
                interval_ns,
                always[k],
            )
            for k in blocks
        ]
    )
    if moved[:2].any():  # the rows after the first two show which of the two is wrong
        last_close[0] = np.median(quote["close"][:5])
        moved[0] = is_price_jump({name: quote[name][0] for name in PRICES}, last_close[0], 2, 1, always[0])
    candidates = np.flatnonzero(moved).tolist()
    stable = is_level_stable(quote, always) if candidates else always
    last_judged = -1
    for first in candidates:
        if first <= last_judged:
            continue
        for row in range(first, len(opening)):
            price, step_ns = {name: quote[name][row] for name in PRICES}, opening[row] - previous_opening[row]
            last_judged = row
            if not is_price_jump(price, last_close[first], step_ns, interval_ns, always[row]):
                break
            damaged.append(row)
            if row - first >= LEVEL_SHIFT_ROWS - 1 and stable[row - LEVEL_SHIFT_ROWS + 1]:
                del damaged[-LEVEL_SHIFT_ROWS:]
                last_judged = row - LEVEL_SHIFT_ROWS + 1
                shifts[last_judged] = float(last_close[first])
                break
    return damaged, shifts


def is_level_stable(quote: Columns, always: BoolArray) -> BoolArray:
    """Whether LEVEL_SHIFT_ROWS rows, each row and the next ones, have prices near its close; False at the end."""
    count = max(len(always) - LEVEL_SHIFT_ROWS + 1, 0)
    stable = np.zeros(len(always), np.bool_)
    rows = [{name: quote[name][k : k + count] for name in PRICES} for k in range(LEVEL_SHIFT_ROWS)]
    close = quote["close"][:count]
    stable[:count] = ~np.any([is_price_jump(row, close, 2, 1, always[:count]) for row in rows], axis=0)
    return stable


def level_shift_text(was: float, now: float) -> str:
    """The message for a level shift from the last close `was` to the open `now`."""
    return (
        f"prices move from {was:g} to {now:g} between two bars, x{now / was:.3g}, and stay there: another "
        "level, unit or instrument; keep the lines before this one or those from it on"
    )


def order_fault(step_ns: int, interval_ns: int) -> str | None:
    """The fault of a stamp `step_ns` after the one before, or None; a day may be an hour short when clocks change."""
    if step_ns <= 0:
        return "duplicate" if step_ns == 0 else "backward"
    return "overlap" if step_ns < interval_ns - (HOUR_NS if interval_ns >= DAY_NS else 0) else None


class StepRun(NamedTuple):
    """Consecutive steps from bar to bar, none of which is as long as a bar of the file."""

    first_bar: int = 0  # bar, or line, before the first step
    step_ns: int = 0  # the shortest
    num_exact: int = 0  # steps of that length
    num_longer: int = 0  # longer steps, as over a weekend


def extend_run(run: StepRun, step_ns: int, interval_ns: int, bar: int) -> StepRun:
    """The run with one more step, from `bar`; empty after a step as long as a bar."""
    if step_ns <= 0:
        return run
    if abs(step_ns - interval_ns) <= (HOUR_NS if interval_ns >= DAY_NS else 0):
        return StepRun()
    if run.num_exact and step_ns == run.step_ns:
        return run._replace(num_exact=run.num_exact + 1)
    if run.num_exact and step_ns > run.step_ns and run.num_longer < 3 + run.num_exact // 3:
        return run._replace(num_longer=run.num_longer + 1)
    return StepRun(bar, step_ns, 1)


def is_interval_change(run: StepRun, interval_ns: int) -> bool:
    """Whether a run proves bars of another length, and not missing bars.

    Missing bars leave steps of all lengths.  If each bar is missing with probability q, a step of two bars has the
    probability q (1 - q), at most a quarter: 20 of them without a step of one come in 1 of 10^9 bars.
    """
    if run.step_ns < interval_ns:
        return run.num_exact >= MIN_SHORTER_STEPS
    return run.num_exact >= (MIN_LONGER_STEPS if run.step_ns >= 3 * interval_ns else MIN_OTHER_STEPS)


def find_interval_change(opening: IntArray, interval_ns: int) -> tuple[int, int, int] | None:
    """The first bar of another length, the length before and the new one; None if all bars are of one length."""
    step = np.diff(opening)
    other = np.flatnonzero(step != interval_ns)
    stop = np.flatnonzero(np.diff(other, append=-1) != 1) + 1  # of runs of such steps
    start = np.append(0, stop[:-1])
    for run in np.flatnonzero(stop - start >= MIN_SHORTER_STEPS).tolist():
        step_run, steps = StepRun(), other[start[run] : stop[run]].tolist()
        for t in steps:
            step_run = extend_run(step_run, int(step[t]), interval_ns, t)
            if is_interval_change(step_run, interval_ns):
                if steps[0]:
                    return step_run.first_bar, interval_ns, step_run.step_ns
                return t + int(np.argmax(step[t:] == interval_ns)), step_run.step_ns, interval_ns
    return None


def interval_change_text(was_ns: int, now_ns: int) -> str:
    """The message for bars that become longer or shorter."""
    was_s, now_s = was_ns / SECOND_NS, now_ns / SECOND_NS
    return (
        f"bars of {was_s:g} s before this line, of {now_s:g} s from it on: keep the lines before it or those from it "
        f"on, or make the shorter bars into some of {max(was_s, now_s):g} s"
    )


def most_common_step(utc: IntArray) -> int | None:
    """The commonest positive step between stamps [T], nanoseconds; None without a positive step."""
    step = np.diff(utc)
    values, counts = np.unique(step[step > 0], return_counts=True)
    return int(values[np.argmax(counts)]) if len(values) else None


def infer_interval(utc: IntArray, options: ReadOptions, name: str) -> int:
    """The length of the bars of a file in nanoseconds: the commonest step.

    DataError if there is none, if it is not whole seconds, or if it does not divide `options.interval_s`.
    """
    step_ns = most_common_step(utc)
    asked_ns = None if options.interval_s is None else options.interval_s * SECOND_NS
    if step_ns is None and asked_ns is None:
        reason = "no bar is later than the one before: is the newest first?" if len(utc) > 1 else "bring more"
        raise DataError(f"{name}: {len(utc)} bars do not tell how long a bar is: {reason}")
    if asked_ns is not None and (step_ns is None or (step_ns > asked_ns and (np.diff(utc) == asked_ns).any())):
        step_ns = asked_ns
    if step_ns is None or not SECOND_NS <= step_ns <= MAX_INTERVAL_NS or step_ns % SECOND_NS:
        raise DataError(f"{name}: steps of {(step_ns or 0) / SECOND_NS:g} s: bars last whole seconds, up to 31 days")
    if asked_ns not in (None, step_ns):
        check_divides(step_ns, asked_ns, name)
    return step_ns


def check_divides(step_ns: int, interval_ns: int, name: str) -> None:
    """DataError if bars of `step_ns` cannot be aggregated to bars of `interval_ns`."""
    if interval_ns % step_ns or (interval_ns != step_ns and DAY_NS % interval_ns):
        raise DataError(
            f"{name}: bars of {step_ns / SECOND_NS:g} s where {interval_ns / SECOND_NS:g} s are wanted: only bars that "
            "divide them, and they the day, can be put together"
        )


def swap_date_order(layout: FileLayout) -> FileLayout:
    """The layout with day and month in the other order."""
    return layout._replace(format=layout.format._replace(stamp_style=OTHER_DATE_ORDER[layout.format.stamp_style]))


def sequence_breaks(utc: IntArray) -> IntArray:
    """The rows whose stamp does not follow the row before: it is older, too near, or beyond a gap."""
    common = most_common_step(utc)
    if common is None:
        return np.arange(1, len(utc))
    step = np.diff(utc)
    too_near = step < common - (HOUR_NS if common >= DAY_NS else 0)
    return np.flatnonzero(too_near | (step > max(MAX_WEEKEND_NS, MAX_MISSING_BARS * common))) + 1


def bad_cells_text(kind: str, cells: dict[str, float], close: float) -> str:
    """The numbers of a row that make it a fault of `kind`, in brackets; `close` is one of a row nearby."""
    names = {
        "number": [name for name, cell in cells.items() if not 0 < cell + (name == "volume") < np.inf],
        "damaged": [max(PRICES, key=lambda name: abs(cells[name] - close))],
        "range": OHLC,
        "spread": ("open", "ask_open", "close", "ask_close"),
    }.get(kind, ())
    beside = f" beside {close:g}" if kind == "damaged" else ""
    return f" ({', '.join(f'{name} {cells[name]:g}' for name in names)}{beside})" if names else ""


def why_not_dropped(bad: dict[int, str], line: IntArray, utc: IntArray, interval_ns: int) -> str | None:
    """Why --drop-bad may not drop the `bad` lines, kind by line; None if it may.

    `line` and `utc` [T] are of the rows that can be parsed.  Faults by chance are few and follow no pattern: others
    have a cause that dropping would hide.  Filler may always be dropped.
    """
    if not bad:
        return None
    faults = np.array([at for at in sorted(bad) if bad[at] != "flat"], np.int64)
    rows = np.union1d(line, faults)
    if 2 * len(bad) >= len(rows):
        majority = "most of the file: is it newest first, or of another kind?"
        return majority if len(faults) else "nothing but filler"
    order = np.argsort(line)
    time = np.interp(rows, line[order], utc[order]).astype(np.int64)
    is_bad = np.isin(rows, faults)
    positions = np.flatnonzero(is_bad)
    run = positions[:-2][positions[2:] - positions[:-2] == 2]
    reason: str | None
    if len(faults) > max(MAX_FREE_DROPS, len(rows) // MIN_ROWS_PER_DROP):
        reason = f"{len(faults)} of {len(rows)} rows are more than 1 %"
    elif len(run):
        reason = f"from line {rows[run[0]]} on, {LEVEL_SHIFT_ROWS} or more follow each other"
    elif len(positions) > MAX_FREE_DROPS and len(set(np.diff(positions).tolist())) == 1:
        reason = f"they are every row in {positions[1] - positions[0]}"
    else:
        reason = recurring_time(time, is_bad, interval_ns)
    return reason and f"{reason}: such rows are not dropped, {MEND_REMEDY}"


def recurring_time(time: IntArray, is_bad: BoolArray, interval_ns: int) -> str | None:
    """The message for a time of the day or week at which at least half of the rows are bad; None without one."""
    for period, form in ((DAY_NS, "%H:%M"), (WEEK_NS, "%A %H:%M")):
        for width in sorted({interval_ns, max(HOUR_NS, interval_ns)}):
            slot = (time % period) // width
            bad, rows = np.bincount(slot, is_bad), np.bincount(slot)
            hit = np.flatnonzero((bad >= MAX_FREE_DROPS) & (2 * bad >= rows))
            if len(hit) and width < period:
                at = np.datetime64(int(hit[0]) * width, "ns").astype("datetime64[s]").item()
                return f"they are {bad[hit[0]]:g} of the {rows[hit[0]]} rows at {at:{form}}"
    return None


def gap_text(missing_ns: int, begin_ns: int) -> str:
    """The message for a gap."""
    hours, minutes = missing_ns / HOUR_NS, missing_ns / (60 * SECOND_NS)
    return f"no bars for {f'{hours:.0f} h' if hours >= 2 else f'{minutes:.0f} min'}, from {format_utc(begin_ns)}"


def find_faults(
    quote: Columns, opening: IntArray, rules: ParseRules, volume_required: bool
) -> tuple[dict[int, str], dict[int, tuple[str, str]]]:
    """The kind of fault of every bad row, and kind and message of every lasting change, by index of its first row.

    Prices, lengths and order are compared among the rows without a fault of their own.
    """
    bad: dict[int, str] = {}
    interval_ns, unsure = rules.interval_ns, observes_weekends(rules.instrument) is None
    has_volume = np.logical_or.accumulate(quote["volume"] > 0) | volume_required
    with np.errstate(invalid="ignore"):  # infinite prices are among the faults
        always = np.logical_or.accumulate(is_saturday(opening, interval_ns) & ~is_flat_bar(quote)) & unsure
        always |= rules.instrument.hours == ROUND_THE_CLOCK
        for kind, mask in row_faults(quote, opening, has_volume, always).items():
            for row in np.flatnonzero(mask).tolist():
                bad.setdefault(row, kind)
    good = np.delete(np.arange(len(opening)), list(bad))
    kept = {name: column[good] for name, column in quote.items()} if bad else quote
    damaged, moves = find_level_shifts(kept, opening[good], interval_ns, always[good])
    changes = {int(good[t]): ("level", level_shift_text(close, kept["open"][t])) for t, close in moves.items()}
    change = find_interval_change(opening[good], interval_ns)
    if change is not None:
        first, *lengths = change
        first += rules.label == "close"  # the step before a closing stamp has the length of its bar
        changes.setdefault(int(good[first]), ("interval", interval_change_text(*lengths)))
    bad.update(dict.fromkeys(good[damaged].tolist(), "damaged"))
    good = np.delete(good, damaged)
    if change is None and (np.diff(opening[good]) < interval_ns).any():
        bad.update(order_faults(opening, good, interval_ns))
    return bad, changes


def order_faults(utc: IntArray, good: IntArray, interval_ns: int) -> dict[int, str]:
    """The kind of fault, by index, of the rows among `good` that do not follow the last row in order."""
    bad: dict[int, str] = {}
    last: int | None = None
    for row, stamp in zip(good.tolist(), utc[good].tolist(), strict=True):
        kind = None if last is None else order_fault(stamp - last, interval_ns)
        if kind:
            bad[row] = kind
        else:
            last = stamp
    return bad


def list_gaps(
    time: IntArray, interval_ns: int, line: IntArray, instrument: Instrument
) -> tuple[list[Problem], list[str], str]:
    """The gaps that no episode spans, notes on all gaps, and when the market is closed; `line` [T] is of the bars."""
    hours = hours_of(time, instrument, interval_ns)
    gaps, closed = find_gaps(time, interval_ns, hours), format_closed_hours(hours)
    missing_ns = time[gaps.end_bar] - interval_ns - time[gaps.end_bar - 1]
    scheduled, weekend = ~gaps.is_unscheduled, gaps.is_weekly_close & ~gaps.is_unscheduled
    daily = scheduled & ~weekend & (missing_ns >= QUARTER_NS) & (2 * gaps.open_duration_ns < missing_ns)
    daily_text = f", {daily.sum()} daily breaks" if daily.any() else ""
    summary = f"{weekend.sum()} weekends{daily_text} and {(~weekend & ~daily).sum()} other gaps between bars"
    notes = [summary] if len(missing_ns) else []
    if (hours != DEFAULT_HOURS[instrument.hours]).any():
        notes.append(f"hours as the bars show them, closed (UTC): {closed}")
    holes = gaps.end_bar[gaps.is_unscheduled][:MAX_LISTED].tolist()
    listed = [Problem("hole", int(line[t]), gap_text(time[t] - interval_ns - time[t - 1], time[t - 1])) for t in holes]
    return listed, notes, closed
