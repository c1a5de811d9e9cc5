"""The statistics of a report, and random arrangements of its trades.

Equity and trades come from the ledger (`run_targets`, or the log of an agent), never from prices.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.jit import kernel
from kernels.market.ledger import BARS_HELD, PROFIT_PX
from kernels.market.position import BUY, HOLD
from kernels.rng import randint, uniform


def compute_statistics(equity_px: NDArray[np.float64], trades: NDArray[np.float64], pip_px: float) -> dict[str, Any]:
    """Statistics of equity_px [n], one bar after each decision, and of trades [m, NUM_TRADE_FIELDS]; None: undefined.

    The equity starts from 0.  `exposure`: fraction of the closes with an open position.  `max_drawdown_pips`: largest
    fall below an earlier equity.  `win_rate`: fraction of the trades with a profit.  `expectancy_pips`: mean profit
    of a trade.  `profit_factor`: profits / losses.  `sortino`: mean change of equity of a bar / root mean square of
    its falls (0 for a bar without a fall), not annualised.
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


def draw_schedule(
    actions: NDArray[np.int32],
    held: NDArray[np.int64],
    size: NDArray[np.int64],
    k: int,
    reverse: bool,
    seed: int,
    stream: int,
) -> None:
    """Write into actions [n] a random arrangement of m trades; every order, time and side is equally likely.

    held [m]: bars of each trade; size [m]: index of its size among k sizes.  With `reverse` a trade may follow another
    without a bar between them, on the opposite side.  Raises ValueError where the trades do not fit.
    """
    pause = 0 if reverse else 1
    idle = len(actions) + pause - int(held.sum()) - pause * len(held)
    if idle < 0 or (held < 1).any():
        raise ValueError(f"{len(held)} trades of {held.sum()} bars do not fit {len(actions)} decisions")
    place_trades(actions, held.copy(), size.copy(), k, idle, pause, seed, stream)


@kernel
def place_trades(
    actions: NDArray[np.int32],
    held: NDArray[np.int64],
    size: NDArray[np.int64],
    k: int,
    idle: int,
    pause: int,
    seed: int,
    stream: int,
) -> None:
    """Write into actions [n] the m trades of `draw_schedule` and `idle` bars, in random order; shuffles held and size.

    The next item is a trade with probability trades left / (trades left + idle bars left): every arrangement is equally
    likely.  A trade takes `pause` bars more than it holds.
    """
    n, m = actions.shape[0], held.shape[0]
    for i in range(n):
        actions[i] = HOLD
    i, placed = 0, 0
    # 0 long, 1 short: side of the trade that ends at bar i, if the next trade may begin there; else -1
    adjacent_side = -1
    while placed < m:
        left = m - placed
        if uniform(seed, stream, 3 * i) * (left + idle) >= left:
            adjacent_side = -1
            idle -= 1
            i += 1
            continue
        pick = placed + randint(left, seed, stream, 3 * i + 1)
        held[placed], held[pick] = held[pick], held[placed]
        size[placed], size[pick] = size[pick], size[placed]
        side = randint(2, seed, stream, 3 * i + 2) if adjacent_side < 0 else 1 - adjacent_side
        actions[i] = BUY + side * k + size[placed]
        i += held[placed]
        placed += 1
        if i < n:
            actions[i] = 2 * k + 1  # CLOSE, unless the next trade begins here
        i += pause
        adjacent_side = -1 if pause == 1 else side
