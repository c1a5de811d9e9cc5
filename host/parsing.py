"""What a line of bars means: its stamp, its prices, and what may be wrong with it.

`formats.py` says which formats there are.  `bars.py` reads files in bulk and `feed.py` line by line with the functions
here: those that say "alike" take a number or an array of numbers.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from pathlib import Path
from string import whitespace
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from host.formats import OHLC, DataError, Layout, ReadOptions
from host.instruments import Instrument, find_instrument, instrument_of_prices, pip_fault
from kernels.bars import NS

Ints = NDArray[np.int64]
HOUR, DAY, WEEK = 3600 * NS, 86_400 * NS, 604_800 * NS


LABEL = "open"


SHARE_BELOW = {
    "bid": 0.0,
    "mid": 0.5,
    "ask": 1.0,
}  # of the spread: how far the bid is below the price of a file


SIDES = (*SHARE_BELOW, "both")


JUMP = 0.2  # a price this far from its neighbours, relative, is damaged


WIDE = 0.05  # a spread this wide, relative to the price, is in other units


SCALED = 10_000.0  # a pair quoted above this is taken for points, unless the user names the pip


SCALED_PIPS = 5e6  # and a price of so many pips even then


SATURDAY = 2 * DAY  # 1970-01-03, the first one


CLOSED = 44 * HOUR  # from Saturday 00:00 UTC: no market is open


QUARTER_S = 900  # clocks change at multiples of this


EPOCH, EPOCH_UTC, MICROSECOND = (
    datetime(1970, 1, 1),
    datetime(1970, 1, 1, tzinfo=UTC),
    timedelta(microseconds=1),
)


LAST_STAMP = 7_258_118_400 * NS  # the year 2200


LONGEST = 31 * DAY  # bar


NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)


PRICES = ("open", "high", "low", "close", "ask_open", "ask_close")


NUMBERS = (*PRICES, "volume", "spread", "points", "tenths")


FLAGS = {"true": 1.0, "false": 0.0}


DATES = {  # where a date of ten characters has its year, month and day
    "ymd": (0, 5, 8),
    "dmy": (6, 3, 0),
    "mdy": (6, 0, 3),
}


MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


class Rules(NamedTuple):
    """How the rows of one file become bars."""

    side: str
    timezone: str
    label: str
    spread_px: float
    instrument: Instrument
    scale: float  # price of a unit of the file
    interval_ns: int


def rules_for(
    layout: Layout, options: ReadOptions, name: str, price: float, interval_ns: int
) -> tuple[Rules, list[str]]:
    """What holds for a file whose prices are about `price`, and notes on what was assumed."""
    notes = []
    side = options.side
    if "ask_open" in layout.columns:
        if side not in (None, "bid", "both"):
            raise DataError(f"{name}: --side {side}: the file has bid and ask")
        side = "both"
    elif side is None:
        found = re.search(r"(?<![a-z])(ask|bid)(?![a-z])", Path(name).name.lower())
        side = found[1] if found else layout.format.side
        notes.append(f"side {side}: {'from the file name' if found else 'assumed'} (--side)")
    elif side not in SHARE_BELOW:
        raise DataError(f"{name}: --side {side}: the file has one side, say which: {', '.join(SHARE_BELOW)}")
    label = options.label or LABEL
    if label not in ("open", "close"):
        raise DataError(f"{name}: --label {label}: open or close")
    timezone = options.timezone or layout.format.timezone
    parse_clock(timezone)
    scale = 1.0 if options.point is None else options.point
    price *= scale
    instrument = instrument_for(layout, options, name, price)
    pip = instrument.pip
    named = find_instrument(options.symbol or Path(name).name)
    known = named is not None or options.pip is not None or "pip" in options.remembered
    if options.point is None and price > (SCALED_PIPS * pip if known else SCALED):
        raise DataError(
            f"{name}: prices of about {price:g} look like points: --point 0.001 (for example) turns them into "
            "prices; if they are prices, say --pip"
        )
    spread_pips = instrument.spread_pips
    if not all(0 < size < np.inf for size in (pip, scale)) or not 0 <= spread_pips < np.inf:
        raise DataError(
            f"{name}: --pip {pip:g}, --point {scale:g}, --spread {spread_pips:g}: neither may be negative, "
            "nor a size zero"
        )
    return Rules(side, timezone, label, spread_pips * pip, instrument, scale, interval_ns), notes


def instrument_for(layout: Layout, options: ReadOptions, name: str, price: float) -> Instrument:
    """What a file called `name` with prices of about `price` is of, with the pip and the spread that the user gives."""
    symbol = options.symbol or Path(name).name
    digits = max(0, round(-math.log10(layout.point)))
    fault = pip_fault(options.pip, symbol, price, digits) if options.pip is not None else ""
    if fault:
        raise DataError(f"{name}: --pip {options.pip:g}: {fault}")
    instrument = find_instrument(symbol) or instrument_of_prices(options.symbol or "-", price, digits)
    given = {**options.remembered, **{k: v for k, v in vars(options).items() if v is not None}}
    known = {what: given[what] for what in ("pip", "spread_pips") if given.get(what) is not None}
    return instrument._replace(**known)


@lru_cache
def parse_clock(name: str) -> tuple[tzinfo, int]:
    """Zone and shift in seconds of an IANA name, or of one with a shift in hours: Europe/Athens-7h, UTC+2h."""
    shifted = re.fullmatch(r"(.+?)([+-]\d{1,2})h", name)
    zone, shift_s = (shifted[1], int(shifted[2]) * 3600) if shifted else (name, 0)
    try:
        return UTC if zone == "UTC" else ZoneInfo(zone), shift_s
    except (KeyError, ValueError, OSError):
        raise DataError(
            f"--timezone {name}: not a zone; for example UTC, Europe/Athens, UTC+2h; where no zone is known, as "
            "on Windows, `pip install tzdata`"
        ) from None


@lru_cache(maxsize=1024)
def offset_ns(clock: str, quarter: int) -> int:
    """Nanoseconds by which `clock` is ahead of UTC in a quarter of an hour by its own hands.

    An hour that comes twice is taken as the first: if it holds bars, they come out as duplicates.
    """
    zone, shift_s = parse_clock(clock)
    wall = EPOCH + timedelta(seconds=quarter * QUARTER_S - shift_s)
    offset = wall.replace(tzinfo=zone).utcoffset() or timedelta()
    return (offset // MICROSECOND) * 1000 + shift_s * NS


def parse_stamp(kind: str, text: str, day: str) -> tuple[int, bool]:
    """Nanoseconds since the epoch of a stamp, by its own clock or (True) UTC; ValueError if it is none."""
    is_utc = False
    if kind == "midnight":
        stamp_ns = int(text) * 1_000_000 if text.isdigit() else -1
        if not 0 <= stamp_ns < DAY:
            raise ValueError(text)
        stamp_ns += (datetime.fromisoformat(day) - EPOCH) // MICROSECOND * 1000
    elif kind in ("iso", "wall") and text.isdigit() and len(text) in (9, 10, 12, 13):
        stamp_ns, is_utc = int(text) * (NS if len(text) <= 10 else 1_000_000), True
    else:
        stamp = datetime.fromisoformat(iso_date(kind, text))
        is_utc = stamp.tzinfo is not None
        stamp_ns = (stamp - (EPOCH_UTC if is_utc else EPOCH)) // MICROSECOND * 1000
    if not 0 <= stamp_ns < LAST_STAMP:
        raise ValueError(text)
    return stamp_ns, is_utc and kind != "wall"


def iso_date(kind: str, text: str) -> str:
    """A stamp of `kind` in the order of ISO 8601."""
    if kind == "month":
        month, day, year = text.split()
        return f"{year}-{MONTHS.index(month.lower()) + 1:02}-{day}"
    if kind not in DATES:
        return text
    year_at, month_at, day_at = DATES[kind]
    marks = text[4:8:3] if year_at == 0 else text[2:6:3]
    if marks not in ("..", "//", "--"):
        raise ValueError(text)
    date = "-".join((text[year_at : year_at + 4], text[month_at : month_at + 2], text[day_at : day_at + 2]))
    return date + text[10:].replace(" GMT", "")


def stamp_utc(stamp_ns: int, is_utc: bool, clock: str) -> int:
    """A stamp by `clock` in UTC."""
    return stamp_ns if is_utc else stamp_ns - offset_ns(clock, stamp_ns // (QUARTER_S * NS))


def to_utc(stamp_ns: Ints, is_utc: NDArray[np.bool_], clock: str) -> Ints:
    """Stamps [T] by `clock` in UTC."""
    quarter, where = np.unique(stamp_ns // (QUARTER_S * NS), return_inverse=True)
    offsets = np.array([offset_ns(clock, int(q)) for q in quarter], np.int64)
    return np.where(is_utc, stamp_ns, stamp_ns - offsets[where])


def parse_line(text: str, layout: Layout) -> tuple[int, bool, dict[str, float]] | None:
    """Stamp, whether it is UTC, and numbers by role of one line; None if it is not a bar."""
    fields = text.replace('"', "").split(layout.separator)
    if len(fields) != len(layout.columns):
        return None
    numbers, stamp = {}, []
    for role, value in zip(layout.columns, fields, strict=True):
        if role in NUMBERS:
            if not NUMBER.fullmatch(value.strip(whitespace)):
                return None
            numbers[role] = float(value)
        elif role == "complete":
            numbers[role] = FLAGS.get(value.lower(), np.nan)
        elif role:
            stamp.append(value)
    if "complete" in numbers and numbers["complete"] not in FLAGS.values():
        return None
    try:
        return *parse_stamp(layout.format.stamp, " ".join(stamp), layout.day), numbers
    except (ValueError, OverflowError):
        return None


def quotes(columns: Any, rules: Rules, point: float) -> dict[str, Any]:
    """The columns of `Bars` without the time, from those of a file: bid, ask and volume; alike."""
    unit = {"spread": rules.scale, "points": point, "tenths": rules.instrument.pip / 10}
    spread = next((columns[role] * unit[role] for role in unit if role in columns), rules.spread_px)
    below = SHARE_BELOW.get(rules.side, 0.0) * spread
    price = {name: columns[name] * rules.scale for name in PRICES if name in columns}
    quote = {name: price[name] - below for name in OHLC}
    for name in ("open", "close"):
        quote[f"ask_{name}"] = (
            price[f"ask_{name}"] if rules.side == "both" else price[name] + (spread - below)
        )
    quote["volume"] = columns["volume"] if "volume" in columns else columns["open"] * 0.0
    return quote


def row_faults(quote: Any, utc: Any, has_volume: Any) -> dict[str, Any]:
    """Which faults a row has; `has_volume`: the file gives volumes so far, so a bar without one is filler; alike."""
    low, high, volume = quote["low"], quote["high"], quote["volume"]
    number = (volume != volume) | (volume < 0) | (volume == np.inf)
    for name in PRICES:
        number = number | (quote[name] != quote[name]) | (quote[name] <= 0) | (quote[name] == np.inf)
    outside = high < low
    spread = low != low
    for name in ("open", "close"):
        bid, ask = quote[name], quote[f"ask_{name}"]
        outside = outside | (bid < low) | (bid > high)
        spread = spread | (ask < bid) | (ask - bid > WIDE * bid)
    still = (quote["open"] == high) & (high == low) & (low == quote["close"]) & (volume == 0)
    flat = still & (has_volume | ((utc - SATURDAY) % WEEK < CLOSED))
    return {"number": number, "range": outside, "spread": spread, "flat": flat}


def is_damaged(quote: Any, near: Any) -> Any:
    """Whether a price is more than JUMP from the price `near` it; alike."""
    damaged = near != near
    for name in PRICES:
        damaged = damaged | (abs(quote[name] - near) > JUMP * near)
    return damaged


def order_fault(step_ns: int, interval_ns: int) -> str | None:
    """What is wrong with a stamp `step_ns` after the one before; days may be an hour short when clocks change."""
    if step_ns <= 0:
        return "duplicate" if step_ns == 0 else "backward"
    return "overlap" if step_ns < interval_ns - (HOUR if interval_ns >= DAY else 0) else None


def common_step(utc: Ints) -> int | None:
    """The commonest positive step between stamps, nanoseconds; None if there is none."""
    step = np.diff(utc)
    values, counts = np.unique(step[step > 0], return_counts=True)
    return int(values[np.argmax(counts)]) if len(values) else None


def interval_of(utc: Ints, options: ReadOptions, name: str) -> int:
    """Length of the bars of a file in nanoseconds: the commonest step, which must divide the one asked for."""
    step = common_step(utc)
    wanted = None if options.interval_s is None else options.interval_s * NS
    if step is None and wanted is None:
        reason = "no bar is later than the one before: is the newest first?" if len(utc) > 1 else "bring more"
        raise DataError(f"{name}: {len(utc)} bars do not tell how long a bar is: {reason}")
    if wanted is not None and (step is None or (step > wanted and (np.diff(utc) == wanted).any())):
        step = wanted
    if step is None or not NS <= step <= LONGEST or step % NS:
        raise DataError(f"{name}: steps of {(step or 0) / NS:g} s: bars last whole seconds, up to 31 days")
    if wanted not in (None, step):
        check_divides(step, wanted, name)
    return step


def check_divides(step_ns: int, wanted_ns: int, name: str) -> None:
    """Refuse bars that cannot be put together into those wanted."""
    if wanted_ns % step_ns or (wanted_ns != step_ns and DAY % wanted_ns):
        raise DataError(
            f"{name}: bars of {step_ns / NS:g} s where {wanted_ns / NS:g} s are wanted: only bars that "
            "divide them, and they the day, can be put together"
        )


def iso(time_ns: int) -> str:
    """A time in words of ISO 8601, UTC."""
    return str(np.datetime_as_string(np.datetime64(int(time_ns), "ns"), unit="s")) + "Z"
