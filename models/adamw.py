"""AdamW with decoupled weight decay (Loshchilov and Hutter 2019), and the schedule of its learning rate."""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.jit import kernel, reassociated

BETA_1, BETA_2, ADAM_EPSILON = 0.9, 0.999, 1e-8
MAX_GRADIENT_NORM = 5.0
WARMUP_STEPS = 20
RATE_POWER = 1.5


class AdamState(NamedTuple):
    """Running moments of the gradient of N parameters."""

    mean: NDArray[Any]  # [N]
    square: NDArray[Any]  # [N]


def new_adam_state(parameters: NDArray[Any]) -> AdamState:
    """Moments of 0 for parameters [N]."""
    return AdamState(np.zeros_like(parameters), np.zeros_like(parameters))


def learning_rate_at(step: int, peak_rate: float, decay_steps: float) -> float:
    """Linear warm-up, times (1 + step / decay_steps) ^ -RATE_POWER: no end to plan.

    The rates of all steps, however many, add up to less than 2 `decay_steps` steps at the peak.
    """
    return peak_rate * min(1.0, (step + 1) / WARMUP_STEPS) / math.pow(1.0 + step / decay_steps, RATE_POWER)


@reassociated
def reduce_gradients(gradient_parts: NDArray[Any], first: int, stop: int) -> float:
    """Add gradients [chunks, N] to that of chunk 0 in their order; the squared norm of columns first .. stop."""
    # views: a loop from 0 needs no check for negative indices, which would keep it from vectorising
    y = gradient_parts[0, first:stop]
    for chunk in range(1, gradient_parts.shape[0]):
        part = gradient_parts[chunk, first:stop]
        for i in range(y.shape[0]):
            y[i] += part[i]
    norm = 0.0
    for i in range(y.shape[0]):
        norm += np.float64(y[i]) * np.float64(y[i])
    return norm


@kernel
def adamw_update(
    parameters: NDArray[Any],
    adam: AdamState,
    gradient: NDArray[Any],
    weight_decay: NDArray[Any],
    step: int,
    learning_rate: float,
    scale: float,
) -> None:
    """One step with `scale` times the gradient [N]; `weight_decay` [N] is multiplied by the learning rate."""
    real = parameters.dtype.type  # float64 constants would halve the width of the vectors
    decay_1, decay_2, tiny = real(BETA_1), real(BETA_2), real(ADAM_EPSILON)
    fresh_1, fresh_2 = real(1.0 - BETA_1), real(1.0 - BETA_2)
    correct_1 = real(1.0 / (1.0 - BETA_1 ** (step + 1)))
    correct_2 = real(1.0 / (1.0 - BETA_2 ** (step + 1)))
    learning_rate, scale = real(learning_rate), real(scale)
    for i in range(parameters.shape[0]):
        g = scale * gradient[i]
        m = decay_1 * adam.mean[i] + fresh_1 * g
        v = decay_2 * adam.square[i] + fresh_2 * g * g
        adam.mean[i] = m
        adam.square[i] = v
        change = correct_1 * m / (np.sqrt(correct_2 * v) + tiny)
        parameters[i] -= learning_rate * (change + weight_decay[i] * parameters[i])
