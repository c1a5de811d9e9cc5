"""Guards: limits between what the agent wants and what is traded, as pure functions of a small state.

`judge` looks at the world once a cycle and says how much may be held; `bound` turns the agent's target into the one
that is published.  Profits are pips of a position of 1; a limit of 0 is off.
"""

from typing import NamedTuple

from kernels.market.bars import NS
from kernels.market.calendar import DAY_NS, HOUR_NS, MONDAY, QUARTER_NS, WEEK_NS

ACTIVE, REDUCING, HALTED = "ACTIVE", "REDUCING", "HALTED"
DAILY_LOSS, DRAWDOWN, LOSING_STREAK = "daily-loss", "drawdown", "losing-streak"
HALT_FILE = "halt-file"
FOR_THE_DAY = (DAILY_LOSS, LOSING_STREAK)  # these halts end with the UTC day, a drawdown ends by order only


class Limits(NamedTuple):
    """What may not be exceeded: the fields of `host.config.GuardConfig`, none left open."""

    max_target: float
    changes_per_hour: float
    daily_loss: float
    drawdown: float
    losing_streak: float
    max_spread: float
    stale_s: float
    model_age_days: float
    far: float
    weekend_flat_min: float
    clock_skew_s: float


class Seen(NamedTuple):
    """The world at a cycle."""

    now_ns: int
    close_ns: int  # of the last bar
    interval_ns: int
    weekly_close: tuple[int, int]  # `kernels.hours.weekly_close`
    trained_ns: int  # close of the last bar that the model knows
    equity: float  # of the published targets, pips
    profit: float  # of the trade that the last bar closed, pips; 0 without one
    spread: float  # at the last close, pips
    far: float  # root mean square of the normalised features
    halt: bool  # there is a HALT file
    position_fault: str  # why the bridge's position is not the one published; "" when it is


class Guard(NamedTuple):
    """What the guards remember."""

    day: int = -1  # of the last cycle, UTC, counted from the epoch
    day_equity: float = 0.0  # when it began
    equity: float = 0.0  # at the last cycle
    peak: float = 0.0  # highest equity
    losses: int = 0  # losing trades in a row
    changes_ns: tuple[int, ...] = ()  # changes of the published target within the last hour
    halted: str = ""  # the limit that was hit and has not been lifted
    target: float = 0.0  # published
    wanted: float = 0.0  # by the agent at the last cycle
    joined: bool = False  # the published target is part of the agent's trade


class Verdict(NamedTuple):
    """How much may be held, and why."""

    state: str
    reason: str
    most: float  # largest |target|


def judge(guard: Guard, seen: Seen, limits: Limits) -> tuple[Guard, Verdict]:
    """The state with this cycle's profits counted, and the strictest of what the limits say."""
    guard = count(guard, seen, limits)
    reason = halting(guard, seen, limits)
    if reason:
        return guard, Verdict(HALTED, reason, 0.0)
    if is_weekend(seen, limits.weekend_flat_min):
        return guard, Verdict(REDUCING, "weekend", 0.0)
    reason = reducing(guard, seen, limits)
    return guard, Verdict(REDUCING if reason else ACTIVE, reason or "agent", limits.max_target)


def count(guard: Guard, seen: Seen, limits: Limits) -> Guard:
    """Book a cycle: the day, the peak, the losing trades in a row, and which limit on losses that breaks."""
    day = seen.now_ns // DAY_NS
    if day != guard.day:
        lifted = guard.halted in FOR_THE_DAY
        guard = guard._replace(
            day=day,
            day_equity=guard.equity,
            losses=0 if lifted else guard.losses,
            halted="" if lifted else guard.halted,
        )
    losses = guard.losses + 1 if seen.profit < 0 else 0 if seen.profit > 0 else guard.losses
    recent = tuple(ns for ns in guard.changes_ns if ns > seen.now_ns - HOUR_NS)
    guard = guard._replace(
        equity=seen.equity, peak=max(guard.peak, seen.equity), losses=losses, changes_ns=recent
    )
    if guard.halted:
        return guard
    broken = {
        DRAWDOWN: limits.drawdown > 0 and not guard.peak - seen.equity < limits.drawdown,  # NaN halts
        DAILY_LOSS: limits.daily_loss > 0 and not guard.day_equity - seen.equity < limits.daily_loss,
        LOSING_STREAK: 0 < limits.losing_streak <= losses,
    }
    return guard._replace(halted=next((name for name, is_broken in broken.items() if is_broken), ""))


def halting(guard: Guard, seen: Seen, limits: Limits) -> str:
    """Why nothing may be held, or ""."""
    if seen.halt:
        return HALT_FILE
    if guard.halted:
        return guard.halted
    if 0 < limits.clock_skew_s * NS < seen.close_ns - seen.now_ns:
        return "clock-skew"
    if 0 < limits.model_age_days * DAY_NS < seen.now_ns - seen.trained_ns:
        return "model-age"
    return ""


def reducing(guard: Guard, seen: Seen, limits: Limits) -> str:
    """Why a position may only become smaller, or "".  What cannot be compared (NaN) reduces."""
    if seen.position_fault:
        return seen.position_fault
    if seen.now_ns - seen.close_ns > seen.interval_ns:
        return "late-bar"
    if limits.max_spread > 0 and not seen.spread <= limits.max_spread:
        return "spread"
    if limits.far > 0 and not seen.far <= limits.far:
        return "far-features"
    if 0 < limits.changes_per_hour <= len(guard.changes_ns):
        return "changes"
    return ""


def bound(guard: Guard, wanted: float, verdict: Verdict, now_ns: int) -> Guard:
    """The state with the target that is published when the agent wants `wanted`.

    Once a limit has cut a trade short, the agent is joined again at its next entry, never in the middle of a trade.
    """
    enters = wanted != 0 and wanted != guard.wanted
    joined = wanted == 0 or guard.joined or enters
    target = wanted if joined else 0.0
    if verdict.state != ACTIVE and (target * guard.target < 0 or abs(target) > abs(guard.target)):
        target = guard.target if target * guard.target > 0 else 0.0
    target = min(max(target, -verdict.most), verdict.most)
    changes = (*guard.changes_ns, now_ns) if target != guard.target else guard.changes_ns
    return guard._replace(target=target, wanted=wanted, joined=target != 0 or wanted == 0, changes_ns=changes)


def reason_of(guard: Guard, verdict: Verdict) -> str:
    """Why the published target is what it is."""
    if verdict.state != ACTIVE or guard.target == guard.wanted:
        return verdict.reason
    return "max-target" if guard.joined or abs(guard.wanted) > verdict.most else "waits-for-entry"


def lift(guard: Guard) -> Guard:
    """The state after the operator's order to go on: losses are counted from here."""
    return guard._replace(halted="", losses=0, peak=guard.equity, day_equity=guard.equity)


def is_weekend(seen: Seen, minutes: float) -> bool:
    """Whether the decision after the one at `close_ns` comes too late to be flat `minutes` before the weekly close."""
    begin_ns, length_ns = seen.weekly_close
    into = (seen.close_ns - MONDAY * QUARTER_NS - begin_ns) % WEEK_NS  # since the last weekly close
    left = WEEK_NS - into
    return (
        minutes > 0 and length_ns > 0 and (into < length_ns or left <= seen.interval_ns + minutes * 60 * NS)
    )
