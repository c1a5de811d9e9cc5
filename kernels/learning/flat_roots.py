"""`search_flat_roots`: the Q of an agent without a position at many bars, for measures of what it has learnt."""

import numpy as np
from numpy.typing import NDArray

from kernels.jit import kernel
from kernels.learning.record import set_market_root
from kernels.learning.replay_buffer import MarketData
from kernels.search.planner import Planner, plan


@kernel
def search_flat_roots(
    q: NDArray[np.float64], planner: Planner, market_data: MarketData, ts: NDArray[np.int64], flat: NDArray[np.float32]
) -> int:
    """Write into q [n, A] the Q of the root actions at the closes of the bars `ts` [n].  0, or a failed call's status.

    `flat` [NUM_POSITION_FIELDS] is a row of zeros: the position.  The planner's noise is that of its last search.
    """
    B, n = planner.policy.shape[0], ts.shape[0]
    for first in range(0, n, B):
        for b in range(B):
            set_market_root(planner, b, market_data, ts[min(first + b, n - 1)], flat)
        status = plan(planner)
        if status != 0:
            return status
        for b in range(min(B, n - first)):
            for a in range(q.shape[1]):
                q[first + b, a] = planner.q[b, a]
    return 0
