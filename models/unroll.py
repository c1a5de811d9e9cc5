"""The loss over K steps of the unrolled model, its backward, and the learning step on threads.

The market latent unrolls step by step; every head then runs once over all steps.  Rows are step-major: row k n + i is
step k of window i.  A batch is cut into CHUNKS pieces whatever the threads, and their gradients add up in order.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels._jit import kernel
from kernels.replay import Batch
from models.adam import CLIP, Adam, add_up, new_adam, rate_at, update
from models.layers import (
    cross_entropy,
    forbid,
    hidden_forward,
    hl_gauss,
    linear_backward,
    linear_backward_input,
    linear_forward,
    norm_backward,
    norm_forward,
    relu_backward,
)
from models.net import Array, Params, Shape, count, decays, new_params, views

CHUNKS = 4
LATENT_GRADIENT = 0.5  # of what flows from step k + 1 into the latent of step k (MuZero, appendix G)
LOSSES = ("policy", "value", "after_value", "chance", "reward")


class LossWeights(NamedTuple):
    """Weights of the losses, in the order of LOSSES."""

    policy: float = 1.0
    value: float = 0.5
    after_value: float = 0.5
    chance: float = 1.0
    reward: float = 1.0


WEIGHTS = LossWeights()


class Work(NamedTuple):
    """Activations, targets and gradients of n windows of K steps; N = (K + 1) n decisions, M = K n steps."""

    hidden: Array  # [n, H] of the representation
    before: Array  # [K + 1, n, D] latents before their norm; becomes their gradient
    latent: Array  # [K + 1, n, D] m
    rstd: Array  # [K + 1, n]
    predict_in: Array  # [N, D + P]
    predict: Array  # [N, H]
    policy: Array  # [N, A] logits, then gradient; so are the next four
    value: Array  # [N, V]
    code: Array  # [M, C]
    after_value: Array  # [M, V]
    reward: Array  # [M, Vr]
    chance: Array  # [M, H]
    after_in: Array  # [M, D + A + P]
    after: Array  # [M, H]
    gain_in: Array  # [M, D + C + 2P]
    gain: Array  # [M, H]
    move: Array  # [K, n, H]
    d_hidden: Array  # [N, H]
    d_more: Array  # [N, H]
    d_move: Array  # [K, n, H]
    d_latent: Array  # [K + 1, n, D]
    d_part: Array  # [K + 1, n, D]
    policy_target: Array  # [N, A]
    value_target: Array  # [N, V]
    code_target: Array  # [M, C]
    reward_target: Array  # [M, Vr]
    decision_weight: Array  # [N]
    step_weight: Array  # [M]
    row_loss: Array  # [N] scratch
    legal: NDArray[np.bool_]  # [N, A]


def new_work(shape: Shape, n: int, K: int, dtype: Any = np.float32) -> Work:
    """Room for n windows of K steps."""
    s, N, M = shape, (K + 1) * n, K * n
    D, H, P, A, C, V, Vr = s.latent, s.hidden, s.position, s.actions, s.codes, s.value_bins, s.reward_bins
    layout: dict[str, tuple[int, ...]] = {
        "hidden": (n, H), "before": (K + 1, n, D), "latent": (K + 1, n, D), "rstd": (K + 1, n),
        "predict_in": (N, D + P), "predict": (N, H), "policy": (N, A), "value": (N, V), "code": (M, C),
        "after_value": (M, V), "reward": (M, Vr), "chance": (M, H), "after_in": (M, D + A + P), "after": (M, H),
        "gain_in": (M, D + C + 2 * P), "gain": (M, H), "move": (K, n, H), "d_hidden": (N, H), "d_more": (N, H),
        "d_move": (K, n, H), "d_latent": (K + 1, n, D), "d_part": (K + 1, n, D), "policy_target": (N, A),
        "value_target": (N, V), "code_target": (M, C), "reward_target": (M, Vr), "decision_weight": (N,),
        "step_weight": (M,), "row_loss": (N,),
    }  # fmt: skip
    arrays = {name: np.zeros(size, dtype) for name, size in layout.items()}
    return Work(**arrays, legal=np.ones((N, A), np.bool_))


@kernel
def fill_inputs(work: Work, batch: Batch, first: int) -> None:
    """Write what the heads are told beside the latent: positions, actions and codes of windows first .. first + n."""
    K, n, D = work.move.shape[0], work.hidden.shape[0], work.latent.shape[2]
    P, A, C = batch.position.shape[2], batch.policy.shape[2], work.code.shape[1]
    work.after_in[:, D : D + A] = 0
    work.gain_in[:, D : D + C] = 0
    for k in range(K + 1):
        for i in range(n):
            b, row = first + i, k * n + i
            for p in range(P):
                work.predict_in[row, D + p] = batch.position[b, k, p]
            if k == K:
                continue
            work.after_in[row, D + batch.action[b, k]] = 1
            work.gain_in[row, D + batch.code[b, k]] = 1
            for p in range(P):
                work.after_in[row, D + A + p] = batch.after[b, k, p]
                work.gain_in[row, D + C + p] = batch.after[b, k, p]
                work.gain_in[row, D + C + P + p] = batch.position[b, k + 1, p]


@kernel
def fill_targets(work: Work, batch: Batch, first: int, value_limit: float, reward_limit: float) -> None:
    """Write the targets of windows first .. first + n and their weights: each loss is a mean over B windows and steps.

    weight[b, k] masks decision k, and weight[b, k + 1] the step from k to k + 1: its reward is known only then.
    """
    K, n, B = work.move.shape[0], work.hidden.shape[0], batch.x.shape[0]
    work.code_target[:, :] = 0
    for k in range(K + 1):
        for i in range(n):
            b, row = first + i, k * n + i
            work.decision_weight[row] = batch.weight[b, k] / (B * (K + 1))
            hl_gauss(work.value_target[row], batch.value[b, k], value_limit)
            for a in range(batch.policy.shape[2]):
                work.legal[row, a] = batch.legal[b, k, a]
                work.policy_target[row, a] = batch.policy[b, k, a] if batch.legal[b, k, a] else 0.0
            if k < K:
                work.step_weight[row] = batch.weight[b, k + 1] / (B * K)
                hl_gauss(work.reward_target[row], batch.reward[b, k], reward_limit)
                work.code_target[row, batch.code[b, k]] = 1


def forward(work: Work, p: Params, x: Array) -> None:
    """Latents of all steps and the logits of every head, for inputs that `fill_inputs` has written; x [n, F]."""
    K, n, D = work.move.shape[0], work.hidden.shape[0], work.latent.shape[2]
    hidden_forward(work.hidden, x, p.represent_w, p.represent_b)
    linear_forward(work.before[0], work.hidden, p.latent_w, p.latent_b)
    norm_forward(work.latent[0], work.rstd[0], work.before[0])
    C = work.code.shape[1]
    for k in range(K):
        gain_in = work.gain_in[k * n : (k + 1) * n]
        gain_in[:, :D] = work.latent[k]
        hidden_forward(work.move[k], gain_in[:, : D + C], p.move_w, p.move_b)
        linear_forward(work.before[k + 1], work.move[k], p.next_w, p.next_b)
        work.before[k + 1] += work.latent[k]
        norm_forward(work.latent[k + 1], work.rstd[k + 1], work.before[k + 1])
    work.predict_in[:, :D] = work.latent.reshape(-1, D)
    work.after_in[:, :D] = work.latent[:K].reshape(-1, D)
    hidden_forward(work.predict, work.predict_in, p.predict_w, p.predict_b)
    linear_forward(work.policy, work.predict, p.policy_w, p.policy_b)
    linear_forward(work.value, work.predict, p.value_w, p.value_b)
    hidden_forward(work.chance, work.latent[:K].reshape(-1, D), p.chance_w, p.chance_b)
    linear_forward(work.code, work.chance, p.code_w, p.code_b)
    hidden_forward(work.after, work.after_in, p.after_w, p.after_b)
    linear_forward(work.after_value, work.after, p.after_value_w, p.after_value_b)
    hidden_forward(work.gain, work.gain_in, p.gain_w, p.gain_b)
    linear_forward(work.reward, work.gain, p.reward_w, p.reward_b)


def losses(work: Work, weights: LossWeights) -> list[float]:
    """The losses in the order of LOSSES; the logits become the gradients of their weighted sum."""
    M = len(work.step_weight)
    forbid(work.policy, work.legal)
    heads = (
        (work.policy, work.policy_target, work.decision_weight),
        (work.value, work.value_target, work.decision_weight),
        (work.after_value, work.value_target[:M], work.step_weight),
        (work.code, work.code_target, work.step_weight),
        (work.reward, work.reward_target, work.step_weight),
    )
    return [
        cross_entropy(z, work.row_loss, target, weight, factor)
        for (z, target, weight), factor in zip(heads, weights, strict=True)
    ]


def backward(d: Params, work: Work, p: Params, x: Array, latent_gradient: float = LATENT_GRADIENT) -> None:
    """Gradients d of all parameters from those of the logits."""
    K, D, M = work.move.shape[0], work.latent.shape[2], len(work.step_weight)
    steps = work.d_hidden[:M]
    linear_backward(d.policy_w, d.policy_b, work.policy, work.predict)
    linear_backward(d.value_w, d.value_b, work.value, work.predict)
    linear_backward_input(work.d_hidden, work.value, p.value_w)
    linear_backward_input(work.d_more, work.policy, p.policy_w)
    np.add(work.d_hidden, work.d_more, out=work.d_hidden)
    # The hidden layer of the prediction reads [m | position]; only m hands its gradient on.
    relu_backward(work.d_hidden, work.predict)
    linear_backward(d.predict_w, d.predict_b, work.d_hidden, work.predict_in)
    linear_backward_input(work.d_latent.reshape(-1, D), work.d_hidden, p.predict_w[:D])
    latent = work.latent[:K].reshape(-1, D)
    heads = (
        (work.code, p.code_w, d.code_w, d.code_b, work.chance, latent, p.chance_w, d.chance_w, d.chance_b),
        (work.after_value, p.after_value_w, d.after_value_w, d.after_value_b, work.after, work.after_in, p.after_w,
         d.after_w, d.after_b),
        (work.reward, p.reward_w, d.reward_w, d.reward_b, work.gain, work.gain_in, p.gain_w, d.gain_w, d.gain_b),
    )  # fmt: skip
    for dz, w_out, dw_out, db_out, hidden, inputs, w_in, dw_in, db_in in heads:
        # hidden = relu([m | ...] @ w_in + b_in), z = hidden @ w_out + b_out
        linear_backward(dw_out, db_out, dz, hidden)
        linear_backward_input(steps, dz, w_out)
        relu_backward(steps, hidden)
        linear_backward(dw_in, db_in, steps, inputs)
        part = work.d_part[:K]
        linear_backward_input(part.reshape(-1, D), steps, w_in[:D])
        work.d_latent[:K] += part
    _backward_latents(d, work, p, latent_gradient)
    _backward_representation(d, work, p, x)


def _backward_latents(d: Params, work: Work, p: Params, latent_gradient: float) -> None:
    """From the last latent to the first: m[k + 1] = norm(m[k] + relu([m[k] | code] @ move_w) @ next_w)."""
    K, D, H, C = work.move.shape[0], work.latent.shape[2], work.hidden.shape[1], work.code.shape[1]
    scale = work.latent.dtype.type(latent_gradient)
    for k in range(K - 1, -1, -1):
        dz = work.before[k + 1]
        norm_backward(dz, work.d_latent[k + 1], work.latent[k + 1], work.rstd[k + 1])
        linear_backward_input(work.d_move[k], dz, p.next_w)
        relu_backward(work.d_move[k], work.move[k])
        part = work.d_part[k]
        linear_backward_input(part, work.d_move[k], p.move_w[:D])
        part += dz
        part *= scale
        work.d_latent[k] += part
    linear_backward(d.next_w, d.next_b, work.before[1:].reshape(-1, D), work.move.reshape(-1, H))
    linear_backward(d.move_w, d.move_b, work.d_move.reshape(-1, H), work.gain_in[:, : D + C])


def _backward_representation(d: Params, work: Work, p: Params, x: Array) -> None:
    """m[0] = norm(relu(x @ represent_w) @ latent_w)."""
    dz, dh = work.before[0], work.d_more[: len(x)]
    norm_backward(dz, work.d_latent[0], work.latent[0], work.rstd[0])
    linear_backward(d.latent_w, d.latent_b, dz, work.hidden)
    linear_backward_input(dh, dz, p.latent_w)
    relu_backward(dh, work.hidden)
    linear_backward(d.represent_w, d.represent_b, dh, x)


class Learner:
    """Parameters, optimiser and workspaces; `learn` takes one step and allocates nothing large."""

    def __init__(
        self,
        shape: Shape,
        batch: int,
        K: int,
        seed: int,
        rate: float,
        decay: float,
        horizon: int,
        threads: int,
        weights: LossWeights = WEIGHTS,
    ) -> None:
        if batch % CHUNKS:
            raise ValueError(f"a batch of {batch} windows is not {CHUNKS} equal chunks")
        self.shape, self.step = shape, 0
        self.params = new_params(shape, seed)
        self.adam: Adam = new_adam(self.params)
        self._rate, self._horizon, self._weights = rate, horizon, weights
        self._decays = decays(shape, decay)
        self._views = views(self.params, shape)
        self._parts = np.zeros((CHUNKS, count(shape)), np.float32)
        self._d = [views(part, shape) for part in self._parts]
        self._gradient = np.zeros(count(shape), np.float32)
        self._work = [new_work(shape, batch // CHUNKS, K) for _ in range(CHUNKS)]
        self._pool = ThreadPoolExecutor(threads)

    def learn(self, batch: Batch) -> dict[str, float]:
        """One step on a batch; its losses.  Raises FloatingPointError and changes nothing if one is not finite."""
        rows = list(self._pool.map(lambda i: self._chunk(batch, i), range(CHUNKS)))
        found = dict(zip(LOSSES, (sum(column) for column in zip(*rows, strict=True)), strict=True))
        found["gradient_norm"] = math.sqrt(sum(self._pool.map(self._add_up, self._slices())))
        bad = [name for name, x in found.items() if not math.isfinite(x)]
        if bad:
            raise FloatingPointError(f"learning step {self.step}: not finite: {', '.join(bad)}")
        scale = min(1.0, CLIP / max(found["gradient_norm"], 1e-12))
        list(self._pool.map(lambda part: self._update(part, scale), self._slices()))
        self.step += 1
        return found

    def _slices(self) -> list[slice]:
        """The parameters in CHUNKS pieces, so that the optimiser runs on all threads as well."""
        edges = [len(self.params) * i // CHUNKS for i in range(CHUNKS + 1)]
        return [slice(first, stop) for first, stop in pairwise(edges)]

    def _add_up(self, part: slice) -> float:
        return add_up(self._gradient[part], self._parts[:, part])

    def _update(self, part: slice, scale: float) -> None:
        adam = Adam(self.adam.mean[part], self.adam.square[part])
        rate = rate_at(self.step, self._rate, self._horizon)
        update(self.params[part], adam, self._gradient[part], self._decays[part], self.step, rate, scale)

    def _chunk(self, batch: Batch, i: int) -> list[float]:
        work, n = self._work[i], len(self._work[i].hidden)
        x = batch.x[i * n : (i + 1) * n]
        fill_inputs(work, batch, i * n)
        fill_targets(work, batch, i * n, self.shape.value_limit, self.shape.reward_limit)
        forward(work, self._views, x)
        found = losses(work, self._weights)
        backward(self._d[i], work, self._views, x)
        return found
