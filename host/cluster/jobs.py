"""`ClusterJobs`: jobs that need nothing of each other, each in a process of its own on some node of a cluster."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from host.cluster.cluster import BESIDE, SILENCE_S, Cluster, Node
from host.cluster.worker import JobWorker
from host.console import log
from host.processes import ReportProgress, Row

LOOK_S = 0.2  # between two looks at a job
MAX_LOSSES = 4  # of the processes of one job: more often it is the job that kills them


class LostError(RuntimeError):
    """The process of a job died, or fell silent."""


class ClusterJobs:
    """Runs `fn(job, report, *given)` on a node with a free CPU; a job whose process is lost begins again elsewhere."""

    def __init__(self, cluster: Cluster, fn: Callable[..., Row]) -> None:
        self._cluster, self._ray, self._fn = cluster, cluster.ray, fn
        self._busy, self._lock = Counter[str](), threading.Lock()  # jobs by node

    def run(self, job: Any, report_progress: ReportProgress, *given: Any) -> Row:
        """The result of a job, with the peak memory of its process.

        ClusterError where no node comes, RuntimeError where the job loses its process MAX_LOSSES times.
        """
        losses = 0
        while True:
            node = self._take_node(report_progress)
            try:
                return self._run_on(node, job, report_progress, *given)
            except LostError as error:
                losses += 1
                log(f"a job on {node.host} is lost ({error}); it begins again")
                if losses == MAX_LOSSES:
                    raise RuntimeError(f"{job}: lost {losses} times, the last time: {error}") from None
            finally:
                with self._lock:
                    self._busy[node.id] -= 1

    def _take_node(self, report_progress: ReportProgress) -> Node:
        """Wait for a node with a free CPU, and count this job there."""
        since = time.monotonic()
        while True:
            report_progress(0.0)  # raises where all jobs are to end
            with self._lock:
                nodes = self._cluster.nodes()
                free = [node for node in nodes if self._busy[node.id] < node.cpus]
                if free and self._busy.total() < (self._cluster.most or sum(node.cpus for node in nodes)):
                    node = max(free, key=lambda node: node.cpus - self._busy[node.id])
                    self._busy[node.id] += 1
                    return node
            since = time.monotonic() if nodes else since
            self._cluster.check_silence(since, "no node is there")
            time.sleep(LOOK_S)

    def _run_on(self, node: Node, job: Any, report_progress: ReportProgress, *given: Any) -> Row:
        """The result of a job on a node; LostError where its process is lost, or the node refused."""
        actor = self._cluster.start_worker(JobWorker, node)
        try:
            if not self._cluster.accepts(node, self._answer(actor.identity)):
                raise LostError(self._cluster.refused[node.id])
            result, peaks = actor.run.remote(self._fn, job, *given), dict[str, float]()
            while not self._ray.wait([result], timeout=LOOK_S)[0]:
                share, memory = self._answer(actor.progress)
                peaks = {name: max(mb, peaks.get(name, 0.0)) for name, mb in memory.items()}
                report_progress(share)
            return {**self._ray.get(result), **peaks}
        except self._ray.exceptions.RayActorError as error:
            raise LostError(str(error).strip().splitlines()[-1].strip()) from None
        finally:
            self._ray.kill(actor)

    def _answer(self, method: Any) -> Any:
        """The result of a call that is answered while the job works; LostError if it is not."""
        try:
            return self._ray.get(method.options(concurrency_group=BESIDE).remote(), timeout=SILENCE_S)
        except self._ray.exceptions.GetTimeoutError:
            raise LostError(f"it said nothing for {SILENCE_S:.0f} s") from None
