"""EfficientZero's self-supervised loss (Ye et al. 2021, section 4.1): unrolled latents against those of later bars.

L = -cos(P2(P1(m[k])), stop(P1'(h'(x[t + k])))), k = 1 .. K: P1 is the projector, P2 the predictor, h the
representation, and ' marks the soft target network.  The unrolled latent m[k] follows a chance code.  An afterstate
is not compared, because the bar that follows it is unknown.  `width` is that of the projector.
"""

import math
from typing import NamedTuple

import numpy as np

from kernels.jit import reassociated
from models.activations import num_seen_bars
from models.extension import Extension, LossWeights, Pass, WorkSize
from models.layers import (
    layernorm_backward,
    layernorm_forward,
    linear_backward,
    linear_backward_input,
    linear_forward,
    relu_backward,
)
from models.representation import new_representation_work, represent
from models.shape import Array, CoreParams, ModelShape

MIN_LENGTH = 1e-5  # a shorter vector has no direction


class ConsistencyParams(CoreParams):
    """Parameters of projector and predictor."""

    projector_1_w: Array  # [D, width]
    projector_1_b: Array
    projector_2_w: Array  # [width, width]
    projector_2_b: Array
    predictor_1_w: Array  # [width, width]
    predictor_1_b: Array
    predictor_2_w: Array  # [width, width]
    predictor_2_b: Array


class MlpActivations(NamedTuple):
    """y = relu(norm(x @ w + b)) @ w_out + b_out of `rows` rows, and what its backward needs."""

    normed: Array  # [rows, width]
    rstd: Array  # [rows]
    hidden: Array  # [rows, width]
    y: Array  # [rows, width]


MlpParams = tuple[Array, Array, Array, Array]  # w, b, w_out, b_out


def projector(p: ConsistencyParams) -> MlpParams:
    """P1."""
    return p.projector_1_w, p.projector_1_b, p.projector_2_w, p.projector_2_b


def predictor(p: ConsistencyParams) -> MlpParams:
    """P2."""
    return p.predictor_1_w, p.predictor_1_b, p.predictor_2_w, p.predictor_2_b


def mlp_forward(work: MlpActivations, x: Array, layers: MlpParams) -> None:
    """work.y = relu(norm(x @ w + b)) @ w_out + b_out."""
    w, b, w_out, b_out = layers
    linear_forward(work.hidden, x, w, b)
    layernorm_forward(work.normed, work.rstd, work.hidden)
    np.maximum(work.normed, 0, out=work.hidden)
    linear_forward(work.y, work.hidden, w_out, b_out)


def mlp_backward(
    d: MlpParams, dx: Array, dh: Array, dy: Array, work: MlpActivations, x: Array, layers: MlpParams
) -> None:
    """Gradients d of the layers, and dx, which may be dy; dh [rows, width] is scratch."""
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
    """sum_i -weight_i cos(a_i, b_i) of a and constant b [rows, width]; da = `factor` times its gradient."""
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
        # a length that is clipped has no gradient
        turn = cosine / length_a if math.sqrt(aa) > MIN_LENGTH else 0.0
        for j in range(a.shape[1]):
            da[i, j] = w * (turn * a[i, j] - b[i, j] / length_b)
    return total


class Consistency(Extension):
    """The consistency loss of m[1] .. m[K]."""

    switch = "consistency"
    needs = ("target", "next_features")

    @staticmethod
    def check(shape: ModelShape, weights: LossWeights) -> None:
        if (weights.consistency > 0) != (shape.projector_width > 0):
            raise ValueError("the consistency loss and its layers go together: both or neither")
        if shape.num_layers and weights.consistency > 0:
            raise ValueError("a transformer has no consistency loss: joint training compares its latents")

    @staticmethod
    def layers(shape: ModelShape) -> dict[str, tuple[int, ...]]:
        first, square = (shape.latent, shape.projector_width), (shape.projector_width, shape.projector_width)
        return {"projector_1": first, "projector_2": square, "predictor_1": square, "predictor_2": square}

    def __init__(self, size: WorkSize) -> None:
        rows, width = size.steps * size.windows, size.shape.projector_width

        def zeros(*widths: int) -> Array:
            return np.zeros((rows, *widths), size.dtype)

        self.x = zeros(size.shape.features)  # [K n, F] features of the later bars, step by step
        self.target = new_representation_work(size.shape, rows, size.dtype)  # the latents of these bars
        self.target_projection, self.projection, self.prediction = (
            MlpActivations(zeros(width), zeros(), zeros(width), zeros(width)) for _ in range(3)
        )
        self.dy, self.d_hidden = zeros(width), zeros(width)

    def fill(self, step: Pass) -> None:
        K, n, _ = step.work.dynamics_hidden.shape
        self.x.reshape(K, n, -1)[...] = step.batch.next_features[step.rows].swapaxes(0, 1)

    def after_heads(self, step: Pass) -> dict[str, float]:
        work, first, d, p = step.work, num_seen_bars(step.work) + 1, step.d, step.p
        latent, d_latent = (array.reshape(-1, array.shape[2]) for array in (work.latent[first:], work.d_latent_part))
        represent(self.target, step.target, self.x)
        mlp_forward(self.target_projection, self.target.z, projector(step.target))
        mlp_forward(self.projection, latent, projector(p))
        mlp_forward(self.prediction, self.projection.y, predictor(p))
        y, target, dy, dh = self.prediction.y, self.target_projection.y, self.dy, self.d_hidden
        loss = negative_cosine(dy, y, target, work.step_weight, step.weights.consistency)
        mlp_backward(predictor(d), dy, dh, dy, self.prediction, self.projection.y, predictor(p))
        mlp_backward(projector(d), d_latent, dh, dy, self.projection, latent, projector(p))
        work.d_latent[first:] += work.d_latent_part
        return {"consistency": float(loss)}
