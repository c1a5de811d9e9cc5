"""The table of the formats that files of bars have, and the types that every reader of such files shares.

`FORMATS` lists what is special about the files of one source: the pattern that its first lines match, its clock, side,
label and units.  `layout.py` finds the format of a file, `parsing.py` parses a line of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from host.data.instruments import Instrument

MAX_LINE = 4096  # bytes
PROBLEM_KINDS = {  # every kind of problem that a file may have
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
    "hole": "bars are missing, more than ten in a row",
    "unreadable": "the file is in no known format, or leaves open what would change its prices",
}


class Problem(NamedTuple):
    """One thing that is wrong with a file."""

    kind: str  # a key of PROBLEM_KINDS
    line: int  # of the file, from 1; 0 between files
    text: str


@dataclass(frozen=True)
class ReadOptions:
    """What the user says about a file; None leaves it to the file, its name, or the default of its format."""

    symbol: str | None = None  # what is traded
    side: str | None = None  # bid, ask, mid, or both where the file has both
    # An IANA name, or one with a shift as in UTC+2h.  Stamps with their own offset ignore it.
    timezone: str | None = None
    label: str | None = None  # open or close: what a stamp marks
    spread_pips: float | None = None  # replaces the spread of the file
    spread_unit: str | None = None  # price, pips or points: of the spread column of the file
    pip: float | None = None  # price of a pip
    point: float | None = None  # price of a unit, where the file counts in points
    dates: str | None = None  # dmy or mdy, where a date could be either
    interval_s: int | None = None  # length of a bar; None: the commonest step
    drop_bad: bool = False
    # The options of a model's training, by the names above.  They hold where neither user nor format decides.
    model_defaults: Mapping[str, Any] = field(default_factory=dict)

    def explicit(self) -> dict[str, Any]:
        """The options of the user by name, without the defaults of a model."""
        return {option.name: getattr(self, option.name) for option in fields(self) if option.name != "model_defaults"}


@dataclass(frozen=True)
class Source:
    """Where bars came from, and every assumption that was made to read them."""

    path: str
    format: str
    rows: int  # bars
    first: str  # close of the first bar, UTC
    last: str
    interval_s: int
    timezone: str
    label: str
    side: str
    spread: str  # its amount, in pips, as a share of the mean bar range, and its origin
    spread_origin: str  # given, assumed, as in training, or where in the file
    spread_pips: float | None  # None: the file has spreads
    spread_px: float  # mean of ask - bid at the closes
    range_px: float  # mean of high - low
    hours: str  # when the market is closed, as the bars show it
    instrument: Instrument  # with the pip and the spread that were given
    sha256: str  # of the bytes of the file
    problems: list[Problem] = field(default_factory=list)  # at most MAX_LISTED of a kind
    gaps: list[Problem] = field(default_factory=list)  # gaps that are no weekend, at most MAX_LISTED
    assumed: list[str] = field(default_factory=list)  # flags that would state each assumption
    notes: list[str] = field(default_factory=list)
    gap_notes: list[str] = field(default_factory=list)  # on all gaps, and on the hours that the bars show


class DataError(ValueError):
    """The file cannot be read as asked; the message names file, line, reason and remedy."""

    exit_code = 4

    def __init__(self, message: str, source: Source | None = None) -> None:
        super().__init__(message)
        self.source = source  # lists the problems, where bad rows are the reason


class Format(NamedTuple):
    """A kind of file; in a `FileLayout`, that kind with the options of one file."""

    name: str
    # Lower case.  Without a header it matches the first bar, otherwise `,names,\nstamp,bar`.
    pattern: str
    columns: tuple[str, ...] = ()  # roles of a file without header, whose lines may end early
    timezone: str = "UTC"  # of stamps that have no offset
    fixed_options: tuple[str, ...] = ()  # which of timezone, side and label the format fixes; the rest are defaults
    side: str = "bid"
    label: str = "open"
    # iso: the year first, or UNIX time; wall: the same, never UTC; dmy; mdy; midnight: milliseconds since midnight.
    stamp_style: str = "iso"
    spread: str = "price"  # unit of a spread column: price, pips or points
    volume_required: bool = False  # a real bar has a volume: one without is filler
    no_volume: bool = False  # no bar has a volume: a file with volumes matches a later format
    note: str = ""  # what was decided, and the flags that overrule it
    question: str = ""  # what the file leaves open, and the flags that answer it


OHLC = ("open", "high", "low", "close")
# Each pattern matches in one way only, so that a hostile line costs no more than its length.
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
# A time whose date is not one of those where the first number may be day or month.
UNAMBIGUOUS_TIME = rf"(?:(?!{DAY_OR_MONTH_FIRST})(?:{ANY_DATE}|{ANY_TIME}|{ANY_DATE},{TIME_OF_DAY}))"
OHLCV_COLUMNS = ("time", *OHLC, "volume")
LEAN_COLUMNS = (*OHLCV_COLUMNS, "ask_open", "", "", "ask_close", "")
OANDA_COLUMNS = ("time", "complete", *OHLC, "volume")
METATRADER_COLUMNS = ("time", *OHLCV_COLUMNS)
HEADERLESS_METATRADER_COLUMNS = (*METATRADER_COLUMNS, "", "spread")
METATRADER_CLOCK = "Europe/Athens"  # EET with European dates: the clock of nearly every MetaTrader server
# HistData documents EST without daylight saving.  Its files move to UTC-4 on the European dates: Athens less 7 hours.
HISTDATA_CLOCK = "Europe/Athens-7h"
LONDON_CLOCK = "Europe/London"
TIMEZONES = {  # by their abbreviations, in names of columns and behind stamps
    **dict.fromkeys(("utc", "gmt", "z"), "UTC"),
    **dict.fromkeys(("eet", "eest"), METATRADER_CLOCK),
    **dict.fromkeys(("cet", "cest"), "Europe/Berlin"),
    **dict.fromkeys(("est", "edt"), "America/New_York"),
}
DECIMAL_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
COMMA_NUMBER = re.compile(r"[+-]?(\d+|\d{1,3}(\.\d{3})+),[\d,]*\d(\.\d*)?", re.ASCII)  # a decimal comma, or thousands
THOUSANDS_NUMBER = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?", re.ASCII)
FORMAT_OPTIONS, CLOCK_OPTIONS = ("timezone", "side", "label"), ("timezone", "label")
NO_VOLUME_NOTE = (
    f"no bar has a volume: HistData; if not, --timezone {METATRADER_CLOCK} for MetaTrader, --timezone UTC "
    "--label close for NinjaTrader"
)
TWS_NOTE = "stamps without an offset follow the clock that TWS is set to: --timezone"
VOLUME_QUESTION = (
    "bars have volumes, which HistData never has: NinjaTrader writes UTC and marks the end of a bar "
    f"(--timezone UTC --label close), HistData has --timezone {HISTDATA_CLOCK} --label open: say which"
)
NO_VOLUME_QUESTION = (
    f"without volumes nothing tells HistData (--timezone {HISTDATA_CLOCK} --label open) from NinjaTrader (--timezone "
    "UTC --label close): say which"
)
LOCAL_TIME_QUESTION = (
    "local time, but of where? --timezone Europe/Berlin, for example; of most servers: --timezone Europe/Athens"
)
METATRADER_DUMP_PATTERN = r"(?!.*,volume,).*,(tick_?volume|real_?volume),.*\n.*"
DUKASCOPY_PATTERN = (
    r".*,((gmt[ _])?time,.*\n\d\d\.\d\d\.\d{4} |local[ _]time,.*\n\d\d\.\d\d\.\d{4} [^,]* gmt[+-]\d{4},).*"
)
FXCM_PATTERN = r"(?=.*,bidopen,)(?=.*,askopen,).*,datetime,.*\n\d\d?/\d\d?/\d{4} .*"
P4, P5, P6, P7, P9, P10, P11, P45, P456 = (
    rf"(,{PRICE_PATTERN}){{{count}}}" for count in ("4", "5", "6", "7", "9", "10", "11", "4,5", "4,6")
)
DOTTED_TIME = rf"{DOTTED_DATE},{TIME_OF_DAY}"
OANDA_PATTERN = rf"{UNAMBIGUOUS_TIME},(true|false)"
# What formats of one source have in common.
HISTDATA: dict[str, Any] = {"timezone": HISTDATA_CLOCK, "fixed_options": FORMAT_OPTIONS, "no_volume": True}
SERVER_CLOCK: dict[str, Any] = {"timezone": METATRADER_CLOCK, "fixed_options": FORMAT_OPTIONS}
METATRADER: dict[str, Any] = {**SERVER_CLOCK, "volume_required": True}
UTC_CLOCK: dict[str, Any] = {"timezone": "UTC", "fixed_options": CLOCK_OPTIONS}
FORMATS = (  # a file has the first that it matches
    # Only the missing volume tells this one from the next, an export of MetaTrader itself, where every bar has a tick.
    Format("HistData MetaTrader", rf"{DOTTED_TIME}{P45}", METATRADER_COLUMNS, **HISTDATA, note=NO_VOLUME_NOTE),
    Format("MetaTrader 4", rf"{DOTTED_TIME}{P45}", METATRADER_COLUMNS, **METATRADER),
    Format("MetaTrader 5", rf"{DOTTED_TIME}{P7}", HEADERLESS_METATRADER_COLUMNS, **METATRADER, spread="points"),
    Format("MetaTrader 5 chart", rf"{DOTTED_DATE}[ ,]{TIME_OF_DAY}{P456}", (*OHLCV_COLUMNS, ""), **METATRADER),
    Format("HistData ASCII", rf"\d{{8}} \d{{6}}{P5}", OHLCV_COLUMNS, **HISTDATA, note=NO_VOLUME_NOTE),
    Format("NinjaTrader", rf"\d{{8}} \d{{6}}{P5}", OHLCV_COLUMNS, question=VOLUME_QUESTION),
    Format("HistData or NinjaTrader", rf"\d{{8}} \d{{6}}{P4}", OHLCV_COLUMNS, question=NO_VOLUME_QUESTION),
    Format("Lean", rf"\d{{8}} \d\d:\d\d{P10}", LEAN_COLUMNS),
    Format("Lean, one day", rf"\d{{1,8}}{P10}", LEAN_COLUMNS, stamp_style="midnight"),
    Format("OANDA", rf"{OANDA_PATTERN}{P5}", OANDA_COLUMNS, **UTC_CLOCK, side="mid", volume_required=True),
    # `containers.candle_to_csv` writes candles with bid and ask so.
    Format("OANDA", rf"{OANDA_PATTERN}{P9}", (*OANDA_COLUMNS, *LEAN_COLUMNS[6:10]), **UTC_CLOCK, volume_required=True),
    Format("Kraken", rf"\d{{10}}{P6}", (*OHLCV_COLUMNS, ""), **UTC_CLOCK, side="mid"),
    Format("Binance", rf"(\d{{13}}|\d{{16}}){P11}", (*OHLCV_COLUMNS, *[""] * 6), **UTC_CLOCK, side="mid"),
    Format("no header", rf"{ANY_DATE},({TIME_OF_DAY}|\d{{6}}){P45}", METATRADER_COLUMNS),
    Format("no header", rf"{UNAMBIGUOUS_TIME},000{P45}", ("time", "", *OHLCV_COLUMNS[1:])),  # of a second
    Format("no header", rf"({UNAMBIGUOUS_TIME}|{DAY_OR_MONTH_FIRST}[^,]*){P45}", OHLCV_COLUMNS),
    Format("no header", rf"[a-z/]{{6,7}},{COMPACT_DATE},\d{{6}}{P45}", ("symbol", *METATRADER_COLUMNS)),
    Format("MetaTrader 5", rf".*,<open>,.*\n{DOTTED_DATE}.*", **METATRADER, spread="points"),
    # Written by the Python API: stamps of the server's clock that claim to be UTC.
    Format("MetaTrader 5 dump", METATRADER_DUMP_PATTERN, **SERVER_CLOCK, stamp_style="wall", spread="points"),
    Format("Dukascopy", DUKASCOPY_PATTERN, **UTC_CLOCK, stamp_style="dmy", volume_required=True),
    Format("JForex", r".*,time \((utc|gmt|eet)\),.*\n.*", **UTC_CLOCK, volume_required=True),
    Format("FXCM CandleData", FXCM_PATTERN, **UTC_CLOCK, stamp_style="mdy"),
    Format("yfinance", r",price(,(adj close|close|high|low|open|volume))+,\n.*", (), LONDON_CLOCK, side="mid"),
    Format("Yahoo", r".*,adj close,.*\n.*", (), LONDON_CLOCK, side="mid"),
    Format("Investing.com", r".*,price,.*change %,.*\n.*", side="mid"),
    Format("Stooq", r".*,otwarcie,.*\n.*"),
    Format("Myfxbook", r".*,change\(pips\),.*\n.*", stamp_style="mdy"),
    Format("Japanese", r".*,始値,.*\n.*", (), "Asia/Tokyo"),
    Format("CryptoDataDownload", r"(?=.*,symbol,).*,unix[^,]*,.*\n.*", **UTC_CLOCK, side="mid"),
    Format("Binance", r"(?=.*,close.?time,).*,open.?time,.*\n.*", **UTC_CLOCK, side="mid"),
    Format("Interactive Brokers", r".*,bar_?count,.*\n.*", side="mid", note=TWS_NOTE),
    # Bars of MetaTrader whose last column, the spread, has no name.
    Format("unnamed spread", r",time(stamp)?,open,.*,volume,,\n.*,\d+", (*OHLCV_COLUMNS, "spread"), spread="points"),
    Format("canonical", r".*\n.*"),
)
TICKS_REMEDY = "ticks, not bars: make bars of them, for example one a minute, with time,open,high,low,close,volume"
FORMAT_REMEDY = "bring it to the header time,open,high,low,close,volume[,spread] with ISO or UNIX times"
MANY_PAIRS_PATTERN = r"[a-z]{6}(,+[a-z]{6})+,*(\n.*)+"
UNSUPPORTED = (  # what the first lines of an unknown file match, and what to do
    (MANY_PAIRS_PATTERN, "many pairs side by side: make one file for each"),
    (rf"\d{{8}} \d{{9}}(,{PRICE_PATTERN}){{2,3}}", TICKS_REMEDY),
    (rf"\d{{1,8}}(,{PRICE_PATTERN}){{2,4}}", TICKS_REMEDY),
    (r"[^,\n]*time[^,\n]*,bid,ask\n.*|[a-z]{3}/?[a-z]{3},\d{8} .*", TICKS_REMEDY),
    (r"(date|time),([a-z]{3},)+([a-z]{3})?\n.*", "one rate of many currencies: no open, high and low"),
    (r"[{\[].*(\n.*)*", "JSON: a stream has one bar a line; bring the JSON as a file"),
    (r"(.*\n)?(\d{1,7}|\d+\.\d+),.*", "no time stamps: export the file with the time of each bar"),
)
