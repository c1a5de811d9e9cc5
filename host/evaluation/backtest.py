"""`run_backtest`: an agent over a stretch of bars; its decisions are those of `act`, though it searches bars ahead."""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from host.artifact.networks import MarketSpec, OnnxNetworks
from host.console import ProgressCallback, no_progress
from host.live.live_agent import new_policy_state
from kernels.live.policy_step import PolicyState, TradingLog, simulate_trading
from kernels.market.bars import Bars
from kernels.market.features import compute_features, normalise_rows
from kernels.market.ledger import NUM_TRADE_FIELDS, new_accounts
from kernels.ort import check_status
from kernels.search.config import MARKET, SearchConfig

DECISIONS_PER_REPORT = 1024
SEARCHES_AHEAD = 16


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


def new_backtest_policy(networks: OnnxNetworks, spec: MarketSpec, search: SearchConfig) -> PolicyState:
    """The policy that decides over many bars as that of `act` does, faster where a search serves every position."""
    serves_all = search.algorithm == MARKET and search.mae_penalty == 0
    return new_policy_state(networks, spec, search, SEARCHES_AHEAD if serves_all else 1)


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
        stop_at = min(i + DECISIONS_PER_REPORT, n)
        features = decision_features(policy, bars, extra, first + i, first + stop_at)
        trades, status = simulate_trading(log, policy, account, bars, features, first, i, stop_at, trades)
        check_status(status)
    report(1.0, f"{n} decisions")
    log = log._replace(trades=log.trades[:trades].copy())  # the room for one at each decision is given back
    return BacktestResult(log, log.trades, time.perf_counter() - begin)


def decision_features(
    policy: PolicyState, bars: Bars, extra: NDArray[np.float32], first: int, stop: int
) -> NDArray[np.float32]:
    """[context - 1 + stop - first, F] normalised features that the decisions at bars [first, stop) read."""
    ts = np.arange(first + 1 - len(policy.context_features), stop)
    X = np.hstack([compute_features(policy.feature_spec, bars, ts, 1), extra[ts]])
    normalise_rows(X, np.arange(len(ts), dtype=np.int32), policy.normaliser)
    return X
