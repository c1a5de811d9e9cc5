"""The table of the formats that files of bars have, and what a user says about a file.

A header is understood by the names of its columns, in any order; `FORMATS` has what is special about the files of one
source: the marks that tell it, its clock, side, label and units.  `parsing.py` says what a line means.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from host.data.instruments import Instrument, find_instrument

MAX_LINE = 4096  # bytes
MAX_HEADER = 6  # lines
SNIFF_LINES = 64  # lines that a file is recognised by, and that a feed learns the length of its bars from
BAR_START = re.compile(r'"?(\d|[A-Z][a-z]{2} \d\d?, \d{4})', re.ASCII | re.IGNORECASE)
PROBLEM_KINDS = {
    "unparsable": "not a bar",
    "number": "a price or volume is not a positive number",
    "range": "open or close outside high and low, or high below low",
    "spread": "ask below bid, or a spread of more than 5 % of the price",
    "flat": "filler: open = high = low = close without volume",
    "damaged": "a price too far from its neighbours",
    "duplicate": "the stamp of the bar before",
    "backward": "older than the bar before",
    "overlap": "opens before the bar before has closed",
    "level": "prices move to another level and stay there",
    "interval": "bars become longer or shorter",
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
    # An IANA name, or one with a shift as in UTC+2h; not for stamps with their own offset.
    timezone: str | None = None
    label: str | None = None  # open or close: what a stamp marks
    spread_pips: float | None = None  # instead of what the file has
    spread_unit: str | None = None  # price, pips or points: of the spread column of the file
    pip: float | None = None  # price of a pip
    point: float | None = None  # price of a unit, where the file counts in points
    dates: str | None = None  # dmy or mdy, where a date could be either
    interval_s: int | None = None  # length of a bar; None: the commonest step
    drop_bad: bool = False
    # What a model was trained with, by the names above: for what neither the user says nor the format settles.
    model_defaults: Mapping[str, Any] = field(default_factory=dict)

    def explicit(self) -> dict[str, Any]:
        """What the user says, by the names above: all but what a model remembers."""
        return {option.name: getattr(self, option.name) for option in fields(self) if option.name != "model_defaults"}


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
    spread: str  # as an amount, in pips and as a share of the mean bar range, and where it comes from
    spread_pips: float | None  # None: the file has it
    spread_px: float  # mean of ask - bid at the closes
    range_px: float  # mean of high - low
    hours: str  # when the market is closed, as the bars show it
    instrument: Instrument  # with the pip and the spread that were given
    sha256: str  # of the bytes of the file
    problems: list[Problem] = field(default_factory=list)  # at most MAX_LISTED of a kind
    gaps: list[Problem] = field(default_factory=list)  # gaps that are no weekend, at most MAX_LISTED
    assumed: list[str] = field(default_factory=list)  # flags that would say what was assumed
    notes: list[str] = field(default_factory=list)


class DataError(ValueError):
    """The file cannot be read as asked; the message names file, line, reason and remedy."""

    exit_code = 4

    def __init__(self, message: str, source: Source | None = None) -> None:
        super().__init__(message)
        self.source = source  # with the problems, where bad rows are the reason


class Format(NamedTuple):
    """A kind of file, or, in a `FileLayout`, that kind as one file has it."""

    name: str
    # Pattern, lower case: of the first bar, or of the names of a header, and the first stamp and bar.
    pattern: str
    columns: tuple[str, ...] = ()  # roles of a file without header, whose lines may end early
    timezone: str = "UTC"  # of stamps that have no offset
    fixed_options: tuple[str, ...] = ()  # which of timezone, side and label the format settles; the others are defaults
    side: str = "bid"
    label: str = "open"
    stamp_style: str = "iso"  # the year first, or UNIX; wall: so, but never UTC; dmy, mdy; midnight: ms since then
    spread: str = "price"  # unit of a spread column: price, pips or points
    volume_required: bool = False  # a real bar has a volume: one without is filler
    no_volume: bool = False  # no bar has a volume: a file that has one is of a later format
    note: str = ""  # what was decided, and the flags that overrule it
    question: str = ""  # a question with the flags that answer it


OHLC = ("open", "high", "low", "close")
# One way to match, as everywhere here: a hostile line must not cost more than its length.
PRICE_PATTERN = r"(?:(?:\d+(?:_\d{3})*(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?)"
DOTTED_DATE = r"\d{4}\.\d\d\.\d\d"
DAY_OR_MONTH_FIRST = r"\d\d?[./-]\d\d?[./-]\d{4}"
COMPACT_DATE = r"(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:[0-2]\d|3[01])"
MONTH_NAME_DATE = r"[a-z]{3,9} \d\d?,? \d{4}|\d\d?[- ][a-z]{3,9}[- ]\d{4}"
ANY_DATE = rf"(?:\d{{4}}[-./]\d\d?[-./]\d\d?|{COMPACT_DATE}|{DAY_OR_MONTH_FIRST}|{MONTH_NAME_DATE})"
TIME_OF_DAY = r"(?:\d\d?:\d\d(?::\d\d(?:[.,: ]\d{1,9})?)?(?: ?[ap]m)?)"
UNIX_TIME = r"(?:(?:\d{9,10}|\d{12,13}|\d{15,16}|\d{18,19})(?:\.\d*)?)"
COMPACT_DATETIME = rf"(?:{COMPACT_DATE}(?:[01]\d|2[0-3])[0-5]\d(?:[0-5]\d)?)"
DATE_AND_TIME = rf"{ANY_DATE}[ t,]+(?:{TIME_OF_DAY}|\d{{4}}|\d{{6}})"
TIME_WITH_OFFSET = rf"{UNIX_TIME}|{DATE_AND_TIME} ?(?:z|utc|gmt|(?:utc|gmt)?[+-]\d\d(?::?\d\d)?|[a-z]+/[a-z_/]+)"
ANY_TIME = rf"(?:{DATE_AND_TIME}(?: [a-z]{{3,4}})?|{COMPACT_DATETIME}|{TIME_WITH_OFFSET})"
UNAMBIGUOUS_TIME = (
    rf"(?:(?!{DAY_OR_MONTH_FIRST})(?:{ANY_DATE}|{ANY_TIME}|{ANY_DATE},{TIME_OF_DAY}))"  # not one that could be either
)
OHLCV_COLUMNS = ("time", *OHLC, "volume")
LEAN_COLUMNS = (*OHLCV_COLUMNS, "ask_open", "", "", "ask_close", "")
OANDA_COLUMNS = ("time", "complete", *OHLC, "volume")
METATRADER_COLUMNS = ("time", *OHLCV_COLUMNS)
HEADERLESS_METATRADER_COLUMNS = (*METATRADER_COLUMNS, "", "spread")  # an export without its header
METATRADER_CLOCK = "Europe/Athens"  # EET with European dates: the clock of nearly every MetaTrader server
# HistData says EST without daylight saving; measured, it moves to UTC-4 on the European dates: Athens less 7 hours.
HISTDATA_CLOCK = "Europe/Athens-7h"
LONDON_CLOCK = "Europe/London"
FORMAT_OPTIONS, CLOCK_OPTIONS = ("timezone", "side", "label"), ("timezone", "label")
NO_VOLUME_NOTE = (
    f"no bar has a volume: HistData; if not, --timezone {METATRADER_CLOCK} for MetaTrader, --timezone UTC --label close for "
    "NinjaTrader"
)
TWS_NOTE = "stamps without an offset follow the clock that TWS is set to: --timezone"
VOLUME_QUESTION = (
    "bars have volumes, which HistData never has: NinjaTrader writes UTC and marks the end of a bar "
    f"(--timezone UTC --label close), HistData has --timezone {HISTDATA_CLOCK} --label open: say which"
)
NO_VOLUME_QUESTION = (
    f"without volumes nothing tells HistData (--timezone {HISTDATA_CLOCK} --label open) from NinjaTrader (--timezone UTC "
    "--label close): say which"
)
LOCAL_TIME_QUESTION = (
    "local time, but of where? --timezone Europe/Berlin, for example; of most servers: --timezone Europe/Athens"
)
METATRADER_DUMP_PATTERN = r"(?!.*,volume,).*,(tick_?volume|real_?volume),.*\n.*"
DUKASCOPY_PATTERN = (
    r".*,((gmt[ _])?time,.*\n\d\d\.\d\d\.\d{4} .*|local[ _]time,.*\n\d\d\.\d\d\.\d{4} [^,]* gmt[+-]\d{4},.*)"
)
FXCM_PATTERN = r"(?=.*,bidopen,)(?=.*,askopen,).*,datetime,.*\n\d\d?/\d\d?/\d{4} .*"
P4, P5, P45, P456 = (rf"(,{PRICE_PATTERN}){{{count}}}" for count in ("4", "5", "4,5", "4,6"))
FORMATS = (  # the first that fits
    # Only its volume tells it from an export of MetaTrader itself, where every bar has a tick.
    Format(
        "HistData MetaTrader",
        rf"{DOTTED_DATE},{TIME_OF_DAY}{P45}",
        METATRADER_COLUMNS,
        HISTDATA_CLOCK,
        FORMAT_OPTIONS,
        no_volume=True,
        note=NO_VOLUME_NOTE,
    ),
    Format(
        "MetaTrader 4",
        rf"{DOTTED_DATE},{TIME_OF_DAY}{P45}",
        METATRADER_COLUMNS,
        METATRADER_CLOCK,
        FORMAT_OPTIONS,
        volume_required=True,
    ),
    Format(
        "MetaTrader 5",
        rf"{DOTTED_DATE},{TIME_OF_DAY}(,{PRICE_PATTERN}){{7}}",
        HEADERLESS_METATRADER_COLUMNS,
        METATRADER_CLOCK,
        FORMAT_OPTIONS,
        spread="points",
        volume_required=True,
    ),
    Format(
        "MetaTrader 5 chart",
        rf"{DOTTED_DATE}[ ,]{TIME_OF_DAY}{P456}",
        (*OHLCV_COLUMNS, ""),
        METATRADER_CLOCK,
        FORMAT_OPTIONS,
        volume_required=True,
    ),
    Format(
        "HistData ASCII",
        rf"\d{{8}} \d{{6}}{P5}",
        OHLCV_COLUMNS,
        HISTDATA_CLOCK,
        FORMAT_OPTIONS,
        no_volume=True,
        note=NO_VOLUME_NOTE,
    ),
    Format("NinjaTrader", rf"\d{{8}} \d{{6}}{P5}", OHLCV_COLUMNS, question=VOLUME_QUESTION),
    Format("HistData or NinjaTrader", rf"\d{{8}} \d{{6}}{P4}", OHLCV_COLUMNS, question=NO_VOLUME_QUESTION),
    Format("Lean", rf"\d{{8}} \d\d:\d\d(,{PRICE_PATTERN}){{10}}", LEAN_COLUMNS),
    Format("Lean, one day", rf"\d{{1,8}}(,{PRICE_PATTERN}){{10}}", LEAN_COLUMNS, stamp_style="midnight"),
    Format(
        "OANDA",
        rf"{UNAMBIGUOUS_TIME},(true|false){P5}",
        OANDA_COLUMNS,
        "UTC",
        CLOCK_OPTIONS,
        "mid",
        volume_required=True,
    ),
    # What `oanda_lines` makes of candles with bid and ask.
    Format(
        "OANDA",
        rf"{UNAMBIGUOUS_TIME},(true|false)(,{PRICE_PATTERN}){{9}}",
        (*OANDA_COLUMNS, *LEAN_COLUMNS[6:10]),
        "UTC",
        CLOCK_OPTIONS,
        volume_required=True,
    ),
    Format("Kraken", rf"\d{{10}}(,{PRICE_PATTERN}){{6}}", (*OHLCV_COLUMNS, ""), "UTC", CLOCK_OPTIONS, "mid"),
    Format(
        "Binance",
        rf"(\d{{13}}|\d{{16}})(,{PRICE_PATTERN}){{11}}",
        (*OHLCV_COLUMNS, *[""] * 6),
        "UTC",
        CLOCK_OPTIONS,
        "mid",
    ),
    Format("no header", rf"{ANY_DATE},({TIME_OF_DAY}|\d{{6}}){P45}", METATRADER_COLUMNS),
    Format("no header", rf"{UNAMBIGUOUS_TIME},000{P45}", ("time", "", *OHLCV_COLUMNS[1:])),  # of a second
    Format("no header", rf"({UNAMBIGUOUS_TIME}|{DAY_OR_MONTH_FIRST}[^,]*){P45}", OHLCV_COLUMNS),
    Format("no header", rf"[a-z/]{{6,7}},{COMPACT_DATE},\d{{6}}{P45}", ("symbol", *METATRADER_COLUMNS)),
    Format(
        "MetaTrader 5",
        rf".*,<open>,.*\n{DOTTED_DATE}.*",
        (),
        METATRADER_CLOCK,
        FORMAT_OPTIONS,
        spread="points",
        volume_required=True,
    ),
    # Written by the Python API: stamps of the server's clock that claim to be UTC.
    Format(
        "MetaTrader 5 dump",
        METATRADER_DUMP_PATTERN,
        (),
        METATRADER_CLOCK,
        FORMAT_OPTIONS,
        stamp_style="wall",
        spread="points",
    ),
    Format("Dukascopy", DUKASCOPY_PATTERN, (), "UTC", CLOCK_OPTIONS, stamp_style="dmy", volume_required=True),
    Format("JForex", r".*,time \((utc|gmt|eet)\),.*\n.*", (), "UTC", CLOCK_OPTIONS, volume_required=True),
    Format("FXCM CandleData", FXCM_PATTERN, (), "UTC", CLOCK_OPTIONS, stamp_style="mdy"),
    Format("yfinance", r",price(,(adj close|close|high|low|open|volume))+,\n.*", (), LONDON_CLOCK, side="mid"),
    Format("Yahoo", r".*,adj close,.*\n.*", (), LONDON_CLOCK, side="mid"),
    Format("Investing.com", r".*,price,.*change %,.*\n.*", side="mid"),
    Format("Stooq", r".*,otwarcie,.*\n.*"),
    Format("Myfxbook", r".*,change\(pips\),.*\n.*", stamp_style="mdy"),
    Format("Japanese", r".*,始値,.*\n.*", (), "Asia/Tokyo"),
    Format("CryptoDataDownload", r"(?=.*,symbol,).*,unix[^,]*,.*\n.*", (), "UTC", CLOCK_OPTIONS, "mid"),
    Format("Binance", r"(?=.*,close.?time,).*,open.?time,.*\n.*", (), "UTC", CLOCK_OPTIONS, "mid"),
    Format("Interactive Brokers", r".*,bar_?count,.*\n.*", side="mid", note=TWS_NOTE),
    # Of one who writes the spread of MetaTrader beside his bars.
    Format("unnamed spread", r",time(stamp)?,open,.*,volume,,\n.*,\d+", (*OHLCV_COLUMNS, "spread"), spread="points"),
    Format("canonical", r".*\n.*"),
)
PRICE_NAMES = {  # names of prices, those that are meant first
    "open": ("open", "o", "openprice", "otwarcie", "始値"),
    "high": ("high", "h", "highprice", "najwyzszy", "高値"),
    "low": ("low", "l", "lowprice", "najnizszy", "安値"),
    "close": ("close", "c", "closeprice", "zamkniecie", "終値", "price", "last", "closelast"),
}
TIME_COLUMN_NAME = re.compile(
    r"(?:gmt|utc|local|open|close|start|begin|end|bar|candle|unix|server|broker)?(?:date|time|datetime|timestamp|dtyyyymmdd)"
    r"(?:gmt|utc|local|eet|cet|est|ms|us|ns|s)?|unix|epoch|utc|t|dt|data|czas|日付|日時"
)
CLOSE_TIME_NAME = re.compile("close|end", re.IGNORECASE)  # of a time: it is that of the close
VOLUME_NAMES = ("volume", "tickvolume", "tickvol", "tickqty", "wolumen", "出来高", "vol", "v", "realvolume")
SPREAD_NAME = re.compile(r"spread(?:in)?(price|pips|points|)")
SYMBOL_NAMES = ("symbol", "ticker", "pair", "instrument")
SPREAD_UNITS = ("price", "pips", "points")
OTHER_DATE_ORDER = {"dmy": "mdy", "mdy": "dmy"}  # of dates, and the other one
MIN_BARS_FOR_DECIMALS = 5  # bars that tell whether zeros at the end of prices are dropped
MAX_DECIMALS = 6  # of a price: more are the noise of floats
TIMEZONES = {  # in names of columns and behind stamps
    **dict.fromkeys(("utc", "gmt", "z"), "UTC"),
    **dict.fromkeys(("eet", "eest"), METATRADER_CLOCK),
    **dict.fromkeys(("cet", "cest"), "Europe/Berlin"),
    **dict.fromkeys(("est", "edt"), "America/New_York"),
}
DECIMAL_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
# Decimal, or between thousands.
COMMA_NUMBER = re.compile(r"[+-]?(\d+|\d{1,3}(\.\d{3})+),[\d,]*\d(\.\d*)?", re.ASCII)
THOUSANDS_NUMBER = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?", re.ASCII)
TICKS_REMEDY = "ticks, not bars: make bars of them, for example one a minute, with time,open,high,low,close,volume"
FORMAT_REMEDY = "bring it to the header time,open,high,low,close,volume[,spread] with ISO or UNIX times"
MANY_PAIRS_PATTERN = r"[a-z]{6}(,+[a-z]{6})+,*(\n.*)+"
UNSUPPORTED = (  # what the head of an unknown file shows, and what to do
    (MANY_PAIRS_PATTERN, "many pairs side by side: make one file for each"),
    (rf"\d{{8}} \d{{9}}(,{PRICE_PATTERN}){{2,3}}", TICKS_REMEDY),
    (
        rf"\d{{1,8}}(,{PRICE_PATTERN}){{2,4}}|[^,\n]*time[^,\n]*,bid,ask\n.*|[a-z]{{3}}/?[a-z]{{3}},\d{{8}} .*",
        TICKS_REMEDY,
    ),
    (r"(date|time),([a-z]{3},)+([a-z]{3})?\n.*", "one rate of many currencies: no open, high and low"),
    (r"[{\[].*(\n.*)*", "JSON: a stream has one bar a line; bring the JSON as a file"),
    (r"(.*\n)?(\d{1,7}|\d+\.\d+),.*", "no time stamps: export the file with the time of each bar"),
)


class FileLayout(NamedTuple):
    """A format as one file has it."""

    format: Format  # with the clock, label, side and stamps that hold for this file
    separator: str
    columns: tuple[str, ...]  # roles: time, a price, volume, spread, complete, symbol, or none
    header_lines: int  # lines before the bars
    column_names: tuple[str, ...]  # of the columns
    file_date: str  # date in the name of the file, for stamps that have none
    spread_unit: str  # of the spread column: price, pips or points; empty without one
    decimals: int  # decimals of the prices: the most in the head, averages and the noise of floats aside
    fixed_decimals: bool  # every price of the head has so many: no zeros were dropped
    whole_spread: float  # a spread, where all are whole numbers beside prices that are not; otherwise zero
    symbol: str  # in the column of symbols
    path: str  # of the file, for messages
    has_thousands: bool  # a comma in a number is no decimal one
    is_final: bool  # more lines would tell no more of the above


class FileHead(NamedTuple):
    """The first lines of a file, taken apart."""

    separator: str
    header_lines: int  # lines before the bars
    column_names: list[str]  # of the columns; empty without a header
    rows: list[list[str]]  # fields of the bars, from line `header_lines` + 1 on
    normalised: str  # header and first bar: lower case, no quotes, commas between the fields and nowhere else


def first_lines(lines: Iterable[str]) -> list[str]:
    """The lines that a file is recognised by, as far as they are there."""
    return list(islice(lines, SNIFF_LINES))


def is_complete_head(head: list[str]) -> bool:
    """Whether these first lines are enough to recognise a file by."""
    return len(head) > MAX_HEADER or bool(head and is_bar_line(head[-1]))


def is_bar_line(line: str) -> bool:
    """Whether a line is no header: it begins with a digit or a date, or has two numbers."""
    cells = re.split(r"[\t;,|]", line)
    return bool(BAR_START.match(line)) or sum(is_number(cell.strip(' "')) for cell in cells) > 1


def is_number(cell: str) -> bool:
    """Whether a field is a number, perhaps with commas between its thousands."""
    return bool(DECIMAL_NUMBER.fullmatch(cell.strip()) or THOUSANDS_NUMBER.fullmatch(cell.strip()))


def split_fields(text: str, separator: str) -> list[str]:
    """The fields of a line; a separator between quotes is none."""
    if '"' not in text:
        return text.split(separator)
    try:
        return next(csv.reader([text], delimiter=separator, skipinitialspace=True), [])
    except csv.Error:
        return []


def parse_head(head: list[str], name: str) -> FileHead:
    """Header and bars of the first lines; DataError if there is no bar."""
    header = next((i for i, line in enumerate(head) if is_bar_line(line)), len(head) - 1)
    bare = [re.sub('"[^"]*"', "", line) for line in head[: header + 1] if line.strip()]
    separator = max("\t;|,", key=next((s for s in bare[-2:] if re.search(r"[\t;|,]", s)), "").count)
    rows = [split_fields(line, separator) for line in head[header:]]
    fields = [split_fields(decode_line(line), separator) for line in head[: header + 1] if line.strip()]
    lines = [",".join(cell.strip().replace(",", "_") for cell in line).lower() for line in fields]
    shown = "\n".join(lines)
    if not rows or re.fullmatch(MANY_PAIRS_PATTERN, shown) or not is_bar_line(head[header]):
        raise DataError(f"{name}: {unsupported_reason(shown)}")
    best: list[str] = []
    for line in fields[:-1]:  # the last that names the most prices: titles stand above
        best = [n.strip() for n in line] if len(price_columns(line)[1]) >= len(price_columns(best)[1]) else best
    best = best if len(best) > 1 else []
    return FileHead(separator, header, align_names(best, rows[0]), rows, shown)


def align_names(names: list[str], bar: list[str]) -> list[str]:
    """The names of a header for the fields of a bar: a separator may end either, an index have no name."""
    more = len(bar) - len(names) if names else 0
    if more == 1 and bar[-1].strip():
        torn = next((i for i in range(len(bar) - 1) if re.search(r":\d\d,\d{3}$", ",".join(bar[i : i + 2]))), -1)
        return [*names[: torn + 1], "", *names[torn + 1 :]]  # 22:00:00,000 is torn at its comma
    if more == 1:
        return [*names, ""]
    return names[: len(bar)] if more < 0 and not any(names[more:]) else names


def price_columns(names: list[str]) -> tuple[str, dict[str, int]]:
    """The side that the names of the prices say, and the column of each role."""
    spelt = [normalise_name(name) for name in names]
    best: tuple[str, dict[str, int]] = ("", {})
    for side in ("bid", "", "ask", "mid"):
        found = {}
        for role, words in PRICE_NAMES.items():
            sided = [form for word in words for form in dict.fromkeys((side + word, word + side))]
            if word := next((form for form in sided if form in spelt), ""):
                found[role] = spelt.index(word)
        if side == "ask" and best[0] == "bid" and len(found) == len(best[1]) == len(OHLC):
            best[1].update(ask_open=found["open"], ask_close=found["close"])
        elif len(found) > len(best[1]):
            best = side, found
    return best


def normalise_name(name: str) -> str:
    """A name of a column in the way it is looked up: lower case letters and digits."""
    return re.sub(r"[\W_]", "", name.lower())


def time_columns(names: list[str], bar: list[str]) -> tuple[int, ...]:
    """The column of the time, or those of date and time of day; none if no column has them."""
    cells = [cell.strip().lower() for cell in bar[: len(names)]]
    named = [
        i for i in range(len(cells)) if TIME_COLUMN_NAME.fullmatch(normalise_name(re.sub(r"\(.*\)", "", names[i])))
    ]
    dated = [i for i, cell in enumerate(cells) if re.fullmatch(f"{ANY_TIME}|{ANY_DATE}", cell)]
    known = [i for i in named if i in dated]
    known = [i for i in known if not CLOSE_TIME_NAME.match(names[i])] or known
    known = known or [i for i in dated if not names[i] or not cells[i].isdigit()]
    moments = [i for i in known if re.fullmatch(ANY_TIME, cells[i])]
    if moments:  # UNIX tells UTC by itself
        utc = [i for i in moments if re.fullmatch(UNIX_TIME, cells[i]) or named_timezone([names[i]]) == "UTC"]
        return (*utc, *moments)[:1]
    clocks = [i for i in named if i not in known and re.fullmatch(rf"{TIME_OF_DAY}|\d{{4}}|\d{{6}}", cells[i])]
    return (*known[:1], *clocks[:1]) if known else ()


def column_roles(head: FileHead, at: tuple[int, ...]) -> tuple[str, ...]:
    """The roles of the columns of a file with a header; `at`: those of the time."""
    names, bar = [normalise_name(name) for name in head.column_names], head.rows[0]
    roles = [""] * len(names)
    for role, i in price_columns(head.column_names)[1].items():
        roles[i] = role
    for i in at:
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
    """Whether a column with this name and first field has a role: a volume of -1, as of IB, is unknown."""
    if role in ("volume", "spread"):
        named = role == "volume" or SPREAD_NAME.fullmatch(word)
        return bool(named and is_number(cell) and not re.fullmatch(r"-1(\.0*)?", cell))
    return cell.lower() in ("true", "false") if role == "complete" else bool(cell)


def file_name(name: str) -> str:
    """The name of a file without its folder; of `bars.zip (EURUSD.csv)` what names the member comes first."""
    packed, _, member = Path(name).name.rpartition(" (")
    return f"{member} {packed}"


def detect_layout(head: list[str], options: ReadOptions, name: str) -> FileLayout:
    """The layout of a file called `name` from its `first_lines`, or from fewer of its first lines."""
    for flag, value, known in (
        ("dates", options.dates, OTHER_DATE_ORDER),
        ("spread-unit", options.spread_unit, SPREAD_UNITS),
    ):
        if value not in (None, *known):
            raise DataError(f"{name}: --{flag} {value}: {' or '.join(known)}")
    taken = parse_head(head, name)
    fmt, columns = detect_format(taken, name)
    if missing := {*OHLC} - {*columns}:
        raise DataError(f"{name}: no column for {', '.join(sorted(missing))}")
    fmt = resolve_format(fmt, taken, columns, options, name)
    return build_layout(fmt, taken, columns, options, name)


def detect_format(taken: FileHead, name: str) -> tuple[Format, tuple[str, ...]]:
    """The format that fits the first lines of a file, and the roles of its columns."""
    names, bar = taken.column_names, taken.rows[0]
    first, found = taken.normalised.rpartition("\n")[2], price_columns(names)[1]
    at = time_columns(names, bar)
    if names and len(found) > 1 and not at:
        raise DataError(f"{name}: line {taken.header_lines + 1}: {no_time_reason(names, bar)}")
    shown = f",{','.join(names).lower()},\n{stamp_text(bar, at)},{first}" if names else first.rstrip(",")
    fmt = next((fmt for fmt in FORMATS if matches_format(fmt, shown, taken.rows)), None)
    if fmt is None or (names and not found):
        find_thousands(FileHead(*taken[:3], [bar], taken.normalised), ("open",) * len(bar), name)
        raise DataError(f"{name}: {unsupported_reason(taken.normalised)}")
    if not fmt.columns:
        return fmt, column_roles(taken, at)
    used = fmt.columns[: len(bar)]
    return fmt, (*used, *[""] * (len(bar) - len(used)))


def matches_format(fmt: Format, shown: str, rows: list[list[str]]) -> bool:
    """Whether a file is of a format: what is `shown` of it, and whether its bars have volumes."""
    if not re.fullmatch(fmt.pattern, shown) or not fmt.no_volume:
        return bool(re.fullmatch(fmt.pattern, shown))
    at = fmt.columns.index("volume")
    volumes = [row[at].strip() for row in rows if len(row) > at and DECIMAL_NUMBER.fullmatch(row[at].strip())]
    return bool(volumes) and not any(map(float, volumes))


def stamp_text(fields: list[str], at: Iterable[int]) -> str:
    """The stamp of a bar: its fields at the columns of the time, lower case."""
    return " ".join(fields[i].strip() for i in at).lower()


def no_time_reason(names: list[str], bar: list[str]) -> str:
    """Why no column of a bar is taken for its time."""
    for name, cell in zip(names, bar, strict=False):
        if TIME_COLUMN_NAME.fullmatch(normalise_name(name)) and not re.fullmatch(r"\d{1,7}", cell):
            return (
                f"the time {cell.strip()[:40]!r} in column {name} is written in no way I know: "
                "write 2017-12-31T22:00:00Z, or UNIX seconds with all of their digits"
            )
    return "no time stamps: export the file with the time of each bar"


def resolve_format(fmt: Format, taken: FileHead, columns: tuple[str, ...], options: ReadOptions, name: str) -> Format:
    """A format with the stamps, clock, label and side of one file: the user says them, or it itself, or a model."""
    at = [i for i, role in enumerate(columns) if role == "time"]
    names, stamp = ([taken.column_names[i] for i in at] if taken.column_names else [], stamp_text(taken.rows[0], at))
    own = {what: getattr(fmt, what) for what in fmt.fixed_options}
    if side := price_columns(taken.column_names)[0]:
        own["side"] = side
    if any(map(CLOSE_TIME_NAME.match, names)):
        own["label"] = "close"
    if zone := named_timezone(names):
        own["timezone"] = zone
    elif behind := re.fullmatch(r".* ([a-z]{3,4})", stamp):
        fmt = fmt._replace(timezone=TIMEZONES.get(behind[1], fmt.timezone))
    memory = {what: value for what, value in options.model_defaults.items() if value != "both"}  # sides
    said = {what: getattr(options, what) or own.get(what) or memory.get(what) for what in FORMAT_OPTIONS}
    asks = fmt.question or (
        LOCAL_TIME_QUESTION if re.search("local|server|broker", normalise_name("".join(names))) else ""
    )
    if not has_utc_offset(stamp) and not all(said[flag] for flag in re.findall("--(timezone|label)", asks)):
        raise DataError(f"{name}: {asks}")
    written = "iso" if fmt.stamp_style in OTHER_DATE_ORDER else fmt.stamp_style
    if re.fullmatch(rf"{DAY_OR_MONTH_FIRST}.*", stamp):
        order = fmt.stamp_style if fmt.stamp_style in OTHER_DATE_ORDER else options.dates
        if order is None:
            raise DataError(f"{name}: is {stamp!r} day or month first? --dates dmy or --dates mdy")
        written = order
    if has_utc_offset(stamp) and written != "wall":
        own.pop("timezone", None)
    given: dict[str, Any] = {what: value for what, value in said.items() if value}
    return fmt._replace(stamp_style=written, fixed_options=tuple(own), **given)


def has_utc_offset(stamp: str) -> bool:
    """Whether a stamp says how far it is from UTC."""
    return bool(re.fullmatch(TIME_WITH_OFFSET, stamp) and not re.fullmatch(COMPACT_DATETIME, stamp))


def named_timezone(names: list[str]) -> str:
    """The clock that the names of the columns of the time speak of; empty if of none."""
    for name in names:
        for word in re.findall(r"[A-Za-z]+(?:/[A-Za-z_]+)+|[A-Za-z]+", name):
            if "/" in word or word.lower() in TIMEZONES:
                return str(TIMEZONES.get(word.lower(), word))
    return ""


def build_layout(fmt: Format, taken: FileHead, columns: tuple[str, ...], options: ReadOptions, name: str) -> FileLayout:
    """The layout of a file whose format and columns are known: what its numbers and its name tell."""
    rows = [[cell.strip() for cell in row] for row in taken.rows if len(row) == len(columns)]
    by_role = {role: [row[i] for row in rows] for i, role in enumerate(columns) if role}
    day = re.search(r"(?<!\d)\d{8}(?!\d)", file_name(name))
    if fmt.stamp_style == "midnight" and not day:
        raise DataError(
            f"{name}: stamps count from midnight: put the date into the file name, as in 20140505_quote.csv"
        )
    cells = [cell for role in OHLC for cell in by_role.get(role, [])]
    decimals = [len(cell.partition(".")[2]) for cell in cells if re.fullmatch(r"[\d,]*(\.\d*)?", cell)]
    digits = max([count for count in decimals if count <= MAX_DECIMALS] or decimals or [0])
    symbol = by_role.get("symbol", [""])[0]
    unit, doubt = resolve_spread_unit(fmt, taken.column_names, columns, options)
    whole = find_whole_spread(by_role.get("spread", [])) if doubt and digits else 0.0
    known = find_instrument(options.symbol or symbol or file_name(name))
    points = unit == "points" and not (known and math.isclose(known.point, 10.0**-digits))
    return FileLayout(
        fmt,
        taken.separator,
        columns,
        taken.header_lines,
        column_names=tuple(taken.column_names) or tuple(f"{i + 1}" for i in range(len(columns))),
        file_date=day[0] if day else "",
        spread_unit=unit,
        decimals=digits,
        fixed_decimals=len(rows) >= MIN_BARS_FOR_DECIMALS and min(decimals, default=0) == max(decimals, default=1),
        whole_spread=whole,
        symbol=symbol,
        path=name,
        has_thousands=find_thousands(taken, columns, name),
        is_final=not points and (not fmt.no_volume or None not in (options.timezone, options.label)),
    )


def resolve_spread_unit(
    fmt: Format, names: list[str], columns: tuple[str, ...], options: ReadOptions
) -> tuple[str, bool]:
    """The unit of a spread column, and whether nobody has said that it is the price."""
    if "spread" not in columns:
        return "", False
    named = SPREAD_NAME.fullmatch(normalise_name(names[columns.index("spread")])) if names else None
    said = options.spread_unit or (str(named[1]) if named else "")
    return said or fmt.spread, not said and fmt.spread == "price"


def find_whole_spread(cells: list[str]) -> float:
    """A spread of the head, where all are whole numbers and one is not zero; otherwise zero."""
    values = [float(cell) for cell in cells if DECIMAL_NUMBER.fullmatch(cell)]
    return max(values, default=0.0) if all(value.is_integer() for value in values) else 0.0


def find_thousands(taken: FileHead, columns: tuple[str, ...], name: str) -> bool:
    """Whether commas can only stand between the thousands of numbers; DataError where they could be decimal."""
    rows = [row for row in taken.rows if len(row) == len(columns)]
    has_point = any("." in cell for row in rows for cell, role in zip(row, columns, strict=True) if role in OHLC)
    for line, row in enumerate(taken.rows, taken.header_lines + 1):
        for cell, role in zip(row, columns, strict=False):
            comma = role in (*OHLC, "volume") and COMMA_NUMBER.fullmatch(cell.strip()) and len(row) == len(columns)
            if comma and not (has_point and THOUSANDS_NUMBER.fullmatch(cell.strip())):
                raise DataError(
                    f"{name}: line {line}: {cell.strip()!r}: a decimal comma, or one between thousands? write "
                    "numbers with a decimal point and without commas"
                )
    return has_point


def decode_line(line: str) -> str:
    """A line, read byte by byte as `parse_line` has it, in the letters that were meant."""
    for encoding in ("utf-8", "cp932"):
        try:
            return line.encode("latin-1").decode(encoding)
        except UnicodeError:
            continue
    return line


def unsupported_reason(shown: str) -> str:
    """Why a file whose header and first bar are `shown` is in no known format."""
    lines = shown.split("\n")
    if not shown.strip(",\n "):
        return "empty"
    for pattern, reason in UNSUPPORTED:
        if re.fullmatch(pattern, shown):
            return reason
    if not is_bar_line(lines[-1]) and len(lines) <= MAX_HEADER:
        return "no bars"
    if len(lines) > 1 and is_bar_line(lines[-1]):
        return f"no column is called open, high, low or close: {lines[-2][:80]!r}; {FORMAT_REMEDY}"
    known = ", ".join(dict.fromkeys(fmt.name for fmt in FORMATS))
    return f"line 1: not a format I know ({known}): {lines[0][:80]!r}; {FORMAT_REMEDY}"
