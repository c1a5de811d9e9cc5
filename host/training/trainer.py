"""Training: collect -> reanalyse -> learn, phase after phase, each on all threads and none racing another."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from host.artifact.networks import Agent, Sizes, slot_sides
from host.config import Config
from host.console import Report
from host.stop import stop_if_asked
from host.training.chance_diagnostics import assess, name_sessions, new_codes
from host.training.dataset import Dataset
from host.training.feature_store import FeatureStore
from kernels.learning.prioritized import bellman_errors, fill_table, sample_by_priority
from kernels.learning.reanalyze import search_again, value_again
from kernels.learning.replay_buffer import EMPTY, ValueTarget, mirror_half, new_batch, new_replay, sample
from kernels.learning.selfplay import play
from kernels.market.ledger import TRADE, new_accounts
from kernels.market.position import FEATURES, HOLD, action_names
from kernels.ort import check
from kernels.rng import below
from kernels.search.config import RULES, WIDENING, SearchConfig, new_search_config
from kernels.search.planner import TALLY, Planner
from kernels.search.progressive_widening import BETAS, most_candidates
from kernels.search.tree import NOTHING, REUSES
from models.export import export
from models.learner import Learner
from models.loss import LossWeights
from models.params import Shape, views

STREAM_STARTS, STREAM_NOISE, STREAM_SAMPLES, STREAM_REANALYSE = 1, 2, 3, 4
VALUE_ROWS = 64  # positions the target network evaluates in one call
UNIT_RATE = 0.2  # of the running scale of returns, per cycle
SMALLEST_UNIT = 0.25  # R
HIGH = 0.95  # quantile of the Bellman errors beyond which all count the same
VALUE_PER_BAR = 0.2  # R: no market pays more for long; a value sums such bars, discounted
MOST_DISCOUNT = 0.999  # beyond it, values would need no end of bins
PROJECTION = 2  # width of the consistency loss's layers in latents


class Trainer:
    """The state of a run: a pure function of configuration, data and the number of cycles, whatever the threads."""

    def __init__(self, data: Dataset, config: Config, threads: int) -> None:
        t = config.train
        if t.codes == "learned":
            codes = new_codes(data.setting.codes, len(data.bars.time))
            data = data._replace(setting=data.setting._replace(codes=codes))
        self.data, self.config = data, config
        actions = len(action_names(data.setting.market.sizes))
        shape = new_shape(config, len(data.setting.normaliser.scale), actions)
        candidates = most_candidates(config.search.samples) if shape.sizes else 0
        window = shape.window if shape.layers else 1
        context = shape.context
        self.sizes = Sizes(shape.features, FEATURES, shape.state, actions, shape.codes, window, context)
        coding = {"commitment": t.commitment, "usage": t.usage, "telling": t.telling}
        weights = LossWeights(consistency=t.consistency, joint=t.joint, **coding)
        rates = t.seed, t.rate, t.decay, t.horizon
        self.learner = Learner(shape, t.batch, t.unroll, *rates, threads, weights, candidates)
        self.target = (
            self.learner.params.copy()
        )  # soft copy of the weights: bootstraps, plays and is exported
        self._target_views = views(self.target, shape)
        self.replay = new_replay(t.replay, config.market.session, self.sizes.actions, candidates)
        rows = t.replay * (config.market.session + context)
        self.store = FeatureStore(data, rows, threads, before=context - 1)
        sizes = self.sizes.features, FEATURES, self.sizes.actions
        learned = t.codes == "learned"
        ahead = t.consistency + t.joint > 0 or learned
        self.batch = new_batch(
            t.batch, t.unroll, *sizes, ahead, context, moves=learned, candidates=candidates
        )
        held = t.replay if t.priority > 0 else 0
        self.error = np.zeros((held, config.market.session))
        age_cut = t.age_cut * t.horizon / t.steps  # cycles
        self.rule = ValueTarget(t.n_step, config.search.discount, t.search_share, age_cut)
        self.cycle, self.sessions, self.value_unit = 0, 0, 1.0
        self._pool = ThreadPoolExecutor(threads)

    @property
    def filled(self) -> int:
        """Sessions in the replay."""
        return min(self.sessions, self.config.train.replay)

    def run_cycle(self) -> dict[str, Any]:
        """One round of the three phases; what to log of it."""
        with threadpool_limits(1, "blas"):
            agent = Agent(self.graphs(), self.sizes)
            begin = time.perf_counter()
            slots = self.collect(agent)
            codes = self.data.setting.codes
            known = assess(agent, codes, self.store, self.data.bars, self.bars_of(self.replay.start[slots]))
            collected = time.perf_counter()
            sweep = self.reanalyse(agent)
            searched = time.perf_counter()
            losses = self.learn()
            learnt = time.perf_counter()
        self.cycle += 1
        rewards = self.replay.reward[slots]
        actions = self.replay.action[slots]
        held = np.abs(self.replay.position[slots][:, 1:, 0]) > 0
        return {
            "cycle": self.cycle,
            "sessions": self.sessions,
            "steps": self.learner.step,
            "reward_per_bar": float(rewards.mean(dtype=np.float64)),
            "share_in_market": float(held.mean()),
            "entries": int(np.count_nonzero((actions > HOLD) & (actions < self.sizes.actions - 1))),
            "value_unit": self.value_unit,
            "collect_s": collected - begin,
            "reanalyse_s": searched - collected,
            "learn_s": learnt - searched,
            **sweep,
            **known,
            **losses,
        }

    def graphs(self) -> dict[str, bytes]:
        """The target networks as ONNX."""
        return export(self.target, self.learner.shape, *self.slots())

    def slots(self) -> tuple[int, NDArray[np.float32] | None]:
        """What the network of the market search is exported for; S = 0 where there can be none."""
        if self.learner.shape.sizes or self.learner.shape.prefix:
            return 0, None
        return slot_sides(self.sizes, self.acting_search(), self.data.setting.market.sizes)

    def search_config(self, simulations: int) -> SearchConfig:
        """A search of so many simulations in the present unit of value."""
        s = self.config.search
        return new_search_config(
            simulations=simulations,
            considered=s.considered,
            discount=s.discount,
            c_visit=s.c_visit,
            c_scale=s.c_scale,
            value_unit=self.value_unit,
            reverse=self.config.market.reverse,
            excursion_weight=self.data.setting.market.excursion_weight,
            rule=RULES.index(s.rule),
            samples=s.samples,
        )

    def collect(self, agent: Agent) -> NDArray[np.int64]:
        """Play new sessions into the ring; their slots."""
        t, L = self.config.train, self.config.market.session
        count = t.block * t.blocks
        slots = (self.sessions + np.arange(count)) % t.replay
        for slot in slots[self.replay.start[slots] >= 0]:
            self.store.release(int(self.replay.start[slot]), L + 1)
        draws = [below(len(self.data.starts), t.seed, STREAM_STARTS, self.sessions + i) for i in range(count)]
        self.replay.start[slots] = self.data.starts[draws]
        self.store.hold(self.replay.start[slots], L + 1)
        self.name_codes()
        self.replay.searched[slots] = self.replay.played[slots] = self.cycle
        self._each_block(lambda planner, i, block: self._play(planner, i, block), agent, slots)
        self.sessions += count
        self._scale_values(slots)
        return slots

    def bars_of(self, starts: NDArray[np.int64]) -> NDArray[np.int64]:
        """The bars at whose close the sessions from these starts decide, each once."""
        return np.unique(starts[:, None] + np.arange(self.config.market.session))

    def name_codes(self) -> None:
        """Find what learned codes mean to the target network, from the bars of all sessions held."""
        starts = self.replay.start[self.replay.start != EMPTY]
        if self.config.train.codes == "learned" and len(starts) > 0:
            bars, codes = self.data.bars, self.data.setting.codes
            name_sessions(codes, self._target_views, self.store, bars, self.bars_of(starts))

    def _play(self, planner: Planner, first: int, slots: NDArray[np.int64]) -> int:
        account, trade = new_accounts(len(slots)), np.zeros(TRADE)
        seed, session = self.config.train.seed + STREAM_NOISE, self.sessions + first
        wanderers = self.config.train.wanderers
        return play(self.replay, account, trade, planner, slots, self.store.tape, wanderers, seed, session)

    def reanalyse(self, agent: Agent) -> dict[str, int]:
        """Search the sessions whose targets are not fresh again, and value every stored position anew; what it took."""
        t = self.config.train
        age = self.cycle - self.replay.searched[: self.filled]
        stale = np.flatnonzero(age > t.fresh) if t.sweep else np.zeros(0, np.int64)
        reuse = REUSES.index(self.config.search.reuse)
        tally = self._each_block(lambda p, i, block: self._search_again(p, block), agent, stale, reuse)
        self.replay.searched[stale] = self.cycle
        chunks = np.array_split(np.arange(self.filled), self._pool._max_workers)
        check(max(self._pool.map(lambda chunk: self._value_again(agent, chunk), chunks)))
        L = self.config.market.session
        return {
            "swept": tally["searches"],
            "skipped": (self.filled - len(stale)) * L,
            "reused": tally["reused"],
            "sweep_rows": tally["rows"],
        }

    def _search_again(self, planner: Planner, slots: NDArray[np.int64]) -> int:
        seed = self.config.train.seed + STREAM_REANALYSE + self.cycle
        return search_again(self.replay, planner, slots, self.store.tape, seed)

    def _value_again(self, agent: Agent, slots: NDArray[np.int64]) -> int:
        root = agent.root(VALUE_ROWS)
        column = root.y.shape[1] - 1 - self.sizes.codes
        for slot in slots:
            status = value_again(self.replay, root, slot, self.store.tape, column)
            if status != 0:
                return status
        return 0

    def learn(self) -> dict[str, float]:
        """Draw and learn the steps of one cycle; the mean losses."""
        t, totals = self.config.train, dict[str, float]()
        rule = self.rule._replace(cycle=self.cycle)
        table, chance, seed = self.priorities(rule), np.zeros(t.batch), t.seed + STREAM_SAMPLES
        for _ in range(t.steps):
            stop_if_asked()
            step = self.learner.step
            if t.priority > 0:
                draw = self.batch, chance, table, self.replay, self.store.tape, rule, t.correction
                sample_by_priority(*draw, seed, step)
            else:
                sample(self.batch, self.replay, self.filled, self.store.tape, rule, seed, step)
            if t.mirror:
                mirror_half(self.batch, self.store.tape, seed, step)
            for name, loss in self.learner.learn(self.batch, self._target_views).items():
                totals[name] = totals.get(name, 0.0) + loss / t.steps
            self.target += np.float32(t.target_rate) * (self.learner.params - self.target)
        if t.joint > 0 or self.learner.shape.layers > 0:
            for k, error in enumerate(self.learner.reward_errors(self.batch), 1):
                totals[f"reward_error_{k}"] = error
        return totals

    def priorities(self, rule: ValueTarget) -> NDArray[np.float64]:
        """[N] cumulative probabilities of the windows, from the values as they are now; N = 0 for uniform draws."""
        error = self.error[: self.filled]
        table = np.zeros(error.size)
        if error.size > 0:
            bellman_errors(error, self.replay, rule)
            cap = float(np.quantile(error, HIGH))
            if not math.isfinite(cap):
                raise FloatingPointError(f"cycle {self.cycle}: a value is not finite")
            fill_table(table, error.ravel(), cap, self.config.train.priority)
        return table

    def acting_search(self) -> SearchConfig:
        """The search of the finished agent."""
        return self.search_config(self.config.search.simulations)

    def snapshot(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Everything a run needs to go on to the bit: arrays and plain values."""
        arrays = {
            "params": self.learner.params,
            "target": self.target,
            **{f"adam_{name}": array for name, array in self.learner.adam._asdict().items()},
            **{f"replay_{name}": array for name, array in self.replay._asdict().items()},
        }
        state = {
            "cycle": self.cycle,
            "sessions": self.sessions,
            "step": self.learner.step,
            "value_unit": self.value_unit,
        }
        return arrays, state

    def restore(self, arrays: dict[str, NDArray[Any]], state: dict[str, Any]) -> None:
        """Take up a snapshot; the features of its sessions are computed anew."""
        for name, array in self.snapshot()[0].items():
            array[...] = arrays[name]
        self.cycle, self.sessions = state["cycle"], state["sessions"]
        self.learner.step, self.value_unit = state["step"], state["value_unit"]
        self.store.hold(self.replay.start[: self.filled], self.config.market.session + 1)

    def agent(self) -> Agent:
        """The target networks, ready to act, and the meaning of their codes in `data`."""
        self.name_codes()
        return Agent(self.graphs(), self.sizes)

    def _each_block(
        self, work: Callable[..., int], agent: Agent, slots: NDArray[np.int64], reuse: int = NOTHING
    ) -> dict[str, int]:
        """Call work(planner, first, slots) for each block of sessions, on all threads; what was searched."""
        size = self.config.train.block
        search = self.search_config(self.config.train.simulations)._replace(reuse=reuse)
        blocks = [(i, slots[i : i + size]) for i in range(0, len(slots), size)]
        planners = [agent.planner(len(block), search) for _, block in blocks]
        jobs = [self._pool.submit(work, p, i, block) for p, (i, block) in zip(planners, blocks, strict=True)]
        try:
            for job in jobs:
                check(job.result())
        finally:
            for job in jobs:
                job.cancel()  # whoever stops the run waits for what is at work only
        stop_if_asked()
        totals = sum((p.tally for p in planners), np.zeros(len(TALLY), np.int64))
        return dict(zip(TALLY, totals.tolist(), strict=True))

    def _scale_values(self, slots: NDArray[np.int64]) -> None:
        """Move the unit of Q towards the spread (5 to 95 %) of the n-step rewards just collected."""
        sums = np.cumsum(self.replay.reward[slots], axis=1, dtype=np.float64)
        if not np.isfinite(sums).all():
            raise FloatingPointError(
                f"cycle {self.cycle}: a reward is not finite: is there a NaN in the bars?"
            )
        n = self.config.train.n_step
        low, high = np.quantile(sums[:, n:] - sums[:, :-n], (0.05, 0.95))
        fresh = max(float(high - low), SMALLEST_UNIT)
        self.value_unit += (1.0 if self.cycle == 0 else UNIT_RATE) * (fresh - self.value_unit)


def new_shape(config: Config, features: int, actions: int) -> Shape:
    """The sizes of the networks of a configuration."""
    n = config.network
    blocks = dict[str, int]()
    if n.model == "transformer":
        blocks = {"layers": n.layers, "heads": n.heads, "window": n.window, "context": n.context}
    return Shape(
        features=features,
        latent=n.latent,
        hidden=n.hidden,
        actions=actions,
        codes=n.codes,
        value_limit=VALUE_PER_BAR / (1.0 - min(config.search.discount, MOST_DISCOUNT)),
        project=PROJECTION * n.latent if config.train.consistency > 0 else 0,
        encode=n.hidden if config.train.codes == "learned" else 0,
        sizes=BETAS if config.search.rule == RULES[WIDENING] else 0,
        prefix=n.latent if config.train.value_prefix else 0,
        **blocks,
    )


def first_cycle(trainer: Trainer, sessions: int | None, on_cycle: Callable[[dict[str, Any]], None]) -> None:
    """Run the first cycle of this process, in which kernels may have to be compiled: no clock runs yet."""
    if sessions is None or trainer.sessions < sessions:
        on_cycle(trainer.run_cycle())


def train_for(
    trainer: Trainer,
    minutes: float | None,
    sessions: int | None,
    on_cycle: Callable[[dict[str, Any]], None],
    report: Report,
) -> None:
    """Run whole cycles until either budget is used up; the clock decides nothing but when to stop."""
    begin, last = time.perf_counter(), 0.0  # seconds that the last cycle took
    while True:
        shares = [0.0]
        if minutes is not None:
            shares.append((time.perf_counter() - begin + last) / (60 * minutes))
        if sessions is not None:
            shares.append(trainer.sessions / sessions)
        done = f"cycle {trainer.cycle}, {trainer.sessions} sessions, {trainer.learner.step} steps"
        report(min(max(shares), 1.0), done)
        if max(shares) >= 1.0:
            return
        started = time.perf_counter()
        on_cycle(trainer.run_cycle())
        last = time.perf_counter() - started
