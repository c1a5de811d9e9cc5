"""A real Ray cluster of several nodes on this machine: the same bytes, whatever dies, hangs, comes or is another."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from host.cluster import jobs, workers
from host.cluster.cluster import Cluster, ClusterError, open_cluster
from host.cluster.jobs import ClusterJobs
from host.cluster.search import ClusterSearchPool
from host.cluster.worker import JobWorker
from host.cluster.workers import Workers
from host.processes import ReportProgress, Row, run_at_once
from host.stop import EX_TEMPFAIL
from host.training import market_replay
from host.training.trainer import Trainer
from tests.fixtures.clusters import RayNode, RayNodes, ray_nodes
from tests.fixtures.command import new_command
from tests.fixtures.paths import ROOT
from tests.fixtures.runs import printed
from tests.fixtures.sleeper import Sleeper, sleep
from tests.fixtures.trainings import dataset, same_state, tiny, trained

PLAYED = ["search.algorithm=gumbel", "train.reanalyze_interval=0", "train.num_envs=2", "train.batches_per_iteration=2"]
TRAIN = ["train", "bars.csv", "--config", "tiny.toml", "--threads", "1", "--out"]


@pytest.fixture(scope="module")
def connected(ray_cluster: RayNodes) -> Iterator[Cluster]:
    """A driver in this process; its workers find the program where each node has it."""
    before, folder = signal.getsignal(signal.SIGTERM), Path.cwd()
    os.chdir("/")  # Ray adds the folder of the driver to the path of its workers
    with open_cluster(ray_cluster.address) as cluster:
        os.chdir(folder)
        assert signal.getsignal(signal.SIGTERM) is before
        yield cluster


@pytest.fixture
def only(connected: Cluster) -> Callable[..., Cluster]:
    """Makes a cluster of some nodes alone."""

    def of_nodes(*nodes: RayNode, most: int | None = None) -> Cluster:
        found = Cluster(connected.ray, most)
        for node in found.ray.nodes():
            if not any(str(mine.folder) in node["RayletSocketName"] for mine in nodes):
                found.refused[node["NodeID"]] = "not asked"
        return found

    return of_nodes


def iterate(trainer: Trainer) -> Trainer:
    for _ in range(3):
        trainer.run_iteration()
    return trainer


@pytest.mark.parametrize(
    ("actors", "markets", "settings"), [(1, 2, []), (2, 1, PLAYED), (5, 1, ["train.chance_codes=learned"])]
)
def test_any_number_of_actors_gives_the_bytes_of_one_machine(
    connected: Cluster, monkeypatch: pytest.MonkeyPatch, actors: int, markets: int, settings: list[str]
) -> None:
    monkeypatch.setattr(market_replay, "SEARCH_PIECE", 64)
    config = tiny(*settings)
    trainer, alone = (Trainer([dataset(config)] * markets, config, 1) for _ in range(2))
    cluster = Cluster(connected.ray, actors)
    assert cluster.num_workers == actors
    trainer.pool = ClusterSearchPool(cluster, trainer.markets, 1)
    assert same_state(iterate(trainer), iterate(alone) if markets > 1 else trained(3, 1, *settings))


def test_an_actor_killed_within_a_phase_changes_no_byte(
    ray_cluster: RayNodes, only: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    given, give, node, config = list[int](), Workers._give, ray_cluster.nodes[1], tiny(*PLAYED)

    def give_and_kill(self: Workers, worker: Any, number: int, submit: Any) -> None:
        give(self, worker, number, submit)
        given.append(number)
        if len(given) == 3:
            os.kill(node.processes("SearchWorker")[0], signal.SIGKILL)

    monkeypatch.setattr(Workers, "_give", give_and_kill)
    trainer = Trainer([dataset(config)], config, 1)
    trainer.pool = ClusterSearchPool(only(node), trainer.markets, 1)
    assert same_state(iterate(trainer), trained(3, 1, *PLAYED))
    assert capsys.readouterr().err.count("is lost (") == 1


def test_a_node_that_joins_gets_work_and_may_be_lost(
    ray_cluster: RayNodes, only: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The calls after the first wait for a worker of the node that joins."""
    monkeypatch.setattr(workers, "GROW_S", 1.0)
    head, late, gate, kept = ray_cluster.nodes[0], list[RayNode](), tmp_path / "gate", dict[int, int]()
    pool = Workers(only(head, *ray_cluster.nodes[1:2]), Sleeper)

    def submit(actor: Any, number: int) -> Any:
        opener = late[0].processes("raylet/raylet")[0] if late else 0
        return actor.run.remote(number, str(tmp_path if number == 0 else gate), opener)

    def keep_and_join(number: int, raylet: int) -> None:
        kept[number] = raylet
        if not late:
            late.append(ray_cluster.add(1))
            late[0].wait_until_started()

    def keep_and_lose(number: int, raylet: int) -> None:
        keep_and_join(number, raylet)
        if number == 5:
            late[0].kill()

    pool.map(20, submit, keep_and_join)
    assert set(kept) == {*range(20)}
    assert late[0].processes("raylet/raylet")[0] in kept.values()
    kept.clear()
    gate.touch()
    pool.map(20, submit_anything, keep_and_lose)
    assert set(kept) == {*range(20)}


def test_a_node_that_joins_gets_whole_jobs(
    ray_cluster: RayNodes, only: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The jobs after the first wait for one on the node that joins."""
    monkeypatch.setattr(jobs, "GROW_S", 1.0)
    late, raylets, gate = list[RayNode](), list[int](), tmp_path / "gate"
    pool, home = ClusterJobs(only(ray_cluster.nodes[0]), sleep), ray_cluster.nodes[0].processes("raylet/raylet")[0]

    def run(number: int, report: ReportProgress) -> Row:
        return pool.run(number, report, str(gate if number else tmp_path), home)

    def keep_and_join(_: str, row: Row, __: float) -> None:
        raylets.append(row["raylet"])
        if not late:
            node = ray_cluster.add(1)
            node.wait_until_started()
            late.append(node)

    run_at_once({str(number): number for number in range(3)}, pool.room, run, keep_and_join, lambda shares: None)
    assert len(raylets) == 3
    assert late[0].processes("raylet/raylet")[0] in raylets
    late[0].kill()


def submit_anything(actor: Any, number: int) -> Any:
    return actor.run.remote(number, "/", 0)


def test_a_frozen_worker_is_replaced(
    ray_cluster: RayNodes, only: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(workers, "SILENCE_S", 6.0)
    monkeypatch.setattr(workers, "BEAT_S", 1.0)
    node, kept = ray_cluster.nodes[0], list[int]()

    def keep(number: int, _: int) -> None:
        if not kept:
            os.kill(node.processes("Sleeper")[0], signal.SIGSTOP)
        kept.append(number)

    Workers(only(node, most=1), Sleeper).map(8, submit_anything, keep)
    assert sorted(kept) == [*range(8)]
    assert "it said nothing for 6 s" in capsys.readouterr().err


def test_a_node_with_another_program_or_none_is_refused(
    ray_cluster: RayNodes, only: Callable[..., Cluster], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("host", "kernels", "models"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "*.csv"))
    with (tmp_path / "host" / "training" / "market_replay.py").open("a") as file:
        file.write("# another version\n")
    nodes = [ray_cluster.add(1, tmp_path), ray_cluster.add(1, None)]
    for node in nodes:
        node.wait_until_started()
    pool = Workers(only(*nodes), JobWorker)
    with pytest.raises(ClusterError, match="no node may work"):
        pool.map(1, submit_anything, lambda *_: None)
    said = capsys.readouterr().err
    assert said.count(" has another program: ") == 1
    assert said.count(" cannot begin: ModuleNotFoundError: No module named 'host'; it gets no work") == 1
    for node in nodes:
        node.kill()


def start_training(nodes: RayNodes, out: str, *words: str, program: str = "") -> "subprocess.Popen[str]":
    """`train --ray` in a process of its own, whose folder has the bars."""
    run = ["-c", f"{program}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\nimport swt\nswt.main()"]
    command = [sys.executable, *run, *TRAIN, out, "--ray", nodes.address, "--actors", "2", *words]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)


def wait_for_iterations(process: "subprocess.Popen[str]", out: str, count: int) -> None:
    rows = Path(out, "metrics.jsonl")
    while not rows.exists() or len(rows.read_text().splitlines()) < count:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)


def last_iteration(out: str) -> int:
    return int(json.loads(Path(out, "metrics.jsonl").read_text().splitlines()[-1])["iteration"])


def test_a_stopped_and_a_killed_driver_are_resumed_to_the_same_bytes(
    ray_cluster: RayNodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = new_command(tmp_path, monkeypatch, capsys)
    stopped = start_training(ray_cluster, "killed", "--episodes", "2000")
    wait_for_iterations(stopped, "killed", 2)
    stopped.terminate()
    said = stopped.communicate()[1]
    assert (stopped.returncode, "model so far; go on: " in said) == (EX_TEMPFAIL, True), said
    killed = start_training(ray_cluster, "killed", "--resume", "--episodes", "2000")
    wait_for_iterations(killed, "killed", last_iteration("killed") + 2)
    killed.kill()
    killed.communicate()
    episodes = str(2 * (last_iteration("killed") + 3))
    assert command(*TRAIN, "alone", "--episodes", episodes).code == 0
    resumed = start_training(ray_cluster, "killed", "--resume", "--episodes", episodes)
    said = resumed.communicate()[1]
    assert resumed.returncode == 0, said
    assert "resuming after iteration" in said
    assert Path("killed/model.swt").read_bytes() == Path("alone/model.swt").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_during_a_wait_of_ray_keeps_its_exit_code(
    ray_cluster: RayNodes, tmp_path: Path, number: signal.Signals
) -> None:
    program = f"""
import os, threading
from host.cluster.cluster import open_cluster
from host.stop import EX_TEMPFAIL, install_signal_handlers
from tests.fixtures.sleeper import Sleeper
install_signal_handlers(EX_TEMPFAIL)
with open_cluster({ray_cluster.address!r}) as cluster:
    call = cluster.start_worker(Sleeper, cluster.nodes()[0]).run.remote(0, "never", 0)
    threading.Timer(0.5, os.kill, (os.getpid(), {number:d})).start()
    cluster.ray.wait([call])
"""
    command, env = [sys.executable, "-c", program], {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=100)
    assert ended.returncode == EX_TEMPFAIL, ended.stderr


def test_a_frozen_head_ends_in_one_line_and_the_way_on(
    ray_cluster: RayNodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray itself would wait for ever, and for a dead head end the process after a minute."""
    new_command(tmp_path, monkeypatch, capsys)
    with ray_nodes(1) as nodes:
        shorter = "import host.cluster.cluster as c\nc.HEAD_S = 4.0\nc.CLOSE_S = 2.0"
        process = start_training(nodes, "out", "--episodes", "1000000", program=shorter)
        wait_for_iterations(process, "out", 1)
        os.kill(nodes.nodes[0].processes("gcs_server")[0], signal.SIGSTOP)
        said = process.communicate(timeout=100)[1]
    assert process.returncode == 6, said
    last = said.splitlines()[-1]
    assert last.startswith("swt: the head of the cluster said nothing for 4 s: ")
    (again,) = printed(last)
    assert {"--resume", "--ray", nodes.address} <= {*again}
