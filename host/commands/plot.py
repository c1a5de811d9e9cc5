"""`plot`: the learning curves of runs as a page, and a picture of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from host.analysis.page_picture import draw_page
from host.analysis.summary import bokeh_needed
from host.atomic import check_writable, write_atomic
from host.console import log, program_command
from host.training.metrics import MetricsError, Row, read_metrics

PAGE = "curves.html"
PICTURE_WIDTH = 1400  # pixels


def plot_runs(runs: list[Path], out: Path | None, png: Path | None, width: int = PICTURE_WIDTH) -> None:
    """Write the curves of `runs` to `out`, by default into the only run or into the current folder."""
    page = out or (runs[0] / PAGE if len(runs) == 1 else Path(PAGE))
    curves = dict(found for run in runs for found in read_curves(run))
    for path in (page, *([png] if png else [])):
        check_writable(path)
    with bokeh_needed(page, program_command("plot", *runs)):
        from host.analysis.learning_page import render_learning
    write_atomic(page, render_learning(curves))
    log(f"{page}")
    if png is not None:
        draw_page(page, png, width)


def read_curves(run: Path) -> Iterator[tuple[str, list[Row]]]:
    """Name and rows of a run, or of each training of a walk-forward; MetricsError where there are none."""
    files = [run / "metrics.jsonl"] if (run / "metrics.jsonl").is_file() else sorted(run.glob("*/*/metrics.jsonl"))
    found = {file: rows for file in files if (rows := read_metrics(file))}
    if not found:
        why = "no iteration has ended yet" if files else "holds no metrics.jsonl"
        raise MetricsError(f"{run}: {why}: name a folder of `train --out` or `walkforward --out`")
    for file, rows in found.items():
        yield file.parent.as_posix(), rows
