"""The layout of a file: its format, separator, columns and units, detected from its first lines.

A header is read by the names of its columns, in any order.  A file without a header is read by the pattern of its
first bar.  `formats.py` has the table of formats.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from host.data.formats import (
    ANY_DATE,
    ANY_TIME,
    COMMA_NUMBER,
    COMPACT_DATETIME,
    DAY_OR_MONTH_FIRST,
    DECIMAL_NUMBER,
    FORMAT_OPTIONS,
    FORMAT_REMEDY,
    FORMATS,
    LOCAL_TIME_QUESTION,
    MANY_PAIRS_PATTERN,
    OHLC,
    THOUSANDS_NUMBER,
    TIME_OF_DAY,
    TIME_WITH_OFFSET,
    TIMEZONES,
    UNIX_TIME,
    UNSUPPORTED,
    DataError,
    Format,
    ReadOptions,
)
from host.data.instruments import find_instrument

MAX_HEADER = 6  # lines
SNIFF_LINES = 64  # lines that a layout is detected from, and the length of the bars of a feed
BAR_START = re.compile(r'"?(\d|[A-Z][a-z]{2} \d\d?, \d{4})', re.ASCII | re.IGNORECASE)
PRICE_NAMES = {  # names of price columns, the preferred ones first
    "open": ("open", "o", "openprice", "otwarcie", "始値"),
    "high": ("high", "h", "highprice", "najwyzszy", "高値"),
    "low": ("low", "l", "lowprice", "najnizszy", "安値"),
    "close": ("close", "c", "closeprice", "zamkniecie", "終値", "price", "last", "closelast"),
}
TIME_COLUMN_NAME = re.compile(
    r"(?:gmt|utc|local|open|close|start|begin|end|bar|candle|unix|server|broker)?(?:date|time|datetime|timestamp|dtyyyymmdd)"
    r"(?:gmt|utc|local|eet|cet|est|ms|us|ns|s)?|unix|epoch|utc|t|dt|data|czas|日付|日時"
)
CLOSE_TIME_NAME = re.compile("close|end", re.IGNORECASE)  # begins the name of a time column whose stamps mark the close
VOLUME_NAMES = ("volume", "tickvolume", "tickvol", "tickqty", "wolumen", "出来高", "vol", "v", "realvolume")
SPREAD_NAME = re.compile(r"spread(?:in)?(price|pips|points|)")
SYMBOL_NAMES = ("symbol", "ticker", "pair", "instrument")
SPREAD_UNITS = ("price", "pips", "points")
OTHER_DATE_ORDER = {"dmy": "mdy", "mdy": "dmy"}
MIN_BARS_FOR_DECIMALS = 5  # bars that show whether zeros at the end of prices are dropped
MAX_DECIMALS = 6  # of a price; more are the noise of floats


class FileLayout(NamedTuple):
    """The format of one file, with what its first lines and its name show."""

    format: Format  # with the clock, label, side and stamps of this file
    separator: str
    columns: tuple[str, ...]  # roles: time, a price, volume, spread, complete, symbol, or none
    header_lines: int  # lines before the bars
    column_names: tuple[str, ...]  # of the columns
    file_date: str  # date in the name of the file, for stamps without a date
    spread_unit: str  # of the spread column: price, pips or points; empty without one
    decimals: int  # largest number of decimals of a price, up to MAX_DECIMALS if one has so few
    fixed_decimals: bool  # every price has the same number of decimals: no zeros were dropped
    whole_spread: float  # the largest spread, if all are whole numbers and prices are not; otherwise zero
    symbol: str  # in the column of symbols
    path: str  # of the file, for messages
    has_thousands: bool  # a comma in a number stands between thousands
    is_final: bool  # more lines would change no field


class FileHead(NamedTuple):
    """The first lines of a file, split into fields."""

    separator: str
    header_lines: int  # lines before the bars
    column_names: list[str]  # of the columns; empty without a header
    rows: list[list[str]]  # fields of the bars, from line `header_lines` + 1 on
    normalised: str  # header and first bar: lower case, no quotes, commas between the fields and nowhere else


def first_lines(lines: Iterable[str]) -> list[str]:
    """The first SNIFF_LINES lines, or all if there are fewer."""
    return list(islice(lines, SNIFF_LINES))


def is_complete_head(head: list[str]) -> bool:
    """Whether these first lines are enough to detect a layout."""
    return len(head) > MAX_HEADER or bool(head and is_bar_line(head[-1]))


def is_bar_line(line: str) -> bool:
    """Whether a line is a bar and no header: it begins with a digit or a date, or has two numbers."""
    cells = re.split(r"[\t;,|]", line)
    return bool(BAR_START.match(line)) or sum(is_number(cell.strip(' "')) for cell in cells) > 1


def is_number(cell: str) -> bool:
    """Whether a field is a number, perhaps with commas between its thousands."""
    return bool(DECIMAL_NUMBER.fullmatch(cell.strip()) or THOUSANDS_NUMBER.fullmatch(cell.strip()))


def split_fields(text: str, separator: str) -> list[str]:
    """The fields of a line; a separator between quotes separates nothing."""
    if '"' not in text:
        return text.split(separator)
    try:
        return next(csv.reader([text], delimiter=separator, skipinitialspace=True), [])
    except csv.Error:
        return []


def parse_head(head: list[str], name: str) -> FileHead:
    """Header and bars of the first lines; DataError if there is no bar."""
    header = next((i for i, line in enumerate(head) if is_bar_line(line)), len(head) - 1)
    unquoted = [re.sub('"[^"]*"', "", line) for line in head[: header + 1] if line.strip()]
    separator = max("\t;|,", key=next((s for s in unquoted[-2:] if re.search(r"[\t;|,]", s)), "").count)
    rows = [split_fields(line, separator) for line in head[header:]]
    fields = [split_fields(decode_line(line), separator) for line in head[: header + 1] if line.strip()]
    lines = [",".join(cell.strip().replace(",", "_") for cell in line).lower() for line in fields]
    normalised = "\n".join(lines)
    if not rows or re.fullmatch(MANY_PAIRS_PATTERN, normalised) or not is_bar_line(head[header]):
        raise DataError(f"{name}: {unsupported_reason(normalised)}")
    names: list[str] = []
    # Of the lines above the bars, the header is the one that names the most prices, and the last of several.
    for line in fields[:-1]:
        names = [n.strip() for n in line] if len(price_columns(line)[1]) >= len(price_columns(names)[1]) else names
    names = names if len(names) > 1 else []
    return FileHead(separator, header, align_names(names, rows[0]), rows, normalised)


def align_names(names: list[str], bar: list[str]) -> list[str]:
    """The names of a header, one for each field of a bar; an index, and the milliseconds of 22:00:00,000, have none."""
    surplus = len(bar) - len(names) if names else 0
    if surplus == 1 and bar[-1].strip():
        split_at = next((i for i in range(len(bar) - 1) if re.search(r":\d\d,\d{3}$", ",".join(bar[i : i + 2]))), -1)
        return [*names[: split_at + 1], "", *names[split_at + 1 :]]
    if surplus == 1:  # a separator ends the bar
        return [*names, ""]
    return names[: len(bar)] if surplus < 0 and not any(names[surplus:]) else names


def price_columns(names: list[str]) -> tuple[str, dict[str, int]]:
    """The side in the names of the price columns, and the column of each role."""
    normalised = [normalise_name(name) for name in names]
    best: tuple[str, dict[str, int]] = ("", {})
    for side in ("bid", "", "ask", "mid"):
        columns = {}
        for role, words in PRICE_NAMES.items():
            sided = [form for word in words for form in dict.fromkeys((side + word, word + side))]
            if word := next((form for form in sided if form in normalised), ""):
                columns[role] = normalised.index(word)
        if side == "ask" and best[0] == "bid" and len(columns) == len(best[1]) == len(OHLC):
            best[1].update(ask_open=columns["open"], ask_close=columns["close"])
        elif len(columns) > len(best[1]):
            best = side, columns
    return best


def normalise_name(name: str) -> str:
    """The name of a column reduced to lower case letters and digits."""
    return re.sub(r"[\W_]", "", name.lower())


def time_columns(names: list[str], bar: list[str]) -> tuple[int, ...]:
    """The column of the time, or those of date and time of day; none if no column has them."""
    cells = [cell.strip().lower() for cell in bar[: len(names)]]
    normalised = [normalise_name(re.sub(r"\(.*\)", "", name)) for name in names]
    named = [i for i in range(len(cells)) if TIME_COLUMN_NAME.fullmatch(normalised[i])]
    dated = [i for i, cell in enumerate(cells) if re.fullmatch(f"{ANY_TIME}|{ANY_DATE}", cell)]
    candidates = [i for i in named if i in dated]
    candidates = [i for i in candidates if not CLOSE_TIME_NAME.match(names[i])] or candidates
    candidates = candidates or [i for i in dated if not names[i] or not cells[i].isdigit()]
    full_times = [i for i in candidates if re.fullmatch(ANY_TIME, cells[i])]
    if full_times:  # a column in UTC, as UNIX time always is, comes first
        utc = [i for i in full_times if re.fullmatch(UNIX_TIME, cells[i]) or named_timezone([names[i]]) == "UTC"]
        return (*utc, *full_times)[:1]
    clocks = [i for i in named if i not in candidates and re.fullmatch(rf"{TIME_OF_DAY}|\d{{4}}|\d{{6}}", cells[i])]
    return (*candidates[:1], *clocks[:1]) if candidates else ()


def column_roles(head: FileHead, time_at: tuple[int, ...]) -> tuple[str, ...]:
    """The role of each column of a file with a header; `time_at` are the columns of the time."""
    names, bar = [normalise_name(name) for name in head.column_names], head.rows[0]
    roles = [""] * len(names)
    for role, i in price_columns(head.column_names)[1].items():
        roles[i] = role
    for i in time_at:
        roles[i] = "time"
    volumes = [*VOLUME_NAMES, *(name for name in names if name.startswith("volume"))]
    for role, words in (("volume", volumes), ("spread", names), ("symbol", SYMBOL_NAMES), ("complete", ["complete"])):
        for word in words:
            i = names.index(word) if word in names else len(bar)
            cells = [row[i].strip() for row in head.rows if i < len(row)]
            first = next((cell for cell in cells if cell), "") if role == "spread" else cells[0] if cells else ""
            if i < len(bar) and not roles[i] and fits_role(role, word, first):
                roles[i] = role
                break
    return tuple(roles)


def fits_role(role: str, word: str, cell: str) -> bool:
    """Whether a column with this name and first field has the role; IB writes -1 for an unknown volume."""
    if role in ("volume", "spread"):
        named = role == "volume" or SPREAD_NAME.fullmatch(word)
        return bool(named and is_number(cell) and not re.fullmatch(r"-1(\.0*)?", cell))
    return cell.lower() in ("true", "false") if role == "complete" else bool(cell)


def file_name(name: str) -> str:
    """The name of a file without its folder: `EURUSD.csv bars.zip` for the member `bars.zip (EURUSD.csv)`."""
    packed, _, member = Path(name).name.rpartition(" (")
    return f"{member} {packed}"


def detect_layout(lines: list[str], options: ReadOptions, name: str) -> FileLayout:
    """The layout of a file called `name` from its `first_lines` or fewer; DataError if the lines leave it open."""
    checks = ("dates", options.dates, OTHER_DATE_ORDER), ("spread-unit", options.spread_unit, SPREAD_UNITS)
    for flag, value, allowed in checks:
        if value not in (None, *allowed):
            raise DataError(f"{name}: --{flag} {value}: {' or '.join(allowed)}")
    head = parse_head(lines, name)
    fmt, columns = detect_format(head, name)
    if missing := {*OHLC} - {*columns}:
        raise DataError(f"{name}: no column for {', '.join(sorted(missing))}")
    fmt = resolve_format(fmt, head, columns, options, name)
    return build_layout(fmt, head, columns, options, name)


def detect_format(head: FileHead, name: str) -> tuple[Format, tuple[str, ...]]:
    """The format that the first lines of a file match, and the roles of the columns; DataError without a match."""
    names, bar = head.column_names, head.rows[0]
    first, prices = head.normalised.rpartition("\n")[2], price_columns(names)[1]
    time_at = time_columns(names, bar)
    if names and len(prices) > 1 and not time_at:
        raise DataError(f"{name}: line {head.header_lines + 1}: {no_time_reason(names, bar)}")
    sample = f",{','.join(names).lower()},\n{stamp_text(bar, time_at)},{first}" if names else first.rstrip(",")
    fmt = next((fmt for fmt in FORMATS if matches_format(fmt, sample, head.rows)), None)
    if fmt is None or (names and not prices):
        find_thousands(FileHead(*head[:3], [bar], head.normalised), ("open",) * len(bar), name)
        raise DataError(f"{name}: {unsupported_reason(head.normalised)}")
    if not fmt.columns:
        return fmt, column_roles(head, time_at)
    used = fmt.columns[: len(bar)]
    return fmt, (*used, *[""] * (len(bar) - len(used)))


def matches_format(fmt: Format, sample: str, rows: list[list[str]]) -> bool:
    """Whether a file has a format: `sample` of its lines matches, and its bars have no volume where none may."""
    matches = bool(re.fullmatch(fmt.pattern, sample))
    if not (matches and fmt.no_volume):
        return matches
    at = fmt.columns.index("volume")
    volumes = [row[at].strip() for row in rows if len(row) > at and DECIMAL_NUMBER.fullmatch(row[at].strip())]
    return bool(volumes) and not any(map(float, volumes))


def stamp_text(fields: list[str], columns: Iterable[int]) -> str:
    """The stamp of a bar: its fields in the `columns` of the time, lower case."""
    return " ".join(fields[i].strip() for i in columns).lower()


def no_time_reason(names: list[str], bar: list[str]) -> str:
    """Why no column of a bar is its time."""
    for name, cell in zip(names, bar, strict=False):
        if TIME_COLUMN_NAME.fullmatch(normalise_name(name)) and not re.fullmatch(r"\d{1,7}", cell):
            return (
                f"the time {cell.strip()[:40]!r} in column {name} is written in no way I know: "
                "write 2017-12-31T22:00:00Z, or UNIX seconds with all of their digits"
            )
    return "no time stamps: export the file with the time of each bar"


def resolve_format(fmt: Format, head: FileHead, columns: tuple[str, ...], options: ReadOptions, name: str) -> Format:
    """The format with the stamp style, clock, label and side of one file; DataError if nothing settles them.

    The user's options come first, then the file and its format, then the defaults of a model.
    """
    time_at = [i for i, role in enumerate(columns) if role == "time"]
    names, stamp = [head.column_names[i] for i in time_at if head.column_names], stamp_text(head.rows[0], time_at)
    fixed = {what: getattr(fmt, what) for what in fmt.fixed_options}
    if side := price_columns(head.column_names)[0]:
        fixed["side"] = side
    if any(map(CLOSE_TIME_NAME.match, names)):
        fixed["label"] = "close"
    if timezone := named_timezone(names):
        fixed["timezone"] = timezone
    elif abbreviation := re.fullmatch(r".* ([a-z]{3,4})", stamp):
        fmt = fmt._replace(timezone=TIMEZONES.get(abbreviation[1], fmt.timezone))
    # A model of files with bid and ask remembers both sides: that is no side of a file that has one.
    defaults = {what: value for what, value in options.model_defaults.items() if value != "both"}
    resolved = {what: getattr(options, what) or fixed.get(what) or defaults.get(what) for what in FORMAT_OPTIONS}
    is_local = re.search("local|server|broker", normalise_name("".join(names)))
    question = fmt.question or (LOCAL_TIME_QUESTION if is_local else "")
    if not has_utc_offset(stamp) and not all(resolved[flag] for flag in re.findall("--(timezone|label)", question)):
        raise DataError(f"{name}: {question}")
    style = "iso" if fmt.stamp_style in OTHER_DATE_ORDER else fmt.stamp_style
    if re.fullmatch(rf"{DAY_OR_MONTH_FIRST}.*", stamp):
        order = fmt.stamp_style if fmt.stamp_style in OTHER_DATE_ORDER else options.dates
        if order is None:
            raise DataError(f"{name}: is {stamp!r} day or month first? --dates dmy or --dates mdy")
        style = order
    if has_utc_offset(stamp) and style != "wall":
        fixed.pop("timezone", None)
    overrides: dict[str, Any] = {what: value for what, value in resolved.items() if value}
    return fmt._replace(stamp_style=style, fixed_options=tuple(fixed), **overrides)


def has_utc_offset(stamp: str) -> bool:
    """Whether a stamp is UNIX time or has an offset from UTC."""
    return bool(re.fullmatch(TIME_WITH_OFFSET, stamp) and not re.fullmatch(COMPACT_DATETIME, stamp))


def named_timezone(names: list[str]) -> str:
    """The clock in the names of the time columns; empty if they name none."""
    for name in names:
        for word in re.findall(r"[A-Za-z]+(?:/[A-Za-z_]+)+|[A-Za-z]+", name):
            if "/" in word or word.lower() in TIMEZONES:
                return str(TIMEZONES.get(word.lower(), word))
    return ""


def build_layout(fmt: Format, head: FileHead, columns: tuple[str, ...], options: ReadOptions, name: str) -> FileLayout:
    """The layout of a file with this format and these columns, from its numbers and its name."""
    rows = [[cell.strip() for cell in row] for row in head.rows if len(row) == len(columns)]
    by_role = {role: [row[i] for row in rows] for i, role in enumerate(columns) if role}
    day = re.search(r"(?<!\d)\d{8}(?!\d)", file_name(name))
    if fmt.stamp_style == "midnight" and not day:
        reason = "stamps count from midnight: put the date into the file name, as in 20140505_quote.csv"
        raise DataError(f"{name}: {reason}")
    prices = [cell for role in OHLC for cell in by_role.get(role, [])]
    decimals = [len(cell.partition(".")[2]) for cell in prices if re.fullmatch(r"[\d,]*(\.\d*)?", cell)]
    digits = max([count for count in decimals if count <= MAX_DECIMALS] or decimals or [0])
    symbol = by_role.get("symbol", [""])[0]
    unit, is_assumed = resolve_spread_unit(fmt, head.column_names, columns, options.spread_unit)
    spreads = [float(cell) for cell in by_role.get("spread", []) if DECIMAL_NUMBER.fullmatch(cell)]
    is_whole = is_assumed and digits > 0 and all(spread.is_integer() for spread in spreads)
    instrument = find_instrument(options.symbol or symbol or file_name(name))
    points = unit == "points" and not (instrument and math.isclose(instrument.point, 10.0**-digits))
    return FileLayout(
        fmt,
        head.separator,
        columns,
        head.header_lines,
        column_names=tuple(head.column_names) or tuple(f"{i + 1}" for i in range(len(columns))),
        file_date=day[0] if day else "",
        spread_unit=unit,
        decimals=digits,
        fixed_decimals=len(rows) >= MIN_BARS_FOR_DECIMALS and min(decimals, default=0) == max(decimals, default=1),
        whole_spread=max(spreads, default=0.0) if is_whole else 0.0,
        symbol=symbol,
        path=name,
        has_thousands=find_thousands(head, columns, name),
        is_final=not points and (not fmt.no_volume or None not in (options.timezone, options.label)),
    )


def resolve_spread_unit(fmt: Format, names: list[str], columns: tuple[str, ...], unit: str | None) -> tuple[str, bool]:
    """The unit of the spread column, `unit` if given, and whether the price is only assumed to be it."""
    if "spread" not in columns:
        return "", False
    named = SPREAD_NAME.fullmatch(normalise_name(names[columns.index("spread")])) if names else None
    unit = unit or (str(named[1]) if named else "")
    return unit or fmt.spread, not unit and fmt.spread == "price"


def find_thousands(head: FileHead, columns: tuple[str, ...], name: str) -> bool:
    """Whether a comma in a number stands between thousands; DataError where it could be a decimal comma."""
    rows = [row for row in head.rows if len(row) == len(columns)]
    has_point = any("." in cell for row in rows for cell, role in zip(row, columns, strict=True) if role in OHLC)
    for line, row in enumerate(head.rows, head.header_lines + 1):
        for cell, role in zip(row, columns, strict=False):
            comma = role in (*OHLC, "volume") and COMMA_NUMBER.fullmatch(cell.strip()) and len(row) == len(columns)
            if comma and not (has_point and THOUSANDS_NUMBER.fullmatch(cell.strip())):
                raise DataError(
                    f"{name}: line {line}: {cell.strip()!r}: a decimal comma, or one between thousands? write "
                    "numbers with a decimal point and without commas"
                )
    return has_point


def decode_line(line: str) -> str:
    """The text of a line whose bytes were read as latin-1, decoded as UTF-8 or, failing that, as Japanese."""
    for encoding in ("utf-8", "cp932"):
        try:
            return line.encode("latin-1").decode(encoding)
        except UnicodeError:
            continue
    return line


def unsupported_reason(normalised: str) -> str:
    """Why a file whose header and first bar are `normalised` has no known format."""
    lines = normalised.split("\n")
    if not normalised.strip(",\n "):
        return "empty"
    for pattern, reason in UNSUPPORTED:
        if re.fullmatch(pattern, normalised):
            return reason
    if not is_bar_line(lines[-1]) and len(lines) <= MAX_HEADER:
        return "no bars"
    if len(lines) > 1 and is_bar_line(lines[-1]):
        return f"no column is called open, high, low or close: {lines[-2][:80]!r}; {FORMAT_REMEDY}"
    names = ", ".join(dict.fromkeys(fmt.name for fmt in FORMATS))
    return f"line 1: not a format I know ({names}): {lines[0][:80]!r}; {FORMAT_REMEDY}"
