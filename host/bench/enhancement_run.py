"""The jobs of `bench enhancements`: what one configuration costs, and how soon it learns a known market.

Each runs in a process of its own, which its parent watches.  Figures of one thread are CPU time.
"""

import hashlib
import json
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from host.artifact.manifest import save_model
from host.bench.kernels import new_synthetic_trainer
from host.bench.options import Budget
from host.bench.process import BenchRow, ReportProgress, TimedCall, clock, median_seconds, watch_process
from host.bench.search import bind, network_calls, new_random_planner
from host.config import Config
from host.evaluation.backtest import run_backtest
from host.evaluation.exam import evaluate_agent, new_evaluation_set, selftest_config
from host.evaluation.synthetic import SyntheticMarket, SyntheticOptions
from host.live.live_agent import new_policy_state
from host.training.run_dir import MAX_CHECKPOINTS, open_run_dir
from host.training.trainer import Trainer
from kernels.jit import program_digest
from kernels.search.planner import STATS, Planner, plan
from kernels.search.progressive_widening import sampled_tree_bytes

LEARNED_MARKETS = ("planted", "planted-hard", "close")
COST, LEARN = "cost", "learn"  # kinds of jobs
MIN_LEARNT_FRACTION = 0.9  # of the optimum
MAX_CLOSING_REGRET = 0.1  # of closing, in `close`
MIN_CLOSE_FRACTION = 0.5  # of the optimum of `close`: an agent that enters nothing has nothing to close
HOST_FOLDER = Path(__file__).parents[1]
ENHANCEMENTS_FILE = "enhancements.py"  # changes no figure


class Job(NamedTuple):
    """What one process measures and one file keeps."""

    kind: str  # COST or LEARN
    market: str
    seed: int
    settings: tuple[str, ...]
    budget: Budget


def job_config(job: Job) -> Config:
    """The resolved configuration; raises ConfigError on a setting that does not exist."""
    return selftest_config([*job.budget.settings, *job.settings, f"train.seed={job.seed}"])


def job_key(job: Job) -> str:
    """Name of the job's file: equal for settings that resolve to the same configuration."""
    key = [job.kind, job.market, job_config(job).as_dict(), job.budget, program_version()]
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:20]


def program_version() -> str:
    """Hash of the text of the whole program but for the table of enhancements."""
    texts = hashlib.sha256(program_digest().encode())
    for path in sorted(HOST_FOLDER.rglob("*.py")):
        if path.name != ENHANCEMENTS_FILE:
            texts.update(path.relative_to(HOST_FOLDER).as_posix().encode() + path.read_bytes())
    return texts.hexdigest()[:16]


def new_trainer(job: Job) -> tuple[Trainer, SyntheticMarket]:
    """A trainer at its beginning, and the market."""
    options = SyntheticOptions(length=job.budget.length, seed=job.seed)
    return new_synthetic_trainer(job.market, options, job_config(job), job.budget.threads)


def measure_cost(job: Job, report_progress: ReportProgress) -> BenchRow:
    """What a training of a few iterations costs, and a decision of its agent."""
    (trainer, _), budget = new_trainer(job), job.budget
    for iteration in range(budget.iterations):
        report_progress(iteration / budget.iterations)
        trainer.run_iteration()
    digest = hashlib.sha256(trainer.learner.params.tobytes()).hexdigest()
    with threadpool_limits(1, "blas"):
        (seconds,) = median_seconds([trainer.learn], budget.rounds, clock(budget.threads))
    ms_per_step = seconds * 1e3 / trainer.config.train.updates_per_iteration
    sizes = {"parameters_mb": trainer.learner.params.nbytes / 2**20, "storage_mb": storage_mb(trainer)}
    return {**decision_cost(trainer, budget), "ms_per_step": ms_per_step, **sizes, "weights_sha256": digest}


def decision_cost(trainer: Trainer, budget: Budget) -> BenchRow:
    """A search of one root and one of `num_envs` roots, with and without its network calls."""
    t, data = trainer.config.train, trainer.data
    networks = trainer.export_networks()
    policy = new_policy_state(networks, data.market_spec, trainer.acting_search_config())
    run_backtest(policy, data.bars, data.extra_features, data.test_first, data.test_first + 1 + budget.decisions)
    block = new_random_planner(networks, t.num_envs, trainer.search_config(t.num_simulations), t.seed)
    stats = dict(zip(STATS, policy.planner.stats.tolist(), strict=True))
    us = (*search_us(policy.planner, budget.rounds), *search_us(block, budget.rounds))
    keys = "us_per_decision", "selection_us", "us_per_decision_block", "selection_us_block"
    tree_kb, rows = planner_tree_bytes(policy.planner) / 1024, stats["rows"] / stats["searches"]
    return {"tree_kb": tree_kb, **dict(zip(keys, us, strict=True)), "rows_per_decision": rows}


def search_us(planner: Planner, rounds: int) -> tuple[float, float]:
    """Microseconds of CPU time a root: the whole search, and the search less its network calls."""
    calls: list[TimedCall] = [bind(plan, planner), network_calls(planner)]
    whole, networks = median_seconds(calls, rounds, time.thread_time)
    us = 1e6 / len(planner.action)
    return whole * us, (whole - networks) * us


def planner_tree_bytes(planner: Planner) -> int:
    """Bytes of one tree; all are allocated from the start."""
    if planner.sampled_tree is not None:
        return sampled_tree_bytes(planner.sampled_tree)
    trees = [tree for tree in (planner.tree, planner.market_tree) if tree is not None]
    arrays = [array for tree in trees for array in tree if isinstance(array, np.ndarray)]
    return sum(array.nbytes for array in arrays) // len(planner.action)


def storage_mb(trainer: Trainer) -> float:
    """MB that `train` leaves on the disk: the checkpoints that it keeps, and the model."""
    with tempfile.TemporaryDirectory() as folder:
        with open_run_dir(Path(folder), resume=False) as run:
            for step in range(MAX_CHECKPOINTS):
                run.save_checkpoint(step, *trainer.snapshot())
        spec, search = trainer.data.market_spec, trainer.acting_search_config()
        about = {"span": ["", ""], "sha256": ""}
        save_model(run.path / "model.swt", trainer.export_networks(), spec, search, trainer.config.as_dict(), about)
        return sum(path.stat().st_size for path in Path(folder).rglob("*")) / 2**20


def measure_learning(job: Job, report_progress: ReportProgress) -> BenchRow:
    """Train until the market is learnt or the budget is used up; evaluations on unseen bars cost no time."""
    (trainer, market), budget = new_trainer(job), job.budget
    quick_eval = new_evaluation_set(market, trainer.data, budget.quick_eval_bars)
    full_eval = new_evaluation_set(market, trainer.data)
    now, spent, reanalyzed, reused = clock(budget.threads), 0.0, 0, 0
    result: BenchRow | None = None  # on all unseen bars
    while spent < 60 * budget.minutes and not (result and is_learnt(job.market, result)):
        report_progress(spent / (60 * budget.minutes))
        begin = now()
        row = trainer.run_iteration()
        spent += now() - begin
        reanalyzed, reused = reanalyzed + row["reanalyzed"], reused + row["reused"]
        is_due = trainer.iteration % budget.eval_interval == 0
        is_near = is_due and is_learnt(job.market, evaluate_agent(quick_eval, trainer))
        result = evaluate_agent(full_eval, trainer) if is_near else None
    report_progress(1.0)
    result = result or evaluate_agent(full_eval, trainer)
    reached = is_learnt(job.market, result)
    return {
        "episodes_to_90": trainer.episodes if reached else None,
        "seconds_to_90": spent if reached else None,
        "ms_per_episode": spent * 1e3 / trainer.episodes,
        "reuse_share": reused / reanalyzed if reanalyzed else 0.0,
        **{name: result[name] for name in ("fraction_of_optimum", "closing_regret", "episodes", "trades")},
    }


def is_learnt(market: str, result: BenchRow) -> bool:
    """Whether an evaluation reaches 90 % of the optimum or, of `close`, closes positions in time."""
    fraction, regret = result["fraction_of_optimum"], result["closing_regret"]
    if market == "close":
        return regret is not None and regret < MAX_CLOSING_REGRET and fraction >= MIN_CLOSE_FRACTION
    return bool(fraction >= MIN_LEARNT_FRACTION)


JOB_KINDS = {COST: measure_cost, LEARN: measure_learning}


def run_job(job: Job, report_progress: ReportProgress) -> BenchRow:
    """The result of a job in a fresh process, with the peak memory of its training."""
    return watch_process(JOB_KINDS[job.kind], job, report_progress)
