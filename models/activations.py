"""The workspace of the core networks: activations, targets and gradients of the windows of one thread.

Rows are step-major: row k n + i is step k of window i.  With UniZero the K later bars of a window are represented too;
the rows of these seen bars z_1 .. z_K stand before those of the unrolled latents m_0 .. m_K.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.jit import kernel
from kernels.learning.replay_buffer import Batch
from models.layers import HL_GAUSS_BINS, CategoricalTarget, hl_gauss
from models.representation import RepresentationWork, new_representation_work
from models.shape import Array, ModelShape


class Activations(NamedTuple):
    """Arrays of n windows of K steps; a decision is a seen bar or an unrolled latent, a step leads to the next one."""

    representation: RepresentationWork  # (num_seen + 1) n bars; their latents are the first of `latent`
    pre_norm: Array  # [K, n, D] latents before their norm; becomes their gradient
    latent: Array  # [num_seen + K + 1, n, D] z_1 .. z_num_seen, m_0 .. m_K
    rstd: Array  # [K, n]
    dynamics_hidden: Array  # [K, n, H]
    prediction_input: Array  # [decisions, D + P]
    afterstate_input: Array  # [K n, D + A + P]
    reward_input: Array  # [K n, D + C + 2P]
    hidden: Array  # [decisions, H] of one head after the other, as are the next three
    d_hidden: Array  # [decisions, H]
    d_hidden_part: Array  # [decisions, H]
    logits: Array  # [decisions V] of one output layer after the other; becomes their gradient
    d_dynamics_hidden: Array  # [K, n, H]
    d_latent: Array  # [num_seen + K + 1, n, D]
    d_latent_part: Array  # [K, n, D]
    policy: CategoricalTarget  # of decisions, A bins
    value: CategoricalTarget  # of decisions, at most HL_GAUSS_BINS bins
    code: CategoricalTarget  # of steps, 1 bin
    reward: CategoricalTarget  # of steps, at most HL_GAUSS_BINS bins
    decision_weight: Array  # [decisions]
    step_weight: Array  # [K n]
    row_loss: Array  # [decisions] scratch
    legal: NDArray[np.bool_]  # [decisions, A]


def new_activations(
    shape: ModelShape, n: int, K: int, dtype: Any = np.float32, num_seen: int = 0, with_dynamics: bool = True
) -> Activations:
    """Allocate for n windows of K steps and `num_seen` seen bars, with or without the dynamics of the core."""
    s, decisions, steps = shape, (num_seen + K + 1) * n, K * n
    D, H, P, A, C = s.latent, s.hidden, s.position, s.actions, s.codes
    dynamics = H if with_dynamics else 0

    def target(rows: int, bins: int) -> CategoricalTarget:
        return CategoricalTarget(np.zeros(rows, np.int32), np.ones((rows, bins), dtype))

    sizes: dict[str, tuple[int, ...]] = {
        "pre_norm": (K, n, D),
        "latent": (num_seen + K + 1, n, D),
        "rstd": (K, n),
        "dynamics_hidden": (K, n, dynamics),
        "prediction_input": (decisions, D + P),
        "afterstate_input": (steps, D + A + P),
        "reward_input": (steps, D + C + 2 * P),
        "hidden": (decisions, H),
        "d_hidden": (decisions, H),
        "d_hidden_part": (decisions, H),
        "logits": (decisions * max(A, C, s.value_bins, s.reward_bins),),
        "d_dynamics_hidden": (K, n, dynamics),
        "d_latent": (num_seen + K + 1, n, D),
        "d_latent_part": (K, n, D),
        "decision_weight": (decisions,),
        "step_weight": (steps,),
        "row_loss": (decisions,),
    }
    arrays = {name: np.zeros(size, dtype) for name, size in sizes.items()}
    bars, z = (num_seen + 1) * n if with_dynamics else 0, arrays["latent"][: num_seen + 1].reshape(-1, D)
    return Activations(
        **arrays,
        representation=new_representation_work(s, bars, dtype, z),
        policy=target(decisions, A),
        value=target(decisions, min(s.value_bins, HL_GAUSS_BINS)),
        code=target(steps, 1),
        reward=target(steps, min(s.reward_bins, HL_GAUSS_BINS)),
        legal=np.ones((decisions, A), np.bool_),
    )


def num_seen_bars(work: Activations) -> int:
    """Seen bars of each window: K or 0."""
    return len(work.latent) - len(work.dynamics_hidden) - 1


def one_hot_codes(work: Activations, num_codes: int) -> Array:
    """The one-hot codes [K n, C] among the inputs of the reward head."""
    D = work.latent.shape[2]
    return work.reward_input[:, D : D + num_codes]


@kernel
def fill_inputs(work: Activations, batch: Batch, first: int) -> None:
    """Write what the heads read beside the latent: positions, actions and codes of windows first .. first + n."""
    # an array that is read through its tuple in a loop is counted, atomically, at every turn
    position, after, action, code = batch.position, batch.afterstate_position, batch.action, batch.code
    prediction_input, afterstate_input, reward_input = work.prediction_input, work.afterstate_input, work.reward_input
    K, n, D = work.dynamics_hidden.shape[0], work.dynamics_hidden.shape[1], work.latent.shape[2]
    num_seen = work.latent.shape[0] - K - 1
    P, A = position.shape[2], batch.policy.shape[2]
    C = reward_input.shape[1] - D - 2 * P
    for d in range(num_seen + K + 1):
        for i in range(n):
            for p in range(P):
                prediction_input[d * n + i, D + p] = position[first + i, d + 1 if d < num_seen else d - num_seen, p]
    for k in range(K):
        for i in range(n):
            b, row = first + i, k * n + i
            for a in range(A):
                afterstate_input[row, D + a] = 0
            for c in range(C):
                reward_input[row, D + c] = 0
            afterstate_input[row, D + action[b, k]] = 1
            reward_input[row, D + code[b, k]] = 1
            for p in range(P):
                afterstate_input[row, D + A + p] = after[b, k, p]
                reward_input[row, D + C + p] = after[b, k, p]
                reward_input[row, D + C + P + p] = position[b, k + 1, p]


@kernel
def fill_targets(work: Activations, batch: Batch, first: int, shape: ModelShape, seen_bar_weight: float) -> None:
    """Write the targets of windows first .. first + n and their weights: each loss is a mean over B windows and steps.

    weight[b, k] masks decision k.  weight[b, k + 1] masks the step from k to k + 1, whose reward is known only then.
    A seen bar has the targets of the decision unrolled to it, with the weight `seen_bar_weight`.
    """
    K, n, B = work.dynamics_hidden.shape[0], work.dynamics_hidden.shape[1], batch.features.shape[0]
    num_seen = work.latent.shape[0] - K - 1
    weight, legal, policy, value, reward, code = (
        batch.weight, batch.legal, batch.policy, batch.value, batch.reward, batch.code,
    )  # fmt: skip
    policy_target, is_legal = work.policy.probability, work.legal
    value_first, value_target = work.value.first_bin, work.value.probability
    reward_first, reward_target = work.reward.first_bin, work.reward.probability
    code_first, decision_weight, step_weight = work.code.first_bin, work.decision_weight, work.step_weight
    for d in range(num_seen + K + 1):
        is_seen = d < num_seen
        k = d + 1 if is_seen else d - num_seen
        for i in range(n):
            b, row = first + i, d * n + i
            decision_weight[row] = seen_bar_weight * weight[b, k] / (B * K) if is_seen else weight[b, k] / (B * (K + 1))
            value_first[row] = hl_gauss(value_target[row], value[b, k], shape.value_limit, shape.value_bins)
            for a in range(policy.shape[2]):
                is_legal[row, a] = legal[b, k, a]
                policy_target[row, a] = policy[b, k, a] if legal[b, k, a] else 0.0
    for k in range(K):
        for i in range(n):
            b, row = first + i, k * n + i
            step_weight[row] = weight[b, k + 1] / (B * K)
            reward_first[row] = hl_gauss(reward_target[row], float(reward[b, k]), shape.reward_limit, shape.reward_bins)
            code_first[row] = code[b, k]
