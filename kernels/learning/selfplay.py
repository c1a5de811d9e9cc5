"""Self-play: episodes in lockstep, from the first decision to the close-out, in one call."""

import numpy as np
from numpy.typing import NDArray

from kernels.jit import inlined, kernel
from kernels.learning.record import set_market_root, store_search_statistics
from kernels.learning.replay_buffer import MarketData, ReplayBuffer
from kernels.market.ledger import ACC_SIDE, close_out, step_to_target, write_position
from kernels.market.position import BUY, HOLD, is_legal
from kernels.rng import randint, uniform
from kernels.search.planner import Planner, draw_noise, plan, selected_target
from kernels.search.progressive_widening import MIN_SIZE, SampledTree

RANDOM_ACTION_BARS = 16  # bars between two random actions of a random episode, in the mean


@inlined
def random_action(side: float, reverse: bool, num_actions: int, seed: int, episode: int, step: int) -> int:
    """Each action with probability 1 / (RANDOM_ACTION_BARS num_actions) if it is legal, else HOLD."""
    # the noise of the roots has the steps from 0 on
    draw = randint(RANDOM_ACTION_BARS * num_actions, seed, episode, -1 - step)
    if draw < num_actions and is_legal(side, draw, num_actions, reverse):
        return draw
    return HOLD


@inlined
def random_size(sampled_tree: SampledTree | None, b: int, action: int, seed: int, episode: int, step: int) -> None:
    """Under progressive widening, draw the size of an entry of a random episode uniformly from [MIN_SIZE, 1)."""
    if sampled_tree is not None:
        size = max(uniform(seed, -1 - episode, step), MIN_SIZE)
        sampled_tree.target[b] = size if action == BUY else -size


@kernel
def play_episodes(
    replay: ReplayBuffer,
    account: NDArray[np.float64],
    trade: NDArray[np.float64],
    planner: Planner,
    slots: NDArray[np.int64],
    market_data: MarketData,
    random_episodes: int,
    seed: int,
    first_episode: int,
) -> int:
    """Play B episodes into the replay slots `slots` [B], whose `start_bar` is set, from flat accounts.

    account [B, NUM_ACCOUNT_FIELDS]; trade [NUM_TRADE_FIELDS] is scratch.  The first `random_episodes` episodes are
    searched like the others but act at random: otherwise an agent that has learned to stay flat would forget what a
    position is worth.  The noise of root b is keyed by (seed, first_episode + b, step).  Returns 0, or the status of a
    failed network call.
    """
    B, L = slots.shape[0], replay.reward.shape[1]
    bars, market = market_data.bars, market_data.market
    for k in range(L):
        for b in range(B):
            position = replay.position[slots[b], k]
            write_position(position, account[b], market)
            set_market_root(planner, b, market_data, replay.start_bar[slots[b]] + k, position)
            draw_noise(planner, b, seed, first_episode + b, k)
        status = plan(planner)
        if status != 0:
            return status
        for b in range(B):
            slot, side, action = slots[b], account[b, ACC_SIDE], int(planner.action[b])
            if b < random_episodes:
                action = random_action(side, market.reverse, planner.policy.shape[1], seed, first_episode + b, k)
                random_size(planner.sampled_tree, b, action, seed, first_episode + b, k)
            target = selected_target(planner.sampled_tree, b, action, side, market)
            replay.action[slot, k] = action
            replay.reward[slot, k] = step_to_target(account[b], trade, bars, replay.start_bar[slot] + k, target, market)
            store_search_statistics(replay, slot, k, planner, b)
    for b in range(B):
        write_position(replay.position[slots[b], L], account[b], market)
        close_out(account[b], trade, bars, replay.start_bar[slots[b]] + L, market)
    return 0
