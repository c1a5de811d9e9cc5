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
REACH = 5.0  # standard deviations beyond which a target has no mass


def linear_forward(y: Array, x: Array, w: Array, b: Array) -> None:
    """y [n, O] = x [n, I] @ w [I, O] + b [O]."""
    np.matmul(x, w, out=y)
    np.add(y, b, out=y)


def linear_backward(dw: Array, db: Array, dy: Array, x: Array) -> None:
    """Gradients of the parameters of y = x @ w + b."""
    np.matmul(x.T, dy, out=dw)
    np.sum(dy, axis=0, out=db)


def linear_backward_input(dx: Array, dy: Array, w: Array) -> None:
    """dx [n, I] of y = x @ w + b."""
    np.matmul(dy, w.T, out=dx)


def relu_forward(y: Array) -> None:
    """y = max(y, 0), in place."""
    np.maximum(y, 0, out=y)


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
        mean = 0.0
        for j in range(D):
            mean += x[i, j]
        mean /= D
        variance = 0.0
        for j in range(D):
            variance += (x[i, j] - mean) ** 2
        rstd[i] = 1.0 / math.sqrt(variance / D + EPSILON)
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
            slope += dy[i, j] * y[i, j]
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
def _shift(z: Array, legal: NDArray[np.bool_]) -> None:
    """Subtract each row's largest legal logit; illegal ones get one whose exponential is 0."""
    for i in range(z.shape[0]):
        highest = -np.inf
        for j in range(z.shape[1]):
            if legal[i, j]:
                highest = max(highest, z[i, j])
        for j in range(z.shape[1]):
            z[i, j] = z[i, j] - highest if legal[i, j] else -200.0


@kernel
def _cross_entropy(dz: Array, target: Array, weight: Array, legal: NDArray[np.bool_]) -> float:
    """From dz = exp(shifted logits): the loss, and dz <- weight (softmax - target)."""
    loss = 0.0
    for i in range(dz.shape[0]):
        total = 0.0
        for j in range(dz.shape[1]):
            total += dz[i, j]
        row = 0.0
        for j in range(dz.shape[1]):
            p = dz[i, j] / total
            if target[i, j] != 0:
                row -= target[i, j] * math.log(max(p, 1e-38))
            dz[i, j] = weight[i] * (p - target[i, j]) if legal[i, j] else 0.0
        loss += weight[i] * row
    return loss


def cross_entropy(z: Array, target: Array, weight: Array, legal: NDArray[np.bool_]) -> float:
    """sum_i weight_i CE(target_i, softmax(z_i)) over n rows; the logits z [n, O] become their gradient."""
    _shift(z, legal)
    np.exp(z, out=z)
    return float(_cross_entropy(z, target, weight, legal))


def support(limit: float, bins: int) -> NDArray[np.float64]:
    """[V] centres of the bins of a categorical value."""
    return np.linspace(-limit, limit, bins)


def decode(z: Array, limit: float) -> Array:
    """Expectation [n] of categorical logits z [n, V]."""
    p = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(p @ support(limit, z.shape[1]) / p.sum(axis=1))
