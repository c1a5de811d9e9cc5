"""What the learner needs of an environment: its episodes in the replay buffer, searched again and drawn as windows.

A slot of the replay buffer holds a piece of one episode, of at most L - 1 decisions.  Behind its last decision stand
rows that make targets end there without a word about it: after a terminal state they earn nothing, by greedy actions,
and are worth nothing (MuZero's absorbing states, Schrittwieser et al. 2020, appendix G); where a piece was cut, the
action of the first such row is not greedy, so a return stops there and bootstraps from the value of the observation.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.jit import inlined, kernel
from kernels.learning.prioritized import apply_importance_weights, sample_index
from kernels.learning.replay_buffer import Batch, ReplayBuffer, ValueTargetConfig, value_target
from kernels.ort import BoundGraph, evaluate
from kernels.rng import randint, uniform
from kernels.search.planner import Planner, draw_noise
from kernels.search.tree import NONE, REUSE_OFF


class EnvironmentSteps(NamedTuple):
    """What R slots of a replay buffer hold of an environment, beside what they hold of a market too."""

    observation: NDArray[np.float32]  # [R, L, F] before each decision; the last one after the last decision
    legal: NDArray[np.bool_]  # [R, L, A]
    code: NDArray[np.int16]  # [R, L] chance code after each decision; the action where there is no chance
    length: NDArray[np.int32]  # [R] decisions, at most L - 1
    is_terminal: NDArray[np.bool_]  # [R] whether the episode ended with the last of them


def new_environment_steps(slots: int, length: int, features: int, actions: int) -> EnvironmentSteps:
    """Empty slots beside a replay buffer of L = `length`."""
    return EnvironmentSteps(
        observation=np.zeros((slots, length, features), np.float32),
        legal=np.ones((slots, length, actions), np.bool_),
        code=np.zeros((slots, length), np.int16),
        length=np.zeros(slots, np.int32),
        is_terminal=np.zeros(slots, np.bool_),
    )


@inlined
def set_environment_root(planner: Planner, b: int, observation: NDArray[np.float32], legal: NDArray[np.bool_]) -> None:
    """Make an observation [F] with the actions that are legal [A] there root b."""
    x = planner.networks.root.x[b]
    for f in range(observation.shape[0]):
        x[f] = observation[f]
    for a in range(legal.shape[0]):
        planner.legal[b, a] = legal[a]


@kernel
def set_roots(
    planner: Planner,
    observation: NDArray[np.float32],
    legal: NDArray[np.bool_],
    seed: int,
    first_stream: int,
    step: int,
) -> None:
    """Make the observations [B, F] the roots; noise is keyed by (seed, first_stream + b, step), step < 0: without."""
    for b in range(observation.shape[0]):
        set_environment_root(planner, b, observation[b], legal[b])
        if step >= 0:
            draw_noise(planner, b, seed, first_stream + b, step)


@inlined
def store_search(replay: ReplayBuffer, slot: int, k: int, planner: Planner, b: int) -> None:
    """Store what the search of root b found for decision k of a slot."""
    replay.search_value[slot, k, 0] = planner.value[b]
    y, C = planner.networks.root.y[b], planner.costs.move.shape[1]
    replay.value[slot, k, 0] = y[y.shape[0] - 1 - C]
    for a in range(planner.policy.shape[1]):
        replay.policy[slot, k, 0, a] = planner.policy[b, a]


@kernel
def store_decisions(replay: ReplayBuffer, slots: NDArray[np.int64], k: int, planner: Planner) -> None:
    """Store decision k of the slots [B], one a root, and what the searches found."""
    for b in range(slots.shape[0]):
        replay.action[slots[b], k] = planner.action[b]
        store_search(replay, slots[b], k, planner, b)


@kernel
def value_last_observations(
    replay: ReplayBuffer, steps: EnvironmentSteps, slots: NDArray[np.int64], root: BoundGraph, codes: int
) -> int:
    """Write the value of the observation behind each of the slots that were cut; 0 or the status of a failed call."""
    rows = root.x.shape[0]
    for first in range(0, slots.shape[0], rows):
        part = slots[first : first + rows]
        for b in range(part.shape[0]):
            for f in range(steps.observation.shape[2]):
                root.x[b, f] = steps.observation[part[b], steps.length[part[b]], f]
        status = evaluate(root, part.shape[0])
        if status != 0:
            return status
        for b in range(part.shape[0]):
            slot, k = part[b], steps.length[part[b]]
            value = 0.0 if steps.is_terminal[slot] else np.float64(root.y[b, root.y.shape[1] - 1 - codes])
            replay.value[slot, k, 0] = value
            replay.search_value[slot, k, 0] = value
    return 0


@inlined
def set_known_value(planner: Planner, b: int, replay: ReplayBuffer, steps: EnvironmentSteps, slot: int, k: int) -> None:
    """Set what root b reuses (ReZero): the last search of this planner was of decision k + 1."""
    reused = planner.reused_value
    if planner.config.value_reuse == REUSE_OFF or k + 1 >= steps.length[slot]:
        reused.action[b] = NONE
        return
    reused.action[b], reused.code[b] = replay.action[slot, k], steps.code[slot, k]
    reused.reward[b], reused.value[b] = replay.reward[slot, k], planner.value[b]


@kernel
def set_stored_roots(
    planner: Planner, replay: ReplayBuffer, steps: EnvironmentSteps, slots: NDArray[np.int64], k: int, seed: int
) -> None:
    """Make decision k of the slots [B] the roots, or the last one of a shorter slot.

    The noise of a root is keyed by (seed, number of the piece, step).
    """
    for b in range(slots.shape[0]):
        slot = slots[b]
        now = min(k, steps.length[slot] - 1)
        set_environment_root(planner, b, steps.observation[slot, now], steps.legal[slot, now])
        draw_noise(planner, b, seed, replay.start_bar[slot], k)
        set_known_value(planner, b, replay, steps, slot, k)


@kernel
def store_searches(
    replay: ReplayBuffer, steps: EnvironmentSteps, slots: NDArray[np.int64], k: int, planner: Planner
) -> None:
    """Store what the searches found for decision k of those slots [B] that have one."""
    for b in range(slots.shape[0]):
        if k < steps.length[slots[b]]:
            store_search(replay, slots[b], k, planner, b)


@inlined
def fill_row(
    batch: Batch,
    b: int,
    k: int,
    replay: ReplayBuffer,
    steps: EnvironmentSteps,
    slot: int,
    step: int,
    target_config: ValueTargetConfig,
) -> None:
    """Write decision `step` of a slot into row (b, k): beyond a terminal state no value and any policy."""
    is_decision, A = step < steps.length[slot], batch.legal.shape[2]
    batch.weight[b, k] = 1.0 if is_decision or steps.is_terminal[slot] else 0.0
    batch.value[b, k] = value_target(replay, slot, step, 0, target_config) if is_decision else 0.0
    for a in range(A):
        batch.legal[b, k, a] = steps.legal[slot, step, a] if is_decision else True
        batch.policy[b, k, a] = replay.policy[slot, step, 0, a] if is_decision else 1.0 / A


@kernel
def fill_environment_window(
    batch: Batch,
    b: int,
    replay: ReplayBuffer,
    steps: EnvironmentSteps,
    slot: int,
    first: int,
    target_config: ValueTargetConfig,
    is_stochastic: bool,
    seed: int,
    step: int,
) -> None:
    """Write decisions first .. first + K of a slot into window b; beyond a terminal state actions are random."""
    K, B, last = batch.code.shape[1], batch.code.shape[0], steps.length[slot]
    A, F = batch.legal.shape[2], batch.features.shape[1]
    for f in range(F):
        batch.features[b, f] = steps.observation[slot, first, f]
    for k in range(K + 1):
        fill_row(batch, b, k, replay, steps, slot, first + k, target_config)
    for k in range(K):
        now = first + k
        if now < last:
            batch.action[b, k], batch.reward[b, k] = replay.action[slot, now], replay.reward[slot, now]
            batch.code[b, k] = steps.code[slot, now]
        else:
            batch.action[b, k], batch.reward[b, k] = randint(A, seed, step, (k + 1) * B + b), 0.0
            batch.code[b, k] = 0 if is_stochastic else batch.action[b, k]
    for k in range(batch.next_features.shape[1]):
        for f in range(F):
            batch.next_features[b, k, f] = steps.observation[slot, min(first + k + 1, last), f]


@kernel
def sample_environment(
    batch: Batch,
    probability: NDArray[np.float64],
    cdf: NDArray[np.float64],
    decision: NDArray[np.int64],
    replay: ReplayBuffer,
    steps: EnvironmentSteps,
    target_config: ValueTargetConfig,
    is_stochastic: bool,
    beta: float,
    seed: int,
    step: int,
) -> None:
    """Draw windows with the probabilities of cdf [n], of the decisions [n] = slot L + step, as `sample_prioritized`."""
    L = replay.reward.shape[1]
    for b in range(probability.shape[0]):
        i = sample_index(cdf, uniform(seed, step, b))
        probability[b] = cdf[i] - (cdf[i - 1] if i > 0 else 0.0)
        slot, first = decision[i] // L, decision[i] % L
        fill_environment_window(batch, b, replay, steps, slot, first, target_config, is_stochastic, seed, step)
    apply_importance_weights(batch.weight, probability, beta)
