"""What is wrong with bars: bad rows, prices that move to another level, bars that become longer or shorter.

`bars.py` judges a whole file by these rules and `feed.py` each bar as it comes, so that both decide alike.  Functions
that say "alike" take a number or an array of numbers.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from host.data.formats import OHLC, OTHER_DATE_ORDER, DataError, FileLayout, Problem, ReadOptions
from host.data.instruments import DEFAULT_HOURS, ROUND_THE_CLOCK, Instrument, find_instrument, hours_of
from host.data.parsing import DAY, HOUR, MAX_SPREAD_RATIO, PRICES, WEEK, IntArray, ParseRules, format_utc
from kernels.market.bars import MAX_MISSING_BARS, SECOND_NS
from kernels.market.calendar import QUARTER_NS, format_closed_hours
from kernels.market.episodes import find_gaps

MAX_JUMP = 0.2  # a price this far from the close before, relative, is damaged
MAX_JUMP_FACTOR = 3.0  # and one this many times as high or low, where JUMP is nothing unusual
LONG_PAUSE_NS = 28 * DAY  # after so long JUMP is nothing unusual
LEVEL_SHIFT_ROWS = 3  # bad rows in a row: these are no slips, the level or the unit is another
FIRST_SATURDAY_NS = 2 * DAY  # 1970-01-03, the first one
WEEKEND_CLOSED_NS = 44 * HOUR  # from Saturday 00:00 UTC: no market is open, but those that always are
MAX_INTERVAL_NS = 31 * DAY  # bar
MAX_WEEKEND_NS = 4 * DAY  # no weekend is longer
MIN_ROWS_PER_DROP = 100  # one row of so many may be dropped, or FEW
MAX_FREE_DROPS = 3
MEND_REMEDY = "mend them where the file is made, or export it again"
MAX_LISTED = 1000  # problems of a kind
# Steps in a row that tell of bars of another length: of shorter ones, of three times as long, of less.
MIN_SHORTER_STEPS, MIN_LONGER_STEPS, MIN_OTHER_STEPS = 3, 12, 20


def row_faults(quote: Any, opening: Any, has_volume: Any, always: Any) -> dict[str, Any]:
    """Which faults a bar has by itself; alike.

    `has_volume`: the file gives volumes so far, so a bar without one is filler; `always`: so is none of a weekend.
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
    weekend = (always == 0) & ((opening - FIRST_SATURDAY_NS) % WEEK < WEEKEND_CLOSED_NS)
    flat = is_flat_bar(quote) & (has_volume | weekend)
    return {"number": number, "range": outside, "spread": spread, "flat": flat}


def is_flat_bar(quote: Any) -> Any:
    """Whether nothing happened in a bar; alike."""
    low, high = quote["low"], quote["high"]
    return (quote["open"] == high) & (high == low) & (low == quote["close"]) & (quote["volume"] == 0)


@lru_cache(maxsize=64)
def observes_weekends(instrument: Instrument) -> bool | None:
    """Whether an instrument rests on Saturdays; None if its symbol is unknown, so that only its bars tell."""
    known = find_instrument(instrument.symbol) is not None
    return instrument.hours != ROUND_THE_CLOCK if known or instrument.hours == ROUND_THE_CLOCK else None


def is_saturday(opening: Any, interval_ns: int) -> Any:
    """Whether the middle of a bar lies in a Saturday afternoon, UTC: no market with a weekend trades then; alike."""
    middle = (opening + interval_ns // 2 - FIRST_SATURDAY_NS) % WEEK
    return (interval_ns <= DAY) & (middle >= DAY // 2) & (middle < 20 * HOUR)


def is_price_jump(quote: Any, near: Any, step_ns: Any, interval_ns: int, always: Any) -> Any:
    """Whether prices are too far from `near`, the last close, where the row before opened `step_ns` before; alike.

    That is 20 %.  In a market that is `always` open, or after a month, it is three times as high or low; but while a
    market is open, a bar opens where the one before has closed.
    """
    wide = (always != 0) | (step_ns >= LONG_PAUSE_NS)
    up, down = (
        1 + MAX_JUMP + wide * (MAX_JUMP_FACTOR - 1 - MAX_JUMP),
        1 - MAX_JUMP - wide * (1 - MAX_JUMP - 1 / MAX_JUMP_FACTOR),
    )
    moved = wide & (step_ns <= interval_ns) & (abs(quote["open"] - near) > MAX_JUMP * near)
    for name in PRICES:
        moved = moved | (quote[name] > up * near) | (quote[name] < down * near)
    return moved


def find_level_shifts(
    quote: dict[str, NDArray[np.float64]], opening: IntArray, interval_ns: int, always: NDArray[np.bool_]
) -> tuple[list[int], dict[int, float]]:
    """Rows with damaged prices, and the last close before each row where prices move to another level and stay."""
    damaged: list[int] = []
    moves: dict[int, float] = {}
    if not len(opening):
        return damaged, moves
    near = np.append(quote["close"][0], quote["close"][:-1])
    before = np.append(opening[0] - 2 * interval_ns, opening[:-1])
    moved = is_price_jump(quote, near, opening - before, interval_ns, always)
    if moved[:2].any():  # which of the two is wrong, those after them tell
        near[0] = np.median(quote["close"][:5])
        moved[0] = is_price_jump({name: quote[name][0] for name in PRICES}, near[0], 2, 1, always[0])
    candidates = np.flatnonzero(moved).tolist()
    calm = is_level_stable(quote, always) if candidates else always
    judged = -1
    for first in candidates:
        if first <= judged:
            continue
        for row in range(first, len(opening)):
            price, step_ns = {name: quote[name][row] for name in PRICES}, opening[row] - before[row]
            judged = row
            if not is_price_jump(price, near[first], step_ns, interval_ns, always[row]):
                break
            damaged.append(row)
            if row - first >= LEVEL_SHIFT_ROWS - 1 and calm[row - LEVEL_SHIFT_ROWS + 1]:
                del damaged[-LEVEL_SHIFT_ROWS:]
                judged = row - LEVEL_SHIFT_ROWS + 1
                moves[judged] = float(near[first])
                break
    return damaged, moves


def is_level_stable(quote: dict[str, NDArray[np.float64]], always: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether the prices of each row and of the next are all near its close, MOVED rows in all; the last are not."""
    count = max(len(always) - LEVEL_SHIFT_ROWS + 1, 0)
    calm = np.zeros(len(always), np.bool_)
    rows = [{name: quote[name][k : k + count] for name in PRICES} for k in range(LEVEL_SHIFT_ROWS)]
    near = quote["close"][:count]
    calm[:count] = ~np.any([is_price_jump(row, near, 2, 1, always[:count]) for row in rows], axis=0)
    return calm


def level_shift_text(was: float, now: float) -> str:
    """A level that moves, in words; from the last close before to the open after it."""
    return (
        f"prices move from {was:g} to {now:g} between two bars, x{now / was:.3g}, and stay there: another "
        "level, unit or instrument; keep the lines before this one or those from it on"
    )


def order_fault(step_ns: int, interval_ns: int) -> str | None:
    """What is wrong with a stamp `step_ns` after the one before; days may be an hour short when clocks change."""
    if step_ns <= 0:
        return "duplicate" if step_ns == 0 else "backward"
    return "overlap" if step_ns < interval_ns - (HOUR if interval_ns >= DAY else 0) else None


class StepRun(NamedTuple):
    """Steps from bar to bar, one after another, none of which is as long as a bar of the file."""

    first_bar: int = 0  # bar, or line, that the first step leads from
    step_ns: int = 0  # the shortest
    num_exact: int = 0  # steps that long
    num_longer: int = 0  # others, as over a weekend


def extend_run(spell: StepRun, step_ns: int, interval_ns: int, bar: int) -> StepRun:
    """The spell after one more step, from `bar`; empty after a step as long as a bar."""
    if step_ns <= 0:
        return spell
    if abs(step_ns - interval_ns) <= (HOUR if interval_ns >= DAY else 0):
        return StepRun()
    if spell.num_exact and step_ns == spell.step_ns:
        return spell._replace(num_exact=spell.num_exact + 1)
    if spell.num_exact and step_ns > spell.step_ns and spell.num_longer < 3 + spell.num_exact // 3:
        return spell._replace(num_longer=spell.num_longer + 1)
    return StepRun(bar, step_ns, 1)


def is_interval_change(spell: StepRun, interval_ns: int) -> bool:
    """Whether a spell is no row of missing bars, but of bars of another length.

    Missing bars leave steps of all lengths: where a bar is missing with probability q, a step of two bars comes with
    q (1 - q), at most a quarter, and 20 of them without a step of one in 1 of 10^9 bars.
    """
    needed = (
        MIN_SHORTER_STEPS
        if spell.step_ns < interval_ns
        else MIN_LONGER_STEPS
        if spell.step_ns >= 3 * interval_ns
        else MIN_OTHER_STEPS
    )
    return spell.num_exact >= needed


def find_interval_change(opening: IntArray, interval_ns: int) -> tuple[int, int, int] | None:
    """The first bar of another length than those before, and both lengths; None if bars are of one length."""
    step = np.diff(opening)
    other = np.flatnonzero(step != interval_ns)
    stop = np.flatnonzero(np.diff(other, append=-1) != 1) + 1  # of runs of such steps
    start = np.append(0, stop[:-1])
    for run in np.flatnonzero(stop - start >= MIN_SHORTER_STEPS).tolist():
        spell, steps = StepRun(), other[start[run] : stop[run]].tolist()
        for t in steps:
            spell = extend_run(spell, int(step[t]), interval_ns, t)
            if is_interval_change(spell, interval_ns):
                if steps[0]:
                    return spell.first_bar, interval_ns, spell.step_ns
                return t + int(np.argmax(step[t:] == interval_ns)), spell.step_ns, interval_ns
    return None


def interval_change_text(was_ns: int, now_ns: int) -> str:
    """Bars that become longer or shorter, in words."""
    return (
        f"bars of {was_ns / SECOND_NS:g} s before this line, of {now_ns / SECOND_NS:g} s from it on: keep the lines before it or "
        f"those from it on, or make the shorter bars into some of {max(was_ns, now_ns) / SECOND_NS:g} s"
    )


def most_common_step(utc: IntArray) -> int | None:
    """The commonest positive step between stamps, nanoseconds; None if there is none."""
    step = np.diff(utc)
    values, counts = np.unique(step[step > 0], return_counts=True)
    return int(values[np.argmax(counts)]) if len(values) else None


def infer_interval(utc: IntArray, options: ReadOptions, name: str) -> int:
    """Length of the bars of a file in nanoseconds: the commonest step, which must divide the one asked for."""
    step = most_common_step(utc)
    wanted = None if options.interval_s is None else options.interval_s * SECOND_NS
    if step is None and wanted is None:
        reason = "no bar is later than the one before: is the newest first?" if len(utc) > 1 else "bring more"
        raise DataError(f"{name}: {len(utc)} bars do not tell how long a bar is: {reason}")
    if wanted is not None and (step is None or (step > wanted and (np.diff(utc) == wanted).any())):
        step = wanted
    if step is None or not SECOND_NS <= step <= MAX_INTERVAL_NS or step % SECOND_NS:
        raise DataError(f"{name}: steps of {(step or 0) / SECOND_NS:g} s: bars last whole seconds, up to 31 days")
    if wanted not in (None, step):
        check_divides(step, wanted, name)
    return step


def check_divides(step_ns: int, wanted_ns: int, name: str) -> None:
    """Refuse bars that cannot be put together into those wanted."""
    if wanted_ns % step_ns or (wanted_ns != step_ns and DAY % wanted_ns):
        raise DataError(
            f"{name}: bars of {step_ns / SECOND_NS:g} s where {wanted_ns / SECOND_NS:g} s are wanted: only bars that "
            "divide them, and they the day, can be put together"
        )


def swap_date_order(layout: FileLayout) -> FileLayout:
    """The layout with dates in the other order."""
    return layout._replace(format=layout.format._replace(stamp_style=OTHER_DATE_ORDER[layout.format.stamp_style]))


def sequence_breaks(utc: IntArray) -> IntArray:
    """The rows that are not the bar after the one before: older, too near, or beyond a hole."""
    common = most_common_step(utc)
    if common is None:
        return np.arange(1, len(utc))
    step = np.diff(utc)
    near = step < common - (HOUR if common >= DAY else 0)
    return np.flatnonzero(near | (step > max(MAX_WEEKEND_NS, MAX_MISSING_BARS * common))) + 1


def bad_cells_text(kind: str, cells: dict[str, float], near: float) -> str:
    """The cells of a row that make it a fault of `kind`, in brackets; `near`: a close beside it."""
    names = {
        "number": [name for name, cell in cells.items() if not 0 < cell + (name == "volume") < np.inf],
        "damaged": [max(PRICES, key=lambda name: abs(cells[name] - near))],
        "range": OHLC,
        "spread": ("open", "ask_open", "close", "ask_close"),
    }.get(kind, ())
    beside = f" beside {near:g}" if kind == "damaged" else ""
    return f" ({', '.join(f'{name} {cells[name]:g}' for name in names)}{beside})" if names else ""


def why_not_dropped(bad: dict[int, str], line: IntArray, utc: IntArray, interval_ns: int) -> str | None:
    """Why the `bad` lines (kind by line) are not dropped even on request; `line`, `utc` [N] of the rows that are bars.

    Rows that stand out by chance are few and nowhere in particular.  Filler is neither: it may always be dropped.
    """
    if not bad:
        return None
    faults = np.array([at for at in sorted(bad) if bad[at] != "flat"], np.int64)
    rows = np.union1d(line, faults)
    if 2 * len(bad) >= len(rows):
        most = "most of the file: is it newest first, or of another kind?"
        return most if len(faults) else "nothing but filler"
    order = np.argsort(line)
    time = np.interp(rows, line[order], utc[order]).astype(np.int64)
    is_bad = np.isin(rows, faults)
    where = np.flatnonzero(is_bad)
    run = where[:-2][where[2:] - where[:-2] == 2]
    reason: str | None
    if len(faults) > max(MAX_FREE_DROPS, len(rows) // MIN_ROWS_PER_DROP):
        reason = f"{len(faults)} of {len(rows)} rows are more than 1 %"
    elif len(run):
        reason = f"from line {rows[run[0]]} on, {LEVEL_SHIFT_ROWS} or more follow each other"
    elif len(where) > MAX_FREE_DROPS and len(set(np.diff(where).tolist())) == 1:
        reason = f"they are every row in {where[1] - where[0]}"
    else:
        reason = recurring_time(time, is_bad, interval_ns)
    return reason and f"{reason}: such rows are not dropped, {MEND_REMEDY}"


def recurring_time(time: IntArray, is_bad: NDArray[np.bool_], interval_ns: int) -> str | None:
    """The time of the day or week at which at least half of the rows are bad, in words."""
    for period, form in ((DAY, "%H:%M"), (WEEK, "%A %H:%M")):
        for width in sorted({interval_ns, max(HOUR, interval_ns)}):
            slot = (time % period) // width
            bad, rows = np.bincount(slot, is_bad), np.bincount(slot)
            hit = np.flatnonzero((bad >= MAX_FREE_DROPS) & (2 * bad >= rows))
            if len(hit) and width < period:
                at = np.datetime64(int(hit[0]) * width, "ns").astype("datetime64[s]").item()
                return f"they are {bad[hit[0]]:g} of the {rows[hit[0]]} rows at {at:{form}}"
    return None


def gap_text(missing_ns: int, begin_ns: int) -> str:
    """A hole in words."""
    length = f"{missing_ns / HOUR:.0f} h" if missing_ns >= 2 * HOUR else f"{missing_ns / (60 * SECOND_NS):.0f} min"
    return f"no bars for {length}, from {format_utc(begin_ns)}"


def find_faults(
    quote: dict[str, NDArray[np.float64]], opening: IntArray, rules: ParseRules, ticks: bool
) -> tuple[dict[int, str], dict[int, tuple[str, str]]]:
    """Kind of the fault of every bad row, by index, and kind and text of what changes for good, at its first row.

    Prices, lengths and order are judged among the rows that are good by themselves.
    """
    bad: dict[int, str] = {}
    interval_ns, unsure = rules.interval_ns, observes_weekends(rules.instrument) is None
    has_volume = np.logical_or.accumulate(quote["volume"] > 0) | ticks
    with np.errstate(invalid="ignore"):  # infinite prices are among the faults
        always = np.logical_or.accumulate(is_saturday(opening, interval_ns) & ~is_flat_bar(quote)) & unsure
        always |= rules.instrument.hours == ROUND_THE_CLOCK
        for kind, mask in row_faults(quote, opening, has_volume, always).items():
            for row in np.flatnonzero(mask).tolist():
                bad.setdefault(row, kind)
    good = np.delete(np.arange(len(opening)), list(bad))
    kept = {name: column[good] for name, column in quote.items()}
    damaged, moves = find_level_shifts(kept, opening[good], interval_ns, always[good])
    changes = {int(good[t]): ("level", level_shift_text(near, kept["open"][t])) for t, near in moves.items()}
    change = find_interval_change(opening[good], interval_ns)
    if change is not None:
        first, *lengths = change
        first += rules.label == "close"  # a stamp ends the step that it is known by
        changes.setdefault(int(good[first]), ("interval", interval_change_text(*lengths)))
    bad.update(dict.fromkeys(good[damaged].tolist(), "damaged"))
    good = np.delete(good, damaged)
    if change is None and (np.diff(opening[good]) < interval_ns).any():
        bad.update(order_faults(opening, good, interval_ns))
    return bad, changes


def order_faults(utc: IntArray, good: IntArray, interval_ns: int) -> dict[int, str]:
    """Kind by index of the rows among `good` that do not follow the last row that is left."""
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
    """Gaps that no session spans, sentences on all gaps, and when the market is closed; `line` [T] of the bars."""
    hours = hours_of(time, instrument, interval_ns)
    gaps, closed = find_gaps(time, interval_ns, hours), format_closed_hours(hours)
    missing = time[gaps.end_bar] - interval_ns - time[gaps.end_bar - 1]
    weekend = gaps.is_weekly_close & ~gaps.is_unscheduled
    rest = (
        ~gaps.is_weekly_close & ~gaps.is_unscheduled & (missing >= QUARTER_NS) & (2 * gaps.open_duration_ns < missing)
    )
    rests = f", {rest.sum()} daily breaks" if rest.any() else ""
    said = f"{weekend.sum()} weekends{rests} and {(~weekend & ~rest).sum()} other gaps between bars"
    notes = [said] if len(missing) else []
    if (hours != DEFAULT_HOURS[instrument.hours]).any():
        notes.append(f"hours as the bars show them, closed (UTC): {closed}")
    holes = np.flatnonzero(gaps.is_unscheduled)[:MAX_LISTED]
    found = zip(line[gaps.end_bar[holes]].tolist(), missing[holes], time[gaps.end_bar[holes] - 1], strict=True)
    return [Problem("hole", n, gap_text(lost, begin)) for n, lost, begin in found], notes, closed
