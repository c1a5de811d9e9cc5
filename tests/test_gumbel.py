"""Halving tables against worked examples and a naive oracle; scores and policies by properties."""

import math

import numpy as np
import pytest

from kernels import gumbel

WORKED = {  # (m, n): considered visits, from the paper's section 2 by hand
    (2, 8): [0, 0, 1, 1, 2, 2, 3, 3],
    (3, 8): [0, 0, 0, 1, 1, 2, 2, 3],
    (4, 4): [0, 0, 0, 0],
    (4, 8): [0, 0, 0, 0, 1, 1, 2, 2],
    (4, 16): [0] * 4 + [1] * 4 + [2, 2, 3, 3, 4, 4, 5, 5],
    (8, 24): [0] * 8 + [1] * 4 + [2] * 4 + [3, 3, 4, 4, 5, 5, 6, 6],
}


@pytest.mark.parametrize("key", WORKED)
def test_worked_tables(key: tuple[int, int]) -> None:
    m, n = key
    assert gumbel.halving_table(m, n)[m].tolist() == WORKED[key]


def naive_row(m: int, n: int) -> list[int]:
    """Play the tournament with a dictionary of visits and look at what each round asks for."""
    if m <= 1:
        return list(range(n))
    visits, row, alive = dict.fromkeys(range(m), 0), [], list(range(m))
    rounds = math.ceil(math.log2(m))
    while len(row) < n:
        for _ in range(max(1, n // (rounds * len(alive)))):
            for arm in alive:
                row.append(visits[arm])
                visits[arm] += 1
        alive = alive[: max(2, len(alive) // 2)]
    return row[:n]


def test_tables_equal_the_naive_tournament() -> None:
    for n in (*range(1, 40), 64, 100, 200):
        table = gumbel.halving_table(16, n)
        for m in range(17):
            assert table[m].tolist() == naive_row(m, n), (m, n)


def test_scaling_without_rescale_keeps_magnitude() -> None:
    """With min-max, noise of any size looks like a decision; without it, small differences stay small."""
    tiny = np.array([0.0, 1e-6, -1e-6, 2e-6])
    plain, rescaled = tiny.copy(), tiny.copy()
    gumbel.scale_q(plain, gumbel.new_search_config(), 2)
    gumbel.scale_q(rescaled, gumbel.new_search_config(rescale=True), 2)
    assert np.ptp(plain) < 1e-4
    assert np.ptp(rescaled) == pytest.approx(5.2)
