"""CartPole-v1 in other libraries: MuZero of LightZero trains to the goal, and mctx, which is a search alone, acts.

One thread and CPU time for all.  LightZero wants an older numpy than this program: it runs in a Python of its own.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from host.bench.lightzero_cartpole import CURVE
from host.bench.options import BenchOptions
from host.bench.process import BenchRow, Work, clock, measure_in_processes, training_row
from host.commands.train_env import base_config
from host.console import log
from host.machine import limit_cores
from host.training.environment_replay import EnvironmentDomain
from host.training.environments import Lanes, open_environment
from host.training.trainer import Trainer
from kernels.learning.environment_replay import set_roots
from kernels.ort import check_status
from kernels.search.planner import plan

CARTPOLE, GOAL = "CartPole-v1", 475.0
LIGHTZERO_PYTHON = "SWT_LIGHTZERO_PYTHON"
HAS_LIGHTZERO = "import importlib.util as u, sys; sys.exit(u.find_spec('lzero') is None)"
NUM_LANES = (8, 64)  # environments at once of who acts alone; LightZero collects in 8


def cartpole_rivals(options: BenchOptions) -> list[BenchRow]:
    """The rows of the libraries that are installed."""
    python = os.path.abspath(os.environ.get(LIGHTZERO_PYTHON, sys.executable))  # it runs in another folder
    rows = list[BenchRow]()
    if not has_lightzero(python):
        way = f"python -m venv lz, lz/bin/pip install lightzero, {LIGHTZERO_PYTHON}=lz/bin/python"
        log(f"{CARTPOLE}: {python} has no LightZero: {way}")
    else:
        rows += [row for seed in range(options.seeds) for row in train_lightzero(python, seed, options.rival_minutes)]
    if find_spec("mctx") is None:
        log(f"{CARTPOLE}: without mctx: pip install mctx")
        return rows
    return rows + [row for count in NUM_LANES for row in compare_acting(count, options.rounds)]


def has_lightzero(python: str) -> bool:
    """Whether a Python has LightZero, and is there itself."""
    try:
        return subprocess.run([python, "-c", HAS_LIGHTZERO], check=False).returncode == 0
    except OSError:
        return False


def train_lightzero(python: str, seed: int, minutes: float) -> list[BenchRow]:
    """The row of one training by LightZero; none, and a line that says why, where it fails."""
    source = Path(__file__).with_name("lightzero_cartpole.py").read_text(encoding="utf-8")
    command = [python, "-W", "ignore", "-c", source, str(seed), str(60 * minutes), str(GOAL)]
    with TemporaryDirectory() as folder:
        one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, cwd=folder, env=one_thread, capture_output=True, encoding="utf-8", errors="replace", check=False
        )
        curve = Path(folder, CURVE)
        if done.returncode or not curve.exists():
            log(f"{CARTPOLE}: LightZero ended with {done.returncode}: {' '.join(done.stderr.split()[-20:])}")
            return []
        return [lightzero_row(json.loads(curve.read_text(encoding="utf-8")), seed)]


def lightzero_row(curve: list[list[float]], seed: int) -> BenchRow:
    """The row of a training: its end, and its best evaluation."""
    seconds, steps, updates, _ = curve[-1]
    best = max(score for *_, score in curve)
    if best < GOAL:
        log(f"{CARTPOLE}, LightZero, seed {seed}: not within {seconds:.0f} s; best score {best:.4g}")
    return training_row(f"{CARTPOLE}, LightZero MuZero", seed, best, GOAL, seconds, steps, round(updates))


def compare_acting(count: int, rounds: int) -> list[BenchRow]:
    """A row each of our search and of mctx's, which act in `count` environments in turns; neither learns."""
    impls = ("ours", "mctx")
    measured = measure_in_processes([partial(acting_work, impl, count) for impl in impls], rounds)
    return [
        dict.fromkeys(("environment", "seed", "score", "goal", "seconds", "decisions", "updates"), "")
        | {"environment": f"{CARTPOLE}, {impl} acting alone, B = {count}", "steps_per_s": round(count / result.seconds)}
        for impl, result in zip(impls, measured, strict=True)
    ]


def acting_work(impl: str, count: int) -> Work:
    """A step of `count` environments: a search by the networks and simulations of our training, then the environments.

    The networks are untrained, and the noise of every step has the same key.
    """
    limit_cores(1)
    config, spec = base_config(CARTPOLE), open_environment(CARTPOLE)
    lanes = Lanes(spec.new_backend(count), 0, 0)
    if impl == "ours":
        choose = our_search(Trainer(EnvironmentDomain(spec, config), config, 1), lanes)
    else:
        from host.bench.mctx_search import compile_search

        search = compile_search(EnvironmentDomain(spec, config).shape, "gumbel", config.train.num_simulations)
        choose = lambda: np.asarray(search(lanes.backend.observation)[0])  # noqa: E731

    return Work([lambda: lanes.step(choose())], clock(1), {})


def our_search(trainer: Trainer, lanes: Lanes) -> Callable[[], NDArray[np.int32]]:
    """Chooses the action of every lane as a training does."""
    count = len(lanes.backend.ended)
    planner = trainer.export_networks().planner(count, trainer.search_config(trainer.config.train.num_simulations))

    def choose() -> NDArray[np.int32]:
        set_roots(planner, lanes.backend.observation, lanes.backend.legal, 0, 0, 0)
        check_status(plan(planner))
        return planner.action

    return choose
