"""Jobs on a cluster give the results of one machine, whatever dies.  Ray is that of this process but for one test."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from host.cluster import cluster, jobs
from host.cluster.cluster import GIVE_UP_S, SILENCE_S, ClusterError, Identity, identity
from host.cluster.jobs import MAX_LOSSES, ClusterJobs
from host.cluster.worker import JobWorker
from host.cluster.workers import GROW_S
from host.commands.walkforward import WalkOptions, walkforward_csv
from host.config import load_config
from host.data.formats import ReadOptions
from host.processes import MEMORY_FIELDS, ReportProgress, Row, run_at_once
from host.walkforward.walkforward import AGENT, RIVALS, train_fold
from tests.fixtures.clusters import RayNodes
from tests.fixtures.fake_ray import FakeRay, RayActorError, RayError
from tests.fixtures.paths import ROOT
from tests.fixtures.runs import LINES, TINY


def double(job: float, report: ReportProgress) -> Row:
    """A job; a negative one is at fault."""
    report(0.5)
    if job < 0:
        raise FloatingPointError(f"{job} is not finite")
    return {"twice": 2 * job}


class OtherWorker(JobWorker):
    """What a node with another program starts."""

    def identity(self) -> Identity:
        return identity()._replace(program="other")


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    ray = FakeRay(1, 2)
    monkeypatch.setattr(jobs, "time", ray)
    monkeypatch.setattr(cluster, "time", ray)
    return ray


def doubles(ray: FakeRay, *numbers: float, report: ReportProgress = lambda share: None) -> Row:
    """The last of some jobs, one after the other."""
    pool = ClusterJobs(ray.cluster(), double)
    rows = [pool.run(number, report) for number in numbers]
    assert [row["twice"] for row in rows] == [2 * number for number in numbers]
    assert pool._busy.total() == 0
    return rows[-1]


def test_a_row_has_the_result_and_the_peaks_of_memory(ray: FakeRay) -> None:
    shares, end = list[float](), ray.now + 3 * GIVE_UP_S

    def compute(ray: FakeRay) -> None:
        for actor in ray.actors:
            actor.is_busy = ray.now < end

    ray.on_look = compute  # for long, which is no silence
    row = doubles(ray, 3.0, report=shares.append)
    assert {*row} == {"twice", *MEMORY_FIELDS}
    assert min(row[name] for name in MEMORY_FIELDS) > 1
    assert ray.now > end
    assert {*shares} == {0.0}
    assert ray.killed == ray.actors  # a process does one job


def test_the_emptiest_node_is_taken_and_none_is_too_full(ray: FakeRay) -> None:
    pool, taken = ClusterJobs(ray.cluster(), double), list[str]()

    def stop_if_full(_: float) -> None:
        if len(taken) == 3:
            raise InterruptedError

    def fill() -> None:
        while True:
            taken.append(pool._take_node(stop_if_full).id)

    with pytest.raises(InterruptedError):
        fill()
    assert sorted(taken) == ["n0", "n1", "n1"]
    assert taken[0] == "n1"
    pool = ClusterJobs(ray.cluster(most=1), double)
    pool._take_node(lambda share: None)
    looks = iter([0.0])
    with pytest.raises(StopIteration):
        pool._take_node(lambda share: next(looks))


def test_there_is_room_on_nodes_that_join_and_are_not_refused(ray: FakeRay) -> None:
    all_of_them, some = ClusterJobs(ray.cluster(), double), ClusterJobs(ray.cluster(most=4), double)
    assert (all_of_them.room(), some.room()) == (3, 3)
    ray.machines["late"] = 3
    assert all_of_them.room() == 3
    ray.now += 1.1 * GROW_S
    assert (all_of_them.room(), some.room()) == (6, 4)
    all_of_them.cluster.refused["n1"] = "n1 has another program"
    assert all_of_them.room() == 4
    ray.machines.clear()
    assert ClusterJobs(ray.cluster(), double).room() == 1  # who waits for a node


def test_more_jobs_run_at_once_when_there_is_more_room() -> None:
    """And none begins before it, to wait with its folder locked."""
    meeting, begun, kept, seen = threading.Barrier(3, timeout=30), list[int](), list[str](), list[int]()

    def room() -> int:
        seen.append(len(begun))
        return 1 if len(seen) < 4 else 3

    def meet(number: int, _: ReportProgress) -> Row:
        begun.append(number)
        meeting.wait()
        return {}

    def keep(name: str, row: Row, seconds: float) -> None:
        kept.append(name)

    run_at_once({str(number): number for number in range(6)}, room, meet, keep, lambda shares: None)
    assert sorted(kept) == [*"012345"]
    assert max(seen[:4]) == 1
    assert begun[0] == 0


def test_a_head_that_is_lost_ends_the_jobs_that_run() -> None:
    """Ray would end this process a minute later, without a word on how to go on."""
    looks, ended = itertools.count(), list[int]()

    def room() -> int:
        if next(looks) == 2:
            raise ClusterError("the head said nothing")
        return 1

    def run_long(number: int, report: ReportProgress) -> Row:
        try:
            while True:
                report(0.5)
                time.sleep(0.01)
        finally:
            ended.append(number)

    with pytest.raises(ClusterError, match=r"^the head said nothing$"):
        run_at_once({"0": 0, "1": 1}, room, run_long, lambda *_: None, lambda shares: None)
    assert ended == [0]


@pytest.mark.parametrize("error", [RayActorError("dead\n  by signal 9. Some causes"), RayError("by signal 9")])
def test_a_lost_job_begins_again(ray: FakeRay, capsys: pytest.CaptureFixture[str], error: RayError) -> None:
    ray.on_look = lambda ray: ray.actors[0].die(error) if ray.looks == 2 else None
    doubles(ray, 3.0, 4.0)
    assert len(ray.actors) == 3
    assert capsys.readouterr().err == "a job on n1 is lost (by signal 9); it begins again\n"


def test_a_silent_job_begins_again_and_its_killer_is_named(ray: FakeRay, capsys: pytest.CaptureFixture[str]) -> None:
    def hang(count: int) -> Callable[[FakeRay], None]:
        def hang_some(ray: FakeRay) -> None:
            for actor in ray.actors[:count]:
                actor.is_hung = actor.done > 0

        return hang_some

    ray.on_look, begin = hang(1), ray.now
    doubles(ray, 3.0)
    assert SILENCE_S < ray.now - begin < 1.1 * SILENCE_S
    assert f"is lost (it said nothing for {SILENCE_S:.0f} s); it" in capsys.readouterr().err
    ray.on_look = hang(99)
    with pytest.raises(ClusterError, match=rf"^a job has lost {MAX_LOSSES} processes, the last on n1: it said nothing"):
        doubles(ray, 5.0)


def test_a_fault_is_that_of_the_job(ray: FakeRay) -> None:
    with pytest.raises(FloatingPointError, match=r"^-1.0 is not finite$"):
        doubles(ray, 3.0, -1.0)
    assert ray.killed == ray.actors


def test_a_stop_ends_the_process_of_a_job(ray: FakeRay) -> None:
    def stop(_: float) -> None:
        if ray.actors:
            raise InterruptedError

    ray.on_look = lambda ray: setattr(ray.actors[0], "is_hung", True)
    with pytest.raises(InterruptedError):
        doubles(ray, 3.0, report=stop)
    assert ray.killed == ray.actors


def test_a_refused_node_gets_no_job(
    ray: FakeRay, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ray._start
    monkeypatch.setattr(
        ray, "_start", lambda kind, node, args: start(OtherWorker if node == "n1" else kind, node, args)
    )
    doubles(ray, 3.0, 4.0)
    assert [(actor.node, actor.done) for actor in ray.actors] == [("n1", 1), ("n0", 2), ("n0", 2)]
    assert capsys.readouterr().err.count("n1 has another program: other, here ") == 1
    error = RayActorError("creation task\n  No module named 'host'")
    error.actor_init_failed = True
    ray.on_look = lambda ray: ray.actors[-1].die(error)
    with pytest.raises(ClusterError, match=r"no node may work: .*n1 cannot begin: No module named 'host'"):
        doubles(ray, 5.0)


def test_a_cluster_that_starts_nothing_is_given_up(ray: FakeRay) -> None:
    """But not while other jobs answer: a node may be full of the work of others."""
    ray.on_look = lambda ray: setattr(ray.actors[0], "is_hung", ray.now < 1000 + 0.9 * GIVE_UP_S)
    doubles(ray, 3.0)
    ray.on_look = lambda ray: setattr(ray.actors[-1], "is_hung", True)
    with pytest.raises(ClusterError, match=r"no answer for 150 s \(n1 starts no process; 2 nodes are there\)"):
        doubles(ray, 4.0)
    pool = ClusterJobs(ray.cluster(), double)
    with pytest.raises(ClusterError, match=r"no answer for 150 s \(n1 starts no process"):
        pool.run(4.0, lambda share: pool.room() and None)  # nodes that are looked at are no process
    ray.machines.clear()
    with pytest.raises(ClusterError, match=r"for 150 s \(no node is there"):
        doubles(ray, 5.0, report=lambda share: ray.sleep(60.0))


WALK = WalkOptions(Path("out"), folds=1, seeds=2, episodes=4)


def walk(out: str, address: str | None, runner: Any = None) -> Row:
    options, reading = WALK._replace(out=Path(out), ray=address), ReadOptions(side="ask", symbol="EURUSD")
    config = load_config(Path("tiny.toml"))
    return walkforward_csv([Path("bars.csv")], reading, config, options, *([runner] if runner else []))


def test_a_walk_goes_on_after_its_driver_and_a_job_are_killed(
    ray_cluster: RayNodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """To the bytes of one machine."""
    monkeypatch.chdir(tmp_path)
    Path("bars.csv").write_text("".join(LINES))
    Path("tiny.toml").write_text(TINY)
    words = (
        "walkforward bars.csv --side ask --symbol EURUSD --config tiny.toml --folds 1 --seeds 2 --episodes 4 --out out"
    )
    command = [sys.executable, str(ROOT / "swt.py"), *words.split(), "--ray", ray_cluster.address, "--actors", "1"]
    driver = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while not (results := [*Path("out/bars").glob("*/result.json")]):
        assert driver.poll() is None, driver.communicate()[1]
        time.sleep(0.05)
    driver.kill()
    driver.communicate()
    first, kept, follow = results[0], results[0].stat().st_mtime_ns, ClusterJobs._follow

    def kill_and_follow(self: ClusterJobs, *args: Any) -> Row:
        monkeypatch.setattr(ClusterJobs, "_follow", follow)
        for node in ray_cluster.nodes:
            for number in node.processes("JobWorker"):
                os.kill(number, signal.SIGKILL)
        return follow(self, *args)

    monkeypatch.setattr(ClusterJobs, "_follow", kill_and_follow)
    document = walk("out", ray_cluster.address)
    said = capsys.readouterr()
    assert "1 trainings, " in said.err
    assert said.err.count(" is lost (") == 1
    assert said.out == ""
    assert first.stat().st_mtime_ns == kept
    alone = walk("alone", None, train_fold)
    for seed in range(2):
        for name in ("model.swt", "daily.csv", *(f"{agent}.npy" for agent in (AGENT, *RIVALS))):
            file = Path("bars", f"1-{seed}", name)
            assert Path("out", file).read_bytes() == Path("alone", file).read_bytes(), file
    assert document["markets"][0]["seeds"] == alone["markets"][0]["seeds"]
    assert min(run["rss_mb"] for run in document["markets"][0]["runs"]) > 1
