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
from typing import Any

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
from host.training.trainer import Trainer
from host.walkforward.walkforward import FoldJob, train_fold_elsewhere
from kernels.market.chance import ChanceCodes

GUMBEL = "search.algorithm=gumbel", "search.value_reuse=off"
SETTINGS = {
    "market": (),
    "gumbel, 16": (*GUMBEL, "train.num_simulations=16"),
    "gumbel, 50": (*GUMBEL, "train.num_simulations=50"),
    "transformer, gumbel, 16": (*GUMBEL, "train.num_simulations=16", "network.dynamics=transformer"),
}
CPUS, MEMORY_MB = 8, 16_384  # of a node; the driver's for the replay buffer
GBITS = 1, 10
UPDATES = 8  # of an iteration here: the cost of more is as much larger
WARM_CALLS = 3  # of a kind; the last of them is the one whose cost counts
Costs = dict[str, tuple[float, float, float]]  # of a row by kind of task: CPU seconds, bytes there and back


class RepeatingWorker(SearchWorker):
    """Searches what it has no result of so many rows for."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._results, self._calls, self._costs = dict[tuple[str, int], Result](), Counter[str](), Costs()

    def run(self, weights: Weights, codes: ChanceCodes, task: Task) -> Result:
        """The result of a task, or of another one of its kind and size."""
        kind, n = task.searches.kind, len(task.batch)
        if self._calls[kind] < WARM_CALLS or (kind, n) not in self._results:
            begin = time.thread_time()
            result = self._results[kind, n] = super().run(weights, codes, task)
            seconds = time.thread_time() - begin
            self._costs[kind] = seconds / n, len(pickle.dumps(task)) / n, len(pickle.dumps(result)) / n
            self._calls[kind] += 1
        return self._results[kind, n]._replace(weights=weights.key)

    def costs(self) -> Costs:
        """What a row costs."""
        return self._costs


class CountingPool(ClusterSearchPool):
    """Counts tasks, and their rows by kind."""

    def __init__(self, cluster: Cluster, trainer: Trainer) -> None:
        super().__init__(cluster, trainer.markets, 1, RepeatingWorker)
        self.tasks, self.rows = 0, Counter[str]()

    def search(self, market: Any, searches: Any, rows: Any, networks: Any, batches: Any) -> dict[str, int]:
        """As on a cluster."""
        self.tasks += len(batches)
        self.rows[searches.kind] += sum(len(batch) for _, batch in batches)
        return super().search(market, searches, rows, networks, batches)


def bench_ray(options: BenchOptions) -> list[BenchRow]:
    """A row of an episode for each setting of a training with a full replay buffer, and one of a training elsewhere."""
    with open_cluster(options.ray or AUTO, 1) as cluster:
        rows = [training_row(cluster, name, [*options.settings, *own], options) for name, own in SETTINGS.items()]
        return [*rows, job_row(cluster, options)]


def training_row(cluster: Cluster, name: str, settings: list[str], options: BenchOptions) -> BenchRow:
    """What an episode costs a worker, the driver and the network; and the nodes at which each is the limit.

    "tasks" is how many nodes the tasks of an iteration keep busy; memory is that of as many episodes as do it.
    """
    market, config = SyntheticOptions(length=options.length), load_config(None, settings)
    few = load_config(None, [*settings, f"train.updates_per_iteration={UPDATES}"])
    trainer, _ = new_synthetic_trainer("planted", market, few, 1)
    pool, t, found = CountingPool(cluster, trainer), config.train, list[Costs]()
    trainer.pool, n = pool, t.num_envs * t.batches_per_iteration
    for _ in range(1 + math.ceil(t.replay_capacity / n)):
        trainer.run_iteration()
    pool.tasks, pool.rows = 0, Counter()
    whole = [cpu_seconds(trainer.run_iteration) for _ in range(options.rounds)]
    learn = [cpu_seconds(trainer.learn) for _ in range(options.rounds)]
    pool.workers.map(1, lambda actor, _: actor.costs.remote(), lambda _, costs: found.append(costs))
    work = {kind: rows / options.rounds / n for kind, rows in pool.rows.items()}  # rows of an episode
    worker_s, there, back = (sum(found[0][kind][i] * rows for kind, rows in work.items()) for i in range(3))
    few_s, tasks = statistics.median(learn), pool.tasks / options.rounds
    learn_s = few_s / n * t.updates_per_iteration / UPDATES
    weights = sum(map(len, trainer.export_networks().graphs.values()))
    row = node_limits(name, worker_s, (statistics.median(whole) - few_s) / n, there, back, weights / n)
    replay, busy = trainer.markets[0].replay, tasks / (IN_FLIGHT * CPUS)
    features = 4 * trainer.learner.shape.features * config.market.episode_length
    memory = t.replay_capacity * (nbytes(replay) / len(replay.start_bar) + features)
    limits = {"learning": worker_s / learn_s / CPUS, "memory": MEMORY_MB * 2**20 / memory * busy, "tasks": busy}
    return {**row, "weights_kb": weights / 1024, "learn_ms": 1e3 * learn_s, **limits}


def job_row(cluster: Cluster, options: BenchOptions) -> BenchRow:
    """What a training of a walk-forward costs that takes `options.minutes`; its files are those of a real one."""
    config, walk_options = (
        load_config(None, [*options.settings]),
        WalkOptions(Path("walk"), folds=1, seeds=1, episodes=1),
    )
    walk = read_walks([], ReadOptions(), config, walk_options)[0]
    (job,) = walk_jobs(walk, {"training_minutes": None}, config, walk_options, False).values()
    given = bars_key(walk.series.bars), cluster.ray.put(bars_matrix(walk.series.bars))
    row = ClusterJobs(cluster, train_fold_elsewhere).run(job, ignore, *given)
    again = ClusterJobs(cluster, give_again)
    seconds = statistics.median(cpu_seconds(lambda: again.run(job, ignore, row)) for _ in range(options.rounds))
    there, back = len(pickle.dumps(job)), len(pickle.dumps(row))
    limits = node_limits("walk-forward", 60 * options.minutes, seconds, there, back, 0.0)
    return {**limits, **dict.fromkeys(("weights_kb", "learn_ms", "learning", "memory", "tasks"))}


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


def node_limits(name: str, worker_s: float, driver_s: float, there: float, back: float, weights: float) -> BenchRow:
    """Nodes of CPUS workers that keep the driver, or a network, busy; `weights` are bytes of an episode and node.

    N nodes make CPUS N / worker_s episodes a second, for each of which there + back + weights N bytes travel.
    """
    each, limits = there + back, dict[str, float]()
    for gbit in GBITS:
        rate = gbit * 1e9 / 8 * worker_s / CPUS  # = each N + weights N^2
        limits[f"{gbit} Gbit/s"] = 2 * rate / (each + math.sqrt(each**2 + 4 * weights * rate))
    costs = {"worker_ms": 1e3 * worker_s, "driver_ms": 1e3 * driver_s, "kb_there": there / 1024, "kb_back": back / 1024}
    return {"work": name, **costs, "driver": worker_s / driver_s / CPUS, **limits}


def ray_table(rows: list[BenchRow]) -> list[Any]:
    """The figures, and how the nodes at which the driver is the limit follow from them."""
    table = list[Any]()
    for row in rows:
        table.append(
            {key: "" if cell is None else cell if isinstance(cell, str) else f"{cell:.3g}" for key, cell in row.items()}
        )
    for row in rows:
        for limit, cost in (("driver", "driver_ms"), ("learning", "learn_ms")):
            if row[cost]:
                figures = f"{row['worker_ms']:.4g} / {row[cost]:.4g} / {CPUS} = {row[limit]:.3g} nodes"
                table.append(f"{row['work']}, {limit}: {figures}")
    return table
