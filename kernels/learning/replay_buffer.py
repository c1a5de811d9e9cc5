"""`ReplayBuffer`, a ring of episodes, and the batches of windows that are drawn from it.

An episode of L decisions begins at the close of its `start_bar`.  It ends by truncation: values bootstrap at the end,
and the cost of closing the last position is in no reward.  The replay buffer stores bar indices, not features.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.jit import inlined, kernel
from kernels.market.bars import Bars
from kernels.market.chance import ChanceCodes, realised_code
from kernels.market.ledger import Market, entry_cost
from kernels.market.position import (
    CLOSE,
    HOLD,
    NUM_POSITION_FIELDS,
    PREVIOUS_SIDE,
    SIDE,
    action_target,
    apply_fill,
    is_legal,
    mirror_position_features,
    mirrored_action,
    position_features,
)
from kernels.rng import randint


class MarketData(NamedTuple):
    """The bars of a series, the features of those in use, and how to read them."""

    features: NDArray[np.float32]  # [any, F] normalised features
    row_of_bar: NDArray[np.int32]  # [T] row of each bar in `features`, or -1
    mirror_sign: NDArray[np.float32]  # [F] -1 for a feature that a mirrored price negates, else 1
    bars: Bars
    codes: ChanceCodes
    market: Market


EMPTY = -1


class ReplayBuffer(NamedTuple):
    """R episodes of L decisions; positions and values also of the state after the last decision.

    A decision is searched for M positions: the one held alone, or all that could be (kernels.learning.bar_search).
    """

    start_bar: NDArray[np.int64]  # [R] bar of the first decision, or EMPTY
    position: NDArray[np.float32]  # [R, L + 1, NUM_POSITION_FIELDS] before each decision
    action: NDArray[np.int8]  # [R, L]
    reward: NDArray[np.float32]  # [R, L] of the bar after each decision, ranges
    held: NDArray[np.int8]  # [R, L + 1] which of the M positions was held
    policy: NDArray[np.float32]  # [R, L, M, A] improved policy of the last search
    value: NDArray[np.float32]  # [R, L + 1, M] by the target network, ranges
    search_value: NDArray[np.float32]  # [R, L, M] lambda-return of the last searches, ranges
    # [R, L, M] expected reward: of the likeliest action, or, if M = 1, of the action that was taken; ranges
    expected_reward: NDArray[np.float32]
    searched_iteration: NDArray[np.int32]  # [R] iteration of the last search, or EMPTY
    played_iteration: NDArray[np.int32]  # [R] iteration in which the episode was played, or EMPTY
    candidate_size: NDArray[np.float32]  # [R, L, J] signed sizes of the searched entries, or 0
    candidate_policy: NDArray[np.float32]  # [R, L, J] probability of each in the improved policy


class Batch(NamedTuple):
    """B windows of K unroll steps, the input of the loss.  Decision 0 is the first of a window."""

    features: NDArray[np.float32]  # [B, context F] normalised; bars up to decision 0, oldest first
    position: NDArray[np.float32]  # [B, K + 1, P] position features before decision k
    afterstate_position: NDArray[np.float32]  # [B, K, P] features of the afterstate of decision k
    action: NDArray[np.int64]  # [B, K]
    code: NDArray[np.int64]  # [B, K] chance code of the move after decision k
    reward: NDArray[np.float32]  # [B, K] ranges
    policy: NDArray[np.float32]  # [B, K + 1, A] policy target
    value: NDArray[np.float32]  # [B, K + 1] value target, ranges
    legal: NDArray[np.bool_]  # [B, K + 1, A]
    weight: NDArray[np.float32]  # [B, K + 1] of the losses; 0 beyond the end of the episode
    candidate_size: NDArray[np.float32]  # [B, K + 1, J] as in the replay buffer
    candidate_policy: NDArray[np.float32]  # [B, K + 1, J] as in the replay buffer
    position_work: NDArray[np.float32]  # [NUM_POSITION_FIELDS] scratch: an afterstate
    # [B, K, F] of the bars of decisions 1 .. K; [B, 0, F] if no loss reads them
    next_features: NDArray[np.float32]


class ValueTargetConfig(NamedTuple):
    """A value target is a weighted mean of the n-step return and the value of the last search."""

    td_steps: int  # n
    discount: float  # per bar
    search_value_weight: float
    # iterations of age that reduce n by one, down to 1; 0: n is always td_steps
    off_policy_correction: float = 0.0
    iteration: int = 0  # the current one


def new_replay_buffer(
    num_episodes: int, episode_length: int, num_actions: int, num_candidates: int = 0, num_positions: int = 1
) -> ReplayBuffer:
    """An empty replay buffer of M = `num_positions`; J = `num_candidates` is 0 but under progressive widening."""
    R, L, M = num_episodes, episode_length, num_positions
    return ReplayBuffer(
        start_bar=np.full(R, EMPTY, np.int64),
        position=np.zeros((R, L + 1, NUM_POSITION_FIELDS), np.float32),
        action=np.zeros((R, L), np.int8),
        reward=np.zeros((R, L), np.float32),
        held=np.zeros((R, L + 1), np.int8),
        policy=np.zeros((R, L, M, num_actions), np.float32),
        value=np.zeros((R, L + 1, M), np.float32),
        search_value=np.zeros((R, L, M), np.float32),
        expected_reward=np.zeros((R, L, M), np.float32),
        searched_iteration=np.full(R, EMPTY, np.int32),
        played_iteration=np.full(R, EMPTY, np.int32),
        candidate_size=np.zeros((R, L, num_candidates), np.float32),
        candidate_policy=np.zeros((R, L, num_candidates), np.float32),
    )


def new_batch(
    batch_size: int,
    num_unroll_steps: int,
    num_features: int,
    num_position_features: int,
    num_actions: int,
    with_next_features: bool = False,
    context: int = 1,
    num_candidates: int = 0,
) -> Batch:
    """A batch of zeros; `context`: bars of the features of a row.  J = `num_candidates` is 0 but under widening."""
    B, K = batch_size, num_unroll_steps
    return Batch(
        features=np.zeros((B, context * num_features), np.float32),
        position=np.zeros((B, K + 1, num_position_features), np.float32),
        afterstate_position=np.zeros((B, K, num_position_features), np.float32),
        action=np.zeros((B, K), np.int64),
        code=np.zeros((B, K), np.int64),
        reward=np.zeros((B, K), np.float32),
        policy=np.zeros((B, K + 1, num_actions), np.float32),
        value=np.zeros((B, K + 1), np.float32),
        legal=np.ones((B, K + 1, num_actions), np.bool_),
        weight=np.zeros((B, K + 1), np.float32),
        candidate_size=np.zeros((B, K + 1, num_candidates), np.float32),
        candidate_policy=np.zeros((B, K + 1, num_candidates), np.float32),
        position_work=np.zeros(NUM_POSITION_FIELDS, np.float32),
        next_features=np.zeros((B, K if with_next_features else 0, num_features), np.float32),
    )


def slice_batch(batch: Batch, first: int, stop: int) -> Batch:
    """Views of the windows [first, stop) of a batch."""
    rows = {name: array[first:stop] for name, array in batch._asdict().items() if name != "position_work"}
    return batch._replace(**rows)


@inlined
def greedy_action(policy: NDArray[np.float32]) -> int:
    """The likeliest action of a policy [A]."""
    best = 0
    for a in range(policy.shape[0]):
        if policy[a] > policy[best]:
            best = a
    return best


@kernel
def is_greedy(replay: ReplayBuffer, slot: int, step: int) -> bool:
    """Whether decision `step` took the likeliest action of its improved policy, and an entry its likeliest size."""
    action = replay.action[slot, step]
    best = greedy_action(replay.policy[slot, step, replay.held[slot, step]])
    J, likeliest = replay.candidate_size.shape[2], 0
    if best != action or J == 0 or action == HOLD or action == CLOSE:
        return bool(best == action)
    for j in range(J):
        if replay.candidate_policy[slot, step, j] > replay.candidate_policy[slot, step, likeliest]:
            likeliest = j
    return bool(replay.candidate_size[slot, step, likeliest] == replay.position[slot, step + 1, SIDE])


@inlined
def position_after(m: int, action: int, num_actions: int) -> int:
    """Which of M = A - 1 positions follows position m by `action`."""
    if action == HOLD:
        return m
    return 0 if action == num_actions - 1 else action


@kernel
def backward_lambda(replay: ReplayBuffer, slots: NDArray[np.int64], discount: float, td_lambda: float) -> None:
    """Turn the search values of the episodes `slots` into lambda-returns, the last decision first, in ranges.

    G[k] = r[k] + gamma ((1 - lambda) v[k + 1] + lambda G[k + 1]) along the bars that came, with the positions of the
    likeliest actions (Sutton and Barto 2018, 12.2).  r is an expected reward: the noise of the market does not enter.
    v is the network's value of the bar that came.  The value of the search itself rests on imagined bars.  Where they
    are worth e less than real ones, an agent that learns from it ends up e / (1 - gamma) too low.  The search's value
    stays at the last decision, and where a decision explored and no other position was searched.
    """
    L, M, A = replay.reward.shape[1], replay.policy.shape[2], replay.policy.shape[3]
    for slot in slots:
        for k in range(L - 2, -1, -1):
            if M == 1 and not is_greedy(replay, slot, k):
                continue
            for m in range(M):
                after = 0
                if M > 1:
                    after = position_after(m, greedy_action(replay.policy[slot, k, m]), A)
                value = np.float64(replay.value[slot, k + 1, after])
                value += td_lambda * (np.float64(replay.search_value[slot, k + 1, after]) - value)
                replay.search_value[slot, k, m] = replay.expected_reward[slot, k, m] + discount * value


@kernel
def effective_td_steps(replay: ReplayBuffer, slot: int, target_config: ValueTargetConfig) -> int:
    """n of episode `slot`: old rewards are those of an old policy, so n falls with age (EfficientZero, appendix A)."""
    if target_config.off_policy_correction <= 0:
        return target_config.td_steps
    age = target_config.iteration - replay.played_iteration[slot]
    return max(1, target_config.td_steps - int(age / target_config.off_policy_correction))


@kernel
def value_target(replay: ReplayBuffer, slot: int, step: int, m: int, target_config: ValueTargetConfig) -> float:
    """sum_{i<n} gamma^i reward[step + i] + gamma^n value[step + n], mixed with the lambda-return of position m, ranges.

    n is `effective_td_steps`, and less at the end of the episode and before an action that explored.  Otherwise an open
    position would seem to spare the cost of exploring.  If decision `step` explored, or m is not the position that was
    held, the lambda-return is the target.
    """
    last = min(step + effective_td_steps(replay, slot, target_config), replay.reward.shape[1])
    stop = step
    while stop < last and is_greedy(replay, slot, stop):
        stop += 1
    search_value = np.float64(replay.search_value[slot, step, m])
    if stop == step or m != replay.held[slot, step]:
        return search_value
    total = np.float64(replay.value[slot, stop, replay.held[slot, stop]])
    for i in range(stop - 1, step - 1, -1):
        total = np.float64(replay.reward[slot, i]) + target_config.discount * total
    return total + target_config.search_value_weight * (search_value - total)


@kernel
def fill_decision(
    batch: Batch,
    b: int,
    k: int,
    replay: ReplayBuffer,
    slot: int,
    step: int,
    m: int,
    target_config: ValueTargetConfig,
    market: Market,
) -> None:
    """Write decision `step` of episode `slot`, with position m of its M, into row (b, k)."""
    position = replay.position[slot, step]
    if m != replay.held[slot, step]:
        position = batch.position_work
        position[:] = 0.0
        position[SIDE] = position[PREVIOUS_SIDE] = action_target(0.0, m, market.sizes)
    position_features(batch.position[b, k], position, market.mae_penalty == 0)
    batch.value[b, k] = value_target(replay, slot, step, m, target_config)
    A, side, draws_sizes = batch.legal.shape[2], position[SIDE], batch.candidate_size.shape[2] > 0
    for a in range(A):
        target = 0.0 if draws_sizes else action_target(side, a, market.sizes)
        batch.legal[b, k, a] = is_legal(side, a, A, market.reverse, market.position_adjustment, target)
        batch.policy[b, k, a] = replay.policy[slot, step, m, a]
    for j in range(batch.candidate_size.shape[2]):
        batch.candidate_size[b, k, j] = replay.candidate_size[slot, step, j]
        batch.candidate_policy[b, k, j] = replay.candidate_policy[slot, step, j]
    batch.weight[b, k] = 1.0


@kernel
def fill_transition(
    batch: Batch, b: int, k: int, replay: ReplayBuffer, slot: int, step: int, market_data: MarketData
) -> None:
    """Write action, afterstate, chance code and reward between decision `step` and the next one into row (b, k)."""
    bars, market, t = market_data.bars, market_data.market, replay.start_bar[slot] + step
    afterstate = batch.position_work
    target = replay.position[slot, step + 1, SIDE]
    apply_fill(afterstate, replay.position[slot, step], target, entry_cost(bars, t, market))
    position_features(batch.afterstate_position[b, k], afterstate, market.mae_penalty == 0)
    batch.action[b, k] = replay.action[slot, step]
    batch.code[b, k] = realised_code(market_data.codes, bars, t)
    batch.reward[b, k] = replay.reward[slot, step]


@kernel
def pad_step(batch: Batch, b: int, k: int) -> None:
    """Write a decision beyond the end of the episode into row (b, k): weight 0, and zeros that the loss can read."""
    batch.weight[b, k] = 0.0
    batch.value[b, k] = 0.0
    batch.position[b, k, :] = 0.0
    batch.policy[b, k, :] = 0.0
    batch.candidate_size[b, k, :] = 0.0
    batch.candidate_policy[b, k, :] = 0.0
    batch.legal[b, k, :] = True
    batch.afterstate_position[b, k - 1, :] = 0.0
    batch.action[b, k - 1] = 0
    batch.code[b, k - 1] = 0
    batch.reward[b, k - 1] = 0.0


@kernel
def fill_window(
    batch: Batch,
    b: int,
    replay: ReplayBuffer,
    slot: int,
    first: int,
    market_data: MarketData,
    target_config: ValueTargetConfig,
    seed: int,
    step: int,
) -> None:
    """Write decisions first .. first + K of episode `slot` into window b.

    Where every position was searched, each decision has one of them, drawn by (seed, step): moves and positions are
    independent of each other, so all of them are lessons of the same bars.
    """
    B, M = batch.code.shape[0], replay.policy.shape[2]
    features, row_of_bar = market_data.features, market_data.row_of_bar
    K, L, F = batch.code.shape[1], replay.reward.shape[1], features.shape[1]
    for i in range(batch.features.shape[1] // F):
        row = row_of_bar[replay.start_bar[slot] + first - i]
        x = batch.features[b, batch.features.shape[1] - (i + 1) * F :]
        for f in range(F):
            x[f] = features[row, f]
    for k in range(K + 1):
        if first + k < L:
            m = int(replay.held[slot, first + k])
            if M > 1 and target_config.search_value_weight == 1:
                m = randint(M, seed, step, (k + 2) * B + b)
            fill_decision(batch, b, k, replay, slot, first + k, m, target_config, market_data.market)
        else:
            pad_step(batch, b, k)
    for k in range(min(K, L - 1 - first)):
        fill_transition(batch, b, k, replay, slot, first + k, market_data)
    for k in range(batch.next_features.shape[1]):
        # beyond the end the weight is 0: any bar will do
        row = row_of_bar[replay.start_bar[slot] + min(first + k + 1, L)]
        for f in range(F):
            batch.next_features[b, k, f] = features[row, f]


@kernel
def mirror_window(batch: Batch, b: int, market_data: MarketData) -> None:
    """Turn window b into that of the mirrored market: rises become falls, and long positions short ones.

    Both windows are equally likely.  A direction that seems to follow from a feature without direction, such as the
    volatility or the hour, is noise: mirrored windows contradict it.  Only financing differs between the sides.
    """
    F, A, C = market_data.features.shape[1], batch.policy.shape[2], market_data.codes.centres.shape[0]
    x, next_features, sign = batch.features[b], batch.next_features[b], market_data.mirror_sign
    for i in range(x.shape[0]):
        x[i] *= sign[i % F]
    for k in range(next_features.shape[0]):
        for f in range(F):
            next_features[k, f] *= sign[f]
    for k in range(batch.code.shape[1]):
        batch.action[b, k] = mirrored_action(batch.action[b, k], A)
        batch.code[b, k] = C - 1 - batch.code[b, k]
        mirror_position_features(batch.afterstate_position[b, k])
    for k in range(batch.weight.shape[1]):
        mirror_position_features(batch.position[b, k])
        policy, legal = batch.policy[b, k], batch.legal[b, k]
        for a in range(A):
            other = mirrored_action(a, A)
            if a < other:
                policy[a], policy[other] = policy[other], policy[a]
                legal[a], legal[other] = legal[other], legal[a]
        for j in range(batch.candidate_size.shape[2]):
            batch.candidate_size[b, k, j] = -batch.candidate_size[b, k, j]


@kernel
def mirror_half(batch: Batch, market_data: MarketData, seed: int, step: int) -> None:
    """Mirror each window with probability 1/2; keyed by (seed, step), by other draws than those of the windows."""
    B = batch.code.shape[0]
    for b in range(B):
        if randint(2, seed, step, B + b) == 1:
            mirror_window(batch, b, market_data)


@kernel
def sample_uniformly(
    batch: Batch,
    replay: ReplayBuffer,
    num_filled: int,
    market_data: MarketData,
    target_config: ValueTargetConfig,
    seed: int,
    step: int,
) -> None:
    """Draw windows uniformly from the decisions of the first `num_filled` episodes.

    The draws are keyed by (seed, step): update `step` of a training always has the same windows.
    """
    L = replay.reward.shape[1]
    for b in range(batch.code.shape[0]):
        draw = randint(num_filled * L, seed, step, b)
        fill_window(batch, b, replay, draw // L, draw % L, market_data, target_config, seed, step)
