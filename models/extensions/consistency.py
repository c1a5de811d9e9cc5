"""EfficientZero's self-supervised loss: the unrolled latent after a chance code against that of the bar that came.

L = -cos(P2(P1(m[k])), stop(P1'(m'(x[t + k])))), k = 1 .. K, where ' is the soft target network.  An afterstate is never
compared: what it is followed by cannot be known.  Letters: M rows of K steps of n windows, W width of the projection.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from kernels.jit import reordered
from models.layers import (
    Array,
    hidden_forward,
    linear_backward,
    linear_backward_input,
    linear_forward,
    norm_backward,
    norm_forward,
    relu_backward,
)
from models.params import Params, Shape

FLOOR = 1e-5  # of a length, below which a direction means nothing


class Block(NamedTuple):
    """y = relu(norm(x @ w + b)) @ w_out + b_out and what its backward needs."""

    normed: Array  # [M, W]
    rstd: Array  # [M]
    hidden: Array  # [M, W]
    y: Array  # [M, W]


class Foresight(NamedTuple):
    """Activations and gradients of the consistency loss."""

    x: Array  # [M, F] features of the later bars, step by step
    represent: Array  # [M, H]
    seen: Array  # [M, D] latents of the target network
    rstd: Array  # [M]
    aim: Block  # of the target network
    project: Block
    guess: Block
    dy: Array  # [M, W]
    d_hidden: Array  # [M, W]


def new_foresight(shape: Shape, rows: int, dtype: Any = np.float32) -> Foresight:
    """Room for `rows` steps."""
    M, W = rows, shape.project

    def zeros(*size: int) -> Array:
        return np.zeros(size, dtype)

    aim, project, guess = (Block(zeros(M, W), zeros(M), zeros(M, W), zeros(M, W)) for _ in range(3))
    x, represent, seen = (zeros(M, width) for width in (shape.features, shape.hidden, shape.latent))
    return Foresight(x, represent, seen, zeros(M), aim, project, guess, zeros(M, W), zeros(M, W))


Four = tuple[Array, Array, Array, Array]  # w, b, w_out, b_out of a block


def projector(p: Params) -> Four:
    """P1."""
    return p.project_w, p.project_b, p.projection_w, p.projection_b


def predictor(p: Params) -> Four:
    """P2."""
    return p.guess_w, p.guess_b, p.guessed_w, p.guessed_b


def block_forward(block: Block, x: Array, layers: Four) -> None:
    """y = relu(norm(x @ w + b)) @ w_out + b_out."""
    w, b, w_out, b_out = layers
    linear_forward(block.hidden, x, w, b)
    norm_forward(block.normed, block.rstd, block.hidden)
    np.maximum(block.normed, 0, out=block.hidden)
    linear_forward(block.y, block.hidden, w_out, b_out)


def block_backward(d: Four, dx: Array, dh: Array, dy: Array, block: Block, x: Array, layers: Four) -> None:
    """Gradients d of the layers, and dx, which may be dy; dh [M, W] is scratch."""
    dw, db, dw_out, db_out = d
    w, _, w_out, _ = layers
    linear_backward(dw_out, db_out, dy, block.hidden)
    linear_backward_input(dh, dy, w_out)
    relu_backward(dh, block.hidden)
    norm_backward(dh, dh, block.normed, block.rstd)
    linear_backward(dw, db, dh, x)
    linear_backward_input(dx, dh, w)


@reordered
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
        length_a, length_b = max(math.sqrt(aa), FLOOR), max(math.sqrt(bb), FLOOR)
        cosine = ab / (length_a * length_b)
        w = np.float64(weight[i])
        total -= w * cosine
        w *= factor / length_a
        turn = cosine / length_a if math.sqrt(aa) > FLOOR else 0.0  # a fixed length does not turn
        for j in range(a.shape[1]):
            da[i, j] = w * (turn * a[i, j] - b[i, j] / length_b)
    return total


def consistency(
    d: Params,
    d_latent: Array,
    work: Foresight,
    p: Params,
    target: Params,
    latent: Array,
    weight: Array,
    factor: float,
) -> float:
    """The loss of latents [M, D] against those of work.x; d of its layers and d_latent become `factor` its gradient."""
    hidden_forward(work.represent, work.x, target.represent_w, target.represent_b)
    linear_forward(work.seen, work.represent, target.latent_w, target.latent_b)
    norm_forward(work.seen, work.rstd, work.seen)
    block_forward(work.aim, work.seen, projector(target))
    block_forward(work.project, latent, projector(p))
    block_forward(work.guess, work.project.y, predictor(p))
    loss = negative_cosine(work.dy, work.guess.y, work.aim.y, weight, factor)
    dy, dh = work.dy, work.d_hidden
    block_backward(predictor(d), dy, dh, dy, work.guess, work.project.y, predictor(p))
    block_backward(projector(d), d_latent, dh, dy, work.project, latent, projector(p))
    return float(loss)
