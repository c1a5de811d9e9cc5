"""`bench enhancements`: the cost of every enhancement on and off, and its learning curves, beside the claims.

A new enhancement is a line of FIRST or LATER.  Jobs run in processes of their own (host/bench/enhancement_run.py).  A
line of RESULTS keeps the result of a job at once: the bench is measured in as many calls as it takes, and variants that
resolve to the same configuration are measured once.  The costs come first, one at a time on this machine,
which does nothing else then.  The CPU time of a learning curve is its episodes times the cost of one.
"""

import json
import math
import statistics
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain, product
from operator import itemgetter
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from host.atomic import atomic_write, check_writable
from host.bench.curves import AXES, crossing, median, render_curves, summarize_curves, value_range
from host.bench.enhancement_run import (
    COST,
    LEARN,
    LEARNED_MARKETS,
    MEASURES,
    Job,
    job_key,
    measure_job,
    program_version,
    run_job,
)
from host.bench.job_results import add_result, read_results
from host.bench.options import BenchError, BenchOptions, Budget
from host.bench.process import BenchRow
from host.bench.readme import markdown_table
from host.cluster.cluster import ClusterError, open_cluster
from host.cluster.jobs import ClusterJobs
from host.console import ProgressCallback, log, progress
from host.processes import ReportProgress, run_at_once
from host.stop import hint_on_stop

JobRunner = Callable[[Job, ReportProgress], BenchRow]


class Enhancement(NamedTuple):
    """One row: the `--set` of both sides, over the settings of a market whose only cost is the spread."""

    name: str
    claim: str  # of the document of resource estimates
    on: tuple[str, ...] = ()
    off: tuple[str, ...] = ()
    needed_on: str = ""  # the market that needs it, if one does
    there: tuple[str, ...] = ()  # what both sides have there besides

    @property
    def markets(self) -> tuple[str, ...]:
        """The markets that it is measured on."""
        return (*LEARNED_MARKETS, *filter(None, [self.needed_on]))


def search_of(algorithm: str, value_reuse: str) -> tuple[str, str]:
    """The settings of a search and of what a reanalysis takes from the search of the next bar."""
    return f"search.algorithm={algorithm}", f"search.value_reuse={value_reuse}"


GUMBEL_OFF, GUMBEL, GUMBEL_ARM = (search_of("gumbel", reuse) for reuse in ("off", "chance_child", "known_arm"))
PUCT_OFF, PUCT, PUCT_ARM = (search_of("puct", reuse) for reuse in ("off", "chance_child", "known_arm"))
MARKET_OFF, LEARNED = search_of("market", "off"), "train.chance_codes=learned"
NO_REANALYZE, NO_MIRROR = "train.reanalyze=false", "train.mirror_augmentation=false"
NO_UNIZERO, SEQUENCE = "train.unizero_weight=0", ("network.dynamics=transformer", "network.context=6")
LITTLE_UNIZERO = "train.unizero_weight=0.03"  # more of it comes before what the transformer is to learn
FULL_SIZE, SIZES = "market.position_sizes=[1.0]", "market.position_sizes=[0.2,0.4,0.6,0.8,1.0]"
KEPT_SIZES, RESIZING = ("market.position_adjustment=false", SIZES), ("market.position_adjustment=true", SIZES)
SIZES_HELD = "train.random_episodes=8"  # widening learns of held sizes alone
HALF_REALISED = "train.search_value_weight=0.5"  # the age cut shortens the return of realised rewards
REZERO = "memory -20..-40 %, CPU -50..-70 %, storage +5..10 %, cache hits 60-80 %"
WIDENING = "memory +20..40 %, CPU +30..50 %, storage +5..10 %"
FIRST = (  # measured before LATER
    Enhancement("gumbel", "memory -5..-10 %, CPU of selection -30..-40 %, storage +2..5 %", GUMBEL, PUCT),
    Enhancement("market search", "none: ours, against gumbel", off=GUMBEL),
    Enhancement("rezero, gumbel", f"{REZERO}; here unbiased", GUMBEL, GUMBEL_OFF),
    Enhancement("rezero as published, gumbel", REZERO, GUMBEL_ARM, GUMBEL_OFF),
    Enhancement("rezero, puct", f"{REZERO}; here unbiased", PUCT, PUCT_OFF),
    Enhancement("rezero as published, puct", REZERO, PUCT_ARM, PUCT_OFF),
    Enhancement("one tree a bar", f"{REZERO}; here exact", off=MARKET_OFF),
    Enhancement("rezero, market search", f"{REZERO}; here unbiased", search_of("market", "chance_child"), MARKET_OFF),
    Enhancement("backward reanalyse", "memory +10..15 %, CPU -10..+5 %, storage +15..30 %", off=(NO_REANALYZE,)),
    Enhancement("mirrored windows", "none: ours", off=(NO_MIRROR,)),
    Enhancement("acting by q", "none: ours", off=("search.c_scale=1",)),
)
LATER = (
    Enhancement("unizero", "memory +15..25 %, CPU +10..20 %, storage +10..20 %, 30-50 % fewer samples",
                off=(NO_UNIZERO,), needed_on="sparse"),
    Enhancement("transformer", "memory +40..80 % (500-1200 MB), CPU +20..30 %, storage +15..25 %: defer",
                (*SEQUENCE, NO_UNIZERO), (NO_UNIZERO,), "memory"),
    Enhancement("transformer, unizero", "both of the above", (*SEQUENCE, LITTLE_UNIZERO), (NO_UNIZERO,), "memory"),
    Enhancement("sizes", f"{WIDENING} (of widening)", KEPT_SIZES, (KEPT_SIZES[0], FULL_SIZE), "risk"),
    Enhancement("resizing", "none: ours", RESIZING, KEPT_SIZES, "risk"),
    Enhancement("risk term", "none: ours", ("market.risk_aversion=0.7",), ("market.risk_aversion=0",), "risk"),
    Enhancement("progressive widening", WIDENING, ("search.algorithm=widening", FULL_SIZE, SIZES_HELD),
                (*GUMBEL_OFF, FULL_SIZE), "risk", ("train.random_episodes=16", "search.num_simulations=128")),
    Enhancement("value prefix", "none", (*GUMBEL, "train.value_prefix=true"), GUMBEL, "delayed"),
    Enhancement("consistency", "none", ("train.consistency_weight=2.0", NO_UNIZERO), (NO_UNIZERO,), "sparse"),
    Enhancement("learned codes", "none", (LEARNED,), (), "jumps", ("network.num_chance_codes=16",)),
    Enhancement("bellman priority", "none", ("train.per_alpha=0.6",), needed_on="sparse"),
    Enhancement("age cut", "none", (HALF_REALISED, "train.off_policy_correction=0.5"), (HALF_REALISED,), "stale"),
    Enhancement("newer bars more often", "none: ours", ("train.bar_half_life=10000",), needed_on="stale"),
    Enhancement("recommended", "memory -150..-550 MB, CPU -65..-85 %, CLOSE learnt in 5K instead of 13K episodes",
                off=(*PUCT_OFF, NO_REANALYZE, NO_MIRROR, NO_UNIZERO)),
)  # fmt: skip
ENHANCEMENTS = FIRST + LATER
RESULTS = "enhancements.jsonl"
END_KEYS = (*MEASURES, "fraction_of_optimum")
TABLE_COLUMNS = {  # of the table for people
    "rss_anon_mb": "anon MB", "tree_kb": "tree kB", "us_per_decision": "us", "selection_us": "select us",
    "rows_per_decision": "rows", "reuse_share": "reuse", "ms_per_step": "ms/step", "ms_per_episode": "ms/episode",
    "storage_mb": "disk MB",
}  # fmt: skip
COST_KEYS = (*TABLE_COLUMNS, "rss_mb")


def select(only: str | None) -> list[Enhancement]:
    """All enhancements, or the one of that name; raises BenchError if there is none."""
    selected = [e for e in ENHANCEMENTS if only in (None, e.name)]
    if not selected:
        raise BenchError(f"--only {only}: there is {', '.join(e.name for e in ENHANCEMENTS)}")
    return selected


def variant_jobs(e: Enhancement, settings: tuple[str, ...], seed: int, budget: Budget) -> list[Job]:
    """The jobs of one side and seed: learning on all markets; with seed 0 the costs, one for all LEARNED_MARKETS."""
    costly = e.markets[0], *filter(None, [e.needed_on])
    kinds = [*((COST, market) for market in costly if seed == 0), *((LEARN, market) for market in e.markets)]
    besides = {e.needed_on: e.there}
    return [Job(kind, market, seed, settings + besides.get(market, ()), budget) for kind, market in kinds]


def all_jobs(rows: list[Enhancement], seeds: int, budget: Budget) -> dict[str, Job]:
    """Every job by its key, in the order of measuring; raises ConfigError for settings that do not exist.

    First the costs, then the markets that need an enhancement, then those of FIRST, then of LATER; each seed by seed.
    """
    jobs, found = dict[str, Job](), list[tuple[int, int, Job]]()
    for seed, e in product(range(seeds), rows):
        for job in chain(*(variant_jobs(e, settings, seed, budget) for settings in (e.on, e.off))):
            turn = 0 if job.kind == COST else 1 if job.market == e.needed_on else 2 + (e in LATER)
            found.append((turn, seed, job))
    for *_, job in sorted(found, key=itemgetter(0, 1)):
        jobs.setdefault(job_key(job), job)
    return jobs


def read_measured(jobs: dict[str, Job], out: Path) -> dict[str, BenchRow]:
    """The results of those of the jobs that are measured, by key."""
    return {key: row for key, row in read_results(out / RESULTS).items() if key in jobs}


def how_far(jobs: dict[str, Job], out: Path, processes: int) -> str:
    """How many jobs are measured, and about how long the others take, by the mean of their kind."""
    kept, at_once = read_measured(jobs, out), {COST: 1, LEARN: processes}
    times = {kind: [row["wall_s"] for row in kept.values() if row["kind"] == kind] for kind in at_once}
    seconds = {kind: statistics.fmean(times[kind] or [math.nan]) / most for kind, most in at_once.items()}
    left = sum(seconds[job.kind] for key, job in jobs.items() if key not in kept)
    wait_text = f", the others take about {left / 60:.0f} minutes" if left > 0 else ""
    return f"{len(kept)} of {len(jobs)} jobs are measured{wait_text}"


def run_jobs(
    jobs: dict[str, Job],
    options: BenchOptions,
    report: ProgressCallback,
    runner: JobRunner,
    nodes: ClusterJobs | None = None,
) -> None:
    """Measure what has no line: costs by `runner`, one at a time; then curves, by `nodes` if given, many at once.

    No job begins after the limit.  A line has the job, its result, and the program and the wall time that made it.
    """
    kept, writing = read_measured(jobs, options.out), Lock()
    left = {key: job for key, job in jobs.items() if key not in kept}
    costs = {key for key, job in left.items() if job.kind == COST}

    room, run = (nodes.room, nodes.run) if nodes else (lambda: options.jobs, runner)

    def measure(job: Job, report_progress: ReportProgress) -> BenchRow:
        return (runner if job.kind == COST else run)(job, report_progress)

    def keep(key: str, row: BenchRow, seconds: float) -> None:
        whole = {**jobs[key]._asdict(), "wall_s": seconds, "program": program_version(), "result": row}
        with writing:
            add_result(options.out / RESULTS, key, whole)
        costs.discard(key)

    def show(shares: dict[str, float]) -> None:
        running = [f"{jobs[key].market} {jobs[key].seed}" for key, share in shares.items() if 0 < share < 1]
        report(sum(shares.values()) / len(shares), ", ".join(running))

    limit_s = math.inf if options.limit_minutes is None else 60 * options.limit_minutes
    run_at_once(left, lambda: 1 if costs else room(), measure, keep, show, limit_s)


def summarize_side(
    e: Enhancement, settings: tuple[str, ...], options: BenchOptions, results: dict[str, BenchRow]
) -> BenchRow:
    """One side of a row: the costs on the first market, medians over the seeds of all; None is not measured."""
    rows: dict[tuple[str, str], list[BenchRow]] = {pair: [] for pair in product((COST, LEARN), e.markets)}
    for seed in range(options.seeds):
        for job in variant_jobs(e, settings, seed, options.budget):
            rows[job.kind, job.market] += [results[key] for key in [job_key(job)] if key in results]
    costs = {m: next(iter(rows[COST, m if m == e.needed_on else e.markets[0]]), {}) for m in e.markets}
    return {
        "settings": list(settings),
        **{name: costs[e.markets[0]].get(name) for name in (*COST_KEYS, "weights_sha256")},
        "markets": {market: summarize_market(rows[LEARN, market], costs[market]) for market in e.markets},
    }


def summarize_market(rows: list[BenchRow], cost: BenchRow) -> BenchRow:
    """How soon a variant learns one market, whose episodes have this `cost`: medians and ranges over the seeds."""
    if not rows or not cost:
        return {"seeds": 0}
    summary, seconds = dict[str, Any](), cost["ms_per_episode"] / 1e3
    curves = [row["curve"] | {"seconds": [seconds * count for count in row["curve"]["episodes"]]} for row in rows]
    figures = {f"{axis}_to_90": [crossing(curve, axis) for curve in curves] for axis in AXES}
    figures |= {name: [row["end"][name] for row in rows] for name in END_KEYS}
    for name, values in figures.items():
        summary |= {name: median(values), f"{name}_range": value_range(values)}
    return {"seeds": len(rows), **summary, **{axis: summarize_curves(curves, axis) for axis in AXES}}


@hint_on_stop(ClusterError)
def bench_enhancements(options: BenchOptions, runner: JobRunner = run_job) -> list[BenchRow]:
    """The document of `bench enhancements`, written to `options.out` too, with its table and its pictures."""
    rows, out, document = select(options.only), options.out, list[BenchRow]()
    check_writable(out, folder=True)
    out.mkdir(parents=True, exist_ok=True)
    jobs = all_jobs(rows, options.seeds, options.budget)
    with ExitStack() as stack:
        nodes: ClusterJobs | None = None
        if options.ray:
            nodes = ClusterJobs(stack.enter_context(open_cluster(options.ray, options.actors)), measure_job)
            options = replace(options, jobs=nodes.room())
        log(f"{out}, program {program_version()}: {how_far(jobs, out, options.jobs)}")
        run_jobs(jobs, options, stack.enter_context(progress("bench enhancements")), runner, nodes)
    log(how_far(jobs, out, options.jobs))
    results = {key: row["result"] for key, row in read_measured(jobs, out).items()}
    for e in rows:
        on, off = (summarize_side(e, side, options, results) for side in (e.on, e.off))
        document.append({"enhancement": e.name, "claim": e.claim, "seeds": options.seeds, "on": on, "off": off})
    texts, measured = {"enhancements.json": json.dumps(document, indent=1)}, [*filter(is_measured, document)]
    if measured:
        texts |= {f"{axis}.svg": render_curves(measured, axis) for axis in AXES}
        texts["enhancements.md"] = markdown_table(enhancement_table(document))
    for name, text in texts.items():
        with atomic_write(out / name) as file:
            file.write(text.encode())
    return document


def is_measured(row: BenchRow) -> bool:
    """Whether both sides have been measured on a market, with a seed at least."""
    on, off = (row[side]["markets"] for side in ("on", "off"))
    return any(on[market]["seeds"] and off[market]["seeds"] for market in on)


def enhancement_table(document: list[BenchRow]) -> list[BenchRow | str]:
    """For each enhancement a line of its claim and two rows of figures, off and on; what is not measured says so."""
    table = list[BenchRow | str]()
    for row in document:
        if not is_measured(row):
            continue
        table.append(f"{row['enhancement']}; claimed: {row['claim']}")
        for name in ("off", "on"):
            side = row[name]
            cells = {market: learnt_text(result, row["seeds"]) for market, result in side["markets"].items()}
            learnt = {market: cells.pop(market) for market in LEARNED_MARKETS}
            learnt["needed on"] = "".join(f"{market}: {cell}" for market, cell in cells.items())
            figures = {title: "" if side[key] is None else f"{side[key]:.4g}" for key, title in TABLE_COLUMNS.items()}
            table.append({"": name, **learnt, **figures})
    missing = "; ".join(row["enhancement"] for row in document if not is_measured(row))
    note = [f"not measured yet: {missing}"] if missing else []
    return [*table, *note] if table else [{"": text} for text in note]


def learnt_text(result: BenchRow, seeds: int) -> str:
    """Medians and ranges of one market: episodes to 90 % of the optimum, their CPU seconds; the fraction at the end."""
    if not result["seeds"]:
        return "not measured yet"
    low, high = result["expected_fraction_range"]
    reached = f"{spread_text(result, 'episodes_to_90')} episodes, {spread_text(result, 'seconds_to_90')} s"
    few = f" ({result['seeds']} of {seeds} seeds)" if result["seeds"] < seeds else ""
    return f"{reached}; {result['expected_fraction']:.0%} [{low:.0%} to {high:.0%}]{few}"


def spread_text(result: BenchRow, name: str) -> str:
    """Median [least-greatest]; the greatest is left out where a seed did not get there, and the median is `-`."""
    middle, low, high = ("" if v is None else f"{v:.0f}" for v in (result[name], *result[f"{name}_range"]))
    return f"{middle or '-'} [{low}-{high}]" if low else "-"
