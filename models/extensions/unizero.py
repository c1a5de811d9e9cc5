"""UniZero's joint training (Pu et al. 2024): what the soft target network makes of the bars that came.

The unrolled latent m_k is drawn to the latent that network finds for the bar itself, as in the paper; the heads of that
bar are trained in `models.unroll`, whose rows they are.
"""

from typing import Any, NamedTuple

import numpy as np

from kernels.jit import reordered
from models.extensions.transformer import Stream, forward_tokens, new_stream
from models.layers import Array
from models.params import Params, Shape
from models.representation import Encoded, encode, new_encoded

LATENT_WEIGHT = 2.0  # of the latent loss beside policy and value


class Seen(NamedTuple):
    """Workspace of the target network."""

    latent: Array  # [K + 1, n, D] of z_1 .. z_K and z_0
    encoded: Encoded  # K n bars, where there is no transformer
    stream: Stream | None


def new_seen(shape: Shape, n: int, K: int, dtype: Any = np.float32) -> Seen:
    """Room for K later bars of n windows."""
    latent = np.zeros((K + 1, n, shape.latent), dtype)
    encoded = new_encoded(shape, 0 if shape.layers else K * n, dtype, latent[:K].reshape(-1, shape.latent))
    return Seen(latent, encoded, new_stream(shape, n, 0, K, dtype) if shape.layers else None)


def see(seen: Seen, target: Params, x: Array) -> Array:
    """Latents [K, n, D] of z_1 .. z_K by the target network, from the features x [Z n, F] of a window's bars."""
    if seen.stream is None:
        encode(seen.encoded, target, x[: len(seen.encoded.z)])
    else:
        forward_tokens(seen.latent, seen.stream, target, x, np.zeros((0, len(target.embed_w)), x.dtype))
    return seen.latent[:-1]


@reordered
def latent_loss(dm: Array, m: Array, z: Array, weight: Array, factor: float) -> float:
    """sum_i weight_i mean_d (m - z)^2 of latents m and z [M, D]; dm becomes `factor` times the gradient of m."""
    total, D = 0.0, m.shape[1]
    for i in range(m.shape[0]):
        square, w = 0.0, m.dtype.type(2.0 * factor * weight[i] / D)
        for j in range(D):
            gap = m[i, j] - z[i, j]
            square += np.float64(gap) * np.float64(gap)
            dm[i, j] = w * gap
        total += np.float64(weight[i]) * square / D
    return total
