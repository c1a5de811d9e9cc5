"""`summarise`: the statistics of a record by the names that backtesting.py uses.

Returns are of a position whose size never changes: they add up, and are not compounded.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from host.analysis.record import Floats, TradingRecord, daily_returns, trade_targets
from kernels.market.bars import SECOND_NS
from kernels.market.calendar import DAY_NS
from kernels.market.ledger import BARS_HELD, ENTRY_BAR, EXIT_BAR, PROFIT_PX
from kernels.market.statistics import compute_statistics

DAYS_PER_YEAR = 365.25
PERCENT = 100.0


def summarise(record: TradingRecord) -> dict[str, Any]:
    """The statistics of `record` by name, ready for JSON; None where undefined.

    A drawdown is a fall below the highest equity so far, positive.  Ratios are those of daily returns, of a year;
    returns are fractions of the first price.  "Buy & Hold" is the ledger's profit of one long position of the largest
    size.  SQN: sqrt(trades) * mean profit / standard deviation of profits.
    """
    bars, market = record.bars, record.market
    figures = compute_statistics(record.equity, record.trades, market.pip_px)
    day, returns = daily_returns(record)
    held = trade_targets(bars, np.full(len(record.target), max(market.sizes)), market)
    depth, drawdown_ns = find_drawdowns(np.concatenate([[0.0], record.equity]), bars.time)
    profits, lengths_ns = record.trades[:, PROFIT_PX] / market.pip_px, trade_durations(record)
    annual = float(returns.mean()) * days_per_year(day)
    largest_fall = figures["max_drawdown_pips"] * market.pip_px / bars.close[0]
    return {
        "Start": format_time(int(bars.time[0])),
        "End": format_time(int(bars.time[-1])),
        "Duration": format_duration(int(bars.time[-1] - bars.time[0])),
        "Exposure Time [%]": PERCENT * figures["exposure"],
        "Net Profit [pips]": figures["net_pips"],
        "Buy & Hold [pips]": float(held.equity[-1]) / market.pip_px,
        "Return (Ann.) [%]": PERCENT * annual,
        "Volatility (Ann.) [%]": _volatility(returns, days_per_year(day)),
        "Sharpe Ratio": _times(sharpe(returns), math.sqrt(days_per_year(day))),
        "Sortino Ratio": _times(sortino(returns), math.sqrt(days_per_year(day))),
        "Calmar Ratio": annual / float(largest_fall) if largest_fall > 0 else None,
        "Max. Drawdown [pips]": figures["max_drawdown_pips"],
        "Avg. Drawdown [pips]": float(depth.mean()) / market.pip_px if len(depth) else 0.0,
        "Max. Drawdown Duration": format_duration(int(drawdown_ns.max())) if len(depth) else None,
        "# Trades": figures["trades"],
        "Win Rate [%]": _times(figures["win_rate"], PERCENT),
        "Best Trade [pips]": float(profits.max()) if len(profits) else None,
        "Worst Trade [pips]": float(profits.min()) if len(profits) else None,
        "Avg. Trade [pips]": figures["expectancy_pips"],
        "Max. Trade Duration": format_duration(int(lengths_ns.max())) if len(profits) else None,
        "Avg. Trade Duration": format_duration(int(lengths_ns.mean())) if len(profits) else None,
        "Profit Factor": figures["profit_factor"],
        "Expectancy [pips]": figures["expectancy_pips"],
        "SQN": _times(sharpe(profits), math.sqrt(len(profits))),
    }


def sharpe(returns: Floats) -> float | None:
    """Mean / standard deviation (of a sample) of returns [d], not annualised; None where it is undefined."""
    if len(returns) < 2 or np.ptp(returns) == 0:
        return None
    return float(returns.mean() / returns.std(ddof=1))


def sortino(returns: Floats) -> float | None:
    """Mean of returns [d] / root mean square of the negative ones, 0 for the others; None: there is none."""
    fall = float(np.sqrt(np.mean(np.minimum(returns, 0.0) ** 2)))
    return float(returns.mean()) / fall if fall > 0 else None


def days_per_year(day: NDArray[np.int64]) -> float:
    """Daily returns in a year, by the ascending days [d] that have one: 365.25 for all days, about 313 for FX."""
    return DAYS_PER_YEAR * len(day) / int(day[-1] - day[0] + 1)


def find_drawdowns(curve: Floats, time: NDArray[np.int64]) -> tuple[Floats, NDArray[np.int64]]:
    """Depths [k] and durations [k], ns, of the k stretches in which `curve` [n] is below an earlier value.

    A duration is from the highest value to the first close that is not below it, or to the last close.
    """
    fall = np.maximum.accumulate(curve) - curve
    edges = np.flatnonzero(np.diff(fall > 0, prepend=False, append=False))
    begin, end = edges[::2], edges[1::2]  # fall > 0 in [begin, end); the first value never is
    depth = np.array([fall[i:j].max() for i, j in zip(begin, end, strict=True)])
    return depth, time[np.minimum(end, len(time) - 1)] - time[begin - 1]


def trade_durations(record: TradingRecord) -> NDArray[np.int64]:
    """Nanoseconds [m] from the fill of each trade to that of its exit."""
    time, trades = record.bars.time, record.trades
    entry, last = trades[:, ENTRY_BAR].astype(np.int64), trades[:, EXIT_BAR].astype(np.int64)
    open_ns = np.maximum(np.roll(time, 1), time - record.market.interval_ns)  # no fill is at the open of bar 0
    at_close = trades[:, BARS_HELD] > last - entry
    return np.where(at_close, time[last], open_ns[last]) - open_ns[entry]


def format_time(time_ns: int) -> str:
    """An epoch time as 2017-10-02T08:00:00Z."""
    return f"{np.datetime64(time_ns, 'ns').astype('datetime64[s]')}Z"


def format_duration(duration_ns: int) -> str:
    """A duration as pandas prints it: 3 days 04:05:06."""
    seconds = duration_ns % DAY_NS // SECOND_NS
    return f"{duration_ns // DAY_NS} days {seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def _volatility(returns: Floats, per_year: float) -> float | None:
    return float(returns.std(ddof=1)) * math.sqrt(per_year) * PERCENT if len(returns) > 1 else None


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
