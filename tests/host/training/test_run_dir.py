"""A run directory has one trainer, and what it promised outlives kills, damage and torn writes."""

import errno
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
import tomllib
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from socket import gethostname
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host import atomic
from host.atomic import LockedError, WriteError, atomic_write
from host.settings import to_toml
from host.training import run_dir as run
from host.training.run_dir import RunDir, RunError, has_run, open_run_dir, peek_state
from tests.fixtures.paths import ROOT

ARRAYS: dict[str, Any] = {
    "weights": np.arange(6, dtype=np.float32).reshape(2, 3),
    "ring": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "empty": np.zeros((0, 5), np.int8),
    "scalar": np.array(2.5),
    "flags": np.array([True, False]),
}
STATE = {"step": 3, "random": [2**127 + 1, "x"], "best": 0.1 + 0.2, "nested": {"flat": None}}

WRITER = """
import sys
from pathlib import Path
import numpy as np
from host.training.run_dir import open_run_dir
with open_run_dir(Path(sys.argv[1]), resume=True) as run:
    last = run.load_checkpoint()
    step = last.step if last else 0
    while True:
        step += 1
        run.append_metrics({"step": step})
        best = step if step % 3 == 0 else last.state["best"] if last else 0
        run.save_checkpoint(step, {"a": np.full(200_000, step)}, {"step": step, "best": best}, is_best=best == step)
        last = run.load_checkpoint()
        print(step, flush=True)
"""

HOLDER = """
import sys, time
from pathlib import Path
from host.training.run_dir import open_run_dir
run = open_run_dir(Path(sys.argv[1]), resume=False)
print("open", flush=True)
time.sleep(60)
"""


def start(script: str, path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, str(path)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def checkpoints(path: Path) -> list[str]:
    return sorted(file.name for file in (path / "checkpoints").iterdir())


def saved(path: Path, *steps: int) -> RunDir:
    opened = open_run_dir(path, resume=True)
    for step in steps:
        opened.save_checkpoint(step, {"a": np.full(3, step)}, {"step": step})
    return opened


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    with open_run_dir(tmp_path / "r", resume=False) as opened:
        assert opened.load_checkpoint() is None
        opened.save_checkpoint(7, ARRAYS, STATE)
        loaded = opened.load_checkpoint()
    assert loaded is not None
    assert (loaded.step, loaded.state, [*loaded.arrays]) == (7, STATE, [*ARRAYS])
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(loaded.arrays[name], array)
        assert loaded.arrays[name].dtype == array.dtype


def test_a_state_that_json_would_change_is_refused(tmp_path: Path) -> None:
    with open_run_dir(tmp_path / "r", resume=False) as opened:
        states: list[Any] = [{"t": (1, 2)}, {1: 2}, {"x": float("nan")}, {"x": np.float64}]
        for state in states:
            with pytest.raises(TypeError):
                opened.save_checkpoint(1, {}, state)
        with pytest.raises(ValueError, match="Object arrays"):
            opened.save_checkpoint(1, {"o": np.array([{}])}, {})
    assert checkpoints(tmp_path / "r") == []


def test_the_last_three_are_kept_by_number_and_other_names_for_ever(tmp_path: Path) -> None:
    with saved(tmp_path, 1) as opened:
        for name in ("best", "best.ckpt.copy", "step-1.ckpt.copy"):
            (tmp_path / "checkpoints" / name).write_text("mine")
        for step in (9, 10, 999_999_999, 1_000_000_000):
            opened.save_checkpoint(step, {}, {})
        loaded = opened.load_checkpoint()
    assert loaded is not None
    assert loaded.step == 1_000_000_000
    kept = ["step-000000010.ckpt", "step-1000000000.ckpt", "step-999999999.ckpt"]
    assert checkpoints(tmp_path) == sorted([*kept, "best", "best.ckpt.copy", "step-1.ckpt.copy"])
    assert (tmp_path / "checkpoints" / "best").read_text() == "mine"


@settings(deadline=None, max_examples=40)
@given(at=st.floats(0, 1, exclude_max=True), kind=st.sampled_from(["flip", "cut", "longer", "empty"]))
def test_a_damaged_checkpoint_is_skipped(at: float, kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("run")
    with saved(path, 1, 2) as opened:
        newest = path / "checkpoints" / "step-000000002.ckpt"
        data = newest.read_bytes()
        byte = int(at * len(data))
        flipped = data[:byte] + bytes([data[byte] ^ 1]) + data[byte + 1 :]
        newest.write_bytes({"flip": flipped, "cut": data[:byte], "longer": data + b"0", "empty": b""}[kind])
        loaded = opened.load_checkpoint()
        assert loaded is not None
        assert (loaded.step, loaded.state, loaded.arrays["a"].tolist()) == (1, {"step": 1}, [1, 1, 1])


def test_a_damaged_checkpoint_is_named_and_never_outlasts_a_new_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with saved(tmp_path, 1, 20, 21, 22) as opened:
        for step in (20, 21, 22):
            (tmp_path / "checkpoints" / f"step-{step:09d}.ckpt").write_bytes(b"x")
        assert opened.load_checkpoint() is None
        opened.save_checkpoint(2, {}, {})
        loaded = opened.load_checkpoint()
    assert loaded is not None
    assert loaded.step == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6
    assert lines[0].endswith("step-000000022.ckpt is damaged: skipped")


def test_a_checkpoint_gets_its_name_last_and_older_ones_go_after_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = list[str]()

    def record(place: Any, name: str, text: Callable[..., str]) -> None:
        real = getattr(place, name)

        def recorded(*args: Any) -> Any:
            calls.append(text(*args))
            return real(*args)

        monkeypatch.setattr(place, name, recorded)

    with saved(tmp_path, 1, 2, 3) as opened:
        record(run, "write_checkpoint", lambda *_: "write")
        record(run, "is_intact", lambda *_: "read back")
        record(os, "fsync", lambda handle: "sync folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "sync")
        record(os, "replace", lambda _, path: f"name {path.name}")
        record(os, "unlink", lambda path: f"drop {path.name}")
        opened.append_metrics({"step": 4})
        opened.save_checkpoint(4, ARRAYS, STATE, is_best=True)
    one = ["write", "sync", "read back", "sync"]
    best, newest = [*one, "name best.ckpt", "sync folder"], [*one, "name step-000000004.ckpt", "sync folder"]
    assert calls == ["sync", *best, *newest, "drop step-000000001.ckpt"]


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system reads back what it likes")
def test_what_is_read_back_comes_from_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dropped = list[int]()
    monkeypatch.setattr(os, "posix_fadvise", lambda handle, *_: dropped.append(os.fstat(handle).st_size))
    saved(tmp_path, 1).close()
    assert dropped == [(tmp_path / "checkpoints" / "step-000000001.ckpt").stat().st_size]


def test_the_best_checkpoint_is_kept_beside_the_newest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with saved(tmp_path, 1) as opened:
        assert opened.load_best() is None
        for step in range(2, 8):
            opened.save_checkpoint(step, {"a": np.full(3, step)}, {"step": step}, is_best=step in (2, 3))
        best = opened.load_best()
        assert best is not None
        assert (best.step, best.state, best.arrays["a"].tolist()) == (3, {"step": 3}, [3, 3, 3])
        for name in checkpoints(tmp_path)[1:]:
            (tmp_path / "checkpoints" / name).write_bytes(b"x")
        loaded, state = opened.load_checkpoint(), peek_state(tmp_path)
        assert loaded is not None
        assert (loaded.step, state, opened.saved_step) == (3, {"step": 3}, 3)
        (tmp_path / "checkpoints" / "best.ckpt").write_bytes(b"x")
        assert opened.load_best() is None
    assert capsys.readouterr().err.splitlines()[-1].endswith("best.ckpt is damaged: skipped")


def test_what_reads_back_differently_never_gets_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with saved(tmp_path, 1) as opened:
        monkeypatch.setattr(run, "is_intact", lambda file: False)
        with pytest.raises(OSError, match="read back"):
            opened.save_checkpoint(2, {}, {})
    assert checkpoints(tmp_path) == ["step-000000001.ckpt"]


def test_large_arrays_are_streamed(tmp_path: Path) -> None:
    arrays = {"a": np.zeros(1 << 26, np.uint8)}
    with open_run_dir(tmp_path, resume=False) as opened:
        tracemalloc.start()
        opened.save_checkpoint(1, arrays, {})
        saving = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        loaded = opened.load_checkpoint()
        loading = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert loaded is not None
    assert saving < 0.6 * (1 << 26)
    assert loading < 1.2 * (1 << 26)


def test_kills_lose_nothing_promised(tmp_path: Path) -> None:
    promised, rows = 0, 0
    for delay in (0.0, 0.003, 0.007, 0.011, 0.016):
        writer = start(WRITER, tmp_path)
        assert writer.stdout is not None
        first = int(writer.stdout.readline())
        assert first == promised + 1
        time.sleep(0.05 + delay)
        writer.send_signal(signal.SIGKILL)
        printed = [int(line) for line in writer.stdout.read().split("\n")[:-1]]
        writer.wait()
        writer.stdout.close()
        with open_run_dir(tmp_path, resume=True) as opened:
            loaded, best = opened.load_checkpoint(), opened.load_best()
        assert loaded is not None
        assert loaded.step in (max([first, *printed]), max([first, *printed]) + 1)
        assert set(loaded.arrays["a"].tolist()) == {loaded.step}
        assert loaded.state == {"step": loaded.step, "best": loaded.step // 3 * 3}
        assert best.state["best"] == best.step if best else loaded.step < 3
        assert not best or best.step in (loaded.state["best"], loaded.step + 1)
        assert not list((tmp_path / "checkpoints").glob(".*"))
        rows = len([json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()])
        promised = loaded.step
    assert rows >= promised


def test_the_second_trainer_is_refused_and_told_who_holds_the_run(tmp_path: Path) -> None:
    holder = start(HOLDER, tmp_path)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        says = rf"process {holder.pid} on {gethostname()} since 20\S+Z: -c {tmp_path}$"
        with pytest.raises(LockedError, match=says) as refusal:
            open_run_dir(tmp_path, resume=True)
        assert refusal.value.exit_code == 8
    finally:
        holder.kill()
        holder.communicate()
    open_run_dir(tmp_path, resume=True).close()


def test_the_lock_holds_within_a_process_and_is_released_on_refusal(tmp_path: Path) -> None:
    with open_run_dir(tmp_path, resume=False) as opened:
        opened.write_toml("config", {"seed": 1})
        with pytest.raises(LockedError, match=f"in use by process {os.getpid()} on "):
            open_run_dir(tmp_path, resume=True)
    with pytest.raises(RunError, match="--resume"):
        open_run_dir(tmp_path, resume=False)
    open_run_dir(tmp_path, resume=True).close()
    assert tomllib.loads((tmp_path / "config.toml").read_text()) == {"seed": 1}


ELSEWHERE = b"process 7 on elsewhere since 2026-01-02T03:04:05Z: swt.py train\n"


def test_a_lock_names_its_owner_until_it_is_released(tmp_path: Path) -> None:
    with open_run_dir(tmp_path, resume=False):
        assert re.fullmatch(
            rf"process {os.getpid()} on {gethostname()} since \d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\dZ: .+\n",
            (tmp_path / "lock").read_text(),
        )
    assert (tmp_path / "lock").read_bytes() == b""


def test_of_two_machines_without_common_locks_the_first_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_run_dir(tmp_path, resume=False) as opened:
        (tmp_path / "lock").write_bytes(ELSEWHERE)  # as another machine does where this drive passes no locks
        for write in (lambda: opened.append_metrics({"a": 1}), lambda: opened.save_checkpoint(1, {}, {})):
            with pytest.raises(LockedError, match=r"taken over by process 7 on elsewhere since 2026-01-02.*no more"):
                write()
    assert (tmp_path / "lock").read_bytes() == ELSEWHERE
    assert (checkpoints(tmp_path), (tmp_path / "metrics.jsonl").read_bytes()) == ([], b"")
    assert capsys.readouterr().err == ""
    open_run_dir(tmp_path, resume=True).close()
    said = capsys.readouterr().err
    assert f"{tmp_path / 'lock'} was not released by process 7 on elsewhere since 2026-01-02T03:04:05Z: swt.py" in said
    open_run_dir(tmp_path, resume=True).close()
    assert capsys.readouterr().err == "", "the lock is this machine's since"


def test_a_killed_owner_of_this_machine_is_no_news(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tmp_path.joinpath("lock").write_bytes(ELSEWHERE.replace(b"elsewhere", gethostname().encode()))
    open_run_dir(tmp_path, resume=True).close()
    assert capsys.readouterr().err == ""


def test_a_drive_without_locks_is_not_said_to_be_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(handle: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(atomic, "_lock", no_locks)
    with pytest.raises(WriteError, match="lock: No locks available"):
        open_run_dir(tmp_path, resume=False)


def test_windows_locks_a_byte_that_nobody_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else nobody there could read who holds a run."""
    places = list[int]()
    monkeypatch.setattr(sys, "platform", "win32")
    windows = SimpleNamespace(LK_NBLCK=2, locking=lambda handle, *_: places.append(os.lseek(handle, 0, os.SEEK_CUR)))
    monkeypatch.setitem(sys.modules, "msvcrt", windows)
    with open_run_dir(tmp_path, resume=False):
        assert places == [atomic.LOCK_BYTE]
        assert (tmp_path / "lock").stat().st_size < atomic.LOCK_BYTE
        windows.locking = Busy()
        with pytest.raises(LockedError, match=f"in use by process {os.getpid()} on "):
            open_run_dir(tmp_path, resume=True)


class Busy:
    """`msvcrt.locking` of a byte that another process has."""

    def __call__(self, *_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")


def test_metrics_are_there_at_once_and_a_torn_line_is_cut(tmp_path: Path) -> None:
    with open_run_dir(tmp_path, resume=False) as opened:
        opened.append_metrics({"step": 1, "loss": 0.5})
        assert (tmp_path / "metrics.jsonl").read_bytes() == b'{"step": 1, "loss": 0.5}\n'
        with pytest.raises(ValueError, match="JSON compliant"):
            opened.append_metrics({"loss": float("nan")})
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 2, "lo')
    with open_run_dir(tmp_path, resume=True) as opened:
        opened.append_metrics({"step": 2})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [{"step": 1, "loss": 0.5}, {"step": 2}]


def test_leftovers_of_killed_writers_are_removed(tmp_path: Path) -> None:
    saved(tmp_path, 1).close()
    (tmp_path / "checkpoints" / ".step-000000002.ckpt.123.tmp").write_bytes(b"half")
    open_run_dir(tmp_path, resume=True).close()
    assert checkpoints(tmp_path) == ["step-000000001.ckpt"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")
    with pytest.raises(TypeError), atomic_write(path) as file:
        file.writelines([b"new", "not bytes"])  # type: ignore[list-item]
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("f", b"old")]


SCALARS = (
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
)
VALUES = SCALARS | st.lists(SCALARS, max_size=3)
KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@settings(deadline=None, max_examples=60)
@given(top=st.dictionaries(KEYS, VALUES, max_size=4), tables=st.dictionaries(KEYS, st.dictionaries(KEYS, VALUES)))
def test_toml_reads_back(top: dict[str, Any], tables: dict[str, Any]) -> None:
    config = {**top, **tables}
    back = tomllib.loads(to_toml(config))
    assert back == config
    flat = [*config.values(), *(v for table in tables.values() for v in table.values())]
    flat_back = [back[k] for k in config] + [back[t][k] for t in tables for k in tables[t]]
    assert [type(v) for v in flat] == [type(v) for v in flat_back]


def test_toml_of_special_values() -> None:
    config = {"i": float("inf"), "e": 1e-7, "g": 1e22, "n": np.float64(0.1), "t": (1, 2)}
    assert tomllib.loads(to_toml(config)) == config | {"t": [1, 2]}
    assert to_toml({"a": None, "b": {"c": None, "d": 1}}) == "\n[b]\nd = 1\n", "what is left open is not written"
    for odd in (object(), {"a": {"b": {"c": 1}}}, np.int64(1)):
        with pytest.raises(TypeError, match="no TOML"):
            to_toml({"a": odd})


def test_checkpoints_without_their_settings_are_still_a_run(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    assert not has_run(tmp_path)
    (tmp_path / "checkpoints" / "step-000000003.ckpt").touch()
    assert has_run(tmp_path)
    with pytest.raises(RunError, match="holds a run"):
        open_run_dir(tmp_path, False)
