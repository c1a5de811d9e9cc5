"""The common steps of self-play and reanalyse: setting a root from the data, and storing the result of its search."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.jit import inlined
from kernels.learning.replay_buffer import MarketData, ReplayBuffer
from kernels.market.ledger import risk_penalty
from kernels.market.position import BUY, NUM_POSITION_FEATURES, SELL, SIDE, action_kind_to
from kernels.search.planner import Planner, set_root
from kernels.search.progressive_widening import SampledTree


@inlined
def write_context(x: NDArray[np.float32], market_data: MarketData, t: int) -> int:
    """Write the features of the bars before bar t into the network row x of a root; the first column of bar t."""
    F = market_data.features.shape[1]
    column = 0
    for bar in range(t + 1 - (x.shape[0] - NUM_POSITION_FEATURES) // F, t):
        past = x[column : column + F]
        for f in range(F):
            past[f] = market_data.features[market_data.row_of_bar[bar], f]
        column += F
    return column


@inlined
def set_market_root(planner: Planner, b: int, market_data: MarketData, t: int, position: NDArray[np.float32]) -> None:
    """Make root b the decision at the close of bar t with `position` [NUM_POSITION_FIELDS]."""
    features = market_data.features[market_data.row_of_bar[t]]
    write_context(planner.networks.root.x[b], market_data, t)
    set_root(planner, b, features, position, market_data.bars, t, market_data.codes, market_data.market)


@inlined
def store_search_statistics(
    replay: ReplayBuffer, slot: int, k: int, planner: Planner, b: int, market_data: MarketData
) -> None:
    """Store what the search of root b found for decision k of episode `slot`, whose action has been taken."""
    replay.search_value[slot, k, 0] = planner.value[b]
    y, C = planner.networks.root.y[b], planner.costs.move.shape[1]
    replay.value[slot, k, 0] = y[y.shape[0] - 1 - C]
    replay.expected_reward[slot, k, 0] = replay.reward[slot, k]
    if planner.config.mae_penalty == 0:
        move, side = realised_move(market_data, replay.start_bar[slot] + k), replay.position[slot, k + 1, SIDE]
        prior_move, prior_penalty = prior_moments(planner, b)
        replay.expected_reward[slot, k, 0] -= side * (move - prior_move)
        replay.expected_reward[slot, k, 0] += side * side * (risk_penalty(market_data.market, move) - prior_penalty)
    for a in range(planner.policy.shape[1]):
        replay.policy[slot, k, 0, a] = planner.policy[b, a]
    store_sampled_sizes(replay, slot, k, planner.sampled_tree, b)


@inlined
def realised_move(market_data: MarketData, t: int) -> float:
    """Move from the close of bar t to the next, ranges."""
    bars = market_data.bars
    return float((bars.close[t + 1] - bars.close[t]) / market_data.market.range_px)


@inlined
def prior_moments(planner: Planner, b: int) -> tuple[float, float]:
    """Expected move of the bar after root b by the network's chance prior, and risk penalty of a full position."""
    C, y = planner.costs.move.shape[1], planner.networks.root.y[b]
    logits = y[y.shape[0] - C :]
    highest, total, move, penalty = -np.inf, 0.0, 0.0, 0.0
    for c in range(C):
        highest = max(highest, np.float64(logits[c]))
    for c in range(C):
        p = np.exp(np.float64(logits[c]) - highest)
        total += p
        move += p * np.float64(planner.costs.move[b, c])
        penalty += p * np.float64(planner.costs.risk_penalty[b, c])
    return move / total, penalty / total


@inlined
def store_sampled_sizes(replay: ReplayBuffer, slot: int, k: int, sampled_tree: SampledTree | None, b: int) -> None:
    """Store the entries among the candidates of root b, each with its probability in the improved policy."""
    if sampled_tree is not None:
        side = sampled_tree.tree.position[b, 0, SIDE]
        for j in range(replay.candidate_size.shape[2]):
            size = sampled_tree.candidate_size[b, 0, j]
            is_entry = sampled_tree.draw_count[b, 0, j] > 0 and action_kind_to(side, size) in (BUY, SELL)
            replay.candidate_size[slot, k, j] = size if is_entry else 0.0
            replay.candidate_policy[slot, k, j] = sampled_tree.policy[b, j] if is_entry else 0.0
