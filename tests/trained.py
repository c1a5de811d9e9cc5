"""A tiny model trained on the bundled bars, and the decisions that a backtest makes with it."""

import csv
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import numpy as np

from host.artifact.manifest import Loaded, load_agent
from host.commands.backtest import backtest_csv
from host.commands.train import train_csv
from host.config import load_config
from host.data.formats import ReadOptions
from host.live.live_agent import COLUMNS
from host.training.trainer import Trainer
from models.export import export

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "host" / "data" / "sample.csv"
TINY = [
    "market.session=24",
    "network.latent=8",
    "network.hidden=8",
    "search.simulations=6",
    "search.c_scale=0.1",  # so that policies are no certainties
    "train.block=8",
    "train.simulations=4",
    "train.replay=32",
    "train.batch=64",
    "train.steps=10",
    "train.decay=0.01",
    "train.target_rate=0.3",
    "train.rate=0.01",
]
DECIDED = COLUMNS[:-1]  # all but the latency
LINES = SAMPLE.read_text().splitlines(keepends=True)
HEADER, ROWS = LINES[0], LINES[1:]


class Trained(NamedTuple):
    path: Path
    loaded: Loaded
    decisions: dict[str, list[str]]  # of a backtest over the whole sample, by time

    def __repr__(self) -> str:  # hypothesis prints it
        return f"Trained({self.path})"


def backtest_rows(feed: Path, model: Path, start: str | None) -> dict[str, list[str]]:
    """Decisions of a backtest by time, without the latency."""
    out = model.with_name(f"decisions-{start}.csv".replace(":", ""))
    backtest_csv(feed, model, ReadOptions(), start, out, quiet=True)
    return by_time(out.read_text())


def by_time(text: str) -> dict[str, list[str]]:
    rows = list(csv.reader(text.splitlines()))
    assert tuple(rows[0]) == COLUMNS
    return {row[0]: row[:-1] for row in rows[1:]}


def feed_of(rows: list[str], path: Path) -> Path:
    path.write_text(HEADER + "".join(rows))
    return path


def opinionated(trainer: Trainer) -> dict[str, bytes]:
    """Networks that want something else at every bar: so short a training leaves one opinion for all of them."""
    noise = np.random.default_rng(0).normal(0, 0.3, trainer.target.shape)
    return export((trainer.target + noise).astype(np.float32), trainer.learner.shape, *trainer.slots())


def train(folder: Path) -> Trained:
    with patch.object(Trainer, "graphs", opinionated):
        train_csv(None, ReadOptions(), load_config(None, TINY), folder / "run", None, 32, False, 2)
    model = folder / "run" / "model.swt"
    return Trained(model, load_agent(model), backtest_rows(SAMPLE, model, None))
