"""`run_backtest`: an agent over a stretch of bars, decision by decision, with the step that `act` takes."""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from host.console import ProgressCallback, no_progress
from kernels.live.policy_step import PolicyState, TradingLog, simulate_trading
from kernels.market.bars import Bars
from kernels.market.ledger import NUM_TRADE_FIELDS, new_accounts
from kernels.ort import check_status

DECISIONS_PER_REPORT = 1024


class BacktestResult(NamedTuple):
    """The decisions over a stretch of bars, and their trades."""

    log: TradingLog
    trades: NDArray[np.float64]  # [trades, NUM_TRADE_FIELDS]
    seconds: float


def new_decision_log(decisions: int, actions: int) -> TradingLog:
    """An empty log of `decisions` decisions among `actions` actions."""
    n = decisions
    return TradingLog(
        action=np.zeros(n, np.int8),
        target=np.zeros(n),
        value=np.zeros(n),
        policy=np.zeros((n, actions)),
        equity=np.zeros(n),
        trades=np.zeros((n + 1, NUM_TRADE_FIELDS)),
    )


def run_backtest(
    policy: PolicyState,
    bars: Bars,
    extra: NDArray[np.float32],
    first: int,
    stop: int,
    report: ProgressCallback = no_progress,
) -> BacktestResult:
    """Decide at the closes of bars [first, stop - 1), from flat; the position is closed out at bar stop - 1."""
    n = stop - 1 - first
    log, account, trades = new_decision_log(n, policy.planner.policy.shape[1]), new_accounts(1)[0], 0
    begin = time.perf_counter()
    for i in range(0, n, DECISIONS_PER_REPORT):
        report(i / n, f"{i} of {n} decisions")
        stretch = first, i, min(i + DECISIONS_PER_REPORT, n)
        trades, status = simulate_trading(log, policy, account, bars, extra, *stretch, trades)
        check_status(status)
    report(1.0, f"{n} decisions")
    return BacktestResult(log, log.trades[:trades], time.perf_counter() - begin)
