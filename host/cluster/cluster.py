"""`Cluster`: a Ray cluster that runs this program, and the workers on its nodes.

Ray is an extra, imported here alone.  Workers are processes of one CPU.  A node whose program, libraries or Python are
not the driver's gets no work: its results would be others.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import platform
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, redirect_stdout, suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from host.console import log
from host.stop import raise_if_signalled
from kernels.jit import program_digest

AUTO = "auto"
CONNECT_TIMEOUT_S = 10.0  # to a cluster at an address
HEAD_S = 30.0  # a head that says nothing for so long is lost
CLOSE_S = 15.0  # to leave a cluster
SILENCE_S = 60.0  # a worker that says nothing for so long is lost
GIVE_UP_S = 150.0  # and so is a cluster: enough for a second try with other workers
MIN_STORE_MB, MAX_STORE_MB = 80.0, 512.0  # Ray's shared memory; Ray refuses less
STORE_SHARE = 0.2  # of --memory
DRIVER_MB = 30.0  # of Ray in the driver, without its store
BESIDE = "beside"  # concurrency group of calls that are answered while another one works
ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")}
LIBRARIES = ("numpy", "numba", "onnxruntime")  # whose versions a result may depend on


class ClusterError(RuntimeError):
    """A cluster that cannot be used, or does not answer."""

    exit_code = 6


class Identity(NamedTuple):
    """What the bytes of a result depend on, beside its input."""

    program: str  # `sources_digest`
    libraries: str
    cpu: str  # other types of CPU may round otherwise


def identity() -> Identity:
    """Of this process."""
    versions = [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in LIBRARIES)]
    return Identity(sources_digest(), ", ".join(versions), cpu_name())


@cache
def sources_digest() -> str:
    """Hash of the text of every module of the program: its version on a node."""
    digest, host = hashlib.sha256(program_digest().encode()), Path(__file__).parents[1]
    for path in sorted(host.rglob("*.py")):
        digest.update(path.relative_to(host).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def cpu_name() -> str:
    """The type of the CPU, as far as the system tells."""
    with suppress(OSError, StopIteration), open("/proc/cpuinfo", encoding="utf-8") as file:
        return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    return platform.processor() or platform.machine()


class Node(NamedTuple):
    """A machine of a cluster."""

    id: str
    host: str
    cpus: int  # for workers


class Cluster:
    """An open cluster; `open_cluster` makes one."""

    def __init__(self, ray: Any, most: int | None) -> None:
        self.ray, self.most = ray, most  # workers at once, at most
        self.refused, self._accepted = dict[str, str](), set[str]()  # why a node gets no work, by id; ids of others
        self._own, self._other_cpus = identity(), dict[str, str]()  # what is said of another CPU, by node
        self._classes = dict[type[Any], Any]()  # which Ray has been told of

    def nodes(self) -> list[Node]:
        """The machines that live and are not refused; the driver keeps one CPU of its own if it has another.

        ClusterError where all that were ever here are refused, or the head is silent.
        """
        here, found = self.ray.get_runtime_context().get_node_id(), list[Node]()
        for node in self._ask_head():
            cpus = int(node["Resources"].get("CPU", 0)) if node["Alive"] else 0
            if node["NodeID"] == here and cpus > 1:
                cpus -= 1
            if cpus > 0 and node["NodeID"] not in self.refused:
                found.append(Node(node["NodeID"], node["NodeManagerHostname"], cpus))
        if self.refused and not found and self._accepted <= {*self.refused}:  # else a lost one may come again
            why = "; ".join(self.refused.values())
            raise ClusterError(f"no node may work: {why}: see `On many machines` in host/README.md")
        return found

    def _ask_head(self) -> list[dict[str, Any]]:
        """What the head knows of the nodes; ClusterError where it is silent, on which Ray would end this process."""
        answer = Future[list[dict[str, Any]]]()

        def ask() -> None:
            try:
                answer.set_result(self.ray.nodes())
            except Exception as error:
                answer.set_exception(error)

        threading.Thread(target=ask, daemon=True).start()
        try:
            return answer.result(HEAD_S)
        except TimeoutError:
            raise ClusterError(f"the head of the cluster said nothing for {HEAD_S:.0f} s: start it again") from None
        except self.ray.exceptions.RayError as error:
            raise ClusterError(f"the head of the cluster: {error}") from None

    @property
    def num_workers(self) -> int:
        """Workers that the nodes have room for now."""
        return min(sum(node.cpus for node in self.nodes()), self.most or sys.maxsize)

    def start_worker(self, worker: type[Any], node: Node, *args: Any) -> Any:
        """An actor of a class on a node, with one CPU; it runs one call at a time, and answers BESIDE meanwhile."""
        affinity = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node.id, soft=False)
        if worker not in self._classes:
            self._classes[worker] = self.ray.remote(num_cpus=1, max_restarts=0, concurrency_groups={BESIDE: 1})(worker)
        options = {"scheduling_strategy": affinity, "runtime_env": {"env_vars": ONE_THREAD}}
        return self._classes[worker].options(**options).remote(*args)

    def accepts(self, node: Node, theirs: Identity) -> bool:
        """Whether a node may work; a refusal, and another type of CPU, are said once."""
        for what, own, other in zip(("another program", "other libraries"), self._own, theirs, strict=False):
            if own != other:
                self.refuse(node, f"has {what}: {other}, here {own}")
                return False
        text = f"{node.host} has another CPU, {theirs.cpu}, here {self._own.cpu}: the bytes of a run may differ"
        if self._own.cpu != theirs.cpu and self._other_cpus.setdefault(node.id, text) is text:
            log(text)
        self._accepted.add(node.id)
        return True

    def refuse(self, node: Node, why: str) -> None:
        """Give a node no work any more, and say so once, whichever threads find it out."""
        text = f"{node.host} {why}"
        if self.refused.setdefault(node.id, text) is text:
            log(f"{text}; it gets no work")

    def check_silence(self, since: float, what: str) -> None:
        """Raise ClusterError if nothing was heard since a time of `time.monotonic` for GIVE_UP_S."""
        if time.monotonic() - since > GIVE_UP_S:
            why = "; ".join([f"{len(self.nodes())} nodes are there", *self.refused.values()])
            raise ClusterError(f"the cluster gave no answer for {GIVE_UP_S:.0f} s ({what}; {why}): see `ray status`")


@contextmanager
def open_cluster(address: str, most: int | None = None, memory_mb: float | None = None) -> Iterator[Cluster]:
    """Attach to the cluster at host:port, or with AUTO to the one that Ray finds, else start one that ends with this.

    Ray finds what RAY_ADDRESS names, else what runs on this machine, whoever started it.  What Ray prints on stdout,
    which belongs to a document, is dropped: pages about workers that died.  ClusterError where Ray is missing or nobody
    answers.
    """
    ray = import_ray()
    address = os.environ.get("RAY_ADDRESS") or AUTO if address == AUTO else address
    if address != AUTO:
        check_address(address)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        try:
            is_new = connect(ray, address, store_mb(memory_mb))
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_sigterm)  # Ray has put another one there
            cluster = Cluster(ray, most)
            nodes, where = cluster.nodes(), ray.get_runtime_context().gcs_address
            names = ", ".join(node.host for node in nodes)
            did = "started" if is_new else "attached to"
            log(f"Ray: {did} {where}, {cluster.num_workers} workers on {len(nodes)} nodes ({names})")
            yield cluster
        except SystemExit:  # where a signal ends a wait of Ray, Ray replaces its exit code by 1
            raise_if_signalled()
            raise
        finally:
            closing = threading.Thread(target=ray.shutdown, daemon=True)
            closing.start()
            closing.join(CLOSE_S)
            if closing.is_alive():  # it waits for ever for a frozen head, and Python cannot end beside it
                atexit.register(os._exit, ClusterError.exit_code)


def connect(ray: Any, address: str, store: float) -> bool:
    """Make this process a driver of a cluster; whether that is new: with AUTO, if none runs.

    A new one gets a store of so many MB.
    """
    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    try:
        try:
            ray.init(address=address, **options)
            return False
        except ConnectionError:
            if address != AUTO:
                raise
            ray.init(address="local", object_store_memory=int(store * 2**20), include_dashboard=False, **options)
            return True
    except (ray.exceptions.RayError, OSError, RuntimeError, ValueError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        token = "; it may want a token: RAY_AUTH_MODE=token" if "Token" in f"{error.__cause__}{error}" else ""
        raise ClusterError(f"--ray {address}: {why}{token}") from None


def cause_of(error: Exception) -> str:
    """What Ray says an actor died of: the first sentence of its last line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].strip().partition(". ")[0]


def ray_mb(address: str, memory_mb: float) -> float:
    """What Ray takes of a limit for all: in this process, and for the store of a cluster that may start here."""
    return DRIVER_MB + store_mb(memory_mb) * (address == AUTO)


def store_mb(memory_mb: float | None) -> float:
    """The shared memory that a cluster which starts here gets of a limit for all."""
    return MAX_STORE_MB if memory_mb is None else min(max(STORE_SHARE * memory_mb, MIN_STORE_MB), MAX_STORE_MB)


def import_ray() -> Any:
    """The package, with the modules of it that are used; ClusterError where it is not installed."""
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError:
        raise ClusterError("--ray wants the package ray: pip install '.[ray]'") from None
    return ray


def check_address(address: str) -> None:
    """Raise ClusterError unless somebody listens at host:port."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ClusterError(f"--ray {address}: auto, or the host:port that `ray start --head` printed")
    try:
        socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(f"--ray {address}: nobody answers ({error}); start one: ray start --head") from None
