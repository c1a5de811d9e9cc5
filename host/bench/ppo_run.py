"""The jobs of `bench ppo`: one agent on one market with one seed, evaluated by CPU time.

Each runs in a process of its own.  The measure is CPU time of one thread.  Neither side's clock counts imports,
compilation, a first throw-away training step, the fit of the data set and the evaluations on unseen bars; both sides'
clock counts the features of the training bars.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

from threadpoolctl import threadpool_limits

from host.bench.enhancement_run import program_version, without_comments
from host.bench.ppo_env import Policy
from host.bench.ppo_meter import Meter, Task, new_task
from host.bench.process import ROOT, BenchRow
from host.config import Config
from host.evaluation.exam import EvaluationSet, new_evaluation_set, selftest_config
from host.evaluation.learning import expected_profit, measure_agent, optimal_expected_profit
from host.evaluation.synthetic import INTERVAL_NS, SYNTHETIC_INSTRUMENT, SyntheticOptions, make_market
from host.processes import ReportProgress, watch_process
from host.training.dataset import new_dataset
from host.training.trainer import Trainer

OURS = "ours"
PACKAGES = {"PPO": "stable-baselines3", "masked PPO": "sb3-contrib", "DQN": "stable-baselines3"}  # of each rival
MARKS_S = (15, 30, 60, 90, 120, 180)  # CPU seconds at which an agent is evaluated
FIGURES = ("fraction_of_optimum", "expected_fraction", "exposure", "trades")

# What can change the curve of a rival
SOURCES = ("kernels/market/*.py", "host/evaluation/*.py", "host/training/dataset.py", "host/bench/ppo_*.py")


class TradedMarket(NamedTuple):
    """A synthetic market with parameters, and settings beyond the default ones."""

    name: str
    parameters: dict[str, float]
    settings: tuple[str, ...] = ()


TRADED_MARKETS = {
    **{name: TradedMarket(name, {}) for name in ("noise", "planted", "leak", "planted-hard", "close")},
    # parameters that no default was tuned on
    "planted-slow": TradedMarket("planted", {"half_life": 15, "cost": 0.8}),
    "planted-hard-slow": TradedMarket("planted-hard", {"half_life": 25}),
    "close-cheap": TradedMarket("close", {"cost": 3, "noise": 8}),
    "planted-few": TradedMarket("planted", {"length": 60_000}, ("train.train_fraction=0.3334",)),  # 20,004 to train on
}


class Job(NamedTuple):
    """What one process measures and one line keeps."""

    agent: str
    market: str
    seed: int
    minutes: float  # of CPU time
    length: int  # bars of the market, if it has no length of its own
    settings: tuple[str, ...]


def job_config(job: Job) -> Config:
    """The configuration of our agent; a rival takes the market and the length of its episodes from it.

    A rival has our validation part for training too, and sets bars aside as it needs them.
    """
    bars = () if job.agent == OURS else ("train.validation_fraction=0",)
    return selftest_config([*job.settings, *TRADED_MARKETS[job.market].settings, *bars, f"train.seed={job.seed}"])


def job_key(job: Job) -> str:
    """Name of the job's line: equal for equal jobs of an equal program.  Our learner's settings are no rival's."""
    package, config = PACKAGES.get(job.agent), job_config(job).as_dict()
    if package:
        config = {"market": config["market"], "features": config["features"]}
    program = version(package) if package else program_version()
    files = [path for pattern in SOURCES for path in sorted(ROOT.glob(pattern))]
    texts = [without_comments(path.read_text(encoding="utf-8")) for path in files]
    return hashlib.sha256(json.dumps([job, config, program, texts]).encode()).hexdigest()[:20]


def measure_job(job: Job, report_progress: ReportProgress) -> BenchRow:
    """The curve of one agent on one market: FIGURES on unseen bars at the marks within the budget."""
    traded, config = TRADED_MARKETS[job.market], job_config(job)
    options: dict[str, Any] = {"length": job.length, "seed": job.seed, **traded.parameters}
    market = make_market(traded.name, SyntheticOptions(**options))
    data = new_dataset(market.bars, market.extra, config, SYNTHETIC_INSTRUMENT, INTERVAL_NS, 1)
    evaluation, length = new_evaluation_set(market, data), config.market.episode_length
    end_s = 60 * job.minutes
    marks_s = (*(mark for mark in MARKS_S if mark < end_s), end_s)
    with threadpool_limits(1):
        if job.agent == OURS:
            meter = Meter(marks_s, partial(measure_agent, evaluation), report_progress)
            train_ours(partial(Trainer, [data], config, 1), meter, length)
        else:
            from host.bench.ppo_agents import train_rival

            task = new_task(data, length, job.seed)
            meter = Meter(marks_s, partial(measure_rival, evaluation, task), report_progress)
            train_rival(job.agent, task, meter)
    report_progress(1.0)
    return {"curve": [{key: row[key] for key in ("mark_s", "cpu_s", "steps", *FIGURES)} for row in meter.curve]}


def train_ours(new_trainer: Callable[[], Trainer], meter: Meter, length: int) -> None:
    """Iterations of our trainer until the meter has its last mark; one of another trainer before, which compiles."""
    new_trainer().run_iteration()
    trainer = new_trainer()
    meter.start()
    while meter.read(trainer, trainer.episodes * length):
        trainer.run_iteration()


def measure_rival(evaluation: EvaluationSet, task: Task, policy: Policy) -> BenchRow:
    """FIGURES of a policy on the unseen bars."""
    result = task.backtest(policy, evaluation.first, len(evaluation.market.bars.time))
    best = optimal_expected_profit(evaluation)
    expected = expected_profit(evaluation, result.target, result.profit_pips)
    has_optimum = evaluation.optimum_pips > 0
    return {
        "fraction_of_optimum": result.profit_pips / evaluation.optimum_pips if has_optimum else None,
        "expected_fraction": expected / best if best > 0 else None,
        "exposure": float((result.target != 0).mean()),
        "trades": result.trades,
    }


def run_job(job: Job, report_progress: ReportProgress) -> BenchRow:
    """The curve of a job, measured in a fresh process."""
    return watch_process(measure_job, job, report_progress)
