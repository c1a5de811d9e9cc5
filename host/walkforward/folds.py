"""`Fold`: where a training ends and its test begins.  Test parts follow each other without a hole; a holdout is last.

A training never sees its test: every label of it is bought and sold within the training part (purged), and between
its validation part and the test lies an episode that neither uses (embargo; Lopez de Prado 2018, chapter 7).
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from host.config import Config
from host.data.instruments import Instrument
from host.training.dataset import DatasetError, split_bars

HOLDOUT = "holdout"  # name of the fold that is tested once
HOLDOUT_FRACTION = 0.15  # of all bars
FIRST_TRAINING_FRACTION = 0.4  # of the bars before the holdout; the test parts share the rest evenly


class Fold(NamedTuple):
    """Bars [first, validation_stop) to train and validate on, and decisions at the closes of [test_first, test_stop).

    The position of the last decision, which is flat, is known at bar `test_stop`: the first test bar of the next fold.
    """

    name: str  # 1, 2, ... or HOLDOUT
    first: int
    validation_stop: int
    test_first: int
    test_stop: int


def new_folds(num_bars: int, count: int, embargo: int, rolling: bool) -> list[Fold]:
    """`count` folds of equal test parts, and the holdout.

    Anchored trainings begin at bar 0; rolling ones are all as long as the first.
    """
    holdout_first = num_bars - 1 - int(num_bars * HOLDOUT_FRACTION)
    window = int(holdout_first * FIRST_TRAINING_FRACTION)
    edges = [*np.linspace(window, holdout_first, count + 1).astype(int).tolist(), num_bars - 1]
    names = [*map(str, range(1, count + 1)), HOLDOUT]
    return [
        Fold(name, begin - window if rolling else 0, begin - embargo, begin, end)
        for name, begin, end in zip(names, edges[:-1], edges[1:], strict=True)
    ]


def fold_config(fold: Fold, config: Config) -> Config:
    """`config` with the fraction that ends the validation part of bars [first, test_stop] where the fold says."""
    fraction = (fold.validation_stop - fold.first + 0.5) / (fold.test_stop + 1 - fold.first)  # int() rounds it down
    return replace(config, train=replace(config.train, train_fraction=fraction))


def check_folds(
    folds: list[Fold], time: NDArray[np.int64], config: Config, instrument: Instrument, interval_ns: int
) -> None:
    """Raise DatasetError unless every fold of bars that close at `time` [T] gives an episode and has a test."""
    for fold in folds:
        split = None
        if fold.test_first < fold.test_stop and fold.validation_stop > fold.first:
            split = split_bars(
                time[fold.first : fold.test_stop + 1], fold_config(fold, config), instrument, interval_ns
            )
        if split is None or split.shortage or fold.first + split.test_first != fold.test_first:
            bars, length = max(fold.validation_stop - fold.first, 0), config.market.episode_length
            shorter = split is not None and config.train.td_steps < split.longest < length
            way_out = " or fewer --folds" if len(folds) > 2 else ""
            if split is not None and shorter:
                way_out = f" or --set market.episode_length={split.longest}"
            raise DatasetError(
                f"fold {fold.name}: {bars} of {len(time)} bars to train on give no episode of {length} decisions: "
                f"bring more bars{way_out}"
            )
