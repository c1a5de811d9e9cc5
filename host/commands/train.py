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

from host.artifact.manifest import Loaded, load_agent, save_agent
from host.artifact.networks import Record
from host.atomic import Unwritten, check_writable, locked, naming
from host.commands.backtest import SAMPLE, describe, sample_reading
from host.config import Config, check_minutes, flat, load_config
from host.console import Report, command, compiling, progress, say
from host.data.csv_reader import read_bars
from host.data.formats import DataError, ReadOptions, Source
from host.data.parsing import iso
from host.evaluation.backtest import print_report, report, trade_bars
from host.evaluation.rehearsal import record_of
from host.live.live_agent import new_trader
from host.training.dataset import Dataset, new_dataset
from host.training.run_dir import (
    NUMBER,
    RUNS,
    Run,
    RunRefused,
    holds_run,
    latest_run,
    next_run,
    open_run,
    point_latest,
    refuse_run,
    stored_state,
)
from host.training.trainer import Trainer, first_cycle, train_for
from kernels.jit import program_digest
from kernels.market.bars import NS
from kernels.market.features import feature_digest

MINUTES = 2.5
REMEMBERED = ("side", "timezone", "label")  # reading options that a model carries to its feed
FLAGS = {"spread_pips": "--spread"}  # of reading options; else they are called as the field is
AS_IT_BEGAN = "a run goes on as it began: leave that out, or start a new run without --resume"
PUT_BACK = "put it back, or start a new run without --resume"
CHECK_OUT = "check out the version that began the run, or start a new one without --resume"
SOURCES = {  # of what determines a run: where it was found, and what to do
    "config": ("config.toml", PUT_BACK),
    "reading": ("data.toml", PUT_BACK),
    "program": ("this program is", CHECK_OUT),
    "features": ("this program has", CHECK_OUT),
}


class TrainingFailed(RuntimeError):  # noqa: N818
    """Training cannot go on: numbers grew beyond all bounds, or the memory does not suffice."""

    exit_code = 1


class Job(NamedTuple):
    """What is trained on, and how: everything that determines the weights but the bytes of the program."""

    csv: Path | None  # None: the bundled bars
    reading: ReadOptions
    config: Config


def going_on(out: Path | None) -> tuple[Path | None, Config | None]:
    """The run that `--resume` means, the latest without `--out`, and its configuration; None where there is none."""
    path = out or latest_run()
    return path, load_config(path / "config.toml") if path is not None and holds_run(path) else None


def train_csv(
    csv: Path | None,
    reading: ReadOptions,
    config: Config,
    out: Path | None,
    minutes: float | None,
    sessions: int | None,
    resume: bool,
    threads: int,
) -> dict[str, Any]:
    """Train into the run directory `out`, a new one without; the out-of-sample report, with the path of the model."""
    check_minutes(minutes)
    job = Job(csv, reading, config)
    if resume and not (out and holds_run(out)):
        say(f"no run at {out or RUNS} to go on with: starting from the beginning")
        resume = False
    job = stored_job(job, out) if resume and out else new_job(job, out)
    run: Run | None = None
    with ExitStack() as stack, telling(lambda: kept(run, minutes, sessions)):
        with compiling("getting ready") as bar:
            data, source = prepare(job, out if resume else None, threads, bar)
            trainer, origin = Trainer(data, job.config, threads), origin_of(job, data, source)
            if resume and out:
                check_origin(out, origin)
            run = stack.enter_context(open_run(out or next_run(), resume))
            restore(trainer, run) if resume else begin(run, job, source)
            bar(0.0, "first cycle")
            log = partial(keep, trainer=trainer, run=run, origin=origin)
            first_cycle(trainer, sessions, log)
            warm_up(trainer)
        with progress("training") as bar:
            train_for(trainer, minutes or (None if sessions else MINUTES), sessions, log, bar)
        document, record = out_of_sample(trainer, job.config)
        loaded = save_trained(run, trainer, source, record)
    print_report(document, sys.stderr)
    model = run.path / "model.swt"
    advise(job, model, data)
    return {**document, "model": str(model), "model_sha256": loaded.sha256}


def describe_market(data: Dataset) -> None:
    """Say what trading costs, in pips and bars, so that a person sees what is absurd."""
    market, profile = data.setting.market, data.setting.profile
    pip = market.pip_px
    say(
        f"  bars of {market.range_px / pip:.1f} pips in the mean; spread {profile.spread_px / pip:.2f} pips = "
        f"{profile.spread_px / market.range_px:.1%} of a bar, slippage {market.slippage_px / pip:.2f} pips, "
        f"swap {market.swap_long_px / pip:.2f} long and {market.swap_short_px / pip:.2f} short a night"
    )
    if profile.symbol == "-":
        say("  no symbol: name it with --symbol; without, act refuses another instrument by its scale only")


@contextmanager
def telling(keeps: Callable[[], str]) -> Iterator[None]:
    """However training ends before its time, say what is kept and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; {keeps()}") from None
    except SystemExit:
        say(f"stopped; {keeps()}")
        raise
    except Unwritten as error:
        raise Unwritten(f"{error}; {keeps()}") from error
    except (FloatingPointError, MemoryError) as error:
        raise TrainingFailed(f"{error}; {keeps()}") from error


def kept(run: Run | None, minutes: float | None, sessions: int | None) -> str:
    """What there is of a run, and the command that goes on with it."""
    if run is None or not holds_run(run.path):
        return "no run was begun: give the same command again"
    budget = {"--minutes": minutes, "--sessions": sessions}
    given = [word for name, value in budget.items() if value is not None for word in (name, value)]
    again = command("train", "--resume", "--out", run.path, *given)
    if run.saved is None:
        return f"no cycle was finished, {run.path} keeps the settings only; begin again: {again}"
    return f"{run.path} keeps all up to cycle {run.saved}; go on: {again}"


def new_job(job: Job, out: Path | None) -> Job:
    """What a new run is made of; raises where none can be made."""
    check_writable(out or RUNS, folder=True)
    if out:
        refuse_run(out)
    if job.csv is None:  # what the bundled file does not say of itself
        return job._replace(reading=sample_reading(job.reading))
    return job


def stored_job(given: Job, run: Path) -> Job:
    """What a run was begun with; raises where something else is asked for, or where its checkpoint says otherwise."""
    path, config = run / "data.toml", load_config(run / "config.toml")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        reading, csv = ReadOptions(**table["reading"]), table["csv"]
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise RunRefused(f"{path}: {error}: start a new run without --resume") from None
    stored = Job(given.csv or (Path(csv) if csv else None), reading, config)
    asked = dict(flat(given.config.as_dict()))
    for name, value in flat(config.as_dict()):
        if asked[name] != value:
            raise RunRefused(f"{run}: {name}: the run has {value}, asked for is {asked[name]}; {AS_IT_BEGAN}")
    untyped, asked_reading = ReadOptions().typed(), given.reading.typed()
    for name, value in reading.typed().items():
        wanted = asked_reading[name]
        if wanted not in (untyped[name], value):
            flag = flag_of(name)
            had = "nothing" if value is None else value
            raise RunRefused(f"{run}: {flag}: the run has {had}, asked for is {wanted}; {AS_IT_BEGAN}")
    check_origin(run, origin_of(stored))
    check_writable(run, folder=True)
    with naming(run), locked(run / "lock"):
        return stored


def origin_of(job: Job, data: Dataset | None = None, source: Source | None = None) -> dict[str, Any]:
    """All that determines the weights, as a checkpoint holds it; of data and features once they are read."""
    known = {} if data is None else {"features": feature_digest(data.setting.features)}
    known |= {} if source is None else {"data": source.sha256}
    origin = {"config": job.config.as_dict(), "reading": job.reading.typed(), "program": program_digest()}
    plain: dict[str, Any] = json.loads(json.dumps(origin | known))
    return plain


def check_origin(run: Path, now: dict[str, Any]) -> None:
    """Raise unless the newest checkpoint of a run, if any, comes from what is `now`."""
    state = stored_state(run)
    if state is None:
        return
    then = dict(flat(state["origin"]))
    for name, value in flat(now):
        kind, _, setting = name.partition(".")
        if then.get(name) == value:
            continue
        if kind == "data":
            raise DataError(f"the bars are not those that {run} was begun with: the bytes of the file differ")
        where, way = SOURCES[kind]
        what = setting if kind == "config" else name
        raise RunRefused(f"{run}: {what}: the checkpoint has {then.get(name)}, {where} {value}; {way}")


def prepare(job: Job, run: Path | None, threads: int, bar: Report) -> tuple[Dataset, Source]:
    """The bars of a job, those of the run that it goes on with, split, with everything fitted that is fitted."""
    path = job.csv or SAMPLE
    bar(0.0, f"reading {path}")
    bars, source = read_bars(path, job.reading)
    describe(source)
    if run is not None:
        check_origin(run, {"data": source.sha256})
    bar(0.0, "features")
    extra = np.zeros((len(bars.time), 0), np.float32)
    data = new_dataset(bars, extra, job.config, source.instrument, source.interval_s * NS, threads)
    describe_market(data)
    describe_split(data)
    return data, source


def describe_split(data: Dataset) -> None:
    """Say how many sessions there are and why others are not."""
    rejects = ", ".join(f"{count} {reason}" for reason, count in data.rejects.items() if count) or "none"
    say(
        f"training part: {data.train_stop} bars, {len(data.starts)} session starts (rejected: {rejects}); "
        f"test part: from bar {data.test_first}, {len(data.bars.time) - data.test_first} bars"
    )


def begin(run: Run, job: Job, source: Source) -> None:
    """Write down what the run is made of; with config.toml it has begun."""
    reading = {name: value for name, value in job.reading.typed().items() if value is not None}
    csv = str(job.csv.resolve()).encode(errors="replace").decode() if job.csv else ""
    run.write_table("data", {"csv": csv, "sha256": source.sha256, "reading": reading})
    run.write_table("config", job.config.as_dict())
    say(f"run: {run.path}")


def keep(row: dict[str, Any], trainer: Trainer, run: Run, origin: dict[str, Any]) -> None:
    """Log a cycle and make it durable."""
    run.append_metrics(row)
    arrays, state = trainer.snapshot()
    run.save_checkpoint(trainer.cycle, arrays, {**state, "origin": origin})


def restore(trainer: Trainer, run: Run) -> None:
    """Go on from the newest whole checkpoint."""
    checkpoint = run.load_checkpoint()
    if checkpoint is None:
        say(f"{run.path} has no checkpoint yet: starting from the beginning")
    else:
        trainer.restore(checkpoint.arrays, checkpoint.state)
        say(f"resuming after cycle {trainer.cycle}, {trainer.sessions} sessions: {run.path}")


def save_trained(run: Run, trainer: Trainer, source: Source, record: Record) -> Loaded:
    """Export the target networks with everything that reading and acting need; the model, read back."""
    data = {
        "span": [source.first, source.last],
        "sha256": source.sha256,
        "reading": {**{name: getattr(source, name) for name in REMEMBERED}, "pip": source.instrument.pip},
        "spread_pips": source.spread_pips,
    }
    path, configuration = run.path / "model.swt", trainer.config.as_dict()
    with naming(path):
        parts = trainer.agent(), trainer.data.setting, trainer.acting_search(), configuration, data
        save_agent(path, *parts, record)
    loaded = load_agent(path)
    if run.path.parent == RUNS and NUMBER.fullmatch(run.path.name):
        try:
            point_latest(run.path)
        except OSError as error:
            say(f"{RUNS / 'latest'} does not lead to {run.path}: {error}")
    return loaded


def warm_up(trainer: Trainer) -> None:
    """One decision as the finished agent makes it, so that its kernels are compiled by now."""
    data = trainer.data
    trader = new_trader(trainer.agent(), data.setting, trainer.acting_search())
    trade_bars(trader, data.bars, data.extra, data.test_first, data.test_first + 2)


def out_of_sample(trainer: Trainer, config: Config) -> tuple[dict[str, Any], Record]:
    """The report on the test part, and what the guards begin with."""
    data = trainer.data
    first, stop = data.test_first, len(data.bars.time)
    trader = new_trader(trainer.agent(), data.setting, trainer.acting_search())
    with progress("out of sample") as bar:
        result = trade_bars(trader, data.bars, data.extra, first, stop, bar)
    document = report(result, data.bars, first, data.setting, config.train.seed)
    return document, record_of(result.log.target, data.bars, first, data.setting.market)[0]


def flag_of(name: str) -> str:
    """The flag of a reading option."""
    return FLAGS.get(name, f"--{name.replace('_', '-')}")


def reading_flags(reading: ReadOptions) -> list[str]:
    """The flags that say what `reading` says, but for the pip, which a model knows."""
    untyped, words = ReadOptions().typed(), list[str]()
    for name, value in reading.typed().items():
        if name not in ("pip", "interval_s") and value != untyped[name]:
            words += [flag_of(name), *([] if value is True else [str(value)])]
    return words


def advise(job: Job, model: Path, data: Dataset) -> None:
    """The commands to try next."""
    start, csv = iso(data.bars.time[data.test_first]), job.csv or SAMPLE
    flags = [csv, "--model", model, *reading_flags(job.reading)]
    say(
        f"out of sample, after costs, from {start}; model: {model}\n"
        f"  {command('backtest', *flags, '--from', start)}\n"
        f"  {command('act', *flags)}"
    )
