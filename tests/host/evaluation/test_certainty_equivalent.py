"""The optimum of `risk`: known figures, the bars themselves, and the measure of an agent."""

from functools import cache

import numpy as np
import pytest

from host.evaluation.certainty_equivalent import (
    SizedPolicy,
    certainty_equivalent,
    expected_risk,
    follow_policy,
    solve_sized_policy,
)
from host.evaluation.exam import certainty_fraction, prepare_evaluation, selftest_config
from host.evaluation.optimum import solve_optimal_policy
from host.evaluation.synthetic import INTERVAL_NS, PIP, SyntheticOptions, make_market
from kernels.market.ledger import Market, new_market
from tests.fixtures.trainings import TINY

LEVELS = (0.2, 0.4, 0.6, 0.8, 1.0)
PLANTED = make_market("planted", SyntheticOptions(length=40_000))


def market_of(risk_aversion: float, adjust: bool, sizes: tuple[float, ...] = LEVELS) -> Market:
    """Ranges are standard deviations here."""
    rules = {"risk_aversion": risk_aversion, "position_adjustment": adjust, "sizes": sizes}
    return new_market(range_px=PLANTED.noise_px, pip_px=PIP, interval_ns=INTERVAL_NS, **rules)


@cache
def solved(risk_aversion: float, adjust: bool, sizes: tuple[float, ...] = LEVELS) -> SizedPolicy:
    return solve_sized_policy(PLANTED, market_of(risk_aversion, adjust, sizes), 201)


def test_sizes_pay_where_they_may_change() -> None:
    """At an aversion of 0.3 a standard deviation; an independent program had .0365, .0409, .0487 (a constant risk)."""
    found = [solved(0.3, False, (1.0,)).gain, solved(0.3, False).gain, solved(0.3, True).gain]
    assert found == pytest.approx([0.0353, 0.0410, 0.0474], abs=1e-4)
    assert found == pytest.approx([0.0365, 0.0409, 0.0487], rel=0.04)


def test_without_aversion_it_is_the_optimum_of_profit_and_full_sizes() -> None:
    policy, market = solved(0.0, True), market_of(0.0, True)
    gain_px = solve_optimal_policy(PLANTED, market._replace(sizes=(1.0, 0, 0, 0, 0)), 201).gain_px
    assert policy.gain == pytest.approx(gain_px / market.range_px, rel=1e-4)
    assert set(np.unique(policy.target[5])) == {-1.0, 0.0, 1.0}
    assert set(np.unique(solved(0.3, True).target)) == set(policy.level.tolist())


@pytest.mark.parametrize("adjust", [False, True])
def test_the_gain_is_earned_on_the_bars_by_the_ledger(adjust: bool) -> None:
    policy, market = solved(0.3, adjust), market_of(0.3, adjust)
    target = follow_policy(PLANTED, policy)
    assert certainty_equivalent(PLANTED, market, target) == pytest.approx(policy.gain, rel=0.05)
    assert certainty_equivalent(PLANTED, market, np.sign(target)) < 0.8 * policy.gain
    move_px = np.diff(PLANTED.bars.close)
    realised = 0.15 * (move_px / market.range_px) ** 2
    expected = expected_risk(PLANTED, market, (PLANTED.phi - 1) * PLANTED.state)[:-1]
    assert realised.mean() == pytest.approx(expected.mean(), rel=0.03)


def test_risk_needs_sizes_that_change() -> None:
    """The optimum of the market `risk` as `selftest` trains it, against those with full sizes and with kept ones."""
    evaluation, data = prepare_evaluation("risk", SyntheticOptions(length=9000), selftest_config([*TINY], "risk"), 1)
    part, market = evaluation.test_market, data.market_spec.market
    assert market.risk_aversion * part.noise_px / market.range_px == pytest.approx(0.52, rel=0.02)
    full = market._replace(sizes=(1.0, *[0.0] * (len(market.sizes) - 1)), position_adjustment=False)
    kept = market._replace(position_adjustment=False)
    gain, without, locked = (solve_sized_policy(part, rules, 201).gain for rules in (market, full, kept))
    assert gain > 1.3 * without
    assert gain > 1.07 * locked
    assert evaluation.optimum_certainty == pytest.approx(gain, rel=0.15)  # on 2,250 bars
    assert evaluation.optimum_equity[-1] == evaluation.optimum_pips > 0

    target = follow_policy(part, solve_sized_policy(part, market))
    assert certainty_fraction(evaluation, target) == pytest.approx(1.0)
    assert certainty_fraction(evaluation, np.sign(target)) < 0.8
