"""Reanalyse: fresh policy targets by a new search of stored positions, fresh values by the target network."""

import numpy as np
from numpy.typing import NDArray

from kernels.jit import inlined, kernel
from kernels.learning.record import store_search_statistics, write_context
from kernels.learning.replay_buffer import MarketData, ReplayBuffer
from kernels.market.chance import realised_code
from kernels.market.position import NUM_POSITION_FEATURES, position_features
from kernels.ort import BoundGraph, evaluate
from kernels.search.planner import Planner, draw_noise, plan, set_root
from kernels.search.tree import NONE, REUSE_OFF


@inlined
def set_reused_value(
    planner: Planner, b: int, replay: ReplayBuffer, slot: int, k: int, market_data: MarketData
) -> None:
    """Tell root b what followed decision k: the last search of this planner was of decision k + 1."""
    known = planner.reused_value
    if planner.config.value_reuse == REUSE_OFF or k + 1 == replay.reward.shape[1]:
        known.action[b] = NONE
        return
    known.action[b] = replay.action[slot, k]
    known.code[b] = realised_code(market_data.codes, market_data.bars, replay.start_bar[slot] + k)
    known.reward[b] = replay.reward[slot, k]
    known.value[b] = planner.value[b]


@kernel
def reanalyze_policies(
    replay: ReplayBuffer, planner: Planner, slots: NDArray[np.int64], market_data: MarketData, seed: int
) -> int:
    """Replace policy targets and search values of all decisions of the sessions `slots` [B], in lockstep.

    From the last decision to the first, so that the value just found can enter the search of the decision before it.
    The noise is keyed by (seed, start of the session, step).  0 or a network status.
    """
    for k in range(replay.reward.shape[1] - 1, -1, -1):
        for b in range(slots.shape[0]):
            t = replay.start_bar[slots[b]] + k
            write_context(planner.networks.root.x[b], market_data, t)
            position = replay.position[slots[b], k]
            set_root(
                planner,
                b,
                market_data.features[market_data.row_of_bar[t]],
                position,
                market_data.bars,
                t,
                market_data.codes,
                market_data.market,
            )
            draw_noise(planner, b, seed, replay.start_bar[slots[b]], k)
            set_reused_value(planner, b, replay, slots[b], k, market_data)
        status = plan(planner)
        if status != 0:
            return status
        for b in range(slots.shape[0]):
            store_search_statistics(replay, slots[b], k, planner, b)
    return 0


@kernel
def reanalyze_values(
    replay: ReplayBuffer, root: BoundGraph, slot: int, market_data: MarketData, value_column: int
) -> int:
    """Replace the values of session `slot` by `value_column` of the network `root`.  0 or a network status."""
    states, F = replay.value.shape[1], market_data.features.shape[1]
    memoryless = market_data.market.mae_penalty == 0
    first = 0
    while first < states:
        rows = min(root.x.shape[0], states - first)
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
            replay.value[slot, first + row] = root.y[row, value_column]
        first += rows
    return 0
