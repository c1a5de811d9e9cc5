"""`bench rezero`: what reanalysing stored episodes costs and finds with and without ReZero's value reuse.

For each search an agent learns the synthetic market `planted` for a few iterations.  Then the episodes of one block are
searched again, from the last decision to the first.  A search of many simulations without reuse gives the reference
that their policies and values are compared with.
"""

import statistics
import time
from collections import Counter
from itertools import product

import numpy as np
from threadpoolctl import threadpool_limits

from host.artifact.networks import OnnxNetworks
from host.bench.kernels import new_synthetic_trainer
from host.bench.options import BenchOptions
from host.bench.process import BenchRow
from host.config import SHARED_TREE, load_config
from host.evaluation.synthetic import Floats, SyntheticOptions
from host.training.trainer import Trainer
from kernels.learning.bar_search import store_searched_bars
from kernels.learning.reanalyze import reanalyze_policies
from kernels.ort import check_status
from kernels.search.planner import STATS
from kernels.search.tree import VALUE_REUSES

ALGORITHMS = ("gumbel", "puct", "market")
REFERENCE_SIMULATIONS = 256


def train_agent(algorithm: str, options: BenchOptions) -> Trainer:
    """A trainer after `options.iterations` iterations."""
    market, settings = SyntheticOptions(length=options.length), [*options.settings, f"search.algorithm={algorithm}"]
    trainer, _ = new_synthetic_trainer("planted", market, load_config(None, settings), options.threads)
    for _ in range(options.iterations):
        trainer.run_iteration()
    return trainer


def reanalyze_block(trainer: Trainer, networks: OnnxNetworks, n: int, reuse: str) -> tuple[Floats, Floats, BenchRow]:
    """Search the first `num_envs` episodes again: policies [B, L, A], root values [B, L], counts with CPU seconds.

    Both are of the positions that were held.
    """
    market, slots = trainer.markets[0], np.arange(trainer.config.train.num_envs)
    data, replay = market.feature_store.market_data, market.replay
    decisions, search = len(slots) * replay.reward.shape[1], trainer.search_config(n)
    begin = time.process_time()
    if reuse == SHARED_TREE:
        searched, counts = market.search_bars(trainer.pool, networks, slots, search)
        store_searched_bars(replay, slots, searched, search)
        counts["searches"] = decisions
        held = replay.held[slots, :-1, None].astype(int)
    else:
        planner = networks.planner(len(slots), search._replace(value_reuse=VALUE_REUSES.index(reuse)))
        check_status(reanalyze_policies(replay, planner, slots, data, trainer.config.train.seed))
        counts = Counter(dict(zip(STATS, planner.stats.tolist(), strict=True)))
        held = np.zeros((len(slots), replay.reward.shape[1], 1), int)
    policy = np.take_along_axis(replay.policy[slots], held[..., None], axis=2)[:, :, 0]
    value = np.take_along_axis(replay.search_value[slots], held, axis=2)[:, :, 0]
    return policy.astype(float), value.astype(float), {**counts, "seconds": time.process_time() - begin}


def rezero_rows(algorithm: str, options: BenchOptions) -> list[BenchRow]:
    """Cost and quality of every kind of reanalysis of one search.

    `policy_distance` is the mean total variation, `value_bias` the mean and `value_rmse` the root of the mean square of
    the difference of root values, in mean bar ranges.
    """
    trainer, rows = train_agent(algorithm, options), list[BenchRow]()
    networks = trainer.export_networks()
    reference_policy, reference_value, _ = reanalyze_block(trainer, networks, REFERENCE_SIMULATIONS, "off")
    reuses = (*VALUE_REUSES, SHARED_TREE) if algorithm == ALGORITHMS[-1] else VALUE_REUSES
    for n, reuse in product(options.reanalyze_simulations, reuses):
        runs = [reanalyze_block(trainer, networks, n, reuse) for _ in range(options.rounds)]
        policy, value, counts = runs[0]
        error = value - reference_value
        figures = {
            "us_per_position": statistics.median(run[2]["seconds"] for run in runs) * 1e6 / counts["searches"],
            "rows_per_position": counts["rows"] / counts["searches"],
            "reuse_share": counts["reused"] / counts["searches"],
            "policy_distance": float(np.abs(policy - reference_policy).sum(axis=2).mean()) / 2,
            "value_bias": float(error.mean()),
            "value_rmse": float(np.sqrt(np.mean(error**2))),
        }
        rows.append({"search": algorithm, "n": n, "reuse": reuse, **{k: round(v, 4) for k, v in figures.items()}})
    return rows


def bench_rezero(options: BenchOptions) -> list[BenchRow]:
    """The document of `bench rezero`."""
    with threadpool_limits(1, "blas"):
        return [row for algorithm in ALGORITHMS for row in rezero_rows(algorithm, options)]
