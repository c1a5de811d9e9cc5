"""`bench search`: every search beside the time of its network calls alone and, where mctx is installed, beside mctx.

Each implementation runs in a process of its own, rounds interleaved, medians given.  Figures of one thread are CPU
time; of two, each thread has a search of its own and the slower one's CPU time counts.  mctx is given the cores.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from itertools import product
from multiprocessing import get_context
from typing import IO, Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from host.artifact.networks import OnnxNetworks, hypothesis_positions
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
from host.console import progress
from host.machine import limit_cores
from kernels.jit import specialize
from kernels.ort import BoundGraph, check_status, evaluate, evaluate_prefilled, write_preactivation
from kernels.search.config import GUMBEL, MARKET, SearchConfig, new_search_config
from kernels.search.market_search import EXPANSION_BATCH, MAX_CALL_ROWS
from kernels.search.networks import Networks, NetworkShape
from kernels.search.planner import Planner, plan
from models.params import ModelShape, new_params

SEARCHES = ("gumbel", "stochastic", "market")
NUM_GAME_CODES = (
    32  # chance codes of a stochastic search, as in the paper; a deterministic one has an edge for each action
)


def case_shape(case: Case) -> ModelShape:
    """The networks of a case: those of a game, without positions, but for the market search."""
    shape = NETWORK_SHAPES[case.net]
    if case.search == "market":
        return shape
    return shape._replace(position=0, codes=NUM_GAME_CODES if case.search == "stochastic" else shape.actions)


def case_config(case: Case) -> SearchConfig:
    """The search of a case; those of a game follow mctx: one code a simulation, min-max of completed Q."""
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
    """The network calls of a tree search, calls [n, 3] as in `Work`, without a tree; shared [B, n, T] as in `Tree`."""
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
    waves = [1] + [min(EXPANSION_BATCH, n - done) for done in range(1, n, EXPANSION_BATCH)]
    most = max(1, MAX_CALL_ROWS // codes)
    sizes = [min(most, B * wave - first) for wave in waves for first in range(0, B * wave, most)]
    return np.array(sizes, np.int32) * codes


def new_random_planner(case: Case, agent: OnnxNetworks, seed: int) -> Planner:
    """A planner with random roots."""
    planner = agent.planner(case.B, case_config(case))
    fill_normal((planner.networks.root.x, planner.noise, planner.costs.move), seed)
    return planner


def new_searches(case: Case) -> list[Callable[[], int]]:
    """For each thread, a search over B roots, or the network calls it makes."""
    from models.export import export

    s, config = case_shape(case), case_config(case)
    sizes = NetworkShape(s.features, s.position, s.latent, s.actions, s.codes)
    graphs = export(new_params(s, seed=0), s, *hypothesis_positions(sizes, config), config.stochastic)
    agent = OnnxNetworks(graphs, sizes)
    planners = [new_random_planner(case, agent, thread) for thread in range(case.threads)]
    if case.impl == "swt":
        return [bind(plan, planner) for planner in planners]
    return [network_calls(planner) for planner in planners]


def network_calls(planner: Planner) -> Callable[[], int]:
    """The network calls of a search alone."""
    model, B = planner.networks, len(planner.action)
    if planner.tree is None:
        calls = market_call_rows(B, planner.config.num_simulations, planner.costs.move.shape[1])
        return bind(evaluate_market_network, model.root, model.market, B, calls)
    check_status(plan(planner))
    return bind(evaluate_tree_networks, model, planner.tree.dynamics_preactivation, B, planner.work.rows_per_call)


def bind(fn: Callable[..., int], *arguments: Any) -> Callable[[], int]:
    """A call of a kernel as `act` makes them."""
    return partial(specialize(fn, *arguments), *arguments)


def init_search_process(case: Case) -> None:
    """Begin of a measuring process."""
    if case.impl == "mctx":
        limit_cores(case.threads)
        from host.bench.mctx_search import new_mctx_search

        install_calls(case, [new_mctx_search(case_shape(case), case.search, case.B, case.n)])
    else:
        install_calls(case, new_searches(case))


def decision_rows(case: Case) -> int:
    """Network rows of a decision: mctx evaluates both kinds of network at every node."""
    if case.search == "market":
        return 1 + case.n * NETWORK_SHAPES[case.net].codes
    return 1 + case.n * (2 if case.impl == "mctx" and case.search == "stochastic" else 1)


def compare_impls(cases: list[Case], rounds: int) -> list[BenchRow]:
    """Implementations of one search, each in a process of its own, turn by turn."""
    with ExitStack() as stack:
        new = partial(ProcessPoolExecutor, 1, get_context("spawn"), init_search_process)
        pools = [stack.enter_context(new((case,))) for case in cases]
        once = [[pool.submit(measure_seconds, 1).result() for pool in pools] for _ in range(3)]
        counts = [max(1, round(MIN_BLOCK_S / max(min(column), 1e-6))) for column in zip(*once, strict=True)]
        pairs = list(zip(pools, counts, strict=True))
        turns = [[pool.submit(measure_seconds, n).result() / n for pool, n in pairs] for _ in range(rounds)]
        peaks = [pool.submit(peak_rss_mb).result() for pool in pools]
    found = list[BenchRow]()
    for case, column, peak in zip(cases, zip(*turns, strict=True), peaks, strict=True):
        seconds = statistics.median(column)
        decisions = case.B * (1 if case.impl == "mctx" else case.threads)
        us = round(seconds * 1e6 / decisions, 2)
        cost = {"ms": round(seconds * 1e3, 4), "us_per_decision": us, "rows": decision_rows(case), "rss_mb": peak}
        found.append({**case._asdict(), **cost})
    return found


def bench_search(options: Any) -> list[BenchRow]:
    """The document of `bench search`."""
    impls = ["swt", "network", *(["mctx"] if find_spec("mctx") else [])]
    grid = list(product(options.searches, options.nets, options.threads_tried, options.simulations, options.roots))
    found = list[BenchRow]()
    with progress("bench search") as report:
        for i, (search, net, threads, n, B) in enumerate(grid):
            report(i / len(grid), f"{search} {net} B={B} n={n} threads={threads}")
            wanted = [impl for impl in impls if impl != "mctx" or search != "market"]
            found += compare_impls([Case(impl, search, net, B, n, threads) for impl in wanted], options.rounds)
    return found


def print_search(rows: list[BenchRow], out: IO[str]) -> None:
    """A line for each case: microseconds a decision, the ratio to the networks alone, and how far behind mctx is."""
    print("    search      net     B   n  threads  us/decision  rows  ratio to network  mctx/swt  RSS MB", file=out)
    cases = dict[tuple[Any, ...], dict[str, BenchRow]]()
    for row in rows:
        key = tuple(row[k] for k in ("search", "net", "B", "n", "threads"))
        cases.setdefault(key, {})[row["impl"]] = row
    for (search, net, B, n, threads), impls in cases.items():
        swt, network, mctx = impls["swt"], impls["network"], impls.get("mctx")
        ratio = swt["ms"] / network["ms"]
        ahead = f"{mctx['us_per_decision'] / swt['us_per_decision']:8.2f}x" if mctx else " " * 9
        print(
            f"{search:>10} {net:>8} {B:>5} {n:>3} {threads:>8} {swt['us_per_decision']:>12.2f} {swt['rows']:>5} "
            f"{ratio:>17.3f} {ahead} {swt['rss_mb']:>7.0f}",
            file=out,
        )
