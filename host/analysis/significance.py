"""How sure a profit is: intervals, what luck explains, and `judge`, which says whether there is an edge.

Returns [d] are daily, fractions of a price, a day without a position is 0.  Sharpe ratios are those of a day, not
annualised.  Read `judge`.

    Politis & Romano (1994), The Stationary Bootstrap
    Politis & White (2004), Automatic Block-Length Selection; Patton, Politis & White (2009), a correction of it
    Bailey & Lopez de Prado (2012), The Sharpe Ratio Efficient Frontier; (2014), The Deflated Sharpe Ratio
    Bailey, Borwein, Lopez de Prado & Zhu (2017), The Probability of Backtest Overfitting
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from host.analysis.record import Floats
from host.analysis.statistics import days_per_year, sharpe

EDGE, NO_EDGE, TOO_LITTLE = "edge", "no edge", "too little data"
CONFIDENCE = 0.95
INTERVAL_LEVEL = 0.98  # with 0.95, returns with memory or rare large losses pass for an edge in 5 % of the cases
MIN_DAYS = 28  # with a profit or a loss: with fewer, the formulas, which are for many days, err to the good
WORTHWHILE_SHARPE = 1.0  # of a year: where less than this is all that the data allow, there is no edge
PLAUSIBLE_SHARPE = 3.0  # of a year: where luck gives more than this, the data could show no edge
NORMAL = NormalDist()
PATHS_AT_ONCE = 100  # bounds the memory
BASIS_POINT = 1e-4


class Verdict(NamedTuple):
    """What `judge` says of a series of returns."""

    verdict: str  # EDGE, NO_EDGE or TOO_LITTLE
    reasons: list[str]  # sentences with figures


def bootstrap_intervals(
    returns: Floats, seed: int, paths: int = 1000, level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of "mean", "sharpe", "max_drawdown" and "profit_factor" of returns [d], d > 1.

    They are those of `paths` paths of the stationary bootstrap, whose mean block is `optimal_block_length` days.  A
    drawdown is positive, in units of returns.  A statistic without finite bounds is left out: a path without a loss has
    no profit factor, one without a trade no Sharpe ratio.
    """
    rng, block, drawn = np.random.default_rng(seed), optimal_block_length(returns), []
    for first in range(0, paths, PATHS_AT_ONCE):
        index = stationary_indices(len(returns), block, min(PATHS_AT_ONCE, paths - first), rng)
        drawn.append(_path_statistics(returns[index]))
    values = np.concatenate(drawn, axis=1)  # [4, paths]
    tail = (1.0 - level) / 2.0
    bounds = np.quantile(values, [tail, 1.0 - tail], axis=1, method="inverted_cdf").T
    names = ("mean", "sharpe", "max_drawdown", "profit_factor")
    return {name: (float(a), float(b)) for name, (a, b) in zip(names, bounds, strict=True) if np.isfinite([a, b]).all()}


def _path_statistics(path: Floats) -> Floats:
    """[4, paths] statistics of the returns `path` [paths, d]."""
    curve = np.cumsum(path, axis=1)
    fall = np.maximum(np.maximum.accumulate(curve, axis=1), 0.0) - curve
    gains, losses = np.maximum(path, 0.0).sum(axis=1), -np.minimum(path, 0.0).sum(axis=1)
    mean, deviation = path.mean(axis=1), path.std(axis=1, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.stack([mean, mean / deviation, fall.max(axis=1), gains / losses])


def stationary_indices(d: int, block: float, paths: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """[paths, d] days of the stationary bootstrap: the one after the last, or with probability 1 / block any day."""
    t = np.arange(d)
    begins = rng.random((paths, d)) < 1.0 / block
    begin = np.maximum.accumulate(np.where(begins, t, 0), axis=1)  # of the block of each day
    start = rng.integers(d, size=(paths, d))
    return (np.take_along_axis(start, begin, axis=1) + t) % d


def optimal_block_length(returns: Floats) -> float:
    """Mean block, days, that estimates the variance of the mean of returns [d] best; at least 1.

    The window is twice the first lag from which on as many autocorrelations as `run` are insignificant.
    """
    d, x = len(returns), returns - returns.mean()
    if d < 3 or np.ptp(returns) == 0:
        return 1.0
    run = max(5, int(math.log10(d)))
    last = min(math.ceil(math.sqrt(d)) + run, d - 1)
    covariance = np.array([x[lag:] @ x[: d - lag] for lag in range(last + 1)]) / d
    significant = np.abs(covariance) >= 2.0 * math.sqrt(math.log10(d) / d) * covariance[0]
    quiet = [lag for lag in range(1, last - run + 1) if not significant[lag : lag + run].any()]
    window = min(2 * quiet[0], last) if quiet else last
    lags = np.arange(1, window + 1)
    weighted = 2.0 * np.clip(2.0 * (1.0 - lags / window), 0.0, 1.0) * covariance[1 : window + 1]
    long_run, slope = covariance[0] + weighted.sum(), (weighted * lags).sum()
    length = abs(slope / long_run) ** (2 / 3) * d ** (1 / 3) if long_run != 0 else math.inf
    return float(np.clip(length, 1.0, math.ceil(min(3.0 * math.sqrt(d), d / 3.0))))


def sharpe_error(returns: Floats) -> float:
    """Standard error of the Sharpe ratio of returns [d] times sqrt(d - 1): eq. 8 of Bailey & Lopez de Prado (2012)."""
    ratio, x = sharpe(returns) or 0.0, returns - returns.mean()
    spread = float(np.mean(x**2)) or 1.0
    skew, kurtosis = float(np.mean(x**3)) / spread**1.5, float(np.mean(x**4)) / spread**2
    return math.sqrt(max(1.0 - skew * ratio + (kurtosis - 1.0) / 4.0 * ratio**2, 1e-12))


def probabilistic_sharpe(returns: Floats, benchmark: float = 0.0) -> float | None:
    """Probability that the true Sharpe ratio of returns [d] is above `benchmark`, of a day; None: it is undefined."""
    ratio = sharpe(returns)
    if ratio is None:
        return None
    return NORMAL.cdf((ratio - benchmark) * math.sqrt(len(returns) - 1) / sharpe_error(returns))


def expected_max_sharpe(trials: int, trial_sharpe_variance: float) -> float:
    """Sharpe ratio that the best of `trials` independent trials without an edge shows on average."""
    if trials < 2:
        return 0.0
    best, next_best = NORMAL.inv_cdf(1.0 - 1.0 / trials), NORMAL.inv_cdf(1.0 - 1.0 / (trials * math.e))
    return math.sqrt(trial_sharpe_variance) * ((1.0 - np.euler_gamma) * best + np.euler_gamma * next_best)


def deflated_sharpe(returns: Floats, trials: int, trial_sharpe_variance: float) -> float | None:
    """`probabilistic_sharpe` of the best of `trials` trials against what luck alone gives the best of them.

    `trial_sharpe_variance` is the variance of the trials' Sharpe ratios, of a day.
    """
    return probabilistic_sharpe(returns, expected_max_sharpe(trials, trial_sharpe_variance))


def min_track_record(returns: Floats, benchmark: float = 0.0, confidence: float = CONFIDENCE) -> float | None:
    """Days from which on a record with the moments of returns [d] proves a Sharpe ratio above `benchmark`; None: never.

    Bailey & Lopez de Prado (2012), eq. 13.
    """
    ratio = sharpe(returns)
    if ratio is None or ratio <= benchmark:
        return None
    return 1.0 + (sharpe_error(returns) * NORMAL.inv_cdf(confidence) / (ratio - benchmark)) ** 2


def backtest_overfitting(returns: Floats, blocks: int = 16) -> float:
    """Probability that the best of the strategies of returns [d, strategies] is one of the worse half afterwards.

    Combinatorially symmetric cross-validation: half of the `blocks` stretches of days choose the strategy by its Sharpe
    ratio, the others rank it, in every combination.  The first d % blocks days are left out.  Raises ValueError for
    fewer than two strategies, two days a block or an odd number of blocks.
    """
    d, strategies = returns.shape
    length = d // blocks
    if strategies < 2 or length < 2 or blocks % 2:
        raise ValueError(f"{strategies} strategies on {d} days in {blocks} blocks: too few, or blocks are odd")
    parts = returns[d - length * blocks :].reshape(blocks, length, strategies)
    chosen = np.zeros((math.comb(blocks, blocks // 2), blocks))
    for row, combination in zip(chosen, combinations(range(blocks), blocks // 2), strict=True):
        row[list(combination)] = 1.0
    inside, outside = (_sharpe_of_parts(parts, mask) for mask in (chosen, 1.0 - chosen))
    of_best = np.take_along_axis(outside, inside.argmax(axis=1)[:, None], axis=1)
    rank = (outside < of_best).sum(axis=1) + ((outside == of_best).sum(axis=1) + 1) / 2.0
    return float(np.mean(rank / (strategies + 1) <= 0.5))


def _sharpe_of_parts(parts: Floats, mask: Floats) -> Floats:
    """[combinations, strategies] Sharpe ratios of the blocks in mask [combinations, blocks]; 0 where undefined."""
    n = mask[0].sum() * parts.shape[1]
    mean = mask @ parts.sum(axis=1) / n
    spread = np.sqrt(np.maximum(mask @ (parts**2).sum(axis=1) / n - mean**2, 0.0))
    return np.asarray(np.divide(mean, spread, out=np.zeros_like(mean), where=spread > 0), np.float64)


def judge(
    returns: Floats,
    trials: int = 1,
    trial_sharpe_variance: float | None = None,
    overfitting: float | None = None,
    days_per_year: float = 252.0,
    seed: int = 0,
) -> Verdict:
    """Whether returns [d], those of the best of `trials` trials, show an edge.

    An edge: the deflated Sharpe ratio is CONFIDENCE or more, and the INTERVAL_LEVEL interval of the mean is above 0.
    The variance of the trials' Sharpe ratios is that of luck at least, so that trials that resemble each other count in
    full.  No edge: a loss; less than luck gives the best of the trials, and luck less than PLAUSIBLE_SHARPE;
    `backtest_overfitting` above a half; or so little, for certain, that it is not WORTHWHILE_SHARPE.  Else there is too
    little data.  `trial_sharpe_variance` and `overfitting` may be unknown; `seed` draws the paths.
    """
    days, active, ratio = len(returns), int(np.count_nonzero(returns)), sharpe(returns)
    if days >= MIN_DAYS and not active:
        return Verdict(NO_EDGE, [f"No profit and no loss in {days} days: it did not trade."])
    if active < MIN_DAYS or ratio is None:
        few = f"{active} of {days} days had a profit or a loss; it takes {MIN_DAYS}, not all alike, to judge."
        return Verdict(TOO_LITTLE, [few])
    year = math.sqrt(days_per_year)
    luck = expected_max_sharpe(trials, max(trial_sharpe_variance or 0.0, 1.0 / (days - 1)))
    reasons = [f"Sharpe ratio {ratio * year:.2f} a year, net, over {days} days, {active} with a profit or a loss."]
    if trials > 1:
        reasons.append(f"It is the best of {trials} trials: luck alone gives the best of them {luck * year:.2f}.")
    against = list(_against(ratio, luck, luck * year < PLAUSIBLE_SHARPE, overfitting))
    if against:
        return Verdict(NO_EDGE, reasons + against)
    doubts = list(_doubts(returns, luck, seed, reasons))
    bound = (ratio + NORMAL.inv_cdf(CONFIDENCE) * sharpe_error(returns) / math.sqrt(days - 1)) * year
    if doubts and bound < WORTHWHILE_SHARPE:
        little = f"Even at the upper end it has a Sharpe ratio of {bound:.2f} a year, less than {WORTHWHILE_SHARPE:g}."
        return Verdict(NO_EDGE, [*reasons, *doubts, little])
    return Verdict(TOO_LITTLE, reasons + doubts) if doubts else Verdict(EDGE, reasons)


def _against(ratio: float, luck: float, beatable: bool, overfitting: float | None) -> Iterator[str]:
    """Reasons why there is no edge; `beatable`: an edge that exists would be above luck."""
    if ratio <= 0:
        yield "It loses after costs."
    elif ratio <= luck and beatable:
        yield "Luck explains the profit."
    if overfitting is not None and overfitting > 0.5:
        yield f"What is best in one half of the days is below the median in the other: {overfitting:.0%} of the cases."


def _doubts(returns: Floats, luck: float, seed: int, reasons: list[str]) -> Iterator[str]:
    """Reasons why an edge is not certain; appends to `reasons` what speaks for one."""
    chance, days = probabilistic_sharpe(returns, luck) or 0.0, min_track_record(returns, luck)
    likely = f"It is better than luck with a probability of {'over 99.9%' if chance > 0.999 else f'{chance:.1%}'}"
    if chance < CONFIDENCE:
        needed = f"about {days:,.0f}" if days else "many more"
        yield f"{likely}; for {CONFIDENCE:.0%} it takes {needed} days like these."
        return
    reasons.append(f"{likely}; {days:,.0f} days are enough for {CONFIDENCE:.0%}.")
    low, high = (bound / BASIS_POINT for bound in bootstrap_intervals(returns, seed, level=INTERVAL_LEVEL)["mean"])
    interval = f"The mean day is between {low:.2f} and {high:.2f} basis points ({INTERVAL_LEVEL:.0%}, bootstrap)"
    if low <= 0:
        yield f"{interval}: it may be a loss."
    else:
        reasons.append(f"{interval}.")


def judge_pool(
    day: NDArray[np.int64], returns: Floats, trials: int, trial_sharpe_variance: float | None
) -> dict[str, Any]:
    """What the daily returns [d] of several markets together prove, after so many trials."""
    verdict = judge(returns, trials, trial_sharpe_variance, days_per_year=days_per_year(day))
    intervals = bootstrap_intervals(returns, seed=0) if len(returns) > 1 else {}
    return {"days": len(day), "trials": trials, "intervals": intervals, "verdict": verdict._asdict()}
