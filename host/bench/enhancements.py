"""`bench enhancements`: the cost of every enhancement on and off, and how soon the agent learns, beside the claims.

A new enhancement is a line of ENHANCEMENTS.  Jobs run in processes of their own (host/bench/enhancement_run.py).  The
result of a job is kept in a file at once: an interrupted bench goes on, and variants that resolve to the same
configuration are measured once.  All variants are measured with one seed before any is measured with the next.
"""

import json
import math
import statistics
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import NamedTuple

from host.atomic import atomic_write, check_writable
from host.bench.enhancement_run import COST, LEARN, LEARNED_MARKETS, Job, job_key, run_job
from host.bench.options import BenchError, BenchOptions, Budget
from host.bench.picture import render_svg
from host.bench.process import BenchRow, ReportProgress
from host.console import ProgressCallback, log, progress

JobRunner = Callable[[Job, ReportProgress], BenchRow]


class Enhancement(NamedTuple):
    """One row: the `--set` of both sides, over the defaults of a market whose only cost is the spread."""

    name: str
    claim: str  # of the document of resource estimates
    on: tuple[str, ...] = ()
    off: tuple[str, ...] = ()
    reason: str = ""  # why the measurements recommend it; empty if they do not


USE_GUMBEL, USE_PUCT = "search.algorithm=gumbel", "search.algorithm=puct"
NO_REUSE, NO_REANALYZE = "search.value_reuse=off", "train.reanalyze=false"
NO_MIRROR, NO_UNIZERO = "train.mirror_augmentation=false", "train.unizero_weight=0"
FIVE_SIZES = "market.position_sizes=[0.2,0.4,0.6,0.8,1.0]"
ENHANCEMENTS = (
    Enhancement("rezero", "memory -20..-40 %, CPU -50..-70 %, storage +5..10 %, cache hits 60-80 %",
                on=(USE_GUMBEL,), off=(USE_GUMBEL, NO_REUSE)),
    Enhancement("rezero, market search", "as above", off=(NO_REUSE,)),
    Enhancement("backward reanalyse", "memory +10..15 %, CPU -10..+5 %, storage +15..30 %", off=(NO_REANALYZE,),
                reason="`planted-hard` in 1280 episodes instead of 1664, by four seeds of five instead of three"),
    Enhancement("gumbel", "memory -5..-10 %, CPU of selection -30..-40 %, storage +2..5 %",
                on=(USE_GUMBEL,), off=(USE_PUCT,),
                reason="`planted` in 576 episodes instead of 1024, `close` in 448, not 896, `planted-hard` at all"),
    Enhancement("market search", "none: ours, against gumbel", off=(USE_GUMBEL,),
                reason="as soon as gumbel or later, but a decision in 0.6 of its time and half the tree"),
    Enhancement("unizero", "memory +15..25 %, CPU +10..20 %, storage +10..20 %, 30-50 % fewer samples",
                off=(NO_UNIZERO,),
                reason="no sooner, but further: `selftest` of two seeds 98, 92 % of `planted-hard`, 98, 87 without"),
    Enhancement("transformer", "memory +40..80 % (500-1200 MB), CPU +20..30 %, storage +15..25 %: defer",
                on=("network.dynamics=transformer", NO_UNIZERO), off=(NO_UNIZERO,)),
    Enhancement("transformer, unizero", "both of the above", on=("network.dynamics=transformer",), off=(NO_UNIZERO,)),
    Enhancement("sizes", "memory +20..40 %, CPU +30..50 %, storage +5..10 % (of widening)", on=(FIVE_SIZES,)),
    Enhancement("progressive widening", "memory +20..40 %, CPU +30..50 %, storage +5..10 %",
                on=("search.algorithm=widening",), off=(USE_GUMBEL,)),
    Enhancement("value prefix", "none", on=(USE_GUMBEL, "train.value_prefix=true"), off=(USE_GUMBEL,)),
    Enhancement("consistency", "none", on=("train.consistency_weight=1.0",)),
    Enhancement("learned codes", "none", on=("train.chance_codes=learned",)),
    Enhancement("bellman priority", "none", on=("train.per_alpha=0.4",)),
    Enhancement("age cut", "none", on=("train.off_policy_correction=0.3",)),
    Enhancement("mirrored windows", "none: ours", off=(NO_MIRROR,),
                reason="`noise` (seed 1) is held 0.0 % of the bars after 2.5 minutes instead of 60 %"),
    Enhancement("recommended", "memory -150..-550 MB, CPU -65..-85 %, CLOSE learnt in 5K instead of 13K episodes",
                off=(USE_PUCT, NO_REUSE, NO_REANALYZE, NO_MIRROR, NO_UNIZERO)),
)  # fmt: skip
COST_KEYS = (
    *("tree_kb", "us_per_decision", "selection_us", "us_per_decision_block", "selection_us_block"),
    *("rows_per_decision", "ms_per_step", "parameters_mb", "storage_mb"),
)
TRAINING_KEYS = ("rss_anon_mb", "rss_mb", "reuse_share", "ms_per_episode")
LEARNING_KEYS = ("episodes_to_90", "seconds_to_90", "fraction_of_optimum", "closing_regret")
TABLE_COLUMNS = {  # of the table for people
    "rss_anon_mb": "anon MB", "rss_mb": "RSS MB", "tree_kb": "tree kB", "us_per_decision": "us",
    "selection_us": "select us", "us_per_decision_block": "us (block)", "rows_per_decision": "rows",
    "reuse_share": "reuse", "ms_per_step": "ms/step", "ms_per_episode": "ms/episode", "parameters_mb": "param MB",
    "storage_mb": "disk MB",
}  # fmt: skip


def select(only: str | None) -> list[Enhancement]:
    """All enhancements, or the one of that name; raises BenchError if there is none."""
    selected = [e for e in ENHANCEMENTS if only in (None, e.name)]
    if not selected:
        raise BenchError(f"--only {only}: there is {', '.join(e.name for e in ENHANCEMENTS)}")
    return selected


def variant_jobs(settings: tuple[str, ...], seed: int, budget: Budget) -> list[Job]:
    """The jobs of one variant and seed: its learning on all markets; its cost once, on the first market and seed."""
    kinds = [*([(COST, LEARNED_MARKETS[0])] if seed == 0 else []), *((LEARN, market) for market in LEARNED_MARKETS)]
    return [Job(kind, market, seed, settings, budget) for kind, market in kinds]


def all_jobs(rows: list[Enhancement], seeds: int, budget: Budget) -> dict[str, Job]:
    """Every job by its key, in the order of measuring; raises ConfigError for settings that do not exist."""
    variants = dict.fromkeys(settings for e in rows for settings in (e.on, e.off))
    jobs = dict[str, Job]()
    for seed, settings in product(range(seeds), variants):
        for job in variant_jobs(settings, seed, budget):
            jobs.setdefault(job_key(job), job)
    return jobs


def run_jobs(jobs: dict[str, Job], out: Path, report: ProgressCallback, runner: JobRunner) -> dict[str, BenchRow]:
    """The result of every job by key, from its file in `out` or measured now."""
    out.mkdir(parents=True, exist_ok=True)
    files = {key: out / f"{key}.json" for key in jobs}
    missing = [key for key in jobs if not files[key].exists()]
    if len(missing) < len(jobs):
        log(f"{len(jobs) - len(missing)} of {len(jobs)} jobs are in {out}")
    for i, key in enumerate(missing):
        job = jobs[key]
        text = f"{job.kind} {job.market} seed {job.seed} {' '.join(job.settings) or 'defaults'}"
        report(i / len(missing), text)
        row = runner(job, lambda share, i=i, text=text: report((i + share) / len(missing), text))  # type: ignore[misc]
        with atomic_write(files[key]) as file:
            file.write(json.dumps({**job._asdict(), "result": row}, allow_nan=False).encode())
    return {key: json.loads(file.read_text(encoding="utf-8"))["result"] for key, file in files.items()}


def median(values: list[float | None]) -> float | None:
    """The median, where None is worse than any number."""
    middle = statistics.median(math.inf if value is None else value for value in values)
    return None if math.isinf(middle) else round(middle, 4)


def value_range(values: list[float | None]) -> list[float | None]:
    """[least, greatest], where None is greater than any number."""
    numbers = [round(value, 4) for value in values if value is not None]
    return [min(numbers, default=None), None if None in values else max(numbers)]


def summarize_side(settings: tuple[str, ...], seeds: int, budget: Budget, results: dict[str, BenchRow]) -> BenchRow:
    """One side of a row: medians over the seeds; memory and learning at the top are those of the first market."""
    rows = dict[tuple[str, str], list[BenchRow]]()
    for seed in range(seeds):
        for job in variant_jobs(settings, seed, budget):
            rows.setdefault((job.kind, job.market), []).append(results[job_key(job)])
    costs, trained = rows[COST, LEARNED_MARKETS[0]], rows[LEARN, LEARNED_MARKETS[0]]
    markets = {market: summarize_market(rows[LEARN, market]) for market in LEARNED_MARKETS}
    return {
        "settings": list(settings),
        "seeds": seeds,
        **{name: median([row[name] for row in trained]) for name in TRAINING_KEYS},
        **{name: median([row[name] for row in costs]) for name in COST_KEYS},
        **{name: markets[LEARNED_MARKETS[0]][name] for name in LEARNING_KEYS[:2]},
        "weights_sha256": costs[0]["weights_sha256"],
        "markets": markets,
    }


def summarize_market(rows: list[BenchRow]) -> BenchRow:
    """How soon a variant learns one market: medians and ranges over the seeds."""
    medians = {name: median([row[name] for row in rows]) for name in LEARNING_KEYS}
    ranges = {f"{name}_range": value_range([row[name] for row in rows]) for name in LEARNING_KEYS[:2]}
    return {**medians, **ranges, "reached": sum(row[LEARNING_KEYS[0]] is not None for row in rows)}


def bench_enhancements(options: BenchOptions, runner: JobRunner = run_job) -> list[BenchRow]:
    """The document of `bench enhancements`, also written to `options.out` with a picture of it."""
    rows, budget = select(options.only), options.budget
    check_writable(options.out, folder=True)
    with progress("bench enhancements") as report:
        results = run_jobs(all_jobs(rows, options.seeds, budget), options.out, report, runner)
    document = list[BenchRow]()
    for e in rows:
        on, off = (summarize_side(side, options.seeds, budget, results) for side in (e.on, e.off))
        document.append(
            {"enhancement": e.name, "claim": e.claim, "recommended": e.reason or None, "on": on, "off": off}
        )
    files = {"enhancements.json": json.dumps(document, indent=1), "enhancements.svg": render_svg(document)}
    for name, text in files.items():
        with atomic_write(options.out / name) as file:
            file.write(text.encode())
    log(f"{options.out}: {', '.join(files)}")
    return document


def enhancement_table(document: list[BenchRow]) -> list[BenchRow | str]:
    """For each enhancement a line of its claim, two rows of figures, off and on, and why it is recommended."""
    table = list[BenchRow | str]()
    for row in document:
        table.append(f"{row['enhancement']}; claimed: {row['claim']}")
        for name in ("off", "on"):
            side = row[name]
            figures = {title: f"{side[key]:.4g}" for key, title in TABLE_COLUMNS.items()}
            learnt = ", ".join(f"{market} {episodes_text(result)}" for market, result in side["markets"].items())
            table.append({"": name, **figures, "episodes to 90 %": learnt})
        if row["recommended"]:
            table.append(f"recommended: {row['recommended']}")
    return table


def episodes_text(result: BenchRow) -> str:
    """Median and range of the episodes to 90 %, or the fraction of the optimum that was reached."""
    low, high = ("-" if value is None else f"{value:.0f}" for value in result["episodes_to_90_range"])
    if result["episodes_to_90"] is None:
        return f"- ({low} to {high}; came to {result['fraction_of_optimum']:.0%})"
    return f"{result['episodes_to_90']:.0f} ({low} to {high}; {result['seconds_to_90']:.0f} s)"
