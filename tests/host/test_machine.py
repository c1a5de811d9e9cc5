"""Windows and macOS: nothing is asked for that only Linux has, and every command runs where it is taken away."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from host import machine
from tests.fixtures.paths import ROOT, SAMPLE
from tests.fixtures.program import TINY
from tests.fixtures.trained import by_time

SOURCES = [ROOT / "swt.py", *(path for d in ("host", "kernels", "models") for path in sorted((ROOT / d).rglob("*.py")))]
MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "posix", "spwd", "crypt", "nis"}
OS = set("""
    chown chroot ctermid fchmod fchown fdatasync fork forkpty getegid geteuid getgid getgroups getloadavg
    getpgid getpgrp getpriority getresuid getsid getuid initgroups killpg lchown lockf major makedev
    memfd_create mkfifo mknod nice openpty pipe2 posix_fadvise posix_fallocate posix_spawn pread preadv
    pwrite pwritev sched_getaffinity sched_setaffinity sched_yield sendfile setgid setpgid setpriority
    setsid setuid statvfs sync sysconf tcgetpgrp ttyname uname wait wait3 wait4 waitid O_CLOEXEC O_DIRECT
    O_DIRECTORY O_DSYNC O_NOATIME O_NOCTTY O_NOFOLLOW O_NONBLOCK O_PATH O_SYNC O_TMPFILE
""".split())  # fmt: skip
SIGNAL = {"signal", "getsignal", "raise_signal", "Signals", "SIGINT", "SIGTERM", "SIGABRT", "SIG_DFL", "SIG_IGN",
          "default_int_handler"}  # fmt: skip
LINKS = {"symlink_to", "symlink", "hardlink_to", "link_to"}  # Windows wants a privilege for them
FOLDERS = re.compile(r"/(proc|dev|sys|tmp|etc|var|usr|home)(/|$)")
# A function that has one of these asks for the system, or expects a failure.
GUARD = re.compile(r"hasattr\(os, |sys\.platform|os\.name|except OSError|suppress\(OSError")


def only_on_linux(source: str) -> list[str]:
    """What of a source other systems do not have, outside functions that ask for the system or expect a failure."""
    tree, found = ast.parse(source), list[str]()
    guarded = [
        range(node.lineno, (node.end_lineno or 0) + 1)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and GUARD.search(ast.get_source_segment(source, node) or "")
    ]
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if not any(line in lines for lines in guarded):
            found += [f"line {line}: {text}" for text in faults(node)]
        found += [f"line {line}: {text}" for text in encoding_faults(node)]
    return found


def faults(node: ast.AST) -> list[str]:
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names if alias.name in MODULES]
        case ast.ImportFrom(module=str(module)):
            return [module] if module in MODULES else []
        case ast.Attribute(value=ast.Name(id="os"), attr=name):
            return [f"os.{name}"] if name in OS else []
        case ast.Attribute(value=ast.Name(id="signal"), attr=name):
            return [f"signal.{name}"] if name not in SIGNAL else []
        case ast.Attribute(attr=name):
            return [name] if name in LINKS else []
        case ast.Constant(value=str(text)):
            return [text] if FOLDERS.match(text) else []
    return []


def encoding_faults(node: ast.AST) -> list[str]:
    """Text files whose encoding the system would choose."""
    match node:
        case ast.Call(func=ast.Attribute(attr="read_text" | "write_text" as name)):
            missing = not any(word.arg == "encoding" for word in node.keywords)
            return [f"{name} without encoding"] if missing else []
        case ast.Call(func=ast.Attribute(attr="open", value=ast.Name(id="os" | "archive" | "Image"))):
            return []
        case ast.Call(func=ast.Attribute(attr="open") | ast.Name(id="open")):
            modes = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            named = {word.arg for word in node.keywords}
            binary = any(re.fullmatch(r"[rwax]\+?b\+?", mode) for mode in modes)
            return [] if binary or "encoding" in named else ["open without encoding"]
    return []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_source_asks_for_what_only_linux_has(path: Path) -> None:
    assert only_on_linux(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("import fcntl", 1),
        ("import os\nn = len(os.sched_getaffinity(0))", 1),
        ("def f():\n    return os.sched_getaffinity(0) if hasattr(os, 'sched_getaffinity') else 1", 0),
        ("signal.signal(signal.SIGUSR1, f)", 1),
        ("Path('/proc/self/statm').read_bytes()", 1),
        ("def f():\n    with suppress(OSError):\n        return open('/proc/cpuinfo', encoding='utf-8')", 0),
        ("Path('a').read_text()", 1),
        ("Path('a').open('w', newline='')", 1),
        ("open('a', 'rb'), open('a', 'w', encoding='utf-8'), os.open('a', os.O_RDWR)", 0),
        ("latest.symlink_to('run')", 1),
    ],
)
def test_the_search_finds_what_is_planted(source: str, count: int) -> None:
    assert len(only_on_linux(source)) == count


def test_cores_and_load_without_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= machine.usable_cores() <= (os.cpu_count() or 1)
    for name in ("sched_getaffinity", "sched_setaffinity", "getloadavg"):
        monkeypatch.delattr(os, name, raising=False)
    assert machine.usable_cores() == os.cpu_count()
    assert machine.load_average() == 0.0
    machine.limit_cores(1)
    monkeypatch.setattr(machine, "Path", lambda path: Path("nowhere") / "at all")
    assert machine.memory_mb("VmHWM") == machine.cpu_s(1) == 0.0


@pytest.mark.parametrize("fault", [OSError, AttributeError, TypeError])
def test_without_a_c_library_that_can_no_memory_is_given_back(
    fault: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.trim_heap()

    def refuse(name: None) -> None:
        raise fault

    monkeypatch.setattr(machine.ctypes, "CDLL", refuse)
    machine.trim_heap()


class Foreign(NamedTuple):
    system: str
    folder: Path  # with letters that cp1252 does not have
    bars: Path
    model: Path

    def run(self, *args: Any, **env: str) -> "subprocess.CompletedProcess[bytes]":
        """Run a command of the checkout there."""
        command = [
            sys.executable,
            "-X",
            "warn_default_encoding",
            "-m",
            "tests.fixtures.foreign",
            self.system,
            *map(str, args),
        ]
        given = {"PYTHONIOENCODING": "cp1252", "TMPDIR": str(self.folder), "PYTHONPATH": str(ROOT), **env}
        done = subprocess.run(command, cwd=ROOT, capture_output=True, env={**os.environ, **given}, timeout=400)
        assert b"Traceback" not in done.stderr, done.stderr.decode("cp1252")
        return done


@pytest.fixture(scope="module", params=["win32", "darwin"])
def foreign(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Foreign:
    """A model trained there: `train` itself is the first thing that is tried."""
    folder = tmp_path_factory.mktemp("f") / "Zürich 東京 data"
    folder.mkdir()
    bars = folder / "EURUSD é.csv"
    bars.write_text("".join(SAMPLE.read_text(encoding="utf-8").splitlines(keepends=True)[:1500]), encoding="utf-8")
    (folder / "tiny ü.toml").write_text(TINY + "# ü\n", encoding="utf-8")
    there = Foreign(request.param, folder, bars, folder / "run" / "model.swt")
    config = ("--config", folder / "tiny ü.toml", "--threads", "0")
    done = there.run("train", bars, "--side", "ask", "--out", folder / "run", "--episodes", "4", *config, "--json")
    assert done.returncode == 0, done.stderr.decode("cp1252")
    assert json.loads(done.stdout)["model"] == str(there.model)
    return there


def test_acting_there_is_what_a_backtest_decides_there(foreign: Foreign) -> None:
    common, out = ("--side", "ask", "--model", foreign.model), foreign.folder / "out"
    acted = foreign.run("act", foreign.bars, *common, "--out", out)
    assert acted.returncode == 0, acted.stderr.decode("cp1252")
    assert acted.stdout.endswith(b"\n")
    assert b"\r" not in acted.stdout
    decisions = foreign.folder / "decisions.csv"
    tested = foreign.run("backtest", foreign.bars, *common, "--decisions", decisions)
    assert tested.returncode == 0, tested.stderr.decode("cp1252")
    assert b"\r" not in decisions.read_bytes()
    got, wanted = by_time(acted.stdout.decode()), by_time(decisions.read_text(encoding="ascii"))
    assert len(wanted) > 1000
    assert all(got[time] == wanted[time] for time in wanted)
    again = foreign.run("act", foreign.bars, *common, "--out", out)
    assert again.returncode == 0, again.stderr.decode("cp1252")
    replayed = foreign.run("replay", out / "journal.jsonl", "--model", foreign.model)
    assert by_time(replayed.stdout.decode()) == got


def test_the_other_commands_run_there(foreign: Foreign) -> None:
    if foreign.system == "darwin":
        pytest.skip("what it has not, Windows has not either")
    program, model = foreign.folder / "swt 東.pyz", ("--model", foreign.model)
    small = "--length 1500 --minutes 0.001 --threads 0".split()
    small += "--set market.episode_length=24 --set train.updates_per_iteration=1".split()
    for args, codes in (
        (("pack", *model, "--out", program), (0,)),
        (("doctor", *model), (0, 9)),
        (("data-check", foreign.bars), (0,)),
        (("data-check", foreign.folder / "東京.csv"), (4,)),
        (("selftest", "noise", *small), (0, 9)),
        (("act", foreign.bars, "--model", foreign.folder / "東京.swt"), (5,)),
        (("--help",), (0,)),
        (("bench", "ort", "--rounds", 1), (0,)),
    ):
        done = foreign.run(*args)
        assert done.returncode in codes, done.stderr.decode("cp1252")
        assert b"\r" not in done.stdout
    assert program.stat().st_size > foreign.model.stat().st_size
