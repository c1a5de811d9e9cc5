"""The risk limits between the target of the agent and the target that is published, as pure functions of a small state.

`check_limits` decides at each check how much may be held.  `apply_limits` turns the target of the agent into the target
that is published.  Profits are in pips of a position of size 1.  A limit of 0 is off.
"""

from typing import NamedTuple

from kernels.market.bars import SECOND_NS
from kernels.market.calendar import DAY_NS, FIRST_MONDAY_NS, HOUR_NS, WEEK_NS

ACTIVE, REDUCING, HALTED = "ACTIVE", "REDUCING", "HALTED"
DAILY_LOSS, DRAWDOWN, LOSING_STREAK = "daily-loss", "drawdown", "losing-streak"
HALT_FILE = "halt-file"
DAILY_HALTS = (DAILY_LOSS, LOSING_STREAK)  # end with the UTC day; a drawdown ends by `resume` only


class RiskLimits(NamedTuple):
    """The fields of `host.config.RiskConfig`, each with a value; profits in pips."""

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
    """What the limits are checked against."""

    now_ns: int
    close_ns: int  # of the last bar
    interval_ns: int
    weekly_close: tuple[int, int]  # of `kernels.market.calendar.weekly_close`
    trained_ns: int  # close of the last bar that the model was trained on
    equity: float  # of the published targets, pips
    trade_profit: float  # of the trade that was closed in the last bar, pips; 0 if there is none
    spread: float  # at the last close, pips
    feature_drift: float  # root mean square of the standardised features
    halt_requested: bool  # there is a HALT file
    position_fault: str  # why the bridge does not hold the published target; "" where it does


class RiskState(NamedTuple):
    """What is remembered from one check to the next."""

    day: int = -1  # UTC day of the last check, counted from the epoch
    day_start_equity: float = 0.0  # at the beginning of that day
    equity: float = 0.0  # at the last check
    peak_equity: float = 0.0  # highest equity so far
    losing_trades: int = 0  # losing trades in a row
    target_changes_ns: tuple[int, ...] = ()  # changes of the published target within the last hour
    tripped_limit: str = ""  # the limit that caused a halt, until the halt ends
    target: float = 0.0  # the published target
    agent_target: float = 0.0  # target of the agent at the last check
    in_sync: bool = False  # the published target follows the trade of the agent


class RiskDecision(NamedTuple):
    """How much may be held, and why."""

    state: str
    reason: str
    max_abs_target: float  # largest |target|


def check_limits(risk_state: RiskState, snapshot: MarketSnapshot, limits: RiskLimits) -> tuple[RiskState, RiskDecision]:
    """The state with its counters updated, and the strictest decision of the limits."""
    risk_state = update_counters(risk_state, snapshot, limits)
    reason = halt_reason(risk_state, snapshot, limits)
    if reason:
        return risk_state, RiskDecision(HALTED, reason, 0.0)
    if closes_before_next_decision(snapshot, limits.weekend_flat_min):
        return risk_state, RiskDecision(REDUCING, "weekend", 0.0)
    reason = reduce_reason(risk_state, snapshot, limits)
    return risk_state, RiskDecision(REDUCING if reason else ACTIVE, reason or "agent", limits.max_target)


def update_counters(risk_state: RiskState, snapshot: MarketSnapshot, limits: RiskLimits) -> RiskState:
    """Update the day, the equities and the losing trades in a row; set the limit on losses that is broken, if any."""
    day = snapshot.now_ns // DAY_NS
    if day != risk_state.day:
        lifted = risk_state.tripped_limit in DAILY_HALTS
        risk_state = risk_state._replace(
            day=day,
            day_start_equity=risk_state.equity,
            losing_trades=0 if lifted else risk_state.losing_trades,
            tripped_limit="" if lifted else risk_state.tripped_limit,
        )
    losing_trades = risk_state.losing_trades
    if snapshot.trade_profit != 0:
        losing_trades = losing_trades + 1 if snapshot.trade_profit < 0 else 0
    recent = tuple(ns for ns in risk_state.target_changes_ns if ns > snapshot.now_ns - HOUR_NS)
    risk_state = risk_state._replace(
        equity=snapshot.equity,
        peak_equity=max(risk_state.peak_equity, snapshot.equity),
        losing_trades=losing_trades,
        target_changes_ns=recent,
    )
    if risk_state.tripped_limit:
        return risk_state
    # written with `not ... <`, so that an equity of NaN halts
    broken = {
        DRAWDOWN: limits.drawdown > 0 and not risk_state.peak_equity - snapshot.equity < limits.drawdown,
        DAILY_LOSS: limits.daily_loss > 0 and not risk_state.day_start_equity - snapshot.equity < limits.daily_loss,
        LOSING_STREAK: 0 < limits.losing_streak <= losing_trades,
    }
    return risk_state._replace(tripped_limit=next((name for name, is_broken in broken.items() if is_broken), ""))


def halt_reason(risk_state: RiskState, snapshot: MarketSnapshot, limits: RiskLimits) -> str:
    """Reason for which nothing may be held, or ""."""
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
    """Reason for which a position may only become smaller, or "".  A spread or drift of NaN is a reason."""
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
    """The state with the target to publish for the target `agent_target` of the agent.

    After a limit has ended a trade early, the published target follows the agent again from the agent's next entry on,
    never from the middle of a trade.
    """
    enters = agent_target != 0 and agent_target * risk_state.agent_target <= 0  # not another size on the same side
    follows = agent_target == 0 or risk_state.in_sync or enters
    target = agent_target if follows else 0.0
    if decision.state != ACTIVE and (target * risk_state.target < 0 or abs(target) > abs(risk_state.target)):
        target = risk_state.target if target * risk_state.target > 0 else 0.0
    target = min(max(target, -decision.max_abs_target), decision.max_abs_target)
    changes = (*risk_state.target_changes_ns, now_ns) if target != risk_state.target else risk_state.target_changes_ns
    return risk_state._replace(
        target=target, agent_target=agent_target, in_sync=target != 0 or agent_target == 0, target_changes_ns=changes
    )


def target_reason(risk_state: RiskState, decision: RiskDecision) -> str:
    """Reason for the published target."""
    if decision.state != ACTIVE or risk_state.target == risk_state.agent_target:
        return decision.reason
    exceeds = risk_state.in_sync or abs(risk_state.agent_target) > decision.max_abs_target
    return "max-target" if exceeds else "waits-for-entry"


def resume(risk_state: RiskState) -> RiskState:
    """The state after the operator has lifted a halt: losses are counted from now on."""
    return risk_state._replace(
        tripped_limit="", losing_trades=0, peak_equity=risk_state.equity, day_start_equity=risk_state.equity
    )


def closes_before_next_decision(snapshot: MarketSnapshot, minutes: float) -> bool:
    """Whether the next decision after `close_ns` comes too late to be flat `minutes` before the weekly close."""
    begin_ns, length_ns = snapshot.weekly_close
    if minutes <= 0 or length_ns <= 0:
        return False
    since_begin_ns = (snapshot.close_ns - FIRST_MONDAY_NS - begin_ns) % WEEK_NS
    return since_begin_ns < length_ns or WEEK_NS - since_begin_ns <= snapshot.interval_ns + minutes * 60 * SECOND_NS
