"""What a report says of an equity curve, and what the same bars pay to policies that know nothing.

All of it is read off the ledger: figures from `run_actions` or from the log of an agent, never from prices.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.jit import kernel
from kernels.market.bars import Bars
from kernels.market.ledger import BARS_HELD, NUM_TRADE_FIELDS, PROFIT_PX, TRADE_SIDE, Market, new_accounts, run_actions
from kernels.market.position import BUY, HOLD
from kernels.rng import randint, uniform

NUM_SCHEDULES = 64  # of the random baseline
SCHEDULE_STREAM = 1 << 20  # schedule i draws from stream STREAM_SCHEDULES + i, a trainer from far lower ones


def compute_statistics(equity_px: NDArray[np.float64], trades: NDArray[np.float64], pip_px: float) -> dict[str, Any]:
    """Figures of the equity [n] one bar after each decision, from 0, and of its trades [m, TRADE]; None = undefined.

    `share_in_market`: closes with a position open.  `max_drawdown_pips`: largest fall below an earlier equity, 0 at the
    start included.  `expectancy_pips`: mean profit of a trade.  `profit_factor`: profits / losses.  `sortino`: mean
    change of equity of a bar / root mean square of the falls (0 for a bar that did not fall), per bar, not annualised.
    """
    curve = np.concatenate([[0.0], equity_px]) / pip_px
    changes, profits = np.diff(curve), trades[:, PROFIT_PX] / pip_px
    fall = float(np.sqrt(np.mean(np.minimum(changes, 0.0) ** 2)))
    return {
        "net_pips": float(curve[-1]),
        "trades": len(trades),
        "exposure": _ratio(float(trades[:, BARS_HELD].sum()), len(equity_px)) or 0.0,
        "max_drawdown_pips": float(np.max(np.maximum.accumulate(curve) - curve)),
        "win_rate": _ratio(int(np.count_nonzero(profits > 0)), len(profits)),
        "expectancy_pips": _ratio(float(profits.sum()), len(profits)),
        "profit_factor": _ratio(float(profits[profits > 0].sum()), -float(profits[profits < 0].sum())),
        "sortino": _ratio(float(changes.sum()), fall * len(changes)),
    }


def _ratio(a: float, b: float) -> float | None:
    return float(a / b) if b > 0 else None


def baselines(
    bars: Bars, first: int, stop: int, market: Market, turnover: NDArray[np.float64], seed: int
) -> dict[str, float]:
    """Net pips on bars [first, stop) of staying flat, of one long or short position, and of trading at random.

    A long or short position is of the largest size.  "random" is the mean of SCHEDULES schedules that hold as many
    positions, as large and for as many bars, as the trades `turnover` [m, TRADE], in random order, at random times and
    on random sides: the agent's turnover without its knowledge.
    """
    actions = np.full(stop - 1 - first, HOLD, np.int8)
    if len(actions) < 1:
        raise ValueError(f"no decision in bars [{first}, {stop}): it takes two bars")
    equity, trades, pips = np.zeros(len(actions)), np.zeros((len(actions), NUM_TRADE_FIELDS)), {}
    sizes = np.trim_zeros(np.array(market.sizes))
    k = len(sizes)
    for name, action in (("flat", HOLD), ("long", k), ("short", 2 * k)):
        actions[0] = action
        pips[name] = _net_pips(equity, trades, bars, first, actions, market)
    held = turnover[:, BARS_HELD].astype(np.int64)
    size = np.searchsorted(sizes, np.abs(turnover[:, TRADE_SIDE]))
    total = 0.0
    for schedule in range(NUM_SCHEDULES if len(held) else 0):
        draw_schedule(actions, held, size, k, market.reverse, seed, SCHEDULE_STREAM + schedule)
        total += _net_pips(equity, trades, bars, first, actions, market)
    return {**pips, "random": total / NUM_SCHEDULES}


def _net_pips(
    equity: NDArray[np.float64],
    trades: NDArray[np.float64],
    bars: Bars,
    first: int,
    actions: NDArray[np.int8],
    market: Market,
) -> float:
    run_actions(equity, trades, new_accounts(1)[0], bars, first, actions, market)
    return float(equity[-1]) / market.pip_px


def draw_schedule(
    actions: NDArray[np.int8],
    held: NDArray[np.int64],
    size: NDArray[np.int64],
    k: int,
    reverse: bool,
    seed: int,
    stream: int,
) -> None:
    """actions [n]: a trade of held [m] bars and of number size [m] of k sizes each; all orders, gaps and sides alike.

    Without `reverse` a position needs a bar after it before the next can open; with it, two that touch are opposite.
    """
    gap = 0 if reverse else 1
    idle = len(actions) + gap - int(held.sum()) - gap * len(held)
    if idle < 0 or (held < 1).any():
        raise ValueError(f"{len(held)} trades of {held.sum()} bars do not fit {len(actions)} decisions")
    place_trades(actions, held.copy(), size.copy(), k, idle, gap, seed, stream)


@kernel
def place_trades(
    actions: NDArray[np.int8],
    held: NDArray[np.int64],
    size: NDArray[np.int64],
    k: int,
    idle: int,
    gap: int,
    seed: int,
    stream: int,
) -> None:
    """Deal the trades held and size [m], shuffled on the way, and `idle` bars between them, until no trade is left.

    Each deal is a trade with probability trades left / (trades left + idle bars left): every arrangement is as likely.
    """
    n, m = actions.shape[0], held.shape[0]
    for i in range(n):
        actions[i] = HOLD
    i, done = 0, 0
    touching = -1  # side, 0 long or 1 short, of a trade that ends at i, where the next may begin at i
    while done < m:
        left = m - done
        if uniform(seed, stream, 3 * i) * (left + idle) >= left:
            touching = -1
            idle -= 1
            i += 1
            continue
        pick = done + randint(left, seed, stream, 3 * i + 1)
        held[done], held[pick] = held[pick], held[done]
        size[done], size[pick] = size[pick], size[done]
        side = randint(2, seed, stream, 3 * i + 2) if touching < 0 else 1 - touching
        actions[i] = BUY + side * k + size[done]
        i += held[done]
        done += 1
        if i < n:
            actions[i] = 2 * k + 1  # CLOSE, unless the next trade begins here
        i += gap
        touching = -1 if gap == 1 else side
