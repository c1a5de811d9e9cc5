"""The Beta head against integrals of its density and central differences, alone and in the whole loss."""

import math

import numpy as np
import pytest

from kernels.learning.replay_buffer import Batch
from models import loss as unroll
from models import params as net
from models.extensions.beta_head import ENTROPY_BONUS, MIN_SIZE, SizeCandidates, beta_loss, digamma, trigamma
from models.learner import Learner
from tests.fixtures.windows import SHAPE as PLAIN
from tests.fixtures.windows import K, evaluate_shape, lively, random_batch
from tests.fixtures.windows import evaluate as evaluate_plain

SHAPE = PLAIN._replace(num_beta_params=4)
E, EULER = 5, 0.5772156649015329


def test_digamma_and_trigamma_at_known_points() -> None:
    for n in range(1, 30):
        harmonic = sum(1 / i for i in range(1, n))
        assert digamma(float(n)) == pytest.approx(harmonic - EULER, abs=1e-12)
        squares = sum(1 / i**2 for i in range(1, n))
        assert trigamma(float(n)) == pytest.approx(math.pi**2 / 6 - squares, abs=1e-12)
    assert digamma(0.5) == pytest.approx(-EULER - 2 * math.log(2), abs=1e-12)
    assert trigamma(0.5) == pytest.approx(math.pi**2 / 2, abs=1e-12)


@pytest.mark.parametrize("x", [1.0, 1.7, 7.99, 8.01, 40.0, 3e3])
def test_they_are_the_slopes_of_the_logarithm_of_gamma(x: float) -> None:
    h = 1e-5 * x
    assert digamma(x) == pytest.approx((math.lgamma(x + h) - math.lgamma(x - h)) / (2 * h), rel=1e-8, abs=1e-8)
    assert trigamma(x) == pytest.approx((digamma(x + h) - digamma(x - h)) / (2 * h), rel=1e-7)


def naive_loss(z: np.ndarray, size: np.ndarray, share: np.ndarray) -> float:
    """Of one decision, from the density on a fine grid: no gamma function in it."""
    grid = (np.arange(400_000) + 0.5) / 400_000
    total = 0.0
    for first, sign in ((0, 1), (2, -1)):
        mine = np.sign(size) == sign
        if not mine.any():
            continue
        a, b = 1 + np.log1p(np.exp(z[first : first + 2]))
        density = grid ** (a - 1) * (1 - grid) ** (b - 1)
        norm = density.mean()
        log_density = np.log(density / norm)
        x = np.clip(np.abs(size[mine]), MIN_SIZE, 1 - MIN_SIZE)
        log_beta = (a - 1) * np.log(x) + (b - 1) * np.log(1 - x) - math.log(norm)
        entropy = -(density / norm * log_density).mean()
        total -= float(share[mine] @ log_beta) + ENTROPY_BONUS * float(share[mine].sum() * entropy)
    return total


def random_candidates(draw: np.random.Generator, n: int, dtype: type = float) -> SizeCandidates:
    """Of both sides, of one or of none, some at the ends of what a size may be."""
    size = draw.uniform(2**-10, 1, (n, E)) * np.where(draw.random((n, E)) < 0.5, -1, 1)
    size[draw.random((n, E)) < 0.3] = 0
    size[0], size[1], size[2] = 0, np.abs(size[1]), [1, 2**-10, -1, -(2**-10), -0.5]
    share = draw.dirichlet(np.ones(E), n)
    share[2, :2] = 0  # of no use, and still candidates
    return SizeCandidates(size.astype(dtype), share.astype(dtype))


def loss_of(z: np.ndarray, candidates: SizeCandidates, weight: np.ndarray, factor: float = 1.0) -> tuple[float, ...]:
    d, db = z.copy(), np.full(4, np.nan)
    return beta_loss(d, db, np.zeros(4), candidates, weight, factor), d, db


def test_the_loss_is_its_definition_and_its_gradient_the_slope() -> None:
    draw, n = np.random.default_rng(0), 8
    candidates, z, weight = random_candidates(draw, n), draw.normal(size=(n, 4)) * 2, draw.uniform(size=n)
    rows = zip(weight, z, *candidates, strict=True)
    expected = sum(w * naive_loss(row, size, share) for w, row, size, share in rows)
    total, dz, db = loss_of(z, candidates, weight, 3.0)
    assert total == pytest.approx(expected, rel=1e-6)
    for index in np.ndindex(z.shape):
        up, down = z.copy(), z.copy()
        up[index] += 1e-6
        down[index] -= 1e-6
        slope = (loss_of(up, candidates, weight)[0] - loss_of(down, candidates, weight)[0]) / 2e-6
        assert dz[index] == pytest.approx(3 * slope, rel=2e-6, abs=1e-8), index
    np.testing.assert_allclose(db, dz.sum(axis=0), rtol=1e-12)
    assert (dz[0] == 0).all(), "no entry, no lesson"
    assert (dz[1, 2:] == 0).all()
    assert (dz[1, :2] != 0).all()


def test_far_parameters_stay_finite() -> None:
    draw = np.random.default_rng(1)
    candidates = random_candidates(draw, 8, np.float32)
    for scale in (1e2, 1e4):
        z = (draw.normal(size=(8, 4)) * scale).astype(np.float32)
        total, dz, _ = loss_of(z, candidates, np.ones(8, np.float32))
        assert np.isfinite(total)
        assert np.isfinite(dz).all()


def sized_batch(windows: int) -> Batch:
    batch, draw = random_batch(windows, SHAPE, K), np.random.default_rng(5)
    found = [random_candidates(draw, 3 + K - 2, np.float32) for _ in range(windows)]
    return batch._replace(
        candidate_size=np.stack([c.size for c in found]), candidate_policy=np.stack([c.candidate_policy for c in found])
    )


def evaluate(flat: np.ndarray, batch: Batch) -> tuple[list[float], np.ndarray]:
    """(losses, gradient of their weighted sum)."""
    losses, gradient, _ = evaluate_shape(flat, SHAPE, batch, K)
    return list(losses.values()), gradient


def weighted(flat: np.ndarray, batch: Batch) -> float:
    return float(
        np.dot(evaluate(flat, batch)[0], [*unroll.DEFAULT_LOSS_WEIGHTS[:5], unroll.DEFAULT_LOSS_WEIGHTS.beta_head])
    )


def params() -> np.ndarray:
    draw = np.random.default_rng(2)
    return np.concatenate([lively(), draw.normal(size=net.num_params(SHAPE) - net.num_params(PLAIN)) * 0.3])


def test_gradient_of_the_whole_loss() -> None:
    flat, batch = params(), sized_batch(2)
    batch.weight[1, 2:] = 0
    _, gradient = evaluate(flat, batch)
    new = net.num_params(PLAIN)
    picked = np.random.default_rng(3).choice(new, 30, replace=False)
    for i in [*picked, *range(new, len(flat), 3)]:
        h = np.zeros_like(flat)
        h[i] = 1e-6
        expected = (weighted(flat + h, batch) - weighted(flat - h, batch)) / 2e-6
        assert gradient[i] == pytest.approx(expected, rel=5e-6, abs=2e-9), i


def test_the_head_changes_no_other_loss_and_is_the_last_one() -> None:
    flat, batch = params(), sized_batch(8)
    alone = evaluate_plain(flat[: net.num_params(PLAIN)].copy(), batch)[0]
    losses, _ = evaluate(flat, batch)
    assert losses[:5] == alone
    assert len(losses) == 6


def test_learning_moves_the_sizes_to_what_the_search_prefers_and_does_not_collapse() -> None:
    """Candidates spread over (0, 1), those of a BUY good above 0.7, those of a SELL below 0.3."""
    draw, batch = np.random.default_rng(0), sized_batch(32)
    sizes = draw.uniform(2**-10, 1, batch.candidate_size.shape) * np.where(np.arange(E) % 2 == 0, 1, -1)
    batch.candidate_size[:] = sizes
    good = np.where(sizes > 0, sizes > 0.7, sizes > -0.3)
    batch.candidate_policy[:] = good / np.maximum(good.sum(axis=2, keepdims=True), 1)
    learner = Learner(SHAPE, 32, K, 5, 1e-2, 0.0, 10_000, 1, num_candidates=E)
    first = learner.learn(batch)["beta_head"]
    for _ in range(200):
        last = learner.learn(batch)["beta_head"]
    assert last < first - 0.05
    a = 1 + np.log1p(np.exp(net.as_views(learner.params, SHAPE).beta_head_b))
    assert a.max() < 50
