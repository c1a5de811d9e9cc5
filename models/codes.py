"""Learned chance codes (Antonoglou et al. 2022): an encoder names the bar that came, in words the dynamics can use.

c[k] = onehot(argmax e(x[t + k + 1])) enters the dynamics and the reward head; the gradient that comes back to it goes
on to e as if it were p = softmax(e) (straight-through).  The chance prior aims at c as a constant.  Commitment, so that
p follows what was said: |stop(c) - p|^2.  e sees features of the market alone: no position, no action.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels._jit import kernel
from models.layers import (
    Array,
    hidden_backward,
    hidden_forward,
    linear_backward,
    linear_backward_input,
    linear_forward,
)
from models.net import Params, Shape

CALL_ROWS = 4096  # bars that are named at once


class Coder(NamedTuple):
    """Activations and gradients of M = n K bars, window by window: row i K + k is row k n + i of the other heads."""

    hidden: Array  # [M, H]
    p: Array  # [M, C] probabilities of the codes; becomes the gradient of their logits
    d_hidden: Array  # [M, H]
    d_code: Array  # [M, C] gradient of the one-hot, step by step, as is the next one
    d_part: Array  # [M, C]


def new_coder(shape: Shape, rows: int, dtype: Any = np.float32) -> Coder:
    """Room for `rows` bars."""
    widths = (shape.encode, shape.codes, shape.encode, shape.codes, shape.codes)
    return Coder(*(np.zeros((rows, width), dtype) for width in widths))


def encode(coder: Coder, gain_in: Array, code: NDArray[np.int32], p: Params, x: Array, K: int) -> None:
    """Name the later bars x [M, F]: one-hots into gain_in [M, D + C + 2P], numbers into code [M]."""
    hidden_forward(coder.hidden, x, p.encode_w, p.encode_b)
    linear_forward(coder.p, coder.hidden, p.encoding_w, p.encoding_b)
    softmax(coder.p)
    put_codes(gain_in, code, coder.p, p.latent_w.shape[1], K)


@kernel
def softmax(z: Array) -> None:
    """Logits z [M, C] become probabilities."""
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
def put_codes(gain_in: Array, code: NDArray[np.int32], p: Array, D: int, K: int) -> None:
    """The likeliest code of each bar, forward: hard."""
    n = p.shape[0] // K
    for i in range(n):
        for k in range(K):
            best, row = 0, k * n + i
            for c in range(p.shape[1]):
                if p[i * K + k, c] > p[i * K + k, best]:
                    best = c
            for c in range(p.shape[1]):
                gain_in[row, D + c] = 1.0 if c == best else 0.0
            code[row] = best


def encode_backward(
    d: Params,
    coder: Coder,
    p: Params,
    x: Array,
    readers: tuple[Array, Array],
    code: NDArray[np.int32],
    weight: Array,
    factor: float,
    K: int,
) -> float:
    """The commitment loss; d of the encoder becomes the gradient of `factor` times that and of all that read the code.

    `readers` [M, H] are the gradients of the hidden layers of the reward head and of the dynamics, before their relu.
    """
    D, C = p.latent_w.shape[1], coder.p.shape[1]
    gain, move = readers
    linear_backward_input(coder.d_code, gain, p.gain_w[D : D + C])
    linear_backward_input(coder.d_part, move, p.move_w[D : D + C])
    loss = straight_through(coder.p, coder.d_code, coder.d_part, code, weight, factor, K)
    linear_backward(d.encoding_w, d.encoding_b, coder.p, coder.hidden)
    linear_backward_input(coder.d_hidden, coder.p, p.encoding_w)
    hidden_backward(d.encode_w, d.encode_b, coder.d_hidden, coder.hidden, x)
    return loss


@kernel
def straight_through(
    p: Array, d_code: Array, d_part: Array, code: NDArray[np.int32], weight: Array, factor: float, K: int
) -> float:
    """sum_i weight_i |c_i - p_i|^2; p [M, C] becomes the gradient of its logits, p (g - <g, p>) for g that of c."""
    n, total = p.shape[0] // K, 0.0
    for i in range(n):
        for k in range(K):
            row, said = k * n + i, p[i * K + k]
            w, mean = np.float64(weight[row]), 0.0
            for c in range(p.shape[1]):
                off = np.float64(said[c]) - (1.0 if c == code[row] else 0.0)
                total += w * off * off
                d_code[row, c] += d_part[row, c] + 2.0 * factor * w * off
                mean += np.float64(d_code[row, c]) * np.float64(said[c])
            for c in range(p.shape[1]):
                said[c] *= d_code[row, c] - mean
    return total


def name_bars(p: Params, X: Array, rows: NDArray[np.int32]) -> NDArray[np.int64]:
    """[n] codes of the bars whose features are X[rows]."""
    found = np.zeros(len(rows), np.int64)
    for first in range(0, len(rows), CALL_ROWS):
        part = rows[first : first + CALL_ROWS]
        hidden = np.empty((len(part), len(p.encode_b)), X.dtype)
        hidden_forward(hidden, X[part], p.encode_w, p.encode_b)
        found[first : first + len(part)] = np.argmax(hidden @ p.encoding_w + p.encoding_b, axis=1)
    return found
