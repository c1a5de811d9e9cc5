"""`SearchPool`: many searches at once, on all threads of a training."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from host.artifact.networks import OnnxNetworks
from host.stop import raise_if_signalled
from kernels.ort import check_status
from kernels.search.config import SearchConfig
from kernels.search.planner import STATS, Planner

MAX_SEARCHES = 2**20  # batches at once
Batch = tuple[int, NDArray[np.int64]]  # number of its first element, and what one call of a search takes


class SearchPool:
    """Threads that search batches; what a batch sees does not depend on their number."""

    def __init__(self, threads: int, max_searches: int = MAX_SEARCHES) -> None:
        self.threads, self.max_searches = threads, max_searches
        self._executor = ThreadPoolExecutor(threads)

    def search(
        self,
        run_batch: Callable[[Planner, int, NDArray[np.int64]], int],
        networks: OnnxNetworks,
        batches: list[Batch],
        roots: int,
        config: SearchConfig,
    ) -> dict[str, int]:
        """Call run_batch(planner of at most `roots` roots, first, batch) for each batch; the counts of STATS.

        Never more than `max_searches` batches have their memory at once.
        """
        totals = np.zeros(len(STATS), np.int64)
        for first in range(0, len(batches), self.max_searches):
            piece = batches[first : first + self.max_searches]
            planners = [networks.planner(min(len(batch), roots), config) for _, batch in piece]
            jobs = [self._executor.submit(run_batch, p, i, b) for p, (i, b) in zip(planners, piece, strict=True)]
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
