"""The table of the formats that files of bars have, and what a user says about a file.

`FORMATS` is the table; a file is recognised by its content.  `parsing.py` says what a line means.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from host.instruments import Instrument

MAX_LINE = 4096  # bytes
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

    symbol: str | None = None  # what is traded
    side: str | None = None  # bid, ask, mid, or both where the file has both
    timezone: str | None = (
        None  # an IANA name, or one with a shift as in UTC+2h; not for stamps with their own offset
    )
    label: str | None = None  # open or close: what a stamp marks
    spread_pips: float | None = None  # where the file has no spread
    spread_unit: str | None = None  # price, pips or points: of the spread column of the file
    pip: float | None = None  # price of a pip
    point: float | None = None  # price of a unit, where the file counts in points
    dates: str | None = None  # dmy or mdy, where a date could be either
    interval_s: int | None = None  # length of a bar; None: the commonest step
    drop_bad: bool = False
    # What a model was trained with, by the names above: for what neither the user says nor the format settles.
    remembered: Mapping[str, Any] = field(default_factory=dict)


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
    instrument: Instrument  # with the pip and the spread that were given
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
