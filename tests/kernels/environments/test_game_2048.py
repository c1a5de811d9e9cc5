"""2048 beside rows of lists: what a move does, what may be moved, what comes, and which player makes more points."""

from functools import partial

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kernels.environments.batch_environment import RUNNING, TERMINATED
from kernels.environments.game_2048 import (
    ACTIONS,
    CELLS,
    GAME_2048,
    LOWER,
    POINTS,
    SEED,
    TILES,
    UPPER,
    look_ahead,
    observe,
    play,
    reset,
    step,
)
from kernels.rng import randint

FULL = [1, 2, 1, 2, 2, 1, 2, 1, 1, 2, 1, 2, 2, 1, 2, 1]  # without a move
HIGHEST = [15, 15, 14, 14] * 4  # where tiles of 2^15 meet, and the sign bit is set
BOARDS = st.lists(st.sampled_from([0, 0, 0, 1, 1, 2, 3, 14, 15]), min_size=CELLS, max_size=CELLS)


def slid(cells: list[int], direction: int) -> tuple[list[int], list[int]]:
    """Cells after a move, and the tiles that its merges made: turned until the move leads left."""
    turns, made, rows = (direction + 1) % 4, [], []
    for row in np.rot90(np.reshape(cells, (4, 4)), turns).tolist():
        tiles, out = [tile for tile in row if tile], []
        while tiles:
            out.append(tiles.pop(0))
            if tiles and tiles[0] == out[-1] < 15:
                out[-1] += 1
                made.append(out[-1])
                tiles.pop(0)
        rows.append(out + [0] * (4 - len(out)))
    return np.rot90(rows, -turns).ravel().tolist(), made


def states_of(cells: list[int], count: int) -> NDArray[np.float64]:
    state = np.zeros((count, GAME_2048.state))
    halves = [sum(cell << 4 * i for i, cell in enumerate(half)) for half in (cells[8:], cells[:8])]
    state[:, UPPER], state[:, LOWER] = halves
    state[:, SEED], state[:, TILES] = np.arange(count), 5
    return state


def cells_of(state: NDArray[np.float64], b: int) -> list[int]:
    return [(int(state[b, half]) >> 4 * i) & 15 for half in (LOWER, UPPER) for i in range(8)]


def stepped(state: NDArray[np.float64], action: list[int]) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    reward, ended = np.zeros(len(action), np.float32), np.zeros(len(action), np.int8)
    step(state, reward, ended, np.array(action, np.int32))
    return reward, ended


def observed(state: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    seen, legal = np.ones((len(state), GAME_2048.features), np.float32), np.zeros((len(state), ACTIONS), np.bool_)
    observe(seen, legal, state)
    return seen, legal


def moves(cells: list[int]) -> list[bool]:
    return [slid(cells, direction)[0] != cells for direction in range(ACTIONS)]


def features_of(cells: list[int]) -> list[float]:
    """Exponents, empty cells, and of the neighbours to the right and below whether they are alike or differ by one."""
    features = [cell / 4 for cell in cells] + [float(cell == 0) for cell in cells]
    for i, cell in enumerate(cells):
        neighbours = [cells[i + 1]] if i % 4 < 3 else []
        for other in neighbours + cells[i + 4 : i + 5]:
            features += [float(min(cell, other) > 0 and abs(cell - other) == gap) for gap in (0, 1)]
    return features


@given(BOARDS)
@example(FULL)
@example(HIGHEST)
@example([1, 1, 2, 0] * 4)  # what was merged merges once
@example([1, 1, 1, 0] * 4)  # the pair in front merges
@settings(deadline=None, max_examples=100)
def test_a_move_does_what_it_does_to_lists(cells: list[int]) -> None:
    state = states_of(cells, ACTIONS)
    seen, legal = observed(state)
    assert seen[0].tolist() == features_of(cells)
    assert legal[0].tolist() == (moves(cells) if any(moves(cells)) else [True] * ACTIONS)
    reward, ended = stepped(state, [*range(ACTIONS)])
    for direction, is_legal in enumerate(moves(cells)):
        after, made = slid(cells, direction)
        now = cells_of(state, direction)
        came = [(old, new) for old, new in zip(after, now, strict=True) if old != new]
        assert came in ([[(0, 1)], [(0, 2)]] if is_legal else [[]])
        assert state[direction, TILES] == 5 + is_legal
        assert state[direction, POINTS] == sum(2**tile for tile in made)
        assert reward[direction] == pytest.approx(sum(made) / 11)
        assert ended[direction] == (RUNNING if any(moves(now)) else TERMINATED)


def test_one_tile_in_ten_is_a_4_and_each_empty_cell_is_as_likely() -> None:
    state = np.zeros((4_000, GAME_2048.state))
    for b in range(len(state)):
        reset(state, b, b)
    cells = np.array([cells_of(state, b) for b in range(len(state))])
    assert ((cells > 0).sum(axis=1) == 2).all()
    assert (cells == 2).sum() / 8_000 == pytest.approx(0.1, abs=0.015)
    np.testing.assert_allclose((cells > 0).mean(axis=0), 2 / CELLS, atol=0.025)


def test_a_game_is_a_function_of_its_seed_and_its_moves() -> None:
    asked = list[int]()

    def choose(action: NDArray[np.int32], state: NDArray[np.float64]) -> None:
        look_ahead(action, state, 1)
        asked.append(len(state))

    one, two = play(choose, 4, 7), play(partial(look_ahead, moves=1), 2, 9)
    assert sum(asked) == (one[:, TILES] - 2).sum()  # nobody is asked about a game that is over
    np.testing.assert_array_equal(one[2:], two)
    assert len({*one[:, POINTS]}) > 1


def move_at_random(action: NDArray[np.int32], state: NDArray[np.float64]) -> None:
    _, legal = observed(state)
    for b in range(len(action)):
        choices = np.flatnonzero(legal[b])
        action[b] = choices[randint(len(choices), 0, b, int(state[b, TILES]))]


def test_who_looks_further_ahead_makes_more_points() -> None:
    players = move_at_random, partial(look_ahead, moves=1), partial(look_ahead, moves=2)
    chance, greedy, expectimax = (play(player, 20, 0)[:, POINTS].mean() for player in players)
    assert 800 < chance < 1_400  # of 2 and 4 in the proportions of the game, by all accounts 1,100
    assert 1.5 * chance < greedy
    assert 1.2 * greedy < expectimax


def expected_worth(cells: list[int], direction: int) -> float:
    """Points of a move, and of the best one after it."""
    after, made = slid(cells, direction)
    points = float(sum(2**tile for tile in made))
    empty = [i for i, tile in enumerate(after) if not tile]
    for i in empty:
        for tile, probability in ((1, 0.9), (2, 0.1)):
            came = [*after[:i], tile, *after[i + 1 :]]
            best = max(sum(2**made for made in slid(came, then)[1]) for then in range(ACTIONS))
            points += probability * best / len(empty)
    return points


def test_expectimax_takes_the_move_of_most_expected_points() -> None:
    for cells in np.random.default_rng(0).integers(0, 4, (100, CELLS)).tolist():
        action = np.zeros(1, np.int32)
        look_ahead(action, states_of(cells, 1), 2)
        worth = [expected_worth(cells, d) if is_legal else -1.0 for d, is_legal in enumerate(moves(cells))]
        assert worth[action[0]] == pytest.approx(max(worth))
