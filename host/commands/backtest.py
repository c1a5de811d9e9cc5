"""`backtest`: trade a file of bars with a model, and report net pips after every cost."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from host import VERSION
from host.analysis.baselines import agent_record, without_search
from host.analysis.report import ANALYSIS_FILES, ReportContext, report_backtest, write_report
from host.analysis.summary import print_summary
from host.artifact.manifest import LoadedModel, reading_options
from host.atomic import add_path_to_errors, check_not_input, check_writable
from host.commands.data_check import print_source, source_document
from host.config import RiskConfig
from host.console import log, progress
from host.data.csv_reader import read_bars
from host.data.formats import DataError, ReadOptions, Source
from host.data.parsing import EPOCH_UTC, MICROSECOND, format_utc
from host.evaluation.backtest import BacktestResult, new_backtest_policy, run_backtest
from host.evaluation.rehearsal import print_risk_report, run_risk_engine
from host.live.limits import describe_limits, resolve_limits
from host.live.live_agent import DECISION_COLUMNS, format_decision, new_policy_state, warm_up
from host.live.market_check import check_scale, check_symbol, load_model_of
from host.walkforward.trials import BACKTEST, Trials, append_trial, ledger_of, read_ledger, span_of, trials_of
from kernels.market.bars import Bars

INTERVALS = (("D", 86_400), ("H", 3_600), ("M", 60))  # seconds
SEEN_BARS = "A profit on bars of the training proves nothing: they are unseen from {0} on (--from {0})."
SAMPLE_CSV = Path(__file__).parents[1] / "data" / "sample.csv"


def write_decisions(path: Path, result: BacktestResult, bars: Bars, first: int) -> None:
    """Write the decisions in the columns of `act`; latency_us is the mean of the run."""
    log, n = result.log, len(result.log.action)
    latency = round(result.seconds / n * 1e6)
    with path.open("w", encoding="ascii", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(DECISION_COLUMNS)
        for i in range(n):
            row = bars.time[first + i], log.action[i], log.target[i], log.value[i], log.policy[i], latency
            writer.writerow(format_decision(*row))


def backtest_csv(
    csv: Path | None,
    model: Path,
    reading: ReadOptions,
    start: str | None,
    decisions: Path | None,
    quiet: bool = False,
    as_json: bool = False,
    risk: RiskConfig | None = None,
    insist: bool = False,
    report_folder: Path | None = None,
) -> dict[str, Any]:
    """Trade a CSV from the first bar that closes at or after `start`; the report, with the effect of `risk`.

    With `report_folder` the files of the report are written into it.
    """
    check_outputs(decisions, report_folder, model, csv or SAMPLE_CSV)
    loaded, bars, source = load_model_and_bars(csv, model, reading, insist)
    first = first_decision_bar(bars, start, source, loaded.networks.history)
    policy = new_backtest_policy(loaded.networks, loaded.market_spec, loaded.search)
    extra = np.zeros((len(bars.time), 0), np.float32)
    with progress("backtest") as report:
        result = run_backtest(policy, bars, extra, first, len(bars.time), report)
    unseen_ns = loaded.test_first_ns
    caveat = SEEN_BARS.format(format_utc(unseen_ns)) if bars.time[first] < unseen_ns else None
    agent = loaded.networks, loaded.market_spec, without_search(loaded.search)
    rivals = {"policy head": [agent_record(*agent, bars, extra, first, len(bars.time))]}
    trials = note_trial(model, loaded, source, bars, first)
    context = ReportContext(
        describe_source(source, model, loaded.sha256),
        trials=trials.number,
        trial_sharpe_variance=trials.sharpe_variance(),
        caveat=caveat,
        rivals=rivals,
    )
    asked = new_policy_state(loaded.networks, loaded.market_spec, loaded.search)
    document, record = report_backtest(result, asked, bars, first, context, None)
    if risk is not None:
        limits = resolve_limits(risk, loaded)
        for line in describe_limits(limits, loaded):
            log(line)
        document["guards"] = run_risk_engine(loaded, limits, result.log.target, bars, first)
    if as_json:
        print(json.dumps(document))
    elif not quiet:
        print_summary(document, sys.stdout)
        if risk is not None:
            print_risk_report(document["guards"], sys.stdout)
    if decisions is not None:
        with add_path_to_errors(decisions):
            write_decisions(decisions, result, bars, first)
    if report_folder is not None:
        write_report(report_folder, document, [record])
    return document


def note_trial(model: Path, loaded: LoadedModel, source: Source, bars: Bars, first: int) -> Trials:
    """Note in the ledger beside the run of a model that it saw these bars; how many agents did, 1 without a ledger.

    An agent that was trained on them, or tested, counts once.
    """
    run, ledger = model.resolve().parent, ledger_of(model.resolve().parent)
    if not ledger.exists():
        return Trials(1, [])
    span = span_of(source.instrument.symbol, source.sha256, bars.time, first, -1)
    own = (row["trial"] for row in read_ledger(ledger) if row.get("run") == str(run))
    try:
        append_trial(ledger, BACKTEST, next(own, loaded.sha256[:32]), span, run=str(run))
    except OSError as error:
        log(f"{ledger}: this backtest is not noted: {error}")
    return trials_of(ledger, span)


def check_outputs(decisions: Path | None, report_folder: Path | None, *inputs: Path) -> None:
    """Raise OutputPathError unless both can be written, without loss of an input."""
    if decisions is not None:
        check_writable(decisions)
        check_not_input(decisions, *inputs)
    if report_folder is not None:
        check_writable(report_folder, folder=True)
        for name in ANALYSIS_FILES:
            check_not_input(report_folder / name, *inputs)


def describe_source(source: Source, model: Path, sha256: str) -> dict[str, Any]:
    """What a report says of the bars and of the model that traded them."""
    symbol = "" if source.instrument.symbol == "-" else source.instrument.symbol
    return {
        "title": f"{symbol or Path(source.path).stem}, {format_interval(source.interval_s)}",
        "file": Path(source.path).name,
        "model": model.as_posix(),
        "sha256": sha256[:16],
        "version": VERSION,
    }


def format_interval(seconds: int) -> str:
    """The length of a bar as traders write it: M5, H1, D1."""
    letter, unit = next(((name, size) for name, size in INTERVALS if seconds % size == 0), ("S", 1))
    return f"{letter}{seconds // unit}"


def load_model_and_bars(
    csv: Path | None, model: Path, reading: ReadOptions, insist: bool
) -> tuple[LoadedModel, Bars, Source]:
    """A model and the bars of a CSV, by default the bundled ones; ModelError for another market, unless `insist`."""
    path = str(csv or SAMPLE_CSV)
    reading = sample_reading(reading) if csv is None else reading
    loaded = warm_up(load_model_of(path, model, reading, insist))
    bars, source = read_bars(path, reading_options(loaded, reading, Path(path).name))
    log_source(source)
    if not insist:
        check_symbol(loaded, source.instrument.symbol, path)
        check_scale(loaded, bars.close, bars.high - bars.low, path)
    return loaded, bars, source


def sample_reading(reading: ReadOptions) -> ReadOptions:
    """`reading` with the side and the symbol of the bundled bars, which their file does not state."""
    return replace(reading, side="ask", symbol="EURUSD")


def log_source(source: Source) -> None:
    """Log what was recognised and what was assumed, as `data-check` prints it."""
    print_source(source_document(source, None), sys.stderr)


def first_decision_bar(bars: Bars, start: str | None, source: Source, history: int) -> int:
    """Index of the first bar to decide at: after the warm-up and not before `start`; DataError where none is."""
    first, span = history - 1, f"{source.path} has {source.first} .. {source.last} UTC"
    if first + 1 >= len(bars.time):
        raise DataError(f"{source.path}: no bar to decide at; it has {len(bars.time)} and the warm-up takes {history}")
    if start is None:
        return first
    stamp = parse_start(start)
    if stamp >= bars.time[-1]:
        raise DataError(f"--from {start}: no bar to decide at, it is not before the last one; {span}")
    if stamp < bars.time[0]:
        log(f"--from {start} is before the first bar: beginning after the warm-up; {span}")
    return max(first, int(np.searchsorted(bars.time, stamp)))


def parse_start(text: str) -> int:
    """Nanoseconds since the epoch of the text of `--from`; UTC where it names no zone."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise DataError(f"--from {text}: write it as 2017-10-02T08:00:00Z") from None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return (when - EPOCH_UTC) // MICROSECOND * 1000
