"""Layers as pairs of forward and hand-written backward; the gradient of `x` is `dx`.

A function writes its first arguments, and overwrites them whole: each parameter of the model belongs to one call per
step.  BLAS does the matrix products; the elementwise rest is fused in kernels.  All of it works in float32 and float64.
In shapes, n counts rows, I inputs and O outputs of a layer.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.jit import kernel, reassociated
from models.shape import Array

LAYERNORM_EPSILON = 1e-5
SQRT_2_OVER_PI, GELU_CUBIC = math.sqrt(2 / math.pi), 0.044715  # of GELU by tanh (Hendrycks and Gimpel 2016)
HL_GAUSS_SIGMA = 0.75  # standard deviation of a target, in bin widths (Imani and White 2018)
MASKED_LOGIT = -1e30  # logit of an illegal action: it is finite, and its exponential is 0


def linear_forward(y: Array, x: Array, w: Array, b: Array) -> None:
    """y [n, O] = x [n, I] @ w [I, O] + b [O]."""
    np.matmul(x, w, out=y)
    np.add(y, b, out=y)


def linear_backward(dw: Array, db: Array, dy: Array, x: Array) -> None:
    """Gradients dw [I, O] and db [O] of y = x @ w + b, from dy [n, O]."""
    np.matmul(x.T, dy, out=dw)
    _column_sums(db, dy)


@kernel
def _column_sums(y: Array, x: Array) -> None:
    """y [O] = sum of the rows of x [n, O], added row by row, which vectorises."""
    y[:] = 0
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            y[j] += x[i, j]


def linear_backward_input(dx: Array, dy: Array, w: Array) -> None:
    """dx [n, I] of y = x @ w + b."""
    np.matmul(dy, w.T, out=dx)


def linear_relu_forward(y: Array, x: Array, w: Array, b: Array) -> None:
    """y [n, O] = max(x [n, I] @ w [I, O] + b [O], 0)."""
    np.matmul(x, w, out=y)
    _add_bias_relu(y, b)


@kernel
def _add_bias_relu(y: Array, b: Array) -> None:
    """y [n, O] = max(y + b, 0) in place; a NaN stays NaN, so that a broken weight is not mistaken for a dead unit."""
    for i in range(y.shape[0]):
        for j in range(y.shape[1]):
            z = y[i, j] + b[j]
            y[i, j] = 0 if z <= 0 else z


@kernel
def relu_backward(dy: Array, y: Array) -> None:
    """Gradient of y = max(x, 0) with respect to x, in place of dy [n, O]."""
    zero = dy.dtype.type(0)
    for i in range(dy.shape[0]):
        for j in range(dy.shape[1]):
            dy[i, j] = zero if y[i, j] <= 0 else dy[i, j]


def linear_relu_backward(dw: Array, db: Array, dy: Array, y: Array, x: Array) -> None:
    """Gradients of the parameters of y = max(x @ w + b, 0); dy [n, O] becomes that of x @ w + b."""
    _bias_relu_backward(dy, db, y)
    np.matmul(x.T, dy, out=dw)


@kernel
def _bias_relu_backward(dy: Array, db: Array, y: Array) -> None:
    """Set dy [n, O] to 0 where y is 0; db [O] = sum of its rows."""
    db[:] = 0
    zero = dy.dtype.type(0)
    for i in range(dy.shape[0]):
        for j in range(dy.shape[1]):
            z = zero if y[i, j] <= 0 else dy[i, j]
            dy[i, j] = z
            db[j] += z


@reassociated
def layernorm_forward(y: Array, rstd: Array, x: Array) -> None:
    """Layer norm without parameters: y [n, D] = (x - mean) rstd, rstd [n] = 1 / sqrt(var + LAYERNORM_EPSILON)."""
    D = x.shape[1]
    for i in range(x.shape[0]):
        mean, square = 0.0, 0.0
        for j in range(D):
            value = np.float64(x[i, j])
            mean += value
            square += value * value
        mean /= D
        rstd[i] = 1.0 / math.sqrt(max(square / D - mean * mean, 0.0) + LAYERNORM_EPSILON)
        for j in range(D):
            y[i, j] = (x[i, j] - mean) * rstd[i]


@kernel
def residual_forward(y: Array, x: Array, b: Array) -> None:
    """y [n, D] += x + b [D]."""
    for i in range(y.shape[0]):
        for j in range(y.shape[1]):
            y[i, j] += x[i, j] + b[j]


@kernel
def residual_backward(dx: Array, dy: Array, inner: Array, factor: float) -> None:
    """dx [n, D] += factor (dy + inner): the gradient of x + f(x), `inner` [n, D] being that of f."""
    scale = dx.dtype.type(factor)
    for i in range(dx.shape[0]):
        for j in range(dx.shape[1]):
            dx[i, j] += scale * (dy[i, j] + inner[i, j])


@reassociated
def layernorm_backward(dx: Array, dy: Array, y: Array, rstd: Array) -> None:
    """dx [n, D] = rstd (dy - mean(dy) - y mean(dy y)), the gradient of y = (x - mean) rstd; dx may be dy."""
    D = y.shape[1]
    for i in range(y.shape[0]):
        total, product = 0.0, 0.0
        for j in range(D):
            total += np.float64(dy[i, j])
            product += np.float64(dy[i, j]) * np.float64(y[i, j])
        mean, slope = y.dtype.type(total / D), y.dtype.type(product / D)
        for j in range(D):
            dx[i, j] = rstd[i] * (dy[i, j] - mean - y[i, j] * slope)


@kernel
def _gelu_inner(inner: Array, x: Array, b: Array) -> None:
    """x [n, H] += b, and inner = sqrt(2 / pi) (x + 0.044715 x^3)."""
    slope, cube = x.dtype.type(SQRT_2_OVER_PI), x.dtype.type(GELU_CUBIC)
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            z = x[i, j] + b[j]
            x[i, j] = z
            inner[i, j] = slope * (z + cube * z * z * z)


@kernel
def _gelu(y: Array, x: Array, gelu_tanh: Array) -> None:
    """y [n, H] = x (1 + gelu_tanh) / 2."""
    half, one = x.dtype.type(0.5), x.dtype.type(1)
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            y[i, j] = half * x[i, j] * (one + gelu_tanh[i, j])


def gelu_forward(y: Array, gelu_tanh: Array, x: Array, b: Array) -> None:
    """y [n, H] = GELU(x + b) by the tanh that `gelu_tanh` [n, H] keeps; x becomes x + b."""
    _gelu_inner(gelu_tanh, x, b)
    np.tanh(gelu_tanh, out=gelu_tanh)
    _gelu(y, x, gelu_tanh)


@kernel
def gelu_backward(dy: Array, db: Array, x: Array, gelu_tanh: Array) -> None:
    """Turn dy [n, H] into the gradient of the GELU's input; db [H] = sum of its rows."""
    half, one, slope = x.dtype.type(0.5), x.dtype.type(1), x.dtype.type(0.5 * SQRT_2_OVER_PI)
    cube = x.dtype.type(3 * GELU_CUBIC)
    db[:] = 0
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            z, th = x[i, j], gelu_tanh[i, j]
            g = dy[i, j] * (half * (one + th) + slope * z * (one - th * th) * (one + cube * z * z))
            dy[i, j] = g
            db[j] += g


def _hl_gauss_table() -> NDArray[np.float64]:
    """Probabilities [HL_GAUSS_STEPS + 1, HL_GAUSS_BINS] of the bins about bin 0, of targets at 0 .. 1 bin widths."""
    fractions = np.arange(HL_GAUSS_STEPS + 1)[:, None] / HL_GAUSS_STEPS
    edges = np.arange(-HL_GAUSS_BINS_BELOW, HL_GAUSS_BINS - HL_GAUSS_BINS_BELOW + 1) - 0.5
    cdf = np.vectorize(math.erf)((edges - fractions) / (HL_GAUSS_SIGMA * math.sqrt(2.0))) / 2
    return np.asarray(np.diff(cdf, axis=1))


# 10 bins reach 6 deviations to either side; linear interpolation between 512 fractions errs by less than 3e-7
HL_GAUSS_STEPS, HL_GAUSS_BINS, HL_GAUSS_BINS_BELOW = 512, 10, 4
HL_GAUSS_TABLE = _hl_gauss_table()


@kernel
def hl_gauss(probability: Array, x: float, limit: float, V: int) -> int:
    """Write N(x, 0.75 bins) over successive bins of V, whose centres span [-limit, limit]; return the first of them.

    `probability` [width <= V] sums to 1: x is clipped to the centres, and probability beyond the bins is spread in
    proportion.
    """
    width = probability.shape[0]
    if math.isnan(x):  # min and max would lose it
        probability[:] = x
        return 0
    at = (min(max(x, -limit), limit) + limit) * (V - 1) / (2.0 * limit)
    at = min(at, V - 1.0)  # rounding
    nearest = int(at)
    fraction = (at - nearest) * HL_GAUSS_STEPS
    row = int(fraction)
    part = fraction - row
    first = min(max(nearest - HL_GAUSS_BINS_BELOW, 0), V - width)
    shift = first - nearest + HL_GAUSS_BINS_BELOW
    total = 0.0
    for i in range(width):
        j = i + shift
        inside = 0 <= j < HL_GAUSS_BINS
        here = HL_GAUSS_TABLE[row, j] + part * (HL_GAUSS_TABLE[row + 1, j] - HL_GAUSS_TABLE[row, j]) if inside else 0.0
        probability[i] = here
        total += here
    scale = probability.dtype.type(1.0 / total)
    for i in range(width):
        probability[i] *= scale
    return int(first)


@kernel
def mask_logits(z: Array, legal: NDArray[np.bool_]) -> None:
    """Mask the illegal logits of z [n, A]: their probability and their gradient become exactly 0."""
    for i in range(z.shape[0]):
        for j in range(z.shape[1]):
            if not legal[i, j]:
                z[i, j] = MASKED_LOGIT


@kernel
def _row_max(row: Array) -> Any:
    """The largest of row [O]; four comparisons run at a time, because a single chain would wait for each."""
    a = b = c = d = row[0]
    whole = row.shape[0] // 4 * 4
    for j in range(0, whole, 4):
        a = row[j] if row[j] > a else a
        b = row[j + 1] if row[j + 1] > b else b
        c = row[j + 2] if row[j + 2] > c else c
        d = row[j + 3] if row[j + 3] > d else d
    for j in range(whole, row.shape[0]):
        a = row[j] if row[j] > a else a
    return max(max(a, b), max(c, d))


@reassociated
def _subtract_max(z: Array, loss: Array, b: Array, first_bin: Array, probability: Array) -> None:
    """Add b to each row of z [n, O] and subtract its largest logit; loss [n] = -<target, shifted logits>."""
    for i in range(z.shape[0]):
        row, row_loss, start = z[i], 0.0, first_bin[i]
        for j in range(row.shape[0]):
            row[j] += b[j]
        highest = _row_max(row)
        for j in range(row.shape[0]):
            row[j] -= highest
        for t in range(probability.shape[1]):
            row_loss -= np.float64(row[start + t]) * np.float64(probability[i, t])
        loss[i] = row_loss


@reassociated
def _softmax_minus_target(
    z: Array, db: Array, loss: Array, first_bin: Array, probability: Array, weight: Array, factor: float
) -> float:
    """The loss from z = exp(shifted logits); z = factor weight (softmax - target), and db = its column sums."""
    total = 0.0
    for j in range(db.shape[0]):
        db[j] = 0
    for i in range(z.shape[0]):
        row, start, sum_exp = z[i], first_bin[i], 0.0
        for j in range(row.shape[0]):
            sum_exp += np.float64(row[j])
        w = z.dtype.type(factor * weight[i])
        scale = z.dtype.type(factor * weight[i] / sum_exp)
        for j in range(row.shape[0]):
            row[j] *= scale
        for t in range(probability.shape[1]):
            row[start + t] -= w * probability[i, t]
        for j in range(row.shape[0]):
            db[j] += row[j]
        total += weight[i] * (math.log(sum_exp) + loss[i])
    return total


class CategoricalTarget(NamedTuple):
    """Categorical targets of n rows: `width` bins from the first on have probabilities that sum to 1."""

    first_bin: NDArray[np.int32]  # [n]
    probability: Array  # [n, width]


def cross_entropy(
    z: Array, db: Array, row_loss: Array, b: Array, target: CategoricalTarget, weight: Array, factor: float
) -> float:
    """sum_i weight_i CE(target_i, softmax(z_i + b)) over n rows; row_loss [n] is scratch.

    z [n, O] and db [O] become the gradients of `factor` times that.
    """
    _subtract_max(z, row_loss, b, *target)
    np.exp(z, out=z)
    return float(_softmax_minus_target(z, db, row_loss, *target, weight, factor))


def bin_centres(limit: float, bins: int) -> NDArray[np.float64]:
    """Centres [V] of the bins of a categorical value."""
    return np.linspace(-limit, limit, bins)


def decode(z: Array, limit: float) -> Array:
    """Expectation [n] of categorical logits z [n, V]."""
    p = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(p @ bin_centres(limit, z.shape[1]) / p.sum(axis=1))
