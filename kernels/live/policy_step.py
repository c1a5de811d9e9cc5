"""The pure step of acting, `decide`, and `simulate_trading`, which is `decide` and the ledger over a stretch of bars."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.jit import kernel
from kernels.market.bars import Bars
from kernels.market.chance import ChanceCodes
from kernels.market.features import FeatureSpec, FeatureWork, Normaliser, bar_features, normalise
from kernels.market.ledger import ACC_EQUITY, ACC_SIDE, EXIT_BAR, Market, close_out, step_to_target, write_position
from kernels.search.planner import Planner, plan, selected_target, set_root


class PolicyState(NamedTuple):
    """One agent at one market: planner of a single root without noise, and what its model fixed in training."""

    planner: Planner
    feature_spec: FeatureSpec
    normaliser: Normaliser
    codes: ChanceCodes
    market: Market
    context_features: NDArray[np.float32]  # [context, F] normalised features of the last bars, the newest last
    feature_work: FeatureWork
    position: NDArray[np.float32]  # [RAW]
    target: NDArray[np.float64]  # [1] signed size that the last decision brings about


class TradingLog(NamedTuple):
    """n decisions and the trades they led to."""

    action: NDArray[np.int8]  # [n]
    target: NDArray[np.float64]  # [n] signed size after the action
    value: NDArray[np.float64]  # [n] R
    policy: NDArray[np.float64]  # [n, A]
    equity: NDArray[np.float64]  # [n] marked equity one bar after the decision, price
    trades: NDArray[np.float64]  # [n, TRADE]


@kernel
def decide(
    policy_state: PolicyState, account: NDArray[np.float64], bars: Bars, extra_features: NDArray[np.float32], t: int
) -> int:
    """Decide at the close of bar t from bars <= t: trader.target, the rest in trader.planner.  0 or a network status.

    extra [T, E] are the feature columns that only a self-test has; E = 0 everywhere else.
    """
    context, F = policy_state.context_features.shape
    own, root = F - extra_features.shape[1], policy_state.planner.networks.root.x[0]
    for i in range(context):
        x, bar = policy_state.context_features[i], t + 1 - context + i
        bar_features(x[:own], policy_state.feature_spec, bars, bar, policy_state.feature_work)
        for e in range(extra_features.shape[1]):
            x[own + e] = extra_features[bar, e]
        normalise(x, policy_state.normaliser)
        for f in range(F):
            root[i * F + f] = x[f]
    write_position(policy_state.position, account, policy_state.market)
    set_root(
        policy_state.planner,
        0,
        policy_state.context_features[context - 1],
        policy_state.position,
        bars,
        t,
        policy_state.codes,
        policy_state.market,
    )
    status, action = plan(policy_state.planner), policy_state.planner.action
    side, market = account[ACC_SIDE], policy_state.market
    policy_state.target[0] = selected_target(policy_state.planner.sampled_tree, 0, action[0], side, market)
    return status


@kernel
def simulate_trading(
    trading_log: TradingLog,
    policy_state: PolicyState,
    account: NDArray[np.float64],
    bars: Bars,
    extra_features: NDArray[np.float32],
    first: int,
    begin: int,
    stop: int,
    num_trades: int,
) -> tuple[int, int]:
    """Decide at the closes of bars first + [begin, stop): (trades so far, network status).

    The last decision of the log is closed out one bar later.
    """
    n = trading_log.action.shape[0]
    for i in range(begin, stop):
        status = decide(policy_state, account, bars, extra_features, first + i)
        if status != 0:
            return num_trades, status
        step_to_target(
            account, trading_log.trades[num_trades], bars, first + i, policy_state.target[0], policy_state.market
        )
        if trading_log.trades[num_trades, EXIT_BAR] >= 0:
            num_trades += 1
        trading_log.action[i] = policy_state.planner.action[0]
        trading_log.target[i] = account[ACC_SIDE]
        trading_log.value[i] = policy_state.planner.value[0]
        trading_log.equity[i] = account[ACC_EQUITY]
        for a in range(trading_log.policy.shape[1]):
            trading_log.policy[i, a] = policy_state.planner.policy[0, a]
    if stop == n:
        close_out(account, trading_log.trades[num_trades], bars, first + n, policy_state.market)
        if trading_log.trades[num_trades, EXIT_BAR] >= 0:
            num_trades += 1
        trading_log.equity[n - 1] = account[ACC_EQUITY]
    return num_trades, 0
