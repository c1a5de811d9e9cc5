"""`selftest`: train on synthetic markets, and report the fraction of the optimum that the agent reaches."""

from __future__ import annotations

import time
from pathlib import Path
from typing import IO, Any

from host.atomic import add_path_to_errors, atomic_write, check_writable
from host.config import Config, check_minutes, invalid_reason
from host.console import compiling, progress
from host.evaluation.exam import (
    DEFAULT_MARKETS,
    NUM_BARS,
    OPTION_RANGES,
    TRAINING_MINUTES,
    SelftestError,
    compare_with_optimum,
    equity_curves,
    prepare_evaluation,
    trade_unseen_bars,
)
from host.evaluation.synthetic import MARKETS, Floats, SyntheticOptions
from host.svg import line_charts
from host.training.trainer import Trainer, run_first_iteration, train_for


def train_and_evaluate(
    name: str, options: SyntheticOptions, config: Config, minutes: float, threads: int
) -> tuple[dict[str, Any], dict[str, Floats]]:
    """Train on the first part of the market `name` and trade the rest; the document and the equity curves."""
    begin, title = time.perf_counter(), f"synthetic market '{name}'"
    with compiling(f"{title}, getting ready") as report:
        report(0.0, "features and first iteration")
        evaluation, data = prepare_evaluation(name, options, config, threads)
        trainer = Trainer(data, config, threads)
        run_first_iteration(trainer, None, lambda row: None)
    with progress(title) as report:
        train_for(trainer, minutes, None, lambda row: None, report)
    with progress(f"{title}, unseen bars") as report:
        result = trade_unseen_bars(evaluation, trainer, report)
    document = compare_with_optimum(evaluation, trainer, result)
    return {**document, "seconds": round(time.perf_counter() - begin, 1)}, equity_curves(evaluation, result)


def new_synthetic_options(**flags: Any) -> SyntheticOptions:
    """The options that `flags` name, defaults where a flag is None; SelftestError where one is out of its range."""
    options = {name: value for name, value in flags.items() if value is not None}
    for name, value in options.items():
        fault = invalid_reason(OPTION_RANGES.get(name), value)
        if fault:
            raise SelftestError(f"--{name.replace('_', '-')}: {value!r} is {fault}")
    return SyntheticOptions(**{"length": NUM_BARS, **options})


def print_selftest(document: dict[str, Any], out: IO[str]) -> None:
    """Print one line for each market."""
    for name, m in document["markets"].items():
        verdict = "passed" if m["passed"] else "FAILED"
        fraction = m["fraction_of_optimum"]
        reached = f"{fraction:.1%} of the optimum" if fraction is not None else "the optimum is flat"
        print(
            f"synthetic {name:>8}: {verdict}; {reached}; {m['profit']:.0f} of {m['optimum']:.0f} pips, in the market "
            f"{m['exposure']:.1%}, {m['trades']} trades, {m['test_bars']} unseen bars, {m['seconds']:.0f} s",
            file=out,
        )


def selftest(
    names: list[str],
    options: SyntheticOptions,
    config: Config,
    minutes: float | None,
    threads: int,
    picture: Path | None = None,
) -> dict[str, Any]:
    """The document of `selftest --json`; the equity of each market is drawn into the SVG file `picture`."""
    check_minutes(minutes)
    for name in names:
        if name not in MARKETS:
            raise SelftestError(f"no market {name!r}: there is {', '.join(MARKETS)}")
    if picture is not None:
        check_writable(picture)
    markets, charts = dict[str, dict[str, Any]](), dict[str, dict[str, Floats]]()
    for name in names or DEFAULT_MARKETS:
        market_minutes = minutes or TRAINING_MINUTES[name]
        markets[name], curves = train_and_evaluate(name, options, config, market_minutes, threads)
        charts[f"synthetic market '{name}'"] = curves
    if picture is not None:
        with add_path_to_errors(picture), atomic_write(picture) as file:
            file.write(line_charts(charts, "pips").encode())
    return {"passed": all(m["passed"] for m in markets.values()), "markets": markets}
