"""UniZero's joint training (Pu et al. 2024): the later bars of a window are represented and judged as well.

The unrolled latent m[k] is drawn to the latent z'[k] that the soft target network computes from bar t + k itself, as in
the paper.  The policy and value targets of bar t + k are used twice: for m[k], and with the weight `unizero` for z[k].
"""

import numpy as np

from kernels.jit import reassociated
from models.activations import num_seen_bars
from models.extension import Extension, LossWeights, Pass, WorkSize
from models.extensions.transformer import new_transformer_activations, transformer_forward
from models.representation import new_representation_work, represent
from models.shape import Array

LATENT_LOSS_WEIGHT = 2.0  # of the latent loss beside policy and value


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
    """The latent loss of m[1] .. m[K], and the weight of policy and value of z_1 .. z_K."""

    switch = "unizero"
    needs = ("target", "next_features")
    reports_reward_errors = True

    @staticmethod
    def seen_bar_weight(weights: LossWeights) -> float:
        return weights.unizero

    def __init__(self, size: WorkSize) -> None:
        shape, n, K = size.shape, size.windows, size.steps
        self.latent = np.zeros((K + 1, n, shape.latent), size.dtype)  # z'_1 .. z'_K, z'_0 by the target network
        z = self.latent[:K].reshape(-1, shape.latent)
        self.representation = new_representation_work(shape, 0 if shape.num_layers else K * n, size.dtype, z)
        self.transformer = new_transformer_activations(shape, n, 0, K, size.dtype) if shape.num_layers else None

    def fill(self, step: Pass) -> None:
        if self.transformer is None:
            represent(self.representation, step.target, step.x[: len(self.representation.z)])
        else:
            no_codes = np.zeros((0, len(step.target.code_embedding_w)), step.x.dtype)
            transformer_forward(self.latent, self.transformer, step.target, step.x, no_codes)

    def after_heads(self, step: Pass) -> dict[str, float]:
        work, first = step.work, num_seen_bars(step.work) + 1
        pairs = work.d_latent_part, work.latent[first:], self.latent[:-1]
        part, latent, target = (array.reshape(-1, array.shape[2]) for array in pairs)
        loss = latent_loss(part, latent, target, work.step_weight, step.weights.unizero * LATENT_LOSS_WEIGHT)
        work.d_latent[first:] += work.d_latent_part
        return {"latent": loss}
