"""`bench ppo`: PPO and DQN of Stable-Baselines3 beside our agent, on the same bars, features, costs and CPU time.

A job is an agent, a market and a seed, in a process of its own; its file keeps it.  The measure is CPU time of one
thread.  Neither side's clock counts imports, compilation, a first throw-away training step, the fit of the data set
and the evaluations on unseen bars; both sides' clock counts the features of the training bars.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from host.atomic import atomic_write, check_writable
from host.bench.enhancement_run import program_version
from host.bench.options import BenchError, BenchOptions
from host.bench.ppo_env import Policy
from host.bench.ppo_meter import Meter, Task, new_task
from host.bench.process import ROOT, BenchRow
from host.config import Config
from host.console import log, progress
from host.evaluation.exam import EvaluationSet, new_evaluation_set, selftest_config
from host.evaluation.learning import expected_profit, measure_agent, optimal_expected_profit
from host.evaluation.synthetic import (
    INTERVAL_NS,
    SYNTHETIC_INSTRUMENT,
    Floats,
    SyntheticOptions,
    make_market,
)
from host.processes import ReportProgress, watch_process
from host.stop import hint_on_stop
from host.svg import line_charts
from host.training.dataset import new_dataset
from host.training.trainer import Trainer

OURS = "ours"
PACKAGES = {"PPO": "stable-baselines3", "masked PPO": "sb3-contrib", "DQN": "stable-baselines3"}  # of each rival
MARKS_S = (15, 30, 60, 90, 120, 180)  # CPU seconds at which an agent is evaluated
TABLE_MARKS_S = (15, 30, 60, 180)
FIGURES = ("fraction_of_optimum", "expected_fraction", "exposure", "trades")

# What can change the curve of a rival
SOURCES = ("kernels/market/*.py", "host/evaluation/*.py", "host/training/dataset.py", "host/bench/ppo*.py")


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
    """What one process measures and one file keeps."""

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
    """Name of the job's file: equal for equal jobs of an equal program.  Our learner's settings are no rival's."""
    package, config = PACKAGES.get(job.agent), job_config(job).as_dict()
    if package:
        config = {"market": config["market"], "features": config["features"]}
    program = version(package) if package else program_version()
    texts = [path.read_text(encoding="utf-8") for pattern in SOURCES for path in sorted(ROOT.glob(pattern))]
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


def selected_jobs(options: BenchOptions) -> list[Job]:
    """Every job, a seed after the other; raises BenchError where `options.only` names nothing."""
    agents, only = (OURS, *PACKAGES), options.only
    if only not in (None, *agents, *TRADED_MARKETS):
        raise BenchError(f"--only {only}: there is {', '.join((*agents, *TRADED_MARKETS))}")
    missing = [agent for agent, package in PACKAGES.items() if not find_spec(package.replace("-", "_"))]
    if missing:
        log(f"without {', '.join(missing)}: pip install {' '.join(dict.fromkeys(PACKAGES.values()))}")
    size = options.rival_minutes, options.budget.length, options.budget.settings
    return [
        Job(agent, market, seed, *size)
        for seed, market, agent in product(range(options.seeds), TRADED_MARKETS, agents)
        if agent not in missing and only in (None, agent, market)
    ]


def run_job(job: Job, report_progress: ReportProgress) -> BenchRow:
    """The curve of a job, measured in a fresh process."""
    return watch_process(measure_job, job, report_progress)


@hint_on_stop()
def bench_ppo(options: BenchOptions, runner: Callable[[Job, ReportProgress], BenchRow] = run_job) -> list[BenchRow]:
    """The document of `bench ppo`; after every job also in `options.out`, with a table and a picture of it."""
    jobs, document, out = selected_jobs(options), list[BenchRow](), options.out
    check_writable(out, folder=True)
    out.mkdir(parents=True, exist_ok=True)
    with progress("bench ppo") as report:
        for i, job in enumerate(jobs):
            text, file = f"{job.agent} {job.market} seed {job.seed}", out / f"{job_key(job)}.json"
            is_new = not file.exists()
            if is_new:
                row = runner(job, lambda share, i=i, text=text: report((i + share) / len(jobs), text))  # type: ignore[misc]
                write_text(file, json.dumps({**job._asdict(), **row}, allow_nan=False))
            row = json.loads(file.read_text(encoding="utf-8"))
            document.append({key: row[key] for key in ("agent", "market", "seed", "curve")})
            if is_new or len(document) == len(jobs):
                publish(document, out)
    log(f"{out}: ppo.json, ppo.md, ppo.svg")
    return document


def publish(document: list[BenchRow], out: Path) -> None:
    """Write a document, its table and its picture."""
    table = rival_table(document)
    lines = [[*table[0]], ["---"] * len(table[0]), *([*row.values()] for row in table)]
    write_text(out / "ppo.json", json.dumps(document, indent=1))
    write_text(out / "ppo.md", "".join(f"| {' | '.join(line)} |\n" for line in lines))
    write_text(out / "ppo.svg", curves(document))


def write_text(path: Path, text: str) -> None:
    """Write a whole file."""
    with atomic_write(path) as file:
        file.write(text.encode())


def percentages(document: list[BenchRow], figure: str) -> dict[tuple[str, str], dict[float, list[float]]]:
    """By market and agent, and by mark: `figure` of every seed in percent; of `noise` the bars with a position."""
    groups = dict[tuple[str, str], dict[float, list[float]]]()
    for row in sorted(document, key=lambda row: [*TRADED_MARKETS].index(row["market"])):
        marks = groups.setdefault((row["market"], row["agent"]), {})
        for point in row["curve"]:
            value = point["exposure"] if point[figure] is None else point[figure]
            marks.setdefault(point["mark_s"], []).append(100 * value)
    return groups


def rival_table(document: list[BenchRow]) -> list[BenchRow]:
    """A line for each market and agent: medians over the seeds, and ranges, at some marks; the last one twice."""
    realised, expected = (percentages(document, figure) for figure in FIGURES[:2])
    last = max(mark for marks in realised.values() for mark in marks)
    shown = [*(mark for mark in TABLE_MARKS_S if mark < last), last]
    return [
        {"market": market, "agent": agent, "seeds": str(len(marks[last]))}
        | {f"{mark:g} s": spread_text(marks[mark]) for mark in shown}
        | {f"expected, {last:g} s": spread_text(expected[market, agent][last])}
        for (market, agent), marks in realised.items()
    ]


def spread_text(values: list[float]) -> str:
    """Median and range in percent."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.0f} %" if len(values) == 1 else f"{middle:.0f} % [{low:.0f}-{high:.0f}]"


def curves(document: list[BenchRow]) -> str:
    """The medians over CPU seconds as an SVG, a chart for each market."""
    charts = dict[str, dict[str, Floats]]()
    for (market, agent), marks in percentages(document, FIGURES[0]).items():
        at, values = [0.0, *marks], [0.0, *map(statistics.median, marks.values())]
        charts.setdefault(market, {})[agent] = np.interp(np.arange(at[-1] + 1), at, values)
    unit = "% of the optimum on unseen bars; of noise: % of the bars with a position"
    return line_charts(charts, unit, "{:,} CPU seconds")
