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
from host.config import Config
from host.console import ProgressCallback, log
from host.stop import raise_if_signalled
from host.training.chance_calibration import ChanceCalibration, calibrate_parts, scale_chance_prior
from host.training.checkpoint import Checkpoint
from host.training.dataset import Dataset
from host.training.domain import Domain, MemoryRoom, Round
from host.training.health import (
    DRIFT_EPISODES,
    FAULT_REGION,
    RATE_FACTOR,
    check_finite,
    policy_drift,
    speed_metrics,
)
from host.training.market_domain import MarketDomain
from host.training.market_replay import MarketReplay
from host.training.search_pool import SearchPool
from kernels.learning.replay_buffer import Batch, ValueTargetConfig, new_batch
from kernels.search.config import SearchConfig
from kernels.search.networks import NetworkShape
from kernels.search.progressive_widening import max_candidates
from models.export import export
from models.learner import Learner
from models.params import ModelShape, as_views
from models.registry import needs, serves_market_search

Q_SCALE_EMA = 0.2  # step of the running scale of returns, an iteration
MIN_Q_SCALE = 0.25  # mean bar ranges
DEFAULT_ROOM = MemoryRoom()
DECAY_STEPS = 40.0  # however few the bars, the rate falls no sooner
LAMBDA_STEPS = 8_000  # however few the bars, values take so many updates to come near the truth
FREEZE_STEPS = 8_000  # however few the bars, the latents take so many updates
NUM_BATCHES = 3  # one to learn from, and two to draw the next windows into


class Trainer:
    """The state of a run: a pure function of configuration, data and number of iterations, on any number of threads.

    It learns from the bars of one instrument or of several, or from what another domain plays.
    """

    def __init__(
        self, domain: Sequence[Dataset] | Domain, config: Config, threads: int, room: MemoryRoom = DEFAULT_ROOM
    ) -> None:
        t = config.train
        self.config = config
        self.domain: Domain = MarketDomain(domain, config) if isinstance(domain, Sequence) else domain
        self.pool = SearchPool(threads, room.max_searches)  # or another one, before the first search
        shape = self.domain.shape
        candidates = max_candidates(config.search.num_sampled_sizes) if shape.num_beta_params else 0
        self.network_shape, context = new_network_shape(shape), shape.context
        self.steps_of_pass = self.domain.num_decisions / (t.batch_size * (t.num_unroll_steps + 1))  # updates
        decay_steps = max(t.lr_decay_passes * self.steps_of_pass, DECAY_STEPS)
        freeze_steps = max(t.freeze_passes * self.steps_of_pass, FREEZE_STEPS)
        rates = t.seed, t.learning_rate, t.weight_decay, decay_steps
        learned = self.domain.loss_weights(), candidates, freeze_steps
        self.learner = Learner(shape, t.batch_size, t.num_unroll_steps, *rates, threads, *learned)
        # A moving average of the weights bootstraps, plays and is exported.
        self.target_params = self.learner.params.copy()
        self._target_views = as_views(self.target_params, shape)
        widths = shape.features, shape.position, shape.actions
        looks_ahead = "next_features" in needs(self.learner.extensions)
        parts = t.batch_size, t.num_unroll_steps, *widths, looks_ahead, context, candidates
        self.batches = [new_batch(*parts) for _ in range(NUM_BATCHES)]
        self.replays = self.domain.new_replays(self.batches, shape, candidates, threads, room)
        self._validation_parts = self.domain.validation_parts(self.replays, context, threads)
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
        return sum(replay.episodes for replay in self.replays)

    @property
    def markets(self) -> list[MarketReplay]:
        """The replays of the instruments; none where something else is learnt."""
        return [replay for replay in self.replays if isinstance(replay, MarketReplay)]

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
            fresh = Trainer(self.domain, self.config, self.pool.threads)
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
            networks, n = self.export_networks(), self.config.train.num_simulations
            play = self.pool, networks, self._target_views, self.search_config(n), self.iteration, self.td_lambda
            rounds = [replay.play_round(*play) for replay in self.replays]
            self._update_q_scale(rounds)
            collected = time.perf_counter()
            search = self.search_config(n)
            for replay, r in zip(self.replays, rounds, strict=True):
                compared = r.stale[:DRIFT_EPISODES]
                before = replay.replay.policy[compared]
                r.counts.update(
                    replay.reanalyze(self.pool, networks, r.stale, r.searched, search, self.iteration, self.td_lambda)
                )
                r.metrics["policy_target_drift"] = policy_drift(before, replay.replay.policy[compared])
            check_finite(self.iteration, self.snapshot()[0], shape)
            reanalyzed = time.perf_counter()
            losses = self.learn()
            check_finite(self.iteration, self._weights(), shape)
            learned = time.perf_counter()
        self.iteration += 1
        return self._metrics(rounds, (begin, collected, reanalyzed, learned)) | losses

    def _metrics(self, rounds: list[Round], times: tuple[float, float, float, float]) -> dict[str, Any]:
        """The row of an iteration, but for its losses."""
        counts, updates = sum((r.counts for r in rounds), Counter[str]()), self.config.train.updates_per_iteration
        pairs = [*zip(self.replays, rounds, strict=True)]
        decisions, stale = (
            sum(replay.num_decisions(getattr(r, name)) for replay, r in pairs) for name in ("slots", "stale")
        )
        stored = sum(replay.num_decisions(np.arange(replay.num_stored_episodes)) for replay in self.replays)
        return {
            "iteration": self.iteration,
            "episodes": self.episodes,
            "updates": self.learner.step,
            **self.domain.metrics([(replay, r.slots) for replay, r in pairs]),
            "q_scale": self.q_scale,
            **speed_metrics(sum(len(r.slots) for r in rounds), decisions, updates, times),
            "reanalyzed": stale,
            "skipped": stored - stale,
            "reused": counts["reused"],
            "search_rows": counts["rows"],
            **(self.calibration.metrics() if self.calibration else {}),
            **mean_metrics([r.metrics for r in rounds]),
        }

    def export_graphs(self) -> dict[str, bytes]:
        """The target networks as ONNX graphs by name."""
        flat, shape = self.target_params, self.learner.shape
        flat = scale_chance_prior(flat, shape, self.calibration) if self.calibration else flat
        return export(flat, shape, *self.position_hypotheses(), self.acting_search_config().stochastic)

    def position_hypotheses(self) -> tuple[int, NDArray[np.float32] | None]:
        """What the network of the market search is exported for; S = 0 where there can be none."""
        if not serves_market_search(self.learner.shape):
            return 0, None
        return hypothesis_positions(self.network_shape, self.acting_search_config(), self.domain.position_sizes)

    def search_config(self, num_simulations: int) -> SearchConfig:
        """A search of training, of `num_simulations` simulations, with the running scale of Q."""
        return self.domain.search_config(num_simulations, self.config.train.c_scale, self.q_scale)

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
        cdfs = [replay.priority_cdf(target) for replay in self.replays]

        def draw(step: int) -> None:
            for replay, cdf in zip(self.replays, cdfs, strict=True):
                replay.fill_batch(cdf, target, step)

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
        return self.domain.search_config(self.config.search.num_simulations, self.config.search.c_scale, self.q_scale)

    def snapshot(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Arrays and plain values from which `restore` continues the run to the bit."""
        arrays = self._weights()
        for i, replay in enumerate(self.replays):
            arrays |= {f"replay{i}_{name}": array for name, array in replay.arrays().items()}
        state = {
            "iteration": self.iteration,
            "episodes": [replay.state() for replay in self.replays],
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
        for replay, own in zip(self.replays, state["episodes"], strict=True):
            replay.restore_state(own)

    def export_networks(self) -> OnnxNetworks:
        """The target networks, calibrated and ready to act; writes the mean moves of their codes into `data`."""
        for replay in self.replays:
            replay.assign_chance_codes(self._target_views)
        root = {"root": export(self.target_params, self.learner.shape, 0)["root"]}
        networks = OnnxNetworks(root, self.network_shape)
        self.calibration = calibrate_parts(self._validation_parts, networks, self._target_views, self.learner.shape)
        return OnnxNetworks(self.export_graphs(), self.network_shape)

    def _update_q_scale(self, rounds: list[Round]) -> None:
        """Move the scale of Q towards the 5 to 95 % range of the n-step rewards of this iteration."""
        for replay, r in zip(self.replays, rounds, strict=True):
            replay.check_rewards(r.slots)
        rewards = [replay.replay.reward[r.slots] for replay, r in zip(self.replays, rounds, strict=True)]
        sums = np.cumsum(np.concatenate(rewards), axis=1, dtype=np.float64)
        n = self.config.train.td_steps
        low, high = np.quantile(sums[:, n:] - sums[:, :-n], (0.05, 0.95))
        new_scale = max(float(high - low), MIN_Q_SCALE)
        self.q_scale += (1.0 if self.iteration == 0 else Q_SCALE_EMA) * (new_scale - self.q_scale)


def mean_metrics(rows: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each metric."""
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def new_network_shape(shape: ModelShape) -> NetworkShape:
    """What a search sees of networks with these sizes."""
    window = shape.attention_window if shape.num_layers else 1
    widths = shape.features, shape.position, shape.state, shape.actions, shape.codes
    return NetworkShape(*widths, window, shape.context)


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
