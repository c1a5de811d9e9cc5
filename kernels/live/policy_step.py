"""The pure step of acting, `decide`, and `trade_through`, which is `decide` and the ledger over a stretch of bars."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.jit import kernel
from kernels.market.bars import Bars
from kernels.market.chance import Codes
from kernels.market.features import Features, FeatureWork, Normaliser, bar_features, normalise
from kernels.market.ledger import ACC_EQUITY, ACC_SIDE, EXIT_BAR, Market, close_out, raw_position, step_to
from kernels.search.planner import Planner, chosen_target, plan, set_root


class Trader(NamedTuple):
    """One agent at one market: planner of a single root without noise, and what its model fixed in training."""

    planner: Planner
    features: Features
    normaliser: Normaliser
    codes: Codes
    market: Market
    x: NDArray[np.float32]  # [context, F] normalised features of the last bars, the newest last
    work: FeatureWork
    position: NDArray[np.float32]  # [RAW]
    target: NDArray[np.float64]  # [1] signed size that the last decision brings about


class Log(NamedTuple):
    """n decisions and the trades they led to."""

    action: NDArray[np.int8]  # [n]
    target: NDArray[np.float64]  # [n] signed size after the action
    value: NDArray[np.float64]  # [n] R
    policy: NDArray[np.float64]  # [n, A]
    equity: NDArray[np.float64]  # [n] marked equity one bar after the decision, price
    trades: NDArray[np.float64]  # [n, TRADE]


@kernel
def decide(
    trader: Trader, account: NDArray[np.float64], bars: Bars, extra: NDArray[np.float32], t: int
) -> int:
    """Decide at the close of bar t from bars <= t: trader.target, the rest in trader.planner.  0 or a network status.

    extra [T, E] are the feature columns that only a self-test has; E = 0 everywhere else.
    """
    context, F = trader.x.shape
    own, root = F - extra.shape[1], trader.planner.model.root.x[0]
    for i in range(context):
        x, bar = trader.x[i], t + 1 - context + i
        bar_features(x[:own], trader.features, bars, bar, trader.work)
        for e in range(extra.shape[1]):
            x[own + e] = extra[bar, e]
        normalise(x, trader.normaliser)
        for f in range(F):
            root[i * F + f] = x[f]
    raw_position(trader.position, account, trader.market)
    set_root(trader.planner, 0, trader.x[context - 1], trader.position, bars, t, trader.codes, trader.market)
    status, action = plan(trader.planner), trader.planner.action
    side, market = account[ACC_SIDE], trader.market
    trader.target[0] = chosen_target(trader.planner.wide, 0, action[0], side, market)
    return status


@kernel
def trade_through(
    log: Log,
    trader: Trader,
    account: NDArray[np.float64],
    bars: Bars,
    extra: NDArray[np.float32],
    first: int,
    begin: int,
    stop: int,
    trades: int,
) -> tuple[int, int]:
    """Decide at the closes of bars first + [begin, stop): (trades so far, network status).

    The last decision of the log is closed out one bar later.
    """
    n = log.action.shape[0]
    for i in range(begin, stop):
        status = decide(trader, account, bars, extra, first + i)
        if status != 0:
            return trades, status
        step_to(account, log.trades[trades], bars, first + i, trader.target[0], trader.market)
        if log.trades[trades, EXIT_BAR] >= 0:
            trades += 1
        log.action[i] = trader.planner.action[0]
        log.target[i] = account[ACC_SIDE]
        log.value[i] = trader.planner.value[0]
        log.equity[i] = account[ACC_EQUITY]
        for a in range(log.policy.shape[1]):
            log.policy[i, a] = trader.planner.policy[0, a]
    if stop == n:
        close_out(account, log.trades[trades], bars, first + n, trader.market)
        if log.trades[trades, EXIT_BAR] >= 0:
            trades += 1
        log.equity[n - 1] = account[ACC_EQUITY]
    return trades, 0
