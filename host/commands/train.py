"""`train` on a CSV: the run directory, checkpoints, the model, and what to say at the end.

A run is made once nothing can refuse it any more.  A checkpoint holds all that determined it; to go on, nothing of that
may have changed, so settings and reading options are the run's own, and one given beside `--resume` must be the same.
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

from host.artifact.manifest import LoadedModel, load_model, save_model
from host.artifact.networks import BacktestStats
from host.atomic import WriteError, add_path_to_errors, check_writable, locked
from host.commands.backtest import SAMPLE_CSV, log_source, sample_reading
from host.config import Config, check_minutes, flatten, load_config
from host.console import ProgressCallback, compiling, log, program_command, progress
from host.data.csv_reader import read_bars
from host.data.formats import DataError, ReadOptions, Source
from host.data.parsing import format_utc
from host.evaluation.backtest import backtest_report, print_report, run_backtest
from host.evaluation.rehearsal import backtest_record
from host.live.live_agent import new_policy_state
from host.training.dataset import Dataset, new_dataset
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
from kernels.jit import program_digest
from kernels.market.bars import SECOND_NS
from kernels.market.features import feature_digest

DEFAULT_MINUTES = 2.5
READING_FIELDS = ("side", "timezone", "label")  # reading options that a model carries to its feed
FLAG_NAMES = {"spread_pips": "--spread"}  # of reading options; else they are called as the field is
SAME_SETTINGS_HINT = "a run goes on as it began: leave that out, or start a new run without --resume"
RESTORE_HINT = "put it back, or start a new run without --resume"
VERSION_HINT = "check out the version that began the run, or start a new one without --resume"
ORIGIN_HINTS = {  # of what determines a run: where it was found, and what to do
    "config": ("config.toml", RESTORE_HINT),
    "reading": ("data.toml", RESTORE_HINT),
    "program": ("this program is", VERSION_HINT),
    "features": ("this program has", VERSION_HINT),
}


class TrainingError(RuntimeError):
    """Training cannot go on: numbers grew beyond all bounds, or the memory does not suffice."""

    exit_code = 1


class TrainingSpec(NamedTuple):
    """What is trained on, and how: everything that determines the weights but the bytes of the program."""

    csv: Path | None  # None: the bundled bars
    reading: ReadOptions
    config: Config


def run_to_resume(out: Path | None) -> tuple[Path | None, Config | None]:
    """The run that `--resume` means, the latest without `--out`, and its configuration; None where there is none."""
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
) -> dict[str, Any]:
    """Train into the run directory `out`, a new one without; the out-of-sample report, with the path of the model."""
    check_minutes(minutes)
    job = TrainingSpec(csv, reading, config)
    if resume and not (out and has_run(out)):
        log(f"no run at {out or RUNS_FOLDER} to go on with: starting from the beginning")
        resume = False
    job = stored_training_spec(job, out) if resume and out else new_training_spec(job, out)
    run: RunDir | None = None
    with ExitStack() as stack, resume_hint_on_stop(lambda: resume_hint(run, minutes, episodes)):
        with compiling("getting ready") as bar:
            data, source = prepare_data(job, out if resume else None, threads, bar)
            trainer, origin = Trainer(data, job.config, threads), training_origin(job, data, source)
            if resume and out:
                check_origin(out, origin)
            run = stack.enter_context(open_run_dir(out or create_next_run(), resume))
            restore_checkpoint(trainer, run) if resume else write_run_settings(run, job, source)
            bar(0.0, "first cycle")
            on_iteration = partial(write_checkpoint, trainer=trainer, run=run, origin=origin)
            run_first_iteration(trainer, episodes, on_iteration)
            warm_up(trainer)
        with progress("training") as bar:
            train_for(trainer, minutes or (None if episodes else DEFAULT_MINUTES), episodes, on_iteration, bar)
        document, record = evaluate_out_of_sample(trainer, job.config)
        loaded = export_model(run, trainer, source, record)
    print_report(document, sys.stderr)
    model = run.path / "model.swt"
    print_next_steps(job, model, data)
    return {**document, "model": str(model), "model_sha256": loaded.sha256}


def log_market(data: Dataset) -> None:
    """Say what trading costs, in pips and bars, so that a person sees what is absurd."""
    market, profile = data.market_spec.market, data.market_spec.profile
    pip = market.pip_px
    log(
        f"  bars of {market.range_px / pip:.1f} pips in the mean; spread {profile.spread_px / pip:.2f} pips = "
        f"{profile.spread_px / market.range_px:.1%} of a bar, slippage {market.slippage_px / pip:.2f} pips, "
        f"swap {market.swap_long_px / pip:.2f} long and {market.swap_short_px / pip:.2f} short a night"
    )
    if profile.symbol == "-":
        log("  no symbol: name it with --symbol; without, act refuses another instrument by its scale only")


@contextmanager
def resume_hint_on_stop(hint: Callable[[], str]) -> Iterator[None]:
    """However training ends before its time, say what is kept and how to go on."""
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
    """What there is of a run, and the command that goes on with it."""
    if run is None or not has_run(run.path):
        return "no run was begun: give the same command again"
    budget = {"--minutes": minutes, "--sessions": episodes}
    given = [word for name, value in budget.items() if value is not None for word in (name, value)]
    again = program_command("train", "--resume", "--out", run.path, *given)
    if run.saved_step is None:
        return f"no cycle was finished, {run.path} keeps the settings only; begin again: {again}"
    return f"{run.path} keeps all up to cycle {run.saved_step}; go on: {again}"


def new_training_spec(spec: TrainingSpec, out: Path | None) -> TrainingSpec:
    """What a new run is made of; raises where none can be made."""
    check_writable(out or RUNS_FOLDER, folder=True)
    if out:
        check_no_run(out)
    if spec.csv is None:  # what the bundled file does not say of itself
        return spec._replace(reading=sample_reading(spec.reading))
    return spec


def stored_training_spec(given: TrainingSpec, run: Path) -> TrainingSpec:
    """What a run was begun with; raises where something else is asked for, or where its checkpoint says otherwise."""
    path, config = run / "data.toml", load_config(run / "config.toml")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        reading, csv = ReadOptions(**table["reading"]), table["csv"]
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise RunError(f"{path}: {error}: start a new run without --resume") from None
    stored = TrainingSpec(given.csv or (Path(csv) if csv else None), reading, config)
    asked = dict(flatten(given.config.as_dict()))
    for name, value in flatten(config.as_dict()):
        if asked[name] != value:
            raise RunError(f"{run}: {name}: the run has {value}, asked for is {asked[name]}; {SAME_SETTINGS_HINT}")
    untyped, asked_reading = ReadOptions().explicit(), given.reading.explicit()
    for name, value in reading.explicit().items():
        wanted = asked_reading[name]
        if wanted not in (untyped[name], value):
            flag = flag_name(name)
            had = "nothing" if value is None else value
            raise RunError(f"{run}: {flag}: the run has {had}, asked for is {wanted}; {SAME_SETTINGS_HINT}")
    check_origin(run, training_origin(stored))
    check_writable(run, folder=True)
    with add_path_to_errors(run), locked(run / "lock"):
        return stored


def training_origin(spec: TrainingSpec, data: Dataset | None = None, source: Source | None = None) -> dict[str, Any]:
    """All that determines the weights, as a checkpoint holds it; of data and features once they are read."""
    known = {} if data is None else {"features": feature_digest(data.market_spec.features)}
    known |= {} if source is None else {"data": source.sha256}
    origin = {"config": spec.config.as_dict(), "reading": spec.reading.explicit(), "program": program_digest()}
    plain: dict[str, Any] = json.loads(json.dumps(origin | known))
    return plain


def check_origin(run: Path, now: dict[str, Any]) -> None:
    """Raise unless the newest checkpoint of a run, if any, comes from what is `now`."""
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
        where, way = ORIGIN_HINTS[kind]
        what = setting if kind == "config" else name
        raise RunError(f"{run}: {what}: the checkpoint has {then.get(name)}, {where} {value}; {way}")


def prepare_data(spec: TrainingSpec, run: Path | None, threads: int, bar: ProgressCallback) -> tuple[Dataset, Source]:
    """The bars of a job, those of the run that it goes on with, split, with everything fitted that is fitted."""
    path = spec.csv or SAMPLE_CSV
    bar(0.0, f"reading {path}")
    bars, source = read_bars(path, spec.reading)
    log_source(source)
    if run is not None:
        check_origin(run, {"data": source.sha256})
    bar(0.0, "features")
    extra = np.zeros((len(bars.time), 0), np.float32)
    data = new_dataset(bars, extra, spec.config, source.instrument, source.interval_s * SECOND_NS, threads)
    log_market(data)
    log_split(data)
    return data, source


def log_split(data: Dataset) -> None:
    """Say how many sessions there are and why others are not."""
    rejects = ", ".join(f"{count} {reason}" for reason, count in data.rejects.items() if count) or "none"
    log(
        f"training part: {data.train_stop} bars, {len(data.starts)} session starts (rejected: {rejects}); "
        f"test part: from bar {data.test_first}, {len(data.bars.time) - data.test_first} bars"
    )


def write_run_settings(run: RunDir, spec: TrainingSpec, source: Source) -> None:
    """Write down what the run is made of; with config.toml it has begun."""
    reading = {name: value for name, value in spec.reading.explicit().items() if value is not None}
    csv = str(spec.csv.resolve()).encode(errors="replace").decode() if spec.csv else ""
    run.write_toml("data", {"csv": csv, "sha256": source.sha256, "reading": reading})
    run.write_toml("config", spec.config.as_dict())
    log(f"run: {run.path}")


def write_checkpoint(row: dict[str, Any], trainer: Trainer, run: RunDir, origin: dict[str, Any]) -> None:
    """Log a cycle and make it durable."""
    run.append_metrics(row)
    arrays, state = trainer.snapshot()
    run.save_checkpoint(trainer.iteration, arrays, {**state, "origin": origin})


def restore_checkpoint(trainer: Trainer, run: RunDir) -> None:
    """Go on from the newest whole checkpoint."""
    checkpoint = run.load_checkpoint()
    if checkpoint is None:
        log(f"{run.path} has no checkpoint yet: starting from the beginning")
    else:
        trainer.restore(checkpoint.arrays, checkpoint.state)
        log(f"resuming after cycle {trainer.iteration}, {trainer.episodes} sessions: {run.path}")


def export_model(run: RunDir, trainer: Trainer, source: Source, record: BacktestStats) -> LoadedModel:
    """Export the target networks with everything that reading and acting need; the model, read back."""
    data = {
        "span": [source.first, source.last],
        "sha256": source.sha256,
        "reading": {**{name: getattr(source, name) for name in READING_FIELDS}, "pip": source.instrument.pip},
        "spread_pips": source.spread_pips,
    }
    path, configuration = run.path / "model.swt", trainer.config.as_dict()
    with add_path_to_errors(path):
        parts = (
            trainer.export_networks(),
            trainer.data.market_spec,
            trainer.acting_search_config(),
            configuration,
            data,
        )
        save_model(path, *parts, record)
    loaded = load_model(path)
    if run.path.parent == RUNS_FOLDER and RUN_NUMBER.fullmatch(run.path.name):
        try:
            link_latest(run.path)
        except OSError as error:
            log(f"{RUNS_FOLDER / 'latest'} does not lead to {run.path}: {error}")
    return loaded


def warm_up(trainer: Trainer) -> None:
    """One decision as the finished agent makes it, so that its kernels are compiled by now."""
    data = trainer.data
    trader = new_policy_state(trainer.export_networks(), data.market_spec, trainer.acting_search_config())
    run_backtest(trader, data.bars, data.extra_features, data.test_first, data.test_first + 2)


def evaluate_out_of_sample(trainer: Trainer, config: Config) -> tuple[dict[str, Any], BacktestStats]:
    """The report on the test part, and what the guards begin with."""
    data = trainer.data
    first, stop = data.test_first, len(data.bars.time)
    trader = new_policy_state(trainer.export_networks(), data.market_spec, trainer.acting_search_config())
    with progress("out of sample") as bar:
        result = run_backtest(trader, data.bars, data.extra_features, first, stop, bar)
    document = backtest_report(result, data.bars, first, data.market_spec, config.train.seed)
    return document, backtest_record(result.log.target, data.bars, first, data.market_spec.market)[0]


def flag_name(name: str) -> str:
    """The flag of a reading option."""
    return FLAG_NAMES.get(name, f"--{name.replace('_', '-')}")


def reading_flags(reading: ReadOptions) -> list[str]:
    """The flags that say what `reading` says, but for the pip, which a model knows."""
    untyped, words = ReadOptions().explicit(), list[str]()
    for name, value in reading.explicit().items():
        if name not in ("pip", "interval_s") and value != untyped[name]:
            words += [flag_name(name), *([] if value is True else [str(value)])]
    return words


def print_next_steps(spec: TrainingSpec, model: Path, data: Dataset) -> None:
    """The commands to try next."""
    start, csv = format_utc(data.bars.time[data.test_first]), spec.csv or SAMPLE_CSV
    flags = [csv, "--model", model, *reading_flags(spec.reading)]
    log(
        f"out of sample, after costs, from {start}; model: {model}\n"
        f"  {program_command('backtest', *flags, '--from', start)}\n"
        f"  {program_command('act', *flags)}"
    )
