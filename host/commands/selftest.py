"""`selftest`: train on markets with a known optimum, and say how much of it is reached."""

from __future__ import annotations

import time
from typing import IO, Any

from host.config import Config, check_minutes, refusal
from host.console import compiling, progress
from host.evaluation.exam import DEFAULT, LENGTH, LIMITS, MINUTES, SelftestRefused, measure, set_exam
from host.evaluation.synthetic import MARKETS, Options
from host.training.trainer import Trainer, first_cycle, train_for


def run_market(name: str, options: Options, config: Config, minutes: float, threads: int) -> dict[str, Any]:
    """Train on the first part of a known market, trade the rest; the figures beside the optimum's."""
    begin, title = time.perf_counter(), f"synthetic market '{name}'"
    with compiling(f"{title}, getting ready") as report:
        report(0.0, "features and first cycle")
        exam, data = set_exam(name, options, config, threads)
        trainer = Trainer(data, config, threads)
        first_cycle(trainer, None, lambda row: None)
    with progress(title) as report:
        train_for(trainer, minutes, None, lambda row: None, report)
    with progress(f"{title}, unseen bars") as report:
        return {**measure(exam, trainer, report), "seconds": round(time.perf_counter() - begin, 1)}


def new_options(**given: Any) -> Options:
    """Options of a market, defaults where None was given; raises SelftestRefused out of their limits."""
    known = {name: value for name, value in given.items() if value is not None}
    for name, value in known.items():
        fault = refusal(LIMITS.get(name), value)
        if fault:
            raise SelftestRefused(f"--{name.replace('_', '-')}: {value!r} is {fault}")
    return Options(**{"length": LENGTH, **known})


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
    names: list[str],
    options: Options,
    config: Config,
    minutes: float | None,
    threads: int,
) -> dict[str, Any]:
    """The document of `selftest --json`."""
    check_minutes(minutes)
    chosen = names or DEFAULT
    for name in chosen:
        if name not in MARKETS:
            raise SelftestRefused(f"no market {name!r}: there is {', '.join(MARKETS)}")
    markets = {name: run_market(name, options, config, minutes or MINUTES[name], threads) for name in chosen}
    return {"passed": all(m["passed"] for m in markets.values()), "markets": markets}
