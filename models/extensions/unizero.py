"""UniZero's joint training (Pu et al. 2024): what the soft target network makes of the bars that came.

The unrolled latent m_k is drawn to the latent that network finds for the bar itself, as in the paper; the heads of that
bar are trained in `models.unroll`, whose rows they are.
"""

from typing import Any, NamedTuple

import numpy as np

from kernels.jit import reassociated
from models.extensions.transformer import TransformerActivations, new_transformer_activations, transformer_forward
from models.layers import Array
from models.params import ModelShape, Params
from models.representation import RepresentationWork, new_representation_work, represent

LATENT_LOSS_WEIGHT = 2.0  # of the latent loss beside policy and value


class TargetLatents(NamedTuple):
    """Workspace of the target network."""

    latent: Array  # [K + 1, n, D] of z_1 .. z_K and z_0
    representation: RepresentationWork  # K n bars, where there is no transformer
    transformer: TransformerActivations | None


def new_target_latents(shape: ModelShape, n: int, K: int, dtype: Any = np.float32) -> TargetLatents:
    """Room for K later bars of n windows."""
    latent = np.zeros((K + 1, n, shape.latent), dtype)
    encoded = new_representation_work(
        shape, 0 if shape.num_layers else K * n, dtype, latent[:K].reshape(-1, shape.latent)
    )
    return TargetLatents(
        latent, encoded, new_transformer_activations(shape, n, 0, K, dtype) if shape.num_layers else None
    )


def represent_targets(work: TargetLatents, target_params: Params, x: Array) -> Array:
    """Latents [K, n, D] of z_1 .. z_K by the target network, from the features x [Z n, F] of a window's bars."""
    if work.transformer is None:
        represent(work.representation, target_params, x[: len(work.representation.z)])
    else:
        transformer_forward(
            work.latent, work.transformer, target_params, x, np.zeros((0, len(target_params.code_embedding_w)), x.dtype)
        )
    return work.latent[:-1]


@reassociated
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
