"""`Replay`: a ring of sessions that stores bar indices, not features, and the batches drawn from it.

A session of L decisions starts at the close of bar `start`; its end is a truncation: values bootstrap there as if it
went on, and the cost of closing, which the ledger books, is no lesson.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.jit import kernel
from kernels.market.bars import Bars
from kernels.market.chance import Codes, realised_code, standardised_move
from kernels.market.ledger import Market, entry_cost
from kernels.market.position import (
    CLOSE,
    HOLD,
    RAW,
    SIDE,
    act_on,
    is_legal,
    mirror_position,
    mirrored,
    position_features,
)
from kernels.rng import below


class Tape(NamedTuple):
    """What happened and what is known of it: bars, the features of those in use, and what they mean."""

    X: NDArray[np.float32]  # [rows, F] normalised features
    row_of_bar: NDArray[np.int32]  # [T] row of X of each bar, or -1
    sign: NDArray[np.float32]  # [F] -1 for what a mirrored price negates, else 1
    bars: Bars
    codes: Codes
    market: Market


EMPTY = -1


class Replay(NamedTuple):
    """R sessions of L decisions; L + 1 positions and values, for the state after the last decision too."""

    start: NDArray[np.int64]  # [R] bar of the first decision, or EMPTY
    position: NDArray[np.float32]  # [R, L + 1, RAW] raw position before each decision
    action: NDArray[np.int8]  # [R, L]
    reward: NDArray[np.float32]  # [R, L] of the bar after each decision, R
    policy: NDArray[np.float32]  # [R, L, A] improved policy of the last search
    value: NDArray[np.float32]  # [R, L + 1] value by the target network, R
    search_value: NDArray[np.float32]  # [R, L] value by the last search, R
    searched: NDArray[np.int32]  # [R] cycle of the last search of the session, -1 = never
    played: NDArray[np.int32]  # [R] cycle in which the session was played, -1 = never
    size: NDArray[np.float32]  # [R, L, E] signed sizes of the entries that the search tried, or 0
    share: NDArray[np.float32]  # [R, L, E] of each in the improved policy


class Batch(NamedTuple):
    """B windows of K steps, as the loss reads them."""

    x: NDArray[
        np.float32
    ]  # [B, context F] normalised features of the first bar and those before it, the first last
    position: NDArray[np.float32]  # [B, K + 1, P] position features before decision k
    after: NDArray[np.float32]  # [B, K, P] position features of the afterstate of step k
    action: NDArray[np.int64]  # [B, K]
    code: NDArray[np.int64]  # [B, K] chance code of the move that follows decision k
    reward: NDArray[np.float32]  # [B, K] R
    policy: NDArray[np.float32]  # [B, K + 1, A]
    value: NDArray[np.float32]  # [B, K + 1] n-step return, R
    legal: NDArray[np.bool_]  # [B, K + 1, A]
    weight: NDArray[np.float32]  # [B, K + 1] 0 beyond the end of the session
    size: NDArray[np.float32]  # [B, K + 1, E] as in the replay
    share: NDArray[np.float32]  # [B, K + 1, E]
    scratch: NDArray[np.float32]  # [RAW] an afterstate
    ahead: NDArray[
        np.float32
    ]  # [B, K, F] features of the bars of decisions 1 .. K; [B, 0, F] if no loss reads them
    move: NDArray[np.float32]  # [B, K] standardised, of step k; [B, 0] if no loss reads it


class ValueTarget(NamedTuple):
    """How the target of a value is made: a mixture of the n-step return and the value of the last search."""

    steps: int  # n
    discount: float  # per bar
    search_share: float  # of the search value in the target
    age_cut: float = 0.0  # cycles after which n is one less than it was, down to 1; 0 = never
    cycle: int = 0  # of now


def new_replay(sessions: int, length: int, actions: int, candidates: int = 0) -> Replay:
    """Room for `sessions` sessions of `length` decisions; under widening of the search's `candidates` too."""
    R, L = sessions, length
    return Replay(
        start=np.full(R, EMPTY, np.int64),
        position=np.zeros((R, L + 1, RAW), np.float32),
        action=np.zeros((R, L), np.int8),
        reward=np.zeros((R, L), np.float32),
        policy=np.zeros((R, L, actions), np.float32),
        value=np.zeros((R, L + 1), np.float32),
        search_value=np.zeros((R, L), np.float32),
        searched=np.full(R, EMPTY, np.int32),
        played=np.full(R, EMPTY, np.int32),
        size=np.zeros((R, L, candidates), np.float32),
        share=np.zeros((R, L, candidates), np.float32),
    )


def new_batch(
    windows: int,
    steps: int,
    features: int,
    position: int,
    actions: int,
    ahead: bool = False,
    context: int = 1,
    moves: bool = False,
    candidates: int = 0,
) -> Batch:
    """Room for `windows` windows of `steps` steps, with features of the later bars, and with moves, or without."""
    B, K = windows, steps
    return Batch(
        x=np.zeros((B, context * features), np.float32),
        position=np.zeros((B, K + 1, position), np.float32),
        after=np.zeros((B, K, position), np.float32),
        action=np.zeros((B, K), np.int64),
        code=np.zeros((B, K), np.int64),
        reward=np.zeros((B, K), np.float32),
        policy=np.zeros((B, K + 1, actions), np.float32),
        value=np.zeros((B, K + 1), np.float32),
        legal=np.ones((B, K + 1, actions), np.bool_),
        weight=np.zeros((B, K + 1), np.float32),
        size=np.zeros((B, K + 1, candidates), np.float32),
        share=np.zeros((B, K + 1, candidates), np.float32),
        scratch=np.zeros(RAW, np.float32),
        ahead=np.zeros((B, K if ahead else 0, features), np.float32),
        move=np.zeros((B, K if moves else 0), np.float32),
    )


@kernel
def is_greedy(replay: Replay, slot: int, step: int) -> bool:
    """Whether decision `step` took the action that its improved policy likes best, an entry with the best size."""
    best, action = 0, replay.action[slot, step]
    for a in range(replay.policy.shape[2]):
        if replay.policy[slot, step, a] > replay.policy[slot, step, best]:
            best = a
    E, largest = replay.size.shape[2], 0
    if best != action or E == 0 or action == HOLD or action == CLOSE:
        return bool(best == action)
    for e in range(E):
        if replay.share[slot, step, e] > replay.share[slot, step, largest]:
            largest = e
    return bool(replay.size[slot, step, largest] == replay.position[slot, step + 1, SIDE])


@kernel
def horizon(replay: Replay, slot: int, rule: ValueTarget) -> int:
    """n of a session: the older it is, the less its rewards tell of the present policy (EfficientZero, appendix A)."""
    if rule.age_cut <= 0:
        return rule.steps
    return max(1, rule.steps - int((rule.cycle - replay.played[slot]) / rule.age_cut))


@kernel
def value_target(replay: Replay, slot: int, step: int, rule: ValueTarget) -> float:
    """sum_{i<n} gamma^i reward[step + i] + gamma^n value[step + n], mixed with the value of the search.

    n is cut by age, at the end of the session and at the first action that explored: what exploring costs, an open
    position would otherwise seem to spare.  Where the decision itself explored, the value of the search stands alone.
    """
    last = min(step + horizon(replay, slot, rule), replay.reward.shape[1])
    stop = step
    while stop < last and is_greedy(replay, slot, stop):
        stop += 1
    searched = np.float64(replay.search_value[slot, step])
    if stop == step:
        return searched
    total = np.float64(replay.value[slot, stop])
    for i in range(stop - 1, step - 1, -1):
        total = np.float64(replay.reward[slot, i]) + rule.discount * total
    return total + rule.search_share * (searched - total)


@kernel
def fill_decision(
    batch: Batch, b: int, k: int, replay: Replay, slot: int, step: int, rule: ValueTarget, market: Market
) -> None:
    """Position, legality and targets of decision `step`; weight 0 and nothing else beyond the end."""
    position_features(batch.position[b, k], replay.position[slot, step], market.excursion_weight == 0)
    batch.value[b, k] = value_target(replay, slot, step, rule)
    for a in range(batch.legal.shape[2]):
        batch.legal[b, k, a] = is_legal(
            replay.position[slot, step, SIDE], a, batch.legal.shape[2], market.reverse
        )
        batch.policy[b, k, a] = replay.policy[slot, step, a]
    for e in range(batch.size.shape[2]):
        batch.size[b, k, e] = replay.size[slot, step, e]
        batch.share[b, k, e] = replay.share[slot, step, e]
    batch.weight[b, k] = 1.0


@kernel
def fill_step(
    batch: Batch,
    b: int,
    k: int,
    replay: Replay,
    slot: int,
    step: int,
    tape: Tape,
) -> None:
    """What happened between decision `step` and the next."""
    bars, market, t = tape.bars, tape.market, replay.start[slot] + step
    afterstate = batch.scratch
    target = replay.position[slot, step + 1, SIDE]
    act_on(afterstate, replay.position[slot, step], target, entry_cost(bars, t, market))
    position_features(batch.after[b, k], afterstate, market.excursion_weight == 0)
    batch.action[b, k] = replay.action[slot, step]
    batch.code[b, k] = realised_code(tape.codes, bars, t)
    batch.reward[b, k] = replay.reward[slot, step]


@kernel
def fill_beyond(batch: Batch, b: int, k: int) -> None:
    """A decision beyond the end of the session: weight 0, a well-formed row all the same."""
    batch.weight[b, k] = 0.0
    batch.value[b, k] = 0.0
    batch.position[b, k, :] = 0.0
    batch.policy[b, k, :] = 0.0
    batch.size[b, k, :] = 0.0
    batch.share[b, k, :] = 0.0
    batch.legal[b, k, :] = True
    batch.after[b, k - 1, :] = 0.0
    batch.action[b, k - 1] = 0
    batch.code[b, k - 1] = 0
    batch.reward[b, k - 1] = 0.0


@kernel
def fill_window(
    batch: Batch,
    b: int,
    replay: Replay,
    slot: int,
    first: int,
    tape: Tape,
    rule: ValueTarget,
) -> None:
    """Window b: decisions first .. first + K of session `slot`."""
    X, row_of_bar, bars = tape.X, tape.row_of_bar, tape.bars
    K, L, F = batch.code.shape[1], replay.reward.shape[1], X.shape[1]
    for i in range(batch.x.shape[1] // F):
        row = row_of_bar[replay.start[slot] + first - i]
        x = batch.x[b, batch.x.shape[1] - (i + 1) * F :]
        for f in range(F):
            x[f] = X[row, f]
    for k in range(K + 1):
        if first + k < L:
            fill_decision(batch, b, k, replay, slot, first + k, rule, tape.market)
        else:
            fill_beyond(batch, b, k)
    for k in range(min(K, L - 1 - first)):
        fill_step(batch, b, k, replay, slot, first + k, tape)
        if batch.move.shape[1] > 0:
            batch.move[b, k] = standardised_move(bars, replay.start[slot] + first + k)
    for k in range(batch.ahead.shape[1]):
        # beyond the end, where nothing weighs, any bar will do
        row = row_of_bar[replay.start[slot] + min(first + k + 1, L)]
        for f in range(X.shape[1]):
            batch.ahead[b, k, f] = X[row, f]


@kernel
def mirror_window(batch: Batch, b: int, tape: Tape) -> None:
    """Turn window b into that of the mirrored market: rises are falls, and a long position is a short one.

    The two are as likely, so a direction that seems to follow from something without one, such as the volatility or
    the hour, is noise, and is contradicted in the same batch.  Only swaps tell the sides apart.
    """
    F, A, C = tape.X.shape[1], batch.policy.shape[2], tape.codes.centres.shape[0]
    x, ahead, sign = batch.x[b], batch.ahead[b], tape.sign
    for i in range(x.shape[0]):
        x[i] *= sign[i % F]
    for k in range(ahead.shape[0]):
        for f in range(F):
            ahead[k, f] *= sign[f]
    for k in range(batch.move.shape[1]):
        batch.move[b, k] = -batch.move[b, k]
    for k in range(batch.code.shape[1]):
        batch.action[b, k] = mirrored(batch.action[b, k], A)
        batch.code[b, k] = C - 1 - batch.code[b, k]
        mirror_position(batch.after[b, k])
    for k in range(batch.weight.shape[1]):
        mirror_position(batch.position[b, k])
        policy, legal = batch.policy[b, k], batch.legal[b, k]
        for a in range(A):
            other = mirrored(a, A)
            if a < other:
                policy[a], policy[other] = policy[other], policy[a]
                legal[a], legal[other] = legal[other], legal[a]
        for e in range(batch.size.shape[2]):
            batch.size[b, k, e] = -batch.size[b, k, e]


@kernel
def mirror_half(batch: Batch, tape: Tape, seed: int, step: int) -> None:
    """Mirror about half of the windows, drawn by (seed, step) behind the draws of the windows themselves."""
    B = batch.code.shape[0]
    for b in range(B):
        if below(2, seed, step, B + b) == 1:
            mirror_window(batch, b, tape)


@kernel
def sample(
    batch: Batch,
    replay: Replay,
    filled: int,
    tape: Tape,
    rule: ValueTarget,
    seed: int,
    step: int,
) -> None:
    """Draw windows uniformly from the first `filled` sessions.

    The draws are keyed by (seed, step): learning step `step` always sees the same windows.
    """
    L = replay.reward.shape[1]
    for b in range(batch.code.shape[0]):
        draw = below(filled * L, seed, step, b)
        fill_window(batch, b, replay, draw // L, draw % L, tape, rule)
