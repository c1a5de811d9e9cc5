"""Halving tables against worked examples and a naive oracle; scores and policies by properties."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.search import gumbel, tree
from kernels.search.config import PUCT, new_search_config
from kernels.search.puct import add_dirichlet_noise

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
    for n in range(1, 201):
        table = gumbel.halving_table(16, n)
        for m in range(17):
            assert table[m].tolist() == naive_row(m, n), (m, n)


tables = st.integers(2, 6).flatmap(
    lambda A: st.tuples(*[st.lists(st.floats(-3, 3, width=32), min_size=A, max_size=A) for _ in range(2)])
)


@given(tables, st.sampled_from([0.01, 0.3, 5.0]), st.booleans())
@settings(deadline=None, max_examples=25)
def test_the_improved_policy_is_never_worse_than_the_prior_under_exact_q(
    table: tuple[list[float], list[float]], c_scale: float, rescale: bool
) -> None:
    """A tree of one decision whose actions have all been visited, at their true values."""
    logits, q = np.array(table)
    A = len(q)
    t = tree.new_tree(1, A + 1, A, A, 1, 0)
    tree.add_node(t, 0, tree.DECISION, tree.NONE, tree.NONE)
    t.prior[0, 0, :A], t.edge_value[0, 0, :A], t.edge_visits[0, 0, :A] = logits, q, np.arange(1, A + 1)
    config = new_search_config(c_scale=c_scale, rescale_values=rescale)
    tree.masked_softmax(t.policy[0, 0], t.prior[0, 0], t.score.shape[1])
    improved = np.zeros(A)
    gumbel.improved_policy(improved, t, config, 0, 0)
    prior = np.exp(logits - logits.max())
    prior /= prior.sum()
    np.testing.assert_allclose(t.policy[0, 0, :A], prior, rtol=1e-5)
    assert improved.sum() == pytest.approx(1, abs=1e-12)
    assert improved @ q >= prior @ q - 1e-6
    if np.ptp(q) > 0.1:
        assert improved @ q > prior @ q


def test_mixed_noise_is_a_share_of_the_legal_prior() -> None:
    t = tree.new_tree(1, 1, 4, 4, 1, 0)
    logits = np.array([0.5, -1.0, 2.0, tree.MASKED_LOGIT])
    config = new_search_config(algorithm=PUCT, dirichlet_fraction=0.25)
    prior = np.exp(logits) / np.exp(logits).sum()
    for noise in (np.zeros(4), np.array([3.0, 1.0, 0.0, 7.0])):
        t.prior[0, 0], t.noise[0] = logits, noise
        tree.masked_softmax(t.policy[0, 0], t.prior[0, 0], t.score.shape[1])
        add_dirichlet_noise(t, config, 0)
        fraction = 0.25 if noise.any() else 0.0
        np.testing.assert_allclose(
            t.policy[0, 0], (1 - fraction) * prior + fraction * np.array([0.75, 0.25, 0, 0]), atol=1e-6
        )
        assert t.policy[0, 0, 3] == 0
    t.prior[0, 0], t.noise[0] = logits, 1.0
    tree.masked_softmax(t.policy[0, 0], t.prior[0, 0], t.score.shape[1])
    add_dirichlet_noise(t, config._replace(dirichlet_fraction=0.0), 0)
    np.testing.assert_allclose(t.policy[0, 0], prior, atol=1e-6)


def test_scaling_without_rescale_keeps_magnitude() -> None:
    """With min-max, noise of any size looks like a decision; without it, small differences stay small."""
    tiny, logits = np.array([[0.0, 1e-6, -1e-6, 2e-6], np.zeros(4)], np.float32)
    plain, rescaled = tiny.copy(), tiny.copy()
    gumbel.transform_q(plain, logits, new_search_config(), 2)
    gumbel.transform_q(rescaled, logits, new_search_config(rescale_values=True), 2)
    assert np.ptp(plain) < 1e-4
    assert np.ptp(rescaled) == pytest.approx(5.2)
