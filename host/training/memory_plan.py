"""What memory a training will take, before it starts; and how it is sized to a limit.

Only what changes no weight is sized: the cache of features, and the number of searches at once.  Arrays are counted as
allocated, with every element in use.  The other numbers are measured: anonymous memory on x86-64 Linux.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from host.config import Config, ConfigError
from host.training.chance_calibration import MAX_VALIDATION_BARS
from host.training.domain import MemoryRoom
from host.training.feature_store import new_row_arrays
from host.training.market_domain import loss_weights, new_shape, shares_searches
from host.training.market_replay import SEARCH_BATCH, SEARCH_PIECE, share_sizes
from host.training.trainer import NUM_BATCHES, new_network_shape
from kernels.learning.bar_search import new_searched_bars
from kernels.learning.replay_buffer import new_batch, new_replay_buffer
from kernels.market.features import new_feature_spec, num_features
from kernels.market.position import NUM_POSITION_FEATURES, NUM_POSITION_FIELDS, action_names
from kernels.search.config import ALGORITHMS, MARKET, WIDENING, new_search_config, nodes_needed
from kernels.search.market_search import EXPANSION_BATCH, MAX_CALL_ROWS, MAX_MARKET_DEPTH, new_market_tree
from kernels.search.networks import graph_widths
from kernels.search.progressive_widening import max_candidates, new_sampled_tree
from kernels.search.tree import new_tree
from models.loss import NUM_CHUNKS, new_workspace
from models.params import num_params

# Python, its packages with Bokeh, and the compiled kernels: the peak, in its report, of `train` on 1,200 bars with a
# network of four units is 173 to 176 MB, of which arrays are 3.  Without a report it is 130.
PROGRAM_MB = 175.0
BAR_BYTES = 8 * 8 + 28  # the columns of a bar, and the arrays with a number for each bar
BINDING_BYTES = 2_600  # of ONNX Runtime, for each number of rows that a network is bound for
LEARNER_VECTORS = 11  # as long as the parameters: weights, moments, gradients of chunks, temporary ones
NETWORK_VECTORS = 24  # in graphs and in the sessions that run them: untrained, newest and exported ones, in the report
MEMORY_SIZE = re.compile(r"(\d+|\d*\.\d+) *([MG])(?:i?B)?", re.IGNORECASE)
MB = 2**20


class MemoryPlan(NamedTuple):
    """Anonymous memory of the parts of a training, MB, with this room."""

    parts: dict[str, float]
    room: MemoryRoom

    @property
    def total_mb(self) -> float:
        """The sum of the parts."""
        return sum(self.parts.values())

    def lines(self) -> list[str]:
        """The plan as a table."""
        return [f"  {name:<9}{mb:8.1f} MB" for name, mb in {**self.parts, "sum": self.total_mb}.items()]


def parse_memory(text: str) -> float:
    """MB of a size such as 4GB or 800MB; ConfigError for another text."""
    match = MEMORY_SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"--memory: {text} is no size: write it as 4GB or 800MB")
    return float(match[1]) * (1024 if match[2] in "gG" else 1)


def plan_memory(config: Config, bars: list[int], threads: int, limit_mb: float, ray_mb: float = 0.0) -> MemoryPlan:
    """A training on instruments with so many bars in at most `limit_mb`; ConfigError with the least that would do.

    Ray takes `ray_mb` of it.
    """
    sizes = PartSizes(config, bars, threads, ray_mb)
    least = sizes.plan(MemoryRoom(0.0, threads))
    spare = limit_mb - least.total_mb
    if spare < 0:
        most = f"give --memory {int(least.total_mb) + 1}MB, or less of train.replay_capacity"
        raise ConfigError(f"--memory: {limit_mb:.0f}MB do not hold this training: {most}")
    at_once = min(sizes.num_searches, threads + int(spare / 2 / sizes.search_mb))
    spare -= max(0, at_once - threads) * sizes.search_mb
    cache_mb = min(sizes.feature_mb(0.0)) + spare / len(bars)  # no instrument gets more than its least and a share
    return sizes.plan(MemoryRoom(cache_mb * sizes.features_of_row, max(at_once, threads)))


class PartSizes:
    """The sizes from which a plan is made."""

    def __init__(self, config: Config, bars: list[int], threads: int, ray_mb: float = 0.0) -> None:
        t = config.train
        self.config, self.bars, self.threads, self.ray_mb = config, bars, threads, ray_mb
        train_bars = [int(n * t.train_fraction * (1 - t.validation_fraction)) for n in bars]
        self.validation_bars = [
            min(int(n * t.train_fraction * t.validation_fraction), MAX_VALIDATION_BARS) for n in bars
        ]
        self.replays = share_sizes(t, train_bars)
        self.actions = len(action_names(tuple(config.market.position_sizes)))
        self.features = num_features(new_feature_spec(config.features.J, config.features.Q))
        self.row_bytes = nbytes(new_row_arrays(1, self.features))
        self.features_of_row = 4 * self.features / self.row_bytes  # the part of a row that a cache counts
        self.shape = new_shape(config, self.features, self.actions)
        self.candidates = max_candidates(config.search.num_sampled_sizes) if self.shape.num_beta_params else 0
        self.shared = shares_searches(config)
        length = config.market.episode_length
        self.searched_bars = [min(r.capacity * (length + 1), n) for r, n in zip(self.replays, train_bars, strict=True)]
        episodes = max(r.capacity for r in self.replays)
        self.num_searches = -(-max(self.searched_bars) // SEARCH_PIECE) if self.shared else -(-episodes // t.num_envs)
        self.search_mb = self._search_bytes() / MB

    def feature_mb(self, cache_mb: float) -> list[float]:
        """Of the feature store of each instrument, with a cache of so many MB."""
        rows = [r.capacity * (self.config.market.episode_length + self.shape.context) for r in self.replays]
        cached = int(cache_mb * MB / (4 * self.features))
        return [self.row_bytes * min(max(n, cached), total) / MB for n, total in zip(rows, self.bars, strict=True)]

    def plan(self, room: MemoryRoom) -> MemoryPlan:
        """The plan with this room."""
        t, shape, extra = self.config.train, self.shape, {"num_candidates": self.candidates}
        weights, steps, chunk = loss_weights(self.config), t.num_unroll_steps, t.batch_size // NUM_CHUNKS
        length, positions = self.config.market.episode_length, self.actions - 1 if self.shared else 1
        replay = scaled(lambda n: new_replay_buffer(n, length, self.actions, self.candidates, positions), 1)
        batch = self.features, NUM_POSITION_FEATURES, self.actions, True, shape.context, self.candidates
        workspace = scaled(lambda n: new_workspace(shape, n, steps, weights, **extra), chunk)
        searched = sum(
            scaled(lambda n: new_searched_bars(np.arange(n), n, positions, self.actions), n) for n in self.searched_bars
        )
        planners = min(self.num_searches, room.max_searches) * self.search_mb
        validation = sum(self.validation_bars) * self.row_bytes * (shape.context + (shape.chance_encoder_width > 0))
        parts = {
            "bars": sum(self.bars) * BAR_BYTES / MB,
            "features": sum(self.feature_mb(room.cache_mb)) + validation / MB,
            "replay": sum(r.capacity for r in self.replays) * replay / MB,
            "batch": NUM_BATCHES * scaled(lambda n: new_batch(n, steps, *batch), t.batch_size) / MB,
            "learner": (LEARNER_VECTORS * 4 * num_params(shape) + min(self.threads, NUM_CHUNKS) * workspace) / MB,
            "searches": planners + searched * self.shared / MB,
            "networks": NETWORK_VECTORS * 4 * num_params(shape) / MB,
            "program": PROGRAM_MB,
            **({"ray": self.ray_mb} if self.ray_mb else {}),
        }
        return MemoryPlan(parts, room)

    def _search_bytes(self) -> float:
        """Of the searches of one batch: their trees, and the rows of their networks."""
        c, shape = self.config, self.shape
        roots, codes = SEARCH_BATCH if self.shared else c.train.num_envs, shape.codes
        steps = max(c.train.num_simulations, self.candidates)
        algorithm = ALGORITHMS.index(c.search.algorithm)
        config = new_search_config(
            num_simulations=steps, algorithm=algorithm, num_sampled_sizes=c.search.num_sampled_sizes
        )
        nodes, inner = nodes_needed(config, codes), 2 * shape.hidden
        widths = graph_widths(new_network_shape(shape), config, 0 if algorithm == MARKET else inner)
        rows = {"root": roots}
        if algorithm == MARKET:
            memoryless = c.market.reward == "pnl"
            tree: Any = new_market_tree(1, steps, self.actions, codes, shape.state, MAX_MARKET_DEPTH, memoryless)
            rows["market"] = codes * min(roots * EXPANSION_BATCH, max(1, MAX_CALL_ROWS // codes))
        else:
            rows |= {
                "afterstate": roots,
                "afterstate_value": roots,
                "dynamics": min(roots * codes, max(MAX_CALL_ROWS, codes)),
            }
            if algorithm == WIDENING:
                tree = new_sampled_tree(config, 1, codes, shape.state, inner)
            else:
                tree = new_tree(1, nodes, self.actions, codes, shape.state, NUM_POSITION_FIELDS, (steps, inner))
        bound = sum(4 * n * sum(widths[name]) + (n / 8 + 4) * BINDING_BYTES for name, n in rows.items())
        return roots * nbytes(tree) + bound


def scaled(new: Callable[[int], Any], n: int) -> int:
    """Bytes of `new(n)`, which are linear in n >= 1, without allocating them."""
    one, two = nbytes(new(1)), nbytes(new(2))
    return one + (n - 1) * (two - one)


def nbytes(value: Any) -> int:
    """Bytes of the arrays in a nest of tuples, lists and objects; of arrays with the same memory once."""
    found, todo = dict[int, int](), [value]
    while todo:
        item = todo.pop()
        if isinstance(item, np.ndarray):
            while isinstance(item.base, np.ndarray):
                item = item.base
            found[id(item)] = item.nbytes
        elif isinstance(item, tuple | list):
            todo += item
        elif hasattr(item, "__dict__"):
            todo += vars(item).values()
    return sum(found.values())
