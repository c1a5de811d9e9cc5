"""The standard streams, errors as lines, and progress: a bar with an ETA on a terminal, else a line now and then."""

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
COMPILED_FRACTION = 0.6  # of the new kernels; a training compiles about as many
PROGRAM = Path(__file__).parents[1] / "swt.py"
ProgressCallback = Callable[[float, str], None]  # fraction done in [0, 1], what is being done
PanelCallback = Callable[[dict[str, float]], None]  # fraction done of each job by name


class StandardStream(io.RawIOBase):
    """A standard stream whose first failed write raises OSError with `name`; later writes are dropped.

    A stream without a name never raises.  Dropping keeps the interpreter, which flushes at its end, from complaining.
    """

    def __init__(self, raw: io.RawIOBase, name: str) -> None:
        self._raw, self._name, self._failed = raw, name, False

    def writable(self) -> bool:
        """Whether it can be written to; a BufferedWriter asks."""
        return True

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self._raw.isatty()

    def fileno(self) -> int:
        """The file descriptor."""
        return self._raw.fileno()

    def write(self, data: Any) -> int | None:
        """Number of bytes written; dropped bytes count as written."""
        try:
            return len(data) if self._failed else self._raw.write(data)
        except OSError as error:
            self._failed = bool(self._name)
            if self._name:
                raise OSError(error.errno, error.strerror, self._name) from None
            return len(data)


def open_streams() -> None:
    """Replace stdout and stderr by streams that escape what their encoding lacks; stderr never fails.

    A standard stream that is closed is opened to nowhere, so that no file opened later gets its descriptor.
    """
    while os.open(os.devnull, os.O_RDWR) < 3:
        pass
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)
    sys.stdout, sys.stderr = _wrap_stream(sys.stdout, 1, "stdout"), _wrap_stream(sys.stderr, 2, "")


def _wrap_stream(text: Any, number: int, name: str) -> TextIO:
    """The stream `text` or descriptor `number` in its own encoding; a line ends in one byte on Windows too."""
    raw = io.FileIO(number, "w", closefd=False) if text is None else getattr(text.buffer, "raw", text.buffer)
    return io.TextIOWrapper(
        io.BufferedWriter(StandardStream(raw, name)),
        encoding=getattr(text, "encoding", "utf-8"),
        errors="backslashreplace",
        newline="\n",
        line_buffering=not name or raw.isatty(),
    )


def explain(error: Exception) -> tuple[int | None, str]:
    """Exit code and one line for an error; exit code None: a fault of the program, whose traceback is wanted."""
    code = getattr(error, "exit_code", None)
    if code is None and isinstance(error, OSError):
        where = " to ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        return 1, f"{where}: {error.strerror}" if where and error.strerror else str(error)
    if code is None and isinstance(error, MemoryError):
        return 1, f"out of memory: {error}"
    message = getattr(error, "format_message", error.__str__)  # a usage error names its option only there
    return code, message() or "no command"


def log(text: str) -> None:
    """Print one line on stderr."""
    print(text, file=sys.stderr, flush=True)


def no_progress(fraction: float, text: str) -> None:
    """A `ProgressCallback` that reports nothing."""


def program_command(*words: object) -> str:
    """A command of this program that works as typed in the current folder."""
    is_elsewhere = PROGRAM.is_file() and PROGRAM.parent != Path.cwd()  # a packed program lacks most commands
    return shell_join("python", PROGRAM if is_elsewhere else PROGRAM.name, *words)


def shell_join(*words: object) -> str:
    """`words` quoted for the shell of this machine."""
    line = [*map(str, words)]
    return subprocess.list2cmdline(line) if sys.platform == "win32" else shlex.join(line)


@cache
def log_compile_notice() -> None:
    """Log once why the first minute is slow."""
    log("compiling kernels: once, well under two minutes; later starts find them in the cache")


@contextmanager
def progress(title: str) -> Iterator[ProgressCallback]:
    """Yield a `ProgressCallback` that shows the progress of the task `title`."""
    if sys.stderr.isatty():
        with _progress_bar(title) as report:
            yield report
    else:
        yield _progress_lines(title)


@contextmanager
def compiling(title: str) -> Iterator[ProgressCallback]:
    """A `progress` that also counts the kernels that are compiled in the block."""
    from kernels.jit import watch_compiler

    with progress(title) as report:

        def count_kernel(number: int, new: int, name: str) -> None:
            log_compile_notice()
            likely = max(round(COMPILED_FRACTION * new), number + 1)
            report(min(number / likely, 0.99), f"compiling kernel {number} of about {likely}, {name}")

        with watch_compiler(count_kernel):
            yield report
        report(1.0, "done")


@contextmanager
def _progress_bar(title: str) -> Iterator[ProgressCallback]:
    with _rich_progress() as bars:
        task = bars.add_task(title, total=None)  # without a total the bar moves to and fro

        def report(fraction: float, text: str) -> None:
            state = {"total": 1.0, "completed": fraction} if fraction > 0 else {}
            bars.update(task, description=f"{title}: {text}", **state)

        yield report


@contextmanager
def progress_panel(title: str) -> Iterator[PanelCallback]:
    """Yield a `PanelCallback` for many jobs: a panel of one bar for all and one for each that runs, or plain lines."""
    if not sys.stderr.isatty():
        report = _progress_lines(title)

        def show_line(shares: dict[str, float]) -> None:
            report(sum(shares.values()) / len(shares), _panel_text(shares, ", ".join(_running(shares))))

        yield show_line
        return
    with _rich_progress() as bars:
        whole, tasks = bars.add_task(title, total=None), dict[str, Any]()

        def show(shares: dict[str, float]) -> None:
            text = f"{title}: {_panel_text(shares)}"
            bars.update(whole, description=text, total=len(shares), completed=sum(shares.values()))
            running = _running(shares)
            for name in tasks.keys() - set(running):
                bars.remove_task(tasks.pop(name))
            for name in running:
                tasks[name] = tasks.get(name) or bars.add_task(f"  {name}", total=1.0)
                bars.update(tasks[name], completed=shares[name])

        yield show


def _running(shares: dict[str, float]) -> list[str]:
    """The jobs that have begun and not ended."""
    return [name for name, share in shares.items() if 0 < share < 1]


def _panel_text(shares: dict[str, float], running: str = "") -> str:
    """How many jobs have ended, and which run."""
    ended = sum(share >= 1 for share in shares.values())
    return f"{ended} of {len(shares)} done{f', now {running}' if running else ''}"


def _rich_progress() -> Any:
    """Bars of tasks on stderr, each with its description, percentage and time left; a sign that turns moves always."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.table import Column

    text = TextColumn("{task.description}", table_column=Column(ratio=2, no_wrap=True, overflow="ellipsis"))
    bar = BarColumn(bar_width=None, table_column=Column(ratio=1))
    columns = (SpinnerColumn("line"), text, bar, TaskProgressColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), expand=True)


def _progress_lines(title: str) -> ProgressCallback:
    begin, done_before = time.monotonic(), 0.0
    last: float | None = None

    def report(fraction: float, text: str) -> None:
        nonlocal begin, done_before, last
        now = time.monotonic()
        if fraction == 0 or last is None:  # what an earlier call has done, and the time of compiling, predict nothing
            begin, done_before = now, fraction
        if last is not None and now - last < LOG_INTERVAL_S:
            return
        last, done = now, fraction - done_before
        left = f", about {(now - begin) * (1 - fraction) / done:.0f} s left" if done > 0.02 and fraction < 1 else ""
        log(f"{title}: {fraction:4.0%} {text}{left}")

    return report
