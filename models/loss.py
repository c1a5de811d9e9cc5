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
from models.extensions.beta_head import Candidates, beta_loss
from models.extensions.chance_encoder import Coder, backward_codes, choose_codes
from models.extensions.consistency import Foresight, consistency
from models.extensions.transformer import Stream, backward_tokens, forward_tokens
from models.extensions.unizero import LATENT_WEIGHT, latent_loss
from models.extensions.value_prefix import (
    Prefix,
    new_prefix,
    prefix_backward,
    prefix_forward,
    sum_since_reset,
)
from models.layers import (
    BINS,
    Target,
    cross_entropy,
    forbid,
    hidden_backward,
    hidden_forward,
    hl_gauss,
    linear_backward,
    linear_backward_input,
    norm_backward,
    norm_forward,
    relu_backward,
    residual,
    residual_backward,
)
from models.params import Array, Params, Shape
from models.representation import Encoded, encode, encode_backward, new_encoded

CHUNKS = 4
LATENT_GRADIENT = 0.5  # of what flows from step k + 1 into the latent of step k (MuZero, appendix G)
FIELDS = {name.removesuffix("_w"): at for at, name in enumerate(Params._fields) if name.endswith("_w")}
LOSSES = ("policy", "value", "after_value", "chance", "reward")


class LossWeights(NamedTuple):
    """Weights of the losses, in the order of LOSSES, and of those that may be off."""

    policy: float = 1.0
    value: float = 0.5
    after_value: float = 0.5
    chance: float = 1.0
    reward: float = 1.0
    consistency: float = 0.0  # 0 = without: then it is not among the losses
    joint: float = (
        0.0  # of the bars that came: policy and value, and the latents unrolled to them; 0 = without
    )
    commitment: float = 0.0  # among the losses where codes are learned, as are the next two
    usage: float = 0.0
    telling: float = 0.0
    size: float = 1.0  # of the Beta head, if there is one


WEIGHTS = LossWeights()


class Work(NamedTuple):
    """Activations, targets and gradients of n windows of K steps; N = (J + K + 1) n decisions, M = K n steps."""

    encoded: Encoded  # (J + 1) n bars; their latents are the first of `latent`
    before: Array  # [K, n, D] latents before their norm; becomes their gradient
    latent: Array  # [J + K + 1, n, D] z_1 .. z_J, m_0 .. m_K
    rstd: Array  # [K, n]
    move: Array  # [K, n, H] hidden layer of the dynamics
    predict_in: Array  # [N, D + P]
    after_in: Array  # [M, D + A + P]
    gain_in: Array  # [M, D + C + 2P]
    hidden: Array  # [N, H] of one head after the other; so are the next three
    d_hidden: Array  # [N, H]
    d_more: Array  # [N, H]
    logits: Array  # [N V] of one output after the other; becomes their gradient
    d_move: Array  # [K, n, H]
    d_latent: Array  # [J + K + 1, n, D]
    d_part: Array  # [K, n, D]
    policy: Target  # N rows of A
    value: Target  # N rows of at most BINS; as is the reward
    code: Target  # M rows of 1
    reward: Target
    decision_weight: Array  # [N]
    step_weight: Array  # [M]
    row_loss: Array  # [N] scratch
    legal: NDArray[np.bool_]  # [N, A]
    size: Candidates  # of N decisions
    prefix: Prefix


def new_work(
    shape: Shape, n: int, K: int, dtype: Any = np.float32, joint: bool = False, candidates: int = 0
) -> Work:
    """Room for n windows of K steps."""
    J = K if joint else 0
    s, N, M = shape, (J + K + 1) * n, K * n
    D, H, P, A, C, V, Vr = s.latent, s.hidden, s.position, s.actions, s.codes, s.value_bins, s.reward_bins

    moving = 0 if s.layers else H

    def target(rows: int, bins: int) -> Target:
        return Target(np.zeros(rows, np.int32), np.ones((rows, bins), dtype))

    layout: dict[str, tuple[int, ...]] = {
        "before": (K, n, D), "latent": (J + K + 1, n, D), "rstd": (K, n), "move": (K, n, moving),
        "predict_in": (N, D + P), "after_in": (M, D + A + P), "gain_in": (M, D + C + 2 * P), "hidden": (N, H),
        "d_hidden": (N, H), "d_more": (N, H), "logits": (N * max(A, C, V, Vr),), "d_move": (K, n, moving),
        "d_latent": (J + K + 1, n, D), "d_part": (K, n, D), "decision_weight": (N,), "step_weight": (M,),
        "row_loss": (N,),
    }  # fmt: skip
    arrays = {name: np.zeros(size, dtype) for name, size in layout.items()}
    return Work(
        **arrays,
        encoded=new_encoded(
            s, 0 if s.layers else (J + 1) * n, dtype, arrays["latent"][: J + 1].reshape(-1, D)
        ),
        policy=target(N, A),
        value=target(N, min(V, BINS)),
        code=target(M, 1),
        reward=target(M, min(Vr, BINS)),
        legal=np.ones((N, A), np.bool_),
        size=Candidates(*np.zeros((2, N, candidates), dtype)),
        prefix=new_prefix(shape.prefix, n, K, dtype),
    )


@kernel
def fill_inputs(work: Work, batch: Batch, first: int) -> None:
    """Write what the heads are told beside the latent: positions, actions and codes of windows first .. first + n."""
    # an array that is read through its tuple in a loop is counted, atomically, at every turn
    position, after, action, code = batch.position, batch.after, batch.action, batch.code
    predict_in, after_in, gain_in = work.predict_in, work.after_in, work.gain_in
    K, n, D = work.move.shape[0], work.move.shape[1], work.latent.shape[2]
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
def fill_targets(work: Work, batch: Batch, first: int, shape: Shape, joint: float) -> None:
    """Write the targets of windows first .. first + n and their weights: each loss is a mean over B windows and steps.

    weight[b, k] masks decision k, and weight[b, k + 1] the step from k to k + 1: its reward is known only then.
    What is asked of a decision unrolled to is asked of the bar that came as well, with the weight `joint`.
    """
    K, n, B = work.move.shape[0], work.move.shape[1], batch.x.shape[0]
    J = work.latent.shape[0] - K - 1
    weight, legal, policy = batch.weight, batch.legal, batch.policy
    value, reward, code = batch.value, batch.reward, batch.code
    policy_mass, value_mass, reward_mass = work.policy.mass, work.value.mass, work.reward.mass
    value_first, reward_first, code_first, is_legal = (
        work.value.first,
        work.reward.first,
        work.code.first,
        work.legal,
    )
    decision_weight, step_weight = work.decision_weight, work.step_weight
    batch_size, batch_share, work_size, work_share = batch.size, batch.share, work.size.size, work.size.share
    for d in range(J + K + 1):
        came = d < J
        k = d + 1 if came else d - J
        for i in range(n):
            b, row = first + i, d * n + i
            decision_weight[row] = joint * weight[b, k] / (B * K) if came else weight[b, k] / (B * (K + 1))
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
            told = sum_since_reset(reward[b], k) if shape.prefix > 0 else float(reward[b, k])
            reward_first[row] = hl_gauss(reward_mass[row], told, shape.reward_limit, shape.reward_bins)
            code_first[row] = code[b, k]


class Layer(NamedTuple):
    """A layer's weights, biases and their gradients."""

    w: Array
    b: Array
    dw: Array
    db: Array


def bars_that_came(work: Work) -> int:
    """J: how many bars of each window joint training judges beside those unrolled to."""
    return len(work.latent) - len(work.move) - 1


class Output(NamedTuple):
    """What a head puts out, and what it should have."""

    layer: Layer
    target: Target | Candidates
    row_weight: Array  # [rows]
    weight: float  # of the loss


def layer_of(p: Params, d: Params, name: str) -> Layer:
    """The layer `name` of the parameters and of their gradients."""
    at = FIELDS[name]
    return Layer(p[at], p[at + 1], d[at], d[at + 1])


def loss_and_gradient(
    d: Params,
    work: Work,
    p: Params,
    x: Array,
    weights: LossWeights,
    latent_gradient: float = LATENT_GRADIENT,
    sight: tuple[Foresight, Params] | None = None,
    stream: Stream | None = None,
    came: Array | None = None,
    coding: tuple[Coder, Array, Array] | None = None,
) -> list[float]:
    """LOSSES, of sizes, consistency, joint training, codes; d becomes the gradient of their weighted sum.

    x [Z n, F]; the rest is what `fill_inputs` and `fill_targets` have written.  The consistency loss has `sight`: its
    workspace, x filled in, and the soft target network; joint training the latents `came` [K, n, D] of that network;
    learned codes have `coding`: a workspace, the later bars [n, K, F] and the moves [n, K].
    """
    D, J = work.latent.shape[2], bars_that_came(work)
    if coding is not None:
        choose_codes(coding[0], work.gain_in, work.code.first, p, coding[1])
    forward_latents(work, p, x, stream)
    found = _heads(d, work, p, weights)
    later, part = (array.reshape(-1, D) for array in (work.latent[J + 1 :], work.d_part))
    if sight is not None:
        foresight, target = sight
        factor = weights.consistency
        found.append(consistency(d, part, foresight, p, target, later, work.step_weight, factor))
        work.d_latent[J + 1 :] += work.d_part
    if came is not None:
        factor = weights.joint * LATENT_WEIGHT
        found.append(latent_loss(part, later, came.reshape(-1, D), work.step_weight, factor))
        work.d_latent[J + 1 :] += work.d_part
    dynamics = _backward_dynamics(d, work, p, x, latent_gradient, stream)
    if coding is not None:
        reward = (
            work.d_hidden[: len(work.step_weight)],
            p.gain_w[D:],
        )  # the reward head was the last to use d_hidden
        told = work.gain_in, work.code.first, work.step_weight
        factors = weights.commitment, weights.usage, weights.telling
        found += backward_codes(d, coding[0], p, *coding[1:], (reward, dynamics), *told, factors)
    return found


def _backward_dynamics(
    d: Params, work: Work, p: Params, x: Array, latent_gradient: float, stream: Stream | None
) -> tuple[Array, Array]:
    """From the latents to the bars; the gradient [M, O] behind the layer that reads the codes, and its weights."""
    D = work.latent.shape[2]
    if stream is not None:
        backward_tokens(d, stream, p, x, _codes(work, p), work.latent, work.d_latent)
        return stream.dx[len(stream.encoded.z) :], p.embed_w
    _backward_latents(d, work, p, latent_gradient)
    dz = work.d_latent[: bars_that_came(work) + 1].reshape(-1, D)
    encode_backward(d, dz, work.encoded, p, x)
    return work.d_move.reshape(len(work.step_weight), -1), p.move_w[D:]


def _codes(work: Work, p: Params) -> Array:
    """The one-hot codes [K n, C] among what the reward head is told."""
    D = work.latent.shape[2]
    return work.gain_in[:, D : D + len(p.embed_w)]


def forward_latents(work: Work, p: Params, x: Array, stream: Stream | None = None) -> None:
    """The latents, and what the heads are told of them.

    Of a transformer, or m[0] = z_0 and m[k + 1] = norm(m[k] + relu([m[k] | code] @ move_w) @ next_w).
    """
    K, n, D = len(work.move), work.latent.shape[1], work.latent.shape[2]
    J, moving = bars_that_came(work), len(p.move_w)
    m, gain_in = work.latent[J:], work.gain_in.reshape(K, n, -1)
    if stream is not None:
        forward_tokens(work.latent, stream, p, x, _codes(work, p))
        gain_in[:, :, :D] = m[:K]
    else:
        encode(work.encoded, p, x)
        for k in range(K):
            gain_in[k, :, :D] = m[k]
            hidden_forward(work.move[k], gain_in[k, :, :moving], p.move_w, p.move_b)
            np.matmul(work.move[k], p.next_w, out=work.before[k])
            residual(work.before[k], m[k], p.next_b)
            norm_forward(m[k + 1], work.rstd[k], work.before[k])
    work.predict_in[:, :D] = work.latent.reshape(-1, D)
    work.after_in[:, :D] = m[:K].reshape(-1, D)


def _heads(d: Params, work: Work, p: Params, weights: LossWeights) -> list[float]:
    """The losses of all heads, their gradients, and d_latent."""
    K, D, M = len(work.move), work.latent.shape[2], len(work.step_weight)
    layer, J = partial(layer_of, p, d), bars_that_came(work)
    rows, decisions = slice(J * work.latent.shape[1], None), slice(J, J + K)
    value_before = Target(*(part[rows][:M] for part in work.value))
    policy = Output(layer("policy"), work.policy, work.decision_weight, weights.policy)
    value = Output(layer("value"), work.value, work.decision_weight, weights.value)
    after = Output(layer("after_value"), value_before, work.step_weight, weights.after_value)
    code = Output(layer("code"), work.code, work.step_weight, weights.chance)
    reward = Output(layer("reward"), work.reward, work.step_weight, weights.reward)
    size = Output(layer("size"), work.size, work.decision_weight, weights.size)
    outputs = [policy, value, size] if p.size_b.size else [policy, value]
    found = _head(work.d_latent, work, work.predict_in, layer("predict"), outputs)
    sizes, found = found[2:], found[:2]
    for name, inputs, output in (
        ("after", work.after_in, after),
        ("chance", work.latent[decisions].reshape(-1, D), code),
        ("gain", work.gain_in, reward),
    ):
        lstm = layer("prefix") if name == "gain" and p.prefix_b.size else None
        found += _head(work.d_part, work, inputs, layer(name), [output], lstm)
        work.d_latent[decisions] += work.d_part
    return found + sizes


def _head(
    d_latent: Array,
    work: Work,
    x: Array,
    hidden_layer: Layer,
    outputs: list[Output],
    lstm: Layer | None = None,
) -> list[float]:
    """One hidden layer over inputs x [rows, D + ...] whose first columns are the latent: the loss of each output.

    An `lstm` stands between the hidden layer and its outputs.
    """
    D, rows = d_latent.shape[2], len(x)
    hidden, d_hidden = work.hidden[:rows], work.d_hidden[:rows]
    hidden_forward(hidden, x, hidden_layer.w, hidden_layer.b)
    if lstm is None:
        found = _outputs(d_hidden, work, hidden, outputs)
    else:
        prefix_forward(work.prefix, hidden, lstm.w, lstm.b)
        found = _outputs(work.prefix.d_hidden.reshape(rows, -1), work, work.prefix.normed, outputs)
        prefix_backward(lstm.dw, lstm.db, d_hidden, work.prefix, hidden, lstm.w)
    hidden_backward(hidden_layer.dw, hidden_layer.db, d_hidden, hidden, x)
    # only the latent hands its gradient on
    linear_backward_input(d_latent.reshape(-1, D), d_hidden, hidden_layer.w[:D])
    return found
    return found


def _outputs(d_hidden: Array, work: Work, hidden: Array, outputs: list[Output]) -> list[float]:
    """The loss of each output of a hidden layer [rows, H], and the gradient of their sum."""
    rows, found, d_more = len(hidden), list[float](), work.d_more[: len(hidden)]
    for i, (layer, target, row_weight, weight) in enumerate(outputs):
        z = work.logits[: rows * len(layer.b)].reshape(rows, -1)
        np.matmul(hidden, layer.w, out=z)
        if isinstance(target, Candidates):
            found.append(float(beta_loss(z, layer.db, layer.b, target, row_weight, weight)))
        else:
            if target is work.policy:
                forbid(z, work.legal)
            found.append(cross_entropy(z, layer.db, work.row_loss, layer.b, target, row_weight, weight))
        np.matmul(hidden.T, z, out=layer.dw)
        linear_backward_input(d_more if i else d_hidden, z, layer.w)
        if i:
            np.add(d_hidden, d_more, out=d_hidden)
    return found


def _backward_latents(d: Params, work: Work, p: Params, latent_gradient: float) -> None:
    """From the last latent to the first; `before` becomes the gradient of what it held."""
    K, D, H, moving = len(work.move), work.latent.shape[2], work.move.shape[2], len(p.move_w)
    m, dm = work.latent[-K - 1 :], work.d_latent[-K - 1 :]
    for k in range(K - 1, -1, -1):
        dz, part = work.before[k], work.d_part[k]
        norm_backward(dz, dm[k + 1], m[k + 1], work.rstd[k])
        linear_backward_input(work.d_move[k], dz, p.next_w)
        relu_backward(work.d_move[k], work.move[k])
        linear_backward_input(part, work.d_move[k], p.move_w[:D])
        residual_backward(dm[k], dz, part, latent_gradient)
    linear_backward(d.next_w, d.next_b, work.before.reshape(-1, D), work.move.reshape(-1, H))
    linear_backward(d.move_w, d.move_b, work.d_move.reshape(-1, H), work.gain_in[:, :moving])
