"""Each limit trips and gives its name as the reason; what is published never exceeds what the limits allow."""

import math
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.live.risk import (
    ACTIVE,
    HALTED,
    REDUCING,
    MarketSnapshot,
    RiskDecision,
    RiskLimits,
    RiskState,
    apply_limits,
    check_limits,
    closes_before_next_decision,
    resume,
    target_reason,
)
from kernels.market.bars import SECOND_NS
from kernels.market.calendar import (
    ALWAYS_OPEN,
    CLOSED_DAILY,
    CLOSED_ON_WEEKENDS,
    DAY_NS,
    HOUR_NS,
    ClosedHours,
    open_duration_ns,
    weekly_close,
)

MINUTE = 60 * SECOND_NS
OFF = RiskLimits(1.0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
WEDNESDAY = int(datetime(2024, 5, 15, 12, tzinfo=UTC).timestamp()) * SECOND_NS
CALM = MarketSnapshot(
    WEDNESDAY, WEDNESDAY, HOUR_NS, weekly_close(CLOSED_ON_WEEKENDS), WEDNESDAY - DAY_NS, 0.0, 0.0, 1.0, 1.0, False, ""
)


def decision_at(
    risk_state: RiskState | None = None, limits: dict[str, Any] | None = None, **snapshot: Any
) -> RiskDecision:
    return check_limits(risk_state or RiskState(), CALM._replace(**snapshot), OFF._replace(**(limits or {})))[1]


TRIPS = [
    ("daily-loss", HALTED, {"daily_loss": 10.0}, {"equity": -10.0}, {"equity": -9.9}),
    ("drawdown", HALTED, {"drawdown": 10.0}, {"equity": -10.0}, {"equity": -9.9}),
    ("drawdown", HALTED, {"drawdown": 10.0}, {"equity": math.nan}, {"equity": 10.0}),
    ("losing-streak", HALTED, {"losing_streak": 1}, {"trade_profit": -0.1}, {"trade_profit": 0.1}),
    (
        "clock-skew",
        HALTED,
        {"clock_skew_s": 5.0},
        {"now_ns": WEDNESDAY - 6 * SECOND_NS},
        {"now_ns": WEDNESDAY - 5 * SECOND_NS},
    ),
    ("model-age", HALTED, {"model_age_days": 9.0}, {"trained_ns": WEDNESDAY - 10 * DAY_NS}, {}),
    ("halt-file", HALTED, {}, {"halt_requested": True}, {}),
    ("spread", REDUCING, {"max_spread": 2.0}, {"spread": 2.1}, {"spread": 2.0}),
    ("spread", REDUCING, {"max_spread": 2.0}, {"spread": math.nan}, {}),
    ("feature-drift", REDUCING, {"feature_drift": 4.0}, {"feature_drift": 4.1}, {"feature_drift": 4.0}),
    ("feature-drift", REDUCING, {"feature_drift": 4.0}, {"feature_drift": math.nan}, {}),
    ("late-bar", REDUCING, {}, {"now_ns": WEDNESDAY + HOUR_NS + 1}, {"now_ns": WEDNESDAY + HOUR_NS}),
    ("position-mismatch", REDUCING, {}, {"position_fault": "position-mismatch"}, {}),
]


@pytest.mark.parametrize(("reason", "state", "limits", "trips", "passes"), TRIPS)
def test_a_limit_trips_by_name_and_only_beyond_itself(
    reason: str, state: str, limits: dict[str, Any], trips: dict[str, Any], passes: dict[str, Any]
) -> None:
    decision = decision_at(limits=limits, **trips)
    assert (decision.state, decision.reason) == (state, reason)
    assert decision.max_abs_target == (0.0 if state == HALTED else 1.0)
    assert decision_at(limits=limits, **passes) == RiskDecision(ACTIVE, "agent", 1.0)
    off = decision_at(limits=dict.fromkeys(limits, 0), **trips)
    assert limits == {} or off == RiskDecision(ACTIVE, "agent", 1.0)


def test_changes_within_the_hour_are_counted() -> None:
    limits, risk_state = OFF._replace(changes_per_hour=3), RiskState()
    states = []
    for i in range(8):
        now = WEDNESDAY + i * 15 * MINUTE
        risk_state, decision = check_limits(
            risk_state, CALM._replace(now_ns=now, close_ns=now, interval_ns=15 * MINUTE), limits
        )
        risk_state = apply_limits(risk_state, float(1 - i % 2), decision, now)
        states.append((decision.state, risk_state.target))
    # in, out, in: the fourth may only leave; then nothing is entered until the first is an hour old
    assert states[:4] == [(ACTIVE, 1), (ACTIVE, 0), (ACTIVE, 1), (REDUCING, 0)]
    assert states[4] == (REDUCING, 0)
    assert len(risk_state.target_changes_ns) <= 4


def test_a_daily_loss_ends_with_the_day_and_a_drawdown_by_order() -> None:
    for limits, ends_with_day in (
        (OFF._replace(daily_loss=5.0), True),
        (OFF._replace(losing_streak=1), True),
        (OFF._replace(drawdown=5.0), False),
    ):
        risk_state, decision = check_limits(RiskState(), CALM._replace(equity=-6.0, trade_profit=-6.0), limits)
        assert decision.state == HALTED
        risk_state, decision = check_limits(risk_state, CALM._replace(equity=-6.0), limits)
        assert decision.state == HALTED
        tomorrow = CALM._replace(now_ns=WEDNESDAY + DAY_NS, close_ns=WEDNESDAY + DAY_NS, equity=-6.0)
        assert check_limits(risk_state, tomorrow, limits)[1].state == (ACTIVE if ends_with_day else HALTED)
        assert check_limits(resume(risk_state), tomorrow, limits)[1].state == ACTIVE


def test_a_day_begins_with_the_equity_that_the_last_one_ended_with() -> None:
    risk_state, _ = check_limits(RiskState(), CALM._replace(equity=4.0), OFF)
    tomorrow = CALM._replace(now_ns=WEDNESDAY + DAY_NS, close_ns=WEDNESDAY + DAY_NS, equity=-6.0)
    assert check_limits(risk_state, tomorrow, OFF._replace(daily_loss=10.0))[1].reason == "daily-loss"


@pytest.mark.parametrize(
    ("when", "interval", "flat"),
    [
        ((2024, 5, 17, 18, 0), HOUR_NS, False),  # Friday: decides again at 19:00, an hour and more before 20:00
        ((2024, 5, 17, 19, 0), HOUR_NS, True),
        ((2024, 5, 17, 19, 58), MINUTE, False),
        ((2024, 5, 17, 19, 59), MINUTE, True),
        ((2024, 5, 17, 21, 0), HOUR_NS, True),
        ((2024, 5, 19, 21, 59), MINUTE, True),  # Sunday
        ((2024, 5, 19, 22, 0), MINUTE, False),
        ((2024, 5, 20, 0, 0), HOUR_NS, False),
    ],
)
def test_flat_before_the_weekend(when: tuple[int, ...], interval: int, flat: bool) -> None:
    close = int(datetime(*when[:3], *when[3:], tzinfo=UTC).timestamp()) * SECOND_NS
    snapshot = {"close_ns": close, "now_ns": close, "interval_ns": interval}
    assert closes_before_next_decision(CALM._replace(**snapshot), 60.0) == flat
    assert not closes_before_next_decision(CALM._replace(**snapshot), 0.0)
    assert not closes_before_next_decision(CALM._replace(**snapshot, weekly_close=weekly_close(ALWAYS_OPEN)), 60.0)
    decision = decision_at(limits={"weekend_flat_min": 60.0}, **snapshot)
    assert decision == (RiskDecision(REDUCING, "weekend", 0.0) if flat else RiskDecision(ACTIVE, "agent", 1.0))


@settings(deadline=None, max_examples=50)
@given(
    since=st.integers(0, 30 * 24 * 60),
    length=st.integers(0, 30 * 24 * 60),
    hours=st.sampled_from([CLOSED_ON_WEEKENDS, CLOSED_DAILY, ALWAYS_OPEN]),
)
def test_time_that_the_market_is_open(since: int, length: int, hours: ClosedHours) -> None:
    """Minute by minute: closed from Friday 21:00 to Sunday 22:00 UTC, and from 21:00 to 23:00, or never."""
    first = WEDNESDAY // MINUTE + since
    minutes = range(first, first + length)
    closed = [(1440 + 21 * 60) <= (m % 10_080) < (1440 + 21 * 60 + 49 * 60) for m in minutes]
    if hours is CLOSED_DAILY:
        closed = [c or 21 <= m // 60 % 24 < 23 for c, m in zip(closed, minutes, strict=True)]
    counted = length - (0 if hours is ALWAYS_OPEN else sum(closed))
    assert open_duration_ns(first * MINUTE, (first + length) * MINUTE, hours) == counted * MINUTE


DECISIONS = st.builds(
    RiskDecision,
    state=st.sampled_from([ACTIVE, REDUCING]),
    reason=st.just("why"),
    max_abs_target=st.sampled_from([0.0, 0.5, 1.0]),
) | st.just(RiskDecision(HALTED, "why", 0.0))


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]), DECISIONS), max_size=12))
def test_no_sequence_of_targets_gets_round_the_limits(checks: list[tuple[float, RiskDecision]]) -> None:
    risk_state, cut = RiskState(), False
    for i, (agent_target, decision) in enumerate(checks):
        before = risk_state
        risk_state = apply_limits(before, agent_target, decision, i)
        assert abs(risk_state.target) <= decision.max_abs_target
        assert risk_state.target * agent_target >= 0
        assert abs(risk_state.target) <= abs(agent_target) or risk_state.target == before.target
        if decision.state != ACTIVE:
            assert abs(risk_state.target) <= abs(before.target)
            assert risk_state.target * before.target >= 0
        cut = (cut and agent_target == before.agent_target) or (agent_target != 0 and risk_state.target == 0)
        if cut and agent_target == before.agent_target and before.target == 0:
            assert risk_state.target == 0  # never in the middle of a trade
        assert (risk_state.target != before.target) == (
            len(risk_state.target_changes_ns) > len(before.target_changes_ns)
        )


@settings(deadline=None, max_examples=100)
@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), max_size=12))
def test_without_a_reason_the_target_of_the_agent_is_published(targets: list[float]) -> None:
    risk_state = RiskState()
    for i, agent_target in enumerate(targets):
        risk_state = apply_limits(risk_state, agent_target, RiskDecision(ACTIVE, "agent", 1.0), i)
        assert risk_state.target == agent_target
        assert target_reason(risk_state, RiskDecision(ACTIVE, "agent", 1.0)) == "agent"


def test_reasons_of_a_target_that_is_not_the_agents() -> None:
    half = RiskDecision(ACTIVE, "agent", 0.5)
    risk_state = apply_limits(RiskState(), 1.0, half, 0)
    assert (risk_state.target, target_reason(risk_state, half)) == (0.5, "max-target")
    cut = apply_limits(risk_state, 1.0, RiskDecision(HALTED, "drawdown", 0.0), 1)
    free = RiskDecision(ACTIVE, "agent", 1.0)
    waits = apply_limits(cut, 1.0, free, 2)
    assert (waits.target, target_reason(waits, free)) == (0.0, "waits-for-entry")
    assert apply_limits(waits, 0.5, free, 3).target == 0, "another size of the same position is no entry"
    assert apply_limits(waits, -1.0, free, 3).target == -1.0
