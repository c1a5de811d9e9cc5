"""Chance codes: bins that are symmetric, equally frequent and those of numpy; a causal scale."""

import numpy as np
import pytest

from kernels.market import chance
from kernels.market.chance import (
    SCALE_BARS,
    ChanceCodes,
    code_of_move,
    fit_chance_codes,
    move_scale_px,
    standardise_moves,
    standardised_move,
)
from tests.oracles.naive import wandering_bars


def test_scale_is_causal_and_never_zero() -> None:
    bars = wandering_bars(1, 200, 60)
    moves = np.diff(bars.close)
    assert move_scale_px(bars, 150) == pytest.approx(np.sqrt((moves[150 - SCALE_BARS : 150] ** 2).mean()))
    assert move_scale_px(bars, 3) == pytest.approx(np.sqrt((moves[:3] ** 2).mean()))
    assert 0 < move_scale_px(bars, 0) < 1e-5
    assert standardised_move(bars, 100) == pytest.approx(moves[100] / move_scale_px(bars, 100))


@pytest.mark.parametrize("C", [2, 3, 5, 8])
def test_codes_are_symmetric_and_even(C: int) -> None:
    bars = wandering_bars(2, 4000, 1)
    ts = np.arange(100, 3999)
    codes = fit_chance_codes(bars, ts, C)
    z = np.zeros(len(ts))
    standardise_moves(z, bars, ts)
    code = np.array([code_of_move(codes, x) for x in z])
    assert codes.edges.shape == (C - 1,)
    assert (np.diff(codes.edges) > 0).all()
    np.testing.assert_array_equal(codes.edges, -codes.edges[::-1])
    np.testing.assert_array_equal(codes.centres[codes.centres > 0], -codes.centres[codes.centres < 0][::-1])
    assert [code_of_move(codes, -x) for x in z] == (C - 1 - code).tolist()
    assert [code_of_move(codes, e) for e in codes.edges if e > 0] == list(range(C // 2 + 1, C))
    np.testing.assert_allclose(np.bincount(code, minlength=C) / len(z), 1 / C, atol=0.03)
    both = np.concatenate([z[code == C - 1], -z[code == 0]])
    assert codes.centres[-1] == pytest.approx(both.mean())


def test_codes_are_the_bins_of_numpy() -> None:
    """Upper bins are closed below and lower ones above: mirror images at the edges too."""
    codes = ChanceCodes(np.array([-2.0, -0.5, 0.0, 0.5, 2.0]), np.zeros(6))
    z = np.concatenate([np.linspace(-3, 3, 61), codes.edges, [-0.0, 1e-300, -1e-300, np.inf, -np.inf]])
    expected = np.where(z >= 0, np.digitize(z, codes.edges), np.digitize(z, codes.edges, right=True))
    assert [code_of_move(codes, x) for x in z] == expected.tolist()


def test_codes_of_moves_that_are_often_zero_promise_nothing() -> None:
    bars = wandering_bars(3, 2000, 1)
    still = np.random.default_rng(3).random(2000) < 0.4
    close = np.cumsum(np.where(still, 0.0, np.diff(bars.close, prepend=1.1))) + 1.1
    codes = fit_chance_codes(bars._replace(close=close), np.arange(100, 1999))
    z = [standardised_move(bars._replace(close=close), t) for t in range(100, 1999)]
    means = [codes.centres[code_of_move(codes, s * x)] for x in z for s in (1, -1)]
    assert abs(np.mean(means)) < 1e-12
    assert np.isfinite(codes.centres).all()
    with pytest.raises(ValueError, match="a bar after every bar"):
        fit_chance_codes(bars, np.array([1999]))


@pytest.mark.parametrize("seed", range(3))
def test_interpreted_kernels_give_the_same_codes(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    bars, ts = wandering_bars(seed, 150, 60), np.arange(70, 149)
    compiled = fit_chance_codes(bars, ts)
    for name, fn in vars(chance).items():
        if hasattr(fn, "py_func"):
            monkeypatch.setattr(chance, name, fn.py_func)
    for one, other in zip(compiled, fit_chance_codes(bars, ts), strict=True):
        np.testing.assert_array_equal(one, other)
