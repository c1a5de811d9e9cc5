"""Features of bars, computed when a training first asks for them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from host.training.dataset import Dataset
from kernels.learning.replay_buffer import MarketData
from kernels.market.features import compute_features, feature_signs, normalise_rows

CACHE_MB = 64  # of features: 57,000 bars with the default settings, or as many as the replay needs


RELEASE_IN_USE = np.iinfo(np.int64).max


class FeatureStore:
    """Normalised features of bars, a row for each: X [rows, F], found through row_of_bar [T].

    Sessions start on the same bars again and again, so a row released is kept until its room is needed, least recently
    released first.  What a row holds depends on its bar alone: the room decides what is computed twice, nothing else.
    """

    def __init__(self, data: Dataset, rows: int, threads: int, cache_mb: int = CACHE_MB, bars_before: int = 0) -> None:
        width, T = len(data.market_spec.normaliser.scale), len(data.bars.time)
        self.X = np.zeros((min(max(rows, cache_mb * 2**20 // (4 * width)), T), width), np.float32)
        self.row_of_bar = np.full(T, -1, np.int32)
        self._bar_of_row = np.full(len(self.X), -1)
        self._release_time = np.zeros(len(self.X), np.int64)  # when, in releases; 0 never used, IN_USE not yet
        self._num_releases = 0
        self._ref_count = np.zeros(T, np.int16)
        self._data, self._threads, self._bars_before = data, threads, bars_before
        setting, sign = (data.market_spec, feature_signs(data.market_spec.features, data.extra_features.shape[1]))
        self.market_data = MarketData(self.X, self.row_of_bar, sign, data.bars, setting.codes, setting.market)

    def acquire(self, starts: NDArray[np.int64], bars: int) -> None:
        """Have the features of `bars` bars from each start, and of those `before`, at hand until `release`."""
        ts, users = np.unique(starts[:, None] + np.arange(-self._bars_before, bars), return_counts=True)
        self._ref_count[ts] += users.astype(np.int16)
        known = self.row_of_bar[ts] >= 0
        self._release_time[self.row_of_bar[ts[known]]] = RELEASE_IN_USE
        missing = ts[~known]
        rows = np.argsort(self._release_time, kind="stable")[: len(missing)]
        if len(rows) < len(missing) or (self._release_time[rows] == RELEASE_IN_USE).any():
            raise IndexError(f"the feature store has {len(self.X)} rows, and sessions use them all")
        dropped = self._bar_of_row[rows]
        self.row_of_bar[dropped[dropped >= 0]] = -1
        self.row_of_bar[missing], self._bar_of_row[rows], self._release_time[rows] = (rows, missing, RELEASE_IN_USE)
        setting = self._data.market_spec
        fresh = compute_features(setting.features, self._data.bars, missing, self._threads)
        self.X[rows] = np.concatenate([fresh, self._data.extra_features[missing]], axis=1)
        normalise_rows(self.X, rows.astype(np.int32), setting.normaliser)

    def release(self, start: int, bars: int) -> None:
        """Let the rows go that no other session uses."""
        ts = np.arange(start - self._bars_before, start + bars)
        self._ref_count[ts] -= 1
        self._num_releases += 1
        self._release_time[self.row_of_bar[ts[self._ref_count[ts] == 0]]] = self._num_releases
