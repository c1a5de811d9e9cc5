"""`bench widening`: searches over sizes in [0, 1], and what the trees of a whole process take in memory."""

import time
from functools import partial
from itertools import product

import numpy as np

from host.artifact.networks import OnnxNetworks
from host.bench.options import BenchOptions
from host.bench.process import NETWORK_SHAPES, BenchRow, TimedCall, Work, measure_in_processes
from host.bench.search import call_checked, new_random_planner
from kernels.search.config import WIDENING, new_search_config
from kernels.search.networks import NetworkShape
from kernels.search.planner import plan
from kernels.search.progressive_widening import NUM_BETA_PARAMS, sampled_tree_bytes
from models.export import export
from models.params import new_params

MAX_CONSIDERED_ACTIONS = 8
NET = "default"


def new_widening_work(B: int, n: int, threads: int) -> Work:
    """A search of B roots with n simulations on every thread, and the bytes of one of their trees."""
    s = NETWORK_SHAPES[NET]._replace(num_beta_params=NUM_BETA_PARAMS)
    shape = NetworkShape(s.features, s.position, s.latent, s.actions, s.codes)
    networks = OnnxNetworks(export(new_params(s, 0), s, 0), shape)
    config = new_search_config(num_simulations=n, max_considered_actions=MAX_CONSIDERED_ACTIONS, algorithm=WIDENING)
    planners = [new_random_planner(networks, B, config, seed=thread) for thread in range(threads)]
    trees = [planner.sampled_tree for planner in planners if planner.sampled_tree is not None]
    for tree in trees:
        tree.rng_key[:] = np.arange(B)
    calls: list[TimedCall] = [partial(call_checked, partial(plan, planner)) for planner in planners]
    return Work(calls, time.thread_time, {"bytes_per_tree": sampled_tree_bytes(trees[0])})


def bench_widening(options: BenchOptions) -> list[BenchRow]:
    """The document of `bench widening`; the trees of all threads together, in a process of their own."""
    document = list[BenchRow]()
    for n, (threads, B) in product(options.simulations, options.threads_and_roots):
        (result,) = measure_in_processes([partial(new_widening_work, B, n, threads)], options.rounds)
        case = {"net": NET, "B": B, "n": n, "threads": threads, "trees": B * threads}
        us = round(result.seconds * 1e6 / (B * threads), 2)
        rows = 1 + n * (1 + NETWORK_SHAPES[NET].codes)
        cost = {"ms": round(result.seconds * 1e3, 3), "us_per_decision": us, "rows": rows}
        document.append({**case, **cost, **result.figures, "rss_mb": result.peak_mb})
    return document
