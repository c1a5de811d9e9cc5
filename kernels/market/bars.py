"""Closed bars as flat arrays, and how many of them may be missing in a row."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.jit import kernel

SECOND_NS = 1_000_000_000
MAX_MISSING_BARS = 10  # in a row; where more are missing, there is a gap


class Bars(NamedTuple):
    """T closed bars, the oldest first.  Prices are bid prices, but for the two named ask."""

    time: NDArray[np.int64]  # [T] UTC close of the bar, nanoseconds since the epoch
    open: NDArray[np.float64]  # [T]
    high: NDArray[np.float64]  # [T]
    low: NDArray[np.float64]  # [T]
    close: NDArray[np.float64]  # [T]
    ask_open: NDArray[np.float64]  # [T]
    ask_close: NDArray[np.float64]  # [T]
    volume: NDArray[np.float64]  # [T]


def slice_bars(bars: Bars, first: int, stop: int) -> Bars:
    """Views of bars [first, stop)."""
    return Bars._make(column[first:stop] for column in bars)


@kernel
def missing_bars(bars: Bars, t: int, interval_ns: int) -> int:
    """Number of bars of `interval_ns` that fit between bar t - 1 and bar t; 0 where the two touch."""
    if t == 0:
        return 0
    return max(0, int((bars.time[t] - bars.time[t - 1]) // interval_ns - 1))
