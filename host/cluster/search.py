"""`ClusterSearchPool`: the searches of a training on the workers of a cluster, with the bytes of one machine.

The driver keeps the replay buffer and learns.  Weights are put once a phase and passed by reference, bars once a run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from host.artifact.networks import OnnxNetworks
from host.cluster.cluster import Cluster
from host.cluster.worker import READ, RemoteMarket, ReplayShape, Result, SearchWorker, Task, Weights, gather, scatter
from host.cluster.workers import Workers
from host.data.bar_cache import bars_key, bars_matrix
from host.training.market_replay import MarketReplay
from host.training.search_pool import Batch, Rows, SearchedMarket, Searches, SearchPool
from kernels.learning.bar_search import SearchedBars
from kernels.search.planner import STATS


class ClusterSearchPool(SearchPool):
    """A SearchPool whose batches run on a cluster."""

    def __init__(
        self, cluster: Cluster, markets: Sequence[MarketReplay], threads: int, kind: type[SearchWorker] = SearchWorker
    ) -> None:
        super().__init__(threads)
        self._ray = cluster.ray
        self._networks: OnnxNetworks | None = None
        self._weights: tuple[str, Any] = "", None  # key of the networks that were put last, and their reference
        self._codes = [market.data.market_spec.codes for market in markets]
        (_, L, M, A), J = markets[0].replay.policy.shape, markets[0].replay.candidate_size.shape[2]
        remote = list[RemoteMarket]()
        for data in (market.data for market in markets):
            bars = self._ray.put(bars_matrix(data.bars))
            remote.append(RemoteMarket(bars_key(data.bars), bars, data.extra_features, data.market_spec))
        shared = self._ray.put(markets[0].config), ReplayShape(L, A, J, M), self._ray.put(remote)
        self.workers = Workers(cluster, kind, *shared)

    def search(
        self, market: SearchedMarket, searches: Searches, rows: Rows, networks: OnnxNetworks, batches: list[Batch]
    ) -> dict[str, int]:
        """Run every batch of `searches` on some worker, with results in `rows`; the counts of STATS."""
        (key, weights), codes = self._put_weights(networks), self._ray.put(self._codes[market.index])
        totals = np.zeros(len(STATS), np.int64)

        def submit(actor: Any, number: int) -> Any:
            first, batch = batches[number]
            task = Task(market.index, searches, first, batch, gather(rows, READ[searches.kind], batch))
            return actor.run.remote(weights, codes, task)

        def keep(number: int, result: Result) -> None:
            if result.weights != key:
                raise RuntimeError(f"a worker used the weights {result.weights}, asked for were {key}")
            batch = batches[number][1]
            scatter(rows, result.written, rows.row_of_bar[batch] if isinstance(rows, SearchedBars) else batch)
            totals[:] += result.stats

        self.workers.map(len(batches), submit, keep)
        return dict(zip(STATS, totals.tolist(), strict=True))

    def _put_weights(self, networks: OnnxNetworks) -> tuple[str, Any]:
        """Key and reference of networks, which are put if they are not those of the last call."""
        if networks is not self._networks:
            digest = hashlib.sha256()
            for name, graph in sorted(networks.graphs.items()):
                digest.update(name.encode() + graph)
            key = digest.hexdigest()[:16]
            weights = self._ray.put(Weights(key, networks.graphs, networks.shape))
            self._networks, self._weights = networks, (key, weights)
        return self._weights
