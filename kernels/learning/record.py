"""What self-play and reanalyse write into the replay buffer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.jit import inlined
from kernels.learning.replay_buffer import MarketData, ReplayBuffer
from kernels.market.position import BUY, NUM_POSITION_FEATURES, SELL, SIDE, action_kind_to
from kernels.search.planner import Planner
from kernels.search.progressive_widening import SampledTree


@inlined
def write_context(x: NDArray[np.float32], market_data: MarketData, t: int) -> int:
    """Write the features of the bars before t that the row x of a root has; the column of those of t."""
    F = market_data.features.shape[1]
    column = 0
    for bar in range(t + 1 - (x.shape[0] - NUM_POSITION_FEATURES) // F, t):
        past = x[column : column + F]
        for f in range(F):
            past[f] = market_data.features[market_data.row_of_bar[bar], f]
        column += F
    return column


@inlined
def store_search_statistics(replay: ReplayBuffer, slot: int, k: int, planner: Planner, b: int) -> None:
    """Keep what the search of root b says of decision k."""
    replay.search_value[slot, k] = planner.value[b]
    for a in range(planner.policy.shape[1]):
        replay.policy[slot, k, a] = planner.policy[b, a]
    store_sampled_sizes(replay, slot, k, planner.sampled_tree, b)


@inlined
def store_sampled_sizes(replay: ReplayBuffer, slot: int, k: int, wide: SampledTree | None, b: int) -> None:
    """Keep the entries among the candidates of root b, each with its share of the improved policy."""
    if wide is not None:
        side = wide.tree.position[b, 0, SIDE]
        for e in range(replay.candidate_size.shape[2]):
            size = wide.candidate_size[b, 0, e]
            is_entry = wide.draw_count[b, 0, e] > 0 and action_kind_to(side, size) in (BUY, SELL)
            replay.candidate_size[slot, k, e] = size if is_entry else 0.0
            replay.candidate_policy[slot, k, e] = wide.policy[b, e] if is_entry else 0.0
