"""The standard streams, and progress for people: a bar with an ETA on a terminal, else a plain line now and then."""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TextIO

LOG_INTERVAL_S = 15.0
COMPILED_FRACTION = 0.6  # of the kernels that are loaded, a training compiles about so many
PROGRAM = Path(__file__).parents[1] / "swt.py"
ProgressCallback = Callable[[float, str], None]  # share done in [0, 1], what is happening


class StandardStream(io.RawIOBase):
    """A standard stream: its first failed write is an error that names it, if it has a name; what follows is lost.

    So the interpreter, which writes out what is left when it ends, finds nothing to complain of.
    """

    def __init__(self, raw: io.RawIOBase, name: str) -> None:
        self._raw, self._name, self._failed = raw, name, False

    def writable(self) -> bool:
        """For the buffer."""
        return True

    def isatty(self) -> bool:
        """Whether a person watches."""
        return self._raw.isatty()

    def fileno(self) -> int:
        """Of the system."""
        return self._raw.fileno()

    def write(self, data: Any) -> int | None:
        """Bytes written: all of them, when nobody is to know."""
        try:
            return len(data) if self._failed else self._raw.write(data)
        except OSError as error:
            self._failed = bool(self._name)
            if self._name:
                raise OSError(error.errno, error.strerror, self._name) from None
            return len(data)


def open_streams() -> None:
    """Make stdout and stderr such that no text is one they cannot show, and that stderr never fails.

    A stream that the process came without leads nowhere: a file opened later must not take its number.
    """
    while os.open(os.devnull, os.O_RDWR) < 3:
        pass
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)
    sys.stdout, sys.stderr = _wrap_stream(sys.stdout, 1, "stdout"), _wrap_stream(sys.stderr, 2, "")


def _wrap_stream(text: Any, number: int, name: str) -> TextIO:
    """The stream in the encoding that it has; lines end in one byte everywhere."""
    raw = io.FileIO(number, "w", closefd=False) if text is None else getattr(text.buffer, "raw", text.buffer)
    return io.TextIOWrapper(
        io.BufferedWriter(StandardStream(raw, name)),
        encoding=getattr(text, "encoding", "utf-8"),
        errors="backslashreplace",
        newline="\n",
        line_buffering=not name or raw.isatty(),
    )


def log(text: str) -> None:
    """One line for people."""
    print(text, file=sys.stderr, flush=True)


def no_progress(share: float, text: str) -> None:
    """A `ProgressCallback` for nobody."""


def program_command(*words: object) -> str:
    """A command of this program, to be typed as it stands where the present one was typed."""
    is_elsewhere = PROGRAM.is_file() and PROGRAM.parent != Path.cwd()  # a packed program lacks most commands
    return shell_join("python", PROGRAM if is_elsewhere else PROGRAM.name, *words)


def shell_join(*words: object) -> str:
    """Words of a command as they are typed into the shell of this machine."""
    line = [*map(str, words)]
    return subprocess.list2cmdline(line) if sys.platform == "win32" else shlex.join(line)


@cache
def log_compile_notice() -> None:
    """Say once why the first minute is slow."""
    log("compiling kernels: once, well under two minutes; later starts find them in the cache")


@contextmanager
def progress(title: str) -> Iterator[ProgressCallback]:
    """Yield a `ProgressCallback` that shows how far a task titled `title` has come."""
    if sys.stderr.isatty():
        with _progress_bar(title) as report:
            yield report
    else:
        yield _progress_lines(title)


@contextmanager
def compiling(title: str) -> Iterator[ProgressCallback]:
    """A `progress` that also counts the kernels compiled meanwhile."""
    from kernels.jit import watch_compiler

    with progress(title) as report:

        def tell(number: int, loaded: int, name: str) -> None:
            log_compile_notice()
            likely = max(round(COMPILED_FRACTION * loaded), number)
            report(min(number / likely, 0.99), f"compiling kernel {number} of about {likely}, {name}")

        with watch_compiler(tell):
            yield report
        report(1.0, "done")


@contextmanager
def _progress_bar(title: str) -> Iterator[ProgressCallback]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(title, total=None)  # it only moves to and fro until something is known

        def report(share: float, text: str) -> None:
            known = {"total": 1.0, "completed": share} if share > 0 else {}
            bars.update(task, description=f"{title}: {text}", **known)  # type: ignore[arg-type]

        yield report


def _progress_lines(title: str) -> ProgressCallback:
    begin = time.monotonic()
    last = begin - LOG_INTERVAL_S

    def report(share: float, text: str) -> None:
        nonlocal begin, last
        now = time.monotonic()
        if share == 0:
            begin = now  # what comes before the first progress, compiling say, tells nothing of the rest
        if now - last < LOG_INTERVAL_S:
            return
        last = now
        left = f", about {(now - begin) * (1 - share) / share:.0f} s left" if 0.02 < share < 1 else ""
        log(f"{title}: {share:4.0%} {text}{left}")

    return report
