"""Guards: limits between what the agent wants and what is traded, as pure functions of a small state.

`check_limits` looks at the world once a cycle and says how much may be held; `apply_limits` turns the agent's target into the one
that is published.  Profits are pips of a position of 1; a limit of 0 is off.
"""

from typing import NamedTuple

from kernels.market.bars import SECOND_NS
from kernels.market.calendar import DAY_NS, FIRST_MONDAY_QUARTER, HOUR_NS, QUARTER_NS, WEEK_NS

ACTIVE, REDUCING, HALTED = "ACTIVE", "REDUCING", "HALTED"
DAILY_LOSS, DRAWDOWN, LOSING_STREAK = "daily-loss", "drawdown", "losing-streak"
HALT_FILE = "halt-file"
DAILY_HALTS = (DAILY_LOSS, LOSING_STREAK)  # these halts end with the UTC day, a drawdown ends by order only


class RiskLimits(NamedTuple):
    """What may not be exceeded: the fields of `host.config.RiskConfig`, none left open."""

    max_target: float
    changes_per_hour: float
    daily_loss: float
    drawdown: float
    losing_streak: float
    max_spread: float
    stale_s: float
    model_age_days: float
    feature_drift: float
    weekend_flat_min: float
    clock_skew_s: float


class MarketSnapshot(NamedTuple):
    """The world at a cycle."""

    now_ns: int
    close_ns: int  # of the last bar
    interval_ns: int
    weekly_close: tuple[int, int]  # `kernels.hours.weekly_close`
    trained_ns: int  # close of the last bar that the model knows
    equity: float  # of the published targets, pips
    trade_profit: float  # of the trade that the last bar closed, pips; 0 without one
    spread: float  # at the last close, pips
    feature_drift: float  # root mean square of the normalised features
    halt_requested: bool  # there is a HALT file
    position_fault: str  # why the bridge's position is not the one published; "" when it is


class RiskState(NamedTuple):
    """What the guards remember."""

    day: int = -1  # of the last cycle, UTC, counted from the epoch
    day_start_equity: float = 0.0  # when it began
    equity: float = 0.0  # at the last cycle
    peak_equity: float = 0.0  # highest equity
    losing_trades: int = 0  # losing trades in a row
    target_changes_ns: tuple[int, ...] = ()  # changes of the published target within the last hour
    tripped_limit: str = ""  # the limit that was hit and has not been lifted
    target: float = 0.0  # published
    agent_target: float = 0.0  # by the agent at the last cycle
    in_sync: bool = False  # the published target is part of the agent's trade


class RiskDecision(NamedTuple):
    """How much may be held, and why."""

    state: str
    reason: str
    max_abs_target: float  # largest |target|


def check_limits(risk_state: RiskState, snapshot: MarketSnapshot, limits: RiskLimits) -> tuple[RiskState, RiskDecision]:
    """The state with this cycle's profits counted, and the strictest of what the limits say."""
    risk_state = update_counters(risk_state, snapshot, limits)
    reason = halt_reason(risk_state, snapshot, limits)
    if reason:
        return risk_state, RiskDecision(HALTED, reason, 0.0)
    if closes_before_next_decision(snapshot, limits.weekend_flat_min):
        return risk_state, RiskDecision(REDUCING, "weekend", 0.0)
    reason = reduce_reason(risk_state, snapshot, limits)
    return risk_state, RiskDecision(REDUCING if reason else ACTIVE, reason or "agent", limits.max_target)


def update_counters(risk_state: RiskState, snapshot: MarketSnapshot, limits: RiskLimits) -> RiskState:
    """Book a cycle: the day, the peak, the losing trades in a row, and which limit on losses that breaks."""
    day = snapshot.now_ns // DAY_NS
    if day != risk_state.day:
        lifted = risk_state.tripped_limit in DAILY_HALTS
        risk_state = risk_state._replace(
            day=day,
            day_start_equity=risk_state.equity,
            losing_trades=0 if lifted else risk_state.losing_trades,
            tripped_limit="" if lifted else risk_state.tripped_limit,
        )
    losses = (
        risk_state.losing_trades + 1
        if snapshot.trade_profit < 0
        else 0
        if snapshot.trade_profit > 0
        else risk_state.losing_trades
    )
    recent = tuple(ns for ns in risk_state.target_changes_ns if ns > snapshot.now_ns - HOUR_NS)
    risk_state = risk_state._replace(
        equity=snapshot.equity,
        peak_equity=max(risk_state.peak_equity, snapshot.equity),
        losing_trades=losses,
        target_changes_ns=recent,
    )
    if risk_state.tripped_limit:
        return risk_state
    broken = {
        DRAWDOWN: limits.drawdown > 0 and not risk_state.peak_equity - snapshot.equity < limits.drawdown,  # NaN halts
        DAILY_LOSS: limits.daily_loss > 0 and not risk_state.day_start_equity - snapshot.equity < limits.daily_loss,
        LOSING_STREAK: 0 < limits.losing_streak <= losses,
    }
    return risk_state._replace(tripped_limit=next((name for name, is_broken in broken.items() if is_broken), ""))


def halt_reason(risk_state: RiskState, snapshot: MarketSnapshot, limits: RiskLimits) -> str:
    """Why nothing may be held, or ""."""
    if snapshot.halt_requested:
        return HALT_FILE
    if risk_state.tripped_limit:
        return risk_state.tripped_limit
    if 0 < limits.clock_skew_s * SECOND_NS < snapshot.close_ns - snapshot.now_ns:
        return "clock-skew"
    if 0 < limits.model_age_days * DAY_NS < snapshot.now_ns - snapshot.trained_ns:
        return "model-age"
    return ""


def reduce_reason(risk_state: RiskState, snapshot: MarketSnapshot, limits: RiskLimits) -> str:
    """Why a position may only become smaller, or "".  What cannot be compared (NaN) reduces."""
    if snapshot.position_fault:
        return snapshot.position_fault
    if snapshot.now_ns - snapshot.close_ns > snapshot.interval_ns:
        return "late-bar"
    if limits.max_spread > 0 and not snapshot.spread <= limits.max_spread:
        return "spread"
    if limits.feature_drift > 0 and not snapshot.feature_drift <= limits.feature_drift:
        return "feature-drift"
    if 0 < limits.changes_per_hour <= len(risk_state.target_changes_ns):
        return "changes"
    return ""


def apply_limits(risk_state: RiskState, agent_target: float, decision: RiskDecision, now_ns: int) -> RiskState:
    """The state with the target that is published when the agent wants `agent_target`.

    Once a limit has cut a trade short, the agent is joined again at its next entry, never in the middle of a trade.
    """
    enters = agent_target != 0 and agent_target != risk_state.agent_target
    joined = agent_target == 0 or risk_state.in_sync or enters
    target = agent_target if joined else 0.0
    if decision.state != ACTIVE and (target * risk_state.target < 0 or abs(target) > abs(risk_state.target)):
        target = risk_state.target if target * risk_state.target > 0 else 0.0
    target = min(max(target, -decision.max_abs_target), decision.max_abs_target)
    changes = (*risk_state.target_changes_ns, now_ns) if target != risk_state.target else risk_state.target_changes_ns
    return risk_state._replace(
        target=target, agent_target=agent_target, in_sync=target != 0 or agent_target == 0, target_changes_ns=changes
    )


def target_reason(risk_state: RiskState, decision: RiskDecision) -> str:
    """Why the published target is what it is."""
    if decision.state != ACTIVE or risk_state.target == risk_state.agent_target:
        return decision.reason
    return (
        "max-target"
        if risk_state.in_sync or abs(risk_state.agent_target) > decision.max_abs_target
        else "waits-for-entry"
    )


def resume(risk_state: RiskState) -> RiskState:
    """The state after the operator's order to go on: losses are counted from here."""
    return risk_state._replace(
        tripped_limit="", losing_trades=0, peak_equity=risk_state.equity, day_start_equity=risk_state.equity
    )


def closes_before_next_decision(snapshot: MarketSnapshot, minutes: float) -> bool:
    """Whether the decision after the one at `close_ns` comes too late to be flat `minutes` before the weekly close."""
    begin_ns, length_ns = snapshot.weekly_close
    into = (snapshot.close_ns - FIRST_MONDAY_QUARTER * QUARTER_NS - begin_ns) % WEEK_NS  # since the last weekly close
    left = WEEK_NS - into
    return (
        minutes > 0 and length_ns > 0 and (into < length_ns or left <= snapshot.interval_ns + minutes * 60 * SECOND_NS)
    )
