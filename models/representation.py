"""The latent of a bar from its features: z = norm(relu(x @ represent_w) @ latent_w), forward and backward."""

from typing import Any, NamedTuple

import numpy as np

from models.layers import (
    Array,
    hidden_backward,
    hidden_forward,
    linear_backward,
    linear_backward_input,
    linear_forward,
    norm_backward,
    norm_forward,
)
from models.params import Params, Shape


class Encoded(NamedTuple):
    """Activations and gradients of the latents of so many bars."""

    hidden: Array  # [rows, H]
    rstd: Array  # [rows]
    z: Array  # [rows, D]
    d_hidden: Array  # [rows, H]
    dz: Array  # [rows, D]


def new_encoded(shape: Shape, rows: int, dtype: Any = np.float32, z: Array | None = None) -> Encoded:
    """Room for `rows` bars, whose latents go to `z` [rows, D] if that is given."""
    hidden, d_hidden = np.zeros((2, rows, shape.hidden), dtype)
    latent, dz = np.zeros((2, rows, shape.latent), dtype)
    return Encoded(hidden, np.zeros(rows, dtype), latent if z is None else z, d_hidden, dz)


def encode(work: Encoded, p: Params, x: Array) -> None:
    """Latents z of features x [rows, F]."""
    hidden_forward(work.hidden, x, p.represent_w, p.represent_b)
    linear_forward(work.z, work.hidden, p.latent_w, p.latent_b)
    norm_forward(work.z, work.rstd, work.z)


def encode_backward(d: Params, dz: Array, work: Encoded, p: Params, x: Array) -> None:
    """Gradients of the encoder from that of its latents, dz [rows, D]."""
    norm_backward(work.dz, dz, work.z, work.rstd)
    linear_backward(d.latent_w, d.latent_b, work.dz, work.hidden)
    linear_backward_input(work.d_hidden, work.dz, p.latent_w)
    hidden_backward(d.represent_w, d.represent_b, work.d_hidden, work.hidden, x)
