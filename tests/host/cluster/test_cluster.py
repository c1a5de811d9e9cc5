"""How a cluster is opened, which of its nodes work, and that nothing knows of Ray without `--ray`."""

import ast
import socket
import sys
import threading
from functools import partial
from typing import Any

import pytest

from host.cluster import cluster
from host.cluster.cluster import (
    AUTO,
    DRIVER_MB,
    ClusterError,
    cause_of,
    check_address,
    connect,
    cpu_name,
    identity,
    open_cluster,
    ray_mb,
    store_mb,
)
from host.commands.pack import packed_sources
from tests.fixtures.clusters import free_port
from tests.fixtures.fake_ray import FakeRay, RayError
from tests.fixtures.paths import ROOT


class InitRay(FakeRay):
    """Ray that opens and closes, or fails to open with `error`; it prints what it does."""

    def __init__(self, error: Exception | None) -> None:
        super().__init__(2)
        self.error, self.asked = error, list[dict[str, Any]]()

    def init(self, **options: Any) -> None:
        print("opens")
        self.asked.append(options)
        if self.error and options["address"] != "local":
            raise self.error

    def shutdown(self) -> None:
        print("closes")


def test_only_the_cluster_package_imports_ray_and_only_in_a_function() -> None:
    for folder in ("host", "kernels", "models"):
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            nodes = ast.walk(tree) if path.parent != ROOT / "host" / "cluster" else tree.body
            names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
            names += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
            assert not [name for name in names if name.split(".")[0] == "ray"], path
    assert not [name for name in packed_sources() if "cluster" in name]


def test_without_the_package_the_way_to_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ClusterError, match="pip install") as error, open_cluster(AUTO):
        pass
    assert error.value.exit_code == 6


def test_an_address_is_checked_before_ray_waits_for_it() -> None:
    for address in ("here", "here:", ":6379", "ray://here"):
        with pytest.raises(ClusterError, match=f"--ray {address}: auto, or the host:port"):
            check_address(address)
    for port in (free_port(), 99_999):
        with pytest.raises(ClusterError, match=f"--ray 127.0.0.1:{port}: nobody answers"):
            check_address(f"127.0.0.1:{port}")
    with socket.create_server(("127.0.0.1", 0)) as server:
        check_address(f"127.0.0.1:{server.getsockname()[1]}")


def test_auto_takes_what_runs_and_else_starts_with_a_small_store() -> None:
    found, none = InitRay(None), InitRay(ConnectionError("no cluster"))
    assert not connect(found, AUTO, 100.0)
    assert [options["address"] for options in found.asked] == [AUTO]
    assert connect(none, AUTO, 100.0)
    assert [options["address"] for options in none.asked] == [AUTO, "local"]
    assert none.asked[1]["object_store_memory"] == 100 * 2**20
    assert "object_store_memory" not in none.asked[0]


def test_stdout_is_the_document_and_stderr_says_which_cluster(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for error, begin in ((None, "attached to"), (ConnectionError("no cluster"), "started")):
        monkeypatch.setattr(cluster, "import_ray", partial(InitRay, error))
        with open_cluster(AUTO):
            print("a page about a worker that died")
        assert capsys.readouterr() == ("", f"Ray: {begin} head:6379, 2 workers on 1 nodes (n0)\n")


def test_auto_starts_none_where_the_environment_names_one(monkeypatch: pytest.MonkeyPatch) -> None:
    ray, address = InitRay(ConnectionError("no cluster")), f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(cluster, "import_ray", lambda: ray)
    with pytest.raises(ClusterError, match=f"--ray {address}: nobody answers"), open_cluster(AUTO):
        pass
    assert not ray.asked


def test_what_ray_refuses_is_one_line() -> None:
    error = ConnectionError("Failed to connect\nto Ray cluster")
    error.__cause__ = RuntimeError("InvalidAuthToken: Authentication token is missing")
    with pytest.raises(ClusterError) as refusal:
        connect(InitRay(error), "h:1", 100.0)
    assert str(refusal.value) == "--ray h:1: Failed to connect; it may want a token: RAY_AUTH_MODE=token"
    for other in (RuntimeError("Version mismatch"), RayError("no"), ValueError("no"), TimeoutError("no")):
        with pytest.raises(ClusterError, match=f"^--ray h:1: {other}$"):
            connect(InitRay(other), "h:1", 100.0)
    with pytest.raises(ClusterError, match=r"^--ray h:1: TimeoutError$"):
        connect(InitRay(TimeoutError()), "h:1", 100.0)
    with pytest.raises(ClusterError, match=r"Permission denied: '/tmp/ray/session'$"):  # of another user's cluster
        connect(InitRay(PermissionError(13, "Permission denied", "/tmp/ray/session")), AUTO, 100.0)


def test_the_cause_of_a_death_is_short() -> None:
    long = "The actor died.\n\tpid: 1\nIts process has died. Worker exit type: SYSTEM_ERROR. (1) OOM (2) `ray stop`\n"
    assert [cause_of(RayError(text)) for text in (long, "gone", "")] == ["Its process has died", "gone", "RayError"]


def test_memory_of_ray_is_a_part_of_the_limit() -> None:
    assert [store_mb(limit) for limit in (None, 100.0, 1000.0, 1e6)] == [512.0, 80.0, 200.0, 512.0]
    assert ray_mb(AUTO, 1000.0) == DRIVER_MB + 200.0
    assert ray_mb("h:1", 1000.0) == DRIVER_MB


def test_the_driver_keeps_a_cpu_and_the_dead_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay(4, 2, 0)
    ray.machines["driver"] = 3
    names = {node.id: node.cpus for node in ray.cluster().nodes()}
    assert names == {"n0": 4, "n1": 2, "driver": 2}
    assert (ray.cluster().num_workers, ray.cluster(most=5).num_workers) == (8, 5)
    ray.machines["driver"] = 1
    assert ray.cluster().nodes()[-1].cpus == 1
    nodes = ray.nodes()
    nodes[0]["Alive"] = False
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    assert [node.id for node in ray.cluster().nodes()] == ["n1", "driver"]


def test_another_type_of_cpu_works_and_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    opened = FakeRay(2).cluster()
    (node,) = opened.nodes()
    for _ in range(2):
        assert opened.accepts(node, identity()._replace(cpu="VAX"))
    assert capsys.readouterr().err.count("n0 has another CPU, VAX, here ") == 1
    assert not opened.accepts(node, identity()._replace(libraries="numpy 1.0"))
    assert "n0 has other libraries: numpy 1.0, here Python 3" in capsys.readouterr().err


def test_a_silent_head_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay(1)
    opened = ray.cluster()
    monkeypatch.setattr(cluster, "HEAD_S", 0.05)
    awake = threading.Event()
    monkeypatch.setattr(ray, "nodes", lambda: [awake.wait(10)])
    with pytest.raises(ClusterError, match="the head of the cluster said nothing"):
        opened.nodes()
    awake.set()


def test_a_cpu_has_a_name_where_the_system_has_no_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cpu_name()

    def missing(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", missing)
    assert cpu_name()
