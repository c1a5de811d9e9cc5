"""`selftest`: train on markets with a known optimum, and say how much of it is reached."""

from __future__ import annotations

import time
from typing import IO, Any

from host.config import Config, check_minutes, invalid_reason
from host.console import compiling, progress
from host.evaluation.exam import (
    DEFAULT_MARKETS,
    NUM_BARS,
    OPTION_RANGES,
    TRAINING_MINUTES,
    SelftestError,
    evaluate_agent,
    prepare_evaluation,
)
from host.evaluation.synthetic import MARKETS, SyntheticOptions
from host.training.trainer import Trainer, run_first_iteration, train_for


def train_and_evaluate(
    name: str, options: SyntheticOptions, config: Config, minutes: float, threads: int
) -> dict[str, Any]:
    """Train on the first part of a known market, trade the rest; the figures beside the optimum's."""
    begin, title = time.perf_counter(), f"synthetic market '{name}'"
    with compiling(f"{title}, getting ready") as report:
        report(0.0, "features and first cycle")
        exam, data = prepare_evaluation(name, options, config, threads)
        trainer = Trainer(data, config, threads)
        run_first_iteration(trainer, None, lambda row: None)
    with progress(title) as report:
        train_for(trainer, minutes, None, lambda row: None, report)
    with progress(f"{title}, unseen bars") as report:
        return {**evaluate_agent(exam, trainer, report), "seconds": round(time.perf_counter() - begin, 1)}


def new_synthetic_options(**given: Any) -> SyntheticOptions:
    """Options of a market, defaults where None was given; raises SelftestRefused out of their limits."""
    known = {name: value for name, value in given.items() if value is not None}
    for name, value in known.items():
        fault = invalid_reason(OPTION_RANGES.get(name), value)
        if fault:
            raise SelftestError(f"--{name.replace('_', '-')}: {value!r} is {fault}")
    return SyntheticOptions(**{"length": NUM_BARS, **known})


def print_selftest(document: dict[str, Any], out: IO[str]) -> None:
    """One line a market."""
    for name, m in document["markets"].items():
        verdict = "passed" if m["passed"] else "FAILED"
        fraction = m["fraction_of_optimum"]
        share = f"{fraction:.1%} of the optimum" if fraction is not None else "the optimum is flat"
        print(
            f"synthetic {name:>8}: {verdict}; {share}; {m['profit']:.0f} of {m['optimum']:.0f} pips, in the market "
            f"{m['share_in_market']:.1%}, {m['trades']} trades, {m['test_bars']} unseen bars, {m['seconds']:.0f} s",
            file=out,
        )


def selftest(
    names: list[str], options: SyntheticOptions, config: Config, minutes: float | None, threads: int
) -> dict[str, Any]:
    """The document of `selftest --json`."""
    check_minutes(minutes)
    chosen = names or DEFAULT_MARKETS
    for name in chosen:
        if name not in MARKETS:
            raise SelftestError(f"no market {name!r}: there is {', '.join(MARKETS)}")
    markets = {
        name: train_and_evaluate(name, options, config, minutes or TRAINING_MINUTES[name], threads) for name in chosen
    }
    return {"passed": all(m["passed"] for m in markets.values()), "markets": markets}
