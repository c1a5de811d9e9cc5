"""Counter-based streams: reproducible, independent of order, of the right distribution."""

import numpy as np

from kernels import rng


def test_same_key_same_draw_and_any_change_changes_it() -> None:
    draw = rng.bits(1, 2, 3)
    assert rng.bits(1, 2, 3) == draw
    others = {int(rng.bits(s, t, k)) for s in range(4) for t in range(4) for k in range(4)}
    assert len(others) == 64
    assert int(rng.bits(3, 2, 1)) != int(draw)


def test_python_and_machine_code_agree() -> None:
    with np.errstate(over="ignore"):
        for key in [(0, 0, 0), (1, 2, 3), (2**40, 7, 9)]:
            assert rng.uniform.py_func(*key) == rng.uniform(*key)


def test_uniform_and_gumbel_moments() -> None:
    u = np.array([rng.uniform(5, 1, k) for k in range(20_000)])
    assert 0 <= u.min()
    assert u.max() < 1
    assert abs(u.mean() - 0.5) < 0.01
    g = np.array([rng.gumbel(5, 2, k) for k in range(20_000)])
    assert abs(g.mean() - 0.5772) < 0.03
    assert abs(g.var() - np.pi**2 / 6) < 0.06


def test_below_covers_its_range_evenly() -> None:
    counts = np.bincount([rng.randint(7, 3, 4, k) for k in range(14_000)], minlength=7)
    assert len(counts) == 7
    assert np.abs(counts - 2000).max() < 200


def test_beta_is_numpys() -> None:
    """Two-sample Kolmogorov-Smirnov, mirror image and the uniform as its special case."""
    n, generator = 20_000, np.random.default_rng(0)
    for a, b in ((1.0, 1.0), (1.0, 3.0), (2.5, 1.5), (30.0, 4.0), (1.0 + 1e-9, 1.0)):
        drawn = np.sort([rng.beta(a, b, 7, 3, k) for k in range(n)])
        assert ((drawn > 0) & (drawn < 1)).all()
        others = np.sort(generator.beta(a, b, n))
        both = np.concatenate([drawn, others])
        ranks = [np.searchsorted(sample, both, side="right") / n for sample in (drawn, others)]
        assert np.abs(ranks[0] - ranks[1]).max() < 1.95 * np.sqrt(2 / n), (a, b)


def test_beta_is_keyed_by_seed_stream_and_step() -> None:
    draws = {rng.beta(2.0, 3.0, *key) for key in ((1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4))}
    assert len(draws) == 4
    assert rng.beta(2.0, 3.0, 1, 2, 3) in draws


def test_gamma_has_the_moments_of_its_shape() -> None:
    n = 20_000
    for shape in (0.3, 1.0, 4.0):
        draws = np.array([rng.gamma(shape, 3, 5, k) for k in range(n)])
        assert (draws >= 0).all()
        assert abs(draws.mean() - shape) < 5 * np.sqrt(shape / n)
        fourth = 3 * shape * (shape + 2)
        assert abs(draws.var() - shape) < 5 * np.sqrt((fourth - shape**2) / n)


def test_normalised_gammas_are_a_dirichlet() -> None:
    alpha, A, n = 0.3, 4, 20_000
    draws = np.array([[rng.gamma(alpha, 1, 2, k * A + a) for a in range(A)] for k in range(n)])
    shares = draws / draws.sum(axis=1, keepdims=True)
    variance = (1 / A) * (1 - 1 / A) / (A * alpha + 1)
    assert np.abs(shares.mean(axis=0) - 1 / A).max() < 0.015
    assert np.abs(shares.var(axis=0) / variance - 1).max() < 0.05
    covariance = np.cov(shares.T)[~np.eye(A, dtype=bool)]
    assert np.abs(covariance / (-variance / (A - 1)) - 1).max() < 0.15
