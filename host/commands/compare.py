"""`compare`: the decisions of a journal beside the backtest of the same bars of a file."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

from host.analysis.compare import compare_run, read_live_run
from host.commands.backtest import load_model_and_bars
from host.data.formats import ReadOptions
from host.live.journal import read_journal


def compare_journal(journal: Path, csv: Path, model: Path, reading: ReadOptions, insist: bool) -> dict[str, Any]:
    """The document of `compare --json`; ReplayError where this program decides otherwise on the journal's own bars."""
    loaded, bars, source = load_model_and_bars(csv, model, reading, insist)
    return {"source": source.path, **compare_run(loaded, read_live_run(loaded, read_journal(journal)), bars)}


def print_comparison(document: dict[str, Any], out: IO[str]) -> None:
    """Print what was compared, each cause with its decisions, and the profits."""
    changed = ", ".join(f"{count} x {kind}" for kind, count in document["changed_bars"].items()) or "none changed"
    print(f"{document['decisions']} live decisions on {document['bars']} bars; bars: {changed}", file=out)
    if document["not_compared"]:
        print(f"{document['not_compared']} decisions after the last bar of the file are not compared", file=out)
    for cause, row in document["causes"].items():
        span = f"{row['first']} to {row['last']}"
        print(f"{cause}: {row['decisions']} differ, {row['other_targets']} in the target, {span}", file=out)
    pips = ", ".join(f"{name} {value:.1f}" for name, value in document["net_pips"].items())
    print(f"net pips of a position of 1 on the bars of the file: {pips}", file=out)
