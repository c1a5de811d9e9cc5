"""`ExogenousCosts`: what the position of each root will meet inside its tree; exact, because a small trader moves no price."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.jit import inlined, kernel
from kernels.market.bars import Bars
from kernels.market.calendar import rollovers
from kernels.market.chance import ChanceCodes, move_scale_px
from kernels.market.ledger import Market, entry_cost
from kernels.market.position import action_target

LONG, SHORT = 0, 1


class ExogenousCosts(NamedTuple):
    """Moves, costs and swap ahead of B roots, in R."""

    move: NDArray[np.float32]  # [B, C] price move that each chance code stands for
    entry_cost: NDArray[np.float32]  # [B] of opening a full position
    exit_cost: NDArray[np.float32]  # [B] of closing one: its spread was paid at the entry
    action_target: NDArray[np.float32]  # [B, A] signed size that each action but HOLD brings about
    financing: NDArray[np.float32]  # [B, H, 2] received over the d-th bar ahead by a LONG and a SHORT position


def new_exogenous_costs(roots: int, actions: int, codes: int, horizon: int) -> ExogenousCosts:
    """Room for `roots` roots that look `horizon` bars ahead."""
    return ExogenousCosts(
        np.zeros((roots, codes), np.float32),
        np.zeros(roots, np.float32),
        np.zeros(roots, np.float32),
        np.zeros((roots, actions), np.float32),
        np.zeros((roots, horizon, 2), np.float32),
    )


@inlined
def position_financing(costs: ExogenousCosts, b: int, depth: int, side: float) -> float:
    """Swap that a position of `side` receives over the bar after `depth` bars."""
    if side == 0 or depth >= costs.financing.shape[1]:
        return 0.0
    return abs(side) * np.float64(costs.financing[b, depth, LONG if side > 0 else SHORT])


@kernel
def fill_costs(costs: ExogenousCosts, b: int, bars: Bars, t: int, codes: ChanceCodes, market: Market) -> None:
    """Fill row b from bars <= t: the bars ahead are taken to follow one another without a hole."""
    scale = move_scale_px(bars, t) / market.range_px
    for c in range(codes.centres.shape[0]):
        costs.move[b, c] = codes.centres[c] * scale
    costs.entry_cost[b] = entry_cost(bars, t, market)
    costs.exit_cost[b] = (market.slippage_px + market.commission_px) / market.range_px
    for a in range(costs.action_target.shape[1]):
        costs.action_target[b, a] = action_target(0.0, a, market.sizes)
    for d in range(costs.financing.shape[1]):
        now = bars.time[t] + d * market.interval_ns
        count = rollovers(now, now + market.interval_ns, market.closes_weekends)
        costs.financing[b, d, LONG] = count * market.swap_long_px / market.range_px
        costs.financing[b, d, SHORT] = count * market.swap_short_px / market.range_px
