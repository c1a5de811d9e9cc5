"""Priority: windows are drawn the more often, the more their value is wrong, and weigh the less for it.

The Bellman error of a decision is |value by the network - its target|, new sessions included (EfficientZero V2).  Most
of it is the market's noise: errors are winsorised, and half the draws stay uniform, so no weight exceeds 1 / UNIFORM.
"""

import numpy as np
from numpy.typing import NDArray

from kernels.jit import kernel
from kernels.learning.replay_buffer import Batch, MarketData, ReplayBuffer, ValueTargetConfig, fill_window, value_target
from kernels.rng import uniform

UNIFORM_FRACTION = 0.5  # share of the draws


@kernel
def bellman_errors(error: NDArray[np.float64], replay: ReplayBuffer, target_config: ValueTargetConfig) -> None:
    """error [n, L]: how far the stored values of the first n sessions are from their targets, R."""
    for slot in range(error.shape[0]):
        for step in range(error.shape[1]):
            target = value_target(replay, slot, step, target_config)
            error[slot, step] = abs(np.float64(replay.value[slot, step]) - target)


@kernel
def fill_cdf(cdf: NDArray[np.float64], error: NDArray[np.float64], cap: float, alpha: float) -> None:
    """table [N]: cumulative probabilities UNIFORM / N + (1 - UNIFORM) min(error, cap)^exponent / their sum."""
    N, total, reached = cdf.shape[0], 0.0, 0.0
    for i in range(N):
        total += min(error[i], cap) ** alpha
    for i in range(N):
        share = min(error[i], cap) ** alpha / total if total > 0 else 1.0 / N
        reached += UNIFORM_FRACTION / N + (1.0 - UNIFORM_FRACTION) * share
        cdf[i] = reached


@kernel
def sample_index(cdf: NDArray[np.float64], u: float) -> int:
    """The first i with table[i] > u; the last one where rounding leaves none."""
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
    """Multiply weight [B, K + 1] by chance[b]^-correction over the largest of these."""
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
    """Draw windows as `sample` does, but by the table [N] of the first N / L sessions.

    Their probabilities become chance [B].  The draws are keyed by (seed, step), and
    weigh (N chance)^-correction over the largest of the batch.
    """
    L = replay.reward.shape[1]
    for b in range(probability.shape[0]):
        i = sample_index(cdf, uniform(seed, step, b))
        probability[b] = cdf[i] - (cdf[i - 1] if i > 0 else 0.0)
        fill_window(batch, b, replay, i // L, i % L, market_data, target_config)
    apply_importance_weights(batch.weight, probability, beta)
