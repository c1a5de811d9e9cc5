"""`TradingRecord`: what a policy did on a stretch of bars, as the ledger booked it.

Every figure of a report follows from it, whoever decided: an agent, a baseline, or an agent under other costs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from host.evaluation.backtest import BacktestResult
from kernels.market.bars import Bars, slice_bars
from kernels.market.calendar import DAY_NS
from kernels.market.ledger import NUM_TRADE_FIELDS, Market, new_accounts, run_targets

Floats = NDArray[np.float64]
DailyReturns = tuple[NDArray[np.int64], Floats]  # days [d] since the epoch and their returns [d]


class TradingRecord(NamedTuple):
    """n decisions at the closes of bars 0 .. n - 1 of a stretch; the last position is closed out at bar n."""

    bars: Bars  # [n + 1]
    target: Floats  # [n] signed size held from bar i to bar i + 1
    equity: Floats  # [n] px after all costs at the close of bar i + 1, from 0
    trades: Floats  # [m, NUM_TRADE_FIELDS]; bars are counted from the first of the stretch
    market: Market  # the costs that were booked


def record_of(result: BacktestResult, bars: Bars, first: int, market: Market) -> TradingRecord:
    """The record of a backtest that began at bar `first` of `bars`."""
    return trade_targets(slice_bars(bars, first, first + len(result.log.target) + 1), result.log.target, market)


def trade_targets(bars: Bars, target: Floats, market: Market) -> TradingRecord:
    """The record of the signed sizes `target` [n] on bars [n + 1], at the costs of `market`.

    A target that the rules forbid, such as another size on the same side, holds instead.  Raises ValueError for fewer
    than two bars.
    """
    n = len(target)
    if n < 1:
        raise ValueError("no decision: it takes two bars")
    equity, trades = np.zeros(n), np.zeros((n + 1, NUM_TRADE_FIELDS))
    count = run_targets(equity, trades, new_accounts(1)[0], bars, 0, target, market)
    return TradingRecord(bars, target, equity, trades[:count].copy(), market)


def net_pips(record: TradingRecord) -> float:
    """Profit after all costs."""
    return float(record.equity[-1]) / record.market.pip_px


def daily_returns(record: TradingRecord) -> tuple[NDArray[np.int64], Floats]:
    """Days since the epoch [d] and their returns [d]: change of equity in a UTC day / first close of the stretch.

    A day is in it if a bar of the stretch, after its first, closed in it; a day without a position has a return of 0.
    """
    day = (record.bars.time[1:] - 1) // DAY_NS
    last = np.flatnonzero(np.diff(day, append=day[-1] + 1))
    return day[last], np.diff(record.equity[last], prepend=0.0) / record.bars.close[0]


def pool_returns(series: list[DailyReturns]) -> DailyReturns:
    """Daily returns of equal shares in markets, over the days of all of them."""
    days = np.unique(np.concatenate([day for day, _ in series]))
    pooled = np.zeros(len(days))
    for day, returns in series:
        pooled[np.searchsorted(days, day)] += returns / len(series)
    return days, pooled
