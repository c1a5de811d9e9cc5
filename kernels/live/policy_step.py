"""`decide`, the decision of an agent at one bar; `simulate_trading`, its decisions and their fills over many bars.

A market search of memoryless positions finds Q for every position at once.  So `simulate_trading` may search many bars
ahead; the policy head, which knows the position, is asked again where that has changed since.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.jit import inlined, kernel
from kernels.market.bars import Bars
from kernels.market.chance import ChanceCodes
from kernels.market.features import FeatureSpec, FeatureWork, Normaliser, bar_features, normalise
from kernels.market.ledger import ACC_EQUITY, ACC_SIDE, EXIT_BAR, Market, close_out, step_to_target, write_position
from kernels.market.position import SIDE
from kernels.ort import evaluate
from kernels.search.market_search import MarketTree
from kernels.search.planner import Planner, plan, read_market_root, selected_target, set_root


class PolicyState(NamedTuple):
    """An agent in one market: a planner without noise, with one root to decide, and the constants of its model."""

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
    num_extra = extra_features.shape[1]
    first_extra = F - num_extra
    for i in range(context):
        x, bar = policy_state.context_features[i], t + 1 - context + i
        bar_features(x[:first_extra], policy_state.feature_spec, bars, bar, policy_state.feature_work)
        for e in range(num_extra):
            x[first_extra + e] = extra_features[bar, e]
        normalise(x, policy_state.normaliser)
    planner, market = policy_state.planner, policy_state.market
    write_root(policy_state, 0, policy_state.context_features, account, bars, t)
    status = plan(planner)
    policy_state.target[0] = selected_target(planner.sampled_tree, 0, planner.action[0], account[ACC_SIDE], market)
    return status


@inlined
def write_root(
    policy_state: PolicyState,
    b: int,
    context_features: NDArray[np.float32],
    account: NDArray[np.float64],
    bars: Bars,
    t: int,
) -> None:
    """Make the position of the account at the close of bar t root b; `context_features` [context, F] end with bar t."""
    context, F = context_features.shape
    planner, position, root = policy_state.planner, policy_state.position, policy_state.planner.networks.root.x[b]
    for i in range(context):
        for f in range(F):
            root[i * F + f] = context_features[i, f]
    write_position(position, account, policy_state.market)
    set_root(planner, b, context_features[context - 1], position, bars, t, policy_state.codes, policy_state.market)


@kernel
def simulate_trading(
    trading_log: TradingLog,
    policy_state: PolicyState,
    account: NDArray[np.float64],
    bars: Bars,
    features: NDArray[np.float32],
    first: int,
    begin: int,
    stop: int,
    num_trades: int,
) -> tuple[int, int]:
    """Take decisions [begin, stop) of the n of the log; (trades so far, 0 or the status of a failed network call).

    Decision i is at the close of bar first + i.  The position after decision n - 1 is closed out one bar later.
    `features` [context - 1 + stop - begin, F], normalised, end with those of the bar of decision stop - 1.  Only a
    memoryless market search may have more than one root.
    """
    n, B = trading_log.action.shape[0], policy_state.planner.policy.shape[0]
    planner, market = policy_state.planner, policy_state.market
    for i in range(begin, stop):
        b, row, t = (i - begin) % B, i - begin, first + i
        if b == 0:
            status = search_ahead(policy_state, account, bars, features, t, row)
        else:
            window = features[row : row + policy_state.context_features.shape[0]]
            status = adapt_root(policy_state, b, window, account, bars, t, planner.market_tree)
        if status != 0:
            return num_trades, status
        target = selected_target(planner.sampled_tree, b, planner.action[b], account[ACC_SIDE], market)
        step_to_target(account, trading_log.trades[num_trades], bars, t, target, market)
        if trading_log.trades[num_trades, EXIT_BAR] >= 0:
            num_trades += 1
        trading_log.action[i] = planner.action[b]
        trading_log.target[i] = account[ACC_SIDE]
        trading_log.value[i] = planner.value[b]
        trading_log.equity[i] = account[ACC_EQUITY]
        for a in range(trading_log.policy.shape[1]):
            trading_log.policy[i, a] = planner.policy[b, a]
    if stop == n:
        close_out(account, trading_log.trades[num_trades], bars, first + n, market)
        if trading_log.trades[num_trades, EXIT_BAR] >= 0:
            num_trades += 1
        trading_log.equity[n - 1] = account[ACC_EQUITY]
    return num_trades, 0


@inlined
def search_ahead(
    policy_state: PolicyState, account: NDArray[np.float64], bars: Bars, features: NDArray[np.float32], t: int, row: int
) -> int:
    """Search from bar t and those after it, as if the position of the account stayed; row of bar t in `features`."""
    context = policy_state.context_features.shape[0]
    for b in range(policy_state.planner.policy.shape[0]):
        ahead = min(b, features.shape[0] - context - row)
        window = features[row + ahead : row + ahead + context]
        write_root(policy_state, b, window, account, bars, t + ahead)
    return plan(policy_state.planner)


@inlined
def adapt_root(
    policy_state: PolicyState,
    b: int,
    window: NDArray[np.float32],
    account: NDArray[np.float64],
    bars: Bars,
    t: int,
    tree: MarketTree | None,
) -> int:
    """Decide at root b, searched before, for the position of the account; 0 or the status of a failed call."""
    status, planner = 0, policy_state.planner
    if tree is not None:
        if tree.root_position[b, SIDE] != np.float32(account[ACC_SIDE]):
            S, A = tree.state.shape[2], tree.q.shape[2]
            write_root(policy_state, 0, window, account, bars, t)  # root 0 has been read
            status = evaluate(planner.networks.root, 1)
            tree.root_position[b, SIDE] = policy_state.position[SIDE]
            read_market_root(planner, tree, b, planner.networks.root.y[0, S : S + A])
    return status
