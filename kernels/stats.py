"""The statistics of a report, and the baselines an agent has to beat, through the same ledger."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels._jit import kernel
from kernels.bars import Bars
from kernels.market import ACC_EQUITY, BARS_HELD, PROFIT, TRADE, Market, close_out, new_accounts, step
from kernels.position import BUY, CLOSE, HOLD, SELL
from kernels.rng import below, uniform

RANDOM_SCHEDULES = 64  # of which the random baseline is the mean


@kernel
def run_actions(
    account: NDArray[np.float64],
    trade: NDArray[np.float64],
    bars: Bars,
    first: int,
    actions: NDArray[np.int8],
    market: Market,
) -> float:
    """Profit of `actions` [n] decided from the close of bar `first` on, closed out at the end, price."""
    for i in range(actions.shape[0]):
        step(account, trade, bars, first + i, actions[i], market)
    close_out(account, trade, bars, first + actions.shape[0], market)
    return account[ACC_EQUITY]


def net_pips(bars: Bars, first: int, actions: NDArray[np.int8], market: Market) -> float:
    """Profit of a schedule of legal actions, pips."""
    return (
        float(run_actions(new_accounts(1)[0], np.zeros(TRADE), bars, first, actions, market)) / market.pip_px
    )


def statistics(equity_px: NDArray[np.float64], trades: NDArray[np.float64], pip_px: float) -> dict[str, Any]:
    """Figures of a run from its marked equity [n] and its trades [m, TRADE]; ratios are null where undefined."""
    equity = np.concatenate([[0.0], equity_px]) / pip_px
    change, profit = np.diff(equity), trades[:, PROFIT] / pip_px
    won, lost = float(profit[profit > 0].sum()), float(-profit[profit < 0].sum())
    downside = float(np.sqrt(np.mean(np.minimum(change, 0.0) ** 2)))
    return {
        "net_pips": float(equity[-1]),
        "trades": len(trades),
        "share_in_market": float(trades[:, BARS_HELD].sum() / len(change)),
        "max_drawdown_pips": float((np.maximum.accumulate(equity) - equity).max()),
        "win_rate": float((profit > 0).mean()) if len(trades) else None,
        "expectancy_pips": float(profit.mean()) if len(trades) else None,
        "profit_factor": won / lost if lost > 0 else None,
        "sortino": float(change.mean()) / downside if downside > 0 else None,  # a bar, not annualised
    }


def baselines(
    bars: Bars, first: int, stop: int, market: Market, trades: NDArray[np.float64], seed: int
) -> dict[str, float]:
    """Net pips over bars [first, stop) of doing nothing, of being long or short throughout, and of chance.

    `random` makes as many trades as the agent, as long as its own on average, in random places and directions.
    """
    n = stop - 1 - first
    always = np.full(n, HOLD, np.int8)
    result = {"flat": net_pips(bars, first, always, market)}
    for name, action in (("long", BUY), ("short", SELL)):
        always[0] = action
        result[name] = net_pips(bars, first, always, market)
    schedules = [random_schedule(n, trades, seed, stream) for stream in range(RANDOM_SCHEDULES)]
    result["random"] = float(np.mean([net_pips(bars, first, schedule, market) for schedule in schedules]))
    return result


def random_schedule(n: int, trades: NDArray[np.float64], seed: int, stream: int) -> NDArray[np.int8]:
    """[n] actions: the agent's trades in random order, sides and distances, keyed by (seed, stream)."""
    actions = np.full(n, HOLD, np.int8)
    count = len(trades)
    if count == 0:
        return actions
    held = [max(int(h), 1) for h in trades[:, BARS_HELD]]
    order = sorted(range(count), key=lambda i: uniform(seed, stream, i))
    idle = max(n - sum(held) - count, 0)
    cuts = sorted(below(idle + 1, seed, stream, count + i) for i in range(count))
    t, before = 0, 0
    for i, cut in zip(order, cuts, strict=True):
        t += cut - before
        before = cut
        if t + held[i] >= n:
            break
        actions[t] = BUY if uniform(seed, stream, 2 * count + i) < 0.5 else SELL
        actions[t + held[i]] = CLOSE
        t += held[i] + 1
    return actions
