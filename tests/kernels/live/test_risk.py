"""Each limit trips and says its name; what is published never exceeds what the guards allow."""

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


def judged(guard: RiskState | None = None, limits: dict[str, Any] | None = None, **seen: Any) -> RiskDecision:
    return check_limits(guard or RiskState(), CALM._replace(**seen), OFF._replace(**(limits or {})))[1]


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
    found = judged(limits=limits, **trips)
    assert (found.state, found.reason) == (state, reason)
    assert found.max_abs_target == (0.0 if state == HALTED else 1.0)
    assert judged(limits=limits, **passes) == RiskDecision(ACTIVE, "agent", 1.0)
    off = judged(limits=dict.fromkeys(limits, 0), **trips)
    assert limits == {} or off == RiskDecision(ACTIVE, "agent", 1.0)


def test_changes_within_the_hour_are_counted() -> None:
    limits, guard = OFF._replace(changes_per_hour=3), RiskState()
    states = []
    for i in range(8):
        now = WEDNESDAY + i * 15 * MINUTE
        guard, verdict = check_limits(guard, CALM._replace(now_ns=now, close_ns=now, interval_ns=15 * MINUTE), limits)
        guard = apply_limits(guard, float(1 - i % 2), verdict, now)
        states.append((verdict.state, guard.target))
    # in, out, in: the fourth may only leave; then nothing is entered until the first is an hour old
    assert states[:4] == [(ACTIVE, 1), (ACTIVE, 0), (ACTIVE, 1), (REDUCING, 0)]
    assert states[4] == (REDUCING, 0)
    assert len(guard.target_changes_ns) <= 4


def test_a_daily_loss_ends_with_the_day_and_a_drawdown_by_order() -> None:
    for limits, ends_with_day in (
        (OFF._replace(daily_loss=5.0), True),
        (OFF._replace(losing_streak=1), True),
        (OFF._replace(drawdown=5.0), False),
    ):
        guard, verdict = check_limits(RiskState(), CALM._replace(equity=-6.0, trade_profit=-6.0), limits)
        assert verdict.state == HALTED
        guard, verdict = check_limits(guard, CALM._replace(equity=-6.0), limits)
        assert verdict.state == HALTED
        tomorrow = CALM._replace(now_ns=WEDNESDAY + DAY_NS, close_ns=WEDNESDAY + DAY_NS, equity=-6.0)
        assert check_limits(guard, tomorrow, limits)[1].state == (ACTIVE if ends_with_day else HALTED)
        assert check_limits(resume(guard), tomorrow, limits)[1].state == ACTIVE


def test_a_day_begins_with_the_equity_that_the_last_one_ended_with() -> None:
    guard, _ = check_limits(RiskState(), CALM._replace(equity=4.0), OFF)
    tomorrow = CALM._replace(now_ns=WEDNESDAY + DAY_NS, close_ns=WEDNESDAY + DAY_NS, equity=-6.0)
    assert check_limits(guard, tomorrow, OFF._replace(daily_loss=10.0))[1].reason == "daily-loss"


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
    seen = {"close_ns": close, "now_ns": close, "interval_ns": interval}
    assert closes_before_next_decision(CALM._replace(**seen), 60.0) == flat
    assert not closes_before_next_decision(CALM._replace(**seen), 0.0)
    assert not closes_before_next_decision(CALM._replace(**seen, weekly_close=weekly_close(ALWAYS_OPEN)), 60.0)
    verdict = judged(limits={"weekend_flat_min": 60.0}, **seen)
    assert verdict == (RiskDecision(REDUCING, "weekend", 0.0) if flat else RiskDecision(ACTIVE, "agent", 1.0))


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


VERDICTS = st.builds(
    RiskDecision,
    state=st.sampled_from([ACTIVE, REDUCING]),
    reason=st.just("why"),
    max_abs_target=st.sampled_from([0.0, 0.5, 1.0]),
) | st.just(RiskDecision(HALTED, "why", 0.0))


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]), VERDICTS), max_size=12))
def test_no_sequence_of_wishes_gets_round_the_guards(cycles: list[tuple[float, RiskDecision]]) -> None:
    guard, cut = RiskState(), False
    for i, (wanted, verdict) in enumerate(cycles):
        before = guard
        guard = apply_limits(before, wanted, verdict, i)
        assert abs(guard.target) <= verdict.max_abs_target
        assert guard.target * wanted >= 0
        assert abs(guard.target) <= abs(wanted) or guard.target == before.target
        if verdict.state != ACTIVE:
            assert abs(guard.target) <= abs(before.target)
            assert guard.target * before.target >= 0
        cut = (cut and wanted == before.agent_target) or (wanted != 0 and guard.target == 0)
        if cut and wanted == before.agent_target and before.target == 0:
            assert guard.target == 0  # never in the middle of a trade
        assert (guard.target != before.target) == (len(guard.target_changes_ns) > len(before.target_changes_ns))


@settings(deadline=None, max_examples=100)
@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), max_size=12))
def test_without_a_reason_the_agent_gets_what_it_wants(wishes: list[float]) -> None:
    guard = RiskState()
    for i, wanted in enumerate(wishes):
        guard = apply_limits(guard, wanted, RiskDecision(ACTIVE, "agent", 1.0), i)
        assert guard.target == wanted
        assert target_reason(guard, RiskDecision(ACTIVE, "agent", 1.0)) == "agent"


def test_reasons_of_a_target_that_is_not_the_agents() -> None:
    half = RiskDecision(ACTIVE, "agent", 0.5)
    guard = apply_limits(RiskState(), 1.0, half, 0)
    assert (guard.target, target_reason(guard, half)) == (0.5, "max-target")
    cut = apply_limits(guard, 1.0, RiskDecision(HALTED, "drawdown", 0.0), 1)
    free = RiskDecision(ACTIVE, "agent", 1.0)
    waits = apply_limits(cut, 1.0, free, 2)
    assert (waits.target, target_reason(waits, free)) == (0.0, "waits-for-entry")
    assert apply_limits(waits, -1.0, free, 3).target == -1.0
