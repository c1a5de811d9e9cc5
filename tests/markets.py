"""Bars of many instruments at the scale of their prices: walks without meaning, by the hours of their market."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from host.data.instruments import ALWAYS, DAILY_BREAK, FX, find_instrument
from kernels.market.bars import NS
from tests.naive import NEW_YORK

FIRST = datetime(2024, 9, 2, tzinfo=UTC)


def closes(first: datetime, days: int, minutes: int, is_open: Any) -> Any:
    """[T] closes of the bars of `minutes` that open while `is_open(New York time)`."""
    step = timedelta(minutes=minutes)
    opens = [first + i * step for i in range(days * 24 * 60 // minutes)]
    kept = [t for t in opens if is_open(t.astimezone(NEW_YORK))]
    return np.array([int((t + step).timestamp()) * NS for t in kept], np.int64)


def week_of(t: datetime) -> float:
    """Hours since Monday 00:00 by a clock."""
    return t.weekday() * 24 + t.hour + t.minute / 60


def gold(t: datetime) -> bool:
    """Sunday 18:00 to Friday 17:00 New York, but for the hour from 17:00."""
    return not (4 * 24 + 17 <= week_of(t) < 6 * 24 + 18) and t.hour != 17


def index(t: datetime) -> bool:
    """An index that pauses for 3 h 15 and over the weekend."""
    paused = 16 * 60 <= t.hour * 60 + t.minute < 19 * 60 + 15
    return not (paused or 4 * 24 + 16 <= week_of(t) < 6 * 24 + 19.25)


def two_pauses(t: datetime) -> bool:
    """An index with a pause at noon besides the one at night."""
    return index(t) and t.hour != 12


def pair(t: datetime) -> bool:
    """Sunday 17:00 to Friday 17:00 New York."""
    return not 4 * 24 + 17 <= week_of(t) < 6 * 24 + 17


class Kind(NamedTuple):
    """A market to make bars of."""

    price: float
    day: float  # standard deviation of a day's move, of the price
    minutes: int
    trades: Callable[[datetime], bool] | None = None  # None: as the table says


KINDS = {
    "EURUSD": Kind(1.1, 0.005, 5),
    "GBPJPY": Kind(190.0, 0.007, 15),
    "USDSEK": Kind(10.5, 0.007, 60),
    "USDNOK": Kind(10.8, 0.007, 240),
    "USDMXN": Kind(18.0, 0.008, 60),
    "USDZAR": Kind(18.5, 0.009, 60),
    "USDTRY": Kind(33.0, 0.006, 240),
    "EURHUF": Kind(395.0, 0.005, 60),
    "EURCZK": Kind(25.0, 0.004, 60),
    "USDCNH": Kind(7.2, 0.003, 15),
    "XAUUSD": Kind(2600.0, 0.01, 5),
    "XAGUSD": Kind(31.0, 0.018, 15),
    "US30": Kind(42_000.0, 0.009, 5),
    "US500": Kind(5800.0, 0.01, 15),
    "DE40": Kind(19_000.0, 0.01, 5, index),
    "JP225": Kind(38_000.0, 0.013, 60, two_pauses),
    "USOIL": Kind(71.0, 0.02, 15),
    "NATGAS": Kind(2.8, 0.035, 60),
    "BTCUSD": Kind(65_000.0, 0.025, 5),
    "ETHUSD": Kind(2600.0, 0.03, 60),
}
TRADES: dict[str, Callable[[datetime], bool]] = {FX: pair, DAILY_BREAK: gold, ALWAYS: lambda t: True}


def write_bars(path: Path, symbol: str, kind: Kind, bars: int, gone: slice = slice(0)) -> Path:
    """A CSV of so many `bars` by the canonical header, without those of `gone`."""
    instrument = find_instrument(symbol)
    assert instrument
    trades = kind.trades or TRADES[instrument.hours]
    time = closes(FIRST, 30 + 6 * bars * kind.minutes // 1440, kind.minutes, trades)[:bars]
    assert len(time) == bars
    draw = np.random.default_rng(bars)
    moves = draw.standard_normal((4, bars)) * kind.day * np.sqrt(kind.minutes / 1440)
    close = kind.price * np.exp(np.cumsum(moves[0]))
    start = np.append(kind.price, close[:-1])
    high = np.maximum(start, close) * (1 + np.abs(moves[1]) / 3)
    low = np.minimum(start, close) * (1 - np.abs(moves[2]) / 3)
    digits = max(0, round(-np.log10(instrument.point)))
    opened = (time - kind.minutes * 60 * NS).astype("datetime64[ns]")
    rows = [
        f"{stamp}Z,{o:.{digits}f},{h:.{digits}f},{lo:.{digits}f},{c:.{digits}f},{volume}"
        for stamp, o, h, lo, c, volume in zip(
            np.datetime_as_string(opened, unit="s"), start, high, low, close, range(1, bars + 1), strict=True
        )
    ]
    del rows[gone]
    path.write_text("time,open,high,low,close,volume\n" + "\n".join(rows) + "\n")
    return path
