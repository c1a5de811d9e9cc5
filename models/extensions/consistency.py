"""EfficientZero's self-supervised loss: the unrolled latent after a chance code against that of the bar that came.

L = -cos(P2(P1(m[k])), stop(P1'(m'(x[t + k])))), k = 1 .. K, where ' is the soft target network.  An afterstate is never
compared: what it is followed by cannot be known.  Letters: M rows of K steps of n windows, W width of the projection.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from kernels.jit import reassociated
from models.layers import (
    Array,
    layernorm_backward,
    layernorm_forward,
    linear_backward,
    linear_backward_input,
    linear_forward,
    linear_relu_forward,
    relu_backward,
)
from models.params import ModelShape, Params

MIN_LENGTH = 1e-5  # of a length, below which a direction means nothing


class MlpActivations(NamedTuple):
    """y = relu(norm(x @ w + b)) @ w_out + b_out and what its backward needs."""

    normed: Array  # [M, W]
    rstd: Array  # [M]
    hidden: Array  # [M, W]
    y: Array  # [M, W]


class ConsistencyWork(NamedTuple):
    """Activations and gradients of the consistency loss."""

    x: Array  # [M, F] features of the later bars, step by step
    representation_hidden: Array  # [M, H]
    target_latent: Array  # [M, D] latents of the target network
    rstd: Array  # [M]
    target_projection: MlpActivations  # of the target network
    projection: MlpActivations
    prediction: MlpActivations
    dy: Array  # [M, W]
    d_hidden: Array  # [M, W]


def new_consistency_work(shape: ModelShape, rows: int, dtype: Any = np.float32) -> ConsistencyWork:
    """Room for `rows` steps."""
    M, W = rows, shape.projector_width

    def zeros(*size: int) -> Array:
        return np.zeros(size, dtype)

    aim, project, guess = (MlpActivations(zeros(M, W), zeros(M), zeros(M, W), zeros(M, W)) for _ in range(3))
    x, represent, seen = (zeros(M, width) for width in (shape.features, shape.hidden, shape.latent))
    return ConsistencyWork(x, represent, seen, zeros(M), aim, project, guess, zeros(M, W), zeros(M, W))


MlpParams = tuple[Array, Array, Array, Array]  # w, b, w_out, b_out of a block


def projector(p: Params) -> MlpParams:
    """P1."""
    return p.projector_1_w, p.projector_1_b, p.projector_2_w, p.projector_2_b


def predictor(p: Params) -> MlpParams:
    """P2."""
    return p.predictor_1_w, p.predictor_1_b, p.predictor_2_w, p.predictor_2_b


def mlp_forward(work: MlpActivations, x: Array, layers: MlpParams) -> None:
    """y = relu(norm(x @ w + b)) @ w_out + b_out."""
    w, b, w_out, b_out = layers
    linear_forward(work.hidden, x, w, b)
    layernorm_forward(work.normed, work.rstd, work.hidden)
    np.maximum(work.normed, 0, out=work.hidden)
    linear_forward(work.y, work.hidden, w_out, b_out)


def mlp_backward(
    d: MlpParams, dx: Array, dh: Array, dy: Array, work: MlpActivations, x: Array, layers: MlpParams
) -> None:
    """Gradients d of the layers, and dx, which may be dy; dh [M, W] is scratch."""
    dw, db, dw_out, db_out = d
    w, _, w_out, _ = layers
    linear_backward(dw_out, db_out, dy, work.hidden)
    linear_backward_input(dh, dy, w_out)
    relu_backward(dh, work.hidden)
    layernorm_backward(dh, dh, work.normed, work.rstd)
    linear_backward(dw, db, dh, x)
    linear_backward_input(dx, dh, w)


@reassociated
def negative_cosine(da: Array, a: Array, b: Array, weight: Array, factor: float) -> float:
    """sum_i -weight_i cos(a_i, b_i); da [M, W] becomes `factor` times its gradient, b [M, W] being constant."""
    total = 0.0
    for i in range(a.shape[0]):
        aa, bb, ab = 0.0, 0.0, 0.0
        for j in range(a.shape[1]):
            u, v = np.float64(a[i, j]), np.float64(b[i, j])
            aa += u * u
            bb += v * v
            ab += u * v
        length_a, length_b = max(math.sqrt(aa), MIN_LENGTH), max(math.sqrt(bb), MIN_LENGTH)
        cosine = ab / (length_a * length_b)
        w = np.float64(weight[i])
        total -= w * cosine
        w *= factor / length_a
        turn = cosine / length_a if math.sqrt(aa) > MIN_LENGTH else 0.0  # a fixed length does not turn
        for j in range(a.shape[1]):
            da[i, j] = w * (turn * a[i, j] - b[i, j] / length_b)
    return total


def consistency_loss(
    d: Params,
    d_latent: Array,
    work: ConsistencyWork,
    p: Params,
    target_params: Params,
    latent: Array,
    weight: Array,
    factor: float,
) -> float:
    """The loss of latents [M, D] against those of work.x; d of its layers and d_latent become `factor` its gradient."""
    linear_relu_forward(
        work.representation_hidden, work.x, target_params.representation_hidden_w, target_params.representation_hidden_b
    )
    linear_forward(
        work.target_latent,
        work.representation_hidden,
        target_params.representation_out_w,
        target_params.representation_out_b,
    )
    layernorm_forward(work.target_latent, work.rstd, work.target_latent)
    mlp_forward(work.target_projection, work.target_latent, projector(target_params))
    mlp_forward(work.projection, latent, projector(p))
    mlp_forward(work.prediction, work.projection.y, predictor(p))
    loss = negative_cosine(work.dy, work.prediction.y, work.target_projection.y, weight, factor)
    dy, dh = work.dy, work.d_hidden
    mlp_backward(predictor(d), dy, dh, dy, work.prediction, work.projection.y, predictor(p))
    mlp_backward(projector(d), d_latent, dh, dy, work.projection, latent, projector(p))
    return float(loss)
