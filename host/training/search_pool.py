"""`SearchPool`: many searches at once, on all threads of a training."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from host.artifact.networks import OnnxNetworks
from host.stop import raise_if_signalled
from kernels.learning.bar_search import SearchedBars
from kernels.learning.replay_buffer import ReplayBuffer
from kernels.ort import check_status
from kernels.search.config import SearchConfig
from kernels.search.planner import STATS, Planner

MAX_SEARCHES = 2**20  # batches at once
Batch = tuple[int, NDArray[np.int64]]  # number of its first element, and what one call of a search takes
SEARCH_BARS, PLAY, REANALYZE = "search bars", "play", "reanalyze"  # kinds of work
Rows = ReplayBuffer | SearchedBars  # where the results of a batch go


class Searches(NamedTuple):
    """The searches of a phase; a batch of them is a pure function of this, the networks, the bars and its rows."""

    kind: str
    config: SearchConfig
    roots: int  # of a planner, at most
    episodes: int = 0  # of the market, played before this phase
    iteration: int = 0


class SearchedMarket(Protocol):
    """The bars of one instrument, and how a batch of decisions on them is searched."""

    index: int

    def run_batch(self, searches: Searches, rows: Rows, planner: Planner, first: int, batch: NDArray[np.int64]) -> int:
        """Search a batch, whose first element has the number `first`, into `rows`; its status."""


class SearchPool:
    """Threads that search batches; what a batch sees does not depend on their number."""

    def __init__(self, threads: int, max_searches: int = MAX_SEARCHES) -> None:
        self.threads, self.max_searches = threads, max_searches
        self._executor = ThreadPoolExecutor(threads)

    def search(
        self,
        market: SearchedMarket,
        searches: Searches,
        rows: Rows,
        networks: OnnxNetworks,
        batches: list[Batch],
    ) -> dict[str, int]:
        """Run every batch of `searches` on a market, with results in `rows`; the counts of STATS.

        Never more than `max_searches` batches have their memory at once.
        """
        totals = np.zeros(len(STATS), np.int64)
        for first in range(0, len(batches), self.max_searches):
            piece = batches[first : first + self.max_searches]
            planners = [networks.planner(min(len(batch), searches.roots), searches.config) for _, batch in piece]
            jobs = [
                self._executor.submit(market.run_batch, searches, rows, planner, *batch)
                for planner, batch in zip(planners, piece, strict=True)
            ]
            try:
                for job in jobs:
                    check_status(job.result())
            finally:
                for job in jobs:
                    job.cancel()  # after a fault or a signal only the jobs that have begun are waited for
            raise_if_signalled()
            totals += sum((p.stats for p in planners), np.zeros(len(STATS), np.int64))
        return dict(zip(STATS, totals.tolist(), strict=True))

    def run(self, run_part: Callable[[NDArray[np.int64]], int], indices: NDArray[np.int64]) -> None:
        """Call run_part(part) for a part of `indices` on each thread, and check its status."""
        check_status(max(self._executor.map(run_part, np.array_split(indices, self.threads))))


def batches_of(indices: NDArray[np.int64], size: int) -> list[Batch]:
    """`indices` in batches of at most `size`, each with the number of its first element."""
    return [(i, indices[i : i + size]) for i in range(0, len(indices), size)]
