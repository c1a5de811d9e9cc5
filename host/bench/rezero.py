"""`bench rezero`: cost and quality of reanalysing stored episodes with and without ReZero's value reuse.

An agent is trained for a few iterations on the synthetic market `planted`; then the episodes of one iteration's block
are searched again, from the last decision to the first.  A search of many simulations without reuse gives the reference
that their policies and values are compared with.
"""

import statistics
import time
from itertools import product

import numpy as np
from threadpoolctl import threadpool_limits

from host.artifact.networks import OnnxNetworks
from host.bench.kernels import new_synthetic_trainer
from host.bench.options import BenchOptions
from host.bench.process import BenchRow
from host.config import load_config
from host.evaluation.synthetic import SyntheticOptions
from host.training.trainer import Trainer
from kernels.learning.reanalyze import reanalyze_policies
from kernels.ort import check_status
from kernels.search.config import ALGORITHMS, GUMBEL, MARKET
from kernels.search.planner import STATS, Planner
from kernels.search.tree import REUSE_CHANCE_CHILD, REUSE_OFF, VALUE_REUSES

REFERENCE_SIMULATIONS = 64


def train_agent(options: BenchOptions) -> Trainer:
    """A trainer after `options.iterations` iterations."""
    market, config = SyntheticOptions(length=options.length), load_config(None, list(options.settings))
    trainer, _ = new_synthetic_trainer("planted", market, config, options.threads)
    for _ in range(options.iterations):
        trainer.run_iteration()
    return trainer


def reanalyze_block(
    trainer: Trainer, networks: OnnxNetworks, algorithm: int, n: int, reuse: int
) -> tuple[Planner, float]:
    """Search the first `num_envs` episodes again; (the planner with its statistics, CPU seconds)."""
    slots, data = np.arange(trainer.config.train.num_envs), trainer.feature_store.market_data
    planner = networks.planner(len(slots), trainer.search_config(n)._replace(algorithm=algorithm, value_reuse=reuse))
    begin = time.thread_time()
    check_status(reanalyze_policies(trainer.replay, planner, slots, data, trainer.config.train.seed))
    return planner, time.thread_time() - begin


def reanalyze_row(
    trainer: Trainer, networks: OnnxNetworks, algorithm: int, n: int, reuse: int, rounds: int
) -> BenchRow:
    """Cost and quality of one kind of reanalysis."""
    block, replay = slice(trainer.config.train.num_envs), trainer.replay
    reanalyze_block(trainer, networks, algorithm, REFERENCE_SIMULATIONS, REUSE_OFF)
    reference, reference_value = replay.policy[block].astype(float), replay.search_value[block].astype(float)
    seconds = []
    for _ in range(rounds):
        planner, spent = reanalyze_block(trainer, networks, algorithm, n, reuse)
        seconds.append(spent)
    policy = replay.policy[block].astype(float)
    kl = reference * np.log(np.maximum(reference, 1e-12) / np.maximum(policy, 1e-12))
    stats = dict(zip(STATS, planner.stats.tolist(), strict=True))
    kind = {"search": ALGORITHMS[algorithm], "n": n, "reuse": VALUE_REUSES[reuse]}
    us = round(statistics.median(seconds) * 1e6 / stats["searches"], 2)
    rows, share = round(stats["rows"] / stats["searches"], 2), round(stats["reused"] / stats["searches"], 4)
    rmse = np.sqrt(np.mean((replay.search_value[block] - reference_value) ** 2))
    quality = {"policy_kl": round(float(kl.sum(axis=2).mean()), 5), "value_rmse": round(float(rmse), 5)}
    return {**kind, "us_per_position": us, "rows_per_position": rows, "reuse_share": share, **quality}


def bench_rezero(options: BenchOptions) -> list[BenchRow]:
    """The document of `bench rezero`."""
    with threadpool_limits(1, "blas"):
        trainer = train_agent(options)
        networks = trainer.export_networks()
        kinds = product((GUMBEL, MARKET), options.reanalyze_simulations, (REUSE_OFF, REUSE_CHANCE_CHILD))
        return [reanalyze_row(trainer, networks, *kind, options.rounds) for kind in kinds]
