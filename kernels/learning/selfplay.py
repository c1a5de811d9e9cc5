"""Self-play: a block of sessions in lockstep, from the first decision to the ledger's closing entry, in one call."""

import numpy as np
from numpy.typing import NDArray

from kernels.jit import inlined, kernel
from kernels.learning.record import store_search_statistics, write_context
from kernels.learning.replay_buffer import MarketData, ReplayBuffer
from kernels.market.ledger import ACC_SIDE, close_out, step_to_target, write_position
from kernels.market.position import BUY, HOLD, is_legal
from kernels.rng import randint, uniform
from kernels.search.planner import Planner, draw_noise, plan, selected_target, set_root
from kernels.search.progressive_widening import MIN_SIZE, SampledTree

RANDOM_ACTION_BARS = 16  # of a random trader


@inlined
def random_action(side: float, reverse: bool, num_actions: int, seed: int, episode: int, step: int) -> int:
    """A random trader: one bar in WANDER_BARS any action, if it is legal, else HOLD."""
    draw = randint(
        RANDOM_ACTION_BARS * num_actions, seed, episode, -1 - step
    )  # the noise of the roots has the steps from 0 up
    if draw < num_actions and is_legal(side, draw, num_actions, reverse):
        return draw
    return HOLD


@inlined
def random_size(wide: SampledTree | None, b: int, action: int, seed: int, episode: int, step: int) -> None:
    """Where entries have any size, so have a random trader's."""
    if wide is not None:
        size = max(uniform(seed, -1 - episode, step), MIN_SIZE)
        wide.target[b] = size if action == BUY else -size


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
    """Play session b of the block into replay slot slots[b], whose `start` is set, from a flat account[b] [ACCOUNT].

    The first `random_episodes` sessions are searched like the others but act at random: an agent that learnt to stay flat
    would else forget what a position is worth.

    The noise of a root is keyed by (seed, session + b, step).  `trade` [TRADE] is scratch.  0 or a network status.
    """
    B, L = slots.shape[0], replay.reward.shape[1]
    bars, market = market_data.bars, market_data.market
    for k in range(L):
        for b in range(B):
            t = replay.start_bar[slots[b]] + k
            position = replay.position[slots[b], k]
            write_position(position, account[b], market)
            write_context(planner.networks.root.x[b], market_data, t)
            set_root(
                planner,
                b,
                market_data.features[market_data.row_of_bar[t]],
                position,
                bars,
                t,
                market_data.codes,
                market,
            )
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
