"""The units of `bench enhancements`: what one configuration costs, and how soon it learns a known market.

Each runs in a process of its own, which its parent watches.  Figures of one thread are CPU time.
"""

from __future__ import annotations

import hashlib
import json
import signal
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from host.artifact.manifest import save_model
from host.bench.process import BenchRow, TimedCall, clock, fill_normal, median_seconds
from host.bench.search import bind, network_calls
from host.config import Config
from host.evaluation.backtest import run_backtest
from host.evaluation.exam import NUM_BARS, evaluate_agent, new_evaluation_set, selftest_config
from host.evaluation.synthetic import INTERVAL_NS, SYNTHETIC_INSTRUMENT, SyntheticMarket, SyntheticOptions, make_market
from host.live.live_agent import new_policy_state
from host.machine import memory_mb
from host.training.dataset import new_dataset
from host.training.run_dir import MAX_CHECKPOINTS, open_run_dir
from host.training.trainer import Trainer
from kernels.jit import program_digest
from kernels.search.planner import STATS, Planner, plan
from kernels.search.progressive_widening import sampled_tree_bytes as wide_bytes

LEARNED_MARKETS = ("planted", "planted-hard", "close")
COST, LEARN = "cost", "learn"  # kinds of units
MIN_LEARNT_FRACTION = 0.9  # of the optimum
MAX_CLOSING_REGRET = 0.1  # of closing, in `close`, which must also earn HALF: who enters nothing has nothing to close
MIN_CLOSE_FRACTION = 0.5
SAMPLE_INTERVAL_S = 0.1  # of the memory of the process
HOST_FOLDER = Path(__file__).parents[1]
ENHANCEMENTS_FILE = "enhancements.py"  # changes no figure


class Budget(NamedTuple):
    """How much is spent on a unit; the defaults are those of a published figure."""

    minutes: float = 2.0  # of training
    threads: int = 1
    length: int = NUM_BARS  # bars of the market
    eval_interval: int = 2  # cycles between two looks at unseen bars
    quick_eval_bars: int = 4096  # unseen bars of a look; who does well there is measured on all
    iterations: int = 4  # of the training whose weights are compared
    rounds: int = 5
    decisions: int = 256
    settings: tuple[str, ...] = ()  # of every variant


class Job(NamedTuple):
    """One process and one file."""

    kind: str  # COST or LEARN
    market: str
    seed: int
    settings: tuple[str, ...]
    budget: Budget


ReportProgress = Callable[[float], object]  # told the share of the budget that is used up


def job_config(job: Job) -> Config:
    """The resolved configuration; raises ConfigError on a setting that does not exist."""
    return selftest_config([*job.budget.settings, *job.settings, f"train.seed={job.seed}"])


def job_key(job: Job) -> str:
    """Name of the unit's file: equal for settings that resolve to the same configuration."""
    what = [job.kind, job.market, job_config(job).as_dict(), job.budget, program_version()]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:20]


def program_version() -> str:
    """Hash of the text of the whole program but for the table of enhancements."""
    texts = hashlib.sha256(program_digest().encode())
    for path in sorted(HOST_FOLDER.rglob("*.py")):
        if path.name != ENHANCEMENTS_FILE:
            texts.update(path.relative_to(HOST_FOLDER).as_posix().encode() + path.read_bytes())
    return texts.hexdigest()[:16]


def new_trainer(job: Job) -> tuple[Trainer, SyntheticMarket]:
    """A trainer at its beginning, and the market."""
    config, effort = job_config(job), job.budget
    market = make_market(job.market, SyntheticOptions(length=effort.length, seed=job.seed))
    data = new_dataset(market.bars, market.extra, config, SYNTHETIC_INSTRUMENT, INTERVAL_NS, effort.threads)
    return Trainer(data, config, effort.threads), market


def measure_cost(job: Job, report_progress: ReportProgress) -> BenchRow:
    """What a training of a few cycles costs, and a decision of its agent."""
    (trainer, _), effort = new_trainer(job), job.budget
    for cycle in range(effort.iterations):
        report_progress(cycle / effort.iterations)
        trainer.run_iteration()
    digest = hashlib.sha256(trainer.learner.params.tobytes()).hexdigest()
    with threadpool_limits(1, "blas"):
        (seconds,) = median_seconds([trainer.learn], effort.rounds, clock(effort.threads))
    return {
        **decision_cost(trainer, effort),
        "ms_per_step": seconds * 1e3 / trainer.config.train.updates_per_iteration,
        "parameters_mb": trainer.learner.params.nbytes / 2**20,
        "storage_mb": storage_mb(trainer),
        "weights_sha256": digest,
    }


def decision_cost(trainer: Trainer, budget: Budget) -> BenchRow:
    """A search alone and among those of a block, with and without its network calls."""
    t, data = trainer.config.train, trainer.data
    agent = trainer.export_networks()
    trader = new_policy_state(agent, data.market_spec, trainer.acting_search_config())
    run_backtest(trader, data.bars, data.extra_features, data.test_first, data.test_first + 1 + budget.decisions)
    block = agent.planner(t.num_envs, trainer.search_config(t.num_simulations))
    fill_normal((block.networks.root.x, block.noise, block.costs.move), t.seed)
    tally = dict(zip(STATS, trader.planner.stats.tolist(), strict=True))
    one, selection = search_us(trader.planner, budget.rounds)
    each, selection_each = search_us(block, budget.rounds)
    return {
        "tree_kb": planner_tree_bytes(trader.planner) / 1024,
        "us_per_decision": one,
        "selection_us": selection,
        "us_per_decision_block": each,
        "selection_us_block": selection_each,
        "rows_per_decision": tally["rows"] / tally["searches"],
    }


def search_us(planner: Planner, rounds: int) -> tuple[float, float]:
    """Microseconds of CPU time a root: the search, and what of it is not the networks."""
    works: list[TimedCall] = [bind(plan, planner), network_calls(planner)]
    whole, networks = median_seconds(works, rounds, time.thread_time)
    us = 1e6 / len(planner.action)
    return whole * us, (whole - networks) * us


def planner_tree_bytes(planner: Planner) -> int:
    """Bytes of one tree; they are all there from the start."""
    if planner.sampled_tree is not None:
        return wide_bytes(planner.sampled_tree)
    trees = [tree for tree in (planner.tree, planner.market_tree) if tree is not None]
    arrays = [array for tree in trees for array in tree if isinstance(array, np.ndarray)]
    return sum(array.nbytes for array in arrays) // len(planner.action)


def storage_mb(trainer: Trainer) -> float:
    """What `train` would leave on the disk: the checkpoints that it keeps and the model."""
    with tempfile.TemporaryDirectory() as folder:
        with open_run_dir(Path(folder), resume=False) as run:
            for step in range(MAX_CHECKPOINTS):
                run.save_checkpoint(step, *trainer.snapshot())
        setting, search = trainer.data.market_spec, trainer.acting_search_config()
        about = {"span": ["", ""], "sha256": ""}
        save_model(run.path / "model.swt", trainer.export_networks(), setting, search, trainer.config.as_dict(), about)
        return sum(path.stat().st_size for path in Path(folder).rglob("*")) / 2**20


def measure_learning(job: Job, report_progress: ReportProgress) -> BenchRow:
    """Train until the market is learnt or the budget is used up; looking at unseen bars costs no time."""
    (trainer, market), effort = new_trainer(job), job.budget
    glance, whole = (
        new_evaluation_set(market, trainer.data, effort.quick_eval_bars),
        new_evaluation_set(market, trainer.data),
    )
    now, spent, swept, reused = clock(effort.threads), 0.0, 0, 0
    found: BenchRow | None = None  # on all unseen bars
    while spent < 60 * effort.minutes and not (found and is_learnt(job.market, found)):
        report_progress(spent / (60 * effort.minutes))
        begin = now()
        row = trainer.run_iteration()
        spent += now() - begin
        swept, reused = swept + row["reanalyzed"], reused + row["reused"]
        looks = trainer.iteration % effort.eval_interval == 0 and is_learnt(job.market, evaluate_agent(glance, trainer))
        found = evaluate_agent(whole, trainer) if looks else None
    report_progress(1.0)
    found = found or evaluate_agent(whole, trainer)
    reached = is_learnt(job.market, found)
    return {
        "sessions_to_90": trainer.episodes if reached else None,
        "seconds_to_90": spent if reached else None,
        "ms_per_session": spent * 1e3 / trainer.episodes,
        "reuse_share": reused / swept if swept else 0.0,
        **{name: found[name] for name in ("fraction_of_optimum", "closing_regret", "episodes", "trades")},
    }


def is_learnt(market: str, found: BenchRow) -> bool:
    """Whether a measurement says 90 % of the optimum, or of `close` that positions are closed in time."""
    fraction, regret = found["fraction_of_optimum"], found["closing_regret"]
    if market == "close":
        return regret is not None and regret < MAX_CLOSING_REGRET and fraction >= MIN_CLOSE_FRACTION
    return bool(fraction >= MIN_LEARNT_FRACTION)


JOB_KINDS = {COST: measure_cost, LEARN: measure_learning}


def job_main(pipe: Connection, job: Job) -> None:
    """All of a unit's process: it says how far it is, and at last what it found; nobody to tell ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # its parent ends it
    pipe.send(JOB_KINDS[job.kind](job, pipe.send))


def run_job(job: Job, report_progress: ReportProgress) -> BenchRow:
    """A unit in a fresh process, with its peak memory while it trains."""
    context = get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=job_main, args=(theirs, job), daemon=True)
    process.start()
    theirs.close()
    said: Any = None
    peaks = {"rss_anon_mb": 0.0, "rss_mb": 0.0}
    try:
        while not isinstance(said, dict):
            if ours.poll(SAMPLE_INTERVAL_S):
                said = ours.recv()
            if isinstance(said, float) and said < 1:
                report_progress(said)
                for name, field in (("rss_anon_mb", "RssAnon"), ("rss_mb", "VmRSS")):
                    peaks[name] = max(peaks[name], memory_mb(field, process.pid or 0))
    except EOFError:
        process.join()
        raise RuntimeError(f"{job}: its process ended with {process.exitcode}") from None
    process.join()
    return {**said, **peaks}
