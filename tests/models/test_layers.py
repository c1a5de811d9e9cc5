"""Every layer against central differences in float64, and what its numbers must be."""

import math

import numpy as np
import pytest

from models import layers
from tests.oracles.gradients import dense_target, slope

RNG = np.random.default_rng(7)


def test_linear() -> None:
    x, w, b, dy = (RNG.normal(size=(5, 3)), RNG.normal(size=(3, 4)), RNG.normal(size=4), RNG.normal(size=(5, 4)))

    def loss(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> float:
        y = np.empty((5, 4))
        layers.linear_forward(y, x, w, b)
        return float((y * dy).sum())

    dx, dw, db = np.empty_like(x), np.empty_like(w), np.empty_like(b)
    layers.linear_backward(dw, db, dy, x)
    layers.linear_backward_input(dx, dy, w)
    vx, vw, vb = RNG.normal(size=x.shape), RNG.normal(size=w.shape), RNG.normal(size=4)
    assert (dx * vx).sum() == pytest.approx(slope(lambda t: loss(t, w, b), x, vx), rel=1e-6)
    assert (dw * vw).sum() == pytest.approx(slope(lambda t: loss(x, t, b), w, vw), rel=1e-6)
    assert (db * vb).sum() == pytest.approx(slope(lambda t: loss(x, w, t), b, vb), rel=1e-6)


def test_hidden_layer() -> None:
    x, w, b = RNG.normal(size=(6, 3)), RNG.normal(size=(3, 5)), RNG.normal(size=5)
    y, dy = np.empty((6, 5)), RNG.normal(size=(6, 5))
    layers.linear_relu_forward(y, x, w, b)
    np.testing.assert_array_equal(y, np.maximum(x @ w + b, 0))
    dx, dz, dw, db = dy.copy(), dy.copy(), np.empty_like(w), np.empty_like(b)
    layers.relu_backward(dx, y)
    np.testing.assert_array_equal(dx, np.where(y > 0, dy, 0))
    layers.linear_relu_backward(dw, db, dz, y, x)
    np.testing.assert_array_equal(dz, dx)
    np.testing.assert_allclose(dw, x.T @ dx, rtol=1e-12)
    np.testing.assert_allclose(db, dx.sum(axis=0), rtol=1e-12)
    b[2] = np.nan
    layers.linear_relu_forward(y, x, w, b)
    assert np.isnan(y[:, 2]).all()


def test_norm() -> None:
    x, dy, v = RNG.normal(size=(4, 6)), RNG.normal(size=(4, 6)), RNG.normal(size=(4, 6))

    def forward(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        y, rstd = np.empty_like(x), np.empty(len(x))
        layers.layernorm_forward(y, rstd, x)
        return y, rstd

    y, rstd = forward(x)
    np.testing.assert_allclose(y.mean(axis=1), 0, atol=1e-12)
    variance = x.var(axis=1)
    np.testing.assert_allclose(y.var(axis=1), variance / (variance + layers.LAYERNORM_EPSILON), rtol=1e-12)
    dx = np.empty_like(x)
    layers.layernorm_backward(dx, dy, y, rstd)
    assert (dx * v).sum() == pytest.approx(slope(lambda t: (forward(t)[0] * dy).sum(), x, v), rel=1e-6)
    layers.layernorm_backward(dy, dy.copy(), y, rstd)
    np.testing.assert_array_equal(dy, dx)


def test_residual() -> None:
    x, y, b, dy, inner = (RNG.normal(size=size) for size in ((4, 6), (4, 6), 6, (4, 6), (4, 6)))
    expected = x + y + b
    layers.residual_forward(y, x, b)
    np.testing.assert_allclose(y, expected, rtol=1e-12)
    dx = x.copy()
    layers.residual_backward(dx, dy, inner, 0.5)
    np.testing.assert_allclose(dx, x + 0.5 * (dy + inner), rtol=1e-12)


@pytest.mark.parametrize("bins", [1, 3, 4, 5, 41])
def test_largest(bins: int) -> None:
    for row in RNG.normal(size=(20, bins)):
        assert layers._row_max(row) == row.max()


def test_cross_entropy() -> None:
    z, weight = RNG.normal(size=(5, 4)) * 3, RNG.uniform(0.1, 1, 5)
    legal = RNG.uniform(size=(5, 4)) > 0.3
    legal[:, :2] = True
    target = RNG.dirichlet(np.ones(4), 5) * legal
    target /= target.sum(axis=1, keepdims=True)

    b, db = RNG.normal(size=4), np.empty(4)

    def loss(z: np.ndarray, b: np.ndarray, factor: float = 0.7) -> float:
        layers.mask_logits(z, legal)
        whole = layers.CategoricalTarget(np.zeros(5, np.int32), target)
        return layers.cross_entropy(z, db, np.empty(5), b, whole, weight, factor)

    dz, v, u = z.copy(), RNG.normal(size=z.shape), RNG.normal(size=4)
    total, found = loss(dz, b), db.copy()
    assert (dz * v).sum() == pytest.approx(slope(lambda t: 0.7 * loss(t, b), z, v), rel=1e-6)
    assert (found * u).sum() == pytest.approx(slope(lambda t: 0.7 * loss(z.copy(), t), b, u), rel=1e-6)
    assert (dz[~legal] == 0).all()
    assert (dz[legal] != 0).all()
    expected = 0.0
    for i in range(5):
        p = np.exp(z[i] + b) * legal[i]
        expected -= weight[i] * (target[i] * np.log(np.where(legal[i], p / p.sum(), 1))).sum()
    assert total == pytest.approx(expected, rel=1e-12)


def test_cross_entropy_of_huge_logits_is_finite() -> None:
    z, target = (
        np.array([[3e4, -3e4, 0.0]], np.float32),
        layers.CategoricalTarget(np.ones(1, np.int32), np.ones((1, 1), np.float32)),
    )
    one, b, db = np.ones(1, np.float32), np.zeros(3, np.float32), np.empty(3, np.float32)
    assert layers.cross_entropy(z, db, np.empty(1, np.float32), b, target, one, 1.0) == pytest.approx(6e4)
    np.testing.assert_array_equal(z, [[1, -1, 0]])


@pytest.mark.parametrize("x", [-11.9, -3.7, 0.0, 0.013, 5.2, 9.99, 11.3])
def test_hl_gauss_keeps_the_mean(x: float) -> None:
    target = dense_target(x, 12.0, 41)
    assert target.sum() == pytest.approx(1)
    if abs(x) < 10:  # nearer to the edge a part of the mass has no bin
        assert target @ layers.bin_centres(12.0, 41) == pytest.approx(x, abs=1e-3)
    width = 24 / 40
    naive = [
        0.5 * (math.erf((c + width / 2 - x) / (0.75 * width * math.sqrt(2)))
               - math.erf((c - width / 2 - x) / (0.75 * width * math.sqrt(2))))
        for c in layers.bin_centres(12.0, 41)
    ]  # fmt: skip
    np.testing.assert_allclose(target, naive / np.sum(naive), atol=1e-6)


def test_hl_gauss_clips() -> None:
    inside, outside = (dense_target(x, 12.0, 41) for x in (12.0, 1e6))
    np.testing.assert_array_equal(inside, outside)


def test_decode_inverts_a_sharp_target() -> None:
    target = dense_target(3.3, 40.0, 81)[None]
    assert layers.decode(np.log(target + 1e-300), 40.0)[0] == pytest.approx(3.3, abs=1e-2)
