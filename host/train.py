"""`train` on a CSV: the run directory, checkpoints, the model, and what to say at the end."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from host.actor import new_trader
from host.agent import Record, load_agent, save_agent
from host.backtest import SAMPLE, describe, print_report, report, sample_reading, trade_bars
from host.bars import read_bars
from host.config import Config, ConfigError, load_config, merge
from host.dataset import Dataset, new_dataset
from host.formats import DataError, ReadOptions, Source
from host.progress import progress, say
from host.rehearsal import record_of
from host.run import Run, open_run
from host.trainer import Trainer, train_for
from kernels.bars import NS, Bars

MINUTES = 2.5
REMEMBERED = ("side", "timezone", "label")  # reading options that a model carries to its feed


def train_csv(
    csv: Path | None,
    reading: ReadOptions,
    config: Config,
    out: Path,
    minutes: float | None,
    sessions: int | None,
    resume: bool,
    threads: int,
) -> dict[str, Any]:
    """Train on a CSV into the run directory `out`; the out-of-sample report, with the path of the model."""
    path = csv or SAMPLE
    if csv is None:
        reading = sample_reading(reading)
    if minutes is None and sessions is None:
        minutes = MINUTES
    with open_run(out, resume) as run:
        if resume:
            config = resumed_config(config, run)
        bars, source = read_bars(path, reading)
        describe(source)
        run.write_config(config.as_dict())
        extra = np.zeros((len(bars.time), 0), np.float32)
        data = new_dataset(bars, extra, config, source.instrument, source.interval_s * NS, threads)
        describe_market(data)
        describe_split(data)
        say("compiling kernels: once, well under two minutes; later starts find them in the cache")
        trainer = Trainer(data, config, threads)
        if resume:
            restore(trainer, run, source)
        with progress("training") as bar:
            train_for(trainer, minutes, sessions, lambda row: keep(row, trainer, run, source), bar)
        model = run.path / "model.swt"
        document, record = out_of_sample(trainer, config)
        sha256 = save_trained(model, trainer, source, record)
        load_agent(model)  # what cannot be read is no model
    print_report(document, sys.stderr)
    advise(csv or SAMPLE, model, bars, data.test_first)
    return {**document, "model": str(model), "model_sha256": sha256}


def describe_market(data: Dataset) -> None:
    """Say what is traded and what it costs, so that a person sees an absurd one."""
    market, profile = data.setting.market, data.setting.profile
    pip, spread, symbol = market.pip_px, profile.spread_px, profile.symbol
    say(
        f"{'no symbol' if symbol == '-' else symbol}: pip {pip:g}, prices of about {profile.price:.6g}, "
        f"bars of {market.range_px / pip:.1f} pips; spread {spread / pip:.2f} pips = {spread:.3g} = "
        f"{spread / market.range_px:.1%} of a bar, slippage {market.slippage_px / pip:.2f} pips, "
        f"swap {market.swap_long_px / pip:.2f} long and {market.swap_short_px / pip:.2f} short a night"
    )
    if symbol == "-":
        say(
            "  --symbol EURUSD (for example) names it; without, act can refuse another instrument by its scale only"
        )


def describe_split(data: Dataset) -> None:
    """Say how many sessions there are and why others are not."""
    rejects = ", ".join(f"{count} {reason}" for reason, count in data.rejects.items() if count) or "none"
    say(
        f"training part: {data.train_stop} bars, {len(data.starts)} session starts (rejected: {rejects}); "
        f"test part: from bar {data.test_first}, {len(data.bars.time) - data.test_first} bars"
    )


def resumed_config(given: Config, run: Run) -> Config:
    """The configuration a run was started with; one given beside `--resume` must be the same."""
    if not (run.path / "config.toml").exists():  # killed before it began
        return given
    stored: Config = merge(load_config(), run.read_config(), f"{run.path}/config.toml")
    if given not in (load_config(), stored):
        raise ConfigError(
            f"{run.path}: a run goes on with the configuration in its config.toml, not with another"
        )
    return stored


def keep(row: dict[str, Any], trainer: Trainer, run: Run, source: Source) -> None:
    """Log a cycle and make it durable."""
    run.append_metrics(row)
    arrays, state = trainer.snapshot()
    run.save_checkpoint(trainer.cycle, arrays, {**state, "data": source.sha256})


def restore(trainer: Trainer, run: Run, source: Source) -> None:
    """Go on from the newest whole checkpoint, on the bars it was made from."""
    checkpoint = run.load_checkpoint()
    if checkpoint is None:
        say("no checkpoint yet: starting from the beginning")
    elif checkpoint.state["data"] != source.sha256:
        raise DataError(f"{source.path}: not the file that {run.path} was started with; its bytes differ")
    else:
        trainer.restore(checkpoint.arrays, checkpoint.state)
        say(f"resuming after cycle {trainer.cycle}, {trainer.sessions} sessions")


def save_trained(path: Path, trainer: Trainer, source: Source, record: Record) -> str:
    """Export the target networks with everything that reading and acting need; the sha256 of the model."""
    data = {
        "span": [source.first, source.last],
        "sha256": source.sha256,
        "reading": {**{name: getattr(source, name) for name in REMEMBERED}, "pip": source.instrument.pip},
        "spread_pips": source.spread_pips,
    }
    configuration = trainer.config.as_dict()
    parts = trainer.agent(), trainer.data.setting, trainer.acting_search(), configuration, data
    return save_agent(path, *parts, record)


def out_of_sample(trainer: Trainer, config: Config) -> tuple[dict[str, Any], Record]:
    """The report on the test part, and what the guards begin with."""
    data = trainer.data
    first, stop = data.test_first, len(data.bars.time)
    trader = new_trader(trainer.agent(), data.setting, trainer.acting_search())
    result = trade_bars(trader, data.bars, data.extra, first, stop)
    document = report(result, data.bars, first, data.setting, config.train.seed)
    return document, record_of(result.log.target, data.bars, first, data.setting.market)[0]


def advise(csv: Path, model: Path, bars: Bars, first: int) -> None:
    """The commands to try next."""
    start = utc(bars.time[first])
    say(
        f"out of sample, after costs, from {start}; model: {model}\n"
        f"  python swt.py backtest {csv} --model {model} --from {start}\n"
        f"  python swt.py act {csv} --model {model}"
    )


def utc(time_ns: int) -> str:
    """ISO stamp of a bar's close."""
    return str(np.datetime_as_string(np.datetime64(int(time_ns), "ns"), unit="s")) + "Z"
