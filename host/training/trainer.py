"""`Trainer`: iterations of collect, reanalyze and learn; each phase runs on all threads, and no two at once."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from host.artifact.networks import OnnxNetworks, hypothesis_positions
from host.config import SHARED_TREE, Config
from host.console import ProgressCallback, log
from host.stop import raise_if_signalled
from host.training.chance_calibration import ChanceCalibration, ValidationPart, calibrate_parts, scale_chance_prior
from host.training.chance_diagnostics import news_columns
from host.training.checkpoint import Checkpoint
from host.training.dataset import Dataset
from host.training.health import (
    DRIFT_EPISODES,
    FAULT_REGION,
    RATE_FACTOR,
    check_finite,
    decision_metrics,
    policy_drift,
    speed_metrics,
)
from host.training.market_replay import MarketReplay, MemoryRoom, share_sizes
from host.training.search_pool import SearchPool
from kernels.learning.bar_search import SearchedBars
from kernels.learning.replay_buffer import Batch, ValueTargetConfig, new_batch, new_replay_buffer, slice_batch
from kernels.market.position import HOLD, NUM_POSITION_FEATURES, action_names
from kernels.search.config import ALGORITHMS, MARKET, WIDENING, SearchConfig, new_search_config
from kernels.search.networks import NetworkShape
from kernels.search.progressive_widening import NUM_BETA_PARAMS, max_candidates
from models.export import export
from models.learner import Learner
from models.loss import LossWeights
from models.params import ModelShape, as_views
from models.registry import needs, serves_market_search

Q_SCALE_EMA = 0.2  # step of the running scale of returns, an iteration
MIN_Q_SCALE = 0.25  # mean bar ranges
MAX_VALUE_PER_BAR = 0.2  # mean bar ranges: no market pays more for long; a value is a discounted sum of bars
MAX_DISCOUNT = 0.999  # a larger discount would need bins without end
PROJECTION_FACTOR = 2  # width of the consistency loss's layers in latents
DEFAULT_ROOM = MemoryRoom()
DECAY_STEPS = 40.0  # however few the bars, the rate falls no sooner
LAMBDA_STEPS = 8_000  # however few the bars, values take so many updates to come near the truth
FREEZE_STEPS = 8_000  # however few the bars, the latents take so many updates
NUM_BATCHES = 3  # one to learn from, and two to draw the next windows into


class Round(NamedTuple):
    """What an iteration did with one instrument."""

    slots: NDArray[np.int64]  # episodes that were played
    stale: NDArray[np.int64]  # episodes that get new targets
    searched: SearchedBars | None  # the searches of their bars; None where each decision has its own
    counts: Counter[str]  # rows of networks, and of bars the reused
    metrics: dict[str, float]  # of its codes and decisions


class Trainer:
    """The state of a run: a pure function of configuration, data and number of iterations, on any number of threads.

    It learns from the bars of one instrument, or of several.
    """

    def __init__(
        self, datasets: Sequence[Dataset], config: Config, threads: int, room: MemoryRoom = DEFAULT_ROOM
    ) -> None:
        t, first = config.train, datasets[0]
        self.config, self.pool = (
            config,
            SearchPool(threads, room.max_searches),
        )  # or another one, before the first search
        actions = len(action_names(first.market_spec.market.sizes))
        num_features = len(first.market_spec.normaliser.scale)
        shape = new_shape(config, num_features, actions)
        if shape.chance_encoder_width:
            shape = shape._replace(news=news_columns(first.market_spec.features, num_features))
        candidates = max_candidates(config.search.num_sampled_sizes) if shape.num_beta_params else 0
        self.network_shape, context = new_network_shape(shape), shape.context
        bars = [data.train_stop for data in datasets]
        self.steps_of_pass = sum(bars) / (t.batch_size * (t.num_unroll_steps + 1))  # updates
        decay_steps = max(t.lr_decay_passes * self.steps_of_pass, DECAY_STEPS)
        freeze_steps = max(t.freeze_passes * self.steps_of_pass, FREEZE_STEPS)
        rates = t.seed, t.learning_rate, t.weight_decay, decay_steps
        learned = loss_weights(config), candidates, freeze_steps
        self.learner = Learner(shape, t.batch_size, t.num_unroll_steps, *rates, threads, *learned)
        # A moving average of the weights bootstraps, plays and is exported.
        self.target_params = self.learner.params.copy()
        self._target_views = as_views(self.target_params, shape)
        needed = needs(self.learner.extensions)
        parts = {"with_next_features": "next_features" in needed, "with_moves": "move" in needed}
        widths = shape.features, NUM_POSITION_FEATURES, actions
        self.batches = [
            new_batch(t.batch_size, t.num_unroll_steps, *widths, context=context, num_candidates=candidates, **parts)
            for _ in range(NUM_BATCHES)
        ]
        self.shares_searches = shares_searches(config)
        positions = actions - 1 if self.shares_searches else 1
        self.markets, row = list[MarketReplay](), 0
        for data, sizes in zip(datasets, share_sizes(t, bars), strict=True):
            replay = new_replay_buffer(sizes.capacity, config.market.episode_length, actions, candidates, positions)
            rows = [slice_batch(batch, row, row + sizes.batch_size) for batch in self.batches]
            parts_of_market = data, config, sizes, replay, rows, context, threads, room.cache_mb
            self.markets.append(MarketReplay(len(self.markets), *parts_of_market))
            row += sizes.batch_size
        self._validation_parts = [ValidationPart(market.data, context, threads) for market in self.markets]
        self.calibration: ChanceCalibration | None = None
        self.value_target = ValueTargetConfig(
            t.td_steps, config.search.discount, t.search_value_weight, t.off_policy_correction
        )
        self.iteration, self.q_scale = 0, 1.0
        self.rolled_back: int | None = None  # iteration of the last rollback
        self.load_checkpoint: Callable[[], Checkpoint | None] | None = None  # of a run; without, a fault is not mended

    @property
    def episodes(self) -> int:
        """Episodes played so far."""
        return sum(market.episodes for market in self.markets)

    @property
    def td_lambda(self) -> float:
        """Lambda of the returns of this iteration.

        It begins high, for values far from the truth, and falls to half: later the values are nearer to the truth than
        one path of bars is.
        """
        t = self.config.train
        half_steps = max(t.td_lambda_passes * self.steps_of_pass, LAMBDA_STEPS)
        return t.td_lambda * (0.5 + 0.5 / (1.0 + (self.learner.step / half_steps) ** 2))

    def run_iteration(self) -> dict[str, Any]:
        """Run an iteration; its metrics.  What is not finite is undone once, at half the learning rate."""
        event = dict[str, str]()
        while True:
            try:
                return self._run_phases() | event
            except FloatingPointError as fault:
                event = {"event": self._roll_back(fault)}

    def _roll_back(self, fault: FloatingPointError) -> str:
        """Go back to the last checkpoint, or to the beginning, and halve the learning rate; what happened.

        Raises FloatingPointError without a run, and within FAULT_REGION iterations after the last rollback.
        """
        if self.load_checkpoint is None:
            raise fault
        if self.rolled_back is not None and self.iteration - self.rolled_back < FAULT_REGION:
            rate = RATE_FACTOR * self.learner.rate_factor * self.config.train.learning_rate
            again = f"again after iteration {self.rolled_back} was repeated with a smaller step"
            raise FloatingPointError(f"{fault}, {again}: begin a new run with --set train.learning_rate={rate:g}")
        checkpoint = self.load_checkpoint()
        if checkpoint is None:
            fresh = Trainer([market.data for market in self.markets], self.config, self.pool.threads)
            self.restore(*fresh.snapshot())
        else:
            self.restore(checkpoint.arrays, checkpoint.state)
        self.learner.rate_factor *= RATE_FACTOR
        self.rolled_back = self.iteration
        event = f"{fault}; back to iteration {self.iteration}, learning rate times {self.learner.rate_factor:g}"
        log(event)
        return event

    def _run_phases(self) -> dict[str, Any]:
        """Collect, reanalyze and learn; the metrics.  FloatingPointError where a number is not finite."""
        shape = self.learner.shape
        check_finite(self.iteration, self._weights(), shape)
        with threadpool_limits(1, "blas"):
            begin = time.perf_counter()
            networks = self.export_networks()
            rounds = [self._collect(market, networks) for market in self.markets]
            self._update_q_scale(rounds)
            collected = time.perf_counter()
            search = self.search_config(self.config.train.num_simulations)
            for market, r in zip(self.markets, rounds, strict=True):
                compared = r.stale[:DRIFT_EPISODES]
                before = market.replay.policy[compared]
                r.counts.update(
                    market.reanalyze(self.pool, networks, r.stale, r.searched, search, self.iteration, self.td_lambda)
                )
                r.metrics["policy_target_drift"] = policy_drift(before, market.replay.policy[compared])
            check_finite(self.iteration, self.snapshot()[0], shape)
            reanalyzed = time.perf_counter()
            losses = self.learn()
            check_finite(self.iteration, self._weights(), shape)
            learned = time.perf_counter()
        self.iteration += 1
        counts, length = sum((r.counts for r in rounds), Counter[str]()), self.config.market.episode_length
        played, updates = sum(len(r.slots) for r in rounds), self.config.train.updates_per_iteration
        stored, num_stale = sum(m.num_stored_episodes for m in self.markets), sum(len(r.stale) for r in rounds)
        return {
            "iteration": self.iteration,
            "episodes": self.episodes,
            "updates": self.learner.step,
            **self._trading_metrics(rounds),
            "q_scale": self.q_scale,
            **speed_metrics(played, length, updates, (begin, collected, reanalyzed, learned)),
            "reanalyzed": num_stale * length,
            "skipped": (stored - num_stale) * length,
            "reused": counts["reused"],
            "search_rows": counts["rows"],
            **(self.calibration.metrics() if self.calibration else {}),
            **mean_metrics([r.metrics for r in rounds]),
            **losses,
        }

    def _collect(self, market: MarketReplay, networks: OnnxNetworks) -> Round:
        """Play new episodes of a market, after one search of each bar where a search serves every position."""
        search, searched, counts = self.search_config(self.config.train.num_simulations), None, Counter[str]()
        slots, stale = market.start_episodes(self.iteration), market.stale_episodes(self.iteration)
        market.assign_chance_codes(self._target_views, self.learner.shape.news)
        if self.shares_searches:
            searched, counts = market.search_bars(self.pool, networks, np.concatenate([slots, stale]), search)
        counts["rows"] += market.collect(self.pool, networks, slots, searched, search, self.td_lambda)["rows"]
        metrics = market.diagnose_codes(networks, slots) | decision_metrics(market.replay, slots)
        return Round(slots, stale, searched, counts, metrics)

    def _trading_metrics(self, rounds: list[Round]) -> dict[str, float]:
        """Reward, exposure and entries of the episodes of this iteration."""
        played = [(market.replay, r.slots) for market, r in zip(self.markets, rounds, strict=True)]
        rewards = np.concatenate([replay.reward[slots].ravel() for replay, slots in played])
        actions = np.concatenate([replay.action[slots].ravel() for replay, slots in played])
        side = np.concatenate([replay.position[slots][:, 1:, 0].ravel() for replay, slots in played])
        return {
            "reward_per_bar": float(rewards.mean(dtype=np.float64)),
            "exposure": float((np.abs(side) > 0).mean()),
            "entries": int(np.count_nonzero((actions > HOLD) & (actions < self.network_shape.actions - 1))),
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
        sizes = self.markets[0].data.market_spec.market.sizes
        return hypothesis_positions(self.network_shape, self.acting_search_config(), sizes)

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
            position_adjustment=self.config.market.position_adjustment,
            mae_penalty=self.markets[0].data.market_spec.market.mae_penalty,
            exact_rewards=not self.config.train.value_prefix,
            algorithm=ALGORITHMS.index(s.algorithm),
            num_sampled_sizes=s.num_sampled_sizes,
        )

    @property
    def batch(self) -> Batch:
        """The windows of the last update."""
        return self.batches[(self.learner.step - 1) % len(self.batches)]

    def learn(self) -> dict[str, float]:
        """Make the updates of one iteration; the mean of each loss by name.

        The windows of the next two updates are drawn beside every second one.  A draw takes as long as the gradient of
        a chunk: beside each of them, one of two threads would wait.
        """
        t, totals = self.config.train, dict[str, float]()
        target = self.value_target._replace(iteration=self.iteration)
        cdfs = [market.priority_cdf(target) for market in self.markets]

        def draw(step: int) -> None:
            for market, cdf in zip(self.markets, cdfs, strict=True):
                market.fill_batch(cdf, target, step)

        first, stop = self.learner.step, self.learner.step + t.updates_per_iteration
        draw(first)
        for step in range(first, stop):
            raise_if_signalled()
            ahead = range(step + 1, min(step + NUM_BATCHES, stop) if (step - first) % 2 == 0 else 0)
            batch, draws = self.batches[step % NUM_BATCHES], [partial(draw, next_step) for next_step in ahead]
            for name, loss in self.learner.learn(batch, self._target_views, draws).items():
                totals[name] = totals.get(name, 0.0) + loss / t.updates_per_iteration
            self.target_params += np.float32(t.target_ema) * (self.learner.params - self.target_params)
        return totals | self.learner.reward_errors(self.batch)

    def acting_search_config(self) -> SearchConfig:
        """The search of the trained agent."""
        return self.search_config(self.config.search.num_simulations)

    def snapshot(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Arrays and plain values from which `restore` continues the run to the bit."""
        arrays = self._weights()
        for i, market in enumerate(self.markets):
            arrays |= {f"replay{i}_{name}": array for name, array in market.replay._asdict().items()}
        state = {
            "iteration": self.iteration,
            "episodes": [market.episodes for market in self.markets],
            "step": self.learner.step,
            "q_scale": self.q_scale,
            "rate_factor": self.learner.rate_factor,
            "rolled_back": self.rolled_back,
        }
        return arrays, state

    def _weights(self) -> dict[str, NDArray[Any]]:
        """The flat vectors of parameters, and the moments of their gradients."""
        moments = {f"adam_{name}": array for name, array in self.learner.adam._asdict().items()}
        return {"params": self.learner.params, "target": self.target_params, **moments}

    def restore(self, arrays: dict[str, NDArray[Any]], state: dict[str, Any]) -> None:
        """Continue from a snapshot, whatever this trainer did before; the features are computed again."""
        for name, array in self.snapshot()[0].items():
            array[...] = arrays[name]
        self.iteration, self.learner.step, self.q_scale = state["iteration"], state["step"], state["q_scale"]
        self.learner.rate_factor, self.rolled_back = state["rate_factor"], state["rolled_back"]
        for market, episodes in zip(self.markets, state["episodes"], strict=True):
            market.episodes = episodes
            market.restore_features()

    def export_networks(self) -> OnnxNetworks:
        """The target networks, calibrated and ready to act; writes the mean moves of their codes into `data`."""
        for market in self.markets:
            market.assign_chance_codes(self._target_views, self.learner.shape.news)
        root = {"root": export(self.target_params, self.learner.shape, 0)["root"]}
        networks = OnnxNetworks(root, self.network_shape)
        self.calibration = calibrate_parts(
            self._validation_parts, networks, self._target_views, self.learner.shape.news
        )
        return OnnxNetworks(self.export_graphs(), self.network_shape)

    def _update_q_scale(self, rounds: list[Round]) -> None:
        """Move the scale of Q towards the 5 to 95 % range of the n-step rewards of this iteration."""
        for market, r in zip(self.markets, rounds, strict=True):
            market.check_rewards(r.slots)
        rewards = [market.replay.reward[r.slots] for market, r in zip(self.markets, rounds, strict=True)]
        sums = np.cumsum(np.concatenate(rewards), axis=1, dtype=np.float64)
        n = self.config.train.td_steps
        low, high = np.quantile(sums[:, n:] - sums[:, :-n], (0.05, 0.95))
        new_scale = max(float(high - low), MIN_Q_SCALE)
        self.q_scale += (1.0 if self.iteration == 0 else Q_SCALE_EMA) * (new_scale - self.q_scale)


def mean_metrics(rows: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each metric."""
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def new_shape(config: Config, features: int, actions: int) -> ModelShape:
    """The sizes of the networks of a configuration."""
    n = config.network
    blocks = dict[str, Any]()
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


def new_network_shape(shape: ModelShape) -> NetworkShape:
    """What a search sees of networks with these sizes."""
    window = shape.attention_window if shape.num_layers else 1
    widths = shape.features, NUM_POSITION_FEATURES, shape.state, shape.actions, shape.codes
    return NetworkShape(*widths, window, shape.context)


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


class Budget(NamedTuple):
    """What ends a training: whichever of these is used up first."""

    minutes: float | None = None
    episodes: int | None = None
    steps: int | None = None  # updates of the weights

    def spent(self, trainer: Trainer) -> float:
        """How much of the episodes and of the updates is used up; 1: one of them is."""
        counts = (trainer.episodes, self.episodes), (trainer.learner.step, self.steps)
        return max((done / most for done, most in counts if most is not None), default=0.0)


def run_first_iteration(trainer: Trainer, budget: Budget, on_iteration: Callable[[dict[str, Any]], None]) -> None:
    """Run the first iteration of this process outside of any time budget, because it may compile kernels."""
    if budget.spent(trainer) < 1.0:
        on_iteration(trainer.run_iteration())


def train_for(
    trainer: Trainer,
    budget: Budget,
    on_iteration: Callable[[dict[str, Any]], None],
    report: ProgressCallback,
    is_done: Callable[[], bool] = lambda: False,
) -> None:
    """Run whole iterations until the budget is used up or `is_done`; the clock decides only when to stop."""
    begin, last = time.perf_counter(), 0.0  # seconds of the last iteration
    while True:
        elapsed, fraction = time.perf_counter() - begin, budget.spent(trainer)
        if budget.minutes is not None:  # no iteration begins that would end behind the last minute
            end = 60 * budget.minutes
            fraction = max(fraction, 1.0 if elapsed + last >= end else elapsed / end)
        progress = f"iteration {trainer.iteration}, {trainer.episodes} episodes, {trainer.learner.step} updates"
        report(min(fraction, 1.0), progress)
        if fraction >= 1.0 or is_done():
            return
        started = time.perf_counter()
        on_iteration(trainer.run_iteration())
        last = time.perf_counter() - started
