"""Self-play: a block of sessions in lockstep, from the first decision to the ledger's closing entry, in one call."""

import numpy as np
from numpy.typing import NDArray

from kernels._jit import inlined, kernel
from kernels.bars import Bars
from kernels.market import ACC_SIDE, Codes, Market, close_out, raw_position, step
from kernels.planner import Planner, draw_noise, past_columns, plan, set_root
from kernels.position import HOLD, is_legal
from kernels.replay import Replay
from kernels.rng import below

WANDER_BARS = 16  # of a random trader


@inlined
def wander(side: float, reverse: bool, actions: int, seed: int, session: int, step: int) -> int:
    """A random trader: one bar in WANDER_BARS any action, if it is legal, else HOLD."""
    draw = below(
        WANDER_BARS * actions, seed, session, -1 - step
    )  # the noise of the roots has the steps from 0 up
    if draw < actions and is_legal(side, draw, actions, reverse):
        return draw
    return HOLD


@kernel
def play(
    replay: Replay,
    account: NDArray[np.float64],
    trade: NDArray[np.float64],
    planner: Planner,
    slots: NDArray[np.int64],
    X: NDArray[np.float32],
    row_of_bar: NDArray[np.int32],
    bars: Bars,
    codes: Codes,
    market: Market,
    wanderers: int,
    seed: int,
    session: int,
) -> int:
    """Play session b of the block into replay slot slots[b], whose `start` is set, from a flat account[b] [ACCOUNT].

    The first `wanderers` sessions are searched like the others but act at random: an agent that learnt to stay flat
    would else forget what a position is worth.

    The noise of a root is keyed by (seed, session + b, step).  `trade` [TRADE] is scratch.  0 or a network status.
    """
    B, L = slots.shape[0], replay.reward.shape[1]
    for k in range(L):
        for b in range(B):
            t = replay.start[slots[b]] + k
            position = replay.position[slots[b], k]
            raw_position(position, account[b], market)
            past_columns(planner.model.root.x[b], X, row_of_bar, t)
            set_root(planner, b, X[row_of_bar[t]], position, bars, t, codes, market)
            draw_noise(planner, b, seed, session + b, k)
        status = plan(planner)
        if status != 0:
            return status
        for b in range(B):
            slot = slots[b]
            action = int(planner.action[b])
            if b < wanderers:
                action = wander(
                    account[b, ACC_SIDE], market.reverse, planner.policy.shape[1], seed, session + b, k
                )
            replay.action[slot, k] = action
            replay.reward[slot, k] = step(account[b], trade, bars, replay.start[slot] + k, action, market)
            replay.search_value[slot, k] = planner.value[b]
            for a in range(planner.policy.shape[1]):
                replay.policy[slot, k, a] = planner.policy[b, a]
    for b in range(B):
        raw_position(replay.position[slots[b], L], account[b], market)
        close_out(account[b], trade, bars, replay.start[slots[b]] + L, market)
    return 0
