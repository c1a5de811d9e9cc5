"""What a line of bars means: its stamp and its prices.

`formats.py` says which formats there are, and `judging.py` what may be wrong.  `bars.py` reads files in bulk and
`feed.py` line by line with the functions here: those that say "alike" take a number or an array of numbers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from string import whitespace
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from host.console import typed
from host.data.formats import (
    ALL,
    GROUPED,
    MOST_DIGITS,
    NUMBER,
    OHLC,
    PACKED_TIME,
    ZONES,
    DataError,
    Layout,
    ReadOptions,
    file_name,
    split_fields,
)
from host.data.instruments import Instrument, find_instrument, instrument_of_prices, pip_fault
from kernels.market.bars import NS

Ints = NDArray[np.int64]
HOUR, DAY, WEEK = 3600 * NS, 86_400 * NS, 604_800 * NS
# Of the spread: how far the bid is below the price of a file.
SHARE_BELOW = {"bid": 0.0, "mid": 0.5, "ask": 1.0}
WIDE = 0.05  # a spread this wide, relative to the price, is in other units
SCALED = 10_000.0  # an unknown instrument quoted above this is taken for points, unless its pip is said
SCALED_PIPS = 5e6  # and a price of so many pips even then
QUARTER_S = 900  # clocks change at multiples of this
EPOCH, EPOCH_UTC = datetime(1970, 1, 1), datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
LAST_STAMP = 7_258_118_400 * NS  # the year 2200
PRICES = (*OHLC, "ask_open", "ask_close")
NUMBERS = (*PRICES, "volume", "spread")
FLAGS = {"true": 1.0, "false": 0.0}
UNIX = {9: NS, 10: NS, 12: 10**6, 13: 10**6, 15: 1000, 16: 1000, 18: 1, 19: 1}  # ns, by the digits of a stamp
MARKS = frozenset("./")  # in dates, where ISO 8601 has dashes
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
YEAR_FIRST = (  # ways to write a date that cannot be mistaken
    r"(?P<y>\d{4})([-./])(?P<m>\d\d?)\2(?P<d>\d\d?)",
    r"(?P<y>\d{4})(?P<m>\d\d)(?P<d>\d\d)",
    r"(?P<m>[a-z]{3})[a-z]* (?P<d>\d\d?),? (?P<y>\d{4})",
    r"(?P<d>\d\d?)[- ](?P<m>[a-z]{3})[a-z]*[- ](?P<y>\d{4})",
)
DATES = {  # by kind of stamp
    "iso": YEAR_FIRST,
    "wall": YEAR_FIRST,
    "dmy": (r"(?P<d>\d\d?)([-./])(?P<m>\d\d?)\2(?P<y>\d{4})",),
    "mdy": (r"(?P<m>\d\d?)([-./])(?P<d>\d\d?)\2(?P<y>\d{4})",),
}
TIMED = (  # what may follow a date: the time, with colons or without, and a zone
    r"(?:[t ,]*(?=\d\d?:|\d{4}(?!\d)|\d{6}(?!\d))(?P<H>\d\d?)(?P<c>:?)(?P<M>\d\d)"
    r"(?:(?P=c)(?P<S>\d\d)(?:[.,: ](?P<f>\d{1,9}))?)?(?: ?(?P<p>[ap])m)?"
    r" ?(?:(?P<z>z|utc|gmt|(?:utc|gmt)?[+-]\d\d(?::?\d\d)?)|(?P<n>[a-z]+(?:/[a-z_]+)*))?)?"
)
WRITTEN = {kind: [re.compile(date + TIMED, re.I | re.A) for date in ways] for kind, ways in DATES.items()}


class Rules(NamedTuple):
    """How the rows of one file become bars."""

    side: str
    timezone: str
    label: str
    spread_px: float  # where the file has none, or the user wants another
    instrument: Instrument
    scale: float  # price of a unit of the file
    interval_ns: int
    unit_px: float  # price of a unit of the spread column that counts; 0 without one
    format: str
    own: tuple[str, ...]  # of timezone, side and label: what the file settles by itself
    doubtful: bool  # the spread is the file's, and the user has not said its unit


def rules_for(
    layout: Layout, options: ReadOptions, name: str, price: float, interval_ns: int
) -> tuple[Rules, list[str]]:
    """What holds for a file whose prices are about `price`, and notes on what was decided."""
    fmt = layout.format
    side, own, notes = side_of(layout, options, name)
    if fmt.label not in ("open", "close"):
        raise DataError(f"{name}: --label {fmt.label}: open or close")
    parse_clock(fmt.timezone)
    scale = 1.0 if options.point is None else options.point
    instrument, said = instrument_for(layout, options, name, price * scale)
    pip, spread_pips = instrument.pip, instrument.spread_pips
    if not all(0 < size < np.inf for size in (pip, scale)) or not 0 <= spread_pips < np.inf:
        raise DataError(
            f"{name}: --pip {pip:g}, --point {scale:g}, --spread {spread_pips:g}: neither may be negative, "
            "nor a size zero"
        )
    if options.spread_unit and not layout.unit:
        raise DataError(f"{name}: --spread-unit {options.spread_unit}: the file has no column of spreads")
    in_file = bool(layout.unit or side == "both")
    if in_file and options.spread_pips is not None:
        said.append(f"--spread {spread_pips:g} instead of the spread that the file has")
        side, in_file = "bid" if side == "both" else side, False
    unit_px = unit_price(layout, options, name, instrument) if in_file and layout.unit else 0.0
    unused = [
        column for column, role in zip(layout.names, layout.columns, strict=False) if column and not role
    ]
    notes += [*said, *[fmt.note] * (options.timezone is None and bool(fmt.note))]
    notes += [f"columns not used: {', '.join(unused[:8])}{', ...' * (len(unused) > 8)}"] * bool(unused)
    read = side, fmt.timezone, fmt.label, spread_pips * pip, instrument, scale, interval_ns, unit_px
    rules = Rules(*read, fmt.name, own, doubtful=in_file and options.spread_unit is None)
    if found := conflicts(rules, options.remembered):
        raise DataError(f"{name}: {'; '.join(found)}")
    return rules, notes


def side_of(layout: Layout, options: ReadOptions, name: str) -> tuple[str, tuple[str, ...], list[str]]:
    """The side of the prices, what the file settles by itself and the user does not, and notes."""
    side, own = options.side, [what for what in layout.format.own if getattr(options, what) is None]
    if "ask_open" in layout.columns:
        if side not in (None, "bid", "both"):
            raise DataError(f"{name}: --side {side}: the file has bid and ask")
        return "both", tuple(what for what in own if what != "side"), []
    if side is not None:
        if side not in SHARE_BELOW:
            raise DataError(
                f"{name}: --side {side}: the file has one side, say which: {', '.join(SHARE_BELOW)}"
            )
        return side, tuple(own), []
    if found := re.search(r"(?<![a-z])(ask|bid)(?![a-z])", file_name(name).lower()):
        return found[1], (*own, "side"), [f"side {found[1]}: from the file name (--side)"]
    how = "as in training" if options.remembered.get("side") else "assumed"
    note = f"side {layout.format.side}: {how} (--side)"
    return layout.format.side, tuple(own), [] if "side" in own else [note]


def conflicts(rules: Rules, remembered: Mapping[str, Any]) -> list[str]:
    """Where what a file settles by itself is not what a model `remembered` from its training; both readings."""
    words = dict(zip(ALL, ("clock is", "side is", "stamps mark the"), strict=True))
    return [
        f"the file's {words[what]} {getattr(rules, what)} ({rules.format}), the model was trained on "
        f"{remembered[what]}: --{what} {getattr(rules, what)} or --{what} {remembered[what]} says which holds"
        for what in ALL
        if what in rules.own and remembered.get(what) not in (None, "both", getattr(rules, what))
    ]


def instrument_for(
    layout: Layout, options: ReadOptions, name: str, price: float
) -> tuple[Instrument, list[str]]:
    """What a file called `name` with prices of about `price` is of, and notes; the pip and spread given go with it.

    The user says it, or the column of symbols, or the name of the file.
    """
    column, file = "the column of symbols", "the file name"
    said = {"--symbol": options.symbol or "", column: layout.symbol, file: file_name(name)}
    found = {who: known for who, text in said.items() if (known := find_instrument(text))}
    who = "--symbol" if options.symbol else next(iter(found), column)
    instrument = found.get(who) or instrument_of_prices(said[who] or "-", price, layout.digits)
    told = {other: found[other].symbol if other in found else said[other] for other in (column, file)}
    notes = [
        f"symbol {instrument.symbol}: {who}; {other} says {symbol}"
        for other, symbol in told.items()
        if symbol not in ("", instrument.symbol) and (other == column or other in found)
    ]
    for what in ("pip", "spread_pips"):
        typed = getattr(options, what)
        given = options.remembered.get(what) if typed is None else typed
        if given is not None:
            instrument = instrument._replace(**{what: given})
    pip_known = who in found or options.pip is not None or "pip" in options.remembered
    likely = found.get(who, instrument).pip
    if options.point is None and price > (SCALED_PIPS * likely if pip_known else SCALED):
        raise DataError(
            f"{name}: prices of about {price:g} look like points: --point 0.001 (for example) turns them into "
            "prices; if they are prices, say --pip"
        )
    fault = pip_fault(options.pip, said[who], price, layout.digits) if options.pip is not None else ""
    if fault:
        raise DataError(f"{name}: --pip {options.pip:g}: {fault}")
    usual = instrument.spread_pips * instrument.pip
    if who in found and options.spread_pips is None and 0 < WIDE * price < usual:
        raise DataError(
            f"{name}: prices of about {price:g} and a usual spread of {usual:g}: is the symbol "
            f"{instrument.symbol}? --symbol says otherwise, or --spread"
        )
    return instrument, notes


def unit_price(layout: Layout, options: ReadOptions, name: str, instrument: Instrument) -> float:
    """The price of a unit of the spread column; DataError if it cannot be the price and nobody has said what it is."""
    scale = 1.0 if options.point is None else options.point
    units = {"price": scale, "points": point_of(layout, options, instrument), "pips": instrument.pip}
    if layout.whole:
        ways = [
            f"--spread-unit {unit} makes {decimal(layout.whole * units[unit])} of {layout.whole:g}"
            for unit in ("points", "pips", "price")
        ]
        raise DataError(
            f"{name}: spreads are whole numbers, such as {layout.whole:g}, beside prices with {layout.digits} "
            f"decimals: in which unit? {', '.join(ways)}"
        )
    return units[layout.unit]


def point_of(layout: Layout, options: ReadOptions, instrument: Instrument) -> float:
    """The price of the last digit: what the file shows, unless that may be less than brokers quote."""
    if options.point is not None:
        return options.point
    shown = float(f"1e-{layout.digits}")
    told = layout.digits <= MOST_DIGITS and (layout.even or shown < instrument.point)
    return shown if told else instrument.point


def check_spread(spread_px: float, range_px: float, rules: Rules, name: str, most: float = 1.0) -> None:
    """Refuse a mean spread of a file that is no cost of its bars, whose mean range is `range_px`; the user may insist.

    It is zero throughout, or more than `most` times as wide as the bars are high.  Bars that do not move tell nothing.
    """
    if not rules.doubtful:
        return
    pips, usual = spread_px / rules.instrument.pip, rules.instrument.spread_pips
    if spread_px <= 0:
        many = "zero throughout" if spread_px == 0 else f"{decimal(spread_px)} in the mean"
        raise DataError(f"{name}: the spread is {many}: --spread {usual:g}, or --spread 0 if it is meant")
    if rules.unit_px and 0 < most * range_px < spread_px:
        raise DataError(
            f"{name}: a mean spread of {decimal(spread_px)} = {pips:.3g} pips is wider than the mean bar, "
            f"{decimal(range_px)}: in which unit is it? --spread-unit pips, --spread-unit points, or --spread-unit "
            f"price if it is meant; --spread {usual:g} (pips) takes its place"
        )


def decimal(value: float) -> str:
    """A number of five digits without an exponent."""
    return np.format_float_positional(value, precision=5, fractional=False, trim="-")


def spread_text(spread_px: float, range_px: float, rules: Rules, origin: str) -> str:
    """A mean spread as an amount, in pips, and as a share of the mean bar range."""
    share = f", {spread_px / range_px:.0%} of the mean bar range".replace("%", " %") if range_px > 0 else ""
    return f"{decimal(spread_px)} = {spread_px / rules.instrument.pip:.3g} pips{share} ({origin})"


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
    is_utc, zone = False, ""
    if kind == "midnight":
        stamp_ns = int(text) * 1_000_000 if text.isdigit() else -1
        if not 0 <= stamp_ns < DAY:
            raise ValueError(text)
        stamp_ns += (datetime.fromisoformat(day) - EPOCH) // MICROSECOND * 1000
    elif text[4:9].isdigit() and (unix_ns := unix_stamp(kind, text)) is not None:
        stamp_ns, is_utc = unix_ns, True
    else:
        try:
            marked = text[4:5] in MARKS or text[2:3] in MARKS
            stamp = datetime.fromisoformat(quick_text(kind, text) if marked else text)
        except ValueError:
            written, zone = iso_text(kind, text)
            stamp = datetime.fromisoformat(written)
        is_utc = stamp.tzinfo is not None
        stamp_ns = (stamp - (EPOCH_UTC if is_utc else EPOCH)) // MICROSECOND * 1000
    if zone:
        stamp_ns, is_utc = stamp_utc(stamp_ns, False, zone), True
    if not 0 <= stamp_ns < LAST_STAMP:
        raise ValueError(text)
    return stamp_ns, is_utc and kind != "wall"


def unix_stamp(kind: str, text: str) -> int | None:
    """Nanoseconds of a UNIX time in seconds, milli-, micro- or nanoseconds; None if `text` is none."""
    whole, _, part = text.partition(".")
    unit = UNIX.get(len(whole))
    if unit is None or kind not in ("iso", "wall") or not (whole + part).isdigit():
        return None
    if len(whole) == 12 and re.fullmatch(PACKED_TIME, whole):
        return None
    return int(whole) * unit + (int(part) * unit // 10 ** len(part) if part else 0)


def quick_text(kind: str, text: str) -> str:
    """A stamp of the usual width in the order of ISO 8601: most are, and the rest goes through `iso_text`."""
    if kind in ("iso", "wall"):
        return text.replace(text[4], "-", 2)
    month, day = (3, 0) if kind == "dmy" else (0, 3)
    return f"{text[6:10]}-{text[month : month + 2]}-{text[day : day + 2]}{text[10:]}"


def iso_text(kind: str, text: str) -> tuple[str, str]:
    """A stamp as ISO 8601 has it, and the zone whose name stands behind it; ValueError if it is none."""
    if turned := re.fullmatch(r"(\d\d?:\S+(?: [ap]m)?) (\S+)", text := text.strip(), re.I):  # the time first
        text = f"{turned[2]} {turned[1]}"
    found = next((match for way in WRITTEN[kind] if (match := way.fullmatch(text))), None)
    if found is None:
        raise ValueError(text)
    part = {key: value or "" for key, value in found.groupdict().items()}
    month = part["m"] if part["m"].isdigit() else str(MONTHS.index(part["m"].lower()) + 1)
    date = f"{part['y']}-{month:0>2}-{part['d']:0>2}"
    if not part["H"]:
        return date, ""
    hour = int(part["H"])
    if part["p"]:
        if not 1 <= hour <= 12:
            raise ValueError(text)
        hour = hour % 12 + 12 * (part["p"].lower() == "p")
    offset = re.sub("utc|gmt|z", "", part["z"].lower()) or ("+00:00" if part["z"] else "")
    zone = part["n"] if "/" in part["n"] else ""
    if part["n"] and not zone and part["n"].lower() not in ZONES:
        raise ValueError(text)
    return f"{date}T{hour:02}:{part['M']}:{part['S'] or '00'}.{part['f'] or '0'}{offset}", zone


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
    try:
        return parse_fields(text, layout)
    except DataError:
        raise
    except (ValueError, OverflowError):
        return None


def explain_line(text: str, layout: Layout) -> str:
    """Why a line is not a bar: the cell and the rule that failed."""
    try:
        parse_fields(text, layout)
    except (ValueError, OverflowError) as error:
        return str(error)
    return "a bar"


def parse_fields(text: str, layout: Layout) -> tuple[int, bool, dict[str, float]]:
    """`parse_line`, with a ValueError that says why the line is not a bar."""
    fields = split_fields(text, layout.separator)
    if len(fields) != len(layout.columns):
        raise ValueError(f"{len(fields)} fields where {len(layout.columns)} are wanted")
    numbers, stamp = {}, []
    for role, value, column in zip(layout.columns, fields, layout.names, strict=False):
        if role in NUMBERS:
            numbers[role] = parse_number(value, layout.thousands, role, column)
        elif role == "complete":
            if value.lower() not in FLAGS:
                raise ValueError(f"{value[:40]!r} in column {column} is neither true nor false")
            numbers[role] = FLAGS[value.lower()]
        elif role == "time":
            stamp.append(value)
        elif role == "symbol" and value.strip() != layout.symbol:
            raise DataError(two_symbols(layout, value.strip()))
    try:
        return *parse_stamp(layout.format.stamp, " ".join(stamp), layout.day), numbers
    except (ValueError, OverflowError) as error:
        at, why = layout.names[layout.columns.index("time")], "is no time, or not written as the first"
        why = str(error) if isinstance(error, DataError) else why  # of its zone
        raise ValueError(f"{' '.join(stamp)[:40]!r} in column {at} {why}") from None


def parse_number(text: str, thousands: bool, role: str, column: str) -> float:
    """The number in a field; ValueError says what it is instead."""
    value = text.strip(whitespace)
    if thousands and GROUPED.fullmatch(value):
        value = value.replace(",", "")
    if not NUMBER.fullmatch(value):
        kind = role if role in ("volume", "spread") else "price"
        raise ValueError(f"the {kind} {text[:40]!r} in column {column} is no number")
    return float(value)


def finite(text: str) -> float:
    """A number that is one."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text}")
    return number


def two_symbols(layout: Layout, other: str) -> str:
    """What to do with a file of more than one symbol."""
    kept = f"i < {layout.header} or '{other}' in t"
    code = f"import sys; print(*[t for i, t in enumerate(open(sys.argv[1])) if {kept}], sep='', end='')"
    return (
        f"{layout.path}: {layout.symbol} and {other}: a file has the bars of one symbol; to split it: "
        f"{typed('python', '-c', code, layout.path)} > {re.sub('[^A-Za-z0-9]', '', other)}.csv"
    )


def quotes(columns: Any, rules: Rules) -> dict[str, Any]:
    """The columns of `Bars` without the time, from those of a file: bid, ask and volume; alike."""
    spread = columns["spread"] * rules.unit_px if rules.unit_px else rules.spread_px
    below = SHARE_BELOW.get(rules.side, 0.0) * spread
    price = {name: columns[name] * rules.scale for name in PRICES if name in columns}
    quote = {name: price[name] - below for name in OHLC}
    for name in ("open", "close"):
        quote[f"ask_{name}"] = (
            price[f"ask_{name}"] if rules.side == "both" else price[name] + (spread - below)
        )
    quote["volume"] = columns["volume"] if "volume" in columns else columns["open"] * 0.0
    return quote


def iso(time_ns: int) -> str:
    """A time in words of ISO 8601, UTC, whole seconds."""
    return f"{datetime.fromtimestamp(int(time_ns) // NS, UTC).isoformat()[:19]}Z"
