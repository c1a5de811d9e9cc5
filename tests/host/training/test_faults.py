"""Disks that fail while training: one line with the path, exit code 1, and a run that goes on to the same bytes.

SWT_TRIES=300 injects so many, evenly over all calls of all kinds; the default is small.
"""

import errno
import io
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import swt
from tests.fixtures.runs import LINES, TINY, printed

TRIES = int(os.environ.get("SWT_TRIES", "12"))
EPISODES = "6"  # three iterations
KINDS = ("short", "ENOSPC once", "ENOSPC lasting", "EIO", "rename", "fsync")
ERRORS = {"ENOSPC once": errno.ENOSPC, "ENOSPC lasting": errno.ENOSPC, "EIO": errno.EIO}


class Disk:
    """What goes to files under `folder`, and the fault that the call number `at` of its kind meets."""

    def __init__(self, folder: Path, kind: str, at: int) -> None:
        self.folder, self.kind, self.at = folder, kind, at
        self.calls, self.met = 0, 0

    def fails(self, kinds: tuple[str, ...]) -> bool:
        """Count a call; whether it is to fail."""
        if self.kind not in kinds:
            return False
        self.calls += 1
        failing = self.calls == self.at or (self.kind in ("short", "ENOSPC lasting") and self.calls > self.at)
        self.met += failing
        return failing

    def write(self, write: Callable[[Any], int], data: Any) -> int:
        if not self.fails(("short", *ERRORS)):
            return write(data)
        part = memoryview(data).cast("B")[: max(1, len(memoryview(data).cast("B")) // 3)]
        if self.kind == "short":
            return write(part)
        if self.calls % 2:
            write(part)  # a part of it was written before it was found out
        raise OSError(ERRORS[self.kind], os.strerror(ERRORS[self.kind]))


def opener(disk: Disk) -> Callable[..., Any]:
    class Raw(io.FileIO):
        def write(self, data: Any) -> int:
            return disk.write(super().write, data)

    plain = Path.open

    def open_file(path: Path, mode: str = "r", buffering: int = -1, *more: Any, **named: Any) -> Any:
        binary = "b" in mode and set(mode) & set("wa+x")
        if not binary or disk.folder not in path.absolute().parents:
            return plain(path, mode, buffering, *more, **named)
        raw = Raw(path, mode.replace("b", ""))
        if buffering == 0:
            return raw
        return io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)

    return open_file


@contextmanager
def faults(disk: Disk) -> Iterator[None]:
    rename, sync, write = Path.replace, os.fsync, os.write

    def replace(path: Path, target: Path) -> Path:
        if disk.folder in path.absolute().parents and disk.fails(("rename",)):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return rename(path, target)

    def fsync(handle: int) -> None:
        if disk.fails(("fsync",)):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(handle)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", opener(disk))
        patch.setattr(Path, "replace", replace)
        patch.setattr(os, "fsync", fsync)
        patch.setattr(os, "write", lambda handle, data: disk.write(lambda part: write(handle, part), data))
        yield


def train(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    """Exit code and what stderr says; a traceback ends the test."""
    command = ["swt.py", "train", *map(str, words), "--episodes", EPISODES, "--threads", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(swt, "install_signal_handlers", lambda: None)
        patch.setattr(sys, "argv", command)
        capsys.readouterr()
        code = 0
        try:
            swt.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, capsys.readouterr().err


def calls_of(kind: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> int:
    """Calls of a kind in a run that nothing disturbs."""
    disk = Disk(folder, kind, 10**9)
    with faults(disk):
        assert train(capsys, "bars.csv", "--config", "tiny.toml", "--out", folder)[0] == 0
    return disk.calls


def saved(folder: Path) -> int:
    return max((int(path.stem[5:]) for path in folder.glob("checkpoints/step-*.ckpt")), default=0)


def test_faults_of_the_disk_lose_nothing_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bars.csv").write_text("".join(LINES))
    Path("tiny.toml").write_text(TINY)
    calls = {kind: calls_of(kind, tmp_path / f"straight {kind}", capsys) for kind in KINDS}
    model = (tmp_path / "straight EIO" / "model.swt").read_bytes()
    met, stopped, each = Counter[str](), Counter[str](), -(-TRIES // len(KINDS))
    for number in range(TRIES):
        kind, folder = KINDS[number % len(KINDS)], tmp_path / f"r{number}"
        disk = Disk(folder, kind, 1 + number // len(KINDS) * calls[kind] // each)  # from the first call on
        with faults(disk):
            code, said = train(capsys, "bars.csv", "--config", "tiny.toml", "--out", folder)
        case = f"{kind} at {disk.at} of {calls[kind]}: {said}"
        assert disk.met, case
        met[kind] += 1
        if code:
            stopped[kind] += 1
            last = said.splitlines()[-1]
            assert code == 1, case
            assert re.match(rf"swt: {re.escape(str(folder))}\S*: ", last), case
            kept = re.search(r"keeps all up to iteration (\d+)", last)
            assert int(kept[1]) <= saved(folder) if kept else "no iteration" in last or "no run" in last, case
            again = printed(last)
            words = again[0][1:] if again else ["bars.csv", "--config", "tiny.toml", "--out", str(folder)]
            words = words[: words.index("--episodes")] if again else words
            code, said = train(capsys, *words)
            assert code == 0, f"{case} then {said}"
            assert not kept or f"resuming after iteration {saved_before(said)}" in said
        assert (folder / "model.swt").read_bytes() == model, case
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert {row["iteration"] for row in rows} == {1, 2, 3}, case
        assert not [path for path in folder.rglob(".*")], case
    assert not stopped["short"]
    print(f"\n{TRIES} faults, met and stopped by: {dict(met)}, {dict(stopped)}; promises lost 0, tracebacks 0")


def saved_before(said: str) -> int:
    found = re.search(r"resuming after iteration (\d+)", said)
    return int(found[1]) if found else 0
