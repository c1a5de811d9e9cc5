"""Episodes in lockstep: B accounts, each at a bar of its own, take one decision in one call."""

import numpy as np
from numpy.typing import NDArray

from kernels.jit import kernel
from kernels.market.bars import Bars
from kernels.market.ledger import ACC_SIDE, Market, permits, step, write_position
from kernels.market.position import HOLD, position_features


@kernel
def step_accounts(
    reward: NDArray[np.float64],
    account: NDArray[np.float64],
    trade: NDArray[np.float64],
    bars: Bars,
    bar: NDArray[np.int64],
    action: NDArray[np.int64],
    market: Market,
    num_actions: int,
) -> None:
    """Take action [B] at the closes of bar [B]; an illegal action holds.

    Writes reward [B] of the bars that follow, in ranges, and account [B, NUM_ACCOUNT_FIELDS].  trade [NUM_TRADE_FIELDS]
    is scratch.
    """
    for b in range(bar.shape[0]):
        legal = permits(market, account[b, ACC_SIDE], action[b], num_actions)
        reward[b] = step(account[b], trade, bars, bar[b], action[b] if legal else HOLD, market)


@kernel
def write_legal(out: NDArray[np.bool_], account: NDArray[np.float64], market: Market) -> None:
    """Write into out [B, A] the actions that the positions of account [B, NUM_ACCOUNT_FIELDS] permit."""
    for b in range(out.shape[0]):
        for a in range(out.shape[1]):
            out[b, a] = permits(market, account[b, ACC_SIDE], a, out.shape[1])


@kernel
def write_observations(
    out: NDArray[np.float32],
    position: NDArray[np.float32],
    features: NDArray[np.float32],
    bar: NDArray[np.int64],
    account: NDArray[np.float64],
    market: Market,
) -> None:
    """Write into out [B, F + P] the row of features [T, F] of bar [B], and the features of the position.

    account [B, NUM_ACCOUNT_FIELDS]; position [NUM_POSITION_FIELDS] is scratch.
    """
    F = features.shape[1]
    for b in range(out.shape[0]):
        for f in range(F):
            out[b, f] = features[bar[b], f]
        write_position(position, account[b], market)
        position_features(out[b, F:], position, market.mae_penalty == 0)
