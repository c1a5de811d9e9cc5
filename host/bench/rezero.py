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

from host.artifact.networks import Agent
from host.config import load_config
from host.evaluation.synthetic import INTERVAL_NS, MADE, Options, make_market
from host.training.dataset import new_dataset
from host.training.trainer import Trainer
from kernels.learning.reanalyze import search_again
from kernels.ort import check
from kernels.search.config import GUMBEL, MARKET, RULES
from kernels.search.planner import TALLY, Planner
from kernels.search.tree import CHANCE_CHILD, NOTHING, REUSES

REFERENCE = 64  # simulations
Row = dict[str, Any]


def trained(size: Any) -> Trainer:
    """An agent that has learnt something, and the sessions it has played."""
    market = make_market("planted", Options(length=size.length))
    config = load_config(None, list(size.settings))
    data = new_dataset(market.bars, market.extra, config, MADE, INTERVAL_NS, size.threads)
    trainer = Trainer(data, config, size.threads)
    for _ in range(size.cycles):
        trainer.run_cycle()
    return trainer


def sweep(trainer: Trainer, agent: Agent, rule: int, n: int, reuse: int) -> tuple[Planner, float]:
    """Search one block again; the planner, whose tally says what it took, and CPU seconds."""
    slots = np.arange(trainer.config.train.block)
    planner = agent.planner(len(slots), trainer.search_config(n)._replace(rule=rule, reuse=reuse))
    begin = time.thread_time()
    check(search_again(trainer.replay, planner, slots, trainer.store.tape, trainer.config.train.seed))
    return planner, time.thread_time() - begin


def row_of(trainer: Trainer, agent: Agent, rule: int, n: int, reuse: int, rounds: int) -> Row:
    """Cost and quality of one kind of sweep."""
    block, replay = slice(trainer.config.train.block), trainer.replay
    sweep(trainer, agent, rule, REFERENCE, NOTHING)
    policy, value = replay.policy[block].astype(float), replay.search_value[block].astype(float)
    seconds = []
    for _ in range(rounds):
        planner, spent = sweep(trainer, agent, rule, n, reuse)
        seconds.append(spent)
    found = replay.policy[block].astype(float)
    surprise = policy * np.log(np.maximum(policy, 1e-12) / np.maximum(found, 1e-12))
    tally = dict(zip(TALLY, planner.tally.tolist(), strict=True))
    return {
        "search": RULES[rule],
        "n": n,
        "reuse": REUSES[reuse],
        "us_per_position": round(statistics.median(seconds) * 1e6 / tally["searches"], 2),
        "rows_per_position": round(tally["rows"] / tally["searches"], 2),
        "reuse_share": round(tally["reused"] / tally["searches"], 4),
        "policy_kl": round(float(surprise.sum(axis=2).mean()), 5),
        "value_rmse": round(float(np.sqrt(np.mean((replay.search_value[block] - value) ** 2))), 5),
    }


def bench_rezero(size: Any) -> list[Row]:
    """The document of `bench rezero`."""
    with threadpool_limits(1, "blas"):
        trainer = trained(size)
        agent = trainer.agent()
        kinds = product((GUMBEL, MARKET), size.sweeps, (NOTHING, CHANCE_CHILD))
        return [row_of(trainer, agent, *kind, size.rounds) for kind in kinds]
