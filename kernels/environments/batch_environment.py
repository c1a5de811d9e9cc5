"""`BatchEnvironment`: an environment as three kernels over B rows of its state.

A state is a row of float64, whose columns the environment defines.  All that is random is drawn by kernels.rng from a
seed and a count that the row holds, so an episode is a function of its seed and of its actions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

RUNNING, TERMINATED, TRUNCATED = range(3)  # how an episode stands after a step; the last was cut by a limit of time


class BatchEnvironment(NamedTuple):
    """Sizes, scales and kernels of an environment; kernels write into their first arguments."""

    actions: int  # A
    features: int  # F of an observation
    state: int  # columns of a row
    is_stochastic: bool  # whether it wants chance codes
    reward_limit: float  # largest |reward|
    value_limit: float  # largest |discounted return|
    reset: Callable[[Any, int, int], None]  # (state [B, columns], b, seed): begin an episode in row b
    step: Callable[[Any, Any, Any, Any], None]  # (state, reward [B], ended [B], action [B]): one step of every row
    observe: Callable[[Any, Any, Any], None]  # (observation [B, F], legal [B, A], state)
