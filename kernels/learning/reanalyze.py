"""MuZero Reanalyse: a new search gives stored decisions new policy targets, the target network gives new values."""

import numpy as np
from numpy.typing import NDArray

from kernels.jit import inlined, kernel
from kernels.learning.record import set_market_root, store_search_statistics, write_context
from kernels.learning.replay_buffer import MarketData, ReplayBuffer
from kernels.market.chance import realised_code
from kernels.market.position import NUM_POSITION_FEATURES, position_features
from kernels.ort import BoundGraph, evaluate
from kernels.search.planner import Planner, draw_noise, plan
from kernels.search.tree import NONE, REUSE_OFF


@inlined
def set_reused_value(
    planner: Planner, b: int, replay: ReplayBuffer, slot: int, k: int, market_data: MarketData
) -> None:
    """Set what root b reuses: action, code and reward of decision k, and the value of decision k + 1 (ReZero).

    The last search of this planner was of decision k + 1.  The last decision of an episode reuses nothing.
    """
    reused = planner.reused_value
    if planner.config.value_reuse == REUSE_OFF or k + 1 == replay.reward.shape[1]:
        reused.action[b] = NONE
        return
    reused.action[b] = replay.action[slot, k]
    reused.code[b] = realised_code(market_data.codes, market_data.bars, replay.start_bar[slot] + k)
    reused.reward[b] = replay.reward[slot, k]
    reused.value[b] = planner.value[b]


@kernel
def reanalyze_policies(
    replay: ReplayBuffer, planner: Planner, slots: NDArray[np.int64], market_data: MarketData, seed: int
) -> int:
    """Search every decision of the episodes `slots` [B] again, in lockstep, and store what the searches return.

    The last decision of an episode comes first, so that the search of the decision before can reuse its value.  The
    noise of a root is keyed by (seed, start bar of the episode, step).  Returns 0, or the status of a failed network
    call.
    """
    for k in range(replay.reward.shape[1] - 1, -1, -1):
        for b in range(slots.shape[0]):
            t = replay.start_bar[slots[b]] + k
            set_market_root(planner, b, market_data, t, replay.position[slots[b], k])
            draw_noise(planner, b, seed, replay.start_bar[slots[b]], k)
            set_reused_value(planner, b, replay, slots[b], k, market_data)
        status = plan(planner)
        if status != 0:
            return status
        for b in range(slots.shape[0]):
            store_search_statistics(replay, slots[b], k, planner, b, market_data)
    return 0


@kernel
def reanalyze_values(
    replay: ReplayBuffer, root: BoundGraph, slot: int, market_data: MarketData, value_column: int
) -> int:
    """Replace the values of episode `slot` by column `value_column` of the output of the network `root`.

    Returns 0, or the status of a failed network call.
    """
    num_positions, F = replay.value.shape[1], market_data.features.shape[1]
    memoryless = market_data.market.mae_penalty == 0
    first = 0
    while first < num_positions:
        rows = min(root.x.shape[0], num_positions - first)
        for row in range(rows):
            t = replay.start_bar[slot] + first + row
            x = root.x[row, write_context(root.x[row], market_data, t) :]
            for f in range(F):
                x[f] = market_data.features[market_data.row_of_bar[t], f]
            position_features(x[F : F + NUM_POSITION_FEATURES], replay.position[slot, first + row], memoryless)
        status = evaluate(root, rows)
        if status != 0:
            return status
        for row in range(rows):
            replay.value[slot, first + row, 0] = root.y[row, value_column]
        first += rows
    return 0
