"""`search_bars`: one market search a bar serves every position, and every episode that passes that bar.

The market is exogenous: a tree of its states does not depend on the position of the root.  So the bars of a phase are
searched once each, before its episodes are played; a decision then looks its Q up.  This needs positions whose future
depends on their signed size alone (`memoryless`, see kernels.search.market_search).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.jit import inlined, kernel
from kernels.learning.record import set_market_root
from kernels.learning.replay_buffer import MarketData, ReplayBuffer, position_after
from kernels.market.ledger import Market
from kernels.market.position import PREVIOUS_SIDE, SIDE, action_target
from kernels.ort import evaluate
from kernels.search.config import SearchConfig
from kernels.search.market_search import MarketTree
from kernels.search.planner import Planner, decide_by_q, plan


class SearchedBars(NamedTuple):
    """The searches of n bars: for each of M positions the network's value and policy, and Q of the A actions."""

    row_of_bar: NDArray[np.int32]  # [T] row of each bar, or -1
    value: NDArray[np.float32]  # [n, M] of the network, ranges
    logits: NDArray[np.float32]  # [n, M, A] of the policy of the network
    q: NDArray[np.float64]  # [n, M, A] ranges; -inf of an illegal action
    next_value: NDArray[np.float64]  # [n, M] expected discounted value one bar later, a part of Q


def new_searched_bars(row_of_bar: NDArray[np.int32], bars: int, hypotheses: int, actions: int) -> SearchedBars:
    """Room for n = `bars` bars; `row_of_bar` [T] is filled by the caller."""
    return SearchedBars(
        row_of_bar,
        np.zeros((bars, hypotheses), np.float32),
        np.zeros((bars, hypotheses, actions), np.float32),
        np.zeros((bars, hypotheses, actions)),
        np.zeros((bars, hypotheses)),
    )


@inlined
def read_root_rows(searched: SearchedBars, planner: Planner, ts: NDArray[np.int64], first: int, m: int) -> None:
    """Store value and policy of hypothesis m from the root network's rows of the bars ts[first:]."""
    A, S = searched.q.shape[2], planner.networks.root.y.shape[1] - planner.costs.move.shape[1] - 1 - searched.q.shape[2]
    for b in range(min(planner.policy.shape[0], ts.shape[0] - first)):
        y, row = planner.networks.root.y[b], searched.row_of_bar[ts[first + b]]
        searched.value[row, m] = y[S + A]
        for a in range(A):
            searched.logits[row, m, a] = y[S + a]


@inlined
def store_q(
    searched: SearchedBars, planner: Planner, tree: MarketTree | None, ts: NDArray[np.int64], first: int
) -> None:
    """Store Q of every hypothesis from the trees of the bars ts[first:]."""
    if tree is not None:
        for b in range(min(planner.policy.shape[0], ts.shape[0] - first)):
            row = searched.row_of_bar[ts[first + b]]
            for m in range(searched.q.shape[1]):
                searched.next_value[row, m] = tree.next_value[b, m]
                for a in range(searched.q.shape[2]):
                    searched.q[row, m, a] = tree.q[b, m, a]


@kernel
def search_bars(
    searched: SearchedBars,
    planner: Planner,
    market_data: MarketData,
    ts: NDArray[np.int64],
    position: NDArray[np.float32],
) -> int:
    """Search the closes of the bars `ts` [n] without noise; 0, or the status of a failed network call.

    `position` [NUM_POSITION_FIELDS] is scratch, of zeros.
    """
    B, M = planner.policy.shape[0], searched.q.shape[1]
    for first in range(0, ts.shape[0], B):
        for m in range(M - 1, -1, -1):  # the last one, flat, is the root of the search
            position[SIDE] = position[PREVIOUS_SIDE] = action_target(0.0, m, market_data.market.sizes)
            for b in range(B):
                set_market_root(planner, b, market_data, ts[min(first + b, ts.shape[0] - 1)], position)
            status = evaluate(planner.networks.root, B) if m > 0 else plan(planner)
            if status != 0:
                return status
            read_root_rows(searched, planner, ts, first, m)
        store_q(searched, planner, planner.market_tree, ts, first)
    return 0


@kernel
def store_searches(
    replay: ReplayBuffer,
    slots: NDArray[np.int64],
    searched: SearchedBars,
    market: Market,
    config: SearchConfig,
    policy: NDArray[np.float64],
    noise: NDArray[np.float32],
) -> None:
    """Store value and policy of all positions at the decisions of the episodes `slots`, from the searches of their bars.

    policy [A] and noise [A], of zeros, are scratch.
    """
    L, M, A = replay.reward.shape[1], searched.q.shape[1], searched.q.shape[2]
    for slot in slots:
        for k in range(L + 1):
            row = searched.row_of_bar[replay.start_bar[slot] + k]
            for m in range(M):
                replay.value[slot, k, m] = searched.value[row, m]
                if k < L:
                    q, side = searched.q[row, m], action_target(0.0, m, market.sizes)
                    _, greedy = decide_by_q(policy, q, searched.logits[row, m], noise, side, config)
                    after = position_after(m, greedy, A)
                    replay.search_value[slot, k, m] = q[greedy]
                    replay.expected_reward[slot, k, m] = q[greedy] - searched.next_value[row, after]
                    for a in range(A):
                        replay.policy[slot, k, m, a] = policy[a]
