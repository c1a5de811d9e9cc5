"""`bench widening`: searches over sizes in [0, 1], and what the trees of a whole process take in memory."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np

from host.artifact.networks import Agent, Sizes
from host.bench.process import BLOCK_S, NETS, Case, Row, fill, peak_mb, run_for, seconds_of
from kernels.search.config import WIDENING, new_search_config
from kernels.search.planner import plan
from kernels.search.progressive_widening import BETAS, tree_bytes
from models.export import export
from models.params import new_params

CONSIDERED = 8
_bytes: list[int] = []  # of a tree of the measuring process


def new_agent(case: Case) -> Agent:
    """Networks of random weights."""
    s = NETS[case.net]._replace(sizes=BETAS)
    return Agent(export(new_params(s, 0), s, 0), Sizes(s.features, s.position, s.latent, s.actions, s.codes))


def new_wide_search(case: Case, agent: Agent, thread: int) -> Callable[[], int]:
    """A search over any size of the entry."""
    config = new_search_config(simulations=case.n, considered=CONSIDERED, rule=WIDENING)
    planner = agent.planner(case.B, config)
    fill((planner.model.root.x, planner.noise, planner.outlook.move), thread)
    assert planner.wide is not None  # of its rule
    planner.wide.key[:] = np.arange(case.B)
    _bytes.append(tree_bytes(planner.wide))
    return partial(plan, planner)


def start(case: Case) -> None:
    """Begin of a measuring process."""
    agent = new_agent(case)
    run_for(case, [new_wide_search(case, agent, thread) for thread in range(case.threads)])


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
