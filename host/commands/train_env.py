"""`train --env`: learn an environment instead of a market, by the same trainer; a run directory without a backtest."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from host.artifact.networks import OnnxNetworks
from host.atomic import atomic_write, check_writable, write_atomic
from host.commands.train import DEFAULT_MINUTES, TrainOptions, resume_hint, resume_hint_on_stop, train_files
from host.config import Config, ConfigError, check_minutes, load_config
from host.console import compiling, log
from host.data.formats import ReadOptions
from host.panel import training_panel
from host.training.environment_replay import EnvironmentDomain, play_greedily
from host.training.environments import open_environment
from host.training.metrics import Row, check_tensorboard, tensorboard
from host.training.run_dir import RUNS_FOLDER, RunDir, RunError, check_no_run, create_next_run, has_run, open_run_dir
from host.training.trainer import Budget, Trainer, run_first_iteration, train_for
from kernels.jit import program_digest

# Games: Q by the conventions of mctx, values over the whole of an episode, and no schedule tied to a number of bars.
SETTINGS = (
    "market.episode_length=64",
    "search.algorithm=gumbel",
    "search.value_reuse=off",
    "search.discount=0.997",
    *("search.c_scale=0.1", "train.c_scale=0.1"),
    *("search.num_simulations=16", "train.num_simulations=16"),
    "train.batches_per_iteration=1",
    "train.random_episodes=2",
    "train.reanalyze_interval=4",
    "train.replay_capacity=512",
    "train.mirror_augmentation=false",
    "train.lr_decay_passes=150",
    "train.td_lambda=0.95",
    "train.td_lambda_passes=1e9",
    "train.freeze_passes=1e9",
)
STOCHASTIC = ("train.chance_codes=learned",)
# Of an environment on its own.  2048: many games, of which a value of the next 100 moves is soon learnt.
OWN_SETTINGS = {
    "2048": (
        "network.num_chance_codes=16",
        "network.hidden=128",
        "network.latent=64",
        "search.discount=0.99",
        "train.num_simulations=8",
        "train.random_episodes=0",
        "train.reanalyze_interval=16",
        "train.batch_size=128",
        "train.num_unroll_steps=3",
        "train.unizero_weight=0",
    )
}
TEST_EPISODES, TEST_SEED = 100, 2**33  # of the agent that was trained; no seed of a training
VALIDATION_EPISODES, VALIDATION_SEED = 20, 2**33 + 1  # by which the best agent is chosen
RESULT, SETTINGS_FILE = "result.json", "environment"


def base_config(name: str | None) -> Config:
    """The settings of a training before those that are given, of the environment `name` or of a market."""
    if name is None:
        return Config()
    of_chance = STOCHASTIC if open_environment(name).is_stochastic else ()
    return load_config(None, [*SETTINGS, *of_chance, *OWN_SETTINGS.get(name, ())])


def train_any(files: list[Path], reading: ReadOptions, config: Config, options: TrainOptions) -> dict[str, Any]:
    """Train on bars, or on an environment if one is named; the document of `train --json`."""
    name = options.env or (stored_environment(options.out) if options.resume and options.out else None)
    if name is None:
        return train_files(files, reading, config, options)
    unused = {"--memory": options.memory, "--ray": options.ray, "--early-stopping": options.patience}
    given = [*map(str, files), *(flag for flag, value in unused.items() if value is not None)]
    if given:
        raise ConfigError(f"--env {name}: {' '.join(given)} goes with bars; leave out that or --env")
    return train_environment(name, config, options._replace(env=name))


def stored_environment(run: Path) -> str | None:
    """The environment that a run learns, or None: bars."""
    file = run / f"{SETTINGS_FILE}.toml"
    return str(tomllib.loads(file.read_text(encoding="utf-8"))["environment"]) if file.exists() else None


def train_environment(name: str, config: Config, options: TrainOptions) -> dict[str, Any]:
    """Train into a run directory and play TEST_EPISODES; the document."""
    out, budget = options.out, Budget(DEFAULT_MINUTES) if options.budget == Budget() else options.budget
    resume = options.resume and out is not None and has_run(out)
    check_minutes(budget.minutes)
    check_tensorboard(options.tensorboard)
    check_writable(out or RUNS_FOLDER, folder=True)
    if out and not resume:
        check_no_run(out)
    spec = open_environment(name)
    kind = "stochastic" if spec.is_stochastic else "without chance"
    log(f"{name}: {spec.features} features, {spec.actions} actions, {kind}; rewards within {spec.reward_limit:g}")
    origin = json.loads(json.dumps({"config": config.as_dict(), "program": program_digest(), "environment": name}))
    run: RunDir | None = None
    with resume_hint_on_stop(lambda: resume_hint(run, options)), ExitStack() as stack:
        trainer = Trainer(EnvironmentDomain(spec, config), config, options.threads)
        run = stack.enter_context(open_run_dir(out or create_next_run(), resume))
        trainer.load_checkpoint = run.load_checkpoint
        best = BestPlayer(trainer)
        begin_run(run, best, origin, resume)
        board = stack.enter_context(tensorboard(run.path / "tensorboard", trainer.episodes, options.tensorboard))
        on_iteration = recorder(best, run, origin, board)
        with compiling("getting ready") as report:
            report(0.0, "first iteration")
            run_first_iteration(trainer, budget, on_iteration)
        with training_panel(f"training {name}", config, budget.minutes) as show:
            train_for(trainer, budget, on_iteration, lambda share, _: show(share, run.newest_row))
        if (checkpoint := run.load_best()) is not None:
            trainer.restore(checkpoint.arrays, checkpoint.state)
        networks = trainer.export_networks()
        document = test_agent(trainer, networks)
        write_networks(run.path / "networks", networks)
        write_atomic(run.path / RESULT, json.dumps(document, indent=1) + "\n")
    log(f"{name}: mean return {document['mean_return']:.4g} of {TEST_EPISODES} episodes; {run.path / RESULT}")
    return {"environment": name, **document, "run": str(run.path)}


class BestPlayer:
    """The best agent of a training so far, by the episodes that it plays every few iterations."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.score = trainer, -math.inf

    def validate(self) -> bool:
        """Play, if it is time for that; whether no agent before was better."""
        interval = self.trainer.config.train.validation_interval
        if interval == 0 or self.trainer.iteration % interval:
            return False
        returns = play(self.trainer, self.trainer.export_networks(), VALIDATION_EPISODES, VALIDATION_SEED)
        is_best = float(returns.mean()) >= self.score
        self.score = max(self.score, float(returns.mean()))
        return is_best


def begin_run(run: RunDir, best: BestPlayer, origin: dict[str, Any], resume: bool) -> None:
    """Write the settings of a new run, or restore the newest checkpoint of one that has the same `origin`."""
    trainer = best.trainer
    if not resume:
        run.write_toml(SETTINGS_FILE, {"environment": origin["environment"]})
        run.write_toml("config", trainer.config.as_dict())
        log(f"run: {run.path}")
        return
    if (stored := stored_environment(run.path)) != origin["environment"]:
        asked = f"the run learns {stored or 'bars'}, asked for is {origin['environment']}"
        raise RunError(f"{run.path}: {asked}; leave out --env to resume it, or give another --out")
    checkpoint = run.load_checkpoint()
    if checkpoint is None:
        log(f"{run.path} has no checkpoint yet: starting from the beginning")
        return
    changed = [key for key, value in origin.items() if checkpoint.state["origin"].get(key) != value]
    if changed:
        raise RunError(f"{run.path}: its {' and '.join(changed)} differs; resume as it began, or give another --out")
    trainer.restore(checkpoint.arrays, checkpoint.state)
    best.score = -math.inf if checkpoint.state["best"] is None else checkpoint.state["best"]
    log(f"resuming after iteration {trainer.iteration}, {trainer.episodes} episodes: {run.path}")


def recorder(
    best: BestPlayer, run: RunDir, origin: dict[str, Any], board: Callable[[Row], None]
) -> Callable[[Row], None]:
    """What is done after each iteration: validate, append its metrics, write them to `board`, save a checkpoint."""
    trainer = best.trainer

    def record(row: Row) -> None:
        is_best = best.validate()
        run.append_metrics(row)
        board(row)
        arrays, state = trainer.snapshot()
        score = best.score if math.isfinite(best.score) else None
        run.save_checkpoint(trainer.iteration, arrays, {**state, "origin": origin, "best": score}, is_best)

    return record


def test_agent(trainer: Trainer, networks: OnnxNetworks) -> dict[str, Any]:
    """What the agent earns in new episodes, without noise."""
    returns = play(trainer, networks, TEST_EPISODES, TEST_SEED)
    return {
        "mean_return": float(returns.mean()),
        "least_return": float(returns.min()),
        "greatest_return": float(returns.max()),
        "test_episodes": TEST_EPISODES,
        "episodes": trainer.episodes,
        "updates": trainer.learner.step,
    }


def play(trainer: Trainer, networks: OnnxNetworks, episodes: int, seed: int) -> NDArray[np.float64]:
    """Returns [episodes] of an agent without noise."""
    domain = trainer.domain
    assert isinstance(domain, EnvironmentDomain)
    return play_greedily(domain.spec, networks, trainer.acting_search_config(), episodes, seed)


def write_networks(folder: Path, networks: OnnxNetworks) -> None:
    """Write the ONNX graphs, which kernels.search searches over."""
    folder.mkdir(exist_ok=True)
    for name, graph in networks.graphs.items():
        with atomic_write(folder / f"{name}.onnx") as file:
            file.write(graph)
