"""What people see while they wait: bars that move on a terminal, a plain line now and then when piped."""

import io
import re
import sys
import time
from pathlib import Path

import pytest
from numba import njit

from host import console as progress
from host.console import compiling
from kernels import jit, rng
from kernels.jit import watch_compiler


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def compile_anew() -> None:
    """Two kernels of the program, one for the sake of the other, whatever the cache holds."""
    njit(rng.randint.py_func)(5, 1, 2, 3)


def test_the_compiler_tells_of_each_kernel_once() -> None:
    told = list[tuple[int, int, str]]()
    compile_anew()  # what it calls comes from the cache, or is compiled once
    with watch_compiler(lambda *what: told.append(what)):
        compile_anew()
        compile_anew()
        njit(lambda: 1)()  # no kernel of the program
    compile_anew()
    assert [name for _, _, name in told] == ["rng.randint"]
    assert [number for number, _, _ in told] == [1]


@pytest.mark.parametrize("is_warm", [False, True])
def test_kernels_of_modules_with_machine_code_are_not_awaited(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_warm: bool
) -> None:
    if is_warm:
        (tmp_path / "rng.randint-1.py311.1.nbc").touch()
        (tmp_path / "rng.randint-1.py311.nbi").touch()
    monkeypatch.setattr(jit, "cache_dir", lambda module: tmp_path)
    awaited = list[int]()
    with watch_compiler(lambda number, new, name: awaited.append(new)):
        compile_anew()
    assert (awaited == [0]) == is_warm
    assert is_warm or awaited[0] > 10


@pytest.mark.parametrize("terminal", [True, False])
def test_compilation_moves_a_bar_of_its_own(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    screen = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(progress, "LOG_INTERVAL_S", 0.0)
    monkeypatch.setenv("COLUMNS", "200")
    progress.log_compile_notice.cache_clear()
    with compiling("getting ready") as report:
        report(0.0, "reading bars.csv")
        compile_anew()
        time.sleep(0.5 if terminal else 0.0)
    said = screen.getvalue()
    assert said.count("compiling kernels: once") == 1
    signs = {*re.findall(r"[-\\|/] getting ready", re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", said))}
    assert len(signs) > 1 or not terminal, "nothing moves"
    assert re.search(r"getting ready:.*done", said)
    if not terminal:
        assert re.search(r"getting ready: +\d+% compiling kernel 1 of about \d+, rng\.randint", said)


def test_a_plain_line_comes_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with progress.progress("training") as report:
        for second in range(61):
            clock[0] = float(second)
            report(second / 60, f"cycle {second}")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "training:   0% cycle 0"
    assert lines[2] == "training:  50% cycle 30, about 30 s left"
    assert lines[-1] == "training: 100% cycle 60"
    assert len(lines) == 5


def test_what_was_done_before_makes_no_promise(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with progress.progress("bench") as report:
        for second in range(31):
            clock[0] = 100.0 + second
            report(0.5 + 0.1 * second / 30, "a job")
    assert capsys.readouterr().err.splitlines() == [
        "bench:  50% a job",
        "bench:  55% a job, about 135 s left",
        "bench:  60% a job, about 120 s left",
    ]
