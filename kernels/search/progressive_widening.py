"""Progressive widening: entries of any size in [0, 1], in trees of bounded width.

The edges of a decision node are candidates: signed sizes of the position after an order.  The root has a fixed set of
them, and sequential halving takes the best by Gumbel-top-k.  A node below has ceil(C N^alpha) draws from its policy at
its N-th visit.  This file has what a decision node of candidates is; kernels.search.mcts searches over it, with all
codes of an afterstate.  Couetoux et al., "Continuous upper confidence trees", LION 2011; Hubert et al., "Learning and
planning in complex action spaces", ICML 2021.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.jit import inlined
from kernels.market.position import (
    ACTIONS,
    BUY,
    CLOSE,
    HOLD,
    NUM_POSITION_FIELDS,
    SELL,
    SIDE,
    action_kind_to,
    apply_fill,
    is_legal,
)
from kernels.rng import beta, bits, uniform
from kernels.search.config import SearchConfig, nodes_needed
from kernels.search.costs import ExogenousCosts
from kernels.search.tree import MASKED_LOGIT, Tree, append_one_hot, init_root, masked_softmax, new_tree

NUM_ACTION_KINDS = len(ACTIONS)
NUM_BETA_PARAMS = 4  # of the Beta distributions of the sizes of a BUY and of a SELL, before the softplus
POLICY_HEAD_WIDTH = NUM_ACTION_KINDS + NUM_BETA_PARAMS  # logits of the kinds, then the Beta parameters
MIN_SIZE = 2.0**-10  # of an entry: a smaller one might be rounded to flat


class SampledTree(NamedTuple):
    """B trees whose decision nodes have up to J candidates as edges.

    The column `policy` of the networks is POLICY_HEAD_WIDTH wide.  A row of `afterstate` has the kind of the action as
    a one-hot; the size is in the features of its position.
    """

    tree: Tree
    policy_head: NDArray[np.float32]  # [B, N, POLICY_HEAD_WIDTH] of a decision node
    candidate_size: NDArray[np.float32]  # [B, N, J] signed size of the position after each candidate
    draw_count: NDArray[np.int16]  # [B, N, J] how often each was drawn; 0: no candidate yet
    max_draws: NDArray[np.int32]  # [n + 2] draws that a node below the root has at its N-th visit
    rng_key: NDArray[np.int64]  # [B] key of the draws of a tree; 0 when acting, so that equal bars get equal sizes
    policy: NDArray[np.float64]  # [B, J] improved policy of the root's candidates
    target: NDArray[np.float32]  # [B] signed size of the candidate that the decision takes


def max_draws_table(coefficient: float, exponent: float, visits: int) -> NDArray[np.int32]:
    """ceil(C N^alpha) for N = 0 .. visits, C = `coefficient`, alpha = `exponent`."""
    # an exact power must not be rounded up
    return np.ceil(coefficient * np.arange(visits + 1.0) ** exponent - 1e-9).astype(np.int32)


def new_sampled_tree(
    config: SearchConfig,
    roots: int,
    codes: int,
    state: int,
    preactivation_width: int,
    coefficient: float = 2.0,
    exponent: float = 0.35,
) -> SampledTree:
    """B = `roots` trees.  Raises ValueError for settings that progressive widening does not have."""
    is_full_width = config.stochastic and config.expectation_backup
    if not (is_full_width and config.num_sampled_sizes > 0 and coefficient >= 1 and 0 <= exponent <= 1):
        raise ValueError("widening wants full width, a sample, C >= 1 and alpha in [0, 1]")
    limit = max_draws_table(coefficient, exponent, config.num_simulations + 1)
    nodes, edges = nodes_needed(config, codes), max(max_candidates(config.num_sampled_sizes), int(limit[-1]))
    preactivation = config.num_simulations, preactivation_width
    return SampledTree(
        tree=new_tree(roots, nodes, edges, codes, state, NUM_POSITION_FIELDS, preactivation),
        policy_head=np.zeros((roots, nodes, POLICY_HEAD_WIDTH), np.float32),
        candidate_size=np.zeros((roots, nodes, edges), np.float32),
        draw_count=np.zeros((roots, nodes, edges), np.int16),
        max_draws=limit,
        rng_key=np.zeros(roots, np.int64),
        policy=np.zeros((roots, edges)),
        target=np.zeros(roots, np.float32),
    )


def max_candidates(samples: int) -> int:
    """Candidates of a flat root: HOLD, and `samples` sizes of each side."""
    return 2 * samples + 1


def sampled_tree_bytes(sampled: SampledTree) -> int:
    """Bytes of one tree.  All of them are allocated by `new_sampled_tree`."""
    total = sum(array.nbytes for array in (*sampled.tree, *sampled[1:])) - sampled.max_draws.nbytes
    return total // len(sampled.rng_key)


@inlined
def set_rng_key(sampled: SampledTree | None, b: int, seed: int, stream: int, step: int) -> None:
    """Key the draws of tree b by (seed, stream, step); without a sampled tree, do nothing."""
    if sampled is not None:
        sampled.rng_key[b] = bits(seed, stream, step) >> np.uint64(1)


@inlined
def draw_action_kind(head: NDArray[np.float32], side: float, config: SearchConfig, quantile: float) -> int:
    """The kind of action at a quantile of the softmax of head [POLICY_HEAD_WIDTH] over the legal kinds."""
    highest, total, chosen = MASKED_LOGIT, 0.0, HOLD
    for kind in range(NUM_ACTION_KINDS):
        if is_legal(side, kind, NUM_ACTION_KINDS, config.reverse, config.position_adjustment):
            highest = max(highest, head[kind])
    for kind in range(NUM_ACTION_KINDS):
        if is_legal(side, kind, NUM_ACTION_KINDS, config.reverse, config.position_adjustment):
            total += math.exp(head[kind] - highest)
    left = quantile * total
    for kind in range(NUM_ACTION_KINDS):
        if left >= 0 and is_legal(side, kind, NUM_ACTION_KINDS, config.reverse, config.position_adjustment):
            chosen = kind
            left -= math.exp(head[kind] - highest)
    return chosen


@inlined
def softplus(z: float) -> float:
    """log(1 + e^z)."""
    return max(z, 0.0) + math.log1p(math.exp(-abs(z)))


@inlined
def draw_target(sampled: SampledTree, b: int, node: int, kind: int, side: float, draw: int) -> float:
    """Signed size of the position after an action of this kind: HOLD keeps `side`, CLOSE is 0.

    An entry draws its size from the Beta head of the node by the draw's number `draw`: on either side the same one
    where the head is the same.  Draw 1 of a root that acts is the mean, the best guess.
    """
    if kind == HOLD:
        return side
    if kind == CLOSE:
        return 0.0
    first = NUM_ACTION_KINDS + 2 * (kind - BUY)
    p = 1.0 + softplus(np.float64(sampled.policy_head[b, node, first]))
    q = 1.0 + softplus(np.float64(sampled.policy_head[b, node, first + 1]))
    key = sampled.rng_key[b]
    size = p / (p + q) if key == 0 and node == 0 and draw == 1 else max(beta(p, q, key, 2 * node + 1, draw), MIN_SIZE)
    return size if kind == BUY else -size


@inlined
def draw_root_candidates(sampled: SampledTree, config: SearchConfig, b: int) -> None:
    """Draw the candidates of root b: num_sampled_sizes of each legal kind of entry, and one of any other legal kind.

    The candidates of an entry divide its prior evenly.  The first is a full position, the best where profit is linear
    in the size: a head that learns only from its own draws would contract around them.
    """
    tree, count = sampled.tree, 0
    side = np.float64(tree.position[b, 0, SIDE])
    for kind in range(NUM_ACTION_KINDS):
        if not is_legal(side, kind, NUM_ACTION_KINDS, config.reverse, config.position_adjustment):
            continue
        is_entry = kind == BUY or kind == SELL
        parts = config.num_sampled_sizes if is_entry else 1
        for part in range(parts):
            full = 1.0 if kind == BUY else -1.0
            target = full if is_entry and part == 0 else draw_target(sampled, b, 0, kind, side, part)
            sampled.candidate_size[b, 0, count] = target
            sampled.draw_count[b, 0, count] = 1
            tree.prior[b, 0, count] = np.float64(sampled.policy_head[b, 0, kind]) - math.log(parts)
            count += 1


@inlined
def widen(sampled: SampledTree, config: SearchConfig, b: int, node: int) -> None:
    """Draw candidates from the policy of a node until there are max_draws[N] draws.

    N counts the evaluation of the node and the visits of its candidates.  Prior of a candidate = log of its number of
    draws: the sampling accounts for the density of the policy.
    """
    tree, num_draws, visits = sampled.tree, 0, 1
    for j in range(sampled.draw_count.shape[2]):
        num_draws += sampled.draw_count[b, node, j]
        visits += int(tree.edge_visits[b, node, j])
    side = np.float64(tree.position[b, node, SIDE])
    for draw in range(num_draws, sampled.max_draws[visits]):
        quantile = uniform(sampled.rng_key[b], 2 * node, draw)
        kind = draw_action_kind(sampled.policy_head[b, node], side, config, quantile)
        target = np.float32(draw_target(sampled, b, node, kind, side, draw))
        j = 0
        while sampled.draw_count[b, node, j] > 0 and sampled.candidate_size[b, node, j] != target:
            j += 1
        sampled.candidate_size[b, node, j] = target
        sampled.draw_count[b, node, j] += 1
        tree.prior[b, node, j] = math.log(sampled.draw_count[b, node, j])
    masked_softmax(tree.policy[b, node], tree.prior[b, node], tree.score.shape[1])


@inlined
def apply_candidate(
    x: NDArray[np.float32],
    column: int,
    sampled: SampledTree,
    costs: ExogenousCosts,
    b: int,
    parent: int,
    edge: int,
    node: int,
) -> int:
    """Fill the candidate `edge` of `parent` into the position of its afterstate `node`.

    Writes the kind of its action at x[column:] as a one-hot; returns the column behind it.
    """
    tree, target = sampled.tree, sampled.candidate_size[b, parent, edge]
    side = tree.position[b, parent, SIDE]
    apply_fill(tree.position[b, node], tree.position[b, parent], target, costs.entry_cost[b])
    return append_one_hot(x, column, NUM_ACTION_KINDS, action_kind_to(side, target))


@inlined
def read_policy_head(sampled: SampledTree, y: NDArray[np.float32], b: int, node: int) -> None:
    """Read y = [policy | value] of a decision node, which has no candidates yet."""
    tree = sampled.tree
    for i in range(POLICY_HEAD_WIDTH):
        sampled.policy_head[b, node, i] = y[i]
    tree.raw_value[b, node] = y[POLICY_HEAD_WIDTH]
    tree.value[b, node] = y[POLICY_HEAD_WIDTH]
    for j in range(sampled.draw_count.shape[2]):
        sampled.draw_count[b, node, j] = 0
        tree.prior[b, node, j] = MASKED_LOGIT


@inlined
def init_sampled_root(
    sampled: SampledTree, config: SearchConfig, b: int, y: NDArray[np.float32], position: NDArray[np.float32]
) -> None:
    """Start tree b at a row y of the network `root` and a raw `position`; draw the candidates of the root."""
    tree, S = sampled.tree, sampled.tree.state.shape[2]
    init_root(tree, b, y[:S], y[S:S], y[S + POLICY_HEAD_WIDTH])
    for i in range(NUM_POSITION_FIELDS):
        tree.position[b, 0, i] = position[i]
    read_policy_head(sampled, y[S:], b, 0)
    draw_root_candidates(sampled, config, b)
