"""`run_bench`: what the program costs on this box, measured now; every figure of the README comes out of here.

A figure on 1 thread is CPU time, which a busy machine disturbs little; on more threads it is wall time.  What is
compared is measured in turns within one run, and given as the median of the rounds.
"""

from __future__ import annotations

from typing import IO, Any

from host.bench.acting import bench_act, bench_memory
from host.bench.enhancements import bench_enhancements, print_enhancements
from host.bench.exogenous import bench_exogenous
from host.bench.kernels import bench_features, bench_ort, bench_selfplay
from host.bench.learn import bench_learn
from host.bench.options import BenchError, BenchOptions
from host.bench.rezero import bench_rezero
from host.bench.search import bench_search, print_search
from host.bench.widening import bench_widening
from host.console import log
from host.machine import load_average, usable_cores

BENCHES = {
    work.__name__.removeprefix("bench_"): work
    for work in (bench_search, bench_features, bench_selfplay, bench_learn, bench_act, bench_memory, bench_ort,
                 bench_widening, bench_rezero, bench_exogenous, bench_enhancements)
}  # fmt: skip


def run_bench(what: str, options: BenchOptions) -> Any:
    """The document of `bench WHAT --json`; raises BenchError on an unknown name."""
    if what not in BENCHES:
        raise BenchError(f"bench {what}: there is {', '.join(BENCHES)}")
    load, count = load_average(), usable_cores()
    busy = ": too busy to trust, more than half of the cores" if load > count / 2 else ""
    log(f"load average {load:.2f} on {count} cores{busy}")
    return BENCHES[what](options)


PRINTERS = {"search": print_search, "enhancements": print_enhancements}


def print_bench(what: str, document: Any, out: IO[str]) -> None:
    """A table for people; some benches have their own."""
    rows = document if isinstance(document, list) else [document]
    if what in PRINTERS:
        PRINTERS[what](document, out)
        return
    widths = {key: max(len(key), *(len(str(row[key])) for row in rows)) for key in rows[0]}
    print("  ".join(key.rjust(w) for key, w in widths.items()), file=out)
    for row in rows:
        print("  ".join(str(row[key]).rjust(w) for key, w in widths.items()), file=out)
