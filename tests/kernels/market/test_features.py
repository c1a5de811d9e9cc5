"""Features: causal, mirrored, equal bit for bit in bulk and bar by bar."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kernels.market.bars import SECOND_NS, Bars, slice_bars
from kernels.market.features import (
    HISTORY,
    MAX_FEATURE,
    MIN_FAST_RATIO,
    UNDIRECTED_WEIGHT,
    WINDOW,
    FeatureSpec,
    bar_features,
    compute_features,
    feature_digest,
    feature_names,
    feature_signs,
    feature_weights,
    fill_features,
    fit_normaliser,
    new_feature_spec,
    new_feature_work,
    normalise,
    normalise_rows,
    num_features,
    write_returns,
)
from kernels.market.scattering import new_scatter_work, scatter
from tests.fixtures.paths import REAL, SAMPLE

REAL_YEAR = REAL / "EURUSD_H1_dukascopy_ask_2017.csv"
HOUR = 3600 * SECOND_NS
SPEC = new_feature_spec(6, 4, HOUR)
NAMES = feature_names(SPEC)
SIGNED = np.array([name.startswith("+-") for name in NAMES])
quick = settings(deadline=None, max_examples=20)


def walk(T: int, seed: int = 0, gap: int = 0) -> Bars:
    """Hourly bars of a heavy-tailed walk, with a weekend before bar `gap`."""
    rng = np.random.default_rng(seed)
    close = np.exp(rng.standard_t(3, size=T).cumsum() * 1e-3)
    start = np.append(1.0, close[:-1])
    high = np.maximum(start, close) * np.exp(rng.exponential(2e-4, T))
    low = np.minimum(start, close) * np.exp(-rng.exponential(2e-4, T))
    spread = np.exp(rng.uniform(5e-5, 2e-4, T))
    time = 1_483_311_600 * SECOND_NS + HOUR * np.arange(T)
    if gap:
        time[gap:] += 48 * HOUR
    return Bars(time, start, high, low, close, start * spread, close * spread, np.ones(T))


def real(rows: int = 2000) -> Bars:
    """The first bars of the bundled year, or of its original."""
    path = REAL_YEAR if REAL_YEAR.exists() else SAMPLE
    frame = pd.read_csv(path, nrows=rows)
    stamp = pd.to_datetime(frame["Time"], format="%d.%m.%Y %H:%M:%S.%f").to_numpy()
    time = stamp.astype("datetime64[ns]").astype(np.int64) + HOUR
    o, h, low, c, v = (frame[k].to_numpy(np.float64) for k in ("Open", "High", "Low", "Close", "Volume"))
    return Bars(time, o, h, low, c, o + 1e-4, c + 1e-4, v)


def at(bars: Bars, t: int, spec: FeatureSpec = SPEC) -> NDArray[np.float32]:
    out = np.full(num_features(spec), np.nan, np.float32)
    bar_features(out, spec, bars, t, new_feature_work(spec))
    return out


def column(name: str) -> int:
    """The column of that name, with or without its sign mark."""
    return [n.removeprefix("+-") for n in NAMES].index(name)


def test_names_and_width() -> None:
    assert len(set(NAMES)) == len(NAMES) == num_features(SPEC) == 67 * 4 + 9 + 8 + 9
    assert HISTORY == WINDOW + 1
    assert SIGNED.sum() == 4 + 9 + 8


def test_digest_tells_specifications_apart() -> None:
    assert feature_digest(SPEC) == feature_digest(new_feature_spec(6, 4, HOUR))
    assert len({feature_digest(new_feature_spec(J, Q, HOUR)) for J, Q in ((6, 4), (6, 8), (4, 8))}) == 3


@given(t=st.integers(WINDOW, 398), seed=st.integers(0, 99))
@quick
def test_later_bars_change_nothing(t: int, seed: int) -> None:
    bars = walk(400, seed=5)
    later = Bars(*(c.copy() for c in bars))
    rng = np.random.default_rng(seed)
    later.time[t + 1 :] += HOUR * rng.integers(1, 99)
    for prices in later[1:]:
        prices[t + 1 :] *= rng.uniform(0.1, 9, len(prices) - t - 1)
    np.testing.assert_array_equal(at(bars, t), at(later, t))


def test_only_the_history_is_read() -> None:
    bars = walk(600, gap=250)
    for t in (WINDOW, 300, 505, 506, 507, 599):
        np.testing.assert_array_equal(at(bars, t), at(slice_bars(bars, t - WINDOW, t + 1), WINDOW))
        earlier = Bars(*(c.copy() for c in bars))
        for prices in earlier[1:]:
            prices[: t - WINDOW] *= 7
        earlier.time[: t - WINDOW] -= 99 * HOUR
        np.testing.assert_array_equal(at(bars, t), at(earlier, t))


@pytest.mark.parametrize("back", range(WINDOW + 1))
def test_every_bar_of_the_window_matters(back: int) -> None:
    bars = walk(HISTORY)
    other = Bars(*(c.copy() for c in bars))
    other.close[WINDOW - back] *= 1.0005
    assert np.abs(at(bars, WINDOW) - at(other, WINDOW)).max() > 1e-4


def test_a_jump_in_the_window_matters() -> None:
    bars = real()
    t = 1500
    before = at(bars, t)
    for back in (1, 50, 106, 200, 255):
        other = Bars(*(c.copy() for c in bars))
        for prices in other[1:7]:
            prices[t - back :] += 0.05
        assert np.abs(at(other, t) - before).max() > 0.1


def mirrored(bars: Bars) -> Bars:
    """Bars whose log prices are negated, the spread being what it was."""
    turned = {"open": 1 / bars.open, "close": 1 / bars.close, "high": 1 / bars.low, "low": 1 / bars.high}
    ask_open, ask_close = bars.ask_open / bars.open**2, bars.ask_close / bars.close**2
    return bars._replace(**turned, ask_open=ask_open, ask_close=ask_close)


@pytest.mark.parametrize("bars", [walk(300, gap=280), real(700)], ids=["walk", "real"])
def test_mirrored_prices(bars: Bars) -> None:
    ts = np.arange(WINDOW, len(bars.time))
    up, down = compute_features(SPEC, bars, ts, 1), compute_features(SPEC, mirrored(bars), ts, 1)
    sign = feature_signs(SPEC, 2)
    np.testing.assert_allclose(down, up * sign[:-2], rtol=1e-5, atol=1e-5)
    assert sign[-2:].tolist() == [-1, -1]
    n = fit_normaliser(up, SPEC)
    for a, b in zip(up, down, strict=True):
        normalise(a, n)
        normalise(b, n)
    np.testing.assert_allclose(down, up * sign[:-2], rtol=1e-3, atol=1e-3)


@given(data=st.data())
@quick
def test_bulk_is_bar_by_bar(data: st.DataObject) -> None:
    bars = walk(900, seed=6, gap=400)
    start = data.draw(st.integers(0, 500))
    some = slice_bars(bars, start, 900)
    ts = np.array(data.draw(st.lists(st.integers(WINDOW, 899 - start), min_size=1, max_size=20)))
    single = np.stack([at(bars, start + int(t)) for t in ts])
    out = np.zeros_like(single)
    fill_features(out, SPEC, some, ts, new_feature_work(SPEC))
    assert out.tobytes() == single.tobytes()
    assert compute_features(SPEC, some, ts, 2).tobytes() == single.tobytes()


def test_threads_change_no_bit() -> None:
    bars = real()
    ts = np.arange(WINDOW, 1999)
    one = compute_features(SPEC, bars, ts, 1)
    assert compute_features(SPEC, bars, ts, 3).tobytes() == one.tobytes()
    np.testing.assert_array_equal(one[777], at(bars, WINDOW + 777))
    assert np.isfinite(one).all()


def test_bars_without_history_are_refused() -> None:
    bars = walk(300)
    for ts in ([WINDOW - 1], [WINDOW, 300], [-1]):
        with pytest.raises(IndexError, match="256"):
            compute_features(SPEC, bars, np.array(ts), 1)
    assert compute_features(SPEC, bars, np.zeros(0, np.int64), 1).shape == (0, num_features(SPEC))


def flat(T: int, spread: float) -> Bars:
    bars = walk(T)
    one = np.ones(T)
    return Bars(bars.time, one, one.copy(), one.copy(), one.copy(), one + spread, one + spread, one)


@pytest.mark.parametrize("spread", [0.0, 1e-4])
def test_constant_prices(spread: float) -> None:
    features = at(flat(HISTORY, spread), WINDOW)
    assert np.isfinite(features).all()
    np.testing.assert_array_equal(features[: column("volatility")], 0)


def test_quiet_after_a_busy_stretch() -> None:
    bars = walk(400)
    bars.close[300:] = bars.close[299]
    features = at(bars, 399)
    assert np.isfinite(features).all()
    assert features[column("volatility")] == pytest.approx(np.log(MIN_FAST_RATIO))


def test_one_huge_return_hides_nothing() -> None:
    bars = walk(HISTORY, seed=8)
    x, y = np.zeros(WINDOW), np.zeros(WINDOW)
    before, _ = write_returns(x, bars, WINDOW)
    for prices in bars[1:7]:
        prices[WINDOW - 20 :] *= 1.08  # fifty volatilities
    after, _ = write_returns(y, bars, WINDOW)
    assert before < after < 2 * before
    assert y.max() == y[-21] < 0.3 * np.log(1.08)


def returns_by_hand(bars: Bars, t: int) -> tuple[NDArray[np.float64], float, float]:
    r = np.diff(np.log(bars.close))[t - WINDOW : t]
    for _ in range(2):
        limit = 6 * np.sqrt(np.mean(r**2))
        r = np.clip(r, -limit, limit)
    fast, slow = (float(np.sqrt(np.mean(r[-n:] ** 2))) for n in (64, 256))
    return r / fast, fast, slow


def test_signed_features_by_hand() -> None:
    bars = walk(300, seed=9)
    x, _, _ = returns_by_hand(bars, 290)
    level = np.append(0.0, x.cumsum())
    features = at(bars, 290)
    for k in range(9):
        h = 2**k
        assert features[column(f"return_{h}")] == pytest.approx((level[-1] - level[-1 - h]) / h**0.5, abs=1e-5)
        if k:
            expected = (level[-1] - level[-h:].mean()) / h**0.5
            assert features[column(f"above_mean_{h}")] == pytest.approx(expected, abs=1e-5)


def test_other_features_by_hand() -> None:
    bars = walk(300, seed=10)
    t = 280
    x, fast, slow = returns_by_hand(bars, t)
    features = at(bars, t)
    scattered = np.zeros((67, 4), np.float32)
    scatter(scattered[None], SPEC.bank, x[None], new_scatter_work(SPEC.bank))
    scattered[1:] = np.log1p(scattered[1:])
    np.testing.assert_allclose(features[: 67 * 4], scattered.ravel(), atol=1e-5)
    assert features[column("volatility")] == pytest.approx(np.log(fast / slow), abs=1e-5)
    spread = np.log(bars.ask_close[t] / bars.close[t]) / fast
    assert features[column("spread")] == pytest.approx(np.log1p(spread), abs=1e-5)
    extent = np.log(bars.high[t] / bars.low[t]) / fast
    assert features[column("range")] == pytest.approx(np.log1p(extent), abs=1e-5)


def test_calendar() -> None:
    bars = walk(300)
    for t in (256, 270, 299):
        stamp = pd.to_datetime(bars.time[t], unit="ns", utc=True)
        hour, day = 2 * np.pi * stamp.hour / 24, 2 * np.pi * stamp.weekday() / 7
        expected = [np.sin(hour), np.cos(hour), np.sin(day), np.cos(day)]
        features = at(bars, t)[column("sin_day") : column("cos_week") + 1]
        np.testing.assert_allclose(features, expected, atol=1e-6)


@pytest.mark.parametrize(("t", "since", "missing"), [(299, 256, 0), (300, 0, 48), (555, 255, 48), (556, 256, 0)])
def test_last_gap(t: int, since: int, missing: int) -> None:
    features = at(walk(600, gap=300), t)[column("since_gap") :]
    np.testing.assert_allclose(features, np.log1p([since, missing]), rtol=1e-6)


def test_normaliser() -> None:
    bars = real()
    ts = np.arange(WINDOW, 1999)
    X = compute_features(SPEC, bars, ts, 1)
    X[:, column("spread")] = 0.3  # constant
    wide = np.concatenate([X, np.full((len(X), 1), 5.0, np.float32)], axis=1)
    n = fit_normaliser(wide, SPEC)
    assert n.shift.dtype == n.scale.dtype == np.float32
    assert n.shift.shape == n.scale.shape == (num_features(SPEC) + 1,)
    assert (n.shift[:-1][SIGNED] == 0).all()
    assert (n.scale > 0).all()
    assert n.scale[column("spread")] == pytest.approx(1 / UNDIRECTED_WEIGHT)
    assert n.scale[-1] == 1
    assert n.shift[-1] == 0
    weights = np.where(SIGNED, 1.0, UNDIRECTED_WEIGHT)
    np.testing.assert_array_equal(feature_weights(SPEC), weights)
    spread = np.mean(((X - n.shift[:-1]) / n.scale[:-1]) ** 2, axis=0)
    varies = X.std(axis=0) > 1e-4
    assert varies.sum() > 250
    np.testing.assert_allclose(spread[varies], weights[varies] ** 2, rtol=1e-3)
    rows = np.array([3, 1], np.int32)
    expected = np.clip((wide.astype(np.float64) - n.shift) / n.scale, -MAX_FEATURE, MAX_FEATURE)
    raw = wide.copy()
    normalise_rows(wide, rows, n)
    np.testing.assert_allclose(wide[rows], expected[rows], atol=1e-5)
    np.testing.assert_array_equal(wide[[0, 2]], raw[[0, 2]])
    raw[0, :2] = 1e9, -1e9
    normalise(raw[0], n)
    assert (raw[0, :2] == [MAX_FEATURE, -MAX_FEATURE]).all()
    assert raw[0, -1] == 5.0
