"""Self-play: a block of sessions in lockstep, from the first decision to the ledger's closing entry, in one call."""

import numpy as np
from numpy.typing import NDArray

from kernels.jit import inlined, kernel
from kernels.learning.record import past_columns, store
from kernels.learning.replay_buffer import Replay, Tape
from kernels.market.ledger import ACC_SIDE, close_out, raw_position, step_to
from kernels.market.position import BUY, HOLD, is_legal
from kernels.rng import below, uniform
from kernels.search.planner import Planner, chosen_target, draw_noise, plan, set_root
from kernels.search.progressive_widening import LEAST_SIZE, Wide

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


@inlined
def wander_size(wide: Wide | None, b: int, action: int, seed: int, session: int, step: int) -> None:
    """Where entries have any size, so have a random trader's."""
    if wide is not None:
        size = max(uniform(seed, -1 - session, step), LEAST_SIZE)
        wide.target[b] = size if action == BUY else -size


@kernel
def play(
    replay: Replay,
    account: NDArray[np.float64],
    trade: NDArray[np.float64],
    planner: Planner,
    slots: NDArray[np.int64],
    tape: Tape,
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
    bars, market = tape.bars, tape.market
    for k in range(L):
        for b in range(B):
            t = replay.start[slots[b]] + k
            position = replay.position[slots[b], k]
            raw_position(position, account[b], market)
            past_columns(planner.model.root.x[b], tape, t)
            set_root(planner, b, tape.X[tape.row_of_bar[t]], position, bars, t, tape.codes, market)
            draw_noise(planner, b, seed, session + b, k)
        status = plan(planner)
        if status != 0:
            return status
        for b in range(B):
            slot, side, action = slots[b], account[b, ACC_SIDE], int(planner.action[b])
            if b < wanderers:
                action = wander(side, market.reverse, planner.policy.shape[1], seed, session + b, k)
                wander_size(planner.wide, b, action, seed, session + b, k)
            target = chosen_target(planner.wide, b, action, side, market)
            replay.action[slot, k] = action
            replay.reward[slot, k] = step_to(account[b], trade, bars, replay.start[slot] + k, target, market)
            store(replay, slot, k, planner, b)
    for b in range(B):
        raw_position(replay.position[slots[b], L], account[b], market)
        close_out(account[b], trade, bars, replay.start[slots[b]] + L, market)
    return 0
