"""`bench environments`: known ground beside the market, and how long the trainer takes to stand on it.

CartPole-v1 counts as solved where 100 episodes return 475 in the mean.  The grid's policy is evaluated exactly, as a
fraction of the optimum.  2048 has no goal: its score is the mean of points, beside those of players that look ahead.
Seconds are those of training: neither compilation nor evaluation counts.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from host.bench.cartpole_rivals import CARTPOLE, GOAL, cartpole_rivals
from host.bench.options import BenchError, BenchOptions
from host.bench.process import BenchRow, training_row
from host.commands.train_env import TEST_EPISODES, TEST_SEED, base_config
from host.config import load_config
from host.console import log
from host.training.environment_replay import EnvironmentDomain, GreedyPlayer, play_greedily
from host.training.environments import open_environment
from host.training.trainer import Trainer
from kernels.environments.game_2048 import GAME_2048, POINTS, TILES, look_ahead, observe, play
from kernels.environments.grid import ACTIONS, CELLS, policy_return, solve_grid

PLAYERS = (("greedy", 1), ("expectimax-2", 2))  # of 2048, and how many moves they look ahead
WARM_UP = ("train.reanalyze_interval=0",)  # of a throw-away training that compiles everything in two iterations


class Ground(NamedTuple):
    """An environment, and what is known of it."""

    environment: str
    goal: float | None  # at which a training ends before its minutes
    score: Callable[[Trainer], float]
    settings: tuple[str, ...] = ()
    evaluation_interval: int = 5  # iterations
    rivals: Callable[[BenchOptions], list[BenchRow]] = lambda _: []  # rows of other libraries or players


def mean_return(trainer: Trainer) -> float:
    """Mean return of TEST_EPISODES new episodes without noise."""
    domain, networks = trainer.domain, trainer.export_networks()
    assert isinstance(domain, EnvironmentDomain)
    return float(play_greedily(domain.spec, networks, trainer.acting_search_config(), TEST_EPISODES, TEST_SEED).mean())


def greedy_player(trainer: Trainer) -> GreedyPlayer:
    """The agent without noise."""
    return GreedyPlayer(trainer.export_networks(), trainer.acting_search_config())


def grid_fraction(trainer: Trainer) -> float:
    """The exact return of the agent on the grid, of the optimum's."""
    player, discount = greedy_player(trainer), trainer.config.search.discount
    action = player.choose(np.eye(CELLS, dtype=np.float32), np.ones((CELLS, ACTIONS), np.bool_))
    return policy_return(action.astype(np.int64), discount) / solve_grid(discount)


def mean_points(trainer: Trainer) -> float:
    """Mean points of TEST_EPISODES new games of 2048 without noise."""
    player = greedy_player(trainer)

    def choose(action: NDArray[np.int32], state: NDArray[np.float64]) -> None:
        seen = np.zeros((len(state), GAME_2048.features), np.float32)
        legal = np.zeros((len(state), GAME_2048.actions), np.bool_)
        observe(seen, legal, state)
        action[:] = player.choose(seen, legal)

    return float(play(choose, TEST_EPISODES, TEST_SEED)[:, POINTS].mean())


def players_2048(_: BenchOptions) -> list[BenchRow]:
    """Rows of the players that look ahead, on the same games."""
    look_ahead(np.zeros(0, np.int32), np.zeros((0, GAME_2048.state)), 1)  # compiles it
    rows = list[BenchRow]()
    for player, moves in PLAYERS:
        begin = time.process_time()
        state = play(partial(look_ahead, moves=moves), TEST_EPISODES, TEST_SEED)
        seconds, decisions = time.process_time() - begin, float((state[:, TILES] - 2).sum())
        score = float(state[:, POINTS].mean())
        rows.append(training_row(f"2048, {player}", None, score, None, seconds, decisions, 0))
    return rows


GROUNDS = (
    Ground(CARTPOLE, GOAL, mean_return, rivals=cartpole_rivals),
    Ground("grid", 0.98, grid_fraction, ("network.num_chance_codes=4", "train.unizero_weight=0")),
    Ground("2048", None, mean_points, evaluation_interval=50, rivals=players_2048),
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
    while seconds < 60 * options.rival_minutes and (ground.goal is None or score < ground.goal):
        begin = clock()
        row = trainer.run_iteration()
        seconds += clock() - begin
        decisions += row["decisions_per_s"] * row["collect_s"]
        if trainer.iteration % ground.evaluation_interval == 0:
            score = ground.score(trainer)
            log(f"{ground.environment}, seed {seed}: {score:.4g} after {seconds:.0f} s")
    if trainer.iteration % ground.evaluation_interval:
        score = ground.score(trainer)
    return training_row(ground.environment, seed, score, ground.goal, seconds, decisions, trainer.learner.step)


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
