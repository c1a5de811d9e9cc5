"""`run_bench`: what the program costs on this machine, measured now; every figure of README.md here comes from it.

A figure on 1 thread is CPU time, which a busy machine disturbs little; on more threads it is wall time.  What is
compared is measured in turns within one run, and given as the median of the rounds.
"""

from collections.abc import Callable
from typing import IO, Any

from host.bench.acting import bench_act, bench_memory
from host.bench.enhancements import bench_enhancements, enhancement_table
from host.bench.environments import bench_environments
from host.bench.exogenous import bench_exogenous
from host.bench.kernels import bench_features, bench_ort, bench_selfplay
from host.bench.learn import bench_learn
from host.bench.options import BenchError, BenchOptions
from host.bench.ppo import bench_ppo, rival_table
from host.bench.process import BenchRow
from host.bench.ray import bench_ray, ray_table
from host.bench.reading import bench_read
from host.bench.readme import markdown_table
from host.bench.rezero import bench_rezero
from host.bench.search import bench_search, search_table
from host.bench.start import bench_phases, bench_start
from host.bench.widening import bench_widening
from host.console import log
from host.machine import load_average, usable_cores

BENCHES = {
    bench.__name__.removeprefix("bench_"): bench
    for bench in (bench_search, bench_features, bench_selfplay, bench_learn, bench_act, bench_start, bench_phases,
                  bench_read, bench_memory, bench_ort, bench_widening, bench_rezero, bench_exogenous,
                  bench_enhancements, bench_ppo, bench_ray, bench_environments)
}  # fmt: skip
Table = Callable[[list[BenchRow]], list[Any]]  # rows of a document to lines of a table, (title -> cell) or a heading
TABLES: dict[str, Table] = {
    "search": search_table,
    "enhancements": enhancement_table,
    "ppo": rival_table,
    "ray": ray_table,
}


def run_bench(what: str, options: BenchOptions) -> Any:
    """The document of `bench WHAT --json`; raises BenchError on an unknown name."""
    if what not in BENCHES:
        raise BenchError(f"bench {what}: there is {', '.join(BENCHES)}")
    load, count = load_average(), usable_cores()
    busy = ": too busy to trust, more than half of the cores" if load > count / 2 else ""
    log(f"load average {load:.2f} on {count} cores{busy}")
    return BENCHES[what](options)


def print_bench(what: str, document: Any, out: IO[str], command: str | None = None) -> None:
    """A table for people; with a `command`, Markdown under the command that measured it."""
    rows = document if isinstance(document, list) else [document]
    table = TABLES.get(what, flatten)(rows)
    lines = [line if isinstance(line, str) else {key: str(cell) for key, cell in line.items()} for line in table]
    titles = next([*line] for line in lines if isinstance(line, dict))
    if command is None:
        widths = [max(len(line[t]) for line in [{t: t}, *lines] if isinstance(line, dict)) for t in titles]
        print("  ".join(map(str.rjust, titles, widths)), file=out)
        for line in lines:
            print(line if isinstance(line, str) else "  ".join(map(str.rjust, line.values(), widths)), file=out)
    else:
        print(f"`{command}`\n\n{markdown_table(lines)}", end="", file=out)


def flatten(rows: list[BenchRow]) -> list[Any]:
    """Rows with the cells of inner rows beside their own: {"a": {"b": 1}} becomes {"a b": 1}."""
    pairs = [[(k, v if isinstance(v, dict) else {"": v}) for k, v in row.items()] for row in rows]
    return [{f"{k} {name}".rstrip(): cell for k, v in row for name, cell in v.items()} for row in pairs]
