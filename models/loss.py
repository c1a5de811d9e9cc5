"""The loss over K steps of the unrolled model, its backward, and the learning step on threads.

The market latent unrolls step by step, or a transformer finds all steps at once; then each head runs over all steps,
forward and backward while its activations are in the cache; then the latents unroll back.  Rows are step-major: row
k n + i is step k of window i.  A batch is cut into CHUNKS pieces whatever the threads, and their gradients add up in
order.  With joint training (UniZero, Pu et al. 2024) the J = K bars that came are judged as well, in rows before those
of the unrolled ones: z_1 .. z_J, then m_0 .. m_K.
"""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.jit import kernel
from kernels.learning.replay_buffer import Batch
from models.extensions.beta_head import SizeCandidates, beta_loss
from models.extensions.chance_encoder import ChanceEncoderWork, chance_encoder_backward, quantise
from models.extensions.consistency import ConsistencyWork, consistency_loss
from models.extensions.transformer import TransformerActivations, transformer_backward, transformer_forward
from models.extensions.unizero import LATENT_LOSS_WEIGHT, latent_loss
from models.extensions.value_prefix import (
    ValuePrefixWork,
    new_value_prefix_work,
    sum_since_reset,
    value_prefix_backward,
    value_prefix_forward,
)
from models.layers import (
    HL_GAUSS_BINS,
    CategoricalTarget,
    cross_entropy,
    hl_gauss,
    layernorm_backward,
    layernorm_forward,
    linear_backward,
    linear_backward_input,
    linear_relu_backward,
    linear_relu_forward,
    mask_logits,
    relu_backward,
    residual_backward,
    residual_forward,
)
from models.params import Array, ModelShape, Params
from models.representation import RepresentationWork, new_representation_work, represent, represent_backward

NUM_CHUNKS = 4
LATENT_GRADIENT_SCALE = 0.5  # of what flows from step k + 1 into the latent of step k (MuZero, appendix G)
PARAM_INDEX = {name.removesuffix("_w"): at for at, name in enumerate(Params._fields) if name.endswith("_w")}
LOSSES = ("policy", "value", "afterstate_value", "chance", "reward")


class LossWeights(NamedTuple):
    """Weights of the losses, in the order of LOSSES, and of those that may be off."""

    policy: float = 1.0
    value: float = 0.5
    afterstate_value: float = 0.5
    chance: float = 1.0
    reward: float = 1.0
    consistency: float = 0.0  # 0 = without: then it is not among the losses
    unizero: float = 0.0  # of the bars that came: policy and value, and the latents unrolled to them; 0 = without
    commitment: float = 0.0  # among the losses where codes are learned, as are the next two
    code_entropy: float = 0.0
    code_move: float = 0.0
    beta_head: float = 1.0  # of the Beta head, if there is one


DEFAULT_LOSS_WEIGHTS = LossWeights()


class Activations(NamedTuple):
    """Activations, targets and gradients of n windows of K steps; N = (J + K + 1) n decisions, M = K n steps."""

    representation: RepresentationWork  # (J + 1) n bars; their latents are the first of `latent`
    pre_norm: Array  # [K, n, D] latents before their norm; becomes their gradient
    latent: Array  # [J + K + 1, n, D] z_1 .. z_J, m_0 .. m_K
    rstd: Array  # [K, n]
    dynamics_hidden: Array  # [K, n, H] hidden layer of the dynamics
    prediction_input: Array  # [N, D + P]
    afterstate_input: Array  # [M, D + A + P]
    reward_input: Array  # [M, D + C + 2P]
    hidden: Array  # [N, H] of one head after the other; so are the next three
    d_hidden: Array  # [N, H]
    d_hidden_part: Array  # [N, H]
    logits: Array  # [N V] of one output after the other; becomes their gradient
    d_dynamics_hidden: Array  # [K, n, H]
    d_latent: Array  # [J + K + 1, n, D]
    d_latent_part: Array  # [K, n, D]
    policy: CategoricalTarget  # N rows of A
    value: CategoricalTarget  # N rows of at most BINS; as is the reward
    code: CategoricalTarget  # M rows of 1
    reward: CategoricalTarget
    decision_weight: Array  # [N]
    step_weight: Array  # [M]
    row_loss: Array  # [N] scratch
    legal: NDArray[np.bool_]  # [N, A]
    candidates: SizeCandidates  # of N decisions
    value_prefix: ValuePrefixWork


def new_activations(
    shape: ModelShape, n: int, K: int, dtype: Any = np.float32, unizero: bool = False, num_candidates: int = 0
) -> Activations:
    """Room for n windows of K steps."""
    J = K if unizero else 0
    s, N, M = shape, (J + K + 1) * n, K * n
    D, H, P, A, C, V, Vr = s.latent, s.hidden, s.position, s.actions, s.codes, s.value_bins, s.reward_bins

    moving = 0 if s.num_layers else H

    def target(rows: int, bins: int) -> CategoricalTarget:
        return CategoricalTarget(np.zeros(rows, np.int32), np.ones((rows, bins), dtype))

    layout: dict[str, tuple[int, ...]] = {
        "pre_norm": (K, n, D), "latent": (J + K + 1, n, D), "rstd": (K, n), "dynamics_hidden": (K, n, moving),
        "prediction_input": (N, D + P), "afterstate_input": (M, D + A + P), "reward_input": (M, D + C + 2 * P), "hidden": (N, H),
        "d_hidden": (N, H), "d_hidden_part": (N, H), "logits": (N * max(A, C, V, Vr),), "d_dynamics_hidden": (K, n, moving),
        "d_latent": (J + K + 1, n, D), "d_latent_part": (K, n, D), "decision_weight": (N,), "step_weight": (M,),
        "row_loss": (N,),
    }  # fmt: skip
    arrays = {name: np.zeros(size, dtype) for name, size in layout.items()}
    return Activations(
        **arrays,
        representation=new_representation_work(
            s, 0 if s.num_layers else (J + 1) * n, dtype, arrays["latent"][: J + 1].reshape(-1, D)
        ),
        policy=target(N, A),
        value=target(N, min(V, HL_GAUSS_BINS)),
        code=target(M, 1),
        reward=target(M, min(Vr, HL_GAUSS_BINS)),
        legal=np.ones((N, A), np.bool_),
        candidates=SizeCandidates(*np.zeros((2, N, num_candidates), dtype)),
        value_prefix=new_value_prefix_work(shape.value_prefix_width, n, K, dtype),
    )


@kernel
def fill_inputs(work: Activations, batch: Batch, first: int) -> None:
    """Write what the heads are told beside the latent: positions, actions and codes of windows first .. first + n."""
    # an array that is read through its tuple in a loop is counted, atomically, at every turn
    position, after, action, code = batch.position, batch.afterstate_position, batch.action, batch.code
    predict_in, after_in, gain_in = work.prediction_input, work.afterstate_input, work.reward_input
    K, n, D = work.dynamics_hidden.shape[0], work.dynamics_hidden.shape[1], work.latent.shape[2]
    J = work.latent.shape[0] - K - 1
    P, A = position.shape[2], batch.policy.shape[2]
    C = gain_in.shape[1] - D - 2 * P
    for d in range(J + K + 1):
        for i in range(n):
            for p in range(P):
                predict_in[d * n + i, D + p] = position[first + i, d + 1 if d < J else d - J, p]
    for k in range(K):
        for i in range(n):
            b, row = first + i, k * n + i
            for a in range(A):
                after_in[row, D + a] = 0
            for c in range(C):
                gain_in[row, D + c] = 0
            after_in[row, D + action[b, k]] = 1
            gain_in[row, D + code[b, k]] = 1
            for p in range(P):
                after_in[row, D + A + p] = after[b, k, p]
                gain_in[row, D + C + p] = after[b, k, p]
                gain_in[row, D + C + P + p] = position[b, k + 1, p]


@kernel
def fill_targets(work: Activations, batch: Batch, first: int, shape: ModelShape, unizero_weight: float) -> None:
    """Write the targets of windows first .. first + n and their weights: each loss is a mean over B windows and steps.

    weight[b, k] masks decision k, and weight[b, k + 1] the step from k to k + 1: its reward is known only then.
    What is asked of a decision unrolled to is asked of the bar that came as well, with the weight `unizero_weight`.
    """
    K, n, B = work.dynamics_hidden.shape[0], work.dynamics_hidden.shape[1], batch.features.shape[0]
    J = work.latent.shape[0] - K - 1
    weight, legal, policy = batch.weight, batch.legal, batch.policy
    value, reward, code = batch.value, batch.reward, batch.code
    policy_mass, value_mass, reward_mass = (work.policy.probability, work.value.probability, work.reward.probability)
    value_first, reward_first, code_first, is_legal = (
        work.value.first_bin,
        work.reward.first_bin,
        work.code.first_bin,
        work.legal,
    )
    decision_weight, step_weight = work.decision_weight, work.step_weight
    batch_size, batch_share, work_size, work_share = (
        batch.candidate_size,
        batch.candidate_policy,
        work.candidates.size,
        work.candidates.candidate_policy,
    )
    for d in range(J + K + 1):
        came = d < J
        k = d + 1 if came else d - J
        for i in range(n):
            b, row = first + i, d * n + i
            decision_weight[row] = unizero_weight * weight[b, k] / (B * K) if came else weight[b, k] / (B * (K + 1))
            value_first[row] = hl_gauss(value_mass[row], value[b, k], shape.value_limit, shape.value_bins)
            for a in range(policy.shape[2]):
                is_legal[row, a] = legal[b, k, a]
                policy_mass[row, a] = policy[b, k, a] if legal[b, k, a] else 0.0
            for e in range(work_size.shape[1]):
                work_size[row, e], work_share[row, e] = batch_size[b, k, e], batch_share[b, k, e]
    for k in range(K):
        for i in range(n):
            b, row = first + i, k * n + i
            step_weight[row] = weight[b, k + 1] / (B * K)
            told = sum_since_reset(reward[b], k) if shape.value_prefix_width > 0 else float(reward[b, k])
            reward_first[row] = hl_gauss(reward_mass[row], told, shape.reward_limit, shape.reward_bins)
            code_first[row] = code[b, k]


class Layer(NamedTuple):
    """A layer's weights, biases and their gradients."""

    w: Array
    b: Array
    dw: Array
    db: Array


def num_seen_bars(work: Activations) -> int:
    """J: how many bars of each window joint training judges beside those unrolled to."""
    return len(work.latent) - len(work.dynamics_hidden) - 1


class LossTerm(NamedTuple):
    """What a head puts out, and what it should have."""

    layer: Layer
    target: CategoricalTarget | SizeCandidates
    row_weight: Array  # [rows]
    loss_weight: float  # of the loss


def layer_of(p: Params, d: Params, name: str) -> Layer:
    """The layer `name` of the parameters and of their gradients."""
    at = PARAM_INDEX[name]
    return Layer(p[at], p[at + 1], d[at], d[at + 1])


def loss_and_gradient(
    d: Params,
    work: Activations,
    p: Params,
    x: Array,
    weights: LossWeights,
    latent_gradient_scale: float = LATENT_GRADIENT_SCALE,
    consistency_inputs: tuple[ConsistencyWork, Params] | None = None,
    transformer: TransformerActivations | None = None,
    target_latents: Array | None = None,
    encoder_inputs: tuple[ChanceEncoderWork, Array, Array] | None = None,
) -> list[float]:
    """LOSSES, of sizes, consistency, joint training, codes; d becomes the gradient of their weighted sum.

    x [Z n, F]; the rest is what `fill_inputs` and `fill_targets` have written.  The consistency loss has `consistency_inputs`: its
    workspace, x filled in, and the soft target network; joint training the latents `target_latents` [K, n, D] of that network;
    learned codes have `encoder_inputs`: a workspace, the later bars [n, K, F] and the moves [n, K].
    """
    D, J = work.latent.shape[2], num_seen_bars(work)
    if encoder_inputs is not None:
        quantise(encoder_inputs[0], work.reward_input, work.code.first_bin, p, encoder_inputs[1])
    unroll_forward(work, p, x, transformer)
    found = _head_losses(d, work, p, weights)
    later, part = (array.reshape(-1, D) for array in (work.latent[J + 1 :], work.d_latent_part))
    if consistency_inputs is not None:
        foresight, target = consistency_inputs
        factor = weights.consistency
        found.append(consistency_loss(d, part, foresight, p, target, later, work.step_weight, factor))
        work.d_latent[J + 1 :] += work.d_latent_part
    if target_latents is not None:
        factor = weights.unizero * LATENT_LOSS_WEIGHT
        found.append(latent_loss(part, later, target_latents.reshape(-1, D), work.step_weight, factor))
        work.d_latent[J + 1 :] += work.d_latent_part
    dynamics = _latents_backward(d, work, p, x, latent_gradient_scale, transformer)
    if encoder_inputs is not None:
        reward = (
            work.d_hidden[: len(work.step_weight)],
            p.reward_hidden_w[D:],
        )  # the reward head was the last to use d_hidden
        told = work.reward_input, work.code.first_bin, work.step_weight
        factors = weights.commitment, weights.code_entropy, weights.code_move
        found += chance_encoder_backward(
            d, encoder_inputs[0], p, *encoder_inputs[1:], (reward, dynamics), *told, factors
        )
    return found


def _latents_backward(
    d: Params,
    work: Activations,
    p: Params,
    x: Array,
    latent_gradient_scale: float,
    transformer: TransformerActivations | None,
) -> tuple[Array, Array]:
    """From the latents to the bars; the gradient [M, O] behind the layer that reads the codes, and its weights."""
    D = work.latent.shape[2]
    if transformer is not None:
        transformer_backward(d, transformer, p, x, _one_hot_codes(work, p), work.latent, work.d_latent)
        return transformer.dx[len(transformer.representation.z) :], p.code_embedding_w
    _unroll_backward(d, work, p, latent_gradient_scale)
    dz = work.d_latent[: num_seen_bars(work) + 1].reshape(-1, D)
    represent_backward(d, dz, work.representation, p, x)
    return work.d_dynamics_hidden.reshape(len(work.step_weight), -1), p.dynamics_hidden_w[D:]


def _one_hot_codes(work: Activations, p: Params) -> Array:
    """The one-hot codes [K n, C] among what the reward head is told."""
    D = work.latent.shape[2]
    return work.reward_input[:, D : D + len(p.code_embedding_w)]


def unroll_forward(work: Activations, p: Params, x: Array, transformer: TransformerActivations | None = None) -> None:
    """The latents, and what the heads are told of them.

    Of a transformer, or m[0] = z_0 and m[k + 1] = norm(m[k] + relu([m[k] | code] @ move_w) @ next_w).
    """
    K, n, D = len(work.dynamics_hidden), work.latent.shape[1], work.latent.shape[2]
    J, moving = num_seen_bars(work), len(p.dynamics_hidden_w)
    m, gain_in = work.latent[J:], work.reward_input.reshape(K, n, -1)
    if transformer is not None:
        transformer_forward(work.latent, transformer, p, x, _one_hot_codes(work, p))
        gain_in[:, :, :D] = m[:K]
    else:
        represent(work.representation, p, x)
        for k in range(K):
            gain_in[k, :, :D] = m[k]
            linear_relu_forward(
                work.dynamics_hidden[k], gain_in[k, :, :moving], p.dynamics_hidden_w, p.dynamics_hidden_b
            )
            np.matmul(work.dynamics_hidden[k], p.dynamics_out_w, out=work.pre_norm[k])
            residual_forward(work.pre_norm[k], m[k], p.dynamics_out_b)
            layernorm_forward(m[k + 1], work.rstd[k], work.pre_norm[k])
    work.prediction_input[:, :D] = work.latent.reshape(-1, D)
    work.afterstate_input[:, :D] = m[:K].reshape(-1, D)


def _head_losses(d: Params, work: Activations, p: Params, weights: LossWeights) -> list[float]:
    """The losses of all heads, their gradients, and d_latent."""
    K, D, M = len(work.dynamics_hidden), work.latent.shape[2], len(work.step_weight)
    layer, J = partial(layer_of, p, d), num_seen_bars(work)
    rows, decisions = slice(J * work.latent.shape[1], None), slice(J, J + K)
    value_before = CategoricalTarget(*(part[rows][:M] for part in work.value))
    policy = LossTerm(layer("policy"), work.policy, work.decision_weight, weights.policy)
    value = LossTerm(layer("value"), work.value, work.decision_weight, weights.value)
    after = LossTerm(layer("afterstate_value"), value_before, work.step_weight, weights.afterstate_value)
    code = LossTerm(layer("chance_logits"), work.code, work.step_weight, weights.chance)
    reward = LossTerm(layer("reward"), work.reward, work.step_weight, weights.reward)
    size = LossTerm(layer("beta_head"), work.candidates, work.decision_weight, weights.beta_head)
    outputs = [policy, value, size] if p.beta_head_b.size else [policy, value]
    found = _head_loss(work.d_latent, work, work.prediction_input, layer("prediction_hidden"), outputs)
    sizes, found = found[2:], found[:2]
    for name, inputs, output in (
        ("afterstate_hidden", work.afterstate_input, after),
        ("chance_hidden", work.latent[decisions].reshape(-1, D), code),
        ("reward_hidden", work.reward_input, reward),
    ):
        lstm = layer("lstm") if name == "reward_hidden" and p.lstm_b.size else None
        found += _head_loss(work.d_latent_part, work, inputs, layer(name), [output], lstm)
        work.d_latent[decisions] += work.d_latent_part
    return found + sizes


def _head_loss(
    d_latent: Array,
    work: Activations,
    x: Array,
    hidden_layer: Layer,
    outputs: list[LossTerm],
    lstm: Layer | None = None,
) -> list[float]:
    """One hidden layer over inputs x [rows, D + ...] whose first columns are the latent: the loss of each output.

    An `lstm` stands between the hidden layer and its outputs.
    """
    D, rows = d_latent.shape[2], len(x)
    hidden, d_hidden = work.hidden[:rows], work.d_hidden[:rows]
    linear_relu_forward(hidden, x, hidden_layer.w, hidden_layer.b)
    if lstm is None:
        found = _output_losses(d_hidden, work, hidden, outputs)
    else:
        value_prefix_forward(work.value_prefix, hidden, lstm.w, lstm.b)
        found = _output_losses(work.value_prefix.d_hidden.reshape(rows, -1), work, work.value_prefix.normed, outputs)
        value_prefix_backward(lstm.dw, lstm.db, d_hidden, work.value_prefix, hidden, lstm.w)
    linear_relu_backward(hidden_layer.dw, hidden_layer.db, d_hidden, hidden, x)
    # only the latent hands its gradient on
    linear_backward_input(d_latent.reshape(-1, D), d_hidden, hidden_layer.w[:D])
    return found
    return found


def _output_losses(d_hidden: Array, work: Activations, hidden: Array, outputs: list[LossTerm]) -> list[float]:
    """The loss of each output of a hidden layer [rows, H], and the gradient of their sum."""
    rows, found, d_more = len(hidden), list[float](), work.d_hidden_part[: len(hidden)]
    for i, (layer, target, row_weight, weight) in enumerate(outputs):
        z = work.logits[: rows * len(layer.b)].reshape(rows, -1)
        np.matmul(hidden, layer.w, out=z)
        if isinstance(target, SizeCandidates):
            found.append(float(beta_loss(z, layer.db, layer.b, target, row_weight, weight)))
        else:
            if target is work.policy:
                mask_logits(z, work.legal)
            found.append(cross_entropy(z, layer.db, work.row_loss, layer.b, target, row_weight, weight))
        np.matmul(hidden.T, z, out=layer.dw)
        linear_backward_input(d_more if i else d_hidden, z, layer.w)
        if i:
            np.add(d_hidden, d_more, out=d_hidden)
    return found


def _unroll_backward(d: Params, work: Activations, p: Params, latent_gradient_scale: float) -> None:
    """From the last latent to the first; `pre_norm` becomes the gradient of what it held."""
    K, D, H, moving = (
        len(work.dynamics_hidden),
        work.latent.shape[2],
        work.dynamics_hidden.shape[2],
        len(p.dynamics_hidden_w),
    )
    m, dm = work.latent[-K - 1 :], work.d_latent[-K - 1 :]
    for k in range(K - 1, -1, -1):
        dz, part = work.pre_norm[k], work.d_latent_part[k]
        layernorm_backward(dz, dm[k + 1], m[k + 1], work.rstd[k])
        linear_backward_input(work.d_dynamics_hidden[k], dz, p.dynamics_out_w)
        relu_backward(work.d_dynamics_hidden[k], work.dynamics_hidden[k])
        linear_backward_input(part, work.d_dynamics_hidden[k], p.dynamics_hidden_w[:D])
        residual_backward(dm[k], dz, part, latent_gradient_scale)
    linear_backward(
        d.dynamics_out_w, d.dynamics_out_b, work.pre_norm.reshape(-1, D), work.dynamics_hidden.reshape(-1, H)
    )
    linear_backward(
        d.dynamics_hidden_w, d.dynamics_hidden_b, work.d_dynamics_hidden.reshape(-1, H), work.reward_input[:, :moving]
    )
