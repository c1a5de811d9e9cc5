"""`ExogenousCosts`: the moves, costs and financing that a search applies to positions inside its tree.

They do not depend on the actions: a small trader moves no price.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.jit import inlined, kernel
from kernels.market.bars import Bars
from kernels.market.calendar import rollovers
from kernels.market.chance import ChanceCodes, move_scale_px
from kernels.market.ledger import Market, entry_cost, risk_penalty
from kernels.market.position import action_target, fill_size

LONG, SHORT = 0, 1  # columns of `financing`


class ExogenousCosts(NamedTuple):
    """Moves, costs and financing after B roots, in ranges (`Market.range_px`)."""

    move: NDArray[np.float32]  # [B, C] price move of each chance code
    risk_penalty: NDArray[np.float32]  # [B, C] what the reward of a full position loses for the square of that move
    entry_cost: NDArray[np.float32]  # [B] of a fill that opens a full position
    exit_cost: NDArray[np.float32]  # [B] of a fill that closes it, without the spread: the entry has paid it
    action_target: NDArray[np.float32]  # [B, A] signed size after each action but HOLD
    financing: NDArray[np.float32]  # [B, depth, 2] received over a bar ahead by a full LONG and a full SHORT position


def new_exogenous_costs(roots: int, actions: int, codes: int, depth: int) -> ExogenousCosts:
    """Zeros for `roots` roots, `depth` bars ahead."""
    return ExogenousCosts(
        np.zeros((roots, codes), np.float32),
        np.zeros((roots, codes), np.float32),
        np.zeros(roots, np.float32),
        np.zeros(roots, np.float32),
        np.zeros((roots, actions), np.float32),
        np.zeros((roots, depth, 2), np.float32),
    )


@inlined
def reward_without_move(costs: ExogenousCosts, b: int, depth: int, side: float, target: float) -> float:
    """Reward of `pnl` of the bar at `depth` but for the move: the fill from `side` to `target`, and financing."""
    rate = np.float64(costs.financing[b, depth, LONG if target > 0 else SHORT])
    opened, closed = fill_size(side, target)
    fill = closed * np.float64(costs.exit_cost[b]) + opened * np.float64(costs.entry_cost[b])
    return float(abs(target) * rate - (fill if target != side else 0.0))


@kernel
def fill_costs(costs: ExogenousCosts, b: int, bars: Bars, t: int, codes: ChanceCodes, market: Market) -> None:
    """Fill row b from bars <= t, as if the bars ahead followed without a gap."""
    scale = move_scale_px(bars, t) / market.range_px
    for c in range(codes.centres.shape[0]):
        costs.move[b, c] = codes.centres[c] * scale
        if market.risk_aversion > 0:
            costs.risk_penalty[b, c] = risk_penalty(market, scale) * codes.mean_square[c]
    costs.entry_cost[b] = entry_cost(bars, t, market)
    costs.exit_cost[b] = (market.slippage_px + market.commission_px) / market.range_px
    for a in range(costs.action_target.shape[1]):
        costs.action_target[b, a] = action_target(0.0, a, market.sizes)
    for d in range(costs.financing.shape[1]):
        now = bars.time[t] + d * market.interval_ns
        count = rollovers(now, now + market.interval_ns, market.closes_weekends)
        costs.financing[b, d, LONG] = count * market.swap_long_px / market.range_px
        costs.financing[b, d, SHORT] = count * market.swap_short_px / market.range_px
