"""Self-play: a block of sessions in lockstep, from the first decision to the ledger's closing entry, in one call."""

import numpy as np
from numpy.typing import NDArray

from kernels._jit import kernel
from kernels.bars import Bars
from kernels.market import Codes, Market, close_out, raw_position, step
from kernels.planner import Planner, draw_noise, plan, set_root
from kernels.replay import Replay


@kernel
def play(
    replay: Replay,
    account: NDArray[np.float64],
    trade: NDArray[np.float64],
    planner: Planner,
    slots: NDArray[np.int64],
    X: NDArray[np.float32],
    row_of_bar: NDArray[np.int32],
    bars: Bars,
    codes: Codes,
    market: Market,
    seed: int,
    session: int,
) -> int:
    """Play session b of the block into replay slot slots[b], whose `start` is set, from a flat account[b] [ACCOUNT].

    The noise of a root is keyed by (seed, session + b, step).  `trade` [TRADE] is scratch.  0 or a network status.
    """
    B, L = slots.shape[0], replay.reward.shape[1]
    for k in range(L):
        for b in range(B):
            t = replay.start[slots[b]] + k
            position = replay.position[slots[b], k]
            raw_position(position, account[b], market)
            set_root(planner, b, X[row_of_bar[t]], position, bars, t, codes, market)
            draw_noise(planner, b, seed, session + b, k)
        status = plan(planner)
        if status != 0:
            return status
        for b in range(B):
            slot = slots[b]
            replay.action[slot, k] = planner.action[b]
            replay.reward[slot, k] = step(
                account[b], trade, bars, replay.start[slot] + k, planner.action[b], market
            )
            replay.search_value[slot, k] = planner.value[b]
            for a in range(planner.policy.shape[1]):
                replay.policy[slot, k, a] = planner.policy[b, a]
    for b in range(B):
        raw_position(replay.position[slots[b], L], account[b], market)
        close_out(account[b], trade, bars, replay.start[slots[b]] + L, market)
    return 0
