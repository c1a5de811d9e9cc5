"""`Outlook`: what the position of each root will meet inside its tree; exact, because a small trader moves no price."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.jit import inlined, kernel
from kernels.market.bars import Bars
from kernels.market.calendar import nights
from kernels.market.chance import Codes, move_scale_px
from kernels.market.ledger import Market, entry_cost
from kernels.market.position import target_side

LONG, SHORT = 0, 1


class Outlook(NamedTuple):
    """Moves, costs and swap ahead of B roots, in R."""

    move: NDArray[np.float32]  # [B, C] price move that each chance code stands for
    entry_cost: NDArray[np.float32]  # [B] of opening a full position
    exit_cost: NDArray[np.float32]  # [B] of closing one: its spread was paid at the entry
    size: NDArray[np.float32]  # [B, A] signed size that each action but HOLD brings about
    swap: NDArray[np.float32]  # [B, H, 2] received over the d-th bar ahead by a LONG and a SHORT position


def new_outlook(roots: int, actions: int, codes: int, horizon: int) -> Outlook:
    """Room for `roots` roots that look `horizon` bars ahead."""
    return Outlook(
        np.zeros((roots, codes), np.float32),
        np.zeros(roots, np.float32),
        np.zeros(roots, np.float32),
        np.zeros((roots, actions), np.float32),
        np.zeros((roots, horizon, 2), np.float32),
    )


@inlined
def side_swap(outlook: Outlook, b: int, depth: int, side: float) -> float:
    """Swap that a position of `side` receives over the bar after `depth` bars."""
    if side == 0 or depth >= outlook.swap.shape[1]:
        return 0.0
    return abs(side) * np.float64(outlook.swap[b, depth, LONG if side > 0 else SHORT])


@kernel
def look_ahead(outlook: Outlook, b: int, bars: Bars, t: int, codes: Codes, market: Market) -> None:
    """Fill row b from bars <= t: the bars ahead are taken to follow one another without a hole."""
    scale = move_scale_px(bars, t) / market.range_px
    for c in range(codes.centres.shape[0]):
        outlook.move[b, c] = codes.centres[c] * scale
    outlook.entry_cost[b] = entry_cost(bars, t, market)
    outlook.exit_cost[b] = (market.slippage_px + market.commission_px) / market.range_px
    for a in range(outlook.size.shape[1]):
        outlook.size[b, a] = target_side(0.0, a, market.sizes)
    for d in range(outlook.swap.shape[1]):
        now = bars.time[t] + d * market.interval_ns
        count = nights(now, now + market.interval_ns, market.weekends)
        outlook.swap[b, d, LONG] = count * market.swap_long_px / market.range_px
        outlook.swap[b, d, SHORT] = count * market.swap_short_px / market.range_px
