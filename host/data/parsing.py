"""How a line of a file becomes a bar: the rules of the file, the stamp, and the prices.

`csv_reader.py` reads files in bulk and `feed.py` line by line with the functions here.  A function marked "number or
array" takes either, so that both readers compute the same bits.
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
    OHLC,
    THOUSANDS_NUMBER,
    TIMEZONES,
    DataError,
    ReadOptions,
)
from host.data.instruments import Instrument, find_instrument, guess_instrument, pip_fault
from host.data.layout import MAX_DECIMALS, FileLayout, file_name, split_fields
from kernels.market.bars import SECOND_NS
from kernels.market.calendar import DAY_NS

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Columns = dict[str, NDArray[np.float64]]  # [T] by role, or by the names of `Bars`
# The distance from the price of a file down to the bid, as a share of the spread.
SPREAD_BELOW_PRICE = {"bid": 0.0, "mid": 0.5, "ask": 1.0}
MAX_SPREAD_RATIO = 0.05  # of the price; a wider spread is in other units
MAX_UNSCALED_PRICE = 10_000.0  # a higher price of an unknown instrument counts points, unless its pip is given
MAX_PRICE_PIPS = 5e6  # a price of more pips counts points in any case
QUARTER_S = 900  # clocks change at multiples of this
QUARTERS_PER_DAY = 96
NAIVE_EPOCH, EPOCH_UTC = datetime(1970, 1, 1), datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
MAX_STAMP_NS = 7_258_118_400 * SECOND_NS  # the year 2200
PRICES = (*OHLC, "ask_open", "ask_close")
NUMERIC_ROLES = (*PRICES, "volume", "spread")
BOOLEANS = {"true": 1.0, "false": 0.0}
# By the number of digits of a stamp.
UNIX_UNIT_NS = {9: SECOND_NS, 10: SECOND_NS, 12: 10**6, 13: 10**6, 15: 1000, 16: 1000, 18: 1, 19: 1}
DATE_SEPARATORS = frozenset("./")  # in dates, where ISO 8601 has dashes
MONTH_NAMES = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
UNAMBIGUOUS_DATES = (  # dates whose parts can be told apart
    r"(?P<y>\d{4})([-./])(?P<m>\d\d?)\2(?P<d>\d\d?)",
    r"(?P<y>\d{4})(?P<m>\d\d)(?P<d>\d\d)",
    r"(?P<m>[a-z]{3})[a-z]* (?P<d>\d\d?),? (?P<y>\d{4})",
    r"(?P<d>\d\d?)[- ](?P<m>[a-z]{3})[a-z]*[- ](?P<y>\d{4})",
)
DATE_PATTERNS = {  # by stamp style
    **dict.fromkeys(("iso", "wall"), UNAMBIGUOUS_DATES),
    "dmy": (r"(?P<d>\d\d?)([-./])(?P<m>\d\d?)\2(?P<y>\d{4})",),
    "mdy": (r"(?P<m>\d\d?)([-./])(?P<d>\d\d?)\2(?P<y>\d{4})",),
}
TIME_PATTERN = (  # what may follow a date: the time, with colons or without, and a zone
    r"(?:[t ,]*(?=\d\d?:|\d{4}(?!\d)|\d{6}(?!\d))(?P<H>\d\d?)(?P<c>:?)(?P<M>\d\d)"
    r"(?:(?P=c)(?P<S>\d\d)(?:[.,: ](?P<f>\d{1,9}))?)?(?: ?(?P<p>[ap])m)?"
    r" ?(?:(?P<z>z|utc|gmt|(?:utc|gmt)?[+-]\d\d(?::?\d\d)?)|(?P<n>[a-z]+(?:/[a-z_]+)*))?)?"
)
FLAGS = re.I | re.A
STAMP_PATTERNS = {style: [re.compile(d + TIME_PATTERN, FLAGS) for d in dates] for style, dates in DATE_PATTERNS.items()}


class ParseRules(NamedTuple):
    """How the rows of one file become bars."""

    side: str
    timezone: str
    label: str
    spread_px: float  # where the file has no spread, or the user gives another
    instrument: Instrument
    price_scale: float  # price of a unit of the file
    interval_ns: int
    spread_unit_px: float  # price of a unit of the spread column; 0 if no such column is used
    format: str
    fixed_options: tuple[str, ...]  # which of timezone, side and label the file itself fixes
    is_spread_unit_assumed: bool  # the spread comes from the file, and the user has not given its unit


def resolve_rules(
    layout: FileLayout, options: ReadOptions, price: float, interval_ns: int
) -> tuple[ParseRules, list[str]]:
    """The rules of a file whose prices are about `price`, and notes on each decision; DataError on a contradiction."""
    fmt = layout.format
    side, fixed, notes = resolve_side(layout, options)
    if fmt.label not in ("open", "close"):
        raise DataError(f"{layout.path}: --label {fmt.label}: open or close")
    parse_clock(fmt.timezone)
    scale = 1.0 if options.point is None else options.point
    instrument, instrument_notes = resolve_instrument(layout, options, price * scale)
    pip, spread_pips = instrument.pip, instrument.spread_pips
    if not all(0 < size < np.inf for size in (pip, scale)) or not 0 <= spread_pips < np.inf:
        flags = f"--pip {pip:g}, --point {scale:g}, --spread {spread_pips:g}"
        raise DataError(f"{layout.path}: {flags}: neither may be negative, nor a size zero")
    if options.spread_unit and not layout.spread_unit:
        raise DataError(f"{layout.path}: --spread-unit {options.spread_unit}: the file has no column of spreads")
    in_file = bool(layout.spread_unit or side == "both")
    if in_file and options.spread_pips is not None:
        instrument_notes.append(f"--spread {spread_pips:g} instead of the spread that the file has")
        side, in_file = "bid" if side == "both" else side, False
    unit_px = spread_unit_price(layout, options, instrument) if in_file and layout.spread_unit else 0.0
    unused = [column for column, role in zip(layout.column_names, layout.columns, strict=False) if column and not role]
    notes += [*instrument_notes, *[fmt.note] * (options.timezone is None and bool(fmt.note))]
    notes += [f"columns not used: {', '.join(unused[:8])}{', ...' * (len(unused) > 8)}"] * bool(unused)
    read = side, fmt.timezone, fmt.label, spread_pips * pip, instrument, scale, interval_ns, unit_px
    rules = ParseRules(*read, fmt.name, fixed, is_spread_unit_assumed=in_file and options.spread_unit is None)
    if conflicts := reading_conflicts(rules, options.model_defaults):
        raise DataError(f"{layout.path}: {'; '.join(conflicts)}")
    return rules, notes


def resolve_side(layout: FileLayout, options: ReadOptions) -> tuple[str, tuple[str, ...], list[str]]:
    """The side of the prices, the options that the file fixes and the user does not give, and notes."""
    side, fixed = options.side, [what for what in layout.format.fixed_options if getattr(options, what) is None]
    if "ask_open" in layout.columns:
        if side not in (None, "bid", "both"):
            raise DataError(f"{layout.path}: --side {side}: the file has bid and ask")
        return "both", tuple(what for what in fixed if what != "side"), []
    if side is not None:
        if side not in SPREAD_BELOW_PRICE:
            raise DataError(
                f"{layout.path}: --side {side}: the file has one side, say which: {', '.join(SPREAD_BELOW_PRICE)}"
            )
        return side, tuple(fixed), []
    if name_match := re.search(r"(?<![a-z])(ask|bid)(?![a-z])", file_name(layout.path).lower()):
        return name_match[1], (*fixed, "side"), [f"side {name_match[1]}: from the file name (--side)"]
    origin = "as in training" if options.model_defaults.get("side") else "assumed"
    note = f"side {layout.format.side}: {origin} (--side)"
    return layout.format.side, tuple(fixed), [] if "side" in fixed else [note]


def reading_conflicts(rules: ParseRules, remembered: Mapping[str, Any]) -> list[str]:
    """One sentence for each option that a file fixes and that differs from the `remembered` one of a model."""
    words = dict(zip(FORMAT_OPTIONS, ("clock is", "side is", "stamps mark the"), strict=True))
    return [
        f"the file's {words[what]} {getattr(rules, what)} ({rules.format}), the model was trained on "
        f"{remembered[what]}: --{what} {getattr(rules, what)} or --{what} {remembered[what]} says which holds"
        for what in FORMAT_OPTIONS
        if what in rules.fixed_options and remembered.get(what) not in (None, "both", getattr(rules, what))
    ]


def resolve_instrument(layout: FileLayout, options: ReadOptions, price: float) -> tuple[Instrument, list[str]]:
    """The instrument of a file with prices of about `price`, with the pip and spread given, and notes.

    Its symbol comes from the user, or the column of symbols, or the name of the file, in this order.
    """
    column, file = "the column of symbols", "the file name"
    texts = {"--symbol": options.symbol or "", column: layout.symbol, file: file_name(layout.path)}
    instruments = {chosen: instrument for chosen, text in texts.items() if (instrument := find_instrument(text))}
    chosen = "--symbol" if options.symbol else next(iter(instruments), column)
    instrument = instruments.get(chosen) or guess_instrument(texts[chosen] or "-", price, layout.decimals)
    named = {other: instruments[other].symbol if other in instruments else texts[other] for other in (column, file)}
    notes = [
        f"symbol {instrument.symbol}: {chosen}; {other} says {symbol}"
        for other, symbol in named.items()
        if symbol not in ("", instrument.symbol) and (other == column or other in instruments)
    ]
    for what in ("pip", "spread_pips"):
        explicit = getattr(options, what)
        value = options.model_defaults.get(what) if explicit is None else explicit
        if value is not None:
            instrument = instrument._replace(**{what: value})
    pip_known = chosen in instruments or options.pip is not None or "pip" in options.model_defaults
    usual_pip = instruments.get(chosen, instrument).pip
    if options.point is None and price > (MAX_PRICE_PIPS * usual_pip if pip_known else MAX_UNSCALED_PRICE):
        raise DataError(
            f"{layout.path}: prices of about {price:g} look like points: --point 0.001 (for example) turns them into "
            "prices; if they are prices, say --pip"
        )
    if options.pip is not None and (fault := pip_fault(options.pip, texts[chosen], price, layout.decimals)):
        raise DataError(f"{layout.path}: --pip {options.pip:g}: {fault}")
    usual_px = instrument.spread_pips * instrument.pip
    if chosen in instruments and options.spread_pips is None and 0 < MAX_SPREAD_RATIO * price < usual_px:
        raise DataError(
            f"{layout.path}: prices of about {price:g} and a usual spread of {usual_px:g}: is the symbol "
            f"{instrument.symbol}? --symbol says otherwise, or --spread"
        )
    return instrument, notes


def spread_unit_price(layout: FileLayout, options: ReadOptions, instrument: Instrument) -> float:
    """The price of a unit of the spread column; DataError if spreads cannot be prices and no unit is given.

    A point is the last digit, as the prices of the file show it or, where they may be rounded, as brokers quote it.
    """
    point = float(f"1e-{layout.decimals}")
    is_rounded = layout.decimals > MAX_DECIMALS or not (layout.fixed_decimals or point < instrument.point)
    units = {"price": 1.0, "points": instrument.point if is_rounded else point, "pips": instrument.pip}
    if options.point is not None:
        units.update(price=options.point, points=options.point)
    if layout.whole_spread:
        spread = layout.whole_spread
        readings = [
            f"--spread-unit {unit} makes {format_decimal(spread * units[unit])} of {spread:g}"
            for unit in ("points", "pips", "price")
        ]
        raise DataError(
            f"{layout.path}: spreads are whole numbers, such as {spread:g}, beside prices with {layout.decimals} "
            f"decimals: in which unit? {', '.join(readings)}"
        )
    return units[layout.spread_unit]


def check_spread(spread_px: float, range_px: float, rules: ParseRules, name: str, max_ratio: float = 1.0) -> None:
    """DataError if the mean spread of a file is not positive, or wider than `max_ratio` mean ranges of its bars.

    A user who gives the spread or its unit is believed.  Bars with a mean range of zero are not judged.
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
            f"{format_decimal(range_px)}: in which unit is it? --spread-unit pips, --spread-unit points, or "
            f"--spread-unit price if it is meant; --spread {usual:g} (pips) takes its place"
        )


def format_decimal(value: float) -> str:
    """A number rounded to five digits, without an exponent."""
    return np.format_float_positional(value, precision=5, fractional=False, trim="-")


def spread_text(spread_px: float, range_px: float, pip: float, origin: str) -> str:
    """A mean spread as an amount, in pips, and as a share of the mean bar range."""
    share = f", {spread_px / range_px:.0%} of the mean bar range".replace("%", " %") if range_px > 0 else ""
    return f"{format_decimal(spread_px)} = {spread_px / pip:.3g} pips{share} ({origin})"


@lru_cache
def parse_clock(name: str) -> tuple[tzinfo, int]:
    """The zone and the shift in seconds of a clock: an IANA name, perhaps with hours as in Europe/Athens-7h."""
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
    """Nanoseconds by which `clock` is ahead of UTC, in a quarter of an hour since 1970 that `clock` itself shows.

    When clocks go back, an hour comes twice and counts as the first: bars of the second become duplicates.
    """
    zone, shift_s = parse_clock(clock)
    wall = NAIVE_EPOCH + timedelta(seconds=quarter * QUARTER_S - shift_s)
    offset = wall.replace(tzinfo=zone).utcoffset() or timedelta()
    return (offset // MICROSECOND) * 1000 + shift_s * SECOND_NS


def parse_stamp(style: str, text: str, day: str) -> tuple[int, bool]:
    """Nanoseconds from the epoch to a stamp, and whether they are UTC or by the file's clock; ValueError if no stamp.

    `style` is that of `Format.stamp_style`; `day` is the date of a file whose stamps have none.
    """
    is_utc, zone = False, ""
    if style == "midnight":
        stamp_ns = int(text) * 1_000_000 if text.isdigit() else -1
        if not 0 <= stamp_ns < DAY_NS:
            raise ValueError(text)
        stamp_ns += (datetime.fromisoformat(day) - NAIVE_EPOCH) // MICROSECOND * 1000
    elif text[4:9].isdigit() and (unix_ns := parse_unix_time(style, text)) is not None:
        stamp_ns, is_utc = unix_ns, True
    else:
        try:
            marked = text[4:5] in DATE_SEPARATORS or text[2:3] in DATE_SEPARATORS
            stamp = datetime.fromisoformat(to_iso_fast(style, text) if marked else text)
        except ValueError:
            iso_text, zone = to_iso(style, text)
            stamp = datetime.fromisoformat(iso_text)
        is_utc = stamp.tzinfo is not None
        stamp_ns = (stamp - (EPOCH_UTC if is_utc else NAIVE_EPOCH)) // MICROSECOND * 1000
    if zone:
        stamp_ns, is_utc = stamp_to_utc(stamp_ns, False, zone), True
    if not 0 <= stamp_ns < MAX_STAMP_NS:
        raise ValueError(text)
    return stamp_ns, is_utc and style != "wall"


def parse_unix_time(style: str, text: str) -> int | None:
    """Nanoseconds of a UNIX time in seconds, milli-, micro- or nanoseconds; None if `text` is no UNIX time."""
    whole, _, fraction = text.partition(".")
    unit = UNIX_UNIT_NS.get(len(whole))
    if unit is None or style not in ("iso", "wall") or not (whole + fraction).isdigit():
        return None
    if len(whole) == 12 and re.fullmatch(COMPACT_DATETIME, whole):
        return None
    return int(whole) * unit + (int(fraction) * unit // 10 ** len(fraction) if fraction else 0)


def to_iso_fast(style: str, text: str) -> str:
    """A stamp with two-digit day and month in the order of ISO 8601; `to_iso` handles every other stamp."""
    if style in ("iso", "wall"):
        return text.replace(text[4], "-", 2)
    month, day = (3, 0) if style == "dmy" else (0, 3)
    return f"{text[6:10]}-{text[month : month + 2]}-{text[day : day + 2]}{text[10:]}"


def to_iso(style: str, text: str) -> tuple[str, str]:
    """A stamp in ISO 8601, and the IANA zone that follows it, if any; ValueError if `text` is no stamp."""
    if time_first := re.fullmatch(r"(\d\d?:\S+(?: [ap]m)?) (\S+)", text := text.strip(), re.I):
        text = f"{time_first[2]} {time_first[1]}"
    match = next((candidate for pattern in STAMP_PATTERNS[style] if (candidate := pattern.fullmatch(text))), None)
    if match is None:
        raise ValueError(text)
    parts = {key: value or "" for key, value in match.groupdict().items()}
    month = parts["m"] if parts["m"].isdigit() else str(MONTH_NAMES.index(parts["m"].lower()) + 1)
    date = f"{parts['y']}-{month:0>2}-{parts['d']:0>2}"
    if not parts["H"]:
        return date, ""
    hour = int(parts["H"])
    if parts["p"]:
        if not 1 <= hour <= 12:
            raise ValueError(text)
        hour = hour % 12 + 12 * (parts["p"].lower() == "p")
    offset = re.sub("utc|gmt|z", "", parts["z"].lower()) or ("+00:00" if parts["z"] else "")
    zone = parts["n"] if "/" in parts["n"] else ""
    if parts["n"] and not zone and parts["n"].lower() not in TIMEZONES:
        raise ValueError(text)
    return f"{date}T{hour:02}:{parts['M']}:{parts['S'] or '00'}.{parts['f'] or '0'}{offset}", zone


def stamp_to_utc(stamp_ns: int, is_utc: bool, clock: str) -> int:
    """A stamp by `clock`, unless it `is_utc` already, in UTC."""
    return stamp_ns if is_utc else stamp_ns - wall_offset_ns(clock, stamp_ns // (QUARTER_S * SECOND_NS))


def wall_offsets_ns(clock: str, quarter: IntArray) -> IntArray:
    """`wall_offset_ns` of each quarter [T]; a day that begins and ends with one offset has no other."""
    begin = np.flatnonzero(np.diff(quarter // QUARTERS_PER_DAY, prepend=-1))  # of each run of quarters of one day
    days, lengths = (quarter[begin] // QUARTERS_PER_DAY).tolist(), np.diff(begin, append=len(quarter))
    first, last = (
        np.array([wall_offset_ns(clock, day * QUARTERS_PER_DAY + k) for day in days], np.int64)
        for k in (0, QUARTERS_PER_DAY - 1)
    )
    offset = np.repeat(first, lengths)
    changed = np.flatnonzero(np.repeat(first != last, lengths))
    offset[changed] = [wall_offset_ns(clock, q) for q in quarter[changed].tolist()]
    return offset


def to_utc(stamp_ns: IntArray, is_utc: BoolArray, clock: str) -> IntArray:
    """Stamps [T] by `clock`, unless they are UTC already, in UTC."""
    return stamp_ns - np.where(is_utc, 0, wall_offsets_ns(clock, stamp_ns // (QUARTER_S * SECOND_NS)))


def parse_line(text: str, layout: FileLayout) -> tuple[int, bool, dict[str, float]] | None:
    """The stamp of a line, whether it is UTC, and its numbers by role; None if the line is not a bar."""
    try:
        return parse_fields(text, layout)
    except DataError:
        raise
    except (ValueError, OverflowError):
        return None


def explain_line(text: str, layout: FileLayout) -> str:
    """Why a line is not a bar: its field and the rule that the field breaks."""
    try:
        parse_fields(text, layout)
    except (ValueError, OverflowError) as error:
        return str(error)
    return "a bar"


def parse_fields(text: str, layout: FileLayout) -> tuple[int, bool, dict[str, float]]:
    """The result of `parse_line`; a ValueError names the reason why the line is not a bar."""
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
        column = layout.column_names[layout.columns.index("time")]
        # A DataError is about the name of a zone.
        reason = str(error) if isinstance(error, DataError) else "is no time, or not written as the first"
        raise ValueError(f"{' '.join(stamp)[:40]!r} in column {column} {reason}") from None


def parse_number(text: str, thousands: bool, role: str, column: str) -> float:
    """The number in a field; ValueError if it is no number."""
    value = text.strip(whitespace)
    if thousands and THOUSANDS_NUMBER.fullmatch(value):
        value = value.replace(",", "")
    if not DECIMAL_NUMBER.fullmatch(value):
        kind = role if role in ("volume", "spread") else "price"
        raise ValueError(f"the {kind} {text[:40]!r} in column {column} is no number")
    return float(value)


def parse_finite(text: str) -> float:
    """A finite number; ValueError for any other text."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text}")
    return number


def two_symbols_message(layout: FileLayout, other: str) -> str:
    """The message for a file with a second symbol, and the command that splits such a file."""
    kept = f"i < {layout.header_lines} or '{other}' in t"
    code = f"import sys; print(*[t for i, t in enumerate(open(sys.argv[1])) if {kept}], sep='', end='')"
    return (
        f"{layout.path}: {layout.symbol} and {other}: a file has the bars of one symbol; to split it: "
        f"{shell_join('python', '-c', code, layout.path)} > {re.sub('[^A-Za-z0-9]', '', other)}.csv"
    )


def to_quotes(columns: Any, rules: ParseRules) -> dict[str, Any]:
    """The columns of `Bars` without the time, from the columns of a file by role; number or array."""
    spread = columns["spread"] * rules.spread_unit_px if rules.spread_unit_px else rules.spread_px
    share, scale = SPREAD_BELOW_PRICE.get(rules.side, 0.0), rules.price_scale
    below = share * spread
    price = {name: columns[name] if scale == 1 else columns[name] * scale for name in PRICES if name in columns}
    quote = {name: price[name] - below if share else price[name] for name in OHLC}  # most files need no copy
    for name in ("open", "close"):
        quote[f"ask_{name}"] = price[f"ask_{name}"] if rules.side == "both" else price[name] + (spread - below)
    quote["volume"] = columns["volume"] if "volume" in columns else columns["open"] * 0.0
    return quote


def format_utc(time_ns: int) -> str:
    """A time in ISO 8601, UTC, whole seconds."""
    return f"{datetime.fromtimestamp(int(time_ns) // SECOND_NS, UTC).isoformat()[:19]}Z"


def parse_utc(text: str) -> int:
    """Epoch nanoseconds of a stamp in the format of `format_utc`.  Raises ValueError."""
    return round(datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()) * SECOND_NS
