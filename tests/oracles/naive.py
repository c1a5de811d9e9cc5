"""Slow, independent twins, written from the text of the design and never from the kernels.

`Broker` keeps a book of objects; nights come from the calendar of New York.  `wandering_bars` are awkward on purpose:
gaps between close and open, a spread that changes, weekends cut out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

from kernels.market.bars import SECOND_NS, Bars
from kernels.market.ledger import Market
from kernels.market.position import (
    ADVERSE_EXCURSION,
    ENTRY_COST,
    HELD,
    MAE,
    MFE,
    NUM_POSITION_FIELDS,
    PREVIOUS_SIDE,
    SIDE,
    UNREALISED,
)

NEW_YORK = ZoneInfo("America/New_York")
MONDAY = int(datetime(2024, 1, 1, tzinfo=UTC).timestamp()) * SECOND_NS


def moment(ns: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=int(ns) // 1000)


def rolls(after: datetime, until: datetime) -> int:
    """Nights paid at the 17:00s of New York in (after, until]; Wednesday's is triple, weekends have none."""
    nights, day = 0, after.astimezone(NEW_YORK).date()
    while day <= until.astimezone(NEW_YORK).date():
        if after < datetime.combine(day, time(17), NEW_YORK) <= until:
            nights += [1, 1, 3, 1, 1, 0, 0][day.weekday()]
        day += timedelta(days=1)
    return nights


@dataclass
class Deal:
    """A position from fill to fill."""

    side: str
    size: float
    bar: int
    price: float
    level: float  # what it is marked against without the spread
    excursions: list[float] = field(default_factory=list)
    swap: float = 0.0
    marked: float = 0.0
    exit_bar: int = -1
    exit_price: float = 0.0
    profit: float = 0.0

    def gain(self, price: float) -> float:
        return self.size * (price - self.price if self.side == "long" else self.price - price)

    def row(self) -> list[float]:
        """The deal as a trade of the ledger."""
        sign, held = 1 if self.side == "long" else -1, self.excursions
        fills = [self.bar, self.exit_bar, sign * self.size, self.price, self.exit_price]
        return [*fills, self.profit, sum(held), len(held), self.swap]


class Broker:
    """Takes an order at a close and fills it at the next open."""

    def __init__(self, bars: Bars, market: Market) -> None:
        self.bars, self.market = bars, market
        self.open: Deal | None = None
        self.closed: list[Deal] = []

    def equity(self) -> float:
        banked = sum(deal.profit for deal in self.closed)
        return banked + (self.open.marked + self.open.swap if self.open else 0.0)

    def orders(self) -> list[str]:
        """All orders: entries name their size where it is not a full position."""
        sizes = [size for size in self.market.sizes if size > 0]
        return ["HOLD", *(f"{side} {s:g}".removesuffix(" 1") for side in ("BUY", "SELL") for s in sizes), "CLOSE"]

    def allowed(self) -> list[str]:
        if self.open is None:
            return self.orders()[:-1]
        turn = {"long": "SELL", "short": "BUY"}[self.open.side]
        return ["HOLD", "CLOSE", *(o for o in self.orders() if o.startswith(turn) and self.market.reverse)]

    def trade(self, order: str, t: int) -> float:
        """Reward in R between the closes of bars t and t + 1."""
        before, bars = self.equity(), self.bars
        opening = moment(bars.time[t + 1] - self.market.interval_ns)
        seen, closing = moment(bars.time[t]), moment(bars.time[t + 1])
        opening = max(opening, seen)
        self._carry(seen, opening)
        if order != "HOLD" and self.open:
            self._exit(t + 1, float(bars.open[t + 1]), float(bars.ask_open[t + 1]))
        if order.startswith(("BUY", "SELL")):
            self._enter(*f"{order} 1".split()[:2], t + 1)
        self._carry(opening, closing)
        self._value(t + 1)
        excursion = self.open.excursions[-1] if self.open else 0.0
        return (self.equity() - before - self.market.mae_penalty * excursion) / self.market.range_px

    def finish(self, t: int) -> float:
        before = self.equity()
        if self.open:
            self._exit(t, float(self.bars.close[t]), float(self.bars.ask_close[t]))
        return (self.equity() - before) / self.market.range_px

    def _carry(self, after: datetime, until: datetime) -> None:
        if self.open:
            long = self.open.side == "long"
            rate = self.market.swap_long_px if long else self.market.swap_short_px
            self.open.swap += self.open.size * rolls(after, until) * rate

    def _enter(self, order: str, size: str, t: int) -> None:
        bid, ask = float(self.bars.open[t]), float(self.bars.ask_open[t])
        if order == "BUY":
            self.open = Deal("long", float(size), t, ask + self.market.slippage_px, bid)
        else:
            self.open = Deal("short", float(size), t, bid - self.market.slippage_px, ask)

    def _exit(self, t: int, bid: float, ask: float) -> None:
        deal = self.open
        assert deal
        slippage = self.market.slippage_px
        deal.exit_bar, deal.exit_price = t, bid - slippage if deal.side == "long" else ask + slippage
        commission = 2 * self.market.commission_px * deal.size
        deal.profit = deal.gain(deal.exit_price) - commission + deal.swap
        self.closed.append(deal)
        self.open = None

    def _value(self, t: int) -> None:
        if self.open:
            price = float(self.bars.close[t] if self.open.side == "long" else self.bars.ask_close[t])
            self.open.marked = self.open.gain(price) - self.market.commission_px * self.open.size
            lost = self.open.level - price if self.open.side == "long" else price - self.open.level
            self.open.excursions.append(max(0.0, lost) * self.open.size)


def wandering_bars(seed: int, n: int, minutes: int, spread: float = 1e-4, first_ns: int = MONDAY) -> Bars:
    """n bars about 1.1 that open away from the last close; none between Friday 22:00 and Sunday 22:00 UTC."""
    draw = np.random.default_rng(seed)
    step = minutes * 60 * SECOND_NS
    times = first_ns + step * (1 + np.arange(2 * n + 2 * 2880 // minutes, dtype=np.int64))
    hour = (times - step) // (3600 * SECOND_NS) - MONDAY // (3600 * SECOND_NS)
    times = times[(hour % 168 < 4 * 24 + 22) | (hour % 168 >= 6 * 24 + 22)][:n]
    path = 1.1 + np.cumsum(draw.normal(0, 2e-4, 2 * n))
    start, end = path[0::2], path[1::2]
    spreads = spread * draw.uniform(0.5, 2, (2, n))
    high, low = np.maximum(start, end) + 1e-4, np.minimum(start, end) - 1e-4
    return Bars(times, start, high, low, end, start + spreads[0], end + spreads[1], np.ones(n))


def naive_move(before: Any, move: float) -> Any:
    """What a bar makes of an open position, from the words of `kernels.market.position`."""
    after, side = np.zeros(NUM_POSITION_FIELDS), before[SIDE]
    after[SIDE] = after[PREVIOUS_SIDE] = side
    if side:
        after[HELD], after[ENTRY_COST] = before[HELD] + 1, before[ENTRY_COST]
        after[UNREALISED] = before[UNREALISED] + side * move
        after[ADVERSE_EXCURSION] = max(0.0, -(after[UNREALISED] + before[ENTRY_COST]))
        after[MAE] = max(before[MAE], after[ADVERSE_EXCURSION])
        after[MFE] = max(before[MFE], after[UNREALISED])
    return after
