"""The risk limits of a live run: a limit that the user leaves open follows the model's backtest and instrument."""

from __future__ import annotations

from dataclasses import asdict

from host.artifact.manifest import LoadedModel
from host.config import RiskConfig
from kernels.live.risk import RiskLimits

BACKTEST_FACTOR = 2.0  # times the figure of the out-of-sample backtest
MIN_DAILY_LOSS, MIN_DRAWDOWN = 2.0, 5.0  # mean ranges of a day
MIN_LOSING_STREAK, MIN_CHANGES_PER_HOUR = 12.0, 20.0
SPREAD_FACTOR = 3.0  # times the mean spread of the training part or the usual one of the instrument, the wider


def resolve_limits(risk: RiskConfig, loaded: LoadedModel) -> RiskLimits:
    """The limits of `risk`; a limit of None becomes one that the model's own backtest would not have reached."""
    pip, profile, backtest = loaded.market_spec.market.pip_px, loaded.market_spec.profile, loaded.backtest_stats
    day = profile.day_px / pip
    defaults = {
        "changes_per_hour": max(MIN_CHANGES_PER_HOUR, BACKTEST_FACTOR * backtest.changes_per_hour),
        "daily_loss": max(MIN_DAILY_LOSS * day, BACKTEST_FACTOR * backtest.worst_day_pips),
        "drawdown": max(MIN_DRAWDOWN * day, BACKTEST_FACTOR * backtest.drawdown_pips),
        "losing_streak": max(MIN_LOSING_STREAK, BACKTEST_FACTOR * backtest.losing_streak),
        "max_spread": SPREAD_FACTOR * max(profile.spread_px, profile.usual_spread_px) / pip,
    }
    chosen = {name: value for name, value in asdict(risk).items() if value is not None}
    return RiskLimits(**(defaults | chosen))


def describe_limits(limits: RiskLimits, loaded: LoadedModel) -> list[str]:
    """A line of the limits, in pips and fractions of the price, and a warning for each that the backtest reached."""
    pip, profile, backtest = loaded.market_spec.market.pip_px, loaded.market_spec.profile, loaded.backtest_stats

    def amount(pips: float) -> str:
        return f"{pips:.5g} pips = {pips * pip / profile.price:.2%} of the price" if pips else "off"

    lines = [
        f"limits of a position of 1: drawdown {amount(limits.drawdown)}, daily loss {amount(limits.daily_loss)}, "
        f"spread {amount(limits.max_spread)}, {limits.losing_streak:g} losing trades in a row, "
        f"{limits.changes_per_hour:g} changes an hour (0 = off)"
    ]
    reached = {
        "drawdown": ("the backtest's own drawdown", backtest.drawdown_pips),
        "daily_loss": ("the backtest's own worst day", backtest.worst_day_pips),
        "losing_streak": ("the backtest's own losing streak", backtest.losing_streak),
        "changes_per_hour": ("the backtest's own changes in an hour", backtest.changes_per_hour),
        "max_spread": ("the mean spread in training", profile.spread_px / pip),
    }
    for name, (what, figure) in reached.items():
        limit = getattr(limits, name)
        if 0 < limit <= figure:
            lines.append(
                f"risk.{name} = {limit:g} is not above {what} of {figure:.5g}: it will cut this model; leave it out, "
                "or see how often with `backtest --guards`"
            )
    return lines
