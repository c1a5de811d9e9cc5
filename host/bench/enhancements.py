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

from host.atomic import check_writable, replacing
from host.bench.enhancement_run import COST, LEARN, MARKETS, Beat, Effort, Unit, key_of, measured
from host.bench.picture import picture
from host.bench.process import Row
from host.console import Report, progress, say

Measure = Callable[[Unit, Beat], Row]


class Enhancement(NamedTuple):
    """One row: the `--set` of both sides, on top of the defaults in a market that costs the spread only."""

    name: str
    claim: str  # of the document of resource estimates
    on: tuple[str, ...] = ()
    off: tuple[str, ...] = ()
    reason: str = ""  # measured, why it is recommended; empty: it is not


GUMBEL, PUCT = "search.rule=gumbel", "search.rule=puct"
NO_REUSE, NO_SWEEP = "search.reuse=off", "train.sweep=false"
NO_MIRROR, ALONE = "train.mirror=false", "train.joint=0"
SIZES = "market.sizes=[0.2,0.4,0.6,0.8,1.0]"
ENHANCEMENTS = (
    Enhancement(
        "rezero",
        "memory -20..-40 %, CPU -50..-70 %, storage +5..10 %, cache hits 60-80 %",
        on=(GUMBEL,),
        off=(GUMBEL, NO_REUSE),
    ),
    Enhancement("rezero, market search", "as above", off=(NO_REUSE,)),
    Enhancement(
        "backward reanalyse",
        "memory +10..15 %, CPU -10..+5 %, storage +15..30 %",
        off=(NO_SWEEP,),
        reason="`planted-hard` in 1280 sessions instead of 1664, by four seeds of five instead of three",
    ),
    Enhancement(
        "gumbel",
        "memory -5..-10 %, CPU of selection -30..-40 %, storage +2..5 %",
        on=(GUMBEL,),
        off=(PUCT,),
        reason="`planted` in 576 sessions instead of 1024, `close` in 448 instead of 896, `planted-hard` at all",
    ),
    Enhancement(
        "market search",
        "none: ours, against gumbel",
        off=(GUMBEL,),
        reason="as soon as gumbel or later, but a decision in 0.6 of its time and half the tree",
    ),
    Enhancement(
        "unizero",
        "memory +15..25 %, CPU +10..20 %, storage +10..20 %, 30-50 % fewer samples",
        off=(ALONE,),
        reason="no sooner, but further: `selftest` of seeds 0 and 1 98 and 92 % of `planted-hard`, 98 and 87 without",
    ),
    Enhancement(
        "transformer",
        "memory +40..80 % (500-1200 MB), CPU +20..30 %, storage +15..25 %: defer",
        on=("network.model=transformer", ALONE),
        off=(ALONE,),
    ),
    Enhancement("transformer, unizero", "both of the above", on=("network.model=transformer",), off=(ALONE,)),
    Enhancement("sizes", "memory +20..40 %, CPU +30..50 %, storage +5..10 % (of widening)", on=(SIZES,)),
    Enhancement(
        "progressive widening",
        "memory +20..40 %, CPU +30..50 %, storage +5..10 %",
        on=("search.rule=widening",),
        off=(GUMBEL,),
    ),
    Enhancement("value prefix", "none", on=(GUMBEL, "train.value_prefix=true"), off=(GUMBEL,)),
    Enhancement("consistency", "none", on=("train.consistency=1.0",)),
    Enhancement("learned codes", "none", on=("train.codes=learned",)),
    Enhancement("bellman priority", "none", on=("train.priority=0.4",)),
    Enhancement("age cut", "none", on=("train.age_cut=0.3",)),
    Enhancement(
        "mirrored windows",
        "none: ours",
        off=(NO_MIRROR,),
        reason="`noise` (seed 1) is held 0.0 % of the bars after 2.5 minutes instead of 60 %",
    ),
    Enhancement(
        "recommended",
        "memory -150..-550 MB, CPU -65..-85 %, CLOSE learnt in 5K instead of 13K episodes",
        off=(PUCT, NO_REUSE, NO_SWEEP, NO_MIRROR, ALONE),
    ),
)
COSTS = (
    *("tree_kb", "us_per_decision", "selection_us", "us_per_decision_block", "selection_us_block"),
    *("rows_per_decision", "ms_per_step", "parameters_mb", "storage_mb"),
)
TRAINING = ("rss_anon_mb", "rss_mb", "reuse_share", "ms_per_session")
LEARNT = ("sessions_to_90", "seconds_to_90", "fraction_of_optimum", "closing_regret")
COLUMNS = {  # of the table for people
    "rss_anon_mb": "anon MB", "rss_mb": "RSS MB", "tree_kb": "tree kB", "us_per_decision": "us",
    "selection_us": "select us", "us_per_decision_block": "us (block)", "rows_per_decision": "rows",
    "reuse_share": "reuse", "ms_per_step": "ms/step", "ms_per_session": "ms/session", "parameters_mb": "param MB",
    "storage_mb": "disk MB",
}  # fmt: skip


def chosen(only: str | None) -> list[Enhancement]:
    """All, or the one of that name."""
    found = [e for e in ENHANCEMENTS if only in (None, e.name)]
    if not found:
        raise UnknownEnhancement(f"--only {only}: there is {', '.join(e.name for e in ENHANCEMENTS)}")
    return found


class UnknownEnhancement(ValueError):  # noqa: N818
    """There is nothing of this name to measure."""

    exit_code = 2


def units_of(settings: tuple[str, ...], seed: int, effort: Effort) -> list[Unit]:
    """What one variant and seed takes: its learning on all markets; its cost once, on the first market and seed."""
    kinds = [*([(COST, MARKETS[0])] if seed == 0 else []), *((LEARN, market) for market in MARKETS)]
    return [Unit(kind, market, seed, settings, effort) for kind, market in kinds]


def all_units(rows: list[Enhancement], seeds: int, effort: Effort) -> dict[str, Unit]:
    """Every unit by its key, in the order of measuring; raises ConfigError for settings that do not exist."""
    variants = dict.fromkeys(settings for e in rows for settings in (e.on, e.off))
    found = dict[str, Unit]()
    for seed, settings in product(range(seeds), variants):
        for unit in units_of(settings, seed, effort):
            found.setdefault(key_of(unit), unit)
    return found


def measure_all(units: dict[str, Unit], out: Path, report: Report, measure: Measure) -> dict[str, Row]:
    """The result of every unit by key, from its file in `out` or measured now."""
    out.mkdir(parents=True, exist_ok=True)
    files = {key: out / f"{key}.json" for key in units}
    missing = [key for key in units if not files[key].exists()]
    if len(missing) < len(units):
        say(f"{len(units) - len(missing)} of {len(units)} units are in {out}")
    for i, key in enumerate(missing):
        unit = units[key]
        text = f"{unit.kind} {unit.market} seed {unit.seed} {' '.join(unit.settings) or 'defaults'}"
        report(i / len(missing), text)
        row = measure(unit, partial(tell, report, i, len(missing), text))
        with replacing(files[key]) as file:
            file.write(json.dumps({**unit._asdict(), "result": row}, allow_nan=False).encode())
    return {key: json.loads(file.read_text(encoding="utf-8"))["result"] for key, file in files.items()}


def tell(report: Report, done: int, units: int, text: str, share: float) -> None:
    """Report that `share` of the unit after the first `done` is done."""
    report((done + share) / units, text)


def middle(values: list[float | None]) -> float | None:
    """The median, where None is worse than any number."""
    found = statistics.median(math.inf if value is None else value for value in values)
    return None if math.isinf(found) else round(found, 4)


def spread(values: list[float | None]) -> list[float | None]:
    """Least and greatest; None is the greatest."""
    known = [round(value, 4) for value in values if value is not None]
    return [min(known, default=None), None if None in values else max(known)]


def summary(settings: tuple[str, ...], seeds: int, effort: Effort, results: dict[str, Row]) -> Row:
    """One side of a row: medians over the seeds; memory and learning at the top are those of the first market."""
    found = dict[tuple[str, str], list[Row]]()
    for seed in range(seeds):
        for unit in units_of(settings, seed, effort):
            found.setdefault((unit.kind, unit.market), []).append(results[key_of(unit)])
    costs, trained = found[COST, MARKETS[0]], found[LEARN, MARKETS[0]]
    markets = dict[str, Row]()
    for market in MARKETS:
        rows = found[LEARN, market]
        medians = {name: middle([row[name] for row in rows]) for name in LEARNT}
        ranges = {f"{name}_range": spread([row[name] for row in rows]) for name in LEARNT[:2]}
        markets[market] = {**medians, **ranges, "reached": sum(row[LEARNT[0]] is not None for row in rows)}
    return {
        "settings": list(settings),
        "seeds": seeds,
        **{name: middle([row[name] for row in trained]) for name in TRAINING},
        **{name: middle([row[name] for row in costs]) for name in COSTS},
        **{name: markets[MARKETS[0]][name] for name in LEARNT[:2]},
        "weights_sha256": costs[0]["weights_sha256"],
        "markets": markets,
    }


def bench_enhancements(size: Any, measure: Measure = measured) -> list[Row]:
    """The document of `bench enhancements`, also written to `size.out` beside a picture of it."""
    rows, effort = chosen(size.only), size.effort
    check_writable(size.out, folder=True)
    with progress("bench enhancements") as report:
        results = measure_all(all_units(rows, size.seeds, effort), size.out, report, measure)
    document = [
        {
            **{"enhancement": e.name, "claim": e.claim, "recommended": e.reason or None},
            **{
                name: summary(side, size.seeds, effort, results)
                for name, side in (("on", e.on), ("off", e.off))
            },
        }
        for e in rows
    ]
    for name, text in (
        ("enhancements.json", json.dumps(document, indent=1)),
        ("enhancements.svg", picture(document)),
    ):
        with replacing(size.out / name) as file:
            file.write(text.encode())
    say(f"{size.out}: enhancements.json, enhancements.svg")
    return document


def print_enhancements(document: list[Row], out: IO[str]) -> None:
    """Two lines for each enhancement, off and on, under its claim."""
    print(" " * 5 + "".join(f"{title:>11}" for title in COLUMNS.values()) + "  sessions to 90 %", file=out)
    for row in document:
        print(f"{row['enhancement']}; claimed: {row['claim']}", file=out)
        for name in ("off", "on"):
            side = row[name]
            figures = "".join(f"{side[key]:>11.4g}" for key in COLUMNS)
            learnt = ", ".join(f"{market} {sessions_of(found)}" for market, found in side["markets"].items())
            print(f"{name:>5}{figures}  {learnt}", file=out)
        if row["recommended"]:
            print(f"  recommended: {row['recommended']}", file=out)


def sessions_of(found: Row) -> str:
    """Median and range of the sessions to 90 %, or how far it came."""
    low, high = ("-" if value is None else f"{value:.0f}" for value in found["sessions_to_90_range"])
    if found["sessions_to_90"] is None:
        return f"- ({low} to {high}; came to {found['fraction_of_optimum']:.0%})"
    return f"{found['sessions_to_90']:.0f} ({low} to {high}; {found['seconds_to_90']:.0f} s)"
