"""`Workers`: actors on all nodes of a cluster, which share out calls; no death of one loses more than its calls.

A call is a pure function: who makes it, how often and in what order changes nothing.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any

from host.cluster.cluster import BESIDE, SILENCE_S, Cluster, ClusterError, Node, cause_of
from host.console import log
from host.stop import raise_if_signalled

IN_FLIGHT = 2  # calls of a worker: one that runs, and one that waits behind it
POLL_S, GROW_S, BEAT_S = 0.05, 5.0, 5.0  # seconds between looks for results, for new nodes, and at a silent worker
LATE_FACTOR, LATE_S = 4.0, 1.0  # a call that takes so many times the median, and longer than that, is made twice
MAX_LOSSES = 4  # of the workers that make one call: more often it is the call that kills them

Submit = Callable[[Any, int], Any]  # makes a call, by its number, of an actor; its reference


class Worker:
    """An actor, as its driver sees it."""

    def __init__(self, actor: Any, node: Node) -> None:
        self.actor, self.node = actor, node
        self.heard = time.monotonic()  # when it last answered, or began to have work
        self.is_accepted = False
        self.death = ""  # why it is dead
        self.calls = dict[Any, tuple[int, float]]()  # by reference: its number, or -1 if nobody waits, and its begin
        self.beat: Any = self._ask()  # an unanswered call of `identity`

    def _ask(self) -> Any:
        return self.actor.identity.options(concurrency_group=BESIDE).remote()

    def look_after(self) -> None:
        """Ask whether it lives, where it has work and says nothing; without work, nothing is expected of it."""
        if self.is_accepted and not self.calls and self.beat is None:
            self.heard = time.monotonic()
        elif self.beat is None and time.monotonic() - self.heard > BEAT_S:
            self.beat = self._ask()


class Workers:
    """One worker for each CPU, of the class `kind` with arguments `args`, as long as there is a use for it."""

    def __init__(self, cluster: Cluster, kind: type[Any], *args: Any) -> None:
        self._cluster, self._kind, self._args, self._ray = cluster, kind, args, cluster.ray
        self._workers, self._looked = list[Worker](), -GROW_S
        self._losses, self._heard = Counter[int](), 0.0  # workers that a call lost; when one of them last answered

    def map(self, count: int, submit: Submit, keep: Callable[[int, Any], None]) -> None:
        """Make the calls 0 .. count - 1, each on some worker, and keep(number, result) once for each.

        The exception of a call is raised.  ClusterError where no worker answers, or a call loses MAX_LOSSES of them.
        """
        waiting, done, seconds = deque(range(count)), set[int](), list[float]()
        self._losses.clear()
        self._heard = time.monotonic()
        for worker in self._workers:
            worker.heard = self._heard  # nobody has asked since the last phase
        try:
            while len(done) < count:
                raise_if_signalled()
                self._grow()
                self._hand_out(waiting, done, seconds, submit)
                for number, begin, result in self._answers():
                    if number >= 0 and number not in done:
                        keep(number, result)
                        done.add(number)
                        seconds.append(time.monotonic() - begin)
                self._bury(waiting, done)
                self._cluster.check_silence(self._heard, f"{len(done)} of {count} calls are done")
        finally:  # after a fault too: the numbers of the next calls are others
            for worker in self._workers:
                worker.calls = {ref: (-1, begin) for ref, (_, begin) in worker.calls.items()}

    def _grow(self) -> None:
        """Start a worker for every CPU without one, also of nodes that have just come."""
        if time.monotonic() - self._looked < GROW_S:
            return
        self._looked = time.monotonic()
        for node in self._cluster.nodes():
            for _ in range(node.cpus - sum(worker.node.id == node.id for worker in self._workers)):
                if len(self._workers) < (self._cluster.most or len(self._workers) + 1):
                    self._workers.append(Worker(self._cluster.start_worker(self._kind, node, *self._args), node))

    def _hand_out(self, waiting: deque[int], done: set[int], seconds: list[float], submit: Submit) -> None:
        """Give work to workers that have little; where none waits, give late calls to idle workers as well."""
        usable = [worker for worker in self._workers if worker.is_accepted]
        for depth in range(IN_FLIGHT):
            for worker in usable:
                if waiting and len(worker.calls) == depth:
                    self._give(worker, waiting.popleft(), submit)
        if waiting or not seconds:
            return
        late = time.monotonic() - max(LATE_S, LATE_FACTOR * statistics.median(seconds))
        calls = [call for worker in usable for call in worker.calls.values()]
        made = Counter(number for number, _ in calls)
        again = [number for number, begin in calls if begin < late and 0 <= number not in done and made[number] == 1]
        for worker in usable:
            if again and not worker.calls:
                self._give(worker, again.pop(), submit)

    def _give(self, worker: Worker, number: int, submit: Submit) -> None:
        now = time.monotonic()
        worker.heard = worker.heard if worker.calls else now
        worker.calls[submit(worker.actor, number)] = number, now

    def _answers(self) -> Iterator[tuple[int, float, Any]]:
        """The results that have come after at most POLL_S, with the numbers and begins of their calls."""
        owner = {ref: worker for worker in self._workers for ref in (*worker.calls, worker.beat) if ref is not None}
        if not owner:
            time.sleep(POLL_S)
            return
        self._ray.wait(list(owner), num_returns=1, timeout=POLL_S)
        ready, _ = self._ray.wait(list(owner), num_returns=len(owner), timeout=0)
        for ref in ready:
            worker = owner[ref]
            try:
                result = self._ray.get(ref, timeout=SILENCE_S)
            except self._ray.exceptions.RayError as error:
                self._fail(worker, ref, error)
                continue
            if ref == worker.beat:
                self._hear(worker, result)
            else:
                worker.heard = self._heard = time.monotonic()
                yield *worker.calls.pop(ref), result

    def _fail(self, worker: Worker, ref: Any, error: Any) -> None:
        """A call has no result: raise its exception, if it has one that is waited for; else its worker is dead."""
        is_of_call = isinstance(error, self._ray.exceptions.RayTaskError)
        if is_of_call and ref in worker.calls:
            if worker.calls.pop(ref)[0] >= 0:
                raise error.cause from error
            return
        worker.death = cause_of(error)
        if is_of_call or getattr(error, "actor_init_failed", False):
            self._cluster.refuse(worker.node, f"cannot begin: {worker.death}")

    def _hear(self, worker: Worker, theirs: Any) -> None:
        """A worker lives; the first time it is accepted, or its node refused."""
        worker.beat, worker.heard = None, time.monotonic()
        if not worker.is_accepted:
            worker.is_accepted = self._cluster.accepts(worker.node, theirs)
        if worker.is_accepted:
            self._heard = worker.heard

    def _bury(self, waiting: deque[int], done: set[int]) -> None:
        """Take back the calls of workers that are dead, silent or refused, and end these.

        A worker that never answered may wait for a CPU that others use; it has no calls.
        """
        for worker in [*self._workers]:
            worker.look_after()
            if worker.is_accepted and time.monotonic() - worker.heard > SILENCE_S:
                worker.death = worker.death or f"it said nothing for {SILENCE_S:.0f} s"
            if not worker.death and worker.node.id not in self._cluster.refused:
                continue
            self._workers.remove(worker)
            self._ray.kill(worker.actor)
            back = [number for number, _ in worker.calls.values() if number >= 0 and number not in done]
            waiting.extendleft(reversed(back))
            if worker.is_accepted and worker.death:
                self._lose(worker, back)

    def _lose(self, worker: Worker, calls: list[int]) -> None:
        """Say that a worker is lost; ClusterError where its first call has lost MAX_LOSSES of them."""
        self._looked = -GROW_S
        log(f"a worker on {worker.node.host} is lost ({worker.death}); {len(calls)} calls are made again")
        self._losses.update(calls[:1])
        if calls and self._losses[calls[0]] == MAX_LOSSES:
            raise ClusterError(f"a call has lost {MAX_LOSSES} workers, the last on {worker.node.host}: {worker.death}")
