"""The guards over a backtest: what they begin with, and how often they would have cut.  The desk is that of `act`."""

from __future__ import annotations

from collections import Counter
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from host.artifact.manifest import Loaded
from host.artifact.networks import Record
from host.data.feed import Bar
from host.data.parsing import iso
from host.live.risk_engine import Desk, World
from kernels.live.risk import HALTED, Limits
from kernels.market.bars import NS, Bars, take
from kernels.market.calendar import DAY_NS, HOUR_NS, closed_ns
from kernels.market.ledger import PROFIT_PX, TRADE, Market, new_accounts, run_actions
from kernels.market.position import BUY, CLOSE, FULL, HOLD, SELL

MOST_SHOWN = 20  # halts


def record_of(
    target: NDArray[np.float64], bars: Bars, first: int, market: Market
) -> tuple[Record, NDArray[np.float64]]:
    """What a position of 1 went through at the `target` [n] decided at bars first .., and its equity [n] in pips."""
    n, side = len(target), np.sign(target)
    before = np.append(0.0, side[:-1])
    action = np.where(side == before, HOLD, np.where(side == 0, CLOSE, np.where(side > 0, BUY, SELL)))
    equity, trades = np.zeros(n), np.zeros((n + 1, TRADE))
    account, full = new_accounts(1)[0], market._replace(sizes=FULL)
    count = run_actions(equity, trades, account, bars, first, action.astype(np.int8), full)
    equity /= market.pip_px
    curve, day = np.append(0.0, equity), bars.time[first + 1 : first + n + 1] // DAY_NS
    began = curve[np.searchsorted(day, day)]  # equity with which the day of each bar began
    changed = bars.time[first : first + n][np.diff(target, prepend=0.0) != 0]
    within = np.arange(len(changed)) - np.searchsorted(changed, changed - HOUR_NS, side="right") + 1
    record = Record(
        drawdown_pips=float(np.max(np.maximum.accumulate(curve) - curve)),
        worst_day_pips=float(np.max(began - equity, initial=0.0)),
        losing_streak=longest_streak(trades[:count, PROFIT_PX]),
        changes_per_hour=int(within.max(initial=0)),
    )
    return record, equity


def longest_streak(profits: NDArray[np.float64]) -> int:
    """Losing trades in a row at most; one that neither wins nor loses does not end them."""
    longest = streak = 0
    for profit in profits:
        streak = 0 if profit > 0 else streak + int(profit < 0)
        longest = max(longest, streak)
    return longest


def rehearse(
    loaded: Loaded, limits: Limits, target: NDArray[np.float64], bars: Bars, first: int
) -> dict[str, Any]:
    """What the guards make of the `target` [n] that the agent wants at bars first ..: `guards` of `backtest --json`.

    As in a dry run, a halt by drawdown lasts, and others end with their day.
    """
    n, desk = len(target), Desk(loaded, limits)
    cuts, halts, halted = Counter[str](), list[dict[str, str]](), ""
    seen = take(bars, first - loaded.agent.sizes.history + 1, first + n + 1)
    for row in zip(*(column.tolist() for column in seen), strict=True):
        bar = Bar(*row)
        outcome = desk.on_bar(bar, World(bar.time))
        if outcome is None or bar.time == seen.time[-1]:  # there is no bar to fill the last one
            continue
        if outcome.target != desk.actor.target:
            cuts[outcome.reason] += 1
        stopped = outcome.reason if outcome.state == HALTED else ""
        if stopped and not halted:
            halts.append({"time": iso(bar.time), "reason": stopped})
        halted = stopped
    record, equity = record_of(target, bars, first, loaded.setting.market)
    return {
        "limits": limits._asdict(),
        "decisions": n,
        "cut": dict(cuts.most_common()),
        "halts": halts,
        "late": late_bars(bars.time[first : first + n + 1], loaded, limits.stale_s),
        "net_pips": desk.closed_out(),
        "net_pips_unguarded": float(equity[-1]),
        "unguarded": record._asdict(),
    }


def late_bars(time: NDArray[np.int64], loaded: Loaded, stale_s: float) -> int:
    """Bars that came so late while the market was open that `act` would have ended with 6."""
    most_ns = loaded.setting.market.interval_ns + stale_s * NS
    waited_ns = np.diff(time) - closed_ns(time[:-1], time[1:], loaded.setting.hours)
    return int((waited_ns > most_ns).sum()) if stale_s > 0 else 0


def print_rehearsal(document: dict[str, Any], out: IO[str]) -> None:
    """What the guards cut, when they halted and what that cost."""
    cut = ", ".join(f"{count} {reason}" for reason, count in document["cut"].items())
    print(
        f"guards cut {sum(document['cut'].values())} of {document['decisions']} decisions{f' ({cut})' if cut else ''}; "
        f"{document['net_pips']:.1f} pips with them, {document['net_pips_unguarded']:.1f} without",
        file=out,
    )
    for halt in document["halts"][:MOST_SHOWN]:
        print(f"  halted {halt['time']}: {halt['reason']}", file=out)
    if len(document["halts"]) > MOST_SHOWN:
        print(f"  and {len(document['halts']) - MOST_SHOWN} times more", file=out)
    if document["late"]:
        print(f"  {document['late']} bars so late that act would have ended with 6", file=out)
