"""`judge` finds the edge that a market was made with, and none in noise, however many trials are made."""

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from host.analysis.record import Floats, daily_returns, trade_targets
from host.analysis.significance import EDGE, MIN_DAYS, NO_EDGE, TOO_LITTLE, Verdict, judge
from host.analysis.statistics import days_per_year
from host.evaluation.optimum import optimal_actions, solve_optimal_policy
from host.evaluation.synthetic import INTERVAL_NS, PIP, SyntheticOptions, make_market
from kernels.market.ledger import Market, new_market
from kernels.market.position import ACTIONS, HOLD, action_target

Draw = Callable[[np.random.Generator, int, int], Floats]
RUNS, MAX_TRIALS = 200, 50
MARKET: Market = new_market(range_px=1e-3, pip_px=PIP, interval_ns=INTERVAL_NS)
LENGTH = 45 * 1440 + 1  # bars of a minute: 45 days


def normal(rng: np.random.Generator, days: int, trials: int) -> Floats:
    return rng.standard_normal((days, trials))


def remembering(rng: np.random.Generator, days: int, trials: int) -> Floats:
    draws = rng.standard_normal((days + 1, trials))
    return draws[1:] + 0.25 * draws[:-1]


def clustered(rng: np.random.Generator, days: int, trials: int) -> Floats:
    """Fat tails, in weeks that are calm or wild for all trials."""
    return rng.standard_t(3, (days, trials)) * np.exp(np.repeat(rng.standard_normal(days // 5 + 1), 5))[:days, None]


def rare(rng: np.random.Generator, days: int, trials: int) -> Floats:
    """A position on a day in five."""
    return normal(rng, days, trials) * (rng.random((days, trials)) < 0.2)


def skewed(rng: np.random.Generator, days: int, trials: int) -> Floats:
    """Many small profits, and a few large losses that take them all."""
    return 1.0 - rng.exponential(size=(days, trials))


def judge_best(returns: Floats) -> Verdict:
    """The verdict on the trial of the best Sharpe ratio of returns [d, trials]."""
    spread = returns.std(axis=0, ddof=1)
    ratios = np.divide(returns.mean(axis=0), spread, out=np.zeros(len(spread)), where=spread > 0)
    variance = float(ratios.var(ddof=1)) if len(ratios) > 1 else None
    return judge(returns[:, ratios.argmax()], len(ratios), variance)


@pytest.mark.parametrize("draw", [normal, remembering, clustered, rare, skewed])
@pytest.mark.parametrize("days", [60, 500])
def test_the_best_of_up_to_fifty_trials_on_noise_is_no_edge(draw: Draw, days: int) -> None:
    rng = np.random.default_rng(days)
    trials = rng.integers(1, MAX_TRIALS + 1, RUNS)
    found = Counter(judge_best(0.001 * draw(rng, days, n)).verdict for n in trials)
    assert found[EDGE] < 0.05 * RUNS, found


@pytest.mark.parametrize("draw", [normal, remembering, clustered, rare, skewed])
def test_a_single_trial_on_noise_is_no_edge(draw: Draw) -> None:
    rng = np.random.default_rng(1)
    found = Counter(judge_best(0.001 * draw(rng, 250, 1)).verdict for _ in range(2 * RUNS))
    assert found[EDGE] < 0.05 * 2 * RUNS, found


def test_without_the_count_of_trials_noise_looks_like_an_edge() -> None:
    rng = np.random.default_rng(0)
    best = [max((normal(rng, 250, 50)).T, key=lambda row: row.mean() / row.std()) for _ in range(20)]
    assert sum(judge(row).verdict == EDGE for row in best) > 10
    assert sum(judge(row, 50).verdict == EDGE for row in best) == 0


def test_trials_that_resemble_each_other_count_in_full() -> None:
    rng, found = np.random.default_rng(3), 0
    for _ in range(50):
        best = max(normal(rng, 250, 50).T, key=lambda row: row.mean() / row.std())
        found += judge(best, 50, trial_sharpe_variance=1e-9).verdict == EDGE
    assert found < 3


def test_an_edge_is_found_once_there_is_enough_data() -> None:
    rng, found = np.random.default_rng(0), {}
    for days, runs in ((40, 20), (250, 20), (1500, 6)):
        edges = (0.001 * (normal(rng, days, 1)[:, 0] + 2.5 / math.sqrt(252)) for _ in range(runs))
        found[days] = Counter(judge(returns, 10).verdict for returns in edges)
    assert found[40][EDGE] == 0
    assert found[40][TOO_LITTLE] >= 12  # the others lose, by chance
    assert 0 < found[250][EDGE] < 20
    assert found[1500][EDGE] == 6


def planted_returns() -> tuple[Floats, Floats]:
    """Daily returns [d] of the best policy of the planted market, and of its opposite."""
    synthetic = make_market("planted", SyntheticOptions(length=LENGTH))
    actions = optimal_actions(synthetic, solve_optimal_policy(synthetic, MARKET, 101))[:-1]
    decided = np.maximum.accumulate(np.where(actions == HOLD, 0, np.arange(len(actions))))
    target = np.array([action_target(0.0, action, MARKET.sizes) for action in range(len(ACTIONS))])[actions[decided]]
    best, opposite = (trade_targets(synthetic.bars, sign * target, MARKET) for sign in (1.0, -1.0))
    return daily_returns(best)[1], daily_returns(opposite)[1]


def test_the_best_policy_of_the_planted_market_has_an_edge() -> None:
    best, opposite = planted_returns()
    verdict = judge(best, MAX_TRIALS, days_per_year=365.25)
    assert verdict.verdict == EDGE, verdict
    assert len(verdict.reasons) == 4
    assert judge(opposite, MAX_TRIALS).verdict == NO_EDGE
    assert judge(best[: MIN_DAYS - 1], MAX_TRIALS).verdict == TOO_LITTLE


def test_random_policies_on_noise_have_no_edge_even_without_costs() -> None:
    """Twenty runs of ten trials on the ledger, each of a turnover of its own."""
    bars = make_market("noise", SyntheticOptions(length=LENGTH, cost=0.0)).bars
    rng, found, market = np.random.default_rng(7), Counter[str](), MARKET._replace(reverse=True)
    for _ in range(20):
        trials = []
        for turnover in 10 ** -rng.uniform(1, 3, 10):
            pieces = rng.integers(-1, 2, 2000).astype(float), rng.geometric(turnover, 2000)
            target = np.resize(np.repeat(*pieces), LENGTH - 1)
            day, returns = daily_returns(trade_targets(bars, target, market))
            trials.append(returns)
        assert days_per_year(day) == 365.25
        found[judge_best(np.array(trials).T).verdict] += 1
    assert found[EDGE] == 0, found
    paying = judge(daily_returns(trade_targets(bars, target, market._replace(commission_px=PIP)))[1])
    assert paying.verdict == NO_EDGE
    assert "It loses after costs." in paying.reasons


def alternating(up: float, down: float, days: int) -> Floats:
    return np.resize([up, down], days)


@pytest.mark.parametrize(
    ("returns", "options", "verdict", "reason"),
    [
        (np.zeros(27), {}, TOO_LITTLE, "0 of 27 days had a profit or a loss; it takes 28"),
        (np.zeros(30), {}, NO_EDGE, "in 30 days: it did not trade"),
        (np.concatenate([np.zeros(400), alternating(0.02, -0.01, 27)]), {}, TOO_LITTLE, "27 of 427 days"),
        (np.full(100, 0.01), {}, TOO_LITTLE, "not all alike"),
        (alternating(0.01, -0.02, 100), {}, NO_EDGE, "It loses after costs."),
        (alternating(0.011, -0.01, 300), {"trials": 40}, NO_EDGE, "Luck explains the profit."),
        (alternating(0.011, -0.01, 300), {"trials": 40}, NO_EDGE, "luck alone gives the best of them 2.0"),
        (alternating(0.02, -0.01, 300), {"overfitting": 0.6}, NO_EDGE, "60% of the cases"),
        (alternating(0.011, -0.01, 300), {}, TOO_LITTLE, "for 95% it takes about 1,19"),
        (alternating(0.0101, -0.01, 9000), {}, NO_EDGE, "Even at the upper end it has a Sharpe ratio of 0.35 a year"),
        (alternating(0.011, -0.01, 60), {"trials": 40}, TOO_LITTLE, "it takes many more days"),
        (np.resize(np.repeat([0.02, -0.01], 40), 240), {}, TOO_LITTLE, "it may be a loss"),
        (alternating(0.02, -0.01, 300), {"trials": 40}, EDGE, "Sharpe ratio 5.28 a year, net, over 300 days, 300 with"),
        (alternating(0.02, -0.01, 300), {"trials": 40}, EDGE, "better than luck with a probability of over 99.9%;"),
        (alternating(0.02, -0.01, 300), {"trials": 1, "overfitting": 0.5}, EDGE, "The mean day is between"),
        (alternating(0.02, -0.01, 300), {"days_per_year": 365.25}, EDGE, "Sharpe ratio 6.36 a year"),
    ],
)
def test_a_verdict_has_its_reason(returns: Floats, options: dict[str, float], verdict: str, reason: str) -> None:
    given = judge(returns, **options)  # type: ignore[arg-type]
    assert given.verdict == verdict, given
    assert any(reason in line for line in given.reasons), given
