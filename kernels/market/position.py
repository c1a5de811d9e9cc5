"""A position, and how actions and moves of the price change it; the ledger, the features and the search use it.

A position is a row of NUM_POSITION_FIELDS float32 numbers, indexed by the constants below.  Distances are in ranges,
the mean bar range of the training part, so a position means the same at any price.
"""

import math

import numpy as np
from numpy.typing import NDArray

from kernels.jit import inlined

# Kinds of action.  With k sizes the A = 2 k + 2 actions are HOLD, a BUY of each size, a SELL of each size, and CLOSE.
# With one size the actions are the kinds.
HOLD, BUY, SELL, CLOSE = 0, 1, 2, 3
ACTIONS = ("HOLD", "BUY", "SELL", "CLOSE")
MAX_SIZES = 5
FULL_SIZE_ONLY = (1.0, 0.0, 0.0, 0.0, 0.0)  # [MAX_SIZES] sizes of an entry: ascending, then zeros

# Distances of a half position are half of those of a full one.
SIDE = 0  # signed size: -1 short, 0 flat, +1 long, or a fraction
HELD = 1  # bars since the fill
UNREALISED = 2  # profit at the last close, net of the cost of entry, without financing, ranges
ADVERSE_EXCURSION = 3  # loss from entry to the last close, without the cost of entry, ranges, >= 0
MAE = 4  # largest ADVERSE_EXCURSION since entry, ranges
MFE = 5  # largest UNREALISED since entry, ranges, >= 0
PREVIOUS_SIDE = 6  # side before the last action; equals SIDE from the next bar on
ENTRY_COST = 7  # spread, slippage and commission of entry, ranges, >= 0
NUM_POSITION_FIELDS = 8
NUM_POSITION_FEATURES = 9  # P, the width of `position_features`
# Ranges and bars at which features are clipped: a network must not extrapolate to rare positions.
MAX_DISTANCE, MAX_HELD = 8.0, 64.0


def action_names(sizes: tuple[float, ...]) -> list[str]:
    """[A] the name of each action, as a model file has it: the kind, and the size where it is not a full position."""
    entries = [f"{kind} {size:g}" if size != 1 else kind for kind in ("BUY", "SELL") for size in sizes if size]
    return ["HOLD", *entries, "CLOSE"]


@inlined
def count_actions(sizes: tuple[float, ...]) -> int:
    """A of a market with these sizes of an entry [MAX_SIZES]."""
    k = 0
    for size in sizes:
        if size > 0:
            k += 1
    return 2 * k + 2


@inlined
def action_kind(action: int, num_actions: int) -> int:
    """Kind of an action: HOLD, BUY, SELL or CLOSE; -1 where there is no such action."""
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
    """The action of the same size on the other side; HOLD and CLOSE are their own mirror images."""
    k = num_actions // 2 - 1
    if action == HOLD or action > 2 * k:
        return action
    return action + k if action <= k else action - k


@inlined
def is_legal(
    side: float,
    action: int,
    num_actions: int,
    reverse: bool,
    position_adjustment: bool = False,
    target: float = 0.0,
) -> bool:
    """Whether a position of signed size `side` permits `action`.

    Flat: HOLD, BUY, SELL.  Otherwise: HOLD, CLOSE, with `reverse` an entry on the opposite side, and with
    `position_adjustment` one on the same side.  The latter changes the size to `target`, the `action_target`; one to
    the size that is held is illegal, since it is a HOLD.  A `target` of 0 stands for any other size.
    """
    kind = action_kind(action, num_actions)
    if kind < 0:
        return False
    if kind == HOLD:
        return True
    if side == 0:
        return kind != CLOSE
    if kind == CLOSE:
        return True
    if (kind == BUY) == (side < 0):
        return reverse
    return position_adjustment and np.float32(side) != np.float32(target)


@inlined
def fill_size(side: float, target: float) -> tuple[float, float]:
    """Sizes (opened, closed) of the fills from signed size `side` to `target`: the costs are linear in both."""
    if side * target > 0:
        return max(abs(target) - abs(side), 0.0), max(abs(side) - abs(target), 0.0)
    return abs(target), abs(side)


@inlined
def action_kind_to(side: float, target: float) -> int:
    """Kind of the action that turns a position of signed size `side` into one of `target`."""
    if target == side:
        return HOLD
    if target == 0:
        return CLOSE
    return BUY if target > 0 else SELL


@inlined
def action_target(side: float, action: int, sizes: tuple[float, ...]) -> float:
    """Signed size of the position after `action`."""
    num_actions = count_actions(sizes)
    kind = action_kind(action, num_actions)
    if kind == BUY:
        return sizes[action - 1]
    if kind == SELL:
        return -sizes[action - num_actions // 2]
    return side if kind == HOLD else 0.0


@inlined
def hypothesis_of_side(side: float, hypotheses: int, sizes: tuple[float, ...]) -> int:
    """Which position of a market search has the signed size `side`: 0 is flat, m the entry of action m."""
    hypothesis = 0
    for m in range(1, hypotheses):
        if action_target(0.0, m, sizes) == side:
            hypothesis = m
    return hypothesis


@inlined
def apply_fill(out: NDArray[np.float32], position: NDArray[np.float32], target: float, entry_cost: float) -> None:
    """Write into out the afterstate: the position after a fill to `target` and before the next bar.

    `entry_cost` is that of a full position, in ranges.  A position of another size on the same side has the sizes of
    its own, and what else a new one has: only `pnl`, which reads the sizes alone, permits it.
    """
    side = position[SIDE]
    if target == side:
        # not a slice: its assignment may copy, and code that allocates counts references
        for i in range(NUM_POSITION_FIELDS):
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
    """Write into out the position one bar after `afterstate`; the price has moved by `move` ranges."""
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
    """distance / (5 + |distance|), at most 0.62: linear near 0 ranges, constant beyond MAX_DISTANCE."""
    distance = min(max(distance, -MAX_DISTANCE), MAX_DISTANCE)
    return distance / (5.0 + abs(distance))


@inlined
def position_features(out: NDArray[np.float32], position: NDArray[np.float32], memoryless: bool) -> None:
    """Write into out [P] the network's features of a position or afterstate; if `memoryless`, only its sides.

    Where the reward is the profit, the side and the last fill, which costs, are all that matters: later rewards do not
    depend on what the position has earned so far.
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
    """Change the features [P] of a position into those of the position on the other side."""
    features[0], features[8] = -features[0], -features[8]
