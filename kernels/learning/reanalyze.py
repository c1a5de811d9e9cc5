"""Reanalyse: fresh policy targets by a new search of stored positions, fresh values by the target network."""

import numpy as np
from numpy.typing import NDArray

from kernels.jit import inlined, kernel
from kernels.learning.record import past_columns, store
from kernels.learning.replay_buffer import Replay, Tape
from kernels.market.chance import realised_code
from kernels.market.position import FEATURES, position_features
from kernels.ort import Net, evaluate
from kernels.search.planner import Planner, draw_noise, plan, set_root
from kernels.search.tree import NONE, NOTHING


@inlined
def set_known(planner: Planner, b: int, replay: Replay, slot: int, k: int, tape: Tape) -> None:
    """Tell root b what followed decision k: the last search of this planner was of decision k + 1."""
    known = planner.known
    if planner.config.reuse == NOTHING or k + 1 == replay.reward.shape[1]:
        known.action[b] = NONE
        return
    known.action[b] = replay.action[slot, k]
    known.code[b] = realised_code(tape.codes, tape.bars, replay.start[slot] + k)
    known.reward[b] = replay.reward[slot, k]
    known.value[b] = planner.value[b]


@kernel
def search_again(
    replay: Replay,
    planner: Planner,
    slots: NDArray[np.int64],
    tape: Tape,
    seed: int,
) -> int:
    """Replace policy targets and search values of all decisions of the sessions `slots` [B], in lockstep.

    From the last decision to the first, so that the value just found can enter the search of the decision before it.
    The noise is keyed by (seed, start of the session, step).  0 or a network status.
    """
    for k in range(replay.reward.shape[1] - 1, -1, -1):
        for b in range(slots.shape[0]):
            t = replay.start[slots[b]] + k
            past_columns(planner.model.root.x[b], tape, t)
            position = replay.position[slots[b], k]
            set_root(planner, b, tape.X[tape.row_of_bar[t]], position, tape.bars, t, tape.codes, tape.market)
            draw_noise(planner, b, seed, replay.start[slots[b]], k)
            set_known(planner, b, replay, slots[b], k, tape)
        status = plan(planner)
        if status != 0:
            return status
        for b in range(slots.shape[0]):
            store(replay, slots[b], k, planner, b)
    return 0


@kernel
def value_again(
    replay: Replay,
    root: Net,
    slot: int,
    tape: Tape,
    column: int,
) -> int:
    """Replace the values of session `slot` by `column` of the network `root`.  0 or a network status."""
    states, F = replay.value.shape[1], tape.X.shape[1]
    memoryless = tape.market.excursion_weight == 0
    first = 0
    while first < states:
        rows = min(root.x.shape[0], states - first)
        for row in range(rows):
            t = replay.start[slot] + first + row
            x = root.x[row, past_columns(root.x[row], tape, t) :]
            for f in range(F):
                x[f] = tape.X[tape.row_of_bar[t], f]
            position_features(x[F : F + FEATURES], replay.position[slot, first + row], memoryless)
        status = evaluate(root, rows)
        if status != 0:
            return status
        for row in range(rows):
            replay.value[slot, first + row] = root.y[row, column]
        first += rows
    return 0
