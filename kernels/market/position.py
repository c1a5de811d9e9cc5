"""One position and what an action or a move makes of it: shared by the ledger, the features and the search.

A position is a row of `NUM_POSITION_FIELDS` float32 numbers, indexed by the constants below.  Distances are in R, the mean bar range of
the training part, so a position means the same at any price.
"""

import math

import numpy as np
from numpy.typing import NDArray

from kernels.jit import inlined

# Kinds of action.  With k sizes the actions are HOLD, a BUY of each size, a SELL of each size, CLOSE: A = 2 k + 2, and
# with one size they are the kinds themselves.
HOLD, BUY, SELL, CLOSE = 0, 1, 2, 3
ACTIONS = ("HOLD", "BUY", "SELL", "CLOSE")
MAX_SIZES = 5
FULL_SIZE_ONLY = (
    1.0,
    0.0,
    0.0,
    0.0,
    0.0,
)  # sizes of an entry, MOST_SIZES numbers: ascending, then 0 where there are fewer

SIDE = 0  # signed size: -1 short, 0 flat, +1 long, fractions between
HELD = 1  # bars since the fill
UNREALISED = 2  # marked profit net of the cost of entry (not of swap), R; distances of a half position are halved
ADVERSE_EXCURSION = 3  # how far the last close is beyond entry on the losing side, net of the spread, R, >= 0
MAE = 4  # largest EXCURSION since entry, R
MFE = 5  # largest UNREALISED since entry, R, >= 0
PREVIOUS_SIDE = 6  # side before the last action; equals SIDE once a bar has passed
ENTRY_COST = 7  # what entering cost: spread, slippage, commission, R, >= 0
NUM_POSITION_FIELDS = 8
NUM_POSITION_FEATURES = 9  # width of `position_features`
MAX_DISTANCE, MAX_HELD = (
    8.0,
    64.0,
)  # R and bars beyond which positions look alike: a network must not extrapolate to rare ones


def action_names(sizes: tuple[float, ...]) -> list[str]:
    """The actions in order, as a model records them: a kind, and the size where it is not a full position."""
    entries = [f"{kind} {size:g}" if size != 1 else kind for kind in ("BUY", "SELL") for size in sizes if size]
    return ["HOLD", *entries, "CLOSE"]


@inlined
def count_actions(sizes: tuple[float, ...]) -> int:
    """A of a market with these sizes of an entry."""
    k = 0
    for size in sizes:
        if size > 0:
            k += 1
    return 2 * k + 2


@inlined
def action_kind(action: int, num_actions: int) -> int:
    """HOLD, BUY, SELL or CLOSE, or -1 where there is no such action."""
    k = num_actions // 2 - 1
    if action <= HOLD:
        return HOLD if action == HOLD else -1
    if action <= k:
        return BUY
    if action <= 2 * k:
        return SELL
    return CLOSE if action < num_actions else -1


@inlined
def mirrored_action(action: int, num_actions: int) -> int:
    """The action that does in a mirrored market what `action` does here: the same size on the other side."""
    k = num_actions // 2 - 1
    if action == HOLD or action > 2 * k:
        return action
    return action + k if action <= k else action - k


@inlined
def is_legal(side: float, action: int, num_actions: int, reverse: bool) -> bool:
    """Flat: HOLD, BUY, SELL.  In a position: HOLD, CLOSE, and with `reverse` the opposite side; no resizing."""
    kind = action_kind(action, num_actions)
    if kind < 0:
        return False
    if kind == HOLD:
        return True
    if side == 0:
        return kind != CLOSE
    if kind == CLOSE:
        return True
    return reverse and ((kind == BUY) == (side < 0))


@inlined
def action_kind_to(side: float, target: float) -> int:
    """The kind of action that turns a position of `side` into one of `target`."""
    if target == side:
        return HOLD
    if target == 0:
        return CLOSE
    return BUY if target > 0 else SELL


@inlined
def action_target(side: float, action: int, sizes: tuple[float, ...]) -> float:
    """Signed size after `action`: the level an order would bring about."""
    actions = count_actions(sizes)
    kind = action_kind(action, actions)
    if kind == BUY:
        return sizes[action - 1]
    if kind == SELL:
        return -sizes[action - actions // 2]
    return side if kind == HOLD else 0.0


@inlined
def apply_fill(out: NDArray[np.float32], position: NDArray[np.float32], target: float, entry_cost: float) -> None:
    """Afterstate: the position once it is filled to `target`, before the next bar.  `entry_cost` of a full one, R."""
    side = position[SIDE]
    if target == side:
        for i in range(
            NUM_POSITION_FIELDS
        ):  # not a slice: its assignment may copy, and code that allocates counts references
            out[i] = position[i]
        return
    for i in range(NUM_POSITION_FIELDS):
        out[i] = 0.0
    out[SIDE] = target
    out[PREVIOUS_SIDE] = side
    if target != 0:
        out[UNREALISED] = -entry_cost * abs(target)
        out[ENTRY_COST] = entry_cost * abs(target)


@inlined
def apply_move(out: NDArray[np.float32], afterstate: NDArray[np.float32], move: float) -> None:
    """Position one bar after `afterstate`, the price having moved by `move` R."""
    side = afterstate[SIDE]
    for i in range(NUM_POSITION_FIELDS):
        out[i] = 0.0
    out[SIDE] = side
    out[PREVIOUS_SIDE] = side
    if side == 0:
        return
    unrealised = afterstate[UNREALISED] + side * move
    out[HELD] = afterstate[HELD] + 1
    out[UNREALISED] = unrealised
    out[ENTRY_COST] = afterstate[ENTRY_COST]
    out[ADVERSE_EXCURSION] = max(0.0, -(unrealised + afterstate[ENTRY_COST]))
    out[MAE] = max(afterstate[MAE], out[ADVERSE_EXCURSION])
    out[MFE] = max(afterstate[MFE], out[UNREALISED])


@inlined
def squash(distance: float) -> float:
    """Distance in R as a number within +-0.62: linear near 0, half of 1 at 5 R, flat from FAR on."""
    distance = min(max(distance, -MAX_DISTANCE), MAX_DISTANCE)
    return distance / (5.0 + abs(distance))


@inlined
def position_features(out: NDArray[np.float32], position: NDArray[np.float32], memoryless: bool) -> None:
    """out [FEATURES]: what a network is told of a position or afterstate; if `memoryless`, not what became of it.

    Under the `pnl` reward its side and whether it was just filled, which costs, are all that matters: what a position
    has earned is booked, what it will earn has no memory.
    """
    out[0] = position[SIDE]
    out[1] = abs(position[SIDE])
    out[8] = position[PREVIOUS_SIDE] - position[SIDE]
    if memoryless:
        for i in range(2, 8):
            out[i] = 0.0
        return
    out[2] = math.log1p(min(position[HELD], MAX_HELD)) / 4.0
    out[3] = squash(position[UNREALISED])
    out[4] = squash(position[ADVERSE_EXCURSION])
    out[5] = squash(position[MAE])
    out[6] = squash(position[MFE])
    out[7] = squash(position[MFE] - position[UNREALISED])


@inlined
def mirror_position_features(features: NDArray[np.float32]) -> None:
    """Turn the features of a position [FEATURES] into those of the same one on the other side of a mirrored market."""
    features[0], features[8] = -features[0], -features[8]
