"""`Trainer`: iterations of collect, reanalyze and learn; each phase runs on all threads, and no two at once."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from host.artifact.networks import OnnxNetworks, hypothesis_positions
from host.config import SHARED_TREE, Config
from host.console import ProgressCallback
from host.stop import raise_if_signalled
from host.training.chance_calibration import ChanceCalibration, ValidationPart, scale_chance_prior
from host.training.chance_diagnostics import assign_codes, diagnose, new_learned_codes
from host.training.dataset import Dataset
from host.training.feature_store import FeatureStore
from kernels.learning.bar_search import SearchedBars, new_searched_bars, search_bars, store_searched_bars
from kernels.learning.prioritized import bellman_errors, fill_cdf, sample_prioritized
from kernels.learning.reanalyze import reanalyze_policies, reanalyze_values
from kernels.learning.replay_buffer import (
    EMPTY,
    ValueTargetConfig,
    backward_lambda,
    mirror_half,
    new_batch,
    new_replay_buffer,
    sample_uniformly,
)
from kernels.learning.selfplay import play_episodes, play_searched_bars
from kernels.market.ledger import NUM_TRADE_FIELDS, new_accounts
from kernels.market.position import HOLD, NUM_POSITION_FEATURES, action_names
from kernels.ort import check_status
from kernels.rng import randint
from kernels.search.config import ALGORITHMS, MARKET, WIDENING, SearchConfig, new_search_config
from kernels.search.networks import NetworkShape
from kernels.search.planner import STATS, Planner
from kernels.search.progressive_widening import NUM_BETA_PARAMS, max_candidates
from kernels.search.tree import REUSE_OFF, VALUE_REUSES
from models.export import export
from models.learner import Learner
from models.loss import LossWeights
from models.params import ModelShape, as_views
from models.registry import needs, serves_market_search

STREAM_STARTS, STREAM_NOISE, STREAM_SAMPLES, STREAM_REANALYZE = 1, 2, 3, 4
SEARCH_BATCH, SEARCH_PIECE = 64, 1024  # bars that are searched together, and by one thread
VALUE_BATCH = 64  # positions that the target network evaluates in one call
Q_SCALE_EMA = 0.2  # step of the running scale of returns, an iteration
MIN_Q_SCALE = 0.25  # mean bar ranges
PRIORITY_CAP_QUANTILE = 0.95  # Bellman errors above this quantile have one priority
MAX_VALUE_PER_BAR = 0.2  # mean bar ranges: no market pays more for long; a value is a discounted sum of bars
MAX_DISCOUNT = 0.999  # a larger discount would need bins without end
PROJECTION_FACTOR = 2  # width of the consistency loss's layers in latents


class Trainer:
    """The state of a run: a pure function of configuration, data and number of iterations, on any number of threads."""

    def __init__(self, data: Dataset, config: Config, threads: int) -> None:
        t = config.train
        if t.chance_codes == "learned":
            codes = new_learned_codes(data.market_spec.codes, len(data.bars.time))
            data = data._replace(market_spec=data.market_spec._replace(codes=codes))
        self.data, self.config = data, config
        actions = len(action_names(data.market_spec.market.sizes))
        shape = new_shape(config, len(data.market_spec.normaliser.scale), actions)
        candidates = max_candidates(config.search.num_sampled_sizes) if shape.num_beta_params else 0
        window = shape.attention_window if shape.num_layers else 1
        context = shape.context
        self.network_shape = NetworkShape(
            shape.features, NUM_POSITION_FEATURES, shape.state, actions, shape.codes, window, context
        )
        self.shares_searches = shares_searches(config)
        decay_steps = t.lr_decay_passes * data.train_stop / (t.batch_size * (t.num_unroll_steps + 1))
        rates = t.seed, t.learning_rate, t.weight_decay, decay_steps
        self.learner = Learner(
            shape, t.batch_size, t.num_unroll_steps, *rates, threads, loss_weights(config), candidates
        )
        # A moving average of the weights bootstraps, plays and is exported.
        self.target_params = self.learner.params.copy()
        self._target_views = as_views(self.target_params, shape)
        positions = actions - 1 if self.shares_searches else 1
        self.replay = new_replay_buffer(
            t.replay_capacity, config.market.episode_length, self.network_shape.actions, candidates, positions
        )
        rows = t.replay_capacity * (config.market.episode_length + context)
        self.feature_store = FeatureStore(data, rows, threads, bars_before=context - 1)
        self._validation_part = ValidationPart(data, context, threads)
        self.calibration: ChanceCalibration | None = None
        sizes = self.network_shape.features, NUM_POSITION_FEATURES, self.network_shape.actions
        needed = needs(self.learner.extensions)
        parts = {"with_next_features": "next_features" in needed, "with_moves": "move" in needed}
        self.batch = new_batch(
            t.batch_size, t.num_unroll_steps, *sizes, context=context, num_candidates=candidates, **parts
        )
        held = t.replay_capacity if t.per_alpha > 0 else 0
        self.bellman_error = np.zeros((held, config.market.episode_length))
        self.value_target = ValueTargetConfig(
            t.td_steps, config.search.discount, t.search_value_weight, t.off_policy_correction
        )
        self.iteration, self.episodes, self.q_scale = 0, 0, 1.0
        self._pool = ThreadPoolExecutor(threads)

    @property
    def num_stored_episodes(self) -> int:
        """Episodes in the replay buffer."""
        return min(self.episodes, self.config.train.replay_capacity)

    def run_iteration(self) -> dict[str, Any]:
        """Run the three phases once; the metrics of the iteration."""
        with threadpool_limits(1, "blas"):
            begin = time.perf_counter()
            networks = self.export_networks()
            slots, stale = self.start_episodes(), self.stale_episodes()
            searched, shared = None, Counter[str]()
            if self.shares_searches:
                search = self.search_config(self.config.train.num_simulations)
                searched, shared = self.search_bars(networks, np.concatenate([slots, stale]), search)
            played = self.collect(networks, slots, searched)
            codes, ts = self.data.market_spec.codes, self.decision_bars(self.replay.start_bar[slots])
            code_metrics = diagnose(networks, codes, self.feature_store, self.data.bars, ts)
            collected = time.perf_counter()
            again = self.reanalyze(networks, stale, searched)
            reanalyzed = time.perf_counter()
            losses = self.learn()
            learned = time.perf_counter()
        self.iteration += 1
        rewards, actions = self.replay.reward[slots], self.replay.action[slots]
        is_held = np.abs(self.replay.position[slots][:, 1:, 0]) > 0
        return {
            "iteration": self.iteration,
            "episodes": self.episodes,
            "updates": self.learner.step,
            "reward_per_bar": float(rewards.mean(dtype=np.float64)),
            "exposure": float(is_held.mean()),
            "entries": int(np.count_nonzero((actions > HOLD) & (actions < self.network_shape.actions - 1))),
            "q_scale": self.q_scale,
            "collect_s": collected - begin,
            "reanalyze_s": reanalyzed - collected,
            "learn_s": learned - reanalyzed,
            "reanalyzed": len(stale) * self.config.market.episode_length,
            "skipped": (self.num_stored_episodes - len(stale)) * self.config.market.episode_length,
            "reused": again["reused"] + shared["reused"],
            "search_rows": played["rows"] + again["rows"] + shared["rows"],
            **(self.calibration._asdict() if self.calibration else {}),
            **code_metrics,
            **losses,
        }

    def export_graphs(self) -> dict[str, bytes]:
        """The target networks as ONNX graphs by name."""
        flat, shape = self.target_params, self.learner.shape
        flat = scale_chance_prior(flat, shape, self.calibration) if self.calibration else flat
        return export(flat, shape, *self.position_hypotheses())

    def position_hypotheses(self) -> tuple[int, NDArray[np.float32] | None]:
        """What the network of the market search is exported for; S = 0 where there can be none."""
        if not serves_market_search(self.learner.shape):
            return 0, None
        return hypothesis_positions(self.network_shape, self.acting_search_config(), self.data.market_spec.market.sizes)

    def search_config(self, num_simulations: int) -> SearchConfig:
        """A search of `num_simulations` simulations with the running scale of Q."""
        s = self.config.search
        return new_search_config(
            num_simulations=num_simulations,
            max_considered_actions=s.max_considered_actions,
            discount=s.discount,
            c_visit=s.c_visit,
            c_scale=s.c_scale,
            q_scale=self.q_scale,
            reverse=self.config.market.reverse,
            mae_penalty=self.data.market_spec.market.mae_penalty,
            exact_rewards=not self.config.train.value_prefix,
            algorithm=ALGORITHMS.index(s.algorithm),
            num_sampled_sizes=s.num_sampled_sizes,
        )

    def start_episodes(self) -> NDArray[np.int64]:
        """Draw the first bars of new episodes into the ring of the replay buffer; their slots."""
        t, L = self.config.train, self.config.market.episode_length
        count = t.num_envs * t.batches_per_iteration
        slots = (self.episodes + np.arange(count)) % t.replay_capacity
        for slot in slots[self.replay.start_bar[slots] >= 0]:
            self.feature_store.release(int(self.replay.start_bar[slot]), L + 1)
        draws = [randint(len(self.data.starts), t.seed, STREAM_STARTS, self.episodes + i) for i in range(count)]
        self.replay.start_bar[slots] = self.data.starts[draws]
        self.feature_store.acquire(self.replay.start_bar[slots], L + 1)
        self.assign_chance_codes()
        self.replay.searched_iteration[slots] = self.replay.played_iteration[slots] = self.iteration
        return slots

    def stale_episodes(self) -> NDArray[np.int64]:
        """Slots of the episodes whose targets are not fresh."""
        t = self.config.train
        is_stale = self.iteration - self.replay.searched_iteration > t.reanalyze_interval
        return np.flatnonzero(is_stale & (self.replay.start_bar != EMPTY)) if t.reanalyze else np.zeros(0, np.int64)

    def search_bars(
        self, networks: OnnxNetworks, slots: NDArray[np.int64], search: SearchConfig
    ) -> tuple[SearchedBars, Counter[str]]:
        """Search every bar of the episodes `slots` once, and count; no number of threads changes what a search sees."""
        L, M, A = self.config.market.episode_length, self.replay.policy.shape[2], self.network_shape.actions
        ts = np.unique(self.replay.start_bar[slots][:, None] + np.arange(L + 1))
        searched = new_searched_bars(ts, len(self.data.bars.time), M, A)

        def search_piece(planner: Planner, _: int, piece: NDArray[np.int64]) -> int:
            return search_bars(searched, planner, self.feature_store.market_data, piece)

        pieces = [(i, ts[i : i + SEARCH_PIECE]) for i in range(0, len(ts), SEARCH_PIECE)]
        counts = self._run_searches(search_piece, networks, pieces, SEARCH_BATCH, search)
        counts["rows"] += (M - 1) * counts["searches"]  # of the root network, for the other positions
        counts["reused"] = len(slots) * (L + 1) - len(ts)
        return searched, Counter(counts)

    def collect(
        self, networks: OnnxNetworks, slots: NDArray[np.int64], searched: SearchedBars | None
    ) -> dict[str, int]:
        """Play the episodes `slots`; the counts of their searches, none where their bars are `searched` already."""
        t, batches, counts = self.config.train, self._batches(slots), dict.fromkeys(STATS, 0)
        search, market_data = self.search_config(t.num_simulations), self.feature_store.market_data
        if searched is None:
            counts = self._run_searches(self._play_batch, networks, batches, t.num_envs, search)
        else:
            for first, batch in batches:
                account, trade, seed = new_accounts(len(batch)), np.zeros(NUM_TRADE_FIELDS), t.seed + STREAM_NOISE
                play = self.replay, account, trade, searched, search, batch, market_data, t.random_episodes
                play_searched_bars(*play, seed, self.episodes + first)
            store_searched_bars(self.replay, slots, searched, market_data.market, search)
        backward_lambda(self.replay, slots, self.config.search.discount, t.td_lambda)
        self.episodes += len(slots)
        self._update_q_scale(slots)
        return counts

    def decision_bars(self, starts: NDArray[np.int64]) -> NDArray[np.int64]:
        """The bars at whose closes the episodes from `starts` decide, each bar once."""
        return np.unique(starts[:, None] + np.arange(self.config.market.episode_length))

    def assign_chance_codes(self) -> None:
        """Encode the bars of all stored episodes by the target network, if codes are learned."""
        starts = self.replay.start_bar[self.replay.start_bar != EMPTY]
        if self.config.train.chance_codes == "learned" and len(starts) > 0:
            bars, codes = self.data.bars, self.data.market_spec.codes
            assign_codes(codes, self._target_views, self.feature_store, bars, self.decision_bars(starts))

    def _play_batch(self, planner: Planner, first: int, slots: NDArray[np.int64]) -> int:
        account, trade = new_accounts(len(slots)), np.zeros(NUM_TRADE_FIELDS)
        market_data, num_random = self.feature_store.market_data, self.config.train.random_episodes
        seed, episode = self.config.train.seed + STREAM_NOISE, self.episodes + first
        return play_episodes(self.replay, account, trade, planner, slots, market_data, num_random, seed, episode)

    def reanalyze(
        self, networks: OnnxNetworks, stale: NDArray[np.int64], searched: SearchedBars | None
    ) -> dict[str, int]:
        """Give the episodes `stale` new targets, and stored positions new values where a target reads them; counts."""
        t, counts = self.config.train, dict.fromkeys(STATS, 0)
        search = self.search_config(t.num_simulations)
        if searched is None:
            mode = self.config.search.value_reuse
            reuse = REUSE_OFF if mode == SHARED_TREE else VALUE_REUSES.index(mode)
            search = search._replace(value_reuse=reuse)
            counts = self._run_searches(self._reanalyze_batch, networks, self._batches(stale), t.num_envs, search)
        else:
            store_searched_bars(self.replay, stale, searched, self.data.market_spec.market, search)
        backward_lambda(self.replay, stale, self.config.search.discount, t.td_lambda)
        self.replay.searched_iteration[stale] = self.iteration
        if searched is None and (t.search_value_weight < 1 or t.per_alpha > 0):
            chunks = np.array_split(np.arange(self.num_stored_episodes), self._pool._max_workers)
            check_status(max(self._pool.map(lambda chunk: self._revalue_episodes(networks, chunk), chunks)))
        return counts

    def _reanalyze_batch(self, planner: Planner, _: int, slots: NDArray[np.int64]) -> int:
        seed = self.config.train.seed + STREAM_REANALYZE + self.iteration
        return reanalyze_policies(self.replay, planner, slots, self.feature_store.market_data, seed)

    def _revalue_episodes(self, networks: OnnxNetworks, slots: NDArray[np.int64]) -> int:
        root = networks.root(VALUE_BATCH)
        column = root.y.shape[1] - 1 - self.network_shape.codes
        for slot in slots:
            status = reanalyze_values(self.replay, root, slot, self.feature_store.market_data, column)
            if status != 0:
                return status
        return 0

    def learn(self) -> dict[str, float]:
        """Make the updates of one iteration; the mean of each loss by name."""
        t, totals = self.config.train, dict[str, float]()
        market_data, target = self.feature_store.market_data, self.value_target._replace(iteration=self.iteration)
        cdf, probability, seed = self.priority_cdf(target), np.zeros(t.batch_size), t.seed + STREAM_SAMPLES
        for _ in range(t.updates_per_iteration):
            raise_if_signalled()
            batch, replay, step = self.batch, self.replay, self.learner.step
            if t.per_alpha > 0:
                sample_prioritized(batch, probability, cdf, replay, market_data, target, t.per_beta, seed, step)
            else:
                sample_uniformly(batch, replay, self.num_stored_episodes, market_data, target, seed, step)
            if t.mirror_augmentation:
                mirror_half(batch, market_data, seed, step)
            for name, loss in self.learner.learn(self.batch, self._target_views).items():
                totals[name] = totals.get(name, 0.0) + loss / t.updates_per_iteration
            self.target_params += np.float32(t.target_ema) * (self.learner.params - self.target_params)
        return totals | self.learner.reward_errors(self.batch)

    def priority_cdf(self, target: ValueTargetConfig) -> NDArray[np.float64]:
        """[windows] cumulative probabilities by the Bellman errors of the stored values; [0] for uniform draws."""
        error = self.bellman_error[: self.num_stored_episodes]
        cdf = np.zeros(error.size)
        if error.size > 0:
            bellman_errors(error, self.replay, target)
            cap = float(np.quantile(error, PRIORITY_CAP_QUANTILE))
            if not math.isfinite(cap):
                raise FloatingPointError(f"iteration {self.iteration}: a value is not finite")
            fill_cdf(cdf, error.ravel(), cap, self.config.train.per_alpha)
        return cdf

    def acting_search_config(self) -> SearchConfig:
        """The search of the trained agent."""
        return self.search_config(self.config.search.num_simulations)

    def snapshot(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Arrays and plain values from which `restore` continues the run to the bit."""
        arrays = {
            "params": self.learner.params,
            "target": self.target_params,
            **{f"adam_{name}": array for name, array in self.learner.adam._asdict().items()},
            **{f"replay_{name}": array for name, array in self.replay._asdict().items()},
        }
        state = {
            "iteration": self.iteration,
            "episodes": self.episodes,
            "step": self.learner.step,
            "q_scale": self.q_scale,
        }
        return arrays, state

    def restore(self, arrays: dict[str, NDArray[Any]], state: dict[str, Any]) -> None:
        """Continue from a snapshot; the features of its episodes are computed again."""
        for name, array in self.snapshot()[0].items():
            array[...] = arrays[name]
        self.iteration, self.episodes = state["iteration"], state["episodes"]
        self.learner.step, self.q_scale = state["step"], state["q_scale"]
        self.feature_store.acquire(
            self.replay.start_bar[: self.num_stored_episodes], self.config.market.episode_length + 1
        )

    def export_networks(self) -> OnnxNetworks:
        """The target networks, calibrated and ready to act; writes the mean moves of their codes into `data`."""
        self.assign_chance_codes()
        root = {"root": export(self.target_params, self.learner.shape, 0)["root"]}
        self.calibration = self._validation_part.calibrate(OnnxNetworks(root, self.network_shape))
        return OnnxNetworks(self.export_graphs(), self.network_shape)

    def _batches(self, slots: NDArray[np.int64]) -> list[tuple[int, NDArray[np.int64]]]:
        """The episodes `slots` in batches, each with the number of its first one."""
        size = self.config.train.num_envs
        return [(i, slots[i : i + size]) for i in range(0, len(slots), size)]

    def _run_searches(
        self,
        run_batch: Callable[[Planner, int, NDArray[np.int64]], int],
        networks: OnnxNetworks,
        batches: list[tuple[int, NDArray[np.int64]]],
        roots: int,
        search: SearchConfig,
    ) -> dict[str, int]:
        """Call run_batch(planner of at most `roots` roots, first, batch) for each batch; the counts of STATS."""
        planners = [networks.planner(min(len(batch), roots), search) for _, batch in batches]
        jobs = [self._pool.submit(run_batch, p, i, batch) for p, (i, batch) in zip(planners, batches, strict=True)]
        try:
            for job in jobs:
                check_status(job.result())
        finally:
            for job in jobs:
                job.cancel()  # after a fault or a signal only the jobs that have begun are waited for
        raise_if_signalled()
        totals = sum((p.stats for p in planners), np.zeros(len(STATS), np.int64))
        return dict(zip(STATS, totals.tolist(), strict=True))

    def _update_q_scale(self, slots: NDArray[np.int64]) -> None:
        """Move the scale of Q towards the 5 to 95 % range of the n-step rewards of the episodes in `slots`."""
        sums = np.cumsum(self.replay.reward[slots], axis=1, dtype=np.float64)
        if not np.isfinite(sums).all():
            raise FloatingPointError(f"iteration {self.iteration}: a reward is not finite: is there a NaN in the bars?")
        n = self.config.train.td_steps
        low, high = np.quantile(sums[:, n:] - sums[:, :-n], (0.05, 0.95))
        new_scale = max(float(high - low), MIN_Q_SCALE)
        self.q_scale += (1.0 if self.iteration == 0 else Q_SCALE_EMA) * (new_scale - self.q_scale)


def new_shape(config: Config, features: int, actions: int) -> ModelShape:
    """The sizes of the networks of a configuration."""
    n = config.network
    blocks = dict[str, int]()
    if n.dynamics == "transformer":
        blocks = {
            "num_layers": n.num_layers,
            "num_heads": n.num_heads,
            "attention_window": n.attention_window,
            "context": n.context,
        }
    return ModelShape(
        features=features,
        latent=n.latent,
        hidden=n.hidden,
        actions=actions,
        codes=n.num_chance_codes,
        value_limit=MAX_VALUE_PER_BAR / (1.0 - min(config.search.discount, MAX_DISCOUNT)),
        projector_width=PROJECTION_FACTOR * n.latent if config.train.consistency_weight > 0 else 0,
        chance_encoder_width=n.hidden if config.train.chance_codes == "learned" else 0,
        num_beta_params=NUM_BETA_PARAMS if config.search.algorithm == ALGORITHMS[WIDENING] else 0,
        value_prefix_width=n.latent if config.train.value_prefix else 0,
        **blocks,
    )


def shares_searches(config: Config) -> bool:
    """Whether one search of a bar serves every position: see kernels.learning.bar_search."""
    s = config.search
    return s.algorithm == ALGORITHMS[MARKET] and s.value_reuse == SHARED_TREE and config.market.reward == "pnl"


def loss_weights(config: Config) -> LossWeights:
    """The weights of the losses; 0 of a head that the search does not read: it would cost time and shape the latent."""
    given = {name: getattr(config.train, f"{name}_weight", None) for name in LossWeights._fields}
    if config.search.algorithm == ALGORITHMS[MARKET]:
        given |= {"reward": 0.0, "afterstate_value": 0.0}
    elif config.market.reward == "pnl" and not config.train.value_prefix:
        given |= {"reward": 0.0}
    return LossWeights(**{name: weight for name, weight in given.items() if weight is not None})


def run_first_iteration(
    trainer: Trainer, max_episodes: int | None, on_iteration: Callable[[dict[str, Any]], None]
) -> None:
    """Run the first iteration of this process outside of any time budget, because it may compile kernels."""
    if max_episodes is None or trainer.episodes < max_episodes:
        on_iteration(trainer.run_iteration())


def train_for(
    trainer: Trainer,
    minutes: float | None,
    max_episodes: int | None,
    on_iteration: Callable[[dict[str, Any]], None],
    report: ProgressCallback,
) -> None:
    """Run whole iterations until either budget is used up; the clock decides only when to stop."""
    begin, last = time.perf_counter(), 0.0  # seconds of the last iteration
    while True:
        fractions = [0.0]
        if minutes is not None:
            fractions.append((time.perf_counter() - begin + last) / (60 * minutes))
        if max_episodes is not None:
            fractions.append(trainer.episodes / max_episodes)
        progress = f"iteration {trainer.iteration}, {trainer.episodes} episodes, {trainer.learner.step} updates"
        report(min(max(fractions), 1.0), progress)
        if max(fractions) >= 1.0:
            return
        started = time.perf_counter()
        on_iteration(trainer.run_iteration())
        last = time.perf_counter() - started
