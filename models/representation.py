"""MuZero's representation: the latent of a bar from its features, forward and backward.

z = norm(relu(x @ representation_hidden_w) @ representation_out_w), biases left out.
"""

from typing import Any, NamedTuple

import numpy as np

from models.layers import (
    layernorm_backward,
    layernorm_forward,
    linear_backward,
    linear_backward_input,
    linear_forward,
    linear_relu_backward,
    linear_relu_forward,
)
from models.shape import Array, CoreParams, ModelShape


class RepresentationWork(NamedTuple):
    """Activations and gradients of `rows` bars."""

    hidden: Array  # [rows, H]
    rstd: Array  # [rows]
    z: Array  # [rows, D]
    d_hidden: Array  # [rows, H]
    dz: Array  # [rows, D]


def new_representation_work(
    shape: ModelShape, rows: int, dtype: Any = np.float32, z: Array | None = None
) -> RepresentationWork:
    """Allocate for `rows` bars; their latents are written to `z` [rows, D] if it is given."""
    hidden, d_hidden = np.zeros((2, rows, shape.hidden), dtype)
    latent, dz = np.zeros((2, rows, shape.latent), dtype)
    return RepresentationWork(hidden, np.zeros(rows, dtype), latent if z is None else z, d_hidden, dz)


def represent(work: RepresentationWork, p: CoreParams, x: Array) -> None:
    """Write the latents work.z of features x [rows, F]."""
    linear_relu_forward(work.hidden, x, p.representation_hidden_w, p.representation_hidden_b)
    linear_forward(work.z, work.hidden, p.representation_out_w, p.representation_out_b)
    layernorm_forward(work.z, work.rstd, work.z)


def represent_backward(d: CoreParams, dz: Array, work: RepresentationWork, p: CoreParams, x: Array) -> None:
    """Gradients of the representation's parameters from that of its latents, dz [rows, D]."""
    layernorm_backward(work.dz, dz, work.z, work.rstd)
    linear_backward(d.representation_out_w, d.representation_out_b, work.dz, work.hidden)
    linear_backward_input(work.d_hidden, work.dz, p.representation_out_w)
    linear_relu_backward(d.representation_hidden_w, d.representation_hidden_b, work.d_hidden, work.hidden, x)
