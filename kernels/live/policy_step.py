"""`decide`, the decision of an agent at one bar; `simulate_trading`, its decisions and their fills over many bars."""

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
    """An agent in one market: a planner with one root and without noise, and the constants of its model."""

    planner: Planner
    feature_spec: FeatureSpec
    normaliser: Normaliser
    codes: ChanceCodes
    market: Market
    context_features: NDArray[np.float32]  # [context, F] normalised; last bars, oldest first
    feature_work: FeatureWork
    position: NDArray[np.float32]  # [NUM_POSITION_FIELDS]
    target: NDArray[np.float64]  # [1] signed size that the last decision asks for


class TradingLog(NamedTuple):
    """n decisions and their trades."""

    action: NDArray[np.int8]  # [n]
    target: NDArray[np.float64]  # [n] signed size after the action
    value: NDArray[np.float64]  # [n] of the search, ranges
    policy: NDArray[np.float64]  # [n, A]
    equity: NDArray[np.float64]  # [n] one bar after the decision, px
    trades: NDArray[np.float64]  # [n, NUM_TRADE_FIELDS]


@kernel
def decide(
    policy_state: PolicyState, account: NDArray[np.float64], bars: Bars, extra_features: NDArray[np.float32], t: int
) -> int:
    """Decide at the close of bar t from bars <= t.  Returns 0, or the status of a failed network call.

    The decision is policy_state.target; policy_state.planner has the other results of the search.  Only self-tests have
    extra features [T, num_extra]; elsewhere num_extra = 0.
    """
    context, F = policy_state.context_features.shape
    num_extra, root = extra_features.shape[1], policy_state.planner.networks.root.x[0]
    first_extra = F - num_extra
    for i in range(context):
        x, bar = policy_state.context_features[i], t + 1 - context + i
        bar_features(x[:first_extra], policy_state.feature_spec, bars, bar, policy_state.feature_work)
        for e in range(num_extra):
            x[first_extra + e] = extra_features[bar, e]
        normalise(x, policy_state.normaliser)
        for f in range(F):
            root[i * F + f] = x[f]
    planner, position, market = policy_state.planner, policy_state.position, policy_state.market
    write_position(position, account, market)
    set_root(planner, 0, policy_state.context_features[context - 1], position, bars, t, policy_state.codes, market)
    status = plan(planner)
    policy_state.target[0] = selected_target(planner.sampled_tree, 0, planner.action[0], account[ACC_SIDE], market)
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
    """Take decisions [begin, stop) of the n of the log; (trades so far, 0 or the status of a failed network call).

    Decision i is at the close of bar first + i.  The position after decision n - 1 is closed out one bar later.
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
