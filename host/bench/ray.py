"""`bench ray`: what a cluster costs its driver and its network, and the number of nodes at which that is the limit.

A worker here searches a task of each kind, then gives the same result again: all else that is measured is the driver's.
"""

import math
import pickle
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from host.bench.kernels import new_synthetic_trainer
from host.bench.options import BenchOptions
from host.bench.process import BenchRow
from host.cluster.cluster import AUTO, Cluster, open_cluster
from host.cluster.jobs import ClusterJobs
from host.cluster.search import ClusterSearchPool
from host.cluster.worker import Result, SearchWorker, Task, Weights
from host.cluster.workers import IN_FLIGHT
from host.commands.walkforward import WalkOptions, read_walks, walk_jobs
from host.config import load_config
from host.data.bar_cache import bars_key, bars_matrix
from host.data.formats import ReadOptions
from host.evaluation.synthetic import SyntheticOptions
from host.processes import ReportProgress, Row
from host.training.memory_plan import nbytes
from host.walkforward.walkforward import FoldJob, train_fold_elsewhere
from kernels.market.chance import ChanceCodes

GUMBEL = "search.algorithm=gumbel", "search.value_reuse=off"
FEW, MANY = "train.num_simulations=16", ("train.num_simulations=50", "train.batches_per_iteration=32")
LARGE = *GUMBEL, *MANY, "train.replay_capacity=1536"  # 16 times the episodes of an iteration, for as many updates
SETTINGS = {
    "market": (),
    "gumbel, 16": (*GUMBEL, FEW),
    "gumbel, 50, 512 episodes": LARGE,
    "transformer, gumbel, 50, 512 episodes": (*LARGE, "network.dynamics=transformer"),
}
CPUS, MEMORY_MB, GBITS = 8, 16_384, (1, 10)  # of a node; of the driver's for the replay buffer; of a network
UPDATES = 8  # of an iteration here: the cost of more is as much larger
WARM_CALLS = 3  # of a kind; the last of them is the one whose cost counts


class Cost(NamedTuple):
    """Of a row of a kind of task."""

    seconds: float  # of a CPU
    there: float  # bytes
    back: float


class RepeatingWorker(SearchWorker):
    """Searches what it has no result of so many rows for; counts tasks, and their rows by kind."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._results, self._calls = dict[tuple[str, int], Result](), Counter[str]()
        self._costs, self._rows, self._tasks = dict[str, Cost](), Counter[str](), 0

    def run(self, weights: Weights, codes: ChanceCodes, task: Task) -> Result:
        """The result of a task, or of another one of its kind and size."""
        kind, n = task.searches.kind, len(task.batch)
        if self._calls[kind] < WARM_CALLS or (kind, n) not in self._results:
            begin = time.thread_time()
            result = self._results[kind, n] = super().run(weights, codes, task)
            seconds = time.thread_time() - begin
            self._costs[kind] = Cost(*(x / n for x in (seconds, len(pickle.dumps(task)), len(pickle.dumps(result)))))
            self._calls[kind] += 1
        self._rows[kind] += n
        self._tasks += 1
        return self._results[kind, n]._replace(weights=weights.key)

    def spent(self) -> tuple[Cost, int]:
        """What all tasks since the last such call cost, and their number."""
        parts = [[rows * x for x in self._costs[kind]] for kind, rows in self._rows.items()]
        total, tasks, self._rows, self._tasks = Cost(*map(sum, zip(*parts, strict=True))), self._tasks, Counter(), 0
        return total, tasks


def bench_ray(options: BenchOptions) -> list[BenchRow]:
    """A row of an episode for each setting of a training with a full replay buffer, and one of a training elsewhere."""
    with open_cluster(options.ray or AUTO, 1) as cluster:
        rows = [training_row(cluster, name, [*options.settings, *own], options) for name, own in SETTINGS.items()]
        return [*rows, job_row(cluster, options)]


def training_row(cluster: Cluster, name: str, settings: list[str], options: BenchOptions) -> BenchRow:
    """What an episode costs a worker, the driver and the network; and the nodes at which each is the limit.

    "tasks" is how many nodes the tasks of an iteration keep busy; memory is that of as many episodes as do it.
    """
    market, asked = SyntheticOptions(length=options.length), load_config(None, settings).train
    config = load_config(None, [*settings, f"train.updates_per_iteration={UPDATES}"])
    trainer, _ = new_synthetic_trainer("planted", market, config, 1)
    trainer.pool = pool = ClusterSearchPool(cluster, trainer.markets, 1, RepeatingWorker)
    spent, episodes = list[tuple[Cost, int]](), asked.num_envs * asked.batches_per_iteration

    def measure(iterations: int) -> list[float]:
        seconds = [cpu_seconds(trainer.run_iteration) for _ in range(iterations)]
        pool.workers.map(1, lambda actor, _: actor.spent.remote(), lambda _, total: spent.append(total))
        return seconds

    measure(1 + math.ceil(asked.replay_capacity / episodes))  # until the replay buffer is full
    whole_s = statistics.median(measure(options.rounds))
    learn_s = statistics.median([cpu_seconds(trainer.learn) for _ in range(options.rounds)])
    per_episode, busy = Cost(*(x / options.rounds / episodes for x in spent[1][0])), spent[1][1] / options.rounds
    busy /= IN_FLIGHT * CPUS
    weights = sum(map(len, trainer.export_networks().graphs.values()))
    row = node_limits(name, per_episode, (whole_s - learn_s) / episodes, weights / episodes)
    learn_s *= asked.updates_per_iteration / UPDATES / episodes
    replay, features = trainer.markets[0].replay, trainer.learner.shape.features * config.market.episode_length
    memory = asked.replay_capacity * (nbytes(replay) / len(replay.start_bar) + 4 * features)
    limits = {"learning": per_episode.seconds / learn_s / CPUS, "memory": MEMORY_MB * 2**20 / memory * busy}
    return {**row, "weights_kb": weights / 1024, "learn_ms": 1e3 * learn_s, **limits, "tasks": busy}


def job_row(cluster: Cluster, options: BenchOptions) -> BenchRow:
    """What a training of a walk-forward costs that takes `options.minutes`; its files are those of a real one."""
    config, asked = load_config(None, [*options.settings]), WalkOptions(Path("walk"), folds=1, seeds=1, episodes=1)
    walk = read_walks([], ReadOptions(), config, asked)[0]
    (job,) = walk_jobs(walk, {"training_minutes": None}, config, asked, False).values()
    given = bars_key(walk.series.bars), cluster.ray.put(bars_matrix(walk.series.bars))
    row = ClusterJobs(cluster, train_fold_elsewhere).run(job, ignore, *given)
    again = ClusterJobs(cluster, give_again)
    seconds = statistics.median(cpu_seconds(lambda: again.run(job, ignore, row)) for _ in range(options.rounds))
    cost = Cost(60 * options.minutes, len(pickle.dumps(job)), len(pickle.dumps(row)))
    none = dict.fromkeys(("weights_kb", "learn_ms", "learning", "memory", "tasks"))
    return {**node_limits("walk-forward", cost, seconds, 0.0), **none}


def give_again(_: FoldJob, report: ReportProgress, row: Row) -> Row:
    """A job that takes no time."""
    return row


def ignore(_: float) -> None:
    """Show no progress."""


def cpu_seconds(call: Callable[[], object]) -> float:
    """Of all threads of this process."""
    begin = time.process_time()
    call()
    return time.process_time() - begin


def node_limits(work: str, cost: Cost, driver_s: float, weights: float) -> BenchRow:
    """Nodes that keep the driver, or a network, busy; `weights` are bytes for each of them, of an episode.

    N nodes make CPUS N / cost.seconds episodes a second; for each, there + back + weights N bytes travel.
    """
    each, limits = cost.there + cost.back, dict[str, float]()
    for gbit in GBITS:
        rate = gbit * 1e9 / 8 * cost.seconds / CPUS  # = each N + weights N^2
        limits[f"{gbit} Gbit/s"] = 2 * rate / (each + math.sqrt(each**2 + 4 * weights * rate))
    row = {"work": work, "worker_ms": 1e3 * cost.seconds, "driver_ms": 1e3 * driver_s, "kb_there": cost.there / 1024}
    return {**row, "kb_back": cost.back / 1024, "driver": cost.seconds / driver_s / CPUS, **limits}


def ray_table(rows: list[BenchRow]) -> list[Any]:
    """The figures, and how the nodes at which the driver is the limit follow from them."""
    table: list[Any] = [
        {key: cell if isinstance(cell, str) else f"{cell:.3g}" if cell else "-" for key, cell in row.items()}
        for row in rows
    ]
    for row in rows:
        for limit, cost in (("driver", "driver_ms"), ("learning", "learn_ms")):
            if row[cost]:
                sum_text = f"{row['worker_ms']:.4g} / {row[cost]:.4g} / {CPUS} = {row[limit]:.3g} nodes"
                table.append(f"{row['work']}, {limit}: {sum_text}")
    return table
