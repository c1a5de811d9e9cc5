"""`bench search`: every search beside the time of its network calls alone and, where mctx is installed, beside mctx.

Each implementation runs in a process of its own, rounds take turns, medians are given.  A figure of one thread is CPU
time.  On two threads each has a search of its own, and the CPU time of the slower one counts.  mctx is given the cores.
"""

import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from host.artifact.networks import OnnxNetworks, hypothesis_positions
from host.bench.options import BenchOptions
from host.bench.process import NETWORK_SHAPES, BenchRow, Work, clock, fill_normal, measure_in_processes
from host.console import progress
from host.machine import limit_cores
from kernels.jit import specialize
from kernels.ort import BoundGraph, check_status, evaluate, evaluate_prefilled, write_preactivation
from kernels.search.config import GUMBEL, MARKET, SearchConfig, new_search_config
from kernels.search.market_search import EXPANSION_BATCH, MAX_CALL_ROWS
from kernels.search.networks import Networks, NetworkShape
from kernels.search.planner import Planner, plan
from models.export import export
from models.params import ModelShape, new_params

# chance codes of a stochastic search, as in the paper; a deterministic one has an edge for each action
NUM_GAME_CODES = 32


class Case(NamedTuple):
    """What one process measures."""

    impl: str  # swt, network or mctx
    search: str  # of SEARCHES
    net: str  # of NETWORK_SHAPES
    B: int
    n: int  # simulations
    threads: int


def case_shape(case: Case) -> ModelShape:
    """The networks of a case; those of a game search have no positions."""
    shape = NETWORK_SHAPES[case.net]
    if case.search == "market":
        return shape
    return shape._replace(position=0, codes=NUM_GAME_CODES if case.search == "stochastic" else shape.actions)


def case_config(case: Case) -> SearchConfig:
    """The search of a case; a game search follows mctx: one code a simulation, min-max of completed Q."""
    if case.search == "market":
        return new_search_config(num_simulations=case.n, algorithm=MARKET)
    stochastic = case.search == "stochastic"
    return new_search_config(
        num_simulations=case.n, algorithm=GUMBEL, stochastic=stochastic, expectation_backup=False, rescale_values=True
    )


# Not cached: numba's own cache would not see an edit of `evaluate`, and kernels of the program live in kernels/.
@njit(nogil=True)
def evaluate_tree_networks(
    networks: Networks, preactivation: NDArray[np.float32], roots: int, calls: NDArray[np.int32]
) -> int:
    """The network calls of a tree search without its tree; calls [n, 3] as `SearchWork.rows_per_call`.

    preactivation [B, n, T] as `Tree.dynamics_preactivation`.
    """
    codes, T = networks.code_preactivation.shape
    status = evaluate(networks.root, roots)
    for i in range(calls.shape[0]):
        if calls[i, 0] > 0:
            for row in range(calls[i, 0] if T > 0 else 0):
                write_preactivation(
                    networks.dynamics, row, preactivation[row % roots, 0], networks.code_preactivation[row % codes]
                )
            status |= evaluate_prefilled(networks.dynamics, calls[i, 0], T)
        if calls[i, 1] > 0:
            status |= evaluate(networks.afterstate, calls[i, 1])
        if calls[i, 2] > 0:
            status |= evaluate(networks.afterstate_value, calls[i, 2])
    return status


@njit(nogil=True)
def evaluate_market_network(root: BoundGraph, market: BoundGraph, roots: int, calls: NDArray[np.int32]) -> int:
    """The network calls of a market search of `roots` roots, calls [waves] rows each, without a tree."""
    status = evaluate(root, roots)
    for rows in calls:
        status |= evaluate(market, rows)
    return status


def market_call_rows(B: int, n: int, codes: int) -> NDArray[np.int32]:
    """Rows of each call of a market search over B roots."""
    batches = [1] + [min(EXPANSION_BATCH, n - done) for done in range(1, n, EXPANSION_BATCH)]
    most = max(1, MAX_CALL_ROWS // codes)
    sizes = [min(most, B * batch - first) for batch in batches for first in range(0, B * batch, most)]
    return np.array(sizes, np.int32) * codes


def new_random_planner(networks: OnnxNetworks, B: int, config: SearchConfig, seed: int) -> Planner:
    """A planner with B random roots."""
    planner = networks.planner(B, config)
    fill_normal((planner.networks.root.x, planner.noise, planner.costs.move), seed)
    return planner


def new_searches(case: Case) -> list[Callable[[], int]]:
    """For each thread, a search over B roots, or the network calls of that search."""
    s, config = case_shape(case), case_config(case)
    shape = NetworkShape(s.features, s.position, s.latent, s.actions, s.codes)
    graphs = export(new_params(s, seed=0), s, *hypothesis_positions(shape, config), config.stochastic)
    networks = OnnxNetworks(graphs, shape)
    planners = [new_random_planner(networks, case.B, config, seed=thread) for thread in range(case.threads)]
    return [bind(plan, planner) if case.impl == "swt" else network_calls(planner) for planner in planners]


def network_calls(planner: Planner) -> Callable[[], int]:
    """The network calls of a search alone."""
    networks, B = planner.networks, len(planner.action)
    tree = planner.sampled_tree.tree if planner.sampled_tree is not None else planner.tree
    if tree is None:
        calls = market_call_rows(B, planner.config.num_simulations, planner.costs.move.shape[1])
        return bind(evaluate_market_network, networks.root, networks.market, B, calls)
    check_status(plan(planner))
    return bind(evaluate_tree_networks, networks, tree.dynamics_preactivation, B, planner.work.rows_per_call)


def bind(fn: Callable[..., int], *arguments: Any) -> Callable[[], int]:
    """A call of a kernel as `act` makes it."""
    return partial(specialize(fn, *arguments), *arguments)


def call_checked(call: Callable[[], int]) -> None:
    """Call a kernel; raises OrtError if a network fails."""
    check_status(call())


def new_search_work(case: Case) -> Work:
    """What the process of a case times."""
    if case.impl == "mctx":
        limit_cores(case.threads)
        from host.bench.mctx_search import new_mctx_search

        return Work([new_mctx_search(case_shape(case), case.search, case.B, case.n)], clock(case.threads), {})
    return Work([partial(call_checked, call) for call in new_searches(case)], time.thread_time, {})


def compare_impls(cases: list[Case], rounds: int) -> list[BenchRow]:
    """A row for each implementation of one search."""
    document, results = list[BenchRow](), measure_in_processes([partial(new_search_work, c) for c in cases], rounds)
    for case, result in zip(cases, results, strict=True):
        is_mctx = case.impl == "mctx"
        us = round(result.seconds * 1e6 / (case.B * (1 if is_mctx else case.threads)), 2)
        per_node = NETWORK_SHAPES[case.net].codes if case.search == "market" else 1
        # mctx evaluates both kinds of network at every node
        rows = 1 + case.n * (2 if is_mctx and case.search == "stochastic" else per_node)
        cost = {"ms": round(result.seconds * 1e3, 4), "us_per_decision": us, "rows": rows}
        document.append({**case._asdict(), **cost, "rss_mb": result.peak_mb})
    return document


def bench_search(options: BenchOptions) -> list[BenchRow]:
    """The document of `bench search`."""
    impls = ["swt", "network", *(["mctx"] if find_spec("mctx") else [])]
    grid = list(product(options.searches, options.networks, options.thread_counts, options.simulations, options.roots))
    rows = list[BenchRow]()
    with progress("bench search") as report:
        for i, (search, net, threads, n, B) in enumerate(grid):
            report(i / len(grid), f"{search} {net} B={B} n={n} threads={threads}")
            present = [impl for impl in impls if impl != "mctx" or search != "market"]
            rows += compare_impls([Case(impl, search, net, B, n, threads) for impl in present], options.rounds)
    return rows


def search_table(document: list[BenchRow]) -> list[BenchRow]:
    """A line for each case, with the ratio to the networks alone and how many times slower mctx is."""
    cases = dict[tuple[Any, ...], dict[str, BenchRow]]()
    for row in document:
        case = {key: row[key] for key in ("search", "net", "B", "n", "threads")}
        cases.setdefault(tuple(case.items()), {})[row["impl"]] = row
    table = list[BenchRow]()
    for known, impls in cases.items():
        swt, network, mctx = impls["swt"], impls["network"], impls.get("mctx")
        behind = f"{mctx['us_per_decision'] / swt['us_per_decision']:.2f}x" if mctx else ""
        cost = {"us/decision": f"{swt['us_per_decision']:.2f}", "rows": swt["rows"]}
        ratios = {"ratio to network": f"{swt['ms'] / network['ms']:.3f}", "mctx/swt": behind}
        table.append({**dict(known), **cost, **ratios, "RSS MB": f"{swt['rss_mb']:.0f}"})
    return table
