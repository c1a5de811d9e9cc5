"""`Domain` and `Replay`: what a `Trainer` asks of that which it learns, be it a market or an environment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from host.artifact.networks import OnnxNetworks
from host.training.chance_calibration import ValidationPart
from host.training.feature_store import CACHE_MB
from host.training.search_pool import MAX_SEARCHES, SearchPool
from kernels.learning.bar_search import SearchedBars
from kernels.learning.replay_buffer import Batch, ReplayBuffer, ValueTargetConfig
from kernels.search.config import SearchConfig
from models.extension import LossWeights
from models.params import ModelShape, Params


class MemoryRoom(NamedTuple):
    """What may be smaller where memory is short; no weight depends on it."""

    cache_mb: float = CACHE_MB  # of the features of an instrument's bars
    max_searches: int = MAX_SEARCHES  # batches of searches at once


class Round(NamedTuple):
    """What an iteration did with one instrument, or with an environment."""

    slots: NDArray[np.int64]  # episodes that were played
    stale: NDArray[np.int64]  # episodes that get new targets
    searched: SearchedBars | None  # the searches of their bars; None where each decision has its own
    counts: Counter[str]  # rows of networks, and of bars the reused
    metrics: dict[str, float]  # of its codes and decisions


class Replay(Protocol):
    """Stored episodes: how they are played, searched again, and drawn from."""

    replay: ReplayBuffer

    @property
    def episodes(self) -> int:
        """Episodes played so far."""

    @property
    def num_stored_episodes(self) -> int:
        """Slots of the replay buffer that are in use, the first ones."""

    def num_decisions(self, slots: NDArray[np.int64]) -> int:
        """Decisions of the episodes `slots`."""

    def play_round(
        self,
        pool: SearchPool,
        networks: OnnxNetworks,
        p: Params,
        search: SearchConfig,
        iteration: int,
        td_lambda: float,
    ) -> Round:
        """Play the new episodes of an iteration with `networks`, whose parameters are `p`."""

    def reanalyze(
        self,
        pool: SearchPool,
        networks: OnnxNetworks,
        stale: NDArray[np.int64],
        searched: SearchedBars | None,
        search: SearchConfig,
        iteration: int,
        td_lambda: float,
    ) -> dict[str, int]:
        """Give the episodes `stale` new targets; counts."""

    def priority_cdf(self, target: ValueTargetConfig) -> NDArray[np.float64]:
        """Cumulative probabilities of the windows, or none for uniform draws."""

    def fill_batch(self, cdf: NDArray[np.float64], target: ValueTargetConfig, step: int) -> None:
        """Draw the windows of update `step`."""

    def assign_chance_codes(self, p: Params) -> None:
        """Encode what came by a chance encoder, if codes are learned."""

    def check_rewards(self, slots: NDArray[np.int64]) -> None:
        """Raise FloatingPointError for a reward of the episodes `slots` that is not finite."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays of a checkpoint; `restore_state` follows after they were filled."""

    def state(self) -> Any:
        """What a checkpoint holds beside the arrays, of plain values."""

    def restore_state(self, state: Any) -> None:
        """Continue from a checkpoint."""


class Domain(Protocol):
    """What is learnt: the sizes of its networks, its search, and where its episodes come from."""

    @property
    def num_decisions(self) -> int:
        """Decisions of a pass, to which the schedules of the learner are tied."""

    @property
    def shape(self) -> ModelShape:
        """The sizes of the networks."""

    @property
    def position_sizes(self) -> tuple[float, ...]:
        """Sizes of an entry; none without positions."""

    def loss_weights(self) -> LossWeights:
        """The weights of the losses; 0 of a head that the search does not read."""

    def search_config(self, num_simulations: int, c_scale: float, q_scale: float) -> SearchConfig:
        """A search of `num_simulations` simulations with the running scale of Q."""

    def new_replays(
        self, batches: list[Batch], shape: ModelShape, candidates: int, threads: int, room: MemoryRoom
    ) -> Sequence[Replay]:
        """Empty replay buffers; each fills its own windows of the batches."""

    def validation_parts(self, replays: Sequence[Any], context: int, threads: int) -> list[ValidationPart]:
        """Bars that bear out the chance prior, or none."""

    def metrics(self, played: list[tuple[Any, NDArray[np.int64]]]) -> dict[str, float]:
        """What the episodes of an iteration earned, of each replay those in its slots."""
