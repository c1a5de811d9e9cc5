"""Bars as lines of text: which formats there are, what a line of each means, and what may be wrong with it.

`FORMATS` is the table of what is known; a file is recognised by its content.  `bars.py` reads files in bulk and
`feed.py` line by line with the same functions: those that say "alike" take a number or an array of numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from pathlib import Path
from string import whitespace
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from kernels.bars import NS

Ints = NDArray[np.int64]
SPREAD_PIPS = 0.8  # where neither the file nor the user says
LABEL = "open"
SHARE_BELOW = {
    "bid": 0.0,
    "mid": 0.5,
    "ask": 1.0,
}  # of the spread: how far the bid is below the price of a file
SIDES = (*SHARE_BELOW, "both")
MAX_LINE = 4096  # bytes
JUMP = 0.2  # a price this far from its neighbours, relative, is damaged
WIDE = 0.05  # a spread this wide, relative to the price, is in other units
SCALED = 10_000.0  # a pair quoted above this is taken for points, unless the user names the pip
SCALED_PIPS = 5e6  # and a price of so many pips even then
HOUR, DAY, WEEK = 3600 * NS, 86_400 * NS, 604_800 * NS
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
MAX_HEADER = 3  # lines
BEGINS_BAR = re.compile(r'"?(\d|[A-Z][a-z]{2} \d\d, \d{4})', re.ASCII | re.IGNORECASE)
KINDS = {
    "unparsable": "not a bar",
    "number": "a price or volume is not a positive number",
    "range": "open or close outside high and low, or high below low",
    "spread": "ask below bid, or a spread of more than 5 % of the price",
    "flat": "filler: open = high = low = close without volume",
    "damaged": "a price more than 20 % from its neighbours",
    "duplicate": "the stamp of the bar before",
    "backward": "older than the bar before",
    "overlap": "opens before the bar before has closed",
}


class Problem(NamedTuple):
    """A row that is not taken as it stands."""

    kind: str  # of KINDS, or hole
    line: int  # of the file, from 1
    text: str


@dataclass(frozen=True)
class ReadOptions:
    """What the user says about a file; None leaves it to the file, its name, or the default of its format."""

    side: str | None = None  # bid, ask, mid, or both where the file has both
    timezone: str | None = (
        None  # an IANA name, or one with a shift as in UTC+2h; not for stamps with their own offset
    )
    label: str | None = None  # open or close: what a stamp marks
    spread_pips: float | None = None  # where the file has no spread
    pip: float | None = None  # price of a pip
    point: float | None = None  # price of a unit, where the file counts in points
    dates: str | None = None  # dmy or mdy, where a date could be either
    interval_s: int | None = None  # length of a bar; None: the commonest step
    drop_bad: bool = False


@dataclass(frozen=True)
class Source:
    """Where bars came from, and everything that was assumed on the way."""

    path: str
    format: str
    rows: int  # bars
    first: str  # close of the first bar, UTC
    last: str
    interval_s: int
    timezone: str
    label: str
    side: str
    spread: str  # where it comes from, in words
    spread_pips: float | None  # None: the file has it
    pip: float
    sha256: str  # of the bytes of the file
    problems: list[Problem] = field(default_factory=list)  # at most MAX_LISTED of a kind
    holes: list[Problem] = field(default_factory=list)  # gaps that are no weekend, at most MAX_LISTED
    assumed: list[str] = field(default_factory=list)  # flags that would say what was assumed
    notes: list[str] = field(default_factory=list)


class DataError(ValueError):
    """The file cannot be read as asked; the message names file, line, reason and remedy."""

    exit_code = 4

    def __init__(self, message: str, source: Source | None = None) -> None:
        super().__init__(message)
        self.source = source  # with the problems, where bad rows are the reason


class Format(NamedTuple):
    """A kind of file.  The roles of its columns are given, or follow from the names in its header."""

    name: str
    head: str  # pattern of the header and the first bar: lower case, no quotes, commas between the fields
    stamp: str  # how a time is written: a key of DATES, iso (or UNIX), wall (iso, never UTC), month, midnight, ask
    timezone: str  # of stamps that have no offset
    columns: tuple[str, ...] = ()  # roles; lines may end early
    side: str = "bid"
    spread: str = ""  # role of a column of that name
    newest_first: bool = False
    ticks: bool = False  # a real bar has a volume: one without is filler


OHLC = ("open", "high", "low", "close")
PRICE = r"(?:\d+(?:\.\d*)?|\.\d+)"  # one way to match: a hostile line must not cost more than its length
DOTTED = r"\d{4}\.\d\d\.\d\d"
SLASHED = r"\d\d[/.-]\d\d[/.-]\d{4}"
TIME = r"(\d{9,10}|\d{12,13}|\d{4}-\d\d-\d\d[^,]*)"  # UNIX or ISO
MORE = r"(,[^,\n]*)*"  # columns nobody needs
PLAIN = ("time", *OHLC, "volume")
LEAN = (*PLAIN, "ask_open", "", "", "ask_close", "")
METATRADER = ("time", *PLAIN)
SERVER = "Europe/Athens"  # EET with European dates: the clock of nearly every MetaTrader server
# HistData says EST without daylight saving; measured, it moves to UTC-4 on the European dates: Athens less 7 hours.
HISTDATA = "Europe/Athens-7h"
LONDON = "Europe/London"
FORMATS = (  # the first that fits
    Format(
        "canonical",
        rf"time(stamp|_utc)?,open,high,low,close(,volume)?(,spread)?\n{TIME},.*",
        "iso",
        "UTC",
        spread="spread",
    ),
    Format(  # of one who writes the spread of MetaTrader beside his bars
        "spread without a name",
        rf"time(stamp)?,open,high,low,close,volume,\n{TIME}(,{PRICE}){{5}},\d+",
        "iso",
        "UTC",
        (*PLAIN, "tenths"),
    ),
    Format(
        "Dukascopy",
        r"(gmt[ _])?time,open,high,low,close,volume\n\d\d\.\d\d\.\d{4} .*"
        r"|local[ _]time,open,high,low,close,volume\n\d\d\.\d\d\.\d{4} [^,]* gmt[+-]\d{4},.*",
        "dmy",
        "UTC",
        ticks=True,
    ),
    Format(
        "MetaTrader 5",
        rf"<date>(,<time>)?,<open>,<high>,<low>,<close>,<tickvol>,<vol>,<spread>\n{DOTTED},.*",
        "ymd",
        SERVER,
        ticks=True,
    ),
    Format(  # written by the Python API: stamps of the server's clock that claim to be UTC
        "MetaTrader 5 dump",
        rf"(date|time),open,high,low,close,tick_volume(,spread)?(,real_volume)?\n{TIME},.*",
        "wall",
        SERVER,
        spread="tenths",
    ),
    Format(  # only its volume tells it from an export of MetaTrader itself, where every bar has a tick
        "HistData MetaTrader", rf"{DOTTED},\d\d:\d\d(,{PRICE}){{4}},0", "ymd", HISTDATA, METATRADER
    ),
    Format("MetaTrader 4", rf"{DOTTED},\d\d:\d\d(,{PRICE}){{5}}", "ymd", SERVER, METATRADER, ticks=True),
    Format("HistData ASCII", rf"\d{{8}} \d{{6}}(,{PRICE}){{5}}", "iso", HISTDATA, PLAIN),
    Format("Lean", rf"\d{{8}} \d\d:\d\d(,{PRICE}){{10}}", "iso", "UTC", LEAN),
    Format("Lean, one day", rf"\d{{1,8}}(,{PRICE}){{10}}", "midnight", "UTC", LEAN),
    Format(
        "OANDA",
        rf"{TIME},(true|false)(,{PRICE}){{5}}",
        "iso",
        "UTC",
        ("time", "complete", *PLAIN[1:]),
        side="mid",
        ticks=True,
    ),
    Format(  # what `oanda_lines` makes of candles with bid and ask
        "OANDA",
        rf"{TIME},(true|false)(,{PRICE}){{9}}",
        "iso",
        "UTC",
        ("time", "complete", *PLAIN[1:], "ask_open", "", "", "ask_close"),
        ticks=True,
    ),
    Format("no header", rf"{TIME}(,{PRICE}){{4,5}}", "iso", "UTC", PLAIN),
    Format(
        "FXCM CandleData",
        rf"datetime,bidopen,bidhigh,bidlow,bidclose,askopen,askhigh,asklow,askclose(,tickqty)?\n{SLASHED} .*",
        "mdy",
        "UTC",
    ),
    Format("pandas dump", rf",open,high,low,close(,volume)?\n{TIME},.*", "iso", "UTC"),
    Format(
        "Yahoo",
        rf"date,open,high,low,close,adj close,volume{MORE}\n{TIME},.*",
        "iso",
        LONDON,
        side="mid",
    ),
    Format(
        "yfinance",
        rf"price(,(adj close|close|high|low|open|volume))+\nticker,.*\ndate(time)?,*\n{TIME},.*",
        "iso",
        LONDON,
        side="mid",
    ),
    Format(
        "Investing.com",
        r"date,price,open,high,low(,vol\.)?,change %\n[a-z]{3} \d\d, \d{4},.*",
        "month",
        "UTC",
        side="mid",
        newest_first=True,
    ),
    Format(
        "Stooq",
        rf"data,(czas,)?otwarcie,najwyzszy,najnizszy,zamkniecie(,wolumen)?\n{TIME},.*",
        "iso",
        "UTC",
    ),
    Format("dated", rf"date(time)?,(time,)?open,high,low,close(,volume)?\n{TIME},.*", "iso", "UTC"),
    Format(
        "Myfxbook",
        rf"[^\n]*\ndate,open,high,low,close,change\(pips\),change\(%\)\n{SLASHED} \d\d:\d\d,.*",
        "mdy",
        "UTC",
        newest_first=True,
    ),
    Format(
        "Japanese",
        r"日付,始値,高値,安値,終値(,出来高)?\n\d{4}/\d\d/\d\d.*",
        "ymd",
        "Asia/Tokyo",
    ),
    Format("TradingView", rf"time,open,high,low,close{MORE}\n{TIME},.*", "iso", "UTC"),
    Format(
        "Investing.com",
        rf"date,price,open,high,low(,vol\.)?,change %\n{SLASHED},.*",
        "ask",
        "UTC",
        side="mid",
        newest_first=True,
    ),
    Format(
        "day or month first",
        rf"((?!local)[^,\n]*time|date),open,high,low,close{MORE}\n{SLASHED}.*",
        "ask",
        "UTC",
    ),
    Format("day or month first", rf"{SLASHED}[^,]*(,{PRICE}){{4,5}}", "ask", "UTC", PLAIN),
)
ROLES = {  # of names in a header; the first column is the time, and a name that is not here is not needed
    **{name: name for name in (*OHLC, "volume", "spread")},
    **{f"<{name}>": name for name in OHLC},
    **dict(zip(("otwarcie", "najwyzszy", "najnizszy", "zamkniecie"), OHLC, strict=True)),
    **dict(zip(("始値", "高値", "安値", "終値"), OHLC, strict=True)),
    **{f"bid{name}": name for name in OHLC},
    **dict.fromkeys(("time", "<time>", "czas"), "time"),
    **dict.fromkeys(("<tickvol>", "tick_volume", "tickqty", "wolumen", "出来高"), "volume"),
    "price": "close",
    "askopen": "ask_open",
    "askclose": "ask_close",
    "<spread>": "points",
}
DATES = {  # where a date of ten characters has its year, month and day
    "ymd": (0, 5, 8),
    "dmy": (6, 3, 0),
    "mdy": (6, 0, 3),
}
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
DECIMAL_COMMA = r"(^|[\t;\"])\d+,\d+([\t;\"]|$)"
TICKS = "ticks, not bars: make bars of them, for example one a minute, with time,open,high,low,close,volume"
REFUSED = (  # what the head of an unknown file shows, and what to do
    (rf"\d{{8}} \d{{9}}(,{PRICE}){{2,3}}", TICKS),
    (rf"\d{{1,8}}(,{PRICE}){{2,4}}|[^,\n]*time[^,\n]*,bid,ask\n.*|[a-z]{{3}}/?[a-z]{{3}},\d{{8}} .*", TICKS),
    (r"(date|time),([a-z]{3},)+([a-z]{3})?\n.*", "one rate of many currencies: no open, high and low"),
    (r"[{\[].*(\n.*)*", "JSON: a feed has one bar a line, and a file is read if it holds OANDA's candles"),
    (r"[a-z]{6}(,+[a-z]{6})+,*(\n.*)+", "many pairs side by side: make one file for each"),
    (r"local[ _]time,.*\n.*", "local time, but of where? write UTC, as in 2017-12-31T22:00:00Z"),
    (r"(.*\n)?\d{1,2}[/.-]\d{1,2}[/.-]\d{4}.*", "write the dates as 2017-12-31"),
    (
        r"(.*\n)?(\d{1,7}|\d+\.\d+),.*",
        "no time stamps: export the file with the time of each bar",
    ),
)


class Layout(NamedTuple):
    """A format as one file has it."""

    format: Format
    separator: str
    columns: tuple[str, ...]
    header: int  # lines before the bars
    day: str  # date in the name of the file, for stamps that have none
    point: float  # price of the last digit


class Rules(NamedTuple):
    """How the rows of one file become bars."""

    side: str
    timezone: str
    label: str
    spread_px: float
    pip: float
    scale: float  # price of a unit of the file
    interval_ns: int


def head_of(lines: Iterable[str]) -> list[str]:
    """The lines of a header and the first bar, as far as they are there."""
    head: list[str] = []
    for line in lines:
        head.append(line)
        if is_head(head):
            break
    return head


def is_head(head: list[str]) -> bool:
    """Whether these first lines are enough to recognise a file by."""
    return len(head) > MAX_HEADER or bool(head and BEGINS_BAR.match(head[-1]))


def recognise(head: list[str], options: ReadOptions, name: str) -> Layout:
    """The layout of a file called `name` from its `head_of`."""
    if options.dates not in (None, "dmy", "mdy"):
        raise DataError(f"{name}: --dates {options.dates}: dmy or mdy")
    bar = head[-1] if head else ""
    if re.search(DECIMAL_COMMA, bar):
        raise DataError(f"{name}: decimal commas: write the prices with a point")
    separator = max("\t;,", key=bar.count)
    commas = str.maketrans({'"': None, ",": "_", separator: ","})  # one that separates nothing is no comma
    shown = [readable(line).translate(commas).lower() for line in head if line.strip()]
    fmt = next((fmt for fmt in FORMATS if re.fullmatch(fmt.head, "\n".join(shown))), None)
    if fmt is None:
        raise DataError(f"{name}: {refusal(shown)}")
    if fmt.stamp == "ask":
        if options.dates is None:
            raise DataError(
                f"{name}: is {shown[-1].split(',')[0]} day or month first? --dates dmy or --dates mdy"
            )
        fmt = fmt._replace(stamp=options.dates)
    fields = bar.replace('"', "").split(separator)
    columns = fmt.columns[: len(fields)] or header_roles(shown[:-1], fmt)
    if len(fields) == len(columns) + 1 and not fields[-1].strip():
        columns = (*columns, "")  # lines that end with a separator
    if missing := {*OHLC} - {*columns}:
        raise DataError(f"{name}: no column for {', '.join(sorted(missing))}")
    day = re.search(r"(?<!\d)\d{8}(?!\d)", Path(name).name)
    if fmt.stamp == "midnight" and not day:
        raise DataError(
            f"{name}: stamps count from midnight: put the date into the file name, as in 20140505_quote.csv"
        )
    open_text = dict(zip(columns, fields, strict=False)).get("open", "")
    point = options.point or 10.0 ** -len(open_text.partition(".")[2].strip())
    return Layout(fmt, separator, columns, len(head) - 1, day[0] if day else "", point)


def readable(line: str) -> str:
    """A line, read byte by byte as `parse_line` has it, in the letters that were meant."""
    for encoding in ("utf-8", "cp932"):
        try:
            return line.encode("latin-1").decode(encoding)
        except UnicodeError:
            continue
    return line


def header_roles(header: list[str], fmt: Format) -> tuple[str, ...]:
    """What the columns are for, from the last line of a header that names the most prices."""
    best: list[str] = []
    for line in header:
        roles = ["time"] * (2 if fmt.stamp == "month" else 1)  # Jan 13, 2021 is torn at its comma
        for name in line.split(",")[1:]:
            role = ROLES.get(name.strip(), "")
            role = fmt.spread if role == "spread" else role
            first = role not in roles or (role == "time" and len(roles) == 1)  # names may be repeated
            roles.append(role if first else "")
        if len({*OHLC} & {*roles}) >= len({*OHLC} & {*best}):
            best = roles
    return tuple(best)


def refusal(shown: list[str]) -> str:
    """Why a file that begins like this is in no known format."""
    if not any(map(str.strip, shown)):
        return "empty"
    head = "\n".join(shown)
    for pattern, reason in REFUSED:
        if re.fullmatch(pattern, head):
            return reason
    if not BEGINS_BAR.match(shown[-1]) and len(shown) <= MAX_HEADER:
        return "no bars"
    known = ", ".join(dict.fromkeys(fmt.name for fmt in FORMATS))
    return (
        f"line 1: not a format I know ({known}): {shown[0][:80]!r}; bring it to the header "
        "time,open,high,low,close,volume[,spread] with ISO or UNIX times"
    )


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
    usual_pip = 0.01 if price > 20 else 0.0001
    pip = usual_pip if options.pip is None else options.pip
    if options.point is None and price > (SCALED if options.pip is None else SCALED_PIPS * pip):
        raise DataError(
            f"{name}: prices of about {price:g} look like points: --point 0.001 (for example) turns them into "
            "prices; if they are prices, say --pip"
        )
    spread_pips = SPREAD_PIPS if options.spread_pips is None else options.spread_pips
    if not all(0 < size < np.inf for size in (pip, scale)) or not 0 <= spread_pips < np.inf:
        raise DataError(
            f"{name}: --pip {pip:g}, --point {scale:g}, --spread {spread_pips:g}: neither may be negative, "
            "nor a size zero"
        )
    return Rules(side, timezone, label, spread_pips * pip, pip, scale, interval_ns), notes


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
    unit = {"spread": rules.scale, "points": point, "tenths": rules.pip / 10}
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
