"""`train`: from a CSV to a run directory with checkpoints and a model, and a report on unseen bars.

The run directory is made after every check.  A checkpoint holds everything that determines the weights, and a run
resumes only if none of that has changed: settings and reading options are the run's own, and one that is given beside
`--resume` must be equal to them.
"""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from host.analysis.baselines import agent_record, without_search
from host.analysis.record import TradingRecord, daily_returns
from host.analysis.report import ReportContext, report_backtest, write_report
from host.analysis.statistics import sharpe
from host.analysis.summary import print_summary
from host.artifact.manifest import LoadedModel, load_model, save_model
from host.artifact.networks import BacktestStats, OnnxNetworks
from host.atomic import WriteError, add_path_to_errors, check_writable, locked
from host.commands.backtest import SAMPLE_CSV, describe_source, log_source, sample_reading
from host.config import Config, check_minutes, flatten, load_config
from host.console import ProgressCallback, compiling, log, program_command, progress
from host.data.csv_reader import read_bars
from host.data.formats import DataError, ReadOptions, Source
from host.data.parsing import format_utc
from host.evaluation.backtest import BacktestResult, new_backtest_policy, run_backtest
from host.evaluation.rehearsal import backtest_record
from host.live.live_agent import new_policy_state
from host.training.dataset import Dataset, new_dataset
from host.training.market_replay import MemoryRoom
from host.training.memory_plan import parse_memory, plan_memory
from host.training.run_dir import (
    RUN_NUMBER,
    RUNS_FOLDER,
    RunDir,
    RunError,
    check_no_run,
    create_next_run,
    has_run,
    latest_run,
    link_latest,
    open_run_dir,
    peek_state,
)
from host.training.trainer import Trainer, run_first_iteration, train_for
from host.walkforward.trials import BEGIN, END, append_trial, ledger_of, span_of, trial_id, trials_of
from kernels.jit import program_digest
from kernels.market.bars import SECOND_NS
from kernels.market.features import feature_digest

DEFAULT_MINUTES = 2.5
READING_FIELDS = ("side", "timezone", "label")  # of ReadOptions: a model stores them for its feed
FLAG_NAMES = {"spread_pips": "--spread"}  # of ReadOptions; the other flags have the names of their fields
SAME_SETTINGS_HINT = "a run resumes as it began: leave that out, or start a new run without --resume"
RESTORE_HINT = "put it back, or start a new run without --resume"
VERSION_HINT = "check out the version that began the run, or start a new one without --resume"
ORIGIN_HINTS = {  # by kind of what determines the weights: where it stands, and a way out
    "config": ("config.toml", RESTORE_HINT),
    "reading": ("data.toml", RESTORE_HINT),
    "program": ("this program is", VERSION_HINT),
    "features": ("this program has", VERSION_HINT),
}


class TrainingError(RuntimeError):
    """Training stopped: a number is not finite, or the memory does not suffice."""

    exit_code = 1


class TrainingSpec(NamedTuple):
    """Bars, reading options and configuration: everything that determines the weights except the program."""

    csv: Path | None  # None: the bundled bars
    reading: ReadOptions
    config: Config


def run_to_resume(out: Path | None) -> tuple[Path | None, Config | None]:
    """Path and configuration of the run to resume, by default the latest; None for what does not exist."""
    path = out or latest_run()
    return path, load_config(path / "config.toml") if path is not None and has_run(path) else None


def train_csv(
    csv: Path | None,
    reading: ReadOptions,
    config: Config,
    out: Path | None,
    minutes: float | None,
    episodes: int | None,
    resume: bool,
    threads: int,
    memory: str | None = None,
) -> dict[str, Any]:
    """Train into the run directory `out`, by default a new one; the out-of-sample report with the model's path."""
    check_minutes(minutes)
    spec = TrainingSpec(csv, reading, config)
    if resume and not (out and has_run(out)):
        log(f"no run at {out or RUNS_FOLDER} to resume: starting from the beginning")
        resume = False
    spec = stored_training_spec(spec, out) if resume and out else new_training_spec(spec, out)
    run: RunDir | None = None
    with ExitStack() as stack, resume_hint_on_stop(lambda: resume_hint(run, minutes, episodes)):
        with compiling("getting ready") as report:
            data, source = prepare_data(spec, out if resume else None, threads, report)
            trainer, origin = (
                Trainer([data], spec.config, threads, plan_room(memory, spec.config, [data], threads)),
                training_origin(spec, data, source),
            )
            untrained = trainer.export_networks()
            if resume and out:
                check_origin(out, origin)
            run = stack.enter_context(open_run_dir(out or create_next_run(), resume))
            span = span_of(source.instrument.symbol, source.sha256, data.bars.time, data.test_first, -1)
            append_trial(ledger_of(run.path), BEGIN, trial_id(origin), span, run=str(run.path.resolve()))
            restore_checkpoint(trainer, run) if resume else write_run_settings(run, spec, source)
            trainer.load_checkpoint = run.load_checkpoint
            report(0.0, "first iteration")
            on_iteration = partial(write_checkpoint, trainer=trainer, run=run, origin=origin)
            run_first_iteration(trainer, episodes, on_iteration)
            warm_up(trainer)
        with progress("training") as report:
            train_for(trainer, minutes or (None if episodes else DEFAULT_MINUTES), episodes, on_iteration, report)
        networks = trainer.export_networks()
        result = trade_unseen_bars(trainer, networks)
        stats = backtest_record(result.log.target, data.bars, data.test_first, data.market_spec.market)[0]
        loaded, model = export_model(run, trainer, networks, source, stats), run.path / "model.swt"
        trials = trials_of(ledger_of(run.path), span)
        context = ReportContext(
            describe_source(source, model, loaded.sha256),
            spec.config.train.seed,
            trials.number,
            trials.sharpe_variance(),
            rivals=rival_records(data, loaded, untrained),
            metrics=run.read_metrics(),
        )
        direction_z = trainer.calibration.direction_z if trainer.calibration else None
        policy = new_policy_state(loaded.networks, loaded.market_spec, loaded.search)
        document, record = report_backtest(result, policy, data.bars, data.test_first, context, direction_z)
        write_report(run.path, document, [record])
        ratio = sharpe(daily_returns(record)[1])
        append_trial(ledger_of(run.path), END, trial_id(origin), span, sharpe=ratio)
    print_summary(document, sys.stderr)
    print_next_steps(spec, model, data)
    return {**document, "model": str(model), "model_sha256": loaded.sha256}


def plan_room(memory: str | None, config: Config, datasets: list[Dataset], threads: int) -> MemoryRoom:
    """The room of a training within so much memory, whose plan is logged; the default one without a limit."""
    if memory is None:
        return MemoryRoom()
    plan = plan_memory(config, [len(data.bars.time) for data in datasets], threads, parse_memory(memory))
    log("\n".join([f"memory within {memory}:", *plan.lines()]))
    return plan.room


def log_market(data: Dataset) -> None:
    """Log the costs of trading, in pips and beside the mean bar, so that a wrong scale is seen."""
    market, profile = data.market_spec.market, data.market_spec.profile
    pip = market.pip_px
    log(
        f"  bars of {market.range_px / pip:.1f} pips in the mean; spread {profile.spread_px / pip:.2f} pips = "
        f"{profile.spread_px / market.range_px:.1%} of a bar, slippage {market.slippage_px / pip:.2f} pips, "
        f"swap {market.swap_long_px / pip:.2f} long and {market.swap_short_px / pip:.2f} short a night"
    )
    if profile.symbol == "-":
        log("  no symbol: name it with --symbol; without, act refuses another instrument by its price scale only")


@contextmanager
def resume_hint_on_stop(hint: Callable[[], str]) -> Iterator[None]:
    """Where training is stopped or fails, add what is kept and how to resume to the message."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; {hint()}") from None
    except SystemExit:
        log(f"stopped; {hint()}")
        raise
    except WriteError as error:
        raise WriteError(f"{error}; {hint()}") from error
    except (FloatingPointError, MemoryError) as error:
        raise TrainingError(f"{error}; {hint()}") from error


def resume_hint(run: RunDir | None, minutes: float | None, episodes: int | None) -> str:
    """What is kept of a run, and the command that resumes it."""
    if run is None or not has_run(run.path):
        return "no run was begun: give the same command again"
    budget = {"--minutes": minutes, "--episodes": episodes}
    flags = [word for name, value in budget.items() if value is not None for word in (name, value)]
    again = program_command("train", "--resume", "--out", run.path, *flags)
    if run.saved_step is None:
        return f"no iteration was finished, {run.path} keeps the settings; begin again: {again}"
    return f"{run.path} keeps all up to iteration {run.saved_step}; go on: {again}"


def new_training_spec(spec: TrainingSpec, out: Path | None) -> TrainingSpec:
    """`spec` completed for a new run; OutputPathError or RunError where none can be made at `out`."""
    check_writable(out or RUNS_FOLDER, folder=True)
    if out:
        check_no_run(out)
    if spec.csv is None:
        return spec._replace(reading=sample_reading(spec.reading))
    return spec


def stored_training_spec(asked: TrainingSpec, run: Path) -> TrainingSpec:
    """The spec that `run` was begun with; RunError where `asked` or the newest checkpoint differs from it."""
    path, config = run / "data.toml", load_config(run / "config.toml")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        reading, csv = ReadOptions(**table["reading"]), table["csv"]
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise RunError(f"{path}: {error}: start a new run without --resume") from None
    stored = TrainingSpec(asked.csv or (Path(csv) if csv else None), reading, config)
    settings = dict(flatten(asked.config.as_dict()))
    for name, value in flatten(config.as_dict()):
        if settings[name] != value:
            raise RunError(f"{run}: {name}: the run has {value}, asked for is {settings[name]}; {SAME_SETTINGS_HINT}")
    defaults, options = ReadOptions().explicit(), asked.reading.explicit()
    for name, value in reading.explicit().items():
        if options[name] not in (defaults[name], value):
            has = f"{flag_name(name)}: the run has {'nothing' if value is None else value}"
            raise RunError(f"{run}: {has}, asked for is {options[name]}; {SAME_SETTINGS_HINT}")
    check_origin(run, training_origin(stored))
    check_writable(run, folder=True)
    with add_path_to_errors(run), locked(run / "lock"):
        return stored


def training_origin(spec: TrainingSpec, data: Dataset | None = None, source: Source | None = None) -> dict[str, Any]:
    """Everything that determines the weights, as a checkpoint holds it; without the data before they are read."""
    of_data = {} if data is None else {"features": feature_digest(data.market_spec.features)}
    of_data |= {} if source is None else {"data": source.sha256}
    origin = {"config": spec.config.as_dict(), "reading": spec.reading.explicit(), "program": program_digest()}
    plain: dict[str, Any] = json.loads(json.dumps(origin | of_data))
    return plain


def check_origin(run: Path, now: dict[str, Any]) -> None:
    """Raise RunError or DataError unless the newest checkpoint of `run`, if any, has the origin `now`."""
    state = peek_state(run)
    if state is None:
        return
    then = dict(flatten(state["origin"]))
    for name, value in flatten(now):
        kind, _, setting = name.partition(".")
        if then.get(name) == value:
            continue
        if kind == "data":
            raise DataError(f"the bars are not those that {run} was begun with: the bytes of the file differ")
        where, hint = ORIGIN_HINTS[kind]
        key = setting if kind == "config" else name
        raise RunError(f"{run}: {key}: the checkpoint has {then.get(name)}, {where} {value}; {hint}")


def prepare_data(
    spec: TrainingSpec, run: Path | None, threads: int, report: ProgressCallback
) -> tuple[Dataset, Source]:
    """Read the bars, which must be those of a resumed `run`; split them and fit everything that is fitted."""
    path = spec.csv or SAMPLE_CSV
    report(0.0, f"reading {path}")
    bars, source = read_bars(path, spec.reading)
    log_source(source)
    if run is not None:
        check_origin(run, {"data": source.sha256})
    report(0.0, "features")
    extra = np.zeros((len(bars.time), 0), np.float32)
    data = new_dataset(bars, extra, spec.config, source.instrument, source.interval_s * SECOND_NS, threads)
    log_market(data)
    log_split(data)
    return data, source


def log_split(data: Dataset) -> None:
    """Log the number of bars on which an episode can start, and why the others cannot."""
    rejects = ", ".join(f"{count} {reason}" for reason, count in data.rejects.items() if count) or "none"
    log(
        f"training part: {data.train_stop} bars, {len(data.starts)} episode starts (rejected: {rejects}); "
        f"validation part: {data.validation_stop - data.train_stop} bars; "
        f"test part: from bar {data.test_first}, {len(data.bars.time) - data.test_first} bars"
    )


def write_run_settings(run: RunDir, spec: TrainingSpec, source: Source) -> None:
    """Write data.toml and config.toml; with config.toml the run has begun."""
    reading = {name: value for name, value in spec.reading.explicit().items() if value is not None}
    csv = str(spec.csv.resolve()).encode(errors="replace").decode() if spec.csv else ""
    run.write_toml("data", {"csv": csv, "sha256": source.sha256, "reading": reading})
    run.write_toml("config", spec.config.as_dict())
    log(f"run: {run.path}")


def write_checkpoint(row: dict[str, Any], trainer: Trainer, run: RunDir, origin: dict[str, Any]) -> None:
    """Append the metrics `row` of an iteration, and save a checkpoint."""
    run.append_metrics(row)
    arrays, state = trainer.snapshot()
    run.save_checkpoint(trainer.iteration, arrays, {**state, "origin": origin})


def restore_checkpoint(trainer: Trainer, run: RunDir) -> None:
    """Restore the newest whole checkpoint."""
    checkpoint = run.load_checkpoint()
    if checkpoint is None:
        log(f"{run.path} has no checkpoint yet: starting from the beginning")
    else:
        trainer.restore(checkpoint.arrays, checkpoint.state)
        log(f"resuming after iteration {trainer.iteration}, {trainer.episodes} episodes: {run.path}")


def model_origin(source: Source) -> dict[str, Any]:
    """What a model says of the bars that it was trained on, and how such bars are read."""
    return {
        "span": [source.first, source.last],
        "sha256": source.sha256,
        "reading": {**{name: getattr(source, name) for name in READING_FIELDS}, "pip": source.instrument.pip},
        "spread_pips": source.spread_pips,
    }


def export_model(
    run: RunDir, trainer: Trainer, networks: OnnxNetworks, source: Source, record: BacktestStats
) -> LoadedModel:
    """Write model.swt: the networks and everything that reading and acting need; the model, read back."""
    path, about = run.path / "model.swt", (trainer.config.as_dict(), model_origin(source), record)
    with add_path_to_errors(path):
        save_model(path, networks, trainer.markets[0].data.market_spec, trainer.acting_search_config(), *about)
    loaded = load_model(path)
    if run.path.parent == RUNS_FOLDER and RUN_NUMBER.fullmatch(run.path.name):
        try:
            link_latest(run.path)
        except OSError as error:
            log(f"{RUNS_FOLDER / 'latest'} does not lead to {run.path}: {error}")
    return loaded


def warm_up(trainer: Trainer) -> None:
    """Compile the kernels of acting: make one decision as the trained agent does."""
    data = trainer.markets[0].data
    policy = new_backtest_policy(trainer.export_networks(), data.market_spec, trainer.acting_search_config())
    run_backtest(policy, data.bars, data.extra_features, data.test_first, data.test_first + 2)


def trade_unseen_bars(trainer: Trainer, networks: OnnxNetworks) -> BacktestResult:
    """The decisions of the trained agent on the test part."""
    data = trainer.markets[0].data
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


def flag_name(name: str) -> str:
    """The flag of the field `name` of ReadOptions."""
    return FLAG_NAMES.get(name, f"--{name.replace('_', '-')}")


def reading_flags(reading: ReadOptions) -> list[str]:
    """The command-line words that give `reading`, except the pip, which a model stores."""
    defaults, words = ReadOptions().explicit(), list[str]()
    for name, value in reading.explicit().items():
        if name not in ("pip", "interval_s") and value != defaults[name]:
            words += [flag_name(name), *([] if value is True else [str(value)])]
    return words


def print_next_steps(spec: TrainingSpec, model: Path, data: Dataset) -> None:
    """Log the commands to try next."""
    start, csv = format_utc(data.bars.time[data.test_first]), spec.csv or SAMPLE_CSV
    flags = [csv, "--model", model, *reading_flags(spec.reading)]
    log(
        f"out of sample, after costs, from {start}; model: {model}\n"
        f"  {program_command('backtest', *flags, '--from', start)}\n"
        f"  {program_command('act', *flags)}"
    )
