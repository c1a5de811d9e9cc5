"""Intervals, the ratios that luck explains, and cross-validation: against papers, naive loops and arch."""

import math
import time
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from host.analysis.record import Floats
from host.analysis.significance import (
    NORMAL,
    backtest_overfitting,
    bootstrap_intervals,
    deflated_sharpe,
    expected_max_sharpe,
    min_track_record,
    optimal_block_length,
    probabilistic_sharpe,
    stationary_indices,
)
from host.analysis.statistics import sharpe


def series(days: int, rho: float, seed: int = 0, mean: float = 0.0) -> Floats:
    """An autoregression of deviation 1."""
    draws, values = np.random.default_rng(seed).standard_normal(days + 100), [0.0]
    for draw in draws:
        values.append(rho * values[-1] + math.sqrt(1 - rho * rho) * draw)
    return np.array(values[-days:]) + mean


def naive_block_length(returns: list[float]) -> float:
    """Politis & White (2004) with the corrected constant of 2009, sum by sum."""
    d, mean = len(returns), sum(returns) / len(returns)

    def covariance(lag: int) -> float:
        return sum((returns[t] - mean) * (returns[t - lag] - mean) for t in range(lag, d)) / d

    run, limit = max(5, int(math.log10(d))), 2 * math.sqrt(math.log10(d) / d) * covariance(0)
    first = next(m for m in range(1, d) if all(abs(covariance(m + k)) < limit for k in range(run)))
    window, slope, long_run = 2 * first, 0.0, 0.0
    for lag in range(-window, window + 1):
        t = abs(lag) / window
        flat_top = 1.0 if t <= 0.5 else 2.0 * (1.0 - t)
        slope += flat_top * abs(lag) * covariance(abs(lag))
        long_run += flat_top * covariance(abs(lag))
    return float((2 * slope**2 / (2 * long_run**2)) ** (1 / 3) * d ** (1 / 3))


def naive_path_statistics(path: list[float]) -> dict[str, float]:
    mean = sum(path) / len(path)
    deviation = math.sqrt(sum((r - mean) ** 2 for r in path) / (len(path) - 1))
    equity = peak = fall = 0.0
    for r in path:
        equity += r
        peak = max(peak, equity)
        fall = max(fall, peak - equity)
    factor = sum(r for r in path if r > 0) / -sum(r for r in path if r < 0)
    return {"mean": mean, "sharpe": mean / deviation, "max_drawdown": fall, "profit_factor": factor}


def naive_overfitting(returns: Floats, blocks: int) -> float:
    """The share of logits <= 0, combination by combination."""
    length, strategies = len(returns) // blocks, returns.shape[1]
    rows = [returns[len(returns) - length * (blocks - b) :][:length] for b in range(blocks)]
    logits = []
    for combination in combinations(range(blocks), blocks // 2):
        inside = np.concatenate([rows[b] for b in combination])
        outside = np.concatenate([rows[b] for b in range(blocks) if b not in combination])
        best = int((inside.mean(axis=0) / inside.std(axis=0)).argmax())
        after = (outside.mean(axis=0) / outside.std(axis=0)).tolist()
        rank = (1 + sorted(after).index(after[best])) / (strategies + 1)
        logits.append(math.log(rank / (1 - rank)))
    return sum(logit <= 1e-12 for logit in logits) / len(logits)


@pytest.mark.parametrize(("days", "rho"), [(250, 0.0), (400, 0.6), (600, -0.4), (800, 0.3)])
def test_blocks_are_as_long_as_the_paper_says(days: int, rho: float) -> None:
    returns = series(days, rho, seed=days)
    expected = min(max(1.0, naive_block_length(returns.tolist())), math.ceil(min(3 * math.sqrt(days), days / 3)))
    assert optimal_block_length(returns) == pytest.approx(expected)


def test_blocks_are_as_long_as_those_of_arch() -> None:
    bootstrap = pytest.importorskip("arch.bootstrap", reason="pip install arch", exc_type=ImportError)
    for seed in range(10):
        returns = series(300 + 40 * seed, (seed - 3) / 8, seed)
        expected = max(1.0, float(bootstrap.optimal_block_length(returns)["stationary"].iloc[0]))
        assert optimal_block_length(returns) == pytest.approx(expected), seed


def test_blocks_have_bounds() -> None:
    assert optimal_block_length(np.zeros(100)) == 1
    assert optimal_block_length(np.array([1.0, -1.0])) == 1
    assert optimal_block_length(np.sin(np.arange(100) / 3)) == 30  # the longest of 100 days


def test_indices_are_those_of_the_stationary_bootstrap() -> None:
    d, block = 50, 4.0
    index = stationary_indices(d, block, 2000, np.random.default_rng(0))
    follows = index[:, 1:] == (index[:, :-1] + 1) % d
    assert follows.mean() == pytest.approx(1 - 1 / block + 1 / block / d, abs=0.005)
    assert np.bincount(index.ravel(), minlength=d) / index.size == pytest.approx(np.full(d, 1 / d), abs=0.0015)
    assert len(np.unique(index[:, 0])) == d


def test_an_interval_of_one_path_is_that_path() -> None:
    returns = series(300, 0.4, mean=0.1)
    index = stationary_indices(300, optimal_block_length(returns), 1, np.random.default_rng(5))[0]
    for name, value in naive_path_statistics(returns[index].tolist()).items():
        assert bootstrap_intervals(returns, 5, paths=1)[name] == pytest.approx((value, value)), name


def test_intervals_are_those_of_normal_theory_and_widen_with_memory() -> None:
    for rho in (0.0, 0.5):
        returns = series(2000, rho)
        low, high = bootstrap_intervals(returns, 0)["mean"]
        width = 2 * 1.96 * math.sqrt((1 + rho) / (1 - rho) / 2000)
        assert high - low == pytest.approx(width, rel=0.12)
        assert low < returns.mean() < high
    narrow, wide = (bootstrap_intervals(returns, 0, level=level)["sharpe"] for level in (0.5, 0.99))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    assert bootstrap_intervals(returns, 1) == bootstrap_intervals(returns, 1) != bootstrap_intervals(returns, 2)


def test_intervals_are_those_of_arch() -> None:
    bootstrap = pytest.importorskip("arch.bootstrap", reason="pip install arch", exc_type=ImportError)
    returns = series(500, 0.3, mean=0.1)

    def statistics(path: Any) -> Any:
        return np.array(list(naive_path_statistics(path).values()))

    block = optimal_block_length(returns)
    theirs = bootstrap.StationaryBootstrap(block, returns, seed=1).conf_int(statistics, 1000, method="percentile")
    ours = bootstrap_intervals(returns, 1)
    for name, low, high in zip(ours, *theirs, strict=True):
        assert ours[name] == pytest.approx((low, high), abs=0.12 * (high - low)), name


def test_what_has_no_finite_interval_is_left_out() -> None:
    assert bootstrap_intervals(np.zeros(50), 0) == {"mean": (0, 0), "max_drawdown": (0, 0)}
    assert bootstrap_intervals(-np.ones(50), 0) == {"mean": (-1, -1), "max_drawdown": (50, 50), "profit_factor": (0, 0)}
    assert set(bootstrap_intervals(np.arange(1.0, 51.0), 0)) == {"mean", "sharpe", "max_drawdown"}


def test_a_thousand_paths_of_ten_years_take_less_than_two_seconds() -> None:
    begin = time.process_time()
    bootstrap_intervals(series(3130, 0.1), 0)
    assert time.process_time() - begin < 2


def two_point_returns() -> Floats:
    """1,250 days as in the example of Bailey & Lopez de Prado (2014): 2.5 a year, skew -3, kurtosis 10."""
    x = np.repeat([1.0, 0.0], [1145, 105])
    return (x - x.mean()) / x.std(ddof=1) + 2.5 / math.sqrt(250)


def test_the_deflated_sharpe_ratio_of_the_paper() -> None:
    returns = two_point_returns()
    assert sharpe(returns) == pytest.approx(0.1581, abs=1e-4)
    assert expected_max_sharpe(100, 0.5 / 250) == pytest.approx(0.1132, abs=1e-4)
    assert deflated_sharpe(returns, 100, 0.5 / 250) == pytest.approx(0.9004, abs=1e-3)
    assert deflated_sharpe(returns, 1, 0.5 / 250) == probabilistic_sharpe(returns)


def test_the_best_of_many_trials_without_an_edge() -> None:
    draws = np.random.default_rng(0).standard_normal((20_000, 20))
    assert expected_max_sharpe(20, 1.0) == pytest.approx(draws.max(axis=1).mean(), rel=0.02)
    assert expected_max_sharpe(20, 4.0) == 2 * expected_max_sharpe(20, 1.0)
    assert expected_max_sharpe(1, 4.0) == 0


def test_the_probabilistic_sharpe_ratio_covers_skewed_returns() -> None:
    """It is uniform where the true Sharpe ratio is the benchmark."""
    draws = np.random.default_rng(0).exponential(size=(1000, 500)) - 0.8  # 0.2 of a deviation of 1, skew 2
    chance = np.array([probabilistic_sharpe(row, 0.2) for row in draws])
    assert np.quantile(chance, [0.05, 0.5, 0.95]) == pytest.approx([0.05, 0.5, 0.95], abs=0.03)
    mirrored = np.array([probabilistic_sharpe(-row, -0.2) for row in draws])
    assert mirrored == pytest.approx(1 - chance)


def test_a_track_record_is_long_enough_where_the_probability_says_so() -> None:
    returns = series(100, 0.0, mean=0.15)
    days = min_track_record(returns, 0.05, 0.9)
    assert days is not None
    for d, certain in ((days * 0.97, False), (days * 1.03, True)):
        chance = probabilistic_sharpe(np.resize(returns, int(d / 100 + 1) * 100), 0.05)
        assert chance is not None
        z = NORMAL.inv_cdf(chance) * math.sqrt((d - 1) / (int(d / 100 + 1) * 100 - 1))
        assert (NORMAL.cdf(z) > 0.9) is certain
    normal, z_sq = series(100_000, 0.0), NORMAL.inv_cdf(0.95) ** 2
    normal = (normal - normal.mean()) / normal.std()
    year = min_track_record(normal + 1 / math.sqrt(252))
    assert year == pytest.approx(1 + z_sq * 252 * (1 + 0.5 / 252), rel=0.01)  # 2.7 years for 1 a year
    assert min_track_record(normal + 2, 1.0) == pytest.approx(1 + z_sq * (1 + 0.5 * 2**2), rel=0.03)  # Lo (2002)


def test_ratios_that_are_undefined() -> None:
    for returns in (np.zeros(100), np.array([1.0]), np.zeros(0)):
        assert probabilistic_sharpe(returns) is None
        assert deflated_sharpe(returns, 5, 1.0) is None
        assert min_track_record(returns) is None
    assert min_track_record(series(100, 0.0, mean=-1.0)) is None


def test_overfitting_is_that_of_a_naive_cross_validation() -> None:
    for seed, edge in ((0, 0.0), (1, 0.1), (2, 0.3)):
        returns = np.random.default_rng(seed).standard_normal((125, 7))
        returns[:, 3] += edge
        assert backtest_overfitting(returns, 6) == naive_overfitting(returns, 6)


def test_overfitting_of_noise_of_an_edge_and_of_what_always_turns() -> None:
    noise = np.random.default_rng(0).standard_normal((20, 480, 10))
    assert np.mean([backtest_overfitting(returns, 8) for returns in noise]) == pytest.approx(0.5, abs=0.1)
    noise[0, :, 4] += 1.0
    assert backtest_overfitting(noise[0]) == 0
    turning = np.repeat(np.eye(8) - 0.5, 20, axis=0) * 3 + noise[1, :160, :8] * 0.1  # each wins in a block of its own
    assert backtest_overfitting(turning, 8) == 1
    assert backtest_overfitting(np.zeros((160, 4)), 8) == 1  # what is all alike cannot be chosen


@pytest.mark.parametrize(("shape", "blocks"), [((100, 1), 4), ((7, 3), 4), ((100, 3), 5)])
def test_overfitting_needs_strategies_days_and_halves(shape: tuple[int, int], blocks: int) -> None:
    with pytest.raises(ValueError, match="too few"):
        backtest_overfitting(np.ones(shape), blocks)
