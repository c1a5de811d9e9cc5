"""`selftest`: train on synthetic markets, and report the fraction of the optimum that the agent reaches."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from host import VERSION
from host.analysis.opportunity import opportunity
from host.analysis.record import record_of
from host.analysis.report import ReportContext, build_report, write_report
from host.atomic import add_path_to_errors, atomic_write, check_writable
from host.config import Config, check_minutes, invalid_reason
from host.console import ProgressCallback, compiling, progress
from host.evaluation.backtest import BacktestResult
from host.evaluation.exam import (
    DEFAULT_MARKETS,
    NUM_BARS,
    NUM_TEST_BARS,
    OPTION_RANGES,
    TRAINING_MINUTES,
    EvaluationSet,
    SelftestError,
    compare_with_optimum,
    equity_curves,
    prepare_evaluation,
    selftest_config,
    trade_unseen_bars,
)
from host.evaluation.learning import measure_agent
from host.evaluation.synthetic import MARKETS, Floats, SyntheticOptions
from host.live.live_agent import new_policy_state
from host.svg import line_charts
from host.training.trainer import Budget, Trainer, run_first_iteration, train_for

SEED_STEP, NOISE_FACTORS = 1000, (1.0, 0.5, 2.0)  # between the instruments of one agent
NUM_EVALUATIONS = 20  # of a training whose learning is recorded
CURVES = {  # of a market; each is drawn in percent
    "profit, of the optimum": ("expected_fraction", "fraction_of_optimum"),
    "Q(BUY) - Q(SELL) against the optimum": ("q_correlation", "q_slope"),
}
MEASURES = (
    *("expected_fraction", "fraction_of_optimum", "q_slope", "q_correlation", "chance_nll"),
    *("exposure", "closing_regret", "trades"),
)


class Exam(NamedTuple):
    """What an agent is trained and examined with."""

    instruments: list[SyntheticOptions]  # of the markets that it learns together
    config: Config
    threads: int
    metrics: Path | None  # a file


def train_and_evaluate(name: str, exam: Exam, minutes: float) -> dict[str, tuple[dict[str, Any], dict[str, Floats]]]:
    """Train on the first part of the market `name` and trade the rest; by instrument the document and equity curves.

    With a file of metrics, what the agent has learnt is appended to it NUM_EVALUATIONS times, and the report is written
    into a folder of the instrument's name beside it.
    """
    begin, title, metrics = time.perf_counter(), f"synthetic market '{name}'", exam.metrics
    with compiling(f"{title}, getting ready") as report:
        report(0.0, "features and first iteration")
        made = [prepare_evaluation(name, o, exam.config, exam.threads, i) for i, o in enumerate(exam.instruments)]
        labels = [name] if len(made) == 1 else [f"{name}-{number}" for number in range(1, len(made) + 1)]
        evaluations = dict(zip(labels, (evaluation for evaluation, _ in made), strict=True))
        trainer = Trainer([data for _, data in made], exam.config, exam.threads)
        run_first_iteration(trainer, Budget(), lambda row: None)
    with progress(title) as report:
        if metrics is None:
            train_for(trainer, Budget(minutes), lambda row: None, report)
        else:
            record_learning(evaluations, trainer, minutes, metrics, report)
    found = dict[str, tuple[dict[str, Any], dict[str, Floats]]]()
    for label, evaluation in evaluations.items():
        with progress(f"{title}, unseen bars") as report:
            result = trade_unseen_bars(evaluation, trainer, report)
        document = compare_with_optimum(evaluation, trainer, result)
        if metrics is not None:
            write_market_report(metrics.with_name(label), evaluation, trainer, result)
        document["seconds"] = round(time.perf_counter() - begin, 1)
        found[label] = document, equity_curves(evaluation, result)
    return found


def write_market_report(folder: Path, evaluation: EvaluationSet, trainer: Trainer, result: BacktestResult) -> None:
    """Write the report of a backtest on the unseen bars of a synthetic market, which its title says."""
    synthetic, first, n = evaluation.market, evaluation.first, len(result.log.action)
    spec, found = trainer.markets[evaluation.instrument].data.market_spec, trainer.calibration
    policy = new_policy_state(trainer.export_networks(), spec, trainer.acting_search_config())
    stretch = synthetic.bars, synthetic.extra, first, first + n + 1
    seen = opportunity(policy, *stretch, found.direction_z if found else None)
    source = {"title": f"SYNTHETIC market '{synthetic.name}', unseen bars", "version": VERSION}
    records = [record_of(result, synthetic.bars, first, spec.market)]
    context = ReportContext(source, trainer.config.train.seed, opportunity=seen)
    write_report(folder, build_report(records, context), records)


def record_learning(
    evaluations: dict[str, EvaluationSet], trainer: Trainer, minutes: float, path: Path, report: ProgressCallback
) -> None:
    """Train, and append a row of measures to the file `path` after each part; evaluating costs none of the minutes."""
    cpu_s = seconds = 0.0
    for part in range(NUM_EVALUATIONS):
        begin, begin_cpu = time.perf_counter(), time.process_time()

        def report_part(fraction: float, text: str, part: int = part) -> None:
            report((part + fraction) / NUM_EVALUATIONS, text)

        train_for(trainer, Budget(minutes / NUM_EVALUATIONS), lambda row: None, report_part)
        seconds, cpu_s = seconds + time.perf_counter() - begin, cpu_s + time.process_time() - begin_cpu
        for label, evaluation in evaluations.items():
            measures = measure_agent(evaluation, trainer)
            row = {
                "market": label,
                "seed": trainer.config.train.seed,
                "iteration": trainer.iteration,
                "episodes": trainer.episodes,
                "updates": trainer.learner.step,
                "cpu_s": round(cpu_s, 2),
                "seconds": round(seconds, 2),
                **{measure: measures[measure] for measure in MEASURES},
            }
            with add_path_to_errors(path), path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")


def draw_curves(rows: list[dict[str, Any]]) -> str:
    """An SVG of the curves of the rows of `record_learning`, for each market."""
    charts = dict[str, dict[str, Floats]]()
    for name in dict.fromkeys(row["market"] for row in rows):
        own = [row for row in rows if row["market"] == name]
        for title, measures in CURVES.items():
            table = {m: [row[m] for row in own] for m in measures}
            lines = {m: 100 * np.array(values, np.float64) for m, values in table.items() if None not in values}
            if lines:
                charts[f"'{name}', {own[-1]['cpu_s']:.0f} s of CPU: {title}"] = lines
    return line_charts(charts, "percent", "{:,} evaluations, evenly spaced")


def new_synthetic_options(**flags: Any) -> SyntheticOptions:
    """The options that `flags` name, defaults where a flag is None; SelftestError where one is out of its range."""
    options = {name: value for name, value in flags.items() if value is not None}
    for name, value in options.items():
        fault = invalid_reason(OPTION_RANGES.get(name), value)
        if fault:
            raise SelftestError(f"--{name.replace('_', '-')}: {value!r} is {fault}")
    return SyntheticOptions(**{"length": NUM_BARS, **options})


def split_settings(train_bars: int | None, length: int | None) -> tuple[int | None, list[str]]:
    """Length of a market with so many training bars, and the settings that split it there; (length, []) for None."""
    if train_bars is None:
        return length, []
    if length is not None:
        raise SelftestError(f"--length: --train-bars {train_bars} makes it {train_bars + NUM_TEST_BARS}: leave one out")
    fault = invalid_reason(OPTION_RANGES["length"], train_bars)
    if fault:
        raise SelftestError(f"--train-bars: {train_bars} is {fault}")
    length = train_bars + NUM_TEST_BARS
    return length, [f"train.train_fraction={train_bars / length!r}"]


def new_instruments(options: SyntheticOptions, count: int) -> list[SyntheticOptions]:
    """The options of `count` markets of one kind: each has a path and a size of moves of its own."""
    return [
        options._replace(seed=options.seed + SEED_STEP * i, noise=options.noise * NOISE_FACTORS[i % len(NOISE_FACTORS)])
        for i in range(count)
    ]


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
    settings: list[str],
    minutes: float | None,
    threads: int,
    picture: Path | None = None,
    out: Path | None = None,
    instruments: int = 1,
) -> dict[str, Any]:
    """The document of `selftest --json`; the equity of each market is drawn into the SVG file `picture`.

    An agent learns so many `instruments` of a market together.

    `settings` of `--set` come after those that belong to a market.
    The folder `out` gets `metrics.jsonl`, what the agents have learnt by when, and `curves.svg`, a picture of it.
    """
    check_minutes(minutes)
    for name in names:
        if name not in MARKETS:
            raise SelftestError(f"no market {name!r}: there is {', '.join(MARKETS)}")
    configs = {name: selftest_config(settings, name) for name in names or DEFAULT_MARKETS}
    if picture is not None:
        check_writable(picture)
    metrics = None if out is None else out / "metrics.jsonl"
    if metrics is not None:
        check_writable(metrics.parent, folder=True)
        metrics.parent.mkdir(parents=True, exist_ok=True)
        metrics.write_bytes(b"")
    markets, charts = dict[str, dict[str, Any]](), dict[str, dict[str, Floats]]()
    for name, config in configs.items():
        exam = Exam(new_instruments(options, instruments), config, threads, metrics)
        for label, (document, curves) in train_and_evaluate(name, exam, minutes or TRAINING_MINUTES[name]).items():
            markets[label], charts[f"synthetic market '{label}'"] = document, curves
    if picture is not None:
        with add_path_to_errors(picture), atomic_write(picture) as file:
            file.write(line_charts(charts, "pips", "{:,} unseen bars").encode())
    if metrics is not None:
        rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
        with atomic_write(metrics.with_name("curves.svg")) as file:
            file.write(draw_curves(rows).encode())
    return {"passed": all(m["passed"] for m in markets.values()), "markets": markets}
