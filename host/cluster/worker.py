"""What runs on the nodes of a cluster: `SearchWorker` for the searches of a training, `JobWorker` for whole trainings.

Ray makes actors of these classes.  A call of `identity` or `progress` is answered while another call works.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from host.artifact.networks import MarketSpec, OnnxNetworks
from host.cluster.cluster import Identity, identity, import_ray
from host.config import Config
from host.data.bar_cache import load_bars, shared_file
from host.machine import memory_mb
from host.processes import MEMORY_FIELDS, Row
from host.training.dataset import Dataset
from host.training.feature_store import CACHE_MB
from host.training.market_replay import GIVEN_CODES, MarketReplay, ReplaySizes
from host.training.search_pool import PLAY, REANALYZE, SEARCH_BARS, Rows, Searches
from kernels.learning.bar_search import SearchedBars, new_searched_bars
from kernels.learning.replay_buffer import new_replay_buffer
from kernels.market.chance import ChanceCodes
from kernels.ort import check_status
from kernels.search.networks import NetworkShape

Segment = NDArray[Any]  # a structured array: of each bar or episode of a batch the fields of a kind of work
SEARCHED = "policy", "value", "search_value", "expected_reward", "candidate_size", "candidate_policy"
READ = {  # by kind of work
    SEARCH_BARS: (),
    PLAY: ("start_bar",),
    REANALYZE: ("start_bar", "position", "action", "reward"),
}
WRITTEN = {
    SEARCH_BARS: ("value", "logits", "q", "next_value"),
    PLAY: ("position", "action", "reward", *SEARCHED),
    REANALYZE: SEARCHED,
}


class Weights(NamedTuple):
    """The networks of a phase, put once and passed by reference."""

    key: str  # hash of the graphs
    graphs: dict[str, bytes]
    shape: NetworkShape


class RemoteMarket(NamedTuple):
    """A market without its bars, which reach a node once: the first worker there fetches them."""

    bars_key: str  # hash of the bars
    bars: Any  # reference of their matrix
    extra: NDArray[np.float32]
    spec: MarketSpec


class ReplayShape(NamedTuple):
    """What the sizes of a replay buffer follow from, beside its number of episodes."""

    length: int
    actions: int
    candidates: int
    positions: int


class Task(NamedTuple):
    """A batch of searches on a market; a pure function of it, of the weights and of what it reads."""

    market: int
    searches: Searches
    first: int
    batch: NDArray[np.int64]  # bars; of episodes only their number counts
    read: Segment

    def features(self, length: int) -> tuple[NDArray[np.int64], int]:
        """The bars whose features are read: so many from each first bar, of episodes of `length` decisions."""
        if self.searches.kind == SEARCH_BARS:
            return self.batch, 1
        return self.read["start_bar"], length + 1


class Result(NamedTuple):
    """What a task gives."""

    weights: str  # key of those that were used
    stats: NDArray[np.int64]
    written: Segment


def gather(rows: Any, names: tuple[str, ...], index: Any) -> Segment:
    """The rows `index` of some fields of a tuple of arrays, in one array."""
    arrays = {name: getattr(rows, name) for name in names}
    segment = np.empty(len(index), [(name, a.dtype, a.shape[1:]) for name, a in arrays.items()])
    for name, array in arrays.items():
        segment[name] = array[index]
    return segment


def scatter(rows: Any, segment: Segment, index: Any) -> None:
    """Write the fields of a segment back to the rows `index` of a tuple of arrays."""
    for name in segment.dtype.names or ():
        getattr(rows, name)[index] = segment[name]


class SearchWorker:
    """Searches of the markets of one training, on one thread."""

    def __init__(self, config: Config, replay: ReplayShape, markets: list[RemoteMarket]) -> None:
        ray, t = import_ray(), config.train
        self._replay, self._key = replay, ""  # key of the weights of `_networks`
        self._markets = list[MarketReplay]()
        for index, market in enumerate(markets):
            # what Ray passes is read-only, for which no kernel is compiled: copies are not
            extra, spec = copy.deepcopy((market.extra, market.spec))
            bars = load_bars(shared_file(market.bars_key, partial(ray.get, market.bars)))
            data = Dataset(bars, extra, 0, 0, 0, spec, np.zeros(0, np.int64), {}, 0)
            sizes, rows = ReplaySizes(t.num_envs, t.num_envs, 0), new_replay_buffer(0, *replay)
            self._markets.append(MarketReplay(index, data, config, sizes, rows, [], GIVEN_CODES, 1, CACHE_MB))

    def identity(self) -> Identity:
        """What the bytes of this worker's results depend on."""
        return identity()

    def run(self, weights: Weights, codes: ChanceCodes, task: Task) -> Result:
        """The result of a task; RuntimeError where a network fails."""
        market = self._markets[task.market]
        if weights.key != self._key:
            self._networks, self._key = OnnxNetworks(weights.graphs, weights.shape), weights.key
        for name, array in market.data.market_spec.codes._asdict().items():
            array[...] = getattr(codes, name)
        with market.features_of(*task.features(self._replay.length)):
            return self._search(market, task)

    def _search(self, market: MarketReplay, task: Task) -> Result:
        searches, n = task.searches, len(task.batch)
        planner = self._networks.planner(min(n, searches.roots), searches.config)
        index, rows = np.arange(n), self._new_rows(market, task)
        scatter(rows, task.read, index)
        batch = task.batch.copy() if isinstance(rows, SearchedBars) else index
        check_status(market.run_batch(searches, rows, planner, task.first, batch))
        return Result(self._key, planner.stats, gather(rows, WRITTEN[searches.kind], index))

    def _new_rows(self, market: MarketReplay, task: Task) -> Rows:
        shape, T = self._replay, len(market.data.bars.time)
        if task.searches.kind == SEARCH_BARS:
            return new_searched_bars(task.batch, T, shape.positions, shape.actions)
        return new_replay_buffer(len(task.batch), *shape)


class JobWorker:
    """A job of its own, a training for instance, in a process that does nothing else."""

    def __init__(self) -> None:
        self._share = 0.0

    def identity(self) -> Identity:
        """What the bytes of this worker's results depend on."""
        return identity()

    def run(self, fn: Callable[..., Row], job: Any, *given: Any) -> Row:
        """The result of `fn(job, report, *given)`."""
        return fn(job, self._report, *given)

    def progress(self) -> tuple[float, dict[str, float]]:
        """The share of the job that is done, and the memory of this process in MB, by name."""
        return self._share, {name: memory_mb(field) for name, field in MEMORY_FIELDS.items()}

    def _report(self, share: float) -> None:
        self._share = share
