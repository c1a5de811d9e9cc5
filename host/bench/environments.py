"""`bench environments`: known ground beside the market, and how long the trainer takes to stand on it.

CartPole-v1 counts as solved where 100 episodes return 475 in the mean.  The grid's policy is evaluated exactly, as a
fraction of the optimum.  Seconds are those of training: neither compilation nor evaluation counts.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from host.bench.cartpole_rivals import CARTPOLE, GOAL, cartpole_rivals
from host.bench.options import BenchError, BenchOptions
from host.bench.process import BenchRow
from host.commands.train_env import TEST_EPISODES, TEST_SEED, base_config
from host.config import load_config
from host.training.environment_replay import EnvironmentDomain, play_greedily
from host.training.environments import open_environment
from host.training.trainer import Trainer
from kernels.environments.grid import ACTIONS, CELLS, policy_return, solve_grid
from kernels.learning.environment_replay import set_roots
from kernels.ort import check_status
from kernels.search.planner import plan

EVALUATION_INTERVAL = 5  # iterations
WARM_UP = ("train.reanalyze_interval=0",)  # of a throw-away training that compiles everything in two iterations


class Ground(NamedTuple):
    """An environment, and what is known of it."""

    environment: str
    goal: float
    score: Callable[[Trainer], float]
    settings: tuple[str, ...] = ()
    rivals: Callable[[BenchOptions], list[BenchRow]] = lambda _: []  # rows of other libraries


def mean_return(trainer: Trainer) -> float:
    """Mean return of TEST_EPISODES new episodes without noise."""
    domain, networks = trainer.domain, trainer.export_networks()
    assert isinstance(domain, EnvironmentDomain)
    return float(play_greedily(domain.spec, networks, trainer.acting_search_config(), TEST_EPISODES, TEST_SEED).mean())


def grid_fraction(trainer: Trainer) -> float:
    """The exact return of the agent on the grid, of the optimum's."""
    planner = trainer.export_networks().planner(CELLS, trainer.acting_search_config())
    cells, legal = np.eye(CELLS, dtype=np.float32), np.ones((CELLS, ACTIONS), np.bool_)
    set_roots(planner, cells, legal, 0, 0, -1)
    check_status(plan(planner))
    discount = trainer.config.search.discount
    return policy_return(planner.action.astype(np.int64), discount) / solve_grid(discount)


GROUNDS = (
    Ground(CARTPOLE, GOAL, mean_return, rivals=cartpole_rivals),
    Ground("grid", 0.98, grid_fraction, ("network.num_chance_codes=4", "train.unizero_weight=0")),
)


def new_trainer(ground: Ground, threads: int, *settings: str) -> Trainer:
    """A training on a ground."""
    config = load_config(None, [*ground.settings, *settings], base_config(ground.environment))
    return Trainer(EnvironmentDomain(open_environment(ground.environment), config), config, threads)


def train_to_goal(ground: Ground, options: BenchOptions, seed: int) -> BenchRow:
    """The row of one training, which ends at the goal or with its minutes."""
    clock = time.process_time if options.threads == 1 else time.perf_counter
    trainer, score = new_trainer(ground, options.threads, *options.settings, f"train.seed={seed}"), -np.inf
    seconds, decisions = 0.0, 0.0
    while seconds < 60 * options.rival_minutes and score < ground.goal:
        begin = clock()
        row = trainer.run_iteration()
        seconds += clock() - begin
        decisions += row["decisions_per_s"] * row["collect_s"]
        if trainer.iteration % EVALUATION_INTERVAL == 0:
            score = ground.score(trainer)
    return {
        "environment": ground.environment,
        "seed": seed,
        "score": round(score if np.isfinite(score) else ground.score(trainer), 3),
        "goal": ground.goal,
        "seconds": round(seconds, 1),
        "decisions": round(decisions),
        "updates": trainer.learner.step,
        "steps_per_s": round(decisions / seconds),
    }


def bench_environments(options: BenchOptions) -> list[BenchRow]:
    """The document of `bench environments`; BenchError for a name that is none of them."""
    grounds = [ground for ground in GROUNDS if options.only in (None, ground.environment)]
    if not grounds:
        names = ", ".join(ground.environment for ground in GROUNDS)
        raise BenchError(f"--only {options.only}: there is {names}")
    rows = list[BenchRow]()
    for ground in grounds:
        warm = new_trainer(ground, options.threads, *options.settings, *WARM_UP)
        for _ in range(2):
            warm.run_iteration()
        rows += [train_to_goal(ground, options, seed) for seed in range(options.seeds)] + ground.rivals(options)
    return rows
