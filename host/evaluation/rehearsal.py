"""The risk limits over a backtest, by the risk engine of `act`, and the statistics that unset limits follow."""

from __future__ import annotations

from collections import Counter
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from host.artifact.manifest import LoadedModel
from host.artifact.networks import BacktestStats
from host.data.feed import Bar
from host.data.parsing import format_utc
from host.live.risk_engine import HostInputs, RiskEngine
from kernels.live.risk import HALTED, RiskLimits
from kernels.market.bars import SECOND_NS, Bars, slice_bars
from kernels.market.calendar import DAY_NS, HOUR_NS, closed_duration_ns
from kernels.market.ledger import NUM_TRADE_FIELDS, PROFIT_PX, Market, new_accounts, run_targets

MAX_HALTS_SHOWN = 20


def backtest_record(
    target: NDArray[np.float64], bars: Bars, first: int, market: Market
) -> tuple[BacktestStats, NDArray[np.float64]]:
    """Statistics and equity [n], in pips, of a position of 1 on the side of `target` [n], from bar `first` on."""
    n, side = len(target), np.sign(target)
    equity, trades = np.zeros(n), np.zeros((n + 1, NUM_TRADE_FIELDS))
    count = run_targets(equity, trades, new_accounts(1)[0], bars, first, side, market)
    equity /= market.pip_px
    curve, day = np.append(0.0, equity), bars.time[first + 1 : first + n + 1] // DAY_NS
    began = curve[np.searchsorted(day, day)]  # equity at the start of the day of each bar
    changed = bars.time[first : first + n][np.diff(target, prepend=0.0) != 0]
    in_an_hour = np.arange(len(changed)) - np.searchsorted(changed, changed - HOUR_NS, side="right") + 1
    record = BacktestStats(
        drawdown_pips=float(np.max(np.maximum.accumulate(curve) - curve)),
        worst_day_pips=float(np.max(began - equity, initial=0.0)),
        losing_streak=longest_losing_streak(trades[:count, PROFIT_PX]),
        changes_per_hour=int(in_an_hour.max(initial=0)),
    )
    return record, equity


def longest_losing_streak(profits: NDArray[np.float64]) -> int:
    """The most losing trades in a row; a trade of profit 0 neither counts nor ends them."""
    longest = streak = 0
    for profit in profits:
        streak = 0 if profit > 0 else streak + int(profit < 0)
        longest = max(longest, streak)
    return longest


def run_risk_engine(
    loaded: LoadedModel, limits: RiskLimits, target: NDArray[np.float64], bars: Bars, first: int
) -> dict[str, Any]:
    """The effect of `limits` on the agent's `target` [n], from bar `first` on: `guards` of `backtest --json`.

    As in a dry run, a halt by drawdown lasts, and other halts end with their day.
    """
    n, engine = len(target), RiskEngine(loaded, limits)
    cuts, halts, halted = Counter[str](), list[dict[str, str]](), ""
    fed_bars = slice_bars(bars, first - loaded.networks.history + 1, first + n + 1)
    for row in zip(*(column.tolist() for column in fed_bars), strict=True):
        bar = Bar(*row)
        decision = engine.on_bar(bar, HostInputs(bar.time))
        if decision is None or bar.time == fed_bars.time[-1]:  # no bar follows to fill the last one
            continue
        if decision.target != engine.agent.target:
            cuts[decision.reason] += 1
        reason = decision.reason if decision.state == HALTED else ""
        if reason and not halted:
            halts.append({"time": format_utc(bar.time), "reason": reason})
        halted = reason
    record, equity = backtest_record(target, bars, first, loaded.market_spec.market)
    return {
        "limits": limits._asdict(),
        "decisions": n,
        "cut": dict(cuts.most_common()),
        "halts": halts,
        "late": count_late_bars(bars.time[first : first + n + 1], loaded, limits.stale_s),
        "net_pips": engine.net_pips(),
        "net_pips_unguarded": float(equity[-1]),
        "unguarded": record._asdict(),
    }


def count_late_bars(time: NDArray[np.int64], loaded: LoadedModel, stale_s: float) -> int:
    """Number of bars so late, in an open market, that `act` would have ended with 6."""
    limit_ns = loaded.market_spec.market.interval_ns + stale_s * SECOND_NS
    waited_ns = np.diff(time) - closed_duration_ns(time[:-1], time[1:], loaded.market_spec.hours)
    return int((waited_ns > limit_ns).sum()) if stale_s > 0 else 0


def print_risk_report(document: dict[str, Any], out: IO[str]) -> None:
    """Print what the risk limits cut, the halts, and net pips with and without them."""
    cut = ", ".join(f"{count} {reason}" for reason, count in document["cut"].items())
    print(
        f"risk limits cut {sum(document['cut'].values())} of {document['decisions']} decisions"
        f"{f' ({cut})' if cut else ''}; "
        f"{document['net_pips']:.1f} pips with them, {document['net_pips_unguarded']:.1f} without",
        file=out,
    )
    for halt in document["halts"][:MAX_HALTS_SHOWN]:
        print(f"  halted {halt['time']}: {halt['reason']}", file=out)
    if len(document["halts"]) > MAX_HALTS_SHOWN:
        print(f"  and {len(document['halts']) - MAX_HALTS_SHOWN} more halts", file=out)
    if document["late"]:
        print(f"  {document['late']} bars so late that act would have ended with 6", file=out)
