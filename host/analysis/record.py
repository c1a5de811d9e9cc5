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
from kernels.market.ledger import (
    ADVERSE_EXCURSION_SUM_PX,
    BARS_HELD,
    ENTRY_BAR,
    ENTRY_PX,
    EXIT_PX,
    FINANCING_PX,
    NUM_TRADE_FIELDS,
    PROFIT_PX,
    TRADE_SIDE,
    Market,
    new_accounts,
    run_targets,
)

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
    parts = trades[:count].copy()
    trades = merge_parts(parts, target) if market.position_adjustment else parts
    return TradingRecord(bars, target, equity, trades, market)


def merge_parts(parts: Floats, target: Floats) -> Floats:
    """One trade for each position from flat to flat, of the `parts` that the ledger closed while its size changed.

    Its prices are means over what was closed, its size is the mean of `target` [n] over its bars.
    """
    if len(parts) == 0:
        return parts
    first = np.flatnonzero(np.diff(parts[:, ENTRY_BAR], prepend=-1))
    trades: Floats = parts[np.append(first[1:], len(parts)) - 1]
    size = np.abs(parts[:, TRADE_SIDE])
    for field in (PROFIT_PX, ADVERSE_EXCURSION_SUM_PX, FINANCING_PX):
        trades[:, field] = np.add.reduceat(parts[:, field], first)
    for field in (ENTRY_PX, EXIT_PX):
        trades[:, field] = np.add.reduceat(size * parts[:, field], first) / np.add.reduceat(size, first)
    begin, held = (trades[:, field].astype(np.int64) for field in (ENTRY_BAR, BARS_HELD))
    total = np.append(0.0, np.cumsum(target))
    trades[:, TRADE_SIDE] = (total[begin - 1 + held] - total[begin - 1]) / held
    return trades


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
