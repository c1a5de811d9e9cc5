"""Bars split into a training and a test part, and the features of the bars that the replay refers to."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from host.agent import Setting
from host.config import Config, ConfigError
from kernels.bars import Bars
from kernels.features import HISTORY, features_of, fit_normaliser, new_features, normalise_rows, signs
from kernels.market import Tape, check_scale, fit_codes, new_market, session_starts

FIT_SAMPLE = (
    20_000  # bars that the normaliser and the codes are fitted to, evenly spaced over the training part
)
ROOM_MB = (
    64  # of features: 57,000 bars with the default settings, or as many as the replay needs if those are more
)
IN_USE = np.iinfo(np.int64).max


class Dataset(NamedTuple):
    """A market to train on."""

    bars: Bars
    extra: NDArray[np.float32]  # [T, E] columns that only a self-test has; a mirrored price negates them
    train_stop: int  # bars [0, train_stop) are the training part
    test_first: int  # first decision of the test part, an embargo later
    setting: Setting
    starts: NDArray[np.int64]  # first bars of the training sessions
    rejects: dict[str, int]  # starts refused, by reason


class DatasetError(ValueError):
    """The bars do not suffice or do not fit the instrument."""

    exit_code = 4


def new_dataset(
    bars: Bars, extra: NDArray[np.float32], config: Config, pip_px: float, interval_ns: int, threads: int
) -> Dataset:
    """Split the bars and fit everything that is fitted, to the training part only."""
    T, length = len(bars.time), config.market.session
    train_stop = int(T * config.train.train_share)
    if not all(np.isfinite(column).all() for column in bars):
        raise DatasetError("a price, volume or time of the bars is not a finite number")
    try:
        check_scale(bars, pip_px)
    except ValueError as error:
        raise DatasetError(str(error)) from None
    history = HISTORY + context_of(config) - 1
    starts, rejects = session_starts(bars, 0, train_stop, length, history, interval_ns)
    test_first = max(train_stop + length, history)
    if len(starts) == 0 or test_first + 1 >= T:
        reasons = ", ".join(f"{count} {reason}" for reason, count in rejects.items() if count)
        raise DatasetError(
            f"{T} bars give no training session of {length} decisions ({reasons}); "
            "bring more bars or set market.session to fewer decisions"
        )
    setting = fit_setting(bars, extra, config, pip_px, interval_ns, train_stop, threads)
    return Dataset(bars, extra, train_stop, test_first, setting, starts, rejects)


def context_of(config: Config) -> int:
    """Bars whose features the root network is given."""
    return config.network.context if config.network.model == "transformer" else 1


def fit_setting(
    bars: Bars,
    extra: NDArray[np.float32],
    config: Config,
    pip_px: float,
    interval_ns: int,
    train_stop: int,
    threads: int,
) -> Setting:
    """Costs, feature specification, normaliser and chance codes from bars [0, train_stop)."""
    m = config.market
    try:
        market = new_market(
            range_px=float(np.mean(bars.high[:train_stop] - bars.low[:train_stop])),
            pip_px=pip_px,
            interval_ns=interval_ns,
            slippage_px=m.slippage * pip_px,
            commission_px=m.commission * pip_px,
            swap_long_px=m.swap_long * pip_px,
            swap_short_px=m.swap_short * pip_px,
            excursion_weight=m.excursion_weight if m.reward == "amddp" else 0.0,
            reverse=m.reverse,
            sizes=m.sizes,
        )
    except ValueError as error:
        raise ConfigError(f"market: {error}") from None
    spec = new_features(config.features.J, config.features.Q, interval_ns)
    ts = np.unique(np.linspace(HISTORY - 1, train_stop - 2, FIT_SAMPLE).astype(np.int64))
    X = np.concatenate([features_of(spec, bars, ts, threads), extra[ts]], axis=1)
    codes = fit_codes(bars, ts, config.network.codes)
    return Setting(spec, fit_normaliser(X, spec), codes, market)


class FeatureStore:
    """Normalised features of bars, a row for each: X [rows, F], found through row_of_bar [T].

    Sessions start on the same bars again and again, so a row released is kept until its room is needed, least recently
    released first.  What a row holds depends on its bar alone: the room decides what is computed twice, nothing else.
    """

    def __init__(
        self, data: Dataset, rows: int, threads: int, room_mb: int = ROOM_MB, before: int = 0
    ) -> None:
        width, T = len(data.setting.normaliser.scale), len(data.bars.time)
        self.X = np.zeros((min(max(rows, room_mb * 2**20 // (4 * width)), T), width), np.float32)
        self.row_of_bar = np.full(T, -1, np.int32)
        self._bar_of_row = np.full(len(self.X), -1)
        self._released = np.zeros(len(self.X), np.int64)  # when, in releases; 0 never used, IN_USE not yet
        self._releases = 0
        self._users = np.zeros(T, np.int16)
        self._data, self._threads, self._before = data, threads, before
        setting, sign = data.setting, signs(data.setting.features, data.extra.shape[1])
        self.tape = Tape(self.X, self.row_of_bar, sign, data.bars, setting.codes, setting.market)

    def hold(self, starts: NDArray[np.int64], bars: int) -> None:
        """Have the features of `bars` bars from each start, and of those `before`, at hand until `release`."""
        ts, users = np.unique(starts[:, None] + np.arange(-self._before, bars), return_counts=True)
        self._users[ts] += users.astype(np.int16)
        known = self.row_of_bar[ts] >= 0
        self._released[self.row_of_bar[ts[known]]] = IN_USE
        missing = ts[~known]
        rows = np.argsort(self._released, kind="stable")[: len(missing)]
        if len(rows) < len(missing) or (self._released[rows] == IN_USE).any():
            raise IndexError(f"the feature store has {len(self.X)} rows, and sessions use them all")
        dropped = self._bar_of_row[rows]
        self.row_of_bar[dropped[dropped >= 0]] = -1
        self.row_of_bar[missing], self._bar_of_row[rows], self._released[rows] = rows, missing, IN_USE
        setting = self._data.setting
        fresh = features_of(setting.features, self._data.bars, missing, self._threads)
        self.X[rows] = np.concatenate([fresh, self._data.extra[missing]], axis=1)
        normalise_rows(self.X, rows.astype(np.int32), setting.normaliser)

    def release(self, start: int, bars: int) -> None:
        """Let the rows go that no other session uses."""
        ts = np.arange(start - self._before, start + bars)
        self._users[ts] -= 1
        self._releases += 1
        self._released[self.row_of_bar[ts[self._users[ts] == 0]]] = self._releases
