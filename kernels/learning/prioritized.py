"""Prioritised replay: windows of large Bellman errors are drawn more often; importance weights correct for it.

The Bellman error of a decision is |value by the network - its target|, of new episodes too (EfficientZero V2, Wang et
al. 2024).  Most of an error is noise of the market.  So errors are winsorised, and half of the draws are uniform: no
window is drawn less than UNIFORM_FRACTION as often as by uniform draws.
"""

import numpy as np
from numpy.typing import NDArray

from kernels.jit import kernel
from kernels.learning.replay_buffer import Batch, MarketData, ReplayBuffer, ValueTargetConfig, fill_window, value_target
from kernels.rng import uniform

UNIFORM_FRACTION = 0.5  # of the draws


@kernel
def bellman_errors(error: NDArray[np.float64], replay: ReplayBuffer, target_config: ValueTargetConfig) -> None:
    """Write into error [n, L] the Bellman error of each decision of the first n episodes, in ranges."""
    for slot in range(error.shape[0]):
        for step in range(error.shape[1]):
            held = replay.held[slot, step]
            target = value_target(replay, slot, step, held, target_config)
            error[slot, step] = abs(np.float64(replay.value[slot, step, held]) - target)


@kernel
def fill_cdf(cdf: NDArray[np.float64], error: NDArray[np.float64], cap: float, alpha: float) -> None:
    """Write into cdf [n] the cumulative probabilities of n decisions with errors error [n].

    A probability is UNIFORM_FRACTION / n + (1 - UNIFORM_FRACTION) p, where p is proportional to min(error, cap)^alpha.
    """
    n, total, cumulative = cdf.shape[0], 0.0, 0.0
    for i in range(n):
        total += min(error[i], cap) ** alpha
    for i in range(n):
        p = min(error[i], cap) ** alpha / total if total > 0 else 1.0 / n
        cumulative += UNIFORM_FRACTION / n + (1.0 - UNIFORM_FRACTION) * p
        cdf[i] = cumulative


@kernel
def sample_index(cdf: NDArray[np.float64], u: float) -> int:
    """The first i with cdf[i] > u; the last i where, by rounding, there is none."""
    low, high = 0, cdf.shape[0] - 1
    while low < high:
        middle = (low + high) // 2
        if cdf[middle] > u:
            high = middle
        else:
            low = middle + 1
    return low


@kernel
def apply_importance_weights(weight: NDArray[np.float32], probability: NDArray[np.float64], beta: float) -> None:
    """Multiply weight [B, K + 1] by probability[b]^-beta over the largest of these in the batch.  probability [B]."""
    least = probability[0]
    for b in range(probability.shape[0]):
        least = min(least, probability[b])
    for b in range(probability.shape[0]):
        w = (least / probability[b]) ** beta
        for k in range(weight.shape[1]):
            weight[b, k] *= w


@kernel
def sample_prioritized(
    batch: Batch,
    probability: NDArray[np.float64],
    cdf: NDArray[np.float64],
    replay: ReplayBuffer,
    market_data: MarketData,
    target_config: ValueTargetConfig,
    beta: float,
    seed: int,
    step: int,
) -> None:
    """Draw windows as `sample_uniformly` does, but with the probabilities of cdf [n], of the first n / L episodes.

    Writes the probability of each window into probability [B].  The weights are importance weights
    (n probability)^-beta over the largest of the batch (Schaul et al. 2016).  The draws are keyed by (seed, step).
    """
    L = replay.reward.shape[1]
    for b in range(probability.shape[0]):
        i = sample_index(cdf, uniform(seed, step, b))
        probability[b] = cdf[i] - (cdf[i - 1] if i > 0 else 0.0)
        fill_window(batch, b, replay, i // L, i % L, market_data, target_config, seed, step)
    apply_importance_weights(batch.weight, probability, beta)
