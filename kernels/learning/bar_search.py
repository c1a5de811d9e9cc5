"""`search_bars`: one market search a bar serves every position, and every episode that passes that bar.

The market is exogenous: a tree of its states does not depend on the position of the root.  So the bars of a phase are
searched once each, before its episodes are played; a decision then looks its Q up.  This needs positions of which the
signed size is all that matters later (`memoryless`, see kernels.search.market_search).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.jit import inlined, kernel
from kernels.learning.record import set_market_root
from kernels.learning.replay_buffer import MarketData, ReplayBuffer, position_after
from kernels.market.position import PREVIOUS_SIDE, SIDE, action_target
from kernels.ort import evaluate
from kernels.search.config import SearchConfig
from kernels.search.market_search import MarketTree
from kernels.search.planner import Planner, decide_by_q, plan


class SearchedBars(NamedTuple):
    """The searches of n bars, for each of M positions; rows may be written by several threads at once."""

    row_of_bar: NDArray[np.int32]  # [T] row of each bar, or -1
    value: NDArray[np.float32]  # [n, M] of the network, ranges
    logits: NDArray[np.float32]  # [n, M, A] of the policy of the network
    q: NDArray[np.float64]  # [n, M, A] ranges; -inf of an illegal action
    next_value: NDArray[np.float64]  # [n, M] expected discounted value one bar later: a part of Q
    policy: NDArray[np.float64]  # [A] scratch of one thread
    noise: NDArray[np.float32]  # [A] scratch of one thread


def new_searched_bars(ts: NDArray[np.int64], bars: int, hypotheses: int, actions: int) -> SearchedBars:
    """Room for the bars `ts` [n], ascending, of the T = `bars` of a series."""
    row_of_bar = np.full(bars, -1, np.int32)
    row_of_bar[ts] = np.arange(len(ts))
    n, M, A = len(ts), hypotheses, actions
    return SearchedBars(
        row_of_bar=row_of_bar,
        value=np.zeros((n, M), np.float32),
        logits=np.zeros((n, M, A), np.float32),
        q=np.zeros((n, M, A)),
        next_value=np.zeros((n, M)),
        policy=np.zeros(A),
        noise=np.zeros(A, np.float32),
    )


@kernel
def search_bars(searched: SearchedBars, planner: Planner, market_data: MarketData, ts: NDArray[np.int64]) -> int:
    """Search the closes of the bars `ts` [n] without noise; 0, or the status of a failed network call."""
    B, last = planner.policy.shape[0], ts.shape[0] - 1
    for first in range(0, ts.shape[0], B):
        for m in range(searched.q.shape[1] - 1, -1, -1):  # the last one, flat, is the root of the search
            for b in range(B):
                position = planner.position[b]
                position[:] = 0.0
                position[SIDE] = position[PREVIOUS_SIDE] = action_target(0.0, m, market_data.market.sizes)
                set_market_root(planner, b, market_data, ts[min(first + b, last)], position)
            status = evaluate(planner.networks.root, B) if m > 0 else plan(planner)
            if status != 0:
                return status
            store_root_rows(searched, planner, ts[first : first + B], m)
        store_trees(searched, planner.market_tree, ts[first : first + B])
    return 0


@inlined
def store_root_rows(searched: SearchedBars, planner: Planner, ts: NDArray[np.int64], m: int) -> None:
    """Store value and policy of position m from the rows of the root network, a row a bar."""
    y, A = planner.networks.root.y, searched.q.shape[2]
    column = y.shape[1] - 1 - planner.costs.move.shape[1]  # of the value, behind the policy
    for b in range(ts.shape[0]):
        row = searched.row_of_bar[ts[b]]
        searched.value[row, m] = y[b, column]
        for a in range(A):
            searched.logits[row, m, a] = y[b, column - A + a]


@inlined
def store_trees(searched: SearchedBars, tree: MarketTree | None, ts: NDArray[np.int64]) -> None:
    """Store the values of the trees, one a bar, for every position."""
    if tree is not None:
        for b in range(ts.shape[0]):
            row = searched.row_of_bar[ts[b]]
            for m in range(searched.q.shape[1]):
                searched.next_value[row, m] = tree.next_value[b, m]
                for a in range(searched.q.shape[2]):
                    searched.q[row, m, a] = tree.q[b, m, a]


@kernel
def store_searched_bars(
    replay: ReplayBuffer, slots: NDArray[np.int64], searched: SearchedBars, config: SearchConfig
) -> None:
    """Store policy, values and expected reward of every position at the decisions of the episodes `slots`."""
    L, M, A = replay.reward.shape[1], searched.q.shape[1], searched.q.shape[2]
    searched.noise[:] = 0.0
    for slot in slots:
        for k in range(L + 1):
            row = searched.row_of_bar[replay.start_bar[slot] + k]
            for m in range(M):
                replay.value[slot, k, m] = searched.value[row, m]
                if k == L:
                    continue
                q = searched.q[row, m]
                greedy, _ = decide_by_q(searched.policy, q, searched.logits[row, m], searched.noise, config)
                replay.search_value[slot, k, m] = q[greedy]
                replay.expected_reward[slot, k, m] = q[greedy] - searched.next_value[row, position_after(m, greedy, A)]
                for a in range(A):
                    replay.policy[slot, k, m, a] = searched.policy[a]
