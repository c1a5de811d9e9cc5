"""2048 (Cirulli 2014): a move slides the tiles of a board to a side, where equal ones merge; then a tile comes.

A board is 64 bits, four a cell, row by row: 0 is an empty cell, e a tile of 2^e.  Two tiles of 2^15 do not merge.
A merge to 2^e is e / 11 of reward and 2^e points: points double with every tile, which equal bins of a value cannot
resolve.  `look_ahead` plays for points; `play` is what a player comes to.

An observation is the exponent of each cell, whether it is empty, and of each two neighbours, both of them tiles,
whether they are alike and whether their exponents differ by 1.  One-hots of the exponents would have to learn for every
exponent anew what may merge.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from kernels.environments.batch_environment import RUNNING, TERMINATED, BatchEnvironment
from kernels.jit import inlined, kernel
from kernels.rng import randint, uniform

SIDE = 4  # cells
CELLS, ACTIONS = SIDE * SIDE, 4  # up, right, down, left
EXPONENTS = 16  # of a cell
PAIRS = 2 * SIDE * (SIDE - 1)  # neighbours in a row or in a column
FEATURES = 2 * CELLS + 2 * PAIRS
FEATURE_UNIT = 4.0  # by which the exponents of an observation are divided
PROBABILITY_OF_4 = 0.1  # that the tile that comes is a 4
REWARD_UNIT = 11.0  # a merge to 2048 is 1
REWARD_LIMIT = 2.0  # a move that earns more, which is rare, is learnt as this
VALUE_LIMIT = 30.0  # a move earns 0.3 in the mean, since the tiles grow by 2.2; a discount of 0.99 sees 100 moves
HALF = 0xFFFFFFFF  # bits of half a board, which a float64 holds exactly
UPPER, LOWER, SEED, TILES, POINTS = range(5)  # columns of a state; TILES: how many came


@inlined
def exponent_at(board: int, cell: int) -> int:
    """The exponent of a cell's tile; 0 if it is empty."""
    return (board >> (4 * cell)) & (EXPONENTS - 1)


@inlined
def cell_of(direction: int, line: int, behind: int) -> int:
    """The cell of a line that is `behind` cells behind the side to which `direction` leads."""
    along = SIDE - 1 - behind if direction == 1 or direction == 2 else behind
    return SIDE * along + line if direction % 2 == 0 else SIDE * line + along


@kernel
def slide(board: int, direction: int) -> tuple[int, int, int]:
    """The board after a move, the points of its merges, and the sum of their exponents."""
    moved, points, exponents = 0, 0, 0
    for line in range(SIDE):
        filled, waiting = 0, 0  # cells that are filled; exponent of the last tile if it may yet merge
        for behind in range(SIDE):
            exponent = exponent_at(board, cell_of(direction, line, behind))
            if exponent == 0:
                continue
            if exponent == waiting and exponent < EXPONENTS - 1:
                moved += 1 << (4 * cell_of(direction, line, filled - 1))
                points, exponents = points + (2 << exponent), exponents + exponent + 1
                waiting = 0
            else:
                moved += exponent << (4 * cell_of(direction, line, filled))
                filled, waiting = filled + 1, exponent
    return moved, points, exponents


@kernel
def count_empty(board: int) -> int:
    """Empty cells."""
    empty = 0
    for cell in range(CELLS):
        if exponent_at(board, cell) == 0:
            empty += 1
    return empty


@kernel
def with_tile(board: int, nth: int, exponent: int) -> int:
    """The board with a tile on its nth empty cell."""
    for cell in range(CELLS):
        if exponent_at(board, cell) == 0:
            if nth == 0:
                return board + (exponent << (4 * cell))
            nth -= 1
    return board


@inlined
def board_of(state: NDArray[np.float64], b: int) -> int:
    """The board of row b."""
    return (int(state[b, UPPER]) << 32) | int(state[b, LOWER])


@kernel
def let_tile_come(state: NDArray[np.float64], b: int, board: int) -> None:
    """Make `board` that of row b, with one more tile: a 2 or a 4 on any empty cell."""
    seed, tile = int(state[b, SEED]), int(state[b, TILES])
    exponent = 2 if uniform(seed, 1, tile) < PROBABILITY_OF_4 else 1
    board = with_tile(board, randint(count_empty(board), seed, 0, tile), exponent)
    state[b, UPPER], state[b, LOWER], state[b, TILES] = (board >> 32) & HALF, board & HALF, tile + 1


@kernel
def reset(state: NDArray[np.float64], b: int, seed: int) -> None:
    """Begin a game of row b, with two tiles."""
    state[b, SEED], state[b, TILES], state[b, POINTS] = seed, 0, 0
    let_tile_come(state, b, 0)
    let_tile_come(state, b, board_of(state, b))


@inlined
def has_move(board: int) -> bool:
    """Whether a move changes the board."""
    for direction in range(ACTIONS):
        if slide(board, direction)[0] != board:
            return True
    return False


@kernel
def step(
    state: NDArray[np.float64], reward: NDArray[np.float32], ended: NDArray[np.int8], action: NDArray[np.int32]
) -> None:
    """Move in each row; no tile comes where that changes nothing."""
    for b in range(state.shape[0]):
        board = board_of(state, b)
        moved, points, exponents = slide(board, action[b])
        if moved != board:
            let_tile_come(state, b, moved)
        state[b, POINTS] += points
        reward[b] = exponents / REWARD_UNIT
        ended[b] = RUNNING if has_move(board_of(state, b)) else TERMINATED


@inlined
def observe_board(seen: NDArray[np.float32], board: int) -> None:
    """Write what a board is like to `seen` [FEATURES]; see the top of this file."""
    for cell in range(CELLS):
        exponent = exponent_at(board, cell)
        seen[cell], seen[CELLS + cell] = exponent / FEATURE_UNIT, 1.0 if exponent == 0 else 0.0
    pair = 2 * CELLS
    for cell in range(CELLS):
        exponent = exponent_at(board, cell)
        for ahead in range(2):  # to the right, and down
            if (cell % SIDE if ahead == 0 else cell // SIDE) == SIDE - 1:
                continue
            other = exponent_at(board, cell + (1 if ahead == 0 else SIDE))
            for gap in range(2):
                is_so = exponent > 0 and other > 0 and abs(exponent - other) == gap
                seen[pair + gap] = 1.0 if is_so else 0.0
            pair += 2


@kernel
def observe(observation: NDArray[np.float32], legal: NDArray[np.bool_], state: NDArray[np.float64]) -> None:
    """Write what each board is like, and which moves change it: where none does, all are legal."""
    for b in range(state.shape[0]):
        board = board_of(state, b)
        observe_board(observation[b], board)
        is_over = not has_move(board)
        for direction in range(ACTIONS):
            legal[b, direction] = is_over or slide(board, direction)[0] != board


GAME_2048 = BatchEnvironment(ACTIONS, FEATURES, 5, True, REWARD_LIMIT, VALUE_LIMIT, reset, step, observe)


@kernel
def most_points(board: int) -> int:
    """Points of the move that makes most."""
    most = 0
    for direction in range(ACTIONS):
        most = max(most, slide(board, direction)[1])
    return most


@kernel
def expected_points(board: int) -> float:
    """Mean of `most_points` over the tiles that may come."""
    empty, total = count_empty(board), 0.0
    for nth in range(empty):
        total += (1.0 - PROBABILITY_OF_4) * most_points(with_tile(board, nth, 1))
        total += PROBABILITY_OF_4 * most_points(with_tile(board, nth, 2))
    return total / empty


@kernel
def look_ahead(action: NDArray[np.int32], state: NDArray[np.float64], moves: int) -> None:
    """Choose in each row the first of the moves with most expected points, of 1 move (greedy) or of 2 (expectimax)."""
    for b in range(state.shape[0]):
        board, most = board_of(state, b), -1.0
        for direction in range(ACTIONS):
            moved, points, _ = slide(board, direction)
            if moved != board:
                worth = points + (expected_points(moved) if moves > 1 else 0.0)
                if worth > most:
                    action[b], most = direction, worth


def play(
    choose: Callable[[NDArray[np.int32], NDArray[np.float64]], None], games: int, seed: int
) -> NDArray[np.float64]:
    """Last states [games, columns] of a player, who writes the actions [B] for the states [B, columns] of B games."""
    last, running = np.zeros((games, GAME_2048.state)), np.arange(games)
    for b in range(games):
        reset(last, b, seed + b)
    while len(running):
        state, action = last[running], np.zeros(len(running), np.int32)
        reward, ended = np.zeros(len(running), np.float32), np.zeros(len(running), np.int8)
        choose(action, state)
        step(state, reward, ended, action)
        last[running], running = state, running[ended == RUNNING]
    return last
