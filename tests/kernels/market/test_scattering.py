"""The scattering of a window against kymatio 0.3.0's, whose outputs are in golden/scattering.npz."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kernels.market.scattering import FilterBank, fft, new_filter_bank, new_scatter_work, scatter
from kernels.simd import LANES
from tests.fixtures.paths import ROOT

GOLDEN = Path(os.environ.get("SWT_SCATTERING") or ROOT / "tests" / "oracles" / "golden" / "scattering.npz")
SETTINGS = [(6, 4), (6, 8), (4, 8)]


@pytest.fixture(scope="module", params=SETTINGS, ids=lambda s: f"J{s[0]}Q{s[1]}")
def bank(request: pytest.FixtureRequest) -> FilterBank:
    return new_filter_bank(*request.param)


@pytest.fixture(scope="module")
def golden() -> dict[str, NDArray[np.float64]]:
    with np.load(GOLDEN) as file:
        return dict(file)


def scattering(bank: FilterBank, x: NDArray[np.float64]) -> NDArray[np.float32]:
    out = np.full((len(bank.order), 256 >> bank.J), np.nan, np.float32)
    scatter(out[None], bank, x[None], new_scatter_work(bank))
    return out


def test_golden(bank: FilterBank, golden: dict[str, NDArray[np.float64]]) -> None:
    expected = golden[f"J{bank.J}Q{bank.Q}"]
    for x, y in zip(golden["x"], expected, strict=True):
        np.testing.assert_allclose(scattering(bank, x), y, rtol=0, atol=1e-6 * np.abs(y).max())


def test_golden_paths(bank: FilterBank, golden: dict[str, NDArray[np.float64]]) -> None:
    np.testing.assert_array_equal(bank.order, golden[f"J{bank.J}Q{bank.Q}_order"])
    last = golden[f"J{bank.J}Q{bank.Q}_j"].max(axis=1)
    np.testing.assert_array_equal(bank.level, np.maximum(last, 0))


def test_paths_do_not_feel_the_scratch(golden: dict[str, NDArray[np.float64]]) -> None:
    bank = new_filter_bank(6, 4)
    work = new_scatter_work(bank)
    out = np.zeros((len(bank.order), 4), np.float32)
    for x in golden["x"]:
        scatter(out[None], bank, x[None], work)
        assert out.tobytes() == scattering(bank, x).tobytes()


@given(n=st.integers(1, LANES), seed=st.integers(0, 99), J_Q=st.sampled_from(SETTINGS))
@settings(deadline=None, max_examples=20)
def test_windows_side_by_side_are_windows_alone(n: int, seed: int, J_Q: tuple[int, int]) -> None:
    bank = new_filter_bank(*J_Q)
    x = np.random.default_rng(seed).standard_t(3, size=(n, 256))
    out, work = np.zeros((LANES, len(bank.order), 256 >> bank.J), np.float32), new_scatter_work(bank)
    scatter(out, bank, np.full((LANES, 256), np.nan), work)  # the scratch as others left it
    scatter(out[:n], bank, x, work)
    assert out[:n].tobytes() == np.stack([scattering(bank, window) for window in x]).tobytes()


def test_every_sample_matters(bank: FilterBank) -> None:
    x = np.random.default_rng(1).normal(size=256)
    before = scattering(bank, x)
    for i in range(256):
        changed = x.copy()
        changed[i] += 0.1
        assert np.abs(scattering(bank, changed) - before).max() > 1e-5 * np.abs(before).max()


def test_every_path_matters(bank: FilterBank) -> None:
    assert (scattering(bank, np.random.default_rng(2).normal(size=256)) != 0).all()


def test_sign_changes_order_0_only(bank: FilterBank) -> None:
    x = np.random.default_rng(3).standard_t(3, size=256)
    up, down = scattering(bank, x), scattering(bank, -x)
    np.testing.assert_array_equal(up[0], -down[0])
    np.testing.assert_array_equal(up[1:], down[1:])


def test_silence_is_zero(bank: FilterBank) -> None:
    np.testing.assert_array_equal(scattering(bank, np.zeros(256)), 0)


@pytest.mark.parametrize("n", [1, 2, 4, 8, 32, 128, 256, 512])
def test_fft(n: int) -> None:
    bank = new_filter_bank(6, 4)
    z = np.random.default_rng(n).normal(size=(2, n, LANES)).astype(np.float32)
    re, im = z.reshape(2, -1).copy()
    fft(bank, re, im, n)
    found = (re + 1j * im).reshape(n, LANES)[bank.bin_place[n : 2 * n]]
    np.testing.assert_allclose(found, np.fft.fft(z[0] + 1j * z[1], axis=0), atol=5e-7 * n)
    assert sorted(bank.bin_place[n : 2 * n]) == list(range(n))


def test_a_filter_narrower_than_a_bin_is_refused() -> None:
    with pytest.raises(ValueError, match="too small"):
        new_filter_bank(1, 64)
