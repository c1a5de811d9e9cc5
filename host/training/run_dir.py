"""`RunDir`: the folder of a run, held by one process, with the configuration, metrics and durable checkpoints.

A checkpoint gets its name only after its bytes were synced and read back, and older ones go only after that.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from host.atomic import add_path_to_errors, atomic_write, locked, numbered_files, write_all
from host.settings import to_toml
from host.training.checkpoint import (
    Arrays,
    Checkpoint,
    is_intact,
    read_checkpoint,
    read_header,
    write_checkpoint,
)
from host.training.metrics import read_metrics

RUNS_FOLDER = Path("runs")  # runs without --out: 0001, 0002, ... and `latest`
RUN_NUMBER = re.compile(r"(\d{4,})")
MAX_CHECKPOINTS = 3  # a run keeps the newest
CHECKPOINT_NAME = re.compile(r"step-(\d+)\.ckpt")
BEST_CHECKPOINT = "best.ckpt"  # beside them: the whole checkpoint that a validation score chose


class RunError(RuntimeError):
    """A run directory that cannot be used as asked: it holds a run already, or another run than asked for."""

    exit_code = 3


class RunDir:
    """An open, locked run directory; `open_run_dir` makes one."""

    def __init__(self, path: Path, lock: ExitStack, check_held: Callable[[], None]) -> None:
        self.path = path
        self.saved_step: int | None = None  # of the last checkpoint written or read
        self.newest_row: dict[str, Any] | None = None  # of metrics, that this process appended
        self._checkpoints = path / "checkpoints"
        self._checkpoints.mkdir(exist_ok=True)
        for leftover in (*path.glob(".*.tmp"), *self._checkpoints.glob(".*.tmp")):
            leftover.unlink()
        _truncate_torn_line(path / "metrics.jsonl")
        self._metrics = (path / "metrics.jsonl").open("ab", buffering=0)
        self._check_lock_held = check_held
        self._lock = lock.pop_all()  # from here on `close` releases it

    def __enter__(self) -> RunDir:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock; the run can be opened again."""
        self._metrics.close()
        self._lock.close()

    def write_toml(self, name: str, table: dict[str, Any]) -> None:
        """Write `table`, of scalars, lists and tables of them, to `name`.toml."""
        path = self.path / f"{name}.toml"
        with add_path_to_errors(path), atomic_write(path) as file:
            file.write(to_toml(table).encode())

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Append a whole line to metrics.jsonl, or none; a resumed run repeats the lines after its checkpoint."""
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        self._check_lock_held()
        with add_path_to_errors(self.path / "metrics.jsonl"):
            end = self._metrics.seek(0, os.SEEK_END)
            try:
                write_all(self._metrics, line)
                os.fsync(self._metrics.fileno())  # a checkpoint promises the lines before it
            except BaseException:
                with suppress(OSError):  # if truncating fails too, the next start does it
                    self._metrics.truncate(end)
                raise
        self.newest_row = row

    def read_metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl, of each iteration the last."""
        return read_metrics(self.path / "metrics.jsonl")

    def save_checkpoint(self, step: int, arrays: Arrays, state: dict[str, Any], is_best: bool = False) -> None:
        """Write a checkpoint numbered `step` >= 0, durable on return; JSON must give `state` back unchanged.

        The best one is also written under its own name, first: a `state` that knows of it is never there without it.
        """
        checkpoint, path = Checkpoint(step, arrays, state), self._checkpoints / f"step-{step:09d}.ckpt"
        if is_best:
            self._write_checkpoint(self._checkpoints / BEST_CHECKPOINT, checkpoint)
        self._write_checkpoint(path, checkpoint)
        self.saved_step = step
        with add_path_to_errors(path):
            for old in [*numbered_files(self._checkpoints, CHECKPOINT_NAME).values()][:-MAX_CHECKPOINTS]:
                if old != path:  # a damaged file may have a higher number than the one just saved
                    old.unlink()

    def _write_checkpoint(self, path: Path, checkpoint: Checkpoint) -> None:
        """Replace the file at `path` by a checkpoint that was read back from the disk."""
        self._check_lock_held()
        with add_path_to_errors(path), atomic_write(path) as file:
            write_checkpoint(file, checkpoint)
            os.fsync(file.fileno())
            if not is_intact(file):
                raise OSError("what was read back is not what was written")

    def load_checkpoint(self) -> Checkpoint | None:
        """The newest whole checkpoint, or None; a damaged one is named on stderr and skipped.

        The best one may be the newest; then it is written again under its number, which a kill or damage left without.
        """
        for path in _checkpoint_files(self._checkpoints):
            if checkpoint := _read_if_intact(path):
                if path.name == BEST_CHECKPOINT:
                    self.save_checkpoint(*checkpoint)
                self.saved_step = checkpoint.step
                return checkpoint
        return None

    def load_best(self) -> Checkpoint | None:
        """The checkpoint that was the best when it was saved, or None where there is no whole one."""
        path = self._checkpoints / BEST_CHECKPOINT
        return _read_if_intact(path) if path.exists() else None


def open_run_dir(path: Path, resume: bool) -> RunDir:
    """Create or, with `resume`, reopen the run at `path` and lock it."""
    with add_path_to_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    with ExitStack() as lock, add_path_to_errors(path):
        check_held = lock.enter_context(locked(path / "lock"))
        if not resume:
            check_no_run(path)
        run = RunDir(path, lock, check_held)
    return run


def has_run(path: Path) -> bool:
    """Whether a run has begun at `path`; checkpoints count without config.toml, lest runs are mixed."""
    checkpoints = path / "checkpoints"
    return (path / "config.toml").exists() or (
        checkpoints.is_dir() and bool(numbered_files(checkpoints, CHECKPOINT_NAME))
    )


def check_no_run(path: Path) -> None:
    """Raise RunError where a run has begun."""
    if has_run(path):
        raise RunError(f"{path} holds a run: give --resume to continue it, or another --out")


def latest_run(runs: Path = RUNS_FOLDER) -> Path | None:
    """The run with the highest number, or None."""
    return next(filter(has_run, reversed(numbered_files(runs, RUN_NUMBER).values())), None)


def create_next_run(runs: Path = RUNS_FOLDER) -> Path:
    """Make the folder with the next number."""
    with add_path_to_errors(runs):
        runs.mkdir(parents=True, exist_ok=True)
    while True:
        path = runs / f"{max(numbered_files(runs, RUN_NUMBER), default=0) + 1:04d}"
        with add_path_to_errors(path), suppress(FileExistsError):  # another process made it first
            path.mkdir()
            return path


def link_latest(run: Path) -> None:
    """Make `latest`, beside a finished run, lead to it: a link, or where links fail a folder with a copy of its model.

    A run that an earlier version left in `latest` is moved to the next number.
    """
    latest, link = run.parent / "latest", run.parent / f".latest.{os.getpid()}"
    if has_run(latest) and not latest.is_symlink():
        with locked(latest / "lock"):
            place = create_next_run(run.parent)
        place.rmdir()
        latest.rename(place)
    try:
        link.symlink_to(run.name, target_is_directory=True)
        if sys.platform == "win32":  # Windows does not replace a link to a folder
            latest.unlink(missing_ok=True)
        link.replace(latest)
    except (OSError, NotImplementedError):
        link.unlink(missing_ok=True)
        if latest.is_symlink():
            latest.unlink()
        latest.mkdir(exist_ok=True)
        with atomic_write(latest / "model.swt") as file:
            file.write((run / "model.swt").read_bytes())


def peek_state(path: Path) -> dict[str, Any] | None:
    """The state in the newest checkpoint with a readable head, or None.  Takes no lock."""
    for file in _checkpoint_files(path / "checkpoints"):
        with add_path_to_errors(file), file.open("rb") as stream, suppress(ValueError, KeyError, TypeError):
            return dict(read_header(stream)["state"])
    return None


def _checkpoint_files(checkpoints: Path) -> list[Path]:
    """The files to resume from, the newest first; the best one after that with its number."""
    numbers = {path: number for number, path in numbered_files(checkpoints, CHECKPOINT_NAME).items()}
    best = checkpoints / BEST_CHECKPOINT
    if best.exists():
        numbers[best] = -1  # of a damaged head
        with add_path_to_errors(best), best.open("rb") as file, suppress(ValueError, KeyError, TypeError):
            numbers[best] = read_header(file)["step"]
    return sorted(numbers, key=lambda path: (-numbers[path], path == best))


def _read_if_intact(path: Path) -> Checkpoint | None:
    """The checkpoint at `path`, or None, and a line on stderr, where it is damaged."""
    with add_path_to_errors(path), path.open("rb") as file:
        if is_intact(file):
            return read_checkpoint(file)
    print(f"swt: {path} is damaged: skipped", file=sys.stderr)
    return None


def _truncate_torn_line(path: Path) -> None:
    """Drop the part after the last newline: a line that a power cut tore."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        text = file.read()
        file.truncate(text.rfind(b"\n") + 1)
