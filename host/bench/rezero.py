"""`bench rezero`: what a sweep over stored sessions costs and finds with and without ReZero's reuse.

An agent is trained for a few cycles on the synthetic market `planted`; then one block of its sessions is searched
again, from the last decision to the first.  Targets are judged by a reference of many simulations without reuse.
"""

from __future__ import annotations

import statistics
import time
from itertools import product
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from host.artifact.networks import OnnxNetworks
from host.config import load_config
from host.evaluation.synthetic import INTERVAL_NS, SYNTHETIC_INSTRUMENT, SyntheticOptions, make_market
from host.training.dataset import new_dataset
from host.training.trainer import Trainer
from kernels.learning.reanalyze import reanalyze_policies
from kernels.ort import check_status
from kernels.search.config import ALGORITHMS, GUMBEL, MARKET
from kernels.search.planner import STATS, Planner
from kernels.search.tree import REUSE_CHANCE_CHILD, REUSE_OFF, VALUE_REUSES

REFERENCE_SIMULATIONS = 64  # simulations
BenchRow = dict[str, Any]


def train_agent(options: Any) -> Trainer:
    """An agent that has learnt something, and the sessions it has played."""
    market = make_market("planted", SyntheticOptions(length=options.length))
    config = load_config(None, list(options.settings))
    data = new_dataset(market.bars, market.extra, config, SYNTHETIC_INSTRUMENT, INTERVAL_NS, options.threads)
    trainer = Trainer(data, config, options.threads)
    for _ in range(options.cycles):
        trainer.run_iteration()
    return trainer


def reanalyze_block(trainer: Trainer, agent: OnnxNetworks, rule: int, n: int, reuse: int) -> tuple[Planner, float]:
    """Search one block again; the planner, whose tally says what it took, and CPU seconds."""
    slots = np.arange(trainer.config.train.num_envs)
    planner = agent.planner(len(slots), trainer.search_config(n)._replace(algorithm=rule, value_reuse=reuse))
    begin = time.thread_time()
    check_status(
        reanalyze_policies(trainer.replay, planner, slots, trainer.feature_store.market_data, trainer.config.train.seed)
    )
    return planner, time.thread_time() - begin


def reanalyze_row(trainer: Trainer, agent: OnnxNetworks, rule: int, n: int, reuse: int, rounds: int) -> BenchRow:
    """Cost and quality of one kind of sweep."""
    block, replay = slice(trainer.config.train.num_envs), trainer.replay
    reanalyze_block(trainer, agent, rule, REFERENCE_SIMULATIONS, REUSE_OFF)
    policy, value = replay.policy[block].astype(float), replay.search_value[block].astype(float)
    seconds = []
    for _ in range(rounds):
        planner, spent = reanalyze_block(trainer, agent, rule, n, reuse)
        seconds.append(spent)
    found = replay.policy[block].astype(float)
    surprise = policy * np.log(np.maximum(policy, 1e-12) / np.maximum(found, 1e-12))
    tally = dict(zip(STATS, planner.stats.tolist(), strict=True))
    return {
        "search": ALGORITHMS[rule],
        "n": n,
        "reuse": VALUE_REUSES[reuse],
        "us_per_position": round(statistics.median(seconds) * 1e6 / tally["searches"], 2),
        "rows_per_position": round(tally["rows"] / tally["searches"], 2),
        "reuse_share": round(tally["reused"] / tally["searches"], 4),
        "policy_kl": round(float(surprise.sum(axis=2).mean()), 5),
        "value_rmse": round(float(np.sqrt(np.mean((replay.search_value[block] - value) ** 2))), 5),
    }


def bench_rezero(options: Any) -> list[BenchRow]:
    """The document of `bench rezero`."""
    with threadpool_limits(1, "blas"):
        trainer = train_agent(options)
        agent = trainer.export_networks()
        kinds = product((GUMBEL, MARKET), options.sweeps, (REUSE_OFF, REUSE_CHANCE_CHILD))
        return [reanalyze_row(trainer, agent, *kind, options.rounds) for kind in kinds]
