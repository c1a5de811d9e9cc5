"""`ClusterJobs`: jobs that need nothing of each other, each in a process of its own on some node of a cluster."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from host.cluster.cluster import BESIDE, SILENCE_S, Cluster, ClusterError, Node, cause_of
from host.cluster.worker import JobWorker
from host.cluster.workers import GROW_S
from host.console import log
from host.processes import MEMORY_FIELDS, ReportProgress, Row

LOOK_S, LOOKS_PER_S = 0.2, 200  # between two looks at a job; at all of them, which bounds the driver's work
MAX_LOSSES = 4  # of the processes of one job: more often it is the job that kills them


class LostError(RuntimeError):
    """The process of a job died, or fell silent."""


class ClusterJobs:
    """Runs `fn(job, report, *given)` on a node with a free CPU; a job whose process is lost begins again elsewhere."""

    def __init__(self, cluster: Cluster, fn: Callable[..., Row]) -> None:
        self.cluster, self._ray, self._fn = cluster, cluster.ray, fn
        self._busy, self._free = Counter[str](), threading.Condition()  # jobs by node; told when one ends
        self._nodes, self._looked = list[Node](), -GROW_S  # those of the last look, and its time
        self._seen = self._heard = time.monotonic()  # when a node was last there; when a job last answered

    def room(self) -> int:
        """Jobs that may run at once now, which a node that joins makes more; one at least, to wait for a node.

        ClusterError as of `Cluster.nodes`.
        """
        with self._free:
            return max(min(sum(node.cpus for node in self._look()), self.cluster.most or sys.maxsize), 1)

    def run(self, job: Any, report_progress: ReportProgress, *given: Any) -> Row:
        """The result of a job, with the peak memory of its process; the exception of a job is raised.

        ClusterError where no node comes or answers, or the job loses its process MAX_LOSSES times.
        """
        losses = 0
        while True:
            node = self._take_node(report_progress)
            try:
                row = self._run_on(node, job, report_progress, *given)
            except LostError as error:
                losses += 1
                if losses == MAX_LOSSES:
                    text = f"a job has lost {MAX_LOSSES} processes, the last on {node.host}: {error}"
                    raise ClusterError(text) from None
                log(f"a job on {node.host} is lost ({error}); it begins again")
            else:
                if row is not None:
                    return row
                self._looked = -GROW_S
            finally:
                with self._free:
                    self._busy[node.id] -= 1
                    self._free.notify()

    def _take_node(self, report_progress: ReportProgress) -> Node:
        """Wait for a node with a free CPU, and count this job there."""
        while True:
            report_progress(0.0)  # raises where all jobs are to end
            with self._free:
                free = [node for node in self._look() if self._busy[node.id] < node.cpus]
                if free and self._busy.total() < (self.cluster.most or sys.maxsize):
                    node = max(free, key=lambda node: node.cpus - self._busy[node.id])
                    self._busy[node.id] += 1
                    return node
                self._free.wait(self._look_s)
            self.cluster.check_silence(self._seen, "no node is there")

    def _look(self) -> list[Node]:
        """The nodes that may work, as they were at most GROW_S ago; whoever calls holds `_free`."""
        if time.monotonic() - self._looked > GROW_S:
            self._nodes, self._looked = self.cluster.nodes(), time.monotonic()
            self._seen = self._looked if self._nodes else self._seen
        return [node for node in self._nodes if node.id not in self.cluster.refused]

    @property
    def _look_s(self) -> float:
        return max(LOOK_S, self._busy.total() / LOOKS_PER_S)

    def _run_on(self, node: Node, job: Any, report_progress: ReportProgress, *given: Any) -> Row | None:
        """The result of a job on a node, None where that is refused; LostError where its process is lost."""
        actor = self.cluster.start_worker(JobWorker, node)
        try:
            if self._begins(actor, node, report_progress):
                return self._follow(actor, actor.run.remote(self._fn, job, *given), report_progress)
            return None
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self._ray.exceptions.RayError as error:
            if not getattr(error, "actor_init_failed", False):
                raise LostError(cause_of(error)) from None
            self.cluster.refuse(node, f"cannot begin: {cause_of(error)}")
            return None
        finally:
            self._ray.kill(actor)

    def _begins(self, actor: Any, node: Node, report_progress: ReportProgress) -> bool:
        """Wait for the process of an actor, also while others use the CPU; whether its node may work."""
        identity, begin = actor.identity.options(concurrency_group=BESIDE).remote(), time.monotonic()
        while not self._ray.wait([identity], num_returns=1, timeout=self._look_s)[0]:
            report_progress(0.0)
            self.cluster.check_silence(max(self._heard, begin), f"{node.host} starts no process")
        self._heard = time.monotonic()
        return self.cluster.accepts(node, self._ray.get(identity))

    def _follow(self, actor: Any, result: Any, report_progress: ReportProgress) -> Row:
        """The result of a job, by its reference, with the peak memory of its process; asks how far it is meanwhile."""
        share, peaks, beat, heard = 0.0, dict.fromkeys(MEMORY_FIELDS, 0.0), None, time.monotonic()
        while not self._ray.wait([result], num_returns=1, timeout=self._look_s)[0]:
            beat = beat or actor.progress.options(concurrency_group=BESIDE).remote()
            if self._ray.wait([beat], num_returns=1, timeout=0)[0]:
                share, memory = self._ray.get(beat)
                peaks = {name: max(mb, peaks[name]) if share < 1 else peaks[name] for name, mb in memory.items()}
                self._heard, beat = time.monotonic(), None
                heard = self._heard
            elif time.monotonic() - heard > SILENCE_S:
                raise LostError(f"it said nothing for {SILENCE_S:.0f} s")
            report_progress(share)
        return {**self._ray.get(result), **peaks}
