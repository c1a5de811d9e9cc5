"""UniZero's joint training (Pu et al. 2024): the later bars of a window are represented and judged as well.

The unrolled latent m[k] is drawn to the latent z'[k] that the soft target network computes from bar t + k itself, as in
the paper.  The policy and value targets of bar t + k are used twice: for m[k], and with the weight `unizero` for z[k].
"""

from typing import Any, NamedTuple

import numpy as np

from kernels.jit import reassociated
from models.activations import num_seen_bars
from models.extension import Extension, LossWeights, Pass, WorkSize
from models.extensions.transformer import TransformerActivations, new_transformer_activations, transformer_forward
from models.representation import RepresentationWork, new_representation_work, represent
from models.shape import Array, ModelShape

LATENT_LOSS_WEIGHT = 2.0  # of the latent loss beside policy and value


class TargetLatents(NamedTuple):
    """Workspace of the target network for K later bars of n windows."""

    latent: Array  # [K + 1, n, D] of z'_1 .. z'_K and z'_0
    representation: RepresentationWork  # K n bars, or none if there is a transformer
    transformer: TransformerActivations | None


def new_target_latents(shape: ModelShape, n: int, K: int, dtype: Any = np.float32) -> TargetLatents:
    """Allocate for K later bars of n windows."""
    latent = np.zeros((K + 1, n, shape.latent), dtype)
    z = latent[:K].reshape(-1, shape.latent)
    representation = new_representation_work(shape, 0 if shape.num_layers else K * n, dtype, z)
    transformer = new_transformer_activations(shape, n, 0, K, dtype) if shape.num_layers else None
    return TargetLatents(latent, representation, transformer)


def represent_targets(work: TargetLatents, target_params: Any, x: Array) -> Array:
    """Latents [K, n, D] of z'_1 .. z'_K by the target network, from the features x [bars n, F] of each window."""
    if work.transformer is None:
        represent(work.representation, target_params, x[: len(work.representation.z)])
    else:
        no_codes = np.zeros((0, len(target_params.code_embedding_w)), x.dtype)
        transformer_forward(work.latent, work.transformer, target_params, x, no_codes)
    return work.latent[:-1]


@reassociated
def latent_loss(dm: Array, m: Array, z: Array, weight: Array, factor: float) -> float:
    """sum_i weight_i mean_d (m - z)^2 of latents m and z [rows, D]; dm = `factor` times the gradient of m."""
    total, D = 0.0, m.shape[1]
    for i in range(m.shape[0]):
        square, w = 0.0, m.dtype.type(2.0 * factor * weight[i] / D)
        for j in range(D):
            gap = m[i, j] - z[i, j]
            square += np.float64(gap) * np.float64(gap)
            dm[i, j] = w * gap
        total += np.float64(weight[i]) * square / D
    return total


class UniZero(Extension):
    """Joint training as an extension."""

    needs = ("target", "next_features")
    reports_reward_errors = True

    @staticmethod
    def is_on(shape: ModelShape, weights: LossWeights) -> bool:
        """With a weight of its loss."""
        return weights.unizero > 0

    @staticmethod
    def seen_bar_weight(weights: LossWeights) -> float:
        """Weight of policy and value of z_1 .. z_K."""
        return weights.unizero

    def __init__(self, size: WorkSize) -> None:
        self.target_latents = new_target_latents(size.shape, size.windows, size.steps, size.dtype)

    def fill(self, step: Pass) -> None:
        """Write the latents of the later bars by the target network."""
        represent_targets(self.target_latents, step.target, step.x)

    def after_heads(self, step: Pass) -> dict[str, float]:
        """The latent loss of m[1] .. m[K]."""
        work, first = step.work, num_seen_bars(step.work) + 1
        pairs = work.d_latent_part, work.latent[first:], self.target_latents.latent[:-1]
        part, latent, target = (array.reshape(-1, array.shape[2]) for array in pairs)
        loss = latent_loss(part, latent, target, work.step_weight, step.weights.unizero * LATENT_LOSS_WEIGHT)
        work.d_latent[first:] += work.d_latent_part
        return {"latent": loss}
