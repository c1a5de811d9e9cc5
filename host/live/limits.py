"""The limits of acting that a user leaves open: from the backtest of the model, its instrument and its volatility."""

from __future__ import annotations

from dataclasses import asdict

from host.artifact.manifest import LoadedModel
from host.config import RiskConfig
from kernels.live.risk import RiskLimits

BACKTEST_FACTOR = 2.0  # times what the backtest went through out of sample
MIN_DAILY_LOSS, MIN_DRAWDOWN = 2.0, 5.0  # mean ranges of a day
MIN_LOSING_STREAK, MIN_CHANGES_PER_HOUR = 12.0, 20.0
SPREAD_FACTOR = 3.0  # times the mean of the training part, or the usual one of the instrument


def resolve_limits(guard: RiskConfig, loaded: LoadedModel) -> RiskLimits:
    """The limits that `guard` gives; each that it leaves open is far enough from what the model is known to do."""
    pip, profile, record = loaded.market_spec.market.pip_px, loaded.market_spec.profile, loaded.backtest_stats
    day = profile.day_px / pip
    usual = {
        "changes_per_hour": max(MIN_CHANGES_PER_HOUR, BACKTEST_FACTOR * record.changes_per_hour),
        "daily_loss": max(MIN_DAILY_LOSS * day, BACKTEST_FACTOR * record.worst_day_pips),
        "drawdown": max(MIN_DRAWDOWN * day, BACKTEST_FACTOR * record.drawdown_pips),
        "losing_streak": max(MIN_LOSING_STREAK, BACKTEST_FACTOR * record.losing_streak),
        "max_spread": SPREAD_FACTOR * max(profile.spread_px, profile.usual_spread_px) / pip,
    }
    given = {name: value for name, value in asdict(guard).items() if value is not None}
    return RiskLimits(**(usual | given))


def describe_limits(limits: RiskLimits, loaded: LoadedModel) -> list[str]:
    """The limits in pips and as shares of the price, and a line for each that the own backtest would have hit."""
    pip, profile, record = loaded.market_spec.market.pip_px, loaded.market_spec.profile, loaded.backtest_stats

    def size(pips: float) -> str:
        return f"{pips:.5g} pips = {pips * pip / profile.price:.2%} of the price" if pips else "off"

    spread = profile.spread_px / pip
    lines = [
        f"limits of a position of 1: drawdown {size(limits.drawdown)}, daily loss {size(limits.daily_loss)}, "
        f"spread {size(limits.max_spread)}, {limits.losing_streak:g} losing trades in a row, "
        f"{limits.changes_per_hour:g} changes an hour (0 = off)"
    ]
    known = {
        "drawdown": ("the backtest's own drawdown", record.drawdown_pips),
        "daily_loss": ("the backtest's own worst day", record.worst_day_pips),
        "losing_streak": ("the backtest's own losing streak", record.losing_streak),
        "changes_per_hour": ("the backtest's own changes in an hour", record.changes_per_hour),
        "max_spread": ("the mean spread in training", spread),
    }
    for name, (what, figure) in known.items():
        limit = getattr(limits, name)
        if 0 < limit <= figure:
            lines.append(
                f"risk.{name} = {limit:g} is not above {what} of {figure:.5g}: it will cut this model; leave it out, "
                "or see how often with `backtest --guards`"
            )
    return lines
