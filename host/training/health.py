"""Numerical health of a training: what is not finite, and figures that show where it goes wrong."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from host.machine import memory_mb
from kernels.learning.replay_buffer import ReplayBuffer
from models.learner import name_few
from models.params import ModelShape, not_finite

RATE_FACTOR = 0.5  # of the learning rate, after a fault
FAULT_REGION = 50  # iterations after a rollback in which another fault ends the training
DRIFT_EPISODES = 32  # whose targets are compared before and after their reanalysis
TINY_PROBABILITY = 1e-12


def check_finite(iteration: int, arrays: Mapping[str, NDArray[Any]], shape: ModelShape) -> None:
    """Raise FloatingPointError that names what of a snapshot is not finite: of the weights each parameter."""
    bad = list[str]()
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            bad += [name] if name.startswith("replay") else [f"{name} {part}" for part in not_finite(array, shape)]
    if bad:
        raise FloatingPointError(f"iteration {iteration}: not finite: {name_few(bad)}")


def decision_metrics(replay: ReplayBuffer, slots: NDArray[np.int64]) -> dict[str, float]:
    """Mean entropy of the improved policies of the episodes `slots`, nats; how well the value head knows its target.

    `explained_variance` is 1 - Var(target - value) / Var(target), as in Stable-Baselines3: 1 at best, 0 if a constant
    were as good.  The target is the lambda-return, the value that of the network that played.
    """
    L = replay.reward.shape[1]
    held = replay.held[slots][:, :L, None].astype(np.int64)
    policy = np.take_along_axis(replay.policy[slots], held[..., None], 2).astype(np.float64)
    target = np.take_along_axis(replay.search_value[slots], held, 2).astype(np.float64)
    error = target - np.take_along_axis(replay.value[slots][:, :L], held, 2)
    return {
        "policy_entropy": -float((policy * np.log(np.maximum(policy, TINY_PROBABILITY))).sum(axis=-1).mean()),
        "explained_variance": 1.0 - float(error.var() / target.var()) if target.var() > 0 else 0.0,
    }


def policy_drift(before: NDArray[np.float32], after: NDArray[np.float32]) -> float:
    """Mean Kullback-Leibler divergence of new policy targets [n, L, M, A] from those that they replace, nats."""
    p, q = (np.maximum(x.astype(np.float64), TINY_PROBABILITY) for x in (after, before))
    return float((p * np.log(p / q)).sum(axis=-1).mean()) if len(after) else 0.0


def speed_metrics(
    episodes: int, decisions: int, steps: int, times: tuple[float, float, float, float]
) -> dict[str, float]:
    """Seconds of the phases of an iteration, between `times`; what it did in them; and the memory in use."""
    collect_s, reanalyze_s, learn_s = (stop - begin for begin, stop in pairwise(times))
    return {
        "collect_s": collect_s,
        "reanalyze_s": reanalyze_s,
        "learn_s": learn_s,
        "episodes_per_minute": 60.0 * episodes / (times[-1] - times[0]),
        "decisions_per_s": decisions / collect_s,
        "steps_per_s": steps / learn_s,
        "rss_mb": memory_mb("VmRSS"),
    }
