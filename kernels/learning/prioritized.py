"""Priority: windows are drawn the more often, the more their value is wrong, and weigh the less for it.

The Bellman error of a decision is |value by the network - its target|, new sessions included (EfficientZero V2).  Most
of it is the market's noise: errors are winsorised, and half the draws stay uniform, so no weight exceeds 1 / UNIFORM.
"""

import numpy as np
from numpy.typing import NDArray

from kernels.jit import kernel
from kernels.learning.replay_buffer import Batch, Replay, Tape, ValueTarget, fill_window, value_target
from kernels.rng import uniform

UNIFORM = 0.5  # share of the draws


@kernel
def bellman_errors(error: NDArray[np.float64], replay: Replay, rule: ValueTarget) -> None:
    """error [n, L]: how far the stored values of the first n sessions are from their targets, R."""
    for slot in range(error.shape[0]):
        for step in range(error.shape[1]):
            target = value_target(replay, slot, step, rule)
            error[slot, step] = abs(np.float64(replay.value[slot, step]) - target)


@kernel
def fill_table(table: NDArray[np.float64], error: NDArray[np.float64], cap: float, exponent: float) -> None:
    """table [N]: cumulative probabilities UNIFORM / N + (1 - UNIFORM) min(error, cap)^exponent / their sum."""
    N, total, reached = table.shape[0], 0.0, 0.0
    for i in range(N):
        total += min(error[i], cap) ** exponent
    for i in range(N):
        share = min(error[i], cap) ** exponent / total if total > 0 else 1.0 / N
        reached += UNIFORM / N + (1.0 - UNIFORM) * share
        table[i] = reached


@kernel
def pick(table: NDArray[np.float64], u: float) -> int:
    """The first i with table[i] > u; the last one where rounding leaves none."""
    low, high = 0, table.shape[0] - 1
    while low < high:
        middle = (low + high) // 2
        if table[middle] > u:
            high = middle
        else:
            low = middle + 1
    return low


@kernel
def weigh(weight: NDArray[np.float32], chance: NDArray[np.float64], correction: float) -> None:
    """Multiply weight [B, K + 1] by chance[b]^-correction over the largest of these."""
    least = chance[0]
    for b in range(chance.shape[0]):
        least = min(least, chance[b])
    for b in range(chance.shape[0]):
        w = (least / chance[b]) ** correction
        for k in range(weight.shape[1]):
            weight[b, k] *= w


@kernel
def sample_by_priority(
    batch: Batch,
    chance: NDArray[np.float64],
    table: NDArray[np.float64],
    replay: Replay,
    tape: Tape,
    rule: ValueTarget,
    correction: float,
    seed: int,
    step: int,
) -> None:
    """Draw windows as `sample` does, but by the table [N] of the first N / L sessions.

    Their probabilities become chance [B].  The draws are keyed by (seed, step), and
    weigh (N chance)^-correction over the largest of the batch.
    """
    L = replay.reward.shape[1]
    for b in range(chance.shape[0]):
        i = pick(table, uniform(seed, step, b))
        chance[b] = table[i] - (table[i - 1] if i > 0 else 0.0)
        fill_window(batch, b, replay, i // L, i % L, tape, rule)
    weigh(batch.weight, chance, correction)
