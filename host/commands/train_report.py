"""The end of a training: its model, and what that earns on the bars that nobody has looked at before."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from host.analysis.baselines import agent_record, without_search
from host.analysis.record import DailyReturns, TradingRecord, daily_returns, pool_returns
from host.analysis.report import ReportContext, report_backtest, write_report
from host.analysis.significance import judge_pool
from host.analysis.statistics import sharpe
from host.analysis.summary import print_summary, print_verdict
from host.artifact.manifest import LoadedModel, ModelMarket, load_models, save_model
from host.artifact.networks import BacktestStats, OnnxNetworks
from host.atomic import add_path_to_errors, write_atomic
from host.commands.backtest import describe_source
from host.commands.training_spec import InstrumentData, TrainingSpec, reading_flags
from host.console import log, program_command, progress
from host.data.formats import Source
from host.data.parsing import format_utc
from host.evaluation.backtest import BacktestResult, new_backtest_policy, run_backtest
from host.evaluation.rehearsal import backtest_record
from host.live.live_agent import new_policy_state
from host.machine import trim_heap
from host.training.dataset import Dataset
from host.training.run_dir import RUN_NUMBER, RUNS_FOLDER, RunDir, link_latest
from host.training.trainer import Trainer
from host.walkforward.trials import BEGIN, END, Span, Trials, append_trial, ledger_of, span_of, trial_id, trials_of

MODEL, BEST_MODEL = "model.swt", "best.swt"  # of the last iteration; of the best on the validation parts
MODEL_SO_FAR = "model-so-far.swt"  # of a run that was stopped: its last whole iteration, without a backtest
TOGETHER = "together.json"  # of a run with several instruments, which have a folder each
READING_FIELDS = ("side", "timezone", "label")  # of ReadOptions: a model stores them for its feed


class RunTrials(NamedTuple):
    """The test parts of a run in the ledger of trials."""

    ledger: Path
    trial: str
    spans: list[Span]  # of the instruments


def begin_trials(run: RunDir, origin: dict[str, Any], instruments: Sequence[InstrumentData]) -> RunTrials:
    """Note in the ledger that the run is going to see its test parts."""
    ledger, trial, spans = ledger_of(run.path), trial_id(origin), list[Span]()
    for data, source in instruments:
        spans.append(span_of(source.instrument.symbol, source.sha256, data.bars.time, data.test_first, -1))
        append_trial(ledger, BEGIN, trial, spans[-1], run=str(run.path.resolve()))
    return RunTrials(ledger, trial, spans)


def model_origin(source: Source) -> dict[str, Any]:
    """What a model says of the bars that it was trained on, and how such bars are read."""
    return {
        "span": [source.first, source.last],
        "sha256": source.sha256,
        "reading": {**{name: getattr(source, name) for name in READING_FIELDS}, "pip": source.instrument.pip},
        "spread_pips": source.spread_pips,
    }


def write_model(
    path: Path,
    trainer: Trainer,
    networks: OnnxNetworks,
    sources: Sequence[Source],
    stats: Sequence[BacktestStats] = (),
) -> None:
    """Write the networks, and everything that reading and acting need for each instrument."""
    markets = list[ModelMarket]()
    for i, (market, source) in enumerate(zip(trainer.markets, sources, strict=True)):
        data = market.data
        about = {**model_origin(source), "test_first": format_utc(data.bars.time[data.test_first])}
        markets.append(ModelMarket(data.market_spec, about, stats[i] if stats else BacktestStats()))
    with add_path_to_errors(path):
        save_model(path, networks, markets, trainer.acting_search_config(), trainer.config.as_dict())


def export_best(run: RunDir, trainer: Trainer, sources: Sequence[Source]) -> None:
    """Write the model of the best checkpoint, if there is one; its test part is not looked at.

    The trainer is as that checkpoint was afterwards.
    """
    best = run.load_best()
    if best is not None:
        trainer.restore(best.arrays, best.state)
        write_model(run.path / BEST_MODEL, trainer, trainer.export_networks(), sources)
        log(f"best on the validation part, after iteration {trainer.iteration}: {run.path / BEST_MODEL}")


def finish_model(run: RunDir) -> None:
    """Remove the model so far and an older best one, and let `latest` lead to a run with a number."""
    for old in (run.path / MODEL_SO_FAR, run.path / BEST_MODEL):
        with add_path_to_errors(old):
            old.unlink(missing_ok=True)
    if run.path.parent == RUNS_FOLDER and RUN_NUMBER.fullmatch(run.path.name):
        try:
            link_latest(run.path)
        except OSError as error:
            log(f"{RUNS_FOLDER / 'latest'} does not lead to {run.path}: {error}")


def finish_training(
    run: RunDir, trainer: Trainer, untrained: OnnxNetworks, sources: Sequence[Source], trials: RunTrials
) -> dict[str, Any]:
    """Trade the test parts, write model.swt and the reports; the document of `train --json`."""
    path, networks = run.path / MODEL, trainer.export_networks()
    results = [trade_unseen_bars(market.data, trainer, networks) for market in trainer.markets]
    stats = [
        backtest_record(result.log.target, data.bars, data.test_first, data.market_spec.market)[0]
        for result, data in zip(results, (market.data for market in trainer.markets), strict=True)
    ]
    write_model(path, trainer, networks, sources, stats)
    models = load_models(path)
    finish_model(run)
    documents, returns, counts = dict[str, dict[str, Any]](), list[DailyReturns](), list[Trials]()
    for i, (market, source, span) in enumerate(zip(trainer.markets, sources, trials.spans, strict=True)):
        counts.append(trials_of(trials.ledger, span))
        context = ReportContext(
            describe_source(source, path, models[i].sha256),
            trainer.config.train.seed,
            counts[-1].number,
            counts[-1].sharpe_variance(),
            rivals=rival_records(market.data, models[i], untrained),
            metrics=run.read_metrics(),
        )
        trim_heap()
        symbol = source.instrument.symbol
        folder = run.path / symbol if len(sources) > 1 else run.path
        documents[symbol], record = report_test(folder, results[i], market.data, models[i], context, trainer)
        returns.append(daily_returns(record))
        append_trial(trials.ledger, END, trials.trial, span, sharpe=sharpe(returns[-1][1]))
    about = {"model": str(path), "model_sha256": models[0].sha256}
    if len(sources) == 1:
        return {**next(iter(documents.values())), **about}
    most = max(counts, key=lambda found: found.number)
    together = judge_pool(*pool_returns(returns), most.number, most.sharpe_variance())
    write_atomic(run.path / TOGETHER, json.dumps(together, indent=1) + "\n")
    return {"instruments": documents, "together": together, **about}


def report_test(
    folder: Path, result: BacktestResult, data: Dataset, model: LoadedModel, context: ReportContext, trainer: Trainer
) -> tuple[dict[str, Any], TradingRecord]:
    """Write the report of the test part of an instrument into `folder`; its document and record."""
    direction_z = trainer.calibration.direction_z if trainer.calibration else None
    policy = new_policy_state(model.networks, model.market_spec, model.search)
    document, record = report_backtest(result, policy, data.bars, data.test_first, context, direction_z)
    write_report(folder, document, [record])
    return document, record


def trade_unseen_bars(data: Dataset, trainer: Trainer, networks: OnnxNetworks) -> BacktestResult:
    """The decisions of the trained agent on a test part."""
    policy = new_backtest_policy(networks, data.market_spec, trainer.acting_search_config())
    stretch = data.bars, data.extra_features, data.test_first, len(data.bars.time)
    with progress("out of sample") as report:
        return run_backtest(policy, *stretch, report)


def rival_records(data: Dataset, model: LoadedModel, untrained: OnnxNetworks) -> dict[str, list[TradingRecord]]:
    """The policy head without search, and search with untrained networks, on the test part."""
    spec, stretch = model.market_spec, (data.bars, data.extra_features, data.test_first, len(data.bars.time))
    return {
        "policy head": [agent_record(model.networks, spec, without_search(model.search), *stretch)],
        "untrained": [agent_record(untrained, spec, model.search, *stretch)],
    }


def print_results(spec: TrainingSpec, document: dict[str, Any], run: Path, instruments: list[InstrumentData]) -> None:
    """Print the summary of each instrument and of all together, and log the commands to try next."""
    if len(instruments) == 1:
        print_summary(document, sys.stderr)
    else:
        for symbol, own in document["instruments"].items():
            print(f"{symbol}: {run / symbol / 'report.html'}", file=sys.stderr)
            print_summary(own, sys.stderr)
        print(f"all {len(instruments)} instruments in equal shares", file=sys.stderr)
        print_verdict(document["together"], sys.stderr)
    log(f"model: {run / MODEL}; out of sample, after costs:")
    for data, source in instruments:
        if not Path(source.path).is_file():  # its bars are in several files
            continue
        start, flags = format_utc(data.bars.time[data.test_first]), reading_flags(spec.reading)
        words = source.path, "--model", run / MODEL, *flags
        log(f"  {program_command('backtest', *words, '--from', start)}\n  {program_command('act', *words)}")
