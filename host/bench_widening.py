"""`bench widening`: searches over sizes in [0, 1], and what the trees of a whole process take in memory."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np

from host.agent import row_buckets
from host.bench_search import BLOCK_S, NETS, Case, Row, fill, peak_mb, run_for, seconds_of
from kernels.gumbel import new_search_config
from kernels.ort import Session
from kernels.search import Model
from kernels.widening import HEAD, new_wide, plan_wide, tree_bytes
from models.export import export
from models.net import new_params

CONSIDERED = 8
_bytes: list[int] = []  # of a tree of the measuring process


def new_graphs(case: Case) -> dict[str, bytes]:
    """Networks of random weights: the policy head has the Beta parameters of each side behind the logits."""
    shape = NETS[case.net]
    wide = shape._replace(actions=HEAD)
    return {
        **export(new_params(wide, 0), wide, 0),
        "afterstate": export(new_params(shape, 0), shape, 0)["afterstate"],
    }


def new_wide_search(case: Case, sessions: dict[str, Session], thread: int) -> Callable[[], int]:
    """A search over any size of the entry."""
    s, B = NETS[case.net], case.B
    D, C, P = s.latent, s.codes, s.position
    widths = {
        "root": (s.features + P, D + HEAD + 1 + C, B),
        "afterstate": (D + s.actions + P, D + C + 1, B),
        "dynamics": (D + C + 2 * P, D + HEAD + 2, B * C),
    }
    nets = {name: sessions[name].bind(*w[:2], row_buckets(w[2])) for name, w in widths.items()}
    config = new_search_config(simulations=case.n, considered=CONSIDERED)
    planner, wide = new_wide(Model(**nets, market=nets["root"]), config, B, C)
    fill((planner.model.root.x, planner.noise, planner.outlook.move), thread)
    wide.key[:] = np.arange(B)
    _bytes.append(tree_bytes(planner, wide))
    return partial(plan_wide, planner, wide)


def start(case: Case) -> None:
    """Begin of a measuring process."""
    sessions = {name: Session(graph) for name, graph in new_graphs(case).items()}
    run_for(case, [new_wide_search(case, sessions, thread) for thread in range(case.threads)])


def bytes_of_a_tree() -> int:
    """Of a measuring process."""
    return _bytes[0]


def wide_row(case: Case, rounds: int) -> Row:
    """One forest of trees on all threads, in a process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn"), start, (case,)) as pool:
        once = min(pool.submit(seconds_of, 1).result() for _ in range(3))
        count = max(1, round(BLOCK_S / once))
        seconds = statistics.median(pool.submit(seconds_of, count).result() for _ in range(rounds)) / count
        tree, peak = pool.submit(bytes_of_a_tree).result(), pool.submit(peak_mb).result()
    known = {"net": case.net, "B": case.B, "n": case.n, "threads": case.threads}
    trees = case.B * case.threads
    cost = {"ms": round(seconds * 1e3, 3), "us_per_decision": round(seconds * 1e6 / trees, 2)}
    rows = 1 + case.n * (1 + NETS[case.net].codes)
    return {**known, "trees": trees, **cost, "rows": rows, "bytes_per_tree": tree, "rss_mb": peak}


def bench_widening(size: Any) -> list[Row]:
    """The document of `bench widening`."""
    forests = [(threads, B, n) for n in size.simulations for threads, B in size.forests]
    return [wide_row(Case("swt", "widening", "default", B, n, t), size.rounds) for t, B, n in forests]
