"""Bars as lines of text: which formats there are, what a line of each means, and what may be wrong with it.

`FORMATS` is the table of what is known; a file is recognised by its content.  `bars.py` reads files in bulk and
`feed.py` line by line with the same functions: those that say "alike" take a number or an array of numbers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
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
HOUR, DAY, WEEK = 3600 * NS, 86_400 * NS, 604_800 * NS
SATURDAY = 2 * DAY  # 1970-01-03, the first one
CLOSED = 44 * HOUR  # from Saturday 00:00 UTC: no market is open
QUARTER_S = 900  # clocks change at multiples of this
EPOCH, EPOCH_UTC, MICROSECOND = (
    datetime(1970, 1, 1),
    datetime(1970, 1, 1, tzinfo=UTC),
    timedelta(microseconds=1),
)
YEARS = range(1970, 2200)  # of a stamp
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
PRICES = ("open", "high", "low", "close", "ask_open", "ask_close")
NUMBERS = (*PRICES, "volume", "spread", "points")
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

    kind: str  # of KINDS
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
    head: str  # pattern of the first line, or of a header and the first line after it, in lower case
    separator: str
    stamp: str  # iso (or UNIX time), dotted (2016.04.22), day.month (22.04.2016), midnight (ms since)
    timezone: str  # of stamps that have no offset
    columns: tuple[str, ...] = ()


OHLC = ("open", "high", "low", "close")
PRICE = r"\d*\.?\d+"
DOTTED = r"\d{4}\.\d\d\.\d\d"
LEAN = ("time", *OHLC, "volume", "ask_open", "", "", "ask_close", "")
METATRADER = ("date", "time", *OHLC, "volume")
SERVER = "Europe/Athens"  # EET with European dates: the clock of nearly every MetaTrader server
# HistData says EST without daylight saving; measured, it moves to UTC-4 on the European dates: Athens less 7 hours.
HISTDATA = "Europe/Athens-7h"
FORMATS = (
    Format(
        "canonical",
        r"time(stamp|_utc)?,open,high,low,close(,volume)?(,spread)?\n(\d{9,10}|\d{12,13}|\d{4}-\d\d-\d\d[^,]*),.*",
        ",",
        "iso",
        "UTC",
    ),
    Format(
        "Dukascopy",
        r"(gmt[ _])?time,open,high,low,close,volume\n\d\d\.\d\d\.\d{4} .*",
        ",",
        "day.month",
        "UTC",
    ),
    Format(
        "MetaTrader 5",
        rf"<date>\t(<time>\t)?<open>\t<high>\t<low>\t<close>\t<tickvol>\t<vol>\t<spread>\n{DOTTED}\t.*",
        "\t",
        "dotted",
        SERVER,
    ),
    Format(  # only its volume tells it from an export of MetaTrader itself, where every bar has a tick
        "HistData MetaTrader", rf"{DOTTED},\d\d:\d\d(,{PRICE}){{4}},0", ",", "dotted", HISTDATA, METATRADER
    ),
    Format("MetaTrader 4", rf"{DOTTED},\d\d:\d\d(,{PRICE}){{5}}", ",", "dotted", SERVER, METATRADER),
    Format(
        "HistData ASCII", rf"\d{{8}} \d{{6}}(;{PRICE}){{5}}", ";", "iso", HISTDATA, ("time", *OHLC, "volume")
    ),
    Format("Lean", rf"\d{{8}} \d\d:\d\d(,{PRICE}){{10}}", ",", "iso", "UTC", LEAN),
    Format("Lean, one day", rf"\d{{1,8}}(,{PRICE}){{10}}", ",", "midnight", "UTC", LEAN),
)
ROLES = {  # of names in a header that are not themselves a role
    **dict.fromkeys(("timestamp", "time_utc", "gmt time", "gmt_time", "<time>"), "time"),
    **{f"<{name}>": name for name in OHLC},
    "<date>": "date",
    "<tickvol>": "volume",
    "<vol>": "",
    "<spread>": "points",
}
REFUSED = (  # what the first two lines of an unknown file show, and what to do
    (r"(^|[\t;\"])\d+,\d+([\t;\"]|$)", "decimal commas: write the prices with a point"),
    (
        r"^\"?\d{1,2}[/.-]\d{1,2}[/.-]\d{4}",
        "day or month first, nobody can tell: write the dates as 2017-12-31",
    ),
    (r"^(\d{1,7}|\d+\.\d+)[,;\t]", "no time stamps: export the file with the time of each bar"),
)


class Layout(NamedTuple):
    """A format as one file has it."""

    format: Format
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
    interval_ns: int


def recognise(first: str, second: str, name: str) -> Layout:
    """The layout of a file called `name` from its first two lines; only files with a header need the second."""
    header = 0 if first[:1].isdigit() else 1
    head = f"{first.strip()}\n{second}" if header else first
    for fmt in FORMATS:
        if re.fullmatch(fmt.head, head.lower()):
            break
    else:
        raise DataError(f"{name}: {refusal(first, second)}")
    columns = fmt.columns or tuple(ROLES.get(c, c) for c in first.strip().lower().split(fmt.separator))
    day = re.search(r"(?<!\d)\d{8}(?!\d)", Path(name).name)
    if fmt.stamp == "midnight" and not day:
        raise DataError(
            f"{name}: stamps count from midnight: put the date into the file name, as in 20140505_quote.csv"
        )
    open_text = dict(zip(columns, (second if header else first).split(fmt.separator), strict=False)).get(
        "open", ""
    )
    return Layout(
        fmt, columns, header, day[0] if day else "", 10.0 ** -len(open_text.partition(".")[2].strip())
    )


def refusal(first: str, second: str) -> str:
    """Why a file that begins like this is in no known format."""
    if not second.strip() and not first[:1].isdigit():
        return "no bars" if first.strip() else "empty"
    for pattern, reason in REFUSED:
        if re.search(pattern, first) or re.search(pattern, second):
            return reason
    known = ", ".join(fmt.name for fmt in FORMATS)
    return (
        f"line 1: not a format I know ({known}): {first[:80]!r}; bring it to the header "
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
        side = found[1] if found else "bid"
        notes.append(f"side {side}: {'from the file name' if found else 'assumed'} (--side)")
    elif side not in SHARE_BELOW:
        raise DataError(f"{name}: --side {side}: the file has one side, say which: {', '.join(SHARE_BELOW)}")
    label = options.label or LABEL
    if label not in ("open", "close"):
        raise DataError(f"{name}: --label {label}: open or close")
    timezone = options.timezone or layout.format.timezone
    parse_clock(timezone)
    if options.pip is None and price > SCALED:
        raise DataError(f"{name}: prices of about {price:g} look like points; if they are prices, say --pip")
    usual_pip = 0.01 if price > 20 else 0.0001
    pip = usual_pip if options.pip is None else options.pip
    spread_pips = SPREAD_PIPS if options.spread_pips is None else options.spread_pips
    if not (0 < pip < np.inf and 0 <= spread_pips < np.inf):
        raise DataError(
            f"{name}: --pip {pip:g}, --spread {spread_pips:g}: neither may be negative, nor a pip zero"
        )
    return Rules(side, timezone, label, spread_pips * pip, pip, interval_ns), notes


@lru_cache
def parse_clock(name: str) -> tuple[ZoneInfo, int]:
    """Zone and shift in seconds of an IANA name, or of one with a shift in hours: Europe/Athens-7h, UTC+2h."""
    shifted = re.fullmatch(r"(.+?)([+-]\d{1,2})h", name)
    try:
        return (ZoneInfo(shifted[1]), int(shifted[2]) * 3600) if shifted else (ZoneInfo(name), 0)
    except (KeyError, ValueError, OSError):
        raise DataError(f"--timezone {name}: not a zone; for example UTC, Europe/Athens, UTC+2h") from None


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
    if kind == "midnight":
        milliseconds = int(text)
        if not 0 <= milliseconds < DAY // 1_000_000:
            raise ValueError(text)
        return (datetime.fromisoformat(day) - EPOCH) // MICROSECOND * 1000 + milliseconds * 1_000_000, False
    if kind == "dotted":
        text = text.replace(".", "-", 2)
    elif kind == "day.month":
        text = f"{text[6:10]}-{text[3:5]}-{text[:2]}{text[10:]}" if text[2:6:3] == ".." else ""
    elif text.isdigit() and len(text) in (9, 10, 12, 13):
        return int(text) * (NS if len(text) <= 10 else 1_000_000), True
    stamp = datetime.fromisoformat(text)
    if stamp.year not in YEARS:
        raise ValueError(text)
    if stamp.tzinfo is None:
        return (stamp - EPOCH) // MICROSECOND * 1000, False
    return (stamp - EPOCH_UTC) // MICROSECOND * 1000, True


def to_utc(stamp_ns: Ints, is_utc: NDArray[np.bool_], clock: str) -> Ints:
    """Stamps [T] by `clock` in UTC."""
    quarter, where = np.unique(stamp_ns // (QUARTER_S * NS), return_inverse=True)
    offsets = np.array([offset_ns(clock, int(q)) for q in quarter], np.int64)
    return np.where(is_utc, stamp_ns, stamp_ns - offsets[where])


def parse_line(text: str, layout: Layout) -> tuple[int, bool, dict[str, float]] | None:
    """Stamp, whether it is UTC, and numbers by role of one line; None if it is not a bar."""
    fields = text.split(layout.format.separator)
    if len(fields) != len(layout.columns):
        return None
    numbers, stamp = {}, []
    for role, value in zip(layout.columns, fields, strict=True):
        if role in NUMBERS:
            if not NUMBER.fullmatch(value.strip(whitespace)):
                return None
            numbers[role] = float(value)
        elif role:
            stamp.append(value)
    try:
        return *parse_stamp(layout.format.stamp, " ".join(stamp), layout.day), numbers
    except (ValueError, OverflowError):
        return None


def quotes(columns: Any, rules: Rules, point: float) -> dict[str, Any]:
    """The columns of `Bars` without the time, from those of a file: bid, ask and volume; alike."""
    spread = columns["spread"] if "spread" in columns else rules.spread_px
    spread = columns["points"] * point if "points" in columns else spread
    below = SHARE_BELOW.get(rules.side, 0.0) * spread
    quote = {name: columns[name] - below for name in OHLC}
    quote["ask_open"] = columns["ask_open"] if rules.side == "both" else columns["open"] + (spread - below)
    quote["ask_close"] = columns["ask_close"] if rules.side == "both" else columns["close"] + (spread - below)
    quote["volume"] = columns["volume"] if "volume" in columns else columns["open"] * 0.0
    return quote


def row_faults(quote: Any, utc: Any, has_volume: bool) -> dict[str, Any]:
    """Which faults a row has by itself; `has_volume`: the file gives volumes, so a bar without one is filler; alike."""
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
    """Length of a bar in nanoseconds: the commonest step, which must be the one that was asked for."""
    step = common_step(utc)
    wanted = None if options.interval_s is None else options.interval_s * NS
    if step is None and wanted is None:
        reason = "no bar is later than the one before: is the newest first?" if len(utc) > 1 else "bring more"
        raise DataError(f"{name}: {len(utc)} bars do not tell how long a bar is: {reason}")
    interval_ns = step if wanted is None else wanted
    if interval_ns is None or interval_ns < NS or interval_ns % NS:
        raise DataError(f"{name}: steps of {(interval_ns or 0) / NS:g} s: bars last whole seconds")
    if step not in (None, interval_ns) and not (np.diff(utc) == interval_ns).any():
        raise DataError(f"{name}: bars of {(step or 0) / NS:g} s where {interval_ns / NS:g} s are wanted")
    return interval_ns


def iso(time_ns: int) -> str:
    """A time in words of ISO 8601, UTC."""
    return str(np.datetime_as_string(np.datetime64(int(time_ns), "ns"), unit="s")) + "Z"
