"""The jobs of `bench enhancements`: what one configuration costs, and its learning curve on a known market.

Each runs in a process of its own, which its parent watches.  A cost on one thread is CPU time; a learning curve has no
times, so it may be measured on any machine and beside other jobs.
"""

import ast
import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from host.artifact.manifest import ModelMarket, save_model
from host.bench.kernels import new_synthetic_trainer
from host.bench.options import Budget
from host.bench.process import ROOT, BenchRow, TimedCall, clock, median_seconds
from host.bench.search import bind, network_calls
from host.config import Config
from host.evaluation.backtest import run_backtest
from host.evaluation.exam import new_evaluation_set, selftest_config
from host.evaluation.learning import measure_agent
from host.evaluation.synthetic import SyntheticMarket, SyntheticOptions
from host.live.live_agent import new_policy_state
from host.processes import ReportProgress, watch_process
from host.training.dataset import Dataset
from host.training.run_dir import MAX_CHECKPOINTS, open_run_dir
from host.training.trainer import Trainer
from kernels.jit import cache_root
from kernels.market.ledger import new_market
from kernels.search.planner import STATS, Planner, plan
from kernels.search.progressive_widening import sampled_tree_bytes

LEARNED_MARKETS = ("planted", "planted-hard", "close")
COST, LEARN = "cost", "learn"  # kinds of jobs
FULL_FRACTION = 0.97  # of the optimum: two evaluations in a row that reach it end a job
FULL_FRACTION_OF = {"planted": 0.95}  # where the window of an agent shows no more
PLATEAU_FRACTION = 0.5  # of the optimum, or more, is there at a plateau: below it an agent may not trade yet
PLATEAU_EVALUATIONS, PLATEAU_RISE = 8, 0.01  # so many that rise by no more of the optimum end a job
MEASURES = ("expected_fraction", "q_slope", "q_correlation", "exposure", "chance_nll")  # of an evaluation
# What can change a learning curve, with the settings; other files are commands, streams and what is live.
LEARNING_SOURCES = (
    *("kernels/**/*.py", "models/**/*.py", "host/training/*.py", "host/evaluation/*.py"),
    *("host/artifact/networks.py", "host/bench/enhancement_run.py"),
)


class Job(NamedTuple):
    """What one process measures and one line keeps."""

    kind: str  # COST or LEARN
    market: str
    seed: int
    settings: tuple[str, ...]
    budget: Budget


@cache
def resolve(settings: tuple[str, ...], market: str) -> Config:
    """The configuration of `--set` settings over those of a market; raises ConfigError on one that does not exist."""
    return selftest_config([*settings], market)


def job_config(job: Job) -> Config:
    """The resolved configuration of a job."""
    return resolve((*job.budget.settings, *job.settings, f"train.seed={job.seed}"), job.market)


def job_key(job: Job) -> str:
    """Name of the job's line: equal for settings that resolve to the same configuration of the same program."""
    config = resolve((*job.budget.settings, *job.settings), job.market).as_dict()
    key = [job.kind, job.market, job.seed, config, job.budget, program_version()]
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:20]


@cache
def program_version(root: Path = ROOT) -> str:
    """Hash of the LEARNING_SOURCES in `root`; an edit of a comment or a docstring makes no other program."""
    texts = hashlib.sha256()
    for path in sorted({path for pattern in LEARNING_SOURCES for path in root.glob(pattern)}):
        texts.update(
            path.relative_to(root).as_posix().encode() + without_comments(path.read_text(encoding="utf-8")).encode()
        )
    return texts.hexdigest()[:16]


def without_comments(text: str) -> str:
    """The statements of a Python text without its comments and docstrings."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [s for s in body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]  # type: ignore[attr-defined]
    return ast.dump(tree)


def new_trainer(job: Job) -> tuple[Trainer, SyntheticMarket]:
    """A trainer at its beginning, and the market."""
    options = SyntheticOptions(length=job.budget.length, seed=job.seed)
    return new_synthetic_trainer(job.market, options, job_config(job), job.budget.threads)


def measure_cost(job: Job, report_progress: ReportProgress) -> BenchRow:
    """What a training of a few iterations costs, and a decision of its agent, with and without its network calls.

    The first third of the iterations loads kernels and fills the replay buffer: times and shares are of the others.
    """
    (trainer, _), budget, now = new_trainer(job), job.budget, clock(job.budget.threads)
    rows = list[BenchRow]()
    for iteration in range(budget.iterations):
        report_progress(iteration / budget.iterations)
        begin = now()
        rows.append(trainer.run_iteration() | {"cpu_s": now() - begin})
    report_progress(1.0)  # the memory is that of the training
    steady = rows[budget.iterations // 3 :]
    iteration_s = statistics.median(row["cpu_s"] for row in steady)
    reused, reanalyzed = (sum(row[name] for row in steady) for name in ("reused", "reanalyzed"))
    digest = hashlib.sha256(trainer.learner.params.tobytes()).hexdigest()
    with threadpool_limits(1, "blas"):
        (learning,) = median_seconds([trainer.learn], budget.rounds, now)
    data, search = trainer.markets[0].data, trainer.acting_search_config()
    policy = new_policy_state(trainer.export_networks(), data.market_spec, search)
    run_backtest(policy, data.bars, data.extra_features, data.test_first, data.test_first + 1 + budget.decisions)
    stats = dict(zip(STATS, policy.planner.stats.tolist(), strict=True))
    calls: list[TimedCall] = [bind(plan, policy.planner), network_calls(policy.planner)]
    whole, networks = median_seconds(calls, budget.rounds, time.thread_time)
    return {
        "tree_kb": planner_tree_bytes(policy.planner) / 1024,
        "us_per_decision": whole * 1e6,
        "selection_us": (whole - networks) * 1e6,
        "rows_per_decision": stats["rows"] / stats["searches"],
        "ms_per_episode": iteration_s * 1e3 * budget.iterations / trainer.episodes,
        "reuse_share": reused / reanalyzed if reanalyzed else 0.0,
        "ms_per_step": learning * 1e3 / trainer.config.train.updates_per_iteration,
        "storage_mb": storage_mb(trainer),
        "weights_sha256": digest,
    }


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
        spec, search = trainer.markets[0].data.market_spec, trainer.acting_search_config()
        markets = [ModelMarket(spec, {"span": ["", ""], "sha256": ""})]
        save_model(run.path / "model.swt", trainer.export_networks(), markets, search, trainer.config.as_dict())
        return sum(path.stat().st_size for path in Path(folder).rglob("*")) / 2**20


def measure_learning(job: Job, report_progress: ReportProgress) -> BenchRow:
    """Train until a plateau or all episodes are played: the learning curve, and an evaluation of all unseen bars."""
    (trainer, market), budget = new_trainer(job), job.budget
    data = with_own_rules(trainer.markets[0].data, job.market)
    some, all_bars = (new_evaluation_set(market, data, bars) for bars in (budget.eval_bars, None))
    full = FULL_FRACTION_OF.get(job.market, FULL_FRACTION)
    curve: dict[str, list[float]] = {name: [] for name in ("episodes", *MEASURES)}
    while trainer.episodes < budget.episodes and not is_plateau(curve["expected_fraction"], full):
        report_progress(trainer.episodes / budget.episodes)
        trainer.run_iteration()
        if trainer.iteration % budget.eval_interval == 0:
            point = {"episodes": trainer.episodes, **measure_agent(some, trainer)}
            for name, values in curve.items():
                values.append(point[name])
    report_progress(1.0)
    end = measure_agent(all_bars, trainer)
    kept = (*MEASURES, "fraction_of_optimum", "closing_regret", "trades")
    return {"curve": curve, "end": {name: end[name] for name in kept}}


def with_own_rules(data: Dataset, market: str) -> Dataset:
    """`data` with the sizes and the risk term of the market itself: whatever a variant has, its optimum is the same."""
    own, spec = resolve((), market).market, data.market_spec
    rules, sizes = spec.market._asdict(), tuple(own.position_sizes)
    rules |= {"sizes": sizes, "position_adjustment": own.position_adjustment, "risk_aversion": own.risk_aversion}
    return data._replace(market_spec=spec._replace(market=new_market(**rules)))


def is_plateau(fraction: Sequence[float], full: float = FULL_FRACTION) -> bool:
    """Whether more training would show little, by the fractions of the optimum of all evaluations so far.

    Two in a row reach `full`; or PLATEAU_FRACTION was reached, and none of the PLATEAU_EVALUATIONS that followed
    exceeds the best before them by more than PLATEAU_RISE.
    """
    if len(fraction) > 1 and min(fraction[-2:]) >= full:
        return True
    best = max(fraction[:-PLATEAU_EVALUATIONS], default=0.0)
    return best >= PLATEAU_FRACTION and max(fraction[-PLATEAU_EVALUATIONS:]) <= best + PLATEAU_RISE


def measure_job(job: Job, report_progress: ReportProgress) -> BenchRow:
    """The result of a job."""
    return (measure_cost if job.kind == COST else measure_learning)(job, report_progress)


def run_job(job: Job, report_progress: ReportProgress) -> BenchRow:
    """The result of a job in a fresh process, with the peak memory of its training.

    A cost whose process has compiled kernels is measured again: the compiler takes memory that a training does not.
    """
    known, row = num_compiled(), watch_process(measure_job, job, report_progress)
    return run_job(job, report_progress) if job.kind == COST and num_compiled() > known else row


def num_compiled() -> int:
    """Files of machine code in the cache."""
    return sum(1 for _ in cache_root().rglob("*.nb*"))
