"""Learned chance codes (Antonoglou et al. 2022): an encoder names the bar that came, in words the dynamics can use.

c[k] = onehot(argmax e(x[t + k + 1])) enters the dynamics and the reward head; the gradient that comes back to it goes
on to e as if it were p = softmax(e) (straight-through).  The chance prior aims at c as a constant.  Commitment, so that
p follows what was said: |stop(c) - p|^2.  Usage, or one code would soon say it all: minus the entropy of the mean p.
Telling: (z - <c, meaning>)^2 / 2 for the standardised move z of the bar, because the market search knows of a code only
the mean move it stands for; the reward head does not see to it, which knows a latent too, and mostly a flat position.
e sees features of the market alone: no position, no action.  Letters: n windows of K steps.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.jit import kernel
from models.layers import (
    Array,
    linear_backward,
    linear_backward_input,
    linear_forward,
    linear_relu_backward,
    linear_relu_forward,
)
from models.params import ModelShape, Params

ENCODE_ROWS = 4096  # bars that are named at once
MIN_PROBABILITY = 1e-9
MAX_MOVE = 4.0  # that a code has to tell of, in standard deviations


class ChanceEncoderWork(NamedTuple):
    """Activations and gradients of the encoder; everything else is step by step, [K, n]."""

    hidden: Array  # [n K, E]
    probability: Array  # [n, K, C] probabilities of the codes; becomes the gradient of their logits
    d_hidden: Array  # [n K, E]
    d_code: Array  # [K, n, C] gradient of the one-hots
    d_code_part: Array  # [K, n, C]
    mean_probability: Array  # [C] mean of p


def new_chance_encoder_work(shape: ModelShape, n: int, K: int, dtype: Any = np.float32) -> ChanceEncoderWork:
    """Room for n windows of K steps."""
    E, C = shape.chance_encoder_width, shape.codes
    sizes = (n * K, E), (n, K, C), (n * K, E), (K, n, C), (K, n, C), (C,)
    return ChanceEncoderWork(*(np.zeros(size, dtype) for size in sizes))


def quantise(work: ChanceEncoderWork, reward_input: Array, code: NDArray[np.int32], p: Params, x: Array) -> None:
    """Name the later bars x [n, K, F]: one-hots into gain_in [K n, D + C + 2P], numbers into code [K n]."""
    logits = work.probability.reshape(-1, work.probability.shape[2])
    linear_relu_forward(work.hidden, x.reshape(len(logits), -1), p.chance_encoder_hidden_w, p.chance_encoder_hidden_b)
    linear_forward(logits, work.hidden, p.chance_encoder_out_w, p.chance_encoder_out_b)
    softmax(logits)
    write_one_hot(reward_input, code, work.probability, p.representation_out_w.shape[1])


@kernel
def softmax(z: Array) -> None:
    """Logits z [rows, C] become probabilities."""
    for i in range(z.shape[0]):
        highest, total = z[i, 0], 0.0
        for c in range(1, z.shape[1]):
            highest = max(highest, z[i, c])
        for c in range(z.shape[1]):
            z[i, c] = math.exp(z[i, c] - highest)
            total += z[i, c]
        for c in range(z.shape[1]):
            z[i, c] /= total


@kernel
def write_one_hot(reward_input: Array, code: NDArray[np.int32], p: Array, D: int) -> None:
    """The likeliest code of each bar as a one-hot from column D on, and as a number."""
    n, K, C = p.shape
    for i in range(n):
        for k in range(K):
            best, row = 0, k * n + i
            for c in range(C):
                reward_input[row, D + c] = 0.0
                if p[i, k, c] > p[i, k, best]:
                    best = c
            reward_input[row, D + best] = 1.0
            code[row] = best


def chance_encoder_backward(
    d: Params,
    work: ChanceEncoderWork,
    p: Params,
    x: Array,
    move: Array,
    readers: tuple[tuple[Array, Array], tuple[Array, Array]],
    reward_input: Array,
    code: NDArray[np.int32],
    weight: Array,
    factors: tuple[float, float, float],
) -> list[float]:
    """The losses of commitment, usage and telling; d of the encoder: `factors` times theirs, and the straight-through.

    `readers` are the layers that read the code, the reward head's and the dynamics': the gradient [K n, O] of what
    each makes of its input, and its weights, those of the code first.
    """
    D, C = p.representation_out_w.shape[1], work.probability.shape[2]
    for dc, (reader, w) in zip((work.d_code, work.d_code_part), readers, strict=True):
        linear_backward_input(dc.reshape(-1, C), reader, w[:C])
    told = d.code_move_w, d.code_move_b, work.d_code, p.code_move_w, p.code_move_b
    telling = move_loss(*told, move, reward_input[:, D : D + C], weight, factors[2])
    usage = mean_code_probability(work.mean_probability, work.probability, weight)
    losses = work.probability, work.d_code, work.d_code_part, work.mean_probability, code, weight
    commitment = straight_through(*losses, factors[0], factors[1])
    dz = work.probability.reshape(-1, C)
    linear_backward(d.chance_encoder_out_w, d.chance_encoder_out_b, dz, work.hidden)
    linear_backward_input(work.d_hidden, dz, p.chance_encoder_out_w)
    linear_relu_backward(
        d.chance_encoder_hidden_w, d.chance_encoder_hidden_b, work.d_hidden, work.hidden, x.reshape(len(dz), -1)
    )
    return [commitment, usage, telling]


@kernel
def move_loss(
    dw: Array, db: Array, d_code: Array, w: Array, b: Array, move: Array, one_hot: Array, weight: Array, factor: float
) -> float:
    """sum_i weight_i (<c_i, w> + b - z_i)^2 / 2 of moves z [n, K], one-hots c [K n, C]; dw, db: `factor` its gradient.

    That with respect to the one-hots is added to d_code [K, n, C].
    """
    n, K = move.shape
    total = 0.0
    dw[:, :] = 0
    db[:] = 0
    for i in range(n):
        for k in range(K):
            row, off = k * n + i, np.float64(b[0])
            for c in range(w.shape[0]):
                off += np.float64(one_hot[row, c]) * np.float64(w[c, 0])
            off -= min(max(np.float64(move[i, k]), -MAX_MOVE), MAX_MOVE)
            total += 0.5 * weight[row] * off * off
            off *= factor * weight[row]
            db[0] += off
            for c in range(w.shape[0]):
                dw[c, 0] += off * one_hot[row, c]
                d_code[k, i, c] += off * w[c, 0]
    return total


@kernel
def mean_code_probability(mean_probability: Array, p: Array, weight: Array) -> float:
    """use [C] = weighted mean of p [n, K, C]; minus its entropy, times the sum of the weights [K n]."""
    n, K, C = p.shape
    total, found = 0.0, 0.0
    mean_probability[:] = 0
    for i in range(n):
        for k in range(K):
            w = weight[k * n + i]
            total += np.float64(w)
            for c in range(C):
                mean_probability[c] += w * p[i, k, c]
    for c in range(C):
        mean_probability[c] = max(mean_probability[c] / max(total, MIN_PROBABILITY), MIN_PROBABILITY)
        found += total * mean_probability[c] * math.log(mean_probability[c])
    return found


@kernel
def straight_through(
    p: Array,
    d_code: Array,
    d_code_part: Array,
    mean_probability: Array,
    code: NDArray[np.int32],
    weight: Array,
    commitment: float,
    code_entropy: float,
) -> float:
    """sum_i weight_i |c_i - p_i|^2; p [n, K, C] becomes the gradient of its logits, p (g - <g, p>) for g that of c."""
    n, K, C = p.shape
    total = 0.0
    for i in range(n):
        for k in range(K):
            row, said, g = k * n + i, p[i, k], d_code[k, i]
            w, mean = np.float64(weight[row]), 0.0
            for c in range(C):
                off = np.float64(said[c]) - (1.0 if c == code[row] else 0.0)
                total += w * off * off
                g[c] += d_code_part[k, i, c] + w * (
                    2.0 * commitment * off + code_entropy * math.log(mean_probability[c])
                )
                mean += np.float64(g[c]) * np.float64(said[c])
            for c in range(C):
                said[c] *= g[c] - mean
    return total


def encode_bars(p: Params, X: Array, rows: NDArray[np.int32]) -> NDArray[np.int64]:
    """[n] codes of the bars whose features are X[rows]."""
    found = np.zeros(len(rows), np.int64)
    for first in range(0, len(rows), ENCODE_ROWS):
        part = rows[first : first + ENCODE_ROWS]
        hidden = np.empty((len(part), len(p.chance_encoder_hidden_b)), X.dtype)
        linear_relu_forward(hidden, X[part], p.chance_encoder_hidden_w, p.chance_encoder_hidden_b)
        found[first : first + len(part)] = np.argmax(hidden @ p.chance_encoder_out_w + p.chance_encoder_out_b, axis=1)
    return found
