"""Run an agent over bars it may not have seen, decision by decision, as `act` would."""

from __future__ import annotations

import time
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from host.artifact.networks import Setting
from host.console import Report, silent
from kernels.live.policy_step import Log, Trader, trade_through
from kernels.market.bars import Bars
from kernels.market.ledger import TRADE, new_accounts
from kernels.market.statistics import baselines, statistics
from kernels.ort import check

STRETCH = 1024  # decisions between two reports


class Result(NamedTuple):
    """What came of a stretch of decisions."""

    log: Log
    trades: NDArray[np.float64]  # [trades, TRADE]
    seconds: float


def new_log(decisions: int, actions: int) -> Log:
    """Room for `decisions` decisions."""
    n = decisions
    return Log(
        action=np.zeros(n, np.int8),
        target=np.zeros(n),
        value=np.zeros(n),
        policy=np.zeros((n, actions)),
        equity=np.zeros(n),
        trades=np.zeros((n + 1, TRADE)),
    )


def trade_bars(
    trader: Trader, bars: Bars, extra: NDArray[np.float32], first: int, stop: int, report: Report = silent
) -> Result:
    """Decide at the closes of bars [first, stop - 1), from flat; the position is closed out at bar stop - 1."""
    n = stop - 1 - first
    log, account, trades = new_log(n, trader.planner.policy.shape[1]), new_accounts(1)[0], 0
    begin = time.perf_counter()
    for i in range(0, n, STRETCH):
        report(i / n, f"{i} of {n} decisions")
        stretch = first, i, min(i + STRETCH, n)
        trades, status = trade_through(log, trader, account, bars, extra, *stretch, trades)
        check(status)
    report(1.0, f"{n} decisions")
    return Result(log, log.trades[:trades], time.perf_counter() - begin)


def report(result: Result, bars: Bars, first: int, setting: Setting, seed: int) -> dict[str, Any]:
    """The document of `backtest --json`."""
    market, n = setting.market, len(result.log.action)
    stretch = first, first + n + 1
    figures = statistics(result.log.equity, result.trades, market.pip_px)
    return {
        **figures,
        "baselines": baselines(bars, *stretch, market, result.trades, seed),
        "bars": n,
        "decisions_per_s": round(n / max(result.seconds, 1e-9)),
    }


def print_report(document: dict[str, Any], out: IO[str]) -> None:
    """The report as a table of net pips, the agent beside its baselines."""
    rows = {"agent": document["net_pips"], **document["baselines"]}
    widest = max(abs(v) for v in rows.values()) or 1.0
    print(f"{'':>10} {'net pips':>10}", file=out)
    for name, pips in rows.items():
        bar = ("-" if pips < 0 else "+") * round(30 * abs(pips) / widest)
        print(f"{name:>10} {pips:>10.1f} {bar}", file=out)
    share, drawdown = document["share_in_market"], document["max_drawdown_pips"]
    print(
        f"{document['trades']} trades in {document['bars']} bars, in the market {share:.1%} of the time, "
        f"largest drawdown {drawdown:.1f} pips",
        file=out,
    )
