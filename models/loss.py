"""The loss of a chunk of windows over K steps of the unrolled model, and its hand-written backward.

The latents unroll step by step, or an extension computes all of them.  Then each head runs forward and backward over
all rows while its activations are in the cache.  Then the gradient unrolls back through the latents.  Rows are
step-major, see `models.activations`.
"""

from typing import Any, NamedTuple

import numpy as np

from kernels.learning.replay_buffer import Batch
from models.activations import Activations, fill_inputs, fill_targets, new_activations, num_seen_bars
from models.extension import (
    DEFAULT_LOSS_WEIGHTS,
    LATENT_GRADIENT_SCALE,
    CodeReader,
    Extension,
    LossTerm,
    LossWeights,
    Pass,
    WorkSize,
)
from models.layers import (
    CategoricalTarget,
    cross_entropy,
    decode,
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
from models.registry import Params, active_extensions
from models.representation import represent, represent_backward
from models.shape import Array, ModelShape

__all__ = ["DEFAULT_LOSS_WEIGHTS", "LATENT_GRADIENT_SCALE", "LossWeights"]
NUM_CHUNKS = 4  # pieces of a batch whose gradients add up in order, whatever the threads
LOSSES = ("policy", "value", "afterstate_value", "chance", "reward")  # of the core, in the order of LossWeights


class Workspace(NamedTuple):
    """The workspaces of one thread."""

    shape: ModelShape
    weights: LossWeights
    activations: Activations
    extensions: list[Extension]
    features: Array | None  # [bars, n, F] of each window's bars, if there are more than the present one


def new_workspace(
    shape: ModelShape, n: int, K: int, weights: LossWeights, dtype: Any = np.float32, num_candidates: int = 0
) -> Workspace:
    """Allocate for n windows of K steps.  Raises ValueError for a shape and weights that do not go together."""
    extensions = active_extensions(shape, weights)
    num_seen = K if any(e.seen_bar_weight(weights) > 0 for e in extensions) else 0
    bars, size = shape.context + num_seen, WorkSize(shape, n, K, num_seen, dtype, num_candidates)
    return Workspace(
        shape,
        weights,
        new_activations(shape, n, K, dtype, num_seen, not any(e.replaces_dynamics for e in extensions)),
        [extension(size) for extension in extensions],
        np.zeros((bars, n, shape.features), dtype) if bars > 1 else None,
    )


def new_pass(
    workspace: Workspace,
    p: Params,
    batch: Batch,
    first: int,
    d: Params | None = None,
    target: Params | None = None,
    latent_gradient_scale: float = LATENT_GRADIENT_SCALE,
) -> Pass:
    """A pass over the windows first .. first + n of a batch, with the inputs of the core filled in."""
    work = workspace.activations
    fill_inputs(work, batch, first)
    x = gather_features(workspace, batch, slice(first, first + work.latent.shape[1]))
    return Pass(d, p, target, work, x, batch, first, workspace.weights, latent_gradient_scale)


def chunk_losses(
    workspace: Workspace,
    d: Params,
    p: Params,
    batch: Batch,
    first: int,
    target: Params | None = None,
    latent_gradient_scale: float = LATENT_GRADIENT_SCALE,
) -> dict[str, float]:
    """The losses by name of the windows first .. first + n of a batch; d becomes the gradient of their weighted sum.

    `target`, the parameters of the soft target network, is given where an extension needs it.
    """
    step = new_pass(workspace, p, batch, first, d, target, latent_gradient_scale)
    seen_bar_weight = sum(e.seen_bar_weight(workspace.weights) for e in workspace.extensions)
    fill_targets(workspace.activations, batch, first, workspace.shape, float(seen_bar_weight))
    for extension in workspace.extensions:
        extension.fill(step)
    return loss_and_gradient(step, workspace.extensions)


def gather_features(workspace: Workspace, batch: Batch, rows: slice) -> Array:
    """Features [bars n, F] of these windows: earlier bars of the context, seen bars, present bar."""
    if workspace.features is None:
        return batch.features[rows].astype(workspace.activations.latent.dtype, copy=False)
    bars, n, F = workspace.features.shape
    num_seen = num_seen_bars(workspace.activations)
    context = batch.features[rows].reshape(n, bars - num_seen, F)
    workspace.features[: bars - num_seen - 1] = context[:, :-1].swapaxes(0, 1)
    workspace.features[bars - num_seen - 1 : bars - 1] = batch.next_features[rows, :num_seen].swapaxes(0, 1)
    workspace.features[bars - 1] = context[:, -1]
    return workspace.features.reshape(-1, F)


def loss_and_gradient(step: Pass, extensions: list[Extension]) -> dict[str, float]:
    """The losses by name, first those of the core; step.d becomes the gradient of their weighted sum."""
    work, p, D = step.work, step.p, step.work.latent.shape[2]
    for extension in extensions:
        extension.before_latents(step)
    unroll_forward(step, extensions)
    losses = _head_losses(step, extensions)
    # the reward head was the last to use d_hidden
    reward = CodeReader(work.d_hidden[: len(work.step_weight)], p.reward_hidden_w[D:])
    for extension in extensions:
        losses |= extension.after_heads(step)
    readers = reward, _latents_backward(step, extensions)
    for extension in extensions:
        losses |= extension.after_latents(step, readers)
    return losses


def unroll_forward(step: Pass, extensions: list[Extension]) -> None:
    """Write the latents, and the columns of them that the heads read.

    The dynamics are m[k + 1] = norm(m[k] + relu([m[k] | code] @ dynamics_hidden_w) @ dynamics_out_w), and m[0] = z_0.
    """
    work, p = step.work, step.p
    K, n, D = len(work.dynamics_hidden), work.latent.shape[1], work.latent.shape[2]
    m, reward_input = work.latent[num_seen_bars(work) :], work.reward_input.reshape(K, n, -1)
    dynamics = _dynamics_of(extensions)
    if dynamics is not None:
        dynamics.latents_forward(step)
        reward_input[:, :, :D] = _afterstates(step, extensions)[0]
    else:
        width = len(p.dynamics_hidden_w)
        represent(work.representation, p, step.x)
        for k in range(K):
            hidden, pre_norm = work.dynamics_hidden[k], work.pre_norm[k]
            reward_input[k, :, :D] = m[k]
            linear_relu_forward(hidden, reward_input[k, :, :width], p.dynamics_hidden_w, p.dynamics_hidden_b)
            np.matmul(hidden, p.dynamics_out_w, out=pre_norm)
            residual_forward(pre_norm, m[k], p.dynamics_out_b)
            layernorm_forward(m[k + 1], work.rstd[k], pre_norm)
    work.prediction_input[:, :D] = work.latent.reshape(-1, D)
    work.afterstate_input[:, :D] = _afterstates(step, extensions)[0].reshape(-1, D)


def _afterstates(step: Pass, extensions: list[Extension]) -> tuple[Array, Array]:
    """The latents [K, n, D] behind actions, which are those of the decisions where no action moves one; d of them."""
    own = next((found for e in extensions if (found := e.afterstates()) is not None), None)
    first, work = num_seen_bars(step.work), step.work
    decisions = slice(first, first + len(work.dynamics_hidden))
    return own or (work.latent[decisions], work.d_latent[decisions])


def _dynamics_of(extensions: list[Extension]) -> Extension | None:
    return next((e for e in extensions if e.replaces_dynamics), None)


def _reward_wrapper_of(extensions: list[Extension]) -> Extension | None:
    return next((e for e in extensions if e.wraps_reward), None)


def _head_losses(step: Pass, extensions: list[Extension]) -> dict[str, float]:
    """The losses of all heads, those of extensions last; their gradients, and d_latent."""
    work, weights = step.work, step.weights
    K, n, D, num_seen = len(work.dynamics_hidden), work.latent.shape[1], work.latent.shape[2], num_seen_bars(work)
    value_before = CategoricalTarget(*(part[num_seen * n :][: K * n] for part in work.value))
    of_decision, of_step = work.decision_weight, work.step_weight
    prediction = [
        _categorical(work, "policy", "policy", work.policy, of_decision, weights.policy),
        _categorical(work, "value", "value", work.value, of_decision, weights.value),
    ]
    losses = _head_loss(step, extensions, work.d_latent, work.prediction_input, "prediction_hidden", prediction)
    afterstate, d_afterstate = _afterstates(step, extensions)
    after = "afterstate_value", "afterstate_value", value_before, of_step, weights.afterstate_value
    chance = "chance", "chance_logits", work.code, of_step, weights.chance
    reward = "reward", "reward", work.reward, of_step, weights.reward
    for hidden_layer, x, term in (
        ("afterstate_hidden", work.afterstate_input, after),
        ("chance_hidden", afterstate.reshape(-1, D), chance),
        ("reward_hidden", work.reward_input, reward),
    ):
        if term[-1] == 0:  # no search reads the head
            losses[term[0]] = 0.0
            for gradient in (work.d_hidden[: len(x)], *_layer(step, hidden_layer)[2:], *_layer(step, term[1])[2:]):
                gradient[:] = 0
            continue
        losses |= _head_loss(step, extensions, work.d_latent_part, x, hidden_layer, [_categorical(work, *term)])
        d_afterstate += work.d_latent_part
    return {name: losses[name] for name in LOSSES} | losses


def _categorical(
    work: Activations, name: str, layer: str, target: CategoricalTarget, row_weight: Array, factor: float
) -> LossTerm:
    """Cross-entropy of an output layer, weighted by `factor`; illegal actions have no probability."""

    def loss(z: Array, db: Array, b: Array) -> float:
        if target is work.policy:
            mask_logits(z, work.legal)
        return cross_entropy(z, db, work.row_loss, b, target, row_weight, factor)

    return LossTerm(name, layer, loss)


def _head_loss(
    step: Pass, extensions: list[Extension], d_latent: Array, x: Array, hidden_layer: str, terms: list[LossTerm]
) -> dict[str, float]:
    """The losses of one hidden layer over inputs x [rows, D + ...], whose first columns are the latent; d_latent."""
    work, D, rows = step.work, d_latent.shape[2], len(x)
    hidden, d_hidden = work.hidden[:rows], work.d_hidden[:rows]
    w, b, dw, db = _layer(step, hidden_layer)
    linear_relu_forward(hidden, x, w, b)
    terms = [*terms, *(term for e in extensions for term in e.output_losses(step, hidden_layer))]
    wrapper = _reward_wrapper_of(extensions) if hidden_layer == "reward_hidden" else None
    if wrapper is None:
        losses = _output_losses(d_hidden, step, hidden, terms)
    else:
        outputs, d_outputs = wrapper.reward_forward(step, hidden)
        losses = _output_losses(d_outputs, step, outputs, terms)
        wrapper.reward_backward(step, d_hidden, hidden)
    linear_relu_backward(dw, db, d_hidden, hidden, x)
    # of the inputs, only the latent has a gradient
    linear_backward_input(d_latent.reshape(-1, D), d_hidden, w[:D])
    return losses


def _layer(step: Pass, name: str) -> tuple[Array, Array, Array, Array]:
    """Weights and biases of a layer, and their gradients."""
    w, b = f"{name}_w", f"{name}_b"
    return getattr(step.p, w), getattr(step.p, b), getattr(step.d, w), getattr(step.d, b)


def _output_losses(d_hidden: Array, step: Pass, hidden: Array, terms: list[LossTerm]) -> dict[str, float]:
    """The losses of the output layers of hidden [rows, H]; d_hidden is the gradient of their weighted sum."""
    work, rows, losses = step.work, len(hidden), dict[str, float]()
    for i, term in enumerate(terms):
        w, b, dw, db = _layer(step, term.layer)
        z = work.logits[: rows * len(b)].reshape(rows, -1)
        np.matmul(hidden, w, out=z)
        losses[term.name] = float(term.loss(z, db, b))
        np.matmul(hidden.T, z, out=dw)
        part = work.d_hidden_part[:rows] if i else d_hidden
        linear_backward_input(part, z, w)
        if i:
            np.add(d_hidden, part, out=d_hidden)
    return losses


def _latents_backward(step: Pass, extensions: list[Extension]) -> CodeReader:
    """Gradients of dynamics and representation from that of the latents."""
    work, p, D = step.work, step.p, step.work.latent.shape[2]
    dynamics = _dynamics_of(extensions)
    if dynamics is not None:
        return dynamics.latents_backward(step)
    _unroll_backward(step)
    dz = work.d_latent[: num_seen_bars(work) + 1].reshape(-1, D)
    represent_backward(step.d, dz, work.representation, p, step.x)
    return CodeReader(work.d_dynamics_hidden.reshape(len(work.step_weight), -1), p.dynamics_hidden_w[D:])


def _unroll_backward(step: Pass) -> None:
    """From the last latent to the first; `pre_norm` becomes its gradient."""
    d, work, p = step.d, step.work, step.p
    K, _, H = work.dynamics_hidden.shape
    D, width = work.latent.shape[2], len(p.dynamics_hidden_w)
    m, dm = work.latent[-K - 1 :], work.d_latent[-K - 1 :]
    for k in range(K - 1, -1, -1):
        dz, d_hidden, part = work.pre_norm[k], work.d_dynamics_hidden[k], work.d_latent_part[k]
        layernorm_backward(dz, dm[k + 1], m[k + 1], work.rstd[k])
        linear_backward_input(d_hidden, dz, p.dynamics_out_w)
        relu_backward(d_hidden, work.dynamics_hidden[k])
        linear_backward_input(part, d_hidden, p.dynamics_hidden_w[:D])
        residual_backward(dm[k], dz, part, step.latent_gradient_scale)
    dz, hidden = work.pre_norm.reshape(-1, D), work.dynamics_hidden.reshape(-1, H)
    linear_backward(d.dynamics_out_w, d.dynamics_out_b, dz, hidden)
    d_hidden, x = work.d_dynamics_hidden.reshape(-1, H), work.reward_input[:, :width]
    linear_backward(d.dynamics_hidden_w, d.dynamics_hidden_b, d_hidden, x)


def reward_errors(workspace: Workspace, p: Params, batch: Batch) -> list[float]:
    """Mean |predicted - realised reward| of step 1 .. K over the first windows of a batch, with imagined latents.

    It grows with the depth where a search suffers from the drift of imagined latents (exposure bias).
    """
    step = new_pass(workspace, p, batch, 0)
    work, extensions = step.work, workspace.extensions
    n, steps = work.latent.shape[1], len(work.reward_input)
    unroll_forward(step, extensions)
    hidden, weight = work.hidden[:steps], batch.weight[:n, 1:].T
    linear_relu_forward(hidden, work.reward_input, p.reward_hidden_w, p.reward_hidden_b)
    wrapper = _reward_wrapper_of(extensions)
    outputs = hidden if wrapper is None else wrapper.reward_forward(step, hidden)[0]
    decoded = decode(outputs @ p.reward_w + p.reward_b, workspace.shape.reward_limit).reshape(weight.shape)
    rewards = decoded if wrapper is None else wrapper.rewards(decoded)
    gap = np.abs(rewards - batch.reward[:n].T) * weight
    return [float(x) for x in gap.sum(axis=1) / np.maximum(weight.sum(axis=1), 1.0)]
