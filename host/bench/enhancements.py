"""`bench enhancements`: every enhancement on and off, what it costs and how soon the agent learns, beside its claims.

A new one is a line of ENHANCEMENTS.  Units are measured in processes of their own (host/bench/enhancement_run.py),
each kept in a file as soon as it is known: an interrupted bench goes on, and variants that resolve to the same
configuration are measured once.  Seeds come one after the other, so that few seeds of all are there before many of one.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import IO, Any, NamedTuple

from host.atomic import atomic_write, check_writable
from host.bench.enhancement_run import COST, LEARN, LEARNED_MARKETS, Budget, Job, ReportProgress, job_key, run_job
from host.bench.picture import render_svg
from host.bench.process import BenchRow
from host.console import ProgressCallback, log, progress

JobRunner = Callable[[Job, ReportProgress], BenchRow]


class Enhancement(NamedTuple):
    """One row: the `--set` of both sides, on top of the defaults in a market that costs the spread only."""

    name: str
    claim: str  # of the document of resource estimates
    on: tuple[str, ...] = ()
    off: tuple[str, ...] = ()
    reason: str = ""  # measured, why it is recommended; empty: it is not


USE_GUMBEL, USE_PUCT = "search.algorithm=gumbel", "search.algorithm=puct"
NO_REUSE, NO_REANALYZE = "search.value_reuse=off", "train.reanalyze=false"
NO_MIRROR, NO_UNIZERO = "train.mirror_augmentation=false", "train.unizero_weight=0"
FIVE_SIZES = "market.position_sizes=[0.2,0.4,0.6,0.8,1.0]"
ENHANCEMENTS = (
    Enhancement(
        "rezero",
        "memory -20..-40 %, CPU -50..-70 %, storage +5..10 %, cache hits 60-80 %",
        on=(USE_GUMBEL,),
        off=(USE_GUMBEL, NO_REUSE),
    ),
    Enhancement("rezero, market search", "as above", off=(NO_REUSE,)),
    Enhancement(
        "backward reanalyse",
        "memory +10..15 %, CPU -10..+5 %, storage +15..30 %",
        off=(NO_REANALYZE,),
        reason="`planted-hard` in 1280 sessions instead of 1664, by four seeds of five instead of three",
    ),
    Enhancement(
        "gumbel",
        "memory -5..-10 %, CPU of selection -30..-40 %, storage +2..5 %",
        on=(USE_GUMBEL,),
        off=(USE_PUCT,),
        reason="`planted` in 576 sessions instead of 1024, `close` in 448 instead of 896, `planted-hard` at all",
    ),
    Enhancement(
        "market search",
        "none: ours, against gumbel",
        off=(USE_GUMBEL,),
        reason="as soon as gumbel or later, but a decision in 0.6 of its time and half the tree",
    ),
    Enhancement(
        "unizero",
        "memory +15..25 %, CPU +10..20 %, storage +10..20 %, 30-50 % fewer samples",
        off=(NO_UNIZERO,),
        reason="no sooner, but further: `selftest` of seeds 0 and 1 98 and 92 % of `planted-hard`, 98 and 87 without",
    ),
    Enhancement(
        "transformer",
        "memory +40..80 % (500-1200 MB), CPU +20..30 %, storage +15..25 %: defer",
        on=("network.dynamics=transformer", NO_UNIZERO),
        off=(NO_UNIZERO,),
    ),
    Enhancement("transformer, unizero", "both of the above", on=("network.dynamics=transformer",), off=(NO_UNIZERO,)),
    Enhancement("sizes", "memory +20..40 %, CPU +30..50 %, storage +5..10 % (of widening)", on=(FIVE_SIZES,)),
    Enhancement(
        "progressive widening",
        "memory +20..40 %, CPU +30..50 %, storage +5..10 %",
        on=("search.algorithm=widening",),
        off=(USE_GUMBEL,),
    ),
    Enhancement("value prefix", "none", on=(USE_GUMBEL, "train.value_prefix=true"), off=(USE_GUMBEL,)),
    Enhancement("consistency", "none", on=("train.consistency_weight=1.0",)),
    Enhancement("learned codes", "none", on=("train.chance_codes=learned",)),
    Enhancement("bellman priority", "none", on=("train.per_alpha=0.4",)),
    Enhancement("age cut", "none", on=("train.off_policy_correction=0.3",)),
    Enhancement(
        "mirrored windows",
        "none: ours",
        off=(NO_MIRROR,),
        reason="`noise` (seed 1) is held 0.0 % of the bars after 2.5 minutes instead of 60 %",
    ),
    Enhancement(
        "recommended",
        "memory -150..-550 MB, CPU -65..-85 %, CLOSE learnt in 5K instead of 13K episodes",
        off=(USE_PUCT, NO_REUSE, NO_REANALYZE, NO_MIRROR, NO_UNIZERO),
    ),
)
COST_KEYS = (
    *("tree_kb", "us_per_decision", "selection_us", "us_per_decision_block", "selection_us_block"),
    *("rows_per_decision", "ms_per_step", "parameters_mb", "storage_mb"),
)
TRAINING_KEYS = ("rss_anon_mb", "rss_mb", "reuse_share", "ms_per_session")
LEARNING_KEYS = ("sessions_to_90", "seconds_to_90", "fraction_of_optimum", "closing_regret")
TABLE_COLUMNS = {  # of the table for people
    "rss_anon_mb": "anon MB", "rss_mb": "RSS MB", "tree_kb": "tree kB", "us_per_decision": "us",
    "selection_us": "select us", "us_per_decision_block": "us (block)", "rows_per_decision": "rows",
    "reuse_share": "reuse", "ms_per_step": "ms/step", "ms_per_session": "ms/session", "parameters_mb": "param MB",
    "storage_mb": "disk MB",
}  # fmt: skip


def select(only: str | None) -> list[Enhancement]:
    """All, or the one of that name."""
    found = [e for e in ENHANCEMENTS if only in (None, e.name)]
    if not found:
        raise UnknownEnhancementError(f"--only {only}: there is {', '.join(e.name for e in ENHANCEMENTS)}")
    return found


class UnknownEnhancementError(ValueError):
    """There is nothing of this name to measure."""

    exit_code = 2


def variant_jobs(settings: tuple[str, ...], seed: int, budget: Budget) -> list[Job]:
    """What one variant and seed takes: its learning on all markets; its cost once, on the first market and seed."""
    kinds = [*([(COST, LEARNED_MARKETS[0])] if seed == 0 else []), *((LEARN, market) for market in LEARNED_MARKETS)]
    return [Job(kind, market, seed, settings, budget) for kind, market in kinds]


def all_jobs(rows: list[Enhancement], seeds: int, budget: Budget) -> dict[str, Job]:
    """Every unit by its key, in the order of measuring; raises ConfigError for settings that do not exist."""
    variants = dict.fromkeys(settings for e in rows for settings in (e.on, e.off))
    found = dict[str, Job]()
    for seed, settings in product(range(seeds), variants):
        for unit in variant_jobs(settings, seed, budget):
            found.setdefault(job_key(unit), unit)
    return found


def run_jobs(jobs: dict[str, Job], out: Path, report: ProgressCallback, runner: JobRunner) -> dict[str, BenchRow]:
    """The result of every unit by key, from its file in `out` or measured now."""
    out.mkdir(parents=True, exist_ok=True)
    files = {key: out / f"{key}.json" for key in jobs}
    missing = [key for key in jobs if not files[key].exists()]
    if len(missing) < len(jobs):
        log(f"{len(jobs) - len(missing)} of {len(jobs)} units are in {out}")
    for i, key in enumerate(missing):
        unit = jobs[key]
        text = f"{unit.kind} {unit.market} seed {unit.seed} {' '.join(unit.settings) or 'defaults'}"
        report(i / len(missing), text)
        row = runner(unit, partial(report_job, report, i, len(missing), text))
        with atomic_write(files[key]) as file:
            file.write(json.dumps({**unit._asdict(), "result": row}, allow_nan=False).encode())
    return {key: json.loads(file.read_text(encoding="utf-8"))["result"] for key, file in files.items()}


def report_job(report: ProgressCallback, done: int, num_jobs: int, text: str, share: float) -> None:
    """Report that `share` of the unit after the first `done` is done."""
    report((done + share) / num_jobs, text)


def median(values: list[float | None]) -> float | None:
    """The median, where None is worse than any number."""
    found = statistics.median(math.inf if value is None else value for value in values)
    return None if math.isinf(found) else round(found, 4)


def value_range(values: list[float | None]) -> list[float | None]:
    """Least and greatest; None is the greatest."""
    known = [round(value, 4) for value in values if value is not None]
    return [min(known, default=None), None if None in values else max(known)]


def summarize_side(settings: tuple[str, ...], seeds: int, budget: Budget, results: dict[str, BenchRow]) -> BenchRow:
    """One side of a row: medians over the seeds; memory and learning at the top are those of the first market."""
    found = dict[tuple[str, str], list[BenchRow]]()
    for seed in range(seeds):
        for unit in variant_jobs(settings, seed, budget):
            found.setdefault((unit.kind, unit.market), []).append(results[job_key(unit)])
    costs, trained = found[COST, LEARNED_MARKETS[0]], found[LEARN, LEARNED_MARKETS[0]]
    markets = dict[str, BenchRow]()
    for market in LEARNED_MARKETS:
        rows = found[LEARN, market]
        medians = {name: median([row[name] for row in rows]) for name in LEARNING_KEYS}
        ranges = {f"{name}_range": value_range([row[name] for row in rows]) for name in LEARNING_KEYS[:2]}
        markets[market] = {**medians, **ranges, "reached": sum(row[LEARNING_KEYS[0]] is not None for row in rows)}
    return {
        "settings": list(settings),
        "seeds": seeds,
        **{name: median([row[name] for row in trained]) for name in TRAINING_KEYS},
        **{name: median([row[name] for row in costs]) for name in COST_KEYS},
        **{name: markets[LEARNED_MARKETS[0]][name] for name in LEARNING_KEYS[:2]},
        "weights_sha256": costs[0]["weights_sha256"],
        "markets": markets,
    }


def bench_enhancements(options: Any, runner: JobRunner = run_job) -> list[BenchRow]:
    """The document of `bench enhancements`, also written to `options.out` beside a picture of it."""
    rows, effort = select(options.only), options.effort
    check_writable(options.out, folder=True)
    with progress("bench enhancements") as report:
        results = run_jobs(all_jobs(rows, options.seeds, effort), options.out, report, runner)
    document = [
        {
            **{"enhancement": e.name, "claim": e.claim, "recommended": e.reason or None},
            **{
                name: summarize_side(side, options.seeds, effort, results)
                for name, side in (("on", e.on), ("off", e.off))
            },
        }
        for e in rows
    ]
    for name, text in (
        ("enhancements.json", json.dumps(document, indent=1)),
        ("enhancements.svg", render_svg(document)),
    ):
        with atomic_write(options.out / name) as file:
            file.write(text.encode())
    log(f"{options.out}: enhancements.json, enhancements.svg")
    return document


def print_enhancements(document: list[BenchRow], out: IO[str]) -> None:
    """Two lines for each enhancement, off and on, under its claim."""
    print(" " * 5 + "".join(f"{title:>11}" for title in TABLE_COLUMNS.values()) + "  sessions to 90 %", file=out)
    for row in document:
        print(f"{row['enhancement']}; claimed: {row['claim']}", file=out)
        for name in ("off", "on"):
            side = row[name]
            figures = "".join(f"{side[key]:>11.4g}" for key in TABLE_COLUMNS)
            learnt = ", ".join(f"{market} {episodes_text(found)}" for market, found in side["markets"].items())
            print(f"{name:>5}{figures}  {learnt}", file=out)
        if row["recommended"]:
            print(f"  recommended: {row['recommended']}", file=out)


def episodes_text(found: BenchRow) -> str:
    """Median and range of the sessions to 90 %, or how far it came."""
    low, high = ("-" if value is None else f"{value:.0f}" for value in found["sessions_to_90_range"])
    if found["sessions_to_90"] is None:
        return f"- ({low} to {high}; came to {found['fraction_of_optimum']:.0%})"
    return f"{found['sessions_to_90']:.0f} ({low} to {high}; {found['seconds_to_90']:.0f} s)"
