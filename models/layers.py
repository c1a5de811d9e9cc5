"""Layers as pairs of forward and hand-written backward; the gradient of `x` is `dx`.

What a function writes comes first, and it writes it whole: every parameter of the program belongs to one call per
step.  Matrix products are BLAS's, the elementwise rest is fused in kernels.  All of it works in float32 and float64.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels._jit import kernel

Array = NDArray[Any]
EPSILON = 1e-5  # of the layer norm
HL_GAUSS_WIDTH = 0.75  # standard deviation of a target in bin widths (Imani and White 2018)
FORBIDDEN = -1e30  # logit of an illegal action: finite, and its exponential is 0
REACH = 5.0  # standard deviations beyond which a target has no mass


def linear_forward(y: Array, x: Array, w: Array, b: Array) -> None:
    """y [n, O] = x [n, I] @ w [I, O] + b [O]."""
    np.matmul(x, w, out=y)
    np.add(y, b, out=y)


def linear_backward(dw: Array, db: Array, dy: Array, x: Array) -> None:
    """Gradients of the parameters of y = x @ w + b."""
    np.matmul(x.T, dy, out=dw)
    _column_sums(db, dy)


@kernel
def _column_sums(y: Array, x: Array) -> None:
    """y [O] = sum of the rows of x [n, O], row by row: vector additions."""
    y[:] = 0
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            y[j] += x[i, j]


def linear_backward_input(dx: Array, dy: Array, w: Array) -> None:
    """dx [n, I] of y = x @ w + b."""
    np.matmul(dy, w.T, out=dx)


def hidden_forward(y: Array, x: Array, w: Array, b: Array) -> None:
    """y [n, O] = max(x [n, I] @ w [I, O] + b [O], 0)."""
    np.matmul(x, w, out=y)
    _add_and_rectify(y, b)


@kernel
def _add_and_rectify(y: Array, b: Array) -> None:
    """y [n, O] = max(y + b, 0) in place; NaN stays NaN, or a broken weight would pass for a dead unit."""
    for i in range(y.shape[0]):
        for j in range(y.shape[1]):
            z = y[i, j] + b[j]
            y[i, j] = 0 if z <= 0 else z


@kernel
def relu_backward(dy: Array, y: Array) -> None:
    """Gradient of y = max(x, 0) with respect to x, in place of dy [n, O]."""
    for i in range(dy.shape[0]):
        for j in range(dy.shape[1]):
            if y[i, j] <= 0:
                dy[i, j] = 0


@kernel
def norm_forward(y: Array, rstd: Array, x: Array) -> None:
    """Layer norm without parameters: y [n, D] = (x - mean) rstd, rstd [n] = 1 / sqrt(var + EPSILON)."""
    D = x.shape[1]
    for i in range(x.shape[0]):
        mean, square = 0.0, 0.0
        for j in range(D):
            value = np.float64(x[i, j])
            mean += value
            square += value * value
        mean /= D
        rstd[i] = 1.0 / math.sqrt(max(square / D - mean * mean, 0.0) + EPSILON)
        for j in range(D):
            y[i, j] = (x[i, j] - mean) * rstd[i]


@kernel
def norm_backward(dx: Array, dy: Array, y: Array, rstd: Array) -> None:
    """dx = rstd (dy - mean(dy) - y mean(dy y)) of y = (x - mean) rstd; dx may be dy."""
    D = y.shape[1]
    for i in range(y.shape[0]):
        mean, slope = 0.0, 0.0
        for j in range(D):
            mean += dy[i, j]
            slope += np.float64(dy[i, j]) * y[i, j]
        mean /= D
        slope /= D
        for j in range(D):
            dx[i, j] = rstd[i] * (dy[i, j] - mean - y[i, j] * slope)


@kernel
def hl_gauss(target: Array, x: float, limit: float) -> None:
    """target [V]: mass of N(x, 0.75 bins) in V bins whose centres span [-limit, limit]; x is clipped to them."""
    V = target.shape[0]
    width = 2.0 * limit / (V - 1)
    if math.isnan(x):  # min and max would swallow it
        target[:] = x
        return
    x = min(max(x, -limit), limit)
    scale = 1.0 / (HL_GAUSS_WIDTH * width * math.sqrt(2.0))
    target[:] = 0
    at = (x + limit) / width
    first = max(0, int(at - REACH * HL_GAUSS_WIDTH))
    last = min(V - 1, int(at + REACH * HL_GAUSS_WIDTH) + 1)
    below = math.erf((-limit + (first - 0.5) * width - x) * scale)
    start, total = below, 0.0
    for v in range(first, last + 1):
        above = math.erf((-limit + (v + 0.5) * width - x) * scale)
        target[v] = above - below
        below = above
    total = below - start
    for v in range(first, last + 1):
        target[v] /= total


@kernel
def forbid(z: Array, legal: NDArray[np.bool_]) -> None:
    """Give illegal logits z [n, A] a probability, and so a gradient, of exactly 0."""
    for i in range(z.shape[0]):
        for j in range(z.shape[1]):
            if not legal[i, j]:
                z[i, j] = FORBIDDEN


@kernel
def _shift(z: Array, loss: Array, target: Array) -> None:
    """Subtract from each row of z its largest logit; loss [n] = -<target, what is left>."""
    for i in range(z.shape[0]):
        highest = z[i, 0]
        for j in range(1, z.shape[1]):
            highest = z[i, j] if z[i, j] > highest else highest
        surprise = 0.0
        for j in range(z.shape[1]):
            if target[i, j] != 0:  # few are
                surprise -= np.float64(z[i, j] - highest) * target[i, j]
        loss[i] = surprise
        for j in range(z.shape[1]):
            z[i, j] -= highest


@kernel
def _normalise(z: Array, loss: Array, target: Array, weight: Array, factor: float) -> float:
    """From z = exp(shifted logits): the loss, and z <- factor weight (softmax - target)."""
    total = 0.0
    for i in range(z.shape[0]):
        mass = 0.0
        for j in range(z.shape[1]):
            mass += z[i, j]
        scale = z.dtype.type(1.0 / mass)
        w = z.dtype.type(factor * weight[i])
        for j in range(z.shape[1]):
            z[i, j] = w * (z[i, j] * scale - target[i, j])
        total += weight[i] * (math.log(mass) + loss[i])
    return total


def cross_entropy(z: Array, row: Array, target: Array, weight: Array, factor: float) -> float:
    """sum_i weight_i CE(target_i, softmax(z_i)) over n rows of targets that sum to 1, row [n] being scratch.

    The logits z [n, O] become the gradient of `factor` times that.
    """
    _shift(z, row, target)
    np.exp(z, out=z)
    return float(_normalise(z, row, target, weight, factor))


def support(limit: float, bins: int) -> NDArray[np.float64]:
    """[V] centres of the bins of a categorical value."""
    return np.linspace(-limit, limit, bins)


def decode(z: Array, limit: float) -> Array:
    """Expectation [n] of categorical logits z [n, V]."""
    p = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(p @ support(limit, z.shape[1]) / p.sum(axis=1))
