"""The ledger of trials, `trials.jsonl`: an append-only file of every training, walk-forward and backtest of a span.

A line is written before the run begins, so that one that was stopped counts too.  The more trials a span has seen, the
better the best of them looks by luck alone (Bailey & Lopez de Prado 2014): the statistics ask for their number.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from host.atomic import append_line, read_lines
from host.data.parsing import format_utc

LEDGER = "trials.jsonl"  # beside the folders of the runs that share it
BEGIN, END, OPEN, BACKTEST = "begin", "end", "open holdout", "backtest"  # events


class TrialsError(ValueError):
    """A ledger that cannot be read, or a holdout that is none any more."""

    exit_code = 3


class Span(NamedTuple):
    """A market and the time that a test took of it."""

    market: str  # symbol, or the sha256 of the file where it has none
    first: str  # ISO 8601, UTC
    last: str

    def overlaps(self, row: dict[str, Any]) -> bool:
        """Whether the trial of `row` touched a part of this span."""
        return bool(row["market"] == self.market and row["first"] < self.last and self.first < row["last"])


def span_of(symbol: str, sha256: str, time: NDArray[np.int64], first: int, last: int) -> Span:
    """The span of a test from bar `first` to bar `last` of bars that close at `time` [T]."""
    return Span(sha256 if symbol == "-" else symbol, format_utc(time[first]), format_utc(time[last]))


def trial_id(origin: dict[str, Any]) -> str:
    """The name of a training by all that determines its weights: the same once more is no other trial."""
    return hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()[:32]


def ledger_of(run: Path) -> Path:
    """The ledger in which a run notes its trials."""
    return run.absolute().parent / LEDGER


class Trials(NamedTuple):
    """What the ledger knows of a span."""

    number: int  # of runs that touched it
    sharpe: list[float]  # of the daily returns of those that ended

    def sharpe_variance(self) -> float | None:
        """The variance of the Sharpe ratios; None where there are not two."""
        return statistics.variance(self.sharpe) if len(self.sharpe) > 1 else None


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """The lines of the ledger, none where there is no file; what a power cut tore of the last line is left out."""
    rows = list[dict[str, Any]]()
    for number, line in enumerate(read_lines(path), 1):
        try:
            rows.append(json.loads(line))
            Span(*(str(rows[-1][key]) for key in Span._fields)), rows[-1]["event"], rows[-1]["trial"]
        except (ValueError, TypeError, LookupError):
            fault = "is no trial: put the file back as it was; without it no statistic knows how much was tried"
            raise TrialsError(f"{path}: line {number} {fault}") from None
    return rows


def append_trial(path: Path, event: str, trial: str, span: Span, **more: Any) -> None:
    """Append a line, durable on return, unless the ledger has that event of the trial on that span."""
    known = {"event": event, "trial": trial, **span._asdict()}
    if any(known.items() <= row.items() for row in read_ledger(path)):
        return
    append_line(path, {**known, **more})  # the folder of a run stands there too, and is durable with it


def trials_of(path: Path, span: Span) -> Trials:
    """The runs that touched a part of `span`, and the Sharpe ratios of those that ended."""
    rows = [row for row in read_ledger(path) if span.overlaps(row)]
    sharpe = {row["trial"]: row["sharpe"] for row in rows if row["event"] == END and row.get("sharpe") is not None}
    return Trials(len({row["trial"] for row in rows}), [*sharpe.values()])


def is_open(path: Path, trial: str) -> bool:
    """Whether `trial` has opened its holdout."""
    return any((row["event"], row["trial"]) == (OPEN, trial) for row in read_ledger(path))


def open_holdout(path: Path, trial: str, span: Span, **more: Any) -> None:
    """Note that `trial` opens the holdout `span`; TrialsError where another one did."""
    for row in read_ledger(path):
        if row["event"] == OPEN and row["trial"] != trial and span.overlaps(row):
            raise TrialsError(
                f"{path}: the holdout {span.first} .. {span.last} was opened by {row.get('run', row['trial'])}, so it "
                "is none any more: bring bars that are newer than both"
            )
    append_trial(path, OPEN, trial, span, **more)
