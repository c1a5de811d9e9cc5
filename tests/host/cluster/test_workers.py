"""Workers share out calls; no death, silence or slowness of one changes what is kept.  Ray is that of this process."""

import itertools
import signal
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from host import stop
from host.cluster import cluster, workers
from host.cluster.cluster import GIVE_UP_S, SILENCE_S, ClusterError, Identity, identity
from host.cluster.workers import IN_FLIGHT, MAX_LOSSES, Workers
from tests.fixtures.fake_ray import Actor, FakeRay, RayActorError, RayError, Ref

COUNT = 40
PHASE = itertools.count(1)


class Squares:
    """A worker; what a number of -1 or less asks of it is a fault."""

    program = ""

    def identity(self) -> Identity:
        return identity()._replace(program=self.program) if self.program else identity()

    def run(self, number: int) -> int:
        if number < 0:
            raise FloatingPointError(f"{number} is not finite")
        return number * number


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    ray = FakeRay(2, 1)
    monkeypatch.setattr(workers, "time", ray)
    monkeypatch.setattr(cluster, "time", ray)
    return ray


def squares(pool: Workers, count: int = COUNT) -> int:
    """Each number is kept once, with its square; no two phases ask for the same ones.  Calls of one number at most."""
    kept, made, first = Counter[int](), Counter[int](), next(PHASE) * 1000

    def submit(actor: Any, number: int) -> Any:
        assert number >= 0
        made[number] += 1
        return actor.run.remote(first + number)

    def keep(number: int, result: int) -> None:
        assert result == (first + number) ** 2
        kept[number] += 1

    pool.map(count, submit, keep)
    assert kept == Counter(range(count))
    return max(made.values())


def once(ray: FakeRay, look: int, do: Callable[[], object]) -> None:
    ray.on_look = lambda ray: do() if ray.looks == look else None


def test_calls_are_shared_out_and_few_wait(ray: FakeRay) -> None:
    pool = Workers(ray.cluster(), Squares)
    squares(pool)
    assert (len(ray.actors), ray.most_in_flight) == (3, IN_FLIGHT)
    assert min(actor.done for actor in ray.actors) > COUNT // 4
    squares(pool)
    assert len(ray.actors) == 3
    squares(Workers(ray.cluster(most=2), Squares))
    assert len(ray.actors) == 5


def test_the_calls_of_a_dead_worker_are_made_again(ray: FakeRay, capsys: pytest.CaptureFixture[str]) -> None:
    once(ray, 5, lambda: ray.actors[0].die(RayActorError("The actor died.\n  by signal 9  ")))
    squares(Workers(ray.cluster(), Squares))
    assert len(ray.actors) == 4
    assert capsys.readouterr().err == "a worker on n0 is lost (by signal 9); 2 calls are made again\n"


def test_a_lost_node_takes_all_its_workers_and_no_result(ray: FakeRay, capsys: pytest.CaptureFixture[str]) -> None:
    ray.machines = {"big": 9, "small": 1}

    def lose() -> None:
        for actor in ray.actors[:9]:
            actor.die(RayActorError("node died"))
        del ray.machines["big"]

    once(ray, 2, lose)
    squares(Workers(ray.cluster(), Squares))
    assert capsys.readouterr().err.count("a worker on big is lost") == 9
    assert len(ray.actors) == 10


def test_a_node_that_dies_while_its_worker_begins_is_no_fault(ray: FakeRay) -> None:
    """Ray has another error for an actor whose node is gone."""
    once(ray, 1, lambda: ray.actors[0].die(RayError("ActorUnschedulableError")))
    squares(Workers(ray.cluster(), Squares))


def test_a_node_that_joins_gets_work(ray: FakeRay) -> None:
    once(ray, 3, lambda: ray.machines.update(late=2))
    squares(Workers(ray.cluster(), Squares), 1000)
    assert [actor.node for actor in ray.actors[3:]] == ["late", "late"]
    assert min(actor.done for actor in ray.actors[3:]) > 50


def test_a_late_call_is_made_twice_and_kept_once(ray: FakeRay) -> None:
    """A worker that hangs with the last calls is not waited for until it is lost."""

    def hang() -> None:
        ray.actors[1].is_hung = True

    once(ray, 4, hang)
    pool, begin = Workers(ray.cluster(), Squares), ray.now
    squares(pool)
    assert ray.now - begin < SILENCE_S / 10
    ray.actors[1].is_hung = False
    squares(pool)  # its late results are those of other calls
    assert not ray.killed


def test_a_late_call_is_not_made_by_all_that_are_idle(ray: FakeRay) -> None:
    end = ray.now + 40

    def be_late(ray: FakeRay) -> None:
        ray.actors[0].is_busy = ray.looks >= 4 and ray.now < end
        ray.actors[1].is_busy = ray.looks >= 20 and ray.now < end

    ray.on_look = be_late
    assert squares(Workers(ray.cluster(), Squares)) == 2
    assert ray.now >= end - 30


def test_a_slow_worker_slows_nobody(ray: FakeRay) -> None:
    def make_slow() -> None:
        ray.actors[0].is_slow = True

    once(ray, 2, make_slow)
    pool = Workers(ray.cluster(), Squares)
    for _ in range(5):
        squares(pool)
    assert not ray.killed


def test_a_hung_worker_is_replaced(ray: FakeRay, capsys: pytest.CaptureFixture[str]) -> None:
    def hang() -> None:
        for actor in ray.actors[:3]:
            actor.is_hung = True

    once(ray, 4, hang)
    squares(Workers(ray.cluster(), Squares))
    assert ray.killed == ray.actors[:3]
    assert "it said nothing for 60 s" in capsys.readouterr().err
    assert len(ray.actors) == 6


def test_a_long_phase_without_searches_loses_nobody(ray: FakeRay) -> None:
    """Nobody asks a worker while the driver learns; one that is still at work then is not silent."""
    pool = Workers(ray.cluster(), Squares)
    once(ray, 3, lambda: setattr(ray.actors[0], "is_slow", True))
    squares(pool)
    ray.now += 10 * SILENCE_S
    squares(pool)
    assert not ray.killed


def test_long_calls_are_no_silence(ray: FakeRay) -> None:
    """A worker that compiles for minutes answers beside it."""
    end = ray.now + 3 * GIVE_UP_S

    def compile_all(ray: FakeRay) -> None:
        for actor in ray.actors:
            actor.is_busy = ray.now < end

    ray.on_look = compile_all
    squares(Workers(ray.cluster(), Squares), 6)
    assert ray.now > end
    assert not ray.killed


def test_a_node_whose_cpus_others_use_is_waited_for(ray: FakeRay) -> None:
    """Ray begins an actor when a CPU is free."""
    end = ray.now + 3 * SILENCE_S

    def occupy(ray: FakeRay) -> None:
        for actor in ray.actors:
            actor.is_hung, actor.is_busy = ray.now < end and actor.node == "n0", ray.now < end

    ray.on_look = occupy
    squares(Workers(ray.cluster(), Squares))
    assert not ray.killed
    assert ray.actors[0].done > 1


def test_nobody_answers(ray: FakeRay) -> None:
    def hang(ray: FakeRay) -> None:
        for actor in ray.actors:
            actor.is_hung = True

    ray.on_look = hang
    with pytest.raises(ClusterError, match=r"for 150 s .0 of 40 calls are done; 2 nodes are there") as error:
        squares(Workers(ray.cluster(), Squares))
    assert error.value.exit_code == 6
    ray.machines.clear()
    with pytest.raises(ClusterError, match="0 nodes are there"):
        squares(Workers(ray.cluster(), Squares))


def test_a_call_that_kills_workers_is_given_up(ray: FakeRay) -> None:
    def kill(actor: Actor, number: int) -> Ref:
        ref = actor.run.remote(number)
        if number == 7:
            actor.die(RayActorError("out of memory"))
        return ref

    with pytest.raises(ClusterError, match=f"a call has lost {MAX_LOSSES} workers, .*: out of memory"):
        Workers(ray.cluster(), Squares).map(COUNT, kill, lambda *_: None)


def test_a_call_of_each_phase_may_lose_a_worker(ray: FakeRay) -> None:
    pool, made = Workers(ray.cluster(), Squares), list[int]()

    def kill_first(actor: Actor, number: int) -> Ref:
        ref = actor.run.remote(number)
        if not made:
            actor.die(RayActorError("by signal 9"))
        made.append(number)
        return ref

    for _ in range(MAX_LOSSES + 1):
        made.clear()
        pool.map(COUNT, kill_first, lambda *_: None)
    assert len(ray.actors) == 3 + MAX_LOSSES + 1


def test_another_version_is_refused_and_said_once(ray: FakeRay, capsys: pytest.CaptureFixture[str]) -> None:
    def change(ray: FakeRay) -> None:
        for actor in ray.actors:
            actor._self.program = "other" * (actor.node == "n0")

    ray.on_look = change
    pool = Workers(ray.cluster(), Squares)
    squares(pool)
    said = capsys.readouterr().err
    assert said.count("n0 has another program: other, here ") == 1
    assert ray.actors[0].done == 1
    del ray.machines["n1"]
    ray.actors[2].die(RayActorError("node died"))
    end = ray.now + GIVE_UP_S
    with pytest.raises(ClusterError, match=r"no answer for 150 s .*; 0 nodes are there; n0 has another program"):
        squares(pool)
    assert ray.now > end  # n1 might have come again


def test_a_node_that_cannot_begin_is_refused(ray: FakeRay, capsys: pytest.CaptureFixture[str]) -> None:
    error = RayActorError("creation task\n  ModuleNotFoundError: No module named 'host'")
    error.actor_init_failed = True
    once(ray, 1, lambda: ray.actors[2].die(error))
    squares(Workers(ray.cluster(), Squares))
    said = "n1 cannot begin: ModuleNotFoundError: No module named 'host'; it gets no work\n"
    assert capsys.readouterr().err == said
    assert len(ray.actors) == 3


def test_a_fault_of_a_call_is_that_of_one_machine(ray: FakeRay) -> None:
    pool = Workers(ray.cluster(), Squares)
    with pytest.raises(FloatingPointError, match=r"^-3 is not finite$"):
        pool.map(COUNT, lambda actor, number: actor.run.remote(number if number < 3 else -3), lambda *_: None)
    squares(pool)  # what was under way then has other numbers
    assert len(ray.actors) == 3


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_that_python_swallowed_ends_the_wait(
    ray: FakeRay, monkeypatch: pytest.MonkeyPatch, number: int, error: type[BaseException]
) -> None:
    monkeypatch.setattr(stop, "_received_signal", 0)
    once(ray, 3, lambda: setattr(stop, "_received_signal", number))
    with pytest.raises(error):
        squares(Workers(ray.cluster(), Squares))
