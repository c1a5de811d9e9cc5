"""`TrainingSpec`: everything that determines a run but the program; of a new run, or as a run has stored it.

A run resumes only if none of that has changed: settings and reading options are the run's own, and one that is given
beside `--resume` must be equal to them.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from host.atomic import add_path_to_errors, check_writable, locked
from host.commands.backtest import sample_reading
from host.config import Config, flatten, load_config
from host.console import log
from host.data.formats import DataError, ReadOptions, Source
from host.data.history import expand_paths
from host.training.dataset import Dataset
from host.training.run_dir import RUNS_FOLDER, RunDir, RunError, check_no_run, has_run, latest_run, peek_state
from kernels.jit import program_digest
from kernels.market.features import feature_digest

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


class TrainingSpec(NamedTuple):
    """Bars, reading options and configuration: everything that determines the weights except the program."""

    files: list[Path]  # none: the bundled bars
    reading: ReadOptions
    config: Config


class InstrumentData(NamedTuple):
    """The bars of one instrument, ready to train on, and where they came from."""

    data: Dataset
    source: Source


def run_to_resume(out: Path | None) -> tuple[Path | None, Config | None]:
    """Path and configuration of the run to resume, by default the latest; None for what does not exist."""
    path = out or latest_run()
    return path, load_config(path / "config.toml") if path is not None and has_run(path) else None


def new_training_spec(spec: TrainingSpec, out: Path | None) -> TrainingSpec:
    """`spec` completed for a new run; OutputPathError or RunError where none can be made at `out`."""
    check_writable(out or RUNS_FOLDER, folder=True)
    if out:
        check_no_run(out)
    if not spec.files:
        return spec._replace(reading=sample_reading(spec.reading))
    return spec._replace(files=expand_paths(spec.files))


def stored_training_spec(asked: TrainingSpec, run: Path) -> TrainingSpec:
    """The spec that `run` was begun with; RunError where `asked` or the newest checkpoint differs from it."""
    path, config = run / "data.toml", load_config(run / "config.toml")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        reading, files = ReadOptions(**table["reading"]), [*map(Path, table["files"])]
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise RunError(f"{path}: {error}; {RESTORE_HINT}") from None
    stored = TrainingSpec(expand_paths(asked.files) or files, reading, config)
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


def training_origin(spec: TrainingSpec, instruments: Sequence[InstrumentData] = ()) -> dict[str, Any]:
    """Everything that determines the weights, as a checkpoint holds it; without the data before they are read."""
    origin = {"config": spec.config.as_dict(), "reading": spec.reading.explicit(), "program": program_digest()}
    if instruments:
        origin["features"] = feature_digest(instruments[0].data.market_spec.features)
        origin["data"] = {source.instrument.symbol: source.sha256 for _, source in instruments}
    plain: dict[str, Any] = json.loads(json.dumps(origin))
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
            raise DataError(f"the bars are not those that {run} was begun with: the bytes of the files differ")
        where, hint = ORIGIN_HINTS[kind]
        key = setting if kind == "config" else name
        raise RunError(f"{run}: {key}: the checkpoint has {then.get(name)}, {where} {value}; {hint}")


def write_run_settings(run: RunDir, spec: TrainingSpec, instruments: Sequence[InstrumentData]) -> None:
    """Write data.toml and config.toml; with config.toml the run has begun."""
    reading = {name: value for name, value in spec.reading.explicit().items() if value is not None}
    files = [str(path.resolve()).encode(errors="replace").decode() for path in spec.files]
    sha256 = {source.instrument.symbol: source.sha256 for _, source in instruments}
    run.write_toml("data", {"files": files, "sha256": sha256, "reading": reading})
    run.write_toml("config", spec.config.as_dict())
    log(f"run: {run.path}")


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
