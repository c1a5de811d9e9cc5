"""`bench ray`: the nodes that follow from measured costs, and that what is counted is what a cluster does."""

import io
from dataclasses import replace

import pytest

from host.bench import ray
from host.bench.acting import SMALL_TRAINING
from host.bench.all import print_bench, run_bench
from host.bench.options import BenchOptions
from host.bench.ray import CPUS, Cost, node_limits
from tests.fixtures.clusters import RayNodes

SIZES = ("market.episode_length=24", "network.hidden=8", "train.num_simulations=2", "search.num_simulations=2")
TINY = BenchOptions(rounds=1, length=2000, settings=(*SMALL_TRAINING, *SIZES))


def test_nodes_are_those_at_which_a_part_works_all_the_time() -> None:
    """100 nodes make 80 episodes a second of 10 s each, which take the driver 12.5 ms each."""
    row = node_limits("training", Cost(10.0, 1e6, 0.5e6), 0.0125, 1000.0)
    assert row["driver"] == pytest.approx(100)
    for gbit in (1, 10):
        nodes = row[f"{gbit} Gbit/s"]
        episodes_per_s = nodes * CPUS / 10.0
        assert episodes_per_s * (1.5e6 + 1000.0 * nodes) == pytest.approx(gbit * 1e9 / 8)


def test_an_episode_and_a_training_are_counted(ray_cluster: RayNodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "SETTINGS", {"gumbel": ray.GUMBEL})
    document = run_bench("ray", replace(TINY, ray=ray_cluster.address))
    training, job = document
    assert min(value for value in training.values() if isinstance(value, float)) > 0
    of_trainings = {"weights_kb", "learn_ms", "learning", "memory", "tasks"}
    assert {name for name, value in job.items() if value is None} == of_trainings
    assert job["worker_ms"] == 60e3
    assert job["kb_back"] > 20  # a model
    out = io.StringIO()
    print_bench("ray", document, out)
    lines = out.getvalue().splitlines()
    assert len(lines) == 1 + 2 + 3
    figures = lines[3].split()
    assert float(figures[2]) / float(figures[4]) / CPUS == pytest.approx(float(figures[-2]), rel=0.01)
