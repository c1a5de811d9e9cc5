"""A training whose searches a cluster does has the bytes of one machine: with a Ray of this process."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from host.cluster import cluster, worker, workers
from host.cluster.search import ClusterSearchPool
from host.cluster.worker import SearchWorker
from host.data import bar_cache
from host.training import market_replay
from host.training.trainer import Trainer
from kernels.ort import OrtError
from tests.fixtures.fake_ray import FakeRay, RayActorError
from tests.fixtures.trainings import dataset, same_state, tiny, trained

PLAYED = ["search.algorithm=gumbel", "train.reanalyze_interval=0", "train.num_envs=2", "train.batches_per_iteration=2"]
MODES = {  # how bars are searched, and what else goes to a worker
    "shared tree": [],
    "play and reanalyse": PLAYED,
    "learned codes": ["train.chance_codes=learned"],
}


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    ray = FakeRay(2, 1)
    for module in (cluster, workers):
        monkeypatch.setattr(module, "time", ray)
    monkeypatch.setattr(worker, "import_ray", lambda: ray)
    monkeypatch.setattr(market_replay, "SEARCH_PIECE", 64)
    return ray


def on_cluster(ray: FakeRay, *settings: str, markets: int = 1) -> Trainer:
    config = tiny(*settings)
    trainer = Trainer([dataset(config)] * markets, config, 1)
    trainer.pool = ClusterSearchPool(ray.cluster(), trainer.markets, 1)
    return trainer


def iterate(trainer: Trainer, count: int = 3) -> Trainer:
    for _ in range(count):
        trainer.run_iteration()
    return trainer


@pytest.mark.parametrize("mode", MODES)
def test_a_training_has_the_bytes_of_one_machine(ray: FakeRay, mode: str) -> None:
    assert same_state(iterate(on_cluster(ray, *MODES[mode])), trained(3, 1, *MODES[mode]))
    assert sum(actor.done for actor in ray.actors) > 6 + len(ray.actors)


def test_instruments_have_bars_and_random_numbers_of_their_own(ray: FakeRay) -> None:
    alone = tiny()
    assert same_state(iterate(on_cluster(ray, markets=2)), iterate(Trainer([dataset(alone)] * 2, alone, 1)))


def test_a_death_within_a_phase_changes_no_byte(ray: FakeRay) -> None:
    trainer = on_cluster(ray, *PLAYED)
    ray.on_look = lambda ray: ray.actors[0].die(RayActorError("by signal 9")) if ray.looks == 3 else None
    assert same_state(iterate(trainer), trained(3, 1, *PLAYED))
    assert len(ray.actors) == 4


def test_weights_are_put_once_an_iteration_and_bars_once(ray: FakeRay) -> None:
    iterate(on_cluster(ray, *PLAYED, markets=2), 2)
    assert ray.put_kinds.count("Weights") == 2
    assert ray.put_kinds.count("ndarray") == 2  # the bars of two instruments
    assert ray.put_kinds.count("Config") == 1


def test_bars_reach_a_machine_once(ray: FakeRay, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(bar_cache, "cache_root", lambda: tmp_path / "kernels")
    fetched, get = list[int](), ray.get

    def count_bars(ref: Any, timeout: float | None = None) -> Any:
        value = get(ref, timeout)
        fetched.append(len(value)) if isinstance(value, np.ndarray) else None
        return value

    monkeypatch.setattr(ray, "get", count_bars)
    iterate(on_cluster(ray), 1)
    assert len(ray.actors) == 3
    assert len(fetched) == 1


def test_results_name_their_weights(ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    run: Callable[..., Any] = SearchWorker.run
    monkeypatch.setattr(SearchWorker, "run", lambda *given: run(*given)._replace(weights="old"))
    with pytest.raises(RuntimeError, match="a worker used the weights old, asked for were"):
        iterate(on_cluster(ray), 1)


def test_a_fault_of_a_network_has_its_own_message(ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OrtError("the graph has no output `value`")

    monkeypatch.setattr(worker, "check_status", fail)
    with pytest.raises(OrtError, match=r"^the graph has no output `value`$"):
        iterate(on_cluster(ray), 1)
