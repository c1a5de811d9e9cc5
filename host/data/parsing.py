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

from host.console import shell_join
from host.data.formats import (
    COMPACT_DATETIME,
    DECIMAL_NUMBER,
    FORMAT_OPTIONS,
    MAX_DECIMALS,
    OHLC,
    THOUSANDS_NUMBER,
    TIMEZONES,
    DataError,
    FileLayout,
    ReadOptions,
    file_name,
    split_fields,
)
from host.data.instruments import Instrument, find_instrument, guess_instrument, pip_fault
from kernels.market.bars import SECOND_NS

IntArray = NDArray[np.int64]
HOUR, DAY, WEEK = 3600 * SECOND_NS, 86_400 * SECOND_NS, 604_800 * SECOND_NS
# Of the spread: how far the bid is below the price of a file.
SPREAD_BELOW_PRICE = {"bid": 0.0, "mid": 0.5, "ask": 1.0}
MAX_SPREAD_RATIO = 0.05  # a spread this wide, relative to the price, is in other units
MAX_UNSCALED_PRICE = 10_000.0  # an unknown instrument quoted above this is taken for points, unless its pip is said
MAX_PRICE_PIPS = 5e6  # and a price of so many pips even then
QUARTER_S = 900  # clocks change at multiples of this
NAIVE_EPOCH, EPOCH_UTC = datetime(1970, 1, 1), datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
MAX_STAMP_NS = 7_258_118_400 * SECOND_NS  # the year 2200
PRICES = (*OHLC, "ask_open", "ask_close")
NUMERIC_ROLES = (*PRICES, "volume", "spread")
BOOLEANS = {"true": 1.0, "false": 0.0}
UNIX_UNIT_NS = {
    9: SECOND_NS,
    10: SECOND_NS,
    12: 10**6,
    13: 10**6,
    15: 1000,
    16: 1000,
    18: 1,
    19: 1,
}  # ns, by the digits of a stamp
DATE_SEPARATORS = frozenset("./")  # in dates, where ISO 8601 has dashes
MONTH_NAMES = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
UNAMBIGUOUS_DATES = (  # ways to write a date that cannot be mistaken
    r"(?P<y>\d{4})([-./])(?P<m>\d\d?)\2(?P<d>\d\d?)",
    r"(?P<y>\d{4})(?P<m>\d\d)(?P<d>\d\d)",
    r"(?P<m>[a-z]{3})[a-z]* (?P<d>\d\d?),? (?P<y>\d{4})",
    r"(?P<d>\d\d?)[- ](?P<m>[a-z]{3})[a-z]*[- ](?P<y>\d{4})",
)
DATE_PATTERNS = {  # by kind of stamp
    "iso": UNAMBIGUOUS_DATES,
    "wall": UNAMBIGUOUS_DATES,
    "dmy": (r"(?P<d>\d\d?)([-./])(?P<m>\d\d?)\2(?P<y>\d{4})",),
    "mdy": (r"(?P<m>\d\d?)([-./])(?P<d>\d\d?)\2(?P<y>\d{4})",),
}
TIME_PATTERN = (  # what may follow a date: the time, with colons or without, and a zone
    r"(?:[t ,]*(?=\d\d?:|\d{4}(?!\d)|\d{6}(?!\d))(?P<H>\d\d?)(?P<c>:?)(?P<M>\d\d)"
    r"(?:(?P=c)(?P<S>\d\d)(?:[.,: ](?P<f>\d{1,9}))?)?(?: ?(?P<p>[ap])m)?"
    r" ?(?:(?P<z>z|utc|gmt|(?:utc|gmt)?[+-]\d\d(?::?\d\d)?)|(?P<n>[a-z]+(?:/[a-z_]+)*))?)?"
)
STAMP_PATTERNS = {
    kind: [re.compile(date + TIME_PATTERN, re.I | re.A) for date in ways] for kind, ways in DATE_PATTERNS.items()
}


class ParseRules(NamedTuple):
    """How the rows of one file become bars."""

    side: str
    timezone: str
    label: str
    spread_px: float  # where the file has none, or the user wants another
    instrument: Instrument
    price_scale: float  # price of a unit of the file
    interval_ns: int
    spread_unit_px: float  # price of a unit of the spread column that counts; 0 without one
    format: str
    fixed_options: tuple[str, ...]  # of timezone, side and label: what the file settles by itself
    is_spread_unit_assumed: bool  # the spread is the file's, and the user has not said its unit


def resolve_rules(
    layout: FileLayout, options: ReadOptions, name: str, price: float, interval_ns: int
) -> tuple[ParseRules, list[str]]:
    """What holds for a file whose prices are about `price`, and notes on what was decided."""
    fmt = layout.format
    side, own, notes = resolve_side(layout, options, name)
    if fmt.label not in ("open", "close"):
        raise DataError(f"{name}: --label {fmt.label}: open or close")
    parse_clock(fmt.timezone)
    scale = 1.0 if options.point is None else options.point
    instrument, said = resolve_instrument(layout, options, name, price * scale)
    pip, spread_pips = instrument.pip, instrument.spread_pips
    if not all(0 < size < np.inf for size in (pip, scale)) or not 0 <= spread_pips < np.inf:
        raise DataError(
            f"{name}: --pip {pip:g}, --point {scale:g}, --spread {spread_pips:g}: neither may be negative, "
            "nor a size zero"
        )
    if options.spread_unit and not layout.spread_unit:
        raise DataError(f"{name}: --spread-unit {options.spread_unit}: the file has no column of spreads")
    in_file = bool(layout.spread_unit or side == "both")
    if in_file and options.spread_pips is not None:
        said.append(f"--spread {spread_pips:g} instead of the spread that the file has")
        side, in_file = "bid" if side == "both" else side, False
    unit_px = spread_unit_price(layout, options, name, instrument) if in_file and layout.spread_unit else 0.0
    unused = [column for column, role in zip(layout.column_names, layout.columns, strict=False) if column and not role]
    notes += [*said, *[fmt.note] * (options.timezone is None and bool(fmt.note))]
    notes += [f"columns not used: {', '.join(unused[:8])}{', ...' * (len(unused) > 8)}"] * bool(unused)
    read = side, fmt.timezone, fmt.label, spread_pips * pip, instrument, scale, interval_ns, unit_px
    rules = ParseRules(*read, fmt.name, own, is_spread_unit_assumed=in_file and options.spread_unit is None)
    if found := reading_conflicts(rules, options.model_defaults):
        raise DataError(f"{name}: {'; '.join(found)}")
    return rules, notes


def resolve_side(layout: FileLayout, options: ReadOptions, name: str) -> tuple[str, tuple[str, ...], list[str]]:
    """The side of the prices, what the file settles by itself and the user does not, and notes."""
    side, own = options.side, [what for what in layout.format.fixed_options if getattr(options, what) is None]
    if "ask_open" in layout.columns:
        if side not in (None, "bid", "both"):
            raise DataError(f"{name}: --side {side}: the file has bid and ask")
        return "both", tuple(what for what in own if what != "side"), []
    if side is not None:
        if side not in SPREAD_BELOW_PRICE:
            raise DataError(f"{name}: --side {side}: the file has one side, say which: {', '.join(SPREAD_BELOW_PRICE)}")
        return side, tuple(own), []
    if found := re.search(r"(?<![a-z])(ask|bid)(?![a-z])", file_name(name).lower()):
        return found[1], (*own, "side"), [f"side {found[1]}: from the file name (--side)"]
    how = "as in training" if options.model_defaults.get("side") else "assumed"
    note = f"side {layout.format.side}: {how} (--side)"
    return layout.format.side, tuple(own), [] if "side" in own else [note]


def reading_conflicts(rules: ParseRules, remembered: Mapping[str, Any]) -> list[str]:
    """Where what a file settles by itself is not what a model `remembered` from its training; both readings."""
    words = dict(zip(FORMAT_OPTIONS, ("clock is", "side is", "stamps mark the"), strict=True))
    return [
        f"the file's {words[what]} {getattr(rules, what)} ({rules.format}), the model was trained on "
        f"{remembered[what]}: --{what} {getattr(rules, what)} or --{what} {remembered[what]} says which holds"
        for what in FORMAT_OPTIONS
        if what in rules.fixed_options and remembered.get(what) not in (None, "both", getattr(rules, what))
    ]


def resolve_instrument(
    layout: FileLayout, options: ReadOptions, name: str, price: float
) -> tuple[Instrument, list[str]]:
    """What a file called `name` with prices of about `price` is of, and notes; the pip and spread given go with it.

    The user says it, or the column of symbols, or the name of the file.
    """
    column, file = "the column of symbols", "the file name"
    said = {"--symbol": options.symbol or "", column: layout.symbol, file: file_name(name)}
    found = {who: known for who, text in said.items() if (known := find_instrument(text))}
    who = "--symbol" if options.symbol else next(iter(found), column)
    instrument = found.get(who) or guess_instrument(said[who] or "-", price, layout.decimals)
    told = {other: found[other].symbol if other in found else said[other] for other in (column, file)}
    notes = [
        f"symbol {instrument.symbol}: {who}; {other} says {symbol}"
        for other, symbol in told.items()
        if symbol not in ("", instrument.symbol) and (other == column or other in found)
    ]
    for what in ("pip", "spread_pips"):
        typed = getattr(options, what)
        given = options.model_defaults.get(what) if typed is None else typed
        if given is not None:
            instrument = instrument._replace(**{what: given})
    pip_known = who in found or options.pip is not None or "pip" in options.model_defaults
    likely = found.get(who, instrument).pip
    if options.point is None and price > (MAX_PRICE_PIPS * likely if pip_known else MAX_UNSCALED_PRICE):
        raise DataError(
            f"{name}: prices of about {price:g} look like points: --point 0.001 (for example) turns them into "
            "prices; if they are prices, say --pip"
        )
    fault = pip_fault(options.pip, said[who], price, layout.decimals) if options.pip is not None else ""
    if fault:
        raise DataError(f"{name}: --pip {options.pip:g}: {fault}")
    usual = instrument.spread_pips * instrument.pip
    if who in found and options.spread_pips is None and 0 < MAX_SPREAD_RATIO * price < usual:
        raise DataError(
            f"{name}: prices of about {price:g} and a usual spread of {usual:g}: is the symbol "
            f"{instrument.symbol}? --symbol says otherwise, or --spread"
        )
    return instrument, notes


def spread_unit_price(layout: FileLayout, options: ReadOptions, name: str, instrument: Instrument) -> float:
    """The price of a unit of the spread column; DataError if it cannot be the price and nobody has said what it is."""
    scale = 1.0 if options.point is None else options.point
    units = {"price": scale, "points": resolve_point(layout, options, instrument), "pips": instrument.pip}
    if layout.whole_spread:
        ways = [
            f"--spread-unit {unit} makes {format_decimal(layout.whole_spread * units[unit])} of {layout.whole_spread:g}"
            for unit in ("points", "pips", "price")
        ]
        raise DataError(
            f"{name}: spreads are whole numbers, such as {layout.whole_spread:g}, beside prices with {layout.decimals} "
            f"decimals: in which unit? {', '.join(ways)}"
        )
    return units[layout.spread_unit]


def resolve_point(layout: FileLayout, options: ReadOptions, instrument: Instrument) -> float:
    """The price of the last digit: what the file shows, unless that may be less than brokers quote."""
    if options.point is not None:
        return options.point
    shown = float(f"1e-{layout.decimals}")
    told = layout.decimals <= MAX_DECIMALS and (layout.fixed_decimals or shown < instrument.point)
    return shown if told else instrument.point


def check_spread(spread_px: float, range_px: float, rules: ParseRules, name: str, max_ratio: float = 1.0) -> None:
    """Refuse a mean spread of a file that is no cost of its bars, whose mean range is `range_px`; the user may insist.

    It is zero throughout, or more than `max_ratio` times as wide as the bars are high.  Bars that do not move tell nothing.
    """
    if not rules.is_spread_unit_assumed:
        return
    pips, usual = spread_px / rules.instrument.pip, rules.instrument.spread_pips
    if spread_px <= 0:
        many = "zero throughout" if spread_px == 0 else f"{format_decimal(spread_px)} in the mean"
        raise DataError(f"{name}: the spread is {many}: --spread {usual:g}, or --spread 0 if it is meant")
    if rules.spread_unit_px and 0 < max_ratio * range_px < spread_px:
        raise DataError(
            f"{name}: a mean spread of {format_decimal(spread_px)} = {pips:.3g} pips is wider than the mean bar, "
            f"{format_decimal(range_px)}: in which unit is it? --spread-unit pips, --spread-unit points, or --spread-unit "
            f"price if it is meant; --spread {usual:g} (pips) takes its place"
        )


def format_decimal(value: float) -> str:
    """A number of five digits without an exponent."""
    return np.format_float_positional(value, precision=5, fractional=False, trim="-")


def spread_text(spread_px: float, range_px: float, rules: ParseRules, origin: str) -> str:
    """A mean spread as an amount, in pips, and as a share of the mean bar range."""
    share = f", {spread_px / range_px:.0%} of the mean bar range".replace("%", " %") if range_px > 0 else ""
    return f"{format_decimal(spread_px)} = {spread_px / rules.instrument.pip:.3g} pips{share} ({origin})"


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
def wall_offset_ns(clock: str, quarter: int) -> int:
    """Nanoseconds by which `clock` is ahead of UTC in a quarter of an hour by its own hands.

    An hour that comes twice is taken as the first: if it holds bars, they come out as duplicates.
    """
    zone, shift_s = parse_clock(clock)
    wall = NAIVE_EPOCH + timedelta(seconds=quarter * QUARTER_S - shift_s)
    offset = wall.replace(tzinfo=zone).utcoffset() or timedelta()
    return (offset // MICROSECOND) * 1000 + shift_s * SECOND_NS


def parse_stamp(kind: str, text: str, day: str) -> tuple[int, bool]:
    """Nanoseconds since the epoch of a stamp, by its own clock or (True) UTC; ValueError if it is none."""
    is_utc, zone = False, ""
    if kind == "midnight":
        stamp_ns = int(text) * 1_000_000 if text.isdigit() else -1
        if not 0 <= stamp_ns < DAY:
            raise ValueError(text)
        stamp_ns += (datetime.fromisoformat(day) - NAIVE_EPOCH) // MICROSECOND * 1000
    elif text[4:9].isdigit() and (unix_ns := parse_unix_time(kind, text)) is not None:
        stamp_ns, is_utc = unix_ns, True
    else:
        try:
            marked = text[4:5] in DATE_SEPARATORS or text[2:3] in DATE_SEPARATORS
            stamp = datetime.fromisoformat(to_iso_fast(kind, text) if marked else text)
        except ValueError:
            written, zone = to_iso(kind, text)
            stamp = datetime.fromisoformat(written)
        is_utc = stamp.tzinfo is not None
        stamp_ns = (stamp - (EPOCH_UTC if is_utc else NAIVE_EPOCH)) // MICROSECOND * 1000
    if zone:
        stamp_ns, is_utc = stamp_to_utc(stamp_ns, False, zone), True
    if not 0 <= stamp_ns < MAX_STAMP_NS:
        raise ValueError(text)
    return stamp_ns, is_utc and kind != "wall"


def parse_unix_time(kind: str, text: str) -> int | None:
    """Nanoseconds of a UNIX time in seconds, milli-, micro- or nanoseconds; None if `text` is none."""
    whole, _, part = text.partition(".")
    unit = UNIX_UNIT_NS.get(len(whole))
    if unit is None or kind not in ("iso", "wall") or not (whole + part).isdigit():
        return None
    if len(whole) == 12 and re.fullmatch(COMPACT_DATETIME, whole):
        return None
    return int(whole) * unit + (int(part) * unit // 10 ** len(part) if part else 0)


def to_iso_fast(kind: str, text: str) -> str:
    """A stamp of the usual width in the order of ISO 8601: most are, and the rest goes through `to_iso`."""
    if kind in ("iso", "wall"):
        return text.replace(text[4], "-", 2)
    month, day = (3, 0) if kind == "dmy" else (0, 3)
    return f"{text[6:10]}-{text[month : month + 2]}-{text[day : day + 2]}{text[10:]}"


def to_iso(kind: str, text: str) -> tuple[str, str]:
    """A stamp as ISO 8601 has it, and the zone whose name stands behind it; ValueError if it is none."""
    if turned := re.fullmatch(r"(\d\d?:\S+(?: [ap]m)?) (\S+)", text := text.strip(), re.I):  # the time first
        text = f"{turned[2]} {turned[1]}"
    found = next((match for way in STAMP_PATTERNS[kind] if (match := way.fullmatch(text))), None)
    if found is None:
        raise ValueError(text)
    part = {key: value or "" for key, value in found.groupdict().items()}
    month = part["m"] if part["m"].isdigit() else str(MONTH_NAMES.index(part["m"].lower()) + 1)
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
    if part["n"] and not zone and part["n"].lower() not in TIMEZONES:
        raise ValueError(text)
    return f"{date}T{hour:02}:{part['M']}:{part['S'] or '00'}.{part['f'] or '0'}{offset}", zone


def stamp_to_utc(stamp_ns: int, is_utc: bool, clock: str) -> int:
    """A stamp by `clock` in UTC."""
    return stamp_ns if is_utc else stamp_ns - wall_offset_ns(clock, stamp_ns // (QUARTER_S * SECOND_NS))


def to_utc(stamp_ns: IntArray, is_utc: NDArray[np.bool_], clock: str) -> IntArray:
    """Stamps [T] by `clock` in UTC."""
    quarter, where = np.unique(stamp_ns // (QUARTER_S * SECOND_NS), return_inverse=True)
    offsets = np.array([wall_offset_ns(clock, int(q)) for q in quarter], np.int64)
    return np.where(is_utc, stamp_ns, stamp_ns - offsets[where])


def parse_line(text: str, layout: FileLayout) -> tuple[int, bool, dict[str, float]] | None:
    """Stamp, whether it is UTC, and numbers by role of one line; None if it is not a bar."""
    try:
        return parse_fields(text, layout)
    except DataError:
        raise
    except (ValueError, OverflowError):
        return None


def explain_line(text: str, layout: FileLayout) -> str:
    """Why a line is not a bar: the cell and the rule that failed."""
    try:
        parse_fields(text, layout)
    except (ValueError, OverflowError) as error:
        return str(error)
    return "a bar"


def parse_fields(text: str, layout: FileLayout) -> tuple[int, bool, dict[str, float]]:
    """`parse_line`, with a ValueError that says why the line is not a bar."""
    fields = split_fields(text, layout.separator)
    if len(fields) != len(layout.columns):
        raise ValueError(f"{len(fields)} fields where {len(layout.columns)} are wanted")
    numbers, stamp = {}, []
    for role, value, column in zip(layout.columns, fields, layout.column_names, strict=False):
        if role in NUMERIC_ROLES:
            numbers[role] = parse_number(value, layout.has_thousands, role, column)
        elif role == "complete":
            if value.lower() not in BOOLEANS:
                raise ValueError(f"{value[:40]!r} in column {column} is neither true nor false")
            numbers[role] = BOOLEANS[value.lower()]
        elif role == "time":
            stamp.append(value)
        elif role == "symbol" and value.strip() != layout.symbol:
            raise DataError(two_symbols_message(layout, value.strip()))
    try:
        return *parse_stamp(layout.format.stamp_style, " ".join(stamp), layout.file_date), numbers
    except (ValueError, OverflowError) as error:
        at, why = layout.column_names[layout.columns.index("time")], "is no time, or not written as the first"
        why = str(error) if isinstance(error, DataError) else why  # of its zone
        raise ValueError(f"{' '.join(stamp)[:40]!r} in column {at} {why}") from None


def parse_number(text: str, thousands: bool, role: str, column: str) -> float:
    """The number in a field; ValueError says what it is instead."""
    value = text.strip(whitespace)
    if thousands and THOUSANDS_NUMBER.fullmatch(value):
        value = value.replace(",", "")
    if not DECIMAL_NUMBER.fullmatch(value):
        kind = role if role in ("volume", "spread") else "price"
        raise ValueError(f"the {kind} {text[:40]!r} in column {column} is no number")
    return float(value)


def parse_finite(text: str) -> float:
    """A number that is one."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text}")
    return number


def two_symbols_message(layout: FileLayout, other: str) -> str:
    """What to do with a file of more than one symbol."""
    kept = f"i < {layout.header_lines} or '{other}' in t"
    code = f"import sys; print(*[t for i, t in enumerate(open(sys.argv[1])) if {kept}], sep='', end='')"
    return (
        f"{layout.path}: {layout.symbol} and {other}: a file has the bars of one symbol; to split it: "
        f"{shell_join('python', '-c', code, layout.path)} > {re.sub('[^A-Za-z0-9]', '', other)}.csv"
    )


def to_quotes(columns: Any, rules: ParseRules) -> dict[str, Any]:
    """The columns of `Bars` without the time, from those of a file: bid, ask and volume; alike."""
    spread = columns["spread"] * rules.spread_unit_px if rules.spread_unit_px else rules.spread_px
    below = SPREAD_BELOW_PRICE.get(rules.side, 0.0) * spread
    price = {name: columns[name] * rules.price_scale for name in PRICES if name in columns}
    quote = {name: price[name] - below for name in OHLC}
    for name in ("open", "close"):
        quote[f"ask_{name}"] = price[f"ask_{name}"] if rules.side == "both" else price[name] + (spread - below)
    quote["volume"] = columns["volume"] if "volume" in columns else columns["open"] * 0.0
    return quote


def format_utc(time_ns: int) -> str:
    """A time in words of ISO 8601, UTC, whole seconds."""
    return f"{datetime.fromtimestamp(int(time_ns) // SECOND_NS, UTC).isoformat()[:19]}Z"
