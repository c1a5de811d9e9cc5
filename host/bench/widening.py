"""`bench widening`: searches over sizes in [0, 1], and what the trees of a whole process take in memory."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np

from host.artifact.networks import OnnxNetworks
from host.bench.process import (
    MIN_BLOCK_S,
    NETWORK_SHAPES,
    BenchRow,
    Case,
    fill_normal,
    install_calls,
    measure_seconds,
    peak_rss_mb,
)
from kernels.search.config import WIDENING, new_search_config
from kernels.search.networks import NetworkShape
from kernels.search.planner import plan
from kernels.search.progressive_widening import NUM_BETA_PARAMS, sampled_tree_bytes
from models.export import export
from models.params import new_params

MAX_CONSIDERED_ACTIONS = 8
_tree_bytes: list[int] = []  # of a tree of the measuring process


def new_random_agent(case: Case) -> OnnxNetworks:
    """Networks of random weights."""
    s = NETWORK_SHAPES[case.net]._replace(num_beta_params=NUM_BETA_PARAMS)
    return OnnxNetworks(
        export(new_params(s, 0), s, 0), NetworkShape(s.features, s.position, s.latent, s.actions, s.codes)
    )


def new_widening_search(case: Case, agent: OnnxNetworks, thread: int) -> Callable[[], int]:
    """A search over any size of the entry."""
    config = new_search_config(
        num_simulations=case.n, max_considered_actions=MAX_CONSIDERED_ACTIONS, algorithm=WIDENING
    )
    planner = agent.planner(case.B, config)
    fill_normal((planner.networks.root.x, planner.noise, planner.costs.move), thread)
    assert planner.sampled_tree is not None  # of its rule
    planner.sampled_tree.rng_key[:] = np.arange(case.B)
    _tree_bytes.append(sampled_tree_bytes(planner.sampled_tree))
    return partial(plan, planner)


def init_widening_process(case: Case) -> None:
    """Begin of a measuring process."""
    agent = new_random_agent(case)
    install_calls(case, [new_widening_search(case, agent, thread) for thread in range(case.threads)])


def measured_tree_bytes() -> int:
    """Of a measuring process."""
    return _tree_bytes[0]


def widening_row(case: Case, rounds: int) -> BenchRow:
    """One forest of trees on all threads, in a process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn"), init_widening_process, (case,)) as pool:
        once = min(pool.submit(measure_seconds, 1).result() for _ in range(3))
        count = max(1, round(MIN_BLOCK_S / once))
        seconds = statistics.median(pool.submit(measure_seconds, count).result() for _ in range(rounds)) / count
        tree, peak = pool.submit(measured_tree_bytes).result(), pool.submit(peak_rss_mb).result()
    known = {"net": case.net, "B": case.B, "n": case.n, "threads": case.threads}
    trees = case.B * case.threads
    cost = {"ms": round(seconds * 1e3, 3), "us_per_decision": round(seconds * 1e6 / trees, 2)}
    rows = 1 + case.n * (1 + NETWORK_SHAPES[case.net].codes)
    return {**known, "trees": trees, **cost, "rows": rows, "bytes_per_tree": tree, "rss_mb": peak}


def bench_widening(options: Any) -> list[BenchRow]:
    """The document of `bench widening`."""
    forests = [(threads, B, n) for n in options.simulations for threads, B in options.forests]
    return [widening_row(Case("swt", "widening", "default", B, n, t), options.rounds) for t, B, n in forests]
