"""`MarketReplay`: the bars of one instrument in a training, with their features and the replay buffer of its episodes.

Prices, costs, normaliser and chance codes are the instrument's own; features, rewards and positions have no unit, so
one agent learns from many instruments.  A session lies within one of them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from host.artifact.networks import OnnxNetworks
from host.config import SHARED_TREE, Config, ConfigError, TrainConfig
from host.data.parsing import format_utc
from host.training.chance_diagnostics import assign_codes, diagnose, new_learned_codes
from host.training.dataset import Dataset
from host.training.domain import Round
from host.training.feature_store import FeatureStore
from host.training.health import decision_metrics
from host.training.search_pool import (
    PLAY,
    REANALYZE,
    SEARCH_BARS,
    Rows,
    Searches,
    SearchPool,
    batches_of,
)
from kernels.learning.bar_search import SearchedBars, new_searched_bars, search_bars, store_searched_bars
from kernels.learning.prioritized import bellman_errors, fill_cdf, sample_prioritized
from kernels.learning.reanalyze import reanalyze_policies, reanalyze_values
from kernels.learning.replay_buffer import (
    EMPTY,
    Batch,
    ReplayBuffer,
    ValueTargetConfig,
    backward_lambda,
    mirror_half,
    sample_uniformly,
)
from kernels.learning.selfplay import play_episodes, play_searched_bars
from kernels.market.ledger import NUM_TRADE_FIELDS, new_accounts
from kernels.rng import uniform
from kernels.search.config import SearchConfig
from kernels.search.planner import STATS, Planner
from kernels.search.tree import REUSE_OFF, VALUE_REUSES
from models.params import Params
from models.shape import ModelShape

STREAM_STARTS, STREAM_NOISE, STREAM_SAMPLES, STREAM_REANALYZE = 1, 2, 3, 4
SEED_STRIDE = 2**33  # between the seeds of two instruments: beyond every seed that a person gives
SEARCH_BATCH, SEARCH_PIECE = 64, 1024  # bars that are searched together, and by one thread
VALUE_BATCH = 64  # positions that the target network evaluates in one call
PRIORITY_CAP_QUANTILE = 0.95  # Bellman errors above this quantile have one priority
GIVEN_CODES = ModelShape(0)  # reads one bar at a time and encodes none: a trainer elsewhere did


class ReplaySizes(NamedTuple):
    """What one instrument gets of the sizes of a training."""

    capacity: int  # episodes in its replay buffer
    episodes: int  # that an iteration plays
    batch_size: int  # windows in a batch of the learner


def share_sizes(config: TrainConfig, bars: list[int]) -> list[ReplaySizes]:
    """The sizes of instruments with so many training bars; each has its share, by default that of the bars."""
    shares = config.instrument_shares or [float(n) for n in bars]
    if len(shares) != len(bars):
        raise ConfigError(f"train.instrument_shares: {len(shares)} numbers, but the files have {len(bars)} instruments")
    total = config.num_envs * config.batches_per_iteration
    sizes = [split_by_shares(n, shares) for n in (config.replay_capacity, total, config.batch_size)]
    for i, (capacity, episodes, _) in enumerate(zip(*sizes, strict=True)):
        sizes[0][i] = max(capacity, episodes)
    return [ReplaySizes(*size) for size in zip(*sizes, strict=True)]


def split_by_shares(total: int, shares: list[float]) -> list[int]:
    """`total` in whole parts of at least 1, as near to `shares` as can be (largest remainders)."""
    if total < len(shares):
        raise ConfigError(f"{total} cannot be shared by {len(shares)} instruments: fewer files, or larger sizes")
    exact = np.asarray(shares) / np.sum(shares) * (total - len(shares))
    parts = np.floor(exact).astype(np.int64)
    parts[np.argsort(parts - exact, kind="stable")[: total - len(shares) - int(parts.sum())]] += 1
    return [int(n) + 1 for n in parts]


def draw_newer(u: NDArray[np.float64], n: int, half_life: float) -> NDArray[np.int64]:
    """Numbers below n at the quantiles u in [0, 1), of which n - 1 is the newest; `half_life` 0: all alike.

    The age is exponential, cut off at n (RiskMetrics 1996 weights returns so).
    """
    if half_life == 0:
        return (u * n).astype(np.int64)
    age = -half_life * np.log2(1.0 - u * (1.0 - 0.5 ** (n / half_life)))
    return np.asarray(n - 1 - np.minimum(age.astype(np.int64), n - 1), np.int64)


def stale_slots(replay: ReplayBuffer, config: TrainConfig, iteration: int) -> NDArray[np.int64]:
    """Slots whose targets are not fresh; none where `config` does not reanalyze."""
    is_stale = iteration - replay.searched_iteration > config.reanalyze_interval
    return np.flatnonzero(is_stale & (replay.start_bar != EMPTY)) if config.reanalyze else np.zeros(0, np.int64)


def capped_cdf(error: NDArray[np.float64], alpha: float, iteration: int) -> NDArray[np.float64]:
    """[n] cumulative probabilities by Bellman errors [n], the largest alike; FloatingPointError for one not finite."""
    cdf, cap = np.zeros(len(error)), float(np.quantile(error, PRIORITY_CAP_QUANTILE))
    if not math.isfinite(cap):
        raise FloatingPointError(f"iteration {iteration}: a value is not finite")
    fill_cdf(cdf, error, cap, alpha)
    return cdf


class MarketReplay:
    """One instrument in a training; `index` is its number, and keys its random draws."""

    def __init__(
        self,
        index: int,
        data: Dataset,
        config: Config,
        sizes: ReplaySizes,
        replay: ReplayBuffer,
        batches: list[Batch],
        shape: ModelShape,
        threads: int,
        cache_mb: float,
    ) -> None:
        if shape.chance_encoder_width:
            codes = new_learned_codes(data.market_spec.codes, len(data.bars.time), shape.kinds)
            data = data._replace(market_spec=data.market_spec._replace(codes=codes))
        self.index, self.data, self.config, self.sizes, self._shape = index, data, config, sizes, shape
        self.replay, self.batches = replay, batches
        self.seed = config.train.seed + SEED_STRIDE * index
        length, context = config.market.episode_length, shape.context
        self.feature_store = FeatureStore(data, sizes.capacity * (length + context), threads, cache_mb, context - 1)
        held = sizes.capacity if config.train.per_alpha > 0 else 0
        self.bellman_error = np.zeros((held, length))
        self.episodes = 0  # played so far

    @property
    def num_stored_episodes(self) -> int:
        """Episodes in the replay buffer."""
        return min(self.episodes, self.sizes.capacity)

    def num_decisions(self, slots: NDArray[np.int64]) -> int:
        """Decisions of the episodes `slots`."""
        return len(slots) * self.config.market.episode_length

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays of a checkpoint."""
        return self.replay._asdict()

    def state(self) -> int:
        """The episodes played so far: all that a checkpoint holds beside the arrays."""
        return self.episodes

    def restore_state(self, state: int) -> None:
        """Continue from a checkpoint, whose arrays are in place; the features are computed anew."""
        self.episodes = state
        self.feature_store.clear()
        starts = self.replay.start_bar[: self.num_stored_episodes]
        self.feature_store.acquire(starts, self.config.market.episode_length + 1)

    def play_round(
        self,
        pool: SearchPool,
        networks: OnnxNetworks,
        p: Params,
        search: SearchConfig,
        iteration: int,
        td_lambda: float,
    ) -> Round:
        """Play the new episodes of an iteration, after one search of each bar where a search serves every position."""
        searched, counts = None, Counter[str]()
        slots, stale = self.start_episodes(iteration), self.stale_episodes(iteration)
        self.assign_chance_codes(p)
        if self.replay.policy.shape[2] > 1:
            searched, counts = self.search_bars(pool, networks, np.concatenate([slots, stale]), search)
        counts["rows"] += self.collect(pool, networks, slots, searched, search, td_lambda)["rows"]
        metrics = self.diagnose_codes(networks, slots) | decision_metrics(self.replay, slots)
        return Round(slots, stale, searched, counts, metrics)

    def start_episodes(self, iteration: int) -> NDArray[np.int64]:
        """Draw the first bars of new episodes into the ring of the replay buffer; their slots."""
        L, replay, count = self.config.market.episode_length, self.replay, self.sizes.episodes
        slots = (self.episodes + np.arange(count)) % self.sizes.capacity
        self.release_features(slots)
        u = np.array([uniform(self.seed, STREAM_STARTS, self.episodes + i) for i in range(count)])
        newer = draw_newer(u, len(self.data.starts), self.config.train.bar_half_life)
        replay.start_bar[slots] = self.data.starts[newer]
        self.feature_store.acquire(replay.start_bar[slots], L + 1)
        replay.searched_iteration[slots] = replay.played_iteration[slots] = iteration
        return slots

    def stale_episodes(self, iteration: int) -> NDArray[np.int64]:
        """Slots of the episodes whose targets are not fresh."""
        return stale_slots(self.replay, self.config.train, iteration)

    def search_bars(
        self, pool: SearchPool, networks: OnnxNetworks, slots: NDArray[np.int64], search: SearchConfig
    ) -> tuple[SearchedBars, Counter[str]]:
        """Search every bar of the episodes `slots` once, and count; no number of threads changes what a search sees."""
        L, M, A = self.config.market.episode_length, *self.replay.policy.shape[2:]
        ts = np.unique(self.replay.start_bar[slots][:, None] + np.arange(L + 1))
        searched = new_searched_bars(ts, len(self.data.bars.time), M, A)
        searches = Searches(SEARCH_BARS, search, SEARCH_BATCH)
        counts = pool.search(self, searches, searched, networks, batches_of(ts, SEARCH_PIECE))
        counts["rows"] += (M - 1) * counts["searches"]  # of the root network, for the other positions
        counts["reused"] = len(slots) * (L + 1) - len(ts)
        return searched, Counter(counts)

    def collect(
        self,
        pool: SearchPool,
        networks: OnnxNetworks,
        slots: NDArray[np.int64],
        searched: SearchedBars | None,
        search: SearchConfig,
        td_lambda: float,
    ) -> dict[str, int]:
        """Play the episodes `slots`; the counts of their searches, none where their bars are `searched` already."""
        t, batches, counts = self.config.train, batches_of(slots, self.config.train.num_envs), dict.fromkeys(STATS, 0)
        if searched is None:
            searches = Searches(PLAY, search, t.num_envs, self.episodes)
            counts = pool.search(self, searches, self.replay, networks, batches)
        else:
            for first, batch in batches:
                account, trade = new_accounts(len(batch)), np.zeros(NUM_TRADE_FIELDS)
                play = self.replay, account, trade, searched, search, batch, self.feature_store.market_data
                play_searched_bars(*play, self._num_random(batch), self.seed + STREAM_NOISE, self.episodes + first)
            store_searched_bars(self.replay, slots, searched, search)
        self._store_returns(slots, search, td_lambda)
        self.episodes += len(slots)
        return counts

    def _store_returns(self, slots: NDArray[np.int64], search: SearchConfig, td_lambda: float) -> None:
        """Turn the search values of the episodes `slots` into lambda-returns.

        Where the search computes rewards, the returns are of expected rewards, by the mean moves of the codes.  Where a
        network learns rewards, they are of those that came: a move may be larger than the mean of its code.
        """
        if not search.exact_rewards:
            self.replay.expected_reward[slots, :, 0] = self.replay.reward[slots]
        backward_lambda(self.replay, slots, search.discount, td_lambda)

    def run_batch(self, searches: Searches, rows: Rows, planner: Planner, first: int, batch: NDArray[np.int64]) -> int:
        """Search a batch of bars, or of the episodes in the slots `batch`, into `rows`; the status of the networks."""
        market_data = self.feature_store.market_data
        if isinstance(rows, SearchedBars):
            return search_bars(rows, planner, market_data, batch)
        if searches.kind == REANALYZE:
            seed = self.seed + STREAM_REANALYZE + searches.iteration
            return reanalyze_policies(rows, planner, batch, market_data, seed)
        account, trade = new_accounts(len(batch)), np.zeros(NUM_TRADE_FIELDS)
        play = rows, account, trade, planner, batch, market_data, self._num_random(batch)
        return play_episodes(*play, self.seed + STREAM_NOISE, searches.episodes + first)

    def _num_random(self, slots: NDArray[np.int64]) -> int:
        """Episodes of a batch that act at random: as large a part of a smaller batch."""
        return math.ceil(self.config.train.random_episodes * len(slots) / self.config.train.num_envs)

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
        """Give the episodes `stale` new targets, and stored positions new values where a target reads them; counts."""
        t, counts = self.config.train, dict.fromkeys(STATS, 0)
        if searched is None:
            mode = self.config.search.value_reuse
            search = search._replace(value_reuse=REUSE_OFF if mode == SHARED_TREE else VALUE_REUSES.index(mode))
            searches = Searches(REANALYZE, search, t.num_envs, iteration=iteration)
            counts = pool.search(self, searches, self.replay, networks, batches_of(stale, t.num_envs))
        else:
            store_searched_bars(self.replay, stale, searched, search)
        self._store_returns(stale, search, td_lambda)
        self.replay.searched_iteration[stale] = iteration
        if searched is None and (t.search_value_weight < 1 or t.per_alpha > 0):
            pool.run(lambda slots: self._revalue_episodes(networks, slots), np.arange(self.num_stored_episodes))
        return counts

    def _revalue_episodes(self, networks: OnnxNetworks, slots: NDArray[np.int64]) -> int:
        root = networks.root(VALUE_BATCH)
        column = root.y.shape[1] - 1 - networks.shape.codes
        for slot in slots:
            status = reanalyze_values(self.replay, root, slot, self.feature_store.market_data, column)
            if status != 0:
                return status
        return 0

    def priority_cdf(self, target: ValueTargetConfig) -> NDArray[np.float64]:
        """[windows] cumulative probabilities by the Bellman errors of the stored values; [0] for uniform draws."""
        error = self.bellman_error[: self.num_stored_episodes]
        if error.size == 0:
            return np.zeros(0)
        bellman_errors(error, self.replay, target)
        return capped_cdf(error.ravel(), self.config.train.per_alpha, target.iteration)

    def fill_batch(self, cdf: NDArray[np.float64], target: ValueTargetConfig, step: int) -> None:
        """Draw the windows of this instrument in the batch of update `step`; updates take turns with the batches."""
        t, seed, market_data = self.config.train, self.seed + STREAM_SAMPLES, self.feature_store.market_data
        batch = self.batches[step % len(self.batches)]
        if t.per_alpha > 0:
            probability = np.zeros(self.sizes.batch_size)
            sample_prioritized(batch, probability, cdf, self.replay, market_data, target, t.per_beta, seed, step)
        else:
            sample_uniformly(batch, self.replay, self.num_stored_episodes, market_data, target, seed, step)
        if t.mirror_augmentation:
            mirror_half(batch, market_data, seed, step)

    def decision_bars(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """The bars at whose closes the episodes `slots` decide, each bar once."""
        return np.unique(self.replay.start_bar[slots][:, None] + np.arange(self.config.market.episode_length))

    def assign_chance_codes(self, p: Params) -> None:
        """Encode the bars of all stored episodes by a chance encoder of their news, if codes are learned."""
        slots = np.flatnonzero(self.replay.start_bar != EMPTY)
        if self._shape.chance_encoder_width and len(slots) > 0:
            codes = self.data.market_spec.codes
            assign_codes(codes, p, self._shape, self.feature_store, self.data.bars, self.decision_bars(slots))

    def diagnose_codes(self, networks: OnnxNetworks, slots: NDArray[np.int64]) -> dict[str, float]:
        """Metrics of the chance codes on the bars of the episodes `slots`, and of the chance prior of `networks`."""
        codes, ts = self.data.market_spec.codes, self.decision_bars(slots)
        return diagnose(networks, codes, self.feature_store, self.data.bars, ts)

    def check_rewards(self, slots: NDArray[np.int64]) -> None:
        """Raise FloatingPointError with the bar of the first reward of the episodes `slots` that is not finite."""
        if not (is_finite := np.isfinite(self.replay.reward[slots])).all():
            i, k = np.argwhere(~is_finite)[0]
            close = format_utc(self.data.bars.time[self.replay.start_bar[slots[i]] + k + 1])
            raise FloatingPointError(f"the reward of the bar that closed at {close} is not finite")

    @contextmanager
    def features_of(self, starts: NDArray[np.int64], bars: int) -> Iterator[None]:
        """Keep the features of `bars` bars from each start for a while."""
        self.feature_store.acquire(starts, bars)
        try:
            yield
        finally:
            self.feature_store.release(starts, bars)

    def release_features(self, slots: NDArray[np.int64]) -> None:
        """Release the features of those of the episodes `slots` that are stored."""
        starts = self.replay.start_bar[slots]
        self.feature_store.release(starts[starts != EMPTY], self.config.market.episode_length + 1)
