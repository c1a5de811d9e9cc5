"""One position and what an action or a move makes of it: shared by the ledger, the features and the search.

A position is a row of `RAW` float32 numbers, indexed by the constants below.  Distances are in R, the mean bar range of
the training part, so a position means the same at any price.
"""

import math

import numpy as np
from numpy.typing import NDArray

from kernels._jit import inlined

HOLD, BUY, SELL, CLOSE = 0, 1, 2, 3
ACTIONS = ("HOLD", "BUY", "SELL", "CLOSE")

SIDE = 0  # -1 short, 0 flat, +1 long
HELD = 1  # bars since the fill
UNREALISED = 2  # marked profit net of the cost of entry (not of swap), R
EXCURSION = 3  # how far the last close is beyond entry on the losing side, net of the spread, R, >= 0
WORST = 4  # largest EXCURSION since entry, R
BEST = 5  # largest UNREALISED since entry, R, >= 0
PREVIOUS = 6  # side before the last action; equals SIDE once a bar has passed
COST = 7  # what entering cost: spread, slippage, commission, R, >= 0
RAW = 8
FEATURES = 9  # width of `position_features`
FAR, LONG = (
    8.0,
    64.0,
)  # R and bars beyond which positions look alike: a network must not extrapolate to rare ones


@inlined
def is_legal(side: float, action: int, reverse: bool) -> bool:
    """Flat: HOLD, BUY, SELL.  In a position: HOLD, CLOSE, and with `reverse` the opposite side."""
    if action == HOLD:
        return True
    if action < HOLD or action > CLOSE:
        return False
    if side == 0:
        return action != CLOSE
    if action == CLOSE:
        return True
    return reverse and ((action == BUY) == (side < 0))


@inlined
def target_side(side: float, action: int) -> float:
    """Side after `action`: the level an order would bring about."""
    if action == BUY:
        return 1.0
    if action == SELL:
        return -1.0
    return side if action == HOLD else 0.0


@inlined
def act_on(out: NDArray[np.float32], position: NDArray[np.float32], action: int, entry_cost: float) -> None:
    """Afterstate: the position once `action` is filled and before the next bar.  `entry_cost` in R, >= 0."""
    side = position[SIDE]
    target = target_side(side, action)
    if target == side:
        for i in range(
            RAW
        ):  # not a slice: its assignment may copy, and code that allocates counts references
            out[i] = position[i]
        return
    for i in range(RAW):
        out[i] = 0.0
    out[SIDE] = target
    out[PREVIOUS] = side
    if target != 0:
        out[UNREALISED] = -entry_cost
        out[COST] = entry_cost


@inlined
def move_on(out: NDArray[np.float32], afterstate: NDArray[np.float32], move: float) -> None:
    """Position one bar after `afterstate`, the price having moved by `move` R."""
    side = afterstate[SIDE]
    for i in range(RAW):
        out[i] = 0.0
    out[SIDE] = side
    out[PREVIOUS] = side
    if side == 0:
        return
    unrealised = afterstate[UNREALISED] + side * move
    out[HELD] = afterstate[HELD] + 1
    out[UNREALISED] = unrealised
    out[COST] = afterstate[COST]
    out[EXCURSION] = max(0.0, -(unrealised + afterstate[COST]))
    out[WORST] = max(afterstate[WORST], out[EXCURSION])
    out[BEST] = max(afterstate[BEST], out[UNREALISED])


@inlined
def squash(distance: float) -> float:
    """Distance in R as a number within +-0.62: linear near 0, half of 1 at 5 R, flat from FAR on."""
    distance = min(max(distance, -FAR), FAR)
    return distance / (5.0 + abs(distance))


@inlined
def position_features(out: NDArray[np.float32], position: NDArray[np.float32], memoryless: bool) -> None:
    """out [FEATURES]: what a network is told of a position or afterstate; if `memoryless`, its side alone.

    Under the `pnl` reward nothing else matters: what a position has earned is booked, what it will earn has no memory.
    """
    out[0] = position[SIDE]
    out[1] = abs(position[SIDE])
    if memoryless:
        for i in range(2, FEATURES):
            out[i] = 0.0
        return
    out[2] = math.log1p(min(position[HELD], LONG)) / 4.0
    out[3] = squash(position[UNREALISED])
    out[4] = squash(position[EXCURSION])
    out[5] = squash(position[WORST])
    out[6] = squash(position[BEST])
    out[7] = squash(position[BEST] - position[UNREALISED])
    out[8] = position[PREVIOUS] - position[SIDE]
