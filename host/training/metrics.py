"""The rows of metrics.jsonl, read back; and the same as scalars of TensorBoard, where that is asked for."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from host.atomic import add_path_to_errors
from host.config import flatten
from host.console import log

Row = dict[str, Any]


class MetricsError(ValueError):
    """Metrics that are missing, or that are no rows of JSON."""

    exit_code = 3


class TensorBoardError(RuntimeError):
    """TensorBoard files were asked for, and tensorboardX is not installed."""

    exit_code = 2


def read_metrics(path: Path) -> list[Row]:
    """The rows of a metrics.jsonl, of each iteration the last; a torn last line is left out."""
    with add_path_to_errors(path):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    rows = dict[Any, Row]()
    for number, line in enumerate(lines, 1):
        if line.endswith("\n") and line.strip():
            try:
                row = json.loads(line)
                rows[row.get("iteration", -number)] = row
            except (ValueError, AttributeError):
                raise MetricsError(f"{path}: line {number} is no row of metrics: delete that line") from None
    return list(rows.values())


def scalars(row: Row) -> dict[str, float]:
    """The numbers of a row by their names; those of a table within it as table/name."""
    pairs = ((name.replace(".", "/"), value) for name, value in flatten(row))
    return {name: float(value) for name, value in pairs if type(value) in (int, float)}


def check_tensorboard(is_asked: bool) -> None:
    """Raise TensorBoardError where TensorBoard files are asked for without tensorboardX."""
    if is_asked and find_spec("tensorboardX") is None:
        raise TensorBoardError("--tensorboard takes tensorboardX: pip install '.[tensorboard]', or leave the flag out")


@contextmanager
def tensorboard(folder: Path, episodes: int, is_asked: bool) -> Iterator[Callable[[Row], None]]:
    """Yield what writes a row for TensorBoard into `folder`, nothing unless it `is_asked`; it starts at `episodes`."""
    if not is_asked:
        yield lambda row: None
        return
    board = TensorBoard(folder, episodes)
    try:
        yield board.add
    finally:
        board.close()


class TensorBoard:
    """Scalars of TensorBoard in a folder, written at once; after the first fault of the disk none, with a warning."""

    def __init__(self, folder: Path, episodes: int) -> None:
        """Begin a session after `episodes`: TensorBoard drops later steps of a run that is resumed before them."""
        from tensorboardX.proto.event_pb2 import SessionLog
        from tensorboardX.record_writer import RecordWriter

        self._folder = folder
        self._writer: Any = None
        with self._until_a_fault():
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = RecordWriter(str(folder / f"events.out.tfevents.{int(time.time())}.{os.getpid()}"))
        self._write(file_version="brain.Event:2")
        self._write(step=episodes + 1, session_log=SessionLog(status=SessionLog.START))

    def add(self, row: Row) -> None:
        """Write the numbers of a row at the step of its episodes."""
        from tensorboardX.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars(row).items()]
        self._write(step=row["episodes"], summary=Summary(value=values))

    def close(self) -> None:
        """Close the file."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with suppress(OSError):
                writer.close()

    def _write(self, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        if self._writer is not None:
            with self._until_a_fault():
                self._writer.write(Event(wall_time=time.time(), **content).SerializeToString())
                self._writer.flush()

    @contextmanager
    def _until_a_fault(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.close()
            log(f"warning: {self._folder}: {error.strerror or error}: no more scalars; metrics.jsonl has all of them")
