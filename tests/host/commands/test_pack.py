"""The packed program: the same bytes every time, and the decisions of the checkout with four packages installed."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

import swt
from host import VERSION
from host.artifact.model_file import ModelError
from host.commands.pack import pack, packed_sources
from kernels.jit import cache_root, module_digest
from kernels.market.features import HISTORY
from tests.fixtures.paths import ROOT
from tests.fixtures.trained import ROWS, Trained, by_time, feed_of

NEEDS = ("numpy", "numba", "onnxruntime", "typer")


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with nothing but what the README promises to be enough."""
    folder = tmp_path_factory.mktemp("bare")
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    wanted = [line for line in wanted if line.startswith(tuple(f"{name}>" for name in NEEDS))]
    assert len(wanted) == len(NEEDS)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    pip = [sys.executable, "-m", "pip", "--python", python]
    install = [*pip, "install", "--quiet", "--no-compile", *wanted]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode:
        assert "No matching distribution" in done.stderr, done.stderr  # what pip says without a network
        pytest.skip(f"no index to install {', '.join(NEEDS)} from")
    return python


@pytest.fixture(scope="module")
def packed(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "swt.pyz"
    pack(trained.path, path)
    return path


def run(python: Path, program: Path, *args: Any, **env: str) -> "subprocess.CompletedProcess[str]":
    """Run the packed program from a folder that has nothing to do with it."""
    command = [str(python), str(program), *map(str, args)]
    return subprocess.run(command, cwd="/", capture_output=True, text=True, env={**os.environ, **env}, timeout=300)


def test_two_packs_are_the_same_bytes(trained: Trained, packed: Path, tmp_path: Path) -> None:
    pack(trained.path, tmp_path / "other.name")
    assert (tmp_path / "other.name").read_bytes() == packed.read_bytes()
    with zipfile.ZipFile(packed) as archive:
        assert {(info.date_time, info.compress_type) for info in archive.infolist()} == {((1980, 1, 1, 0, 0, 0), 0)}
        assert archive.read("model.swt") == trained.path.read_bytes()


def test_there_is_no_trainer_inside() -> None:
    names = set(packed_sources())
    packages = {"kernels/__init__.py", "kernels/search/__init__.py"}
    assert {"swt.py", "host/commands/act.py", "host/commands/replay.py", "kernels/jit.py", *packages} <= names
    assert not {name for name in names if name.startswith(("models/", "tests/"))}
    assert not {name for name in names if name.startswith(("host/training/", "host/bench/"))}
    assert not names & {"host/data/csv_reader.py", "host/commands/train.py", "host/commands/pack.py"}
    assert all((ROOT / name).is_file() for name in names)


def test_a_model_that_would_be_refused_is_not_packed(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "model.swt").write_bytes(trained.path.read_bytes()[:-1])
    with pytest.raises(ModelError):
        pack(tmp_path / "model.swt", tmp_path / "swt.pyz")
    assert not (tmp_path / "swt.pyz").exists()


def test_decisions_are_the_checkouts_wherever_and_whatever_it_is_called(
    bare: Path, trained: Trained, packed: Path, tmp_path: Path
) -> None:
    """In a folder that cannot be written, named as one likes, without a home, with four packages installed."""
    listed = [bare, "-c", "import pandas"]
    assert subprocess.run(listed, capture_output=True).returncode == 1
    feed = feed_of(ROWS[: HISTORY + 60], tmp_path / "EURUSD.csv")
    folder, temporary = tmp_path / "read only", tmp_path / "tmp"
    folder.mkdir()
    program = folder / "swt.py"
    program.write_bytes(packed.read_bytes())
    folder.chmod(0o555)
    kept = temporary / f"swt-{os.getuid()}"
    kept.mkdir(parents=True, mode=0o700)
    (kept / cache_root().name).symlink_to(cache_root())  # warm: compiling takes a minute
    homeless = {"HOME": "/dev/null", "SWT_CACHE_DIR": "", "TMPDIR": str(temporary)}
    done = run(bare, program, "act", feed, **homeless)
    assert done.returncode == 0, done.stderr
    assert "set SWT_CACHE_DIR" in done.stderr
    got = by_time(done.stdout)
    assert len(got) == 61
    assert all(got[time] == trained.decisions[time] for time in got)
    assert [path.name for path in folder.iterdir()] == ["swt.py"]
    out = tmp_path / "out"
    assert run(bare, program, "act", feed, "--out", out).returncode == 0
    replayed = run(bare, program, "replay", out / "journal.jsonl")
    assert by_time(replayed.stdout) == got


def test_commands_of_the_checkout_are_named_as_such(packed: Path) -> None:
    done = run(Path(sys.executable), packed, "train")
    assert (done.returncode, done.stdout) == (2, "")
    assert "a command of the checkout" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_help_of_the_pack_lists_what_it_holds(packed: Path) -> None:
    done = run(Path(sys.executable), packed, "--help")
    assert done.returncode == 0
    assert "Usage: swt.pyz" in done.stdout
    commands = [command for command in swt.app.registered_commands if command.callback]
    every = [command.name or str(command.callback.__name__) for command in commands]
    listed = [name for name in every if re.search(rf"^\W+{name}\s", done.stdout, re.MULTILINE)]
    assert sorted(listed) == ["act", "doctor", "replay"]
    for name in sorted({*every} - {*listed}):
        needs = {"data-check": ["x"], "bench": ["ort"], "pack": ["--model", packed / "model.swt"]}
        needs |= {"compare": ["x", "y"], "report": ["x"], "plot": ["x"], "walkforward": ["--out", "x"]}
        assert "a command of the checkout" in run(Path(sys.executable), packed, name, *needs.get(name, [])).stderr


def test_the_pack_has_the_version_of_the_checkout(packed: Path) -> None:
    done = run(Path(sys.executable), packed, "--version")
    assert (done.returncode, done.stdout) == (0, f"swt {VERSION}, {module_digest('kernels.live.policy_step')}\n")
    assert "risk.drawdown" in run(Path(sys.executable), packed, "act", "--help-config").stdout


def test_doctor_from_the_pack(bare: Path, packed: Path) -> None:
    done = run(bare, packed, "doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) <= 24
    for word in ("onnxruntime", "cache", "clock", "threads", "model", "self-test", "latency"):
        assert word in done.stdout
    assert "FAILED" not in done.stdout


def test_acting_imports_nothing_that_windows_has_not() -> None:
    program = (
        "import os, sys, numpy, numba, typer\n"
        "for name in ('fcntl', 'resource', 'pwd', 'grp', 'termios'): sys.modules[name] = None\n"
        "for name in ('pread', 'pwrite', 'sched_getaffinity', 'getuid', 'getloadavg', 'fork'): delattr(os, name)\n"
        "import swt, host.commands.act, host.commands.doctor, host.live.bridge"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
