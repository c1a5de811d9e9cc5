"""Closed bars as flat arrays: what every kernel that looks at the market reads."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.jit import kernel

SECOND_NS = 1_000_000_000


class Bars(NamedTuple):
    """T closed bars, oldest first; prices are bid unless they say ask."""

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
    """Bars of `interval_ns` that fit between bar t - 1 and bar t; 0 where they touch."""
    if t == 0:
        return 0
    return max(0, int((bars.time[t] - bars.time[t - 1]) // interval_ns - 1))
