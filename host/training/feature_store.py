"""`FeatureStore`: features of the bars of stored episodes, computed on first use."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from host.data.parsing import format_utc
from host.training.dataset import Dataset
from kernels.learning.replay_buffer import MarketData
from kernels.market.features import compute_features, feature_names, feature_signs, normalise_rows

CACHE_MB = 64  # 57,000 bars with the default settings; more where the replay buffer needs more
FILL_PIECE = 4096  # bars whose features are computed at once, twice 5 MB beside the store
RELEASE_IN_USE = np.iinfo(np.int64).max


class FeatureStore:
    """Normalised features of bars: X [rows, F], where bar t has the row row_of_bar[t], or -1; row_of_bar [T].

    Episodes start on the same bars again and again, so a released row stays until its place is needed; the row that was
    released first goes first.  A row depends on its bar alone: `cache_mb` changes only what is computed twice.
    """

    def __init__(
        self, data: Dataset, rows: int, threads: int, cache_mb: float = CACHE_MB, bars_before: int = 0
    ) -> None:
        width, T = len(data.market_spec.normaliser.scale), len(data.bars.time)
        rows = min(max(rows, int(cache_mb * 2**20 / (4 * width))), T)
        # _release_time: number of the release; 0: never used, RELEASE_IN_USE
        self.X, self._bar_of_row, self._release_time = new_row_arrays(rows, width)
        self.row_of_bar = np.full(T, -1, np.int32)
        self._num_releases = 0
        self._ref_count = np.zeros(T, np.int16)
        self._data, self._threads, self._bars_before = data, threads, bars_before
        spec, sign = data.market_spec, feature_signs(data.market_spec.features, data.extra_features.shape[1])
        self.market_data = MarketData(self.X, self.row_of_bar, sign, data.bars, spec.codes, spec.market)

    def acquire(self, starts: NDArray[np.int64], bars: int) -> None:
        """Keep the features of `bars` bars from each start, and of `bars_before` bars before it, until `release`.

        IndexError where the rows do not suffice, FloatingPointError where a feature is not finite.
        """
        ts, users = np.unique(starts[:, None] + np.arange(-self._bars_before, bars), return_counts=True)
        self._ref_count[ts] += users.astype(np.int16)
        is_stored = self.row_of_bar[ts] >= 0
        self._release_time[self.row_of_bar[ts[is_stored]]] = RELEASE_IN_USE
        missing = ts[~is_stored]
        rows = np.argsort(self._release_time, kind="stable")[: len(missing)]
        if len(rows) < len(missing) or (self._release_time[rows] == RELEASE_IN_USE).any():
            raise IndexError(f"the feature store has {len(self.X)} rows, and episodes use them all")
        dropped = self._bar_of_row[rows]
        self.row_of_bar[dropped[dropped >= 0]] = -1
        self.row_of_bar[missing], self._bar_of_row[rows], self._release_time[rows] = (rows, missing, RELEASE_IN_USE)
        for i in range(0, len(missing), FILL_PIECE):
            self._fill(rows[i : i + FILL_PIECE], missing[i : i + FILL_PIECE])

    def _fill(self, rows: NDArray[np.int64], ts: NDArray[np.int64]) -> None:
        """Compute the features of the bars `ts` into `rows`."""
        spec = self._data.market_spec
        features = compute_features(spec.features, self._data.bars, ts, self._threads)
        self.X[rows] = np.concatenate([features, self._data.extra_features[ts]], axis=1)
        normalise_rows(self.X, rows.astype(np.int32), spec.normaliser)
        if not (is_finite := np.isfinite(self.X[rows])).all():
            row, column = np.argwhere(~is_finite)[0]
            names, close = feature_names(spec.features), format_utc(self._data.bars.time[ts[row]])
            name = names[column] if column < len(names) else f"extra {column - len(names)}"
            raise FloatingPointError(f"feature {name} of the bar that closed at {close} is not finite")

    def clear(self) -> None:
        """Forget all rows, and who uses them."""
        self.row_of_bar[:], self._bar_of_row[:], self._ref_count[:] = -1, -1, 0
        self._release_time[:] = self._num_releases = 0

    def release(self, starts: NDArray[np.int64], bars: int) -> None:
        """Undo an `acquire`; a row that nobody uses any more may go, after those that were released before it."""
        ts, users = np.unique(starts[:, None] + np.arange(-self._bars_before, bars), return_counts=True)
        self._ref_count[ts] -= users.astype(np.int16)
        self._num_releases += 1
        self._release_time[self.row_of_bar[ts[self._ref_count[ts] == 0]]] = self._num_releases


def new_row_arrays(rows: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """X [rows, F], and of each row its bar and the time of its release."""
    return np.zeros((rows, width), np.float32), np.full(rows, -1), np.zeros(rows, np.int64)
