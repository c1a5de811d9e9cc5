"""Self-play: episodes in lockstep, from the first decision to the close-out, in one call."""

import numpy as np
from numpy.typing import NDArray

from kernels.jit import inlined, kernel
from kernels.learning.bar_search import SearchedBars
from kernels.learning.record import set_market_root, store_search_statistics
from kernels.learning.replay_buffer import MarketData, ReplayBuffer
from kernels.market.ledger import ACC_SIDE, Market, close_out, permits, step_to_target, write_position
from kernels.market.position import BUY, HOLD, action_target, hypothesis_of_side
from kernels.rng import randint, uniform
from kernels.search.config import SearchConfig
from kernels.search.planner import Planner, decide_by_q, draw_noise, fill_gumbel, plan, selected_target
from kernels.search.progressive_widening import MIN_SIZE, SampledTree

RANDOM_ACTION_BARS = 16  # bars between two random actions of a random episode, in the mean


@inlined
def random_action(side: float, market: Market, num_actions: int, seed: int, episode: int, step: int) -> int:
    """Each action with probability 1 / (RANDOM_ACTION_BARS num_actions) if it is legal, else HOLD."""
    # the noise of the roots has the steps from 0 on
    draw = randint(RANDOM_ACTION_BARS * num_actions, seed, episode, -1 - step)
    return draw if permits(market, side, draw, num_actions) else HOLD


@inlined
def random_size(sampled_tree: SampledTree | None, b: int, action: int, seed: int, episode: int, step: int) -> None:
    """Under progressive widening, draw the size of an entry of a random episode: full, or uniform below, half each.

    The full size is a candidate of every root.  From smaller sizes alone its value is learnt late.
    """
    if sampled_tree is not None:
        size = min(max(2.0 * uniform(seed, -1 - episode, step), MIN_SIZE), 1.0)
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
    for k in range(L):
        for b in range(B):
            if k == 0:
                write_position(replay.position[slots[b], 0], account[b], market_data.market)
            set_market_root(planner, b, market_data, replay.start_bar[slots[b]] + k, replay.position[slots[b], k])
            draw_noise(planner, b, seed, first_episode + b, k)
        status = plan(planner)
        if status != 0:
            return status
        for b in range(B):
            slot, side, action = slots[b], account[b, ACC_SIDE], int(planner.action[b])
            if b < random_episodes:
                action = random_action(side, market_data.market, planner.policy.shape[1], seed, first_episode + b, k)
                random_size(planner.sampled_tree, b, action, seed, first_episode + b, k)
            target = selected_target(planner.sampled_tree, b, action, side, market_data.market)
            take_action(replay, account[b], trade, slot, k, action, target, market_data)
            store_search_statistics(replay, slot, k, planner, b, market_data)
    for b in range(B):
        close_out(account[b], trade, market_data.bars, replay.start_bar[slots[b]] + L, market_data.market)
    return 0


@kernel
def play_searched_bars(
    replay: ReplayBuffer,
    account: NDArray[np.float64],
    trade: NDArray[np.float64],
    searched: SearchedBars,
    config: SearchConfig,
    slots: NDArray[np.int64],
    market_data: MarketData,
    random_episodes: int,
    seed: int,
    first_episode: int,
) -> None:
    """Play the episodes of `play_episodes`, to the bit, by the searches of their bars, which were made before."""
    L, M, A, market = replay.reward.shape[1], searched.q.shape[1], searched.q.shape[2], market_data.market
    for b in range(slots.shape[0]):
        slot = slots[b]
        write_position(replay.position[slot, 0], account[b], market)
        replay.held[slot, 0] = hypothesis_of_side(account[b, ACC_SIDE], M, market.sizes)
        for k in range(L):
            row, m, side = searched.row_of_bar[replay.start_bar[slot] + k], replay.held[slot, k], account[b, ACC_SIDE]
            fill_gumbel(searched.noise, seed, first_episode + b, k)
            q, logits = searched.q[row, m], searched.logits[row, m]
            action, _ = decide_by_q(searched.policy, q, logits, searched.noise, config)
            if b < random_episodes:
                action = random_action(side, market, A, seed, first_episode + b, k)
            target = action_target(side, action, market.sizes)
            take_action(replay, account[b], trade, slot, k, action, target, market_data)
            replay.held[slot, k + 1] = hypothesis_of_side(account[b, ACC_SIDE], M, market.sizes)
        close_out(account[b], trade, market_data.bars, replay.start_bar[slot] + L, market)


@inlined
def take_action(
    replay: ReplayBuffer,
    account: NDArray[np.float64],
    trade: NDArray[np.float64],
    slot: int,
    k: int,
    action: int,
    target: float,
    market_data: MarketData,
) -> None:
    """Trade to the signed size `target` by decision k of episode `slot`; store action, reward and the next position."""
    replay.action[slot, k] = action
    replay.reward[slot, k] = step_to_target(
        account, trade, market_data.bars, replay.start_bar[slot] + k, target, market_data.market
    )
    write_position(replay.position[slot, k + 1], account, market_data.market)
