"""Progressive widening: a search whose entries have any size in [0, 1], in trees of bounded width.

The edges of a decision node are candidates, signed sizes that an order would bring about: at the root a fixed set, of
which Gumbel-top-k takes the best into sequential halving; inside, as many draws as ceil(C N^alpha) allows at the N-th
visit.  Afterstates are expanded at full width.  Couetoux et al., "Continuous upper confidence trees", 2011; Hubert et
al., "Learning and planning in complex action spaces", ICML 2021.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.jit import inlined, kernel
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
from kernels.ort import evaluate, evaluate_prefilled
from kernels.rng import beta, bits, uniform
from kernels.search.config import SearchConfig
from kernels.search.costs import ExogenousCosts
from kernels.search.gumbel import final_action, improved_policy, interior_action, root_action_selection
from kernels.search.mcts import (
    Networks,
    add_decision,
    backward_expectation,
    init_root,
    nodes_needed,
    read_afterstate,
    select_chance_code,
    write_dynamics_preactivation,
    write_position,
    write_states,
)
from kernels.search.tree import (
    CHANCE,
    MASKED_LOGIT,
    NONE,
    Tree,
    add_node,
    append_one_hot,
    masked_softmax,
    new_tree,
    update_edge_stats,
)

NUM_ACTION_KINDS = len(ACTIONS)
NUM_BETA_PARAMS = 4  # alpha and beta of a BUY and of a SELL, as the softplus takes them
POLICY_HEAD_WIDTH = NUM_ACTION_KINDS + NUM_BETA_PARAMS  # of a decision node: the logits of the kinds, then those
MIN_SIZE = 2.0**-10  # a size too small to tell from flat would be a HOLD


class SampledTree(NamedTuple):
    """Trees of E edges and the candidates of their decision nodes; the networks have HEAD columns for logits.

    The row of an afterstate has a one-hot of the kind of action: the size is in the features of its position.
    """

    tree: Tree
    policy_head: NDArray[np.float32]  # [B, N, HEAD] of a decision node
    candidate_size: NDArray[np.float32]  # [B, N, E] signed size that each candidate brings about
    draw_count: NDArray[np.int16]  # [B, N, E] how often it was drawn; 0 = no candidate yet
    max_draws: NDArray[np.int32]  # [n + 2] draws of a node below the root by its visits
    rng_key: NDArray[np.int64]  # [B] seeds the draws of a tree; 0 when acting, so that equal bars get equal sizes
    policy: NDArray[np.float64]  # [B, E] improved policy of the root's candidates
    target: NDArray[np.float32]  # [B] size of the candidate that the decision takes


def max_draws_table(coefficient: float, exponent: float, visits: int) -> NDArray[np.int32]:
    """ceil(C N^alpha) for N = 0 .. visits; the root of an exact power is not to be rounded up."""
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
    """Room for `roots` searches."""
    if not (
        config.stochastic
        and config.expectation_backup
        and config.num_sampled_sizes > 0
        and coefficient >= 1
        and 0 <= exponent <= 1
    ):
        raise ValueError("widening wants full width, a sample, C >= 1 and alpha in [0, 1]")
    limit = max_draws_table(coefficient, exponent, config.num_simulations + 1)
    nodes, edges = nodes_needed(config, codes), max(max_candidates(config.num_sampled_sizes), int(limit[-1]))
    return SampledTree(
        tree=new_tree(
            roots, nodes, edges, codes, state, NUM_POSITION_FIELDS, (config.num_simulations, preactivation_width)
        ),
        policy_head=np.zeros((roots, nodes, POLICY_HEAD_WIDTH), np.float32),
        candidate_size=np.zeros((roots, nodes, edges), np.float32),
        draw_count=np.zeros((roots, nodes, edges), np.int16),
        max_draws=limit,
        rng_key=np.zeros(roots, np.int64),
        policy=np.zeros((roots, edges)),
        target=np.zeros(roots, np.float32),
    )


def max_candidates(samples: int) -> int:
    """Candidates of a root that is flat: HOLD, and `samples` sizes of both sides."""
    return 2 * samples + 1


def sampled_tree_bytes(sampled: SampledTree) -> int:
    """Bytes of one tree; they are all there from the start, so no search needs more."""
    arrays = (
        *sampled.tree,
        sampled.policy_head,
        sampled.candidate_size,
        sampled.draw_count,
        sampled.rng_key,
        sampled.policy,
        sampled.target,
    )
    return sum(array.nbytes for array in arrays) // len(sampled.rng_key)


@inlined
def set_rng_key(sampled: SampledTree | None, b: int, seed: int, stream: int, step: int) -> None:
    """Key the sizes that tree b draws by (seed, stream, step), as `draw_noise` does its noise."""
    if sampled is not None:
        sampled.rng_key[b] = bits(seed, stream, step) >> np.uint64(1)


@inlined
def draw_action_kind(head: NDArray[np.float32], side: float, reverse: bool, quantile: float) -> int:
    """The kind of action at a quantile of the softmax over the legal ones."""
    highest, total, chosen = MASKED_LOGIT, 0.0, HOLD
    for kind in range(NUM_ACTION_KINDS):
        if is_legal(side, kind, NUM_ACTION_KINDS, reverse):
            highest = max(highest, head[kind])
    for kind in range(NUM_ACTION_KINDS):
        if is_legal(side, kind, NUM_ACTION_KINDS, reverse):
            total += math.exp(head[kind] - highest)
    left = quantile * total
    for kind in range(NUM_ACTION_KINDS):
        if left >= 0 and is_legal(side, kind, NUM_ACTION_KINDS, reverse):
            chosen = kind
            left -= math.exp(head[kind] - highest)
    return chosen


@inlined
def softplus(z: float) -> float:
    """log(1 + e^z)."""
    return max(z, 0.0) + math.log1p(math.exp(-abs(z)))


@inlined
def draw_target(
    sampled: SampledTree, b: int, node: int, kind: int, side: float, draw: int, from_uniform: bool
) -> float:
    """Signed size that draw number `draw` of a node brings about: of an entry, one from its Beta or from anywhere."""
    if kind == HOLD:
        return side
    if kind == CLOSE:
        return 0.0
    p = q = 1.0
    if not from_uniform:
        first = NUM_ACTION_KINDS + 2 * (kind - BUY)
        p += softplus(np.float64(sampled.policy_head[b, node, first]))
        q += softplus(np.float64(sampled.policy_head[b, node, first + 1]))
    size = max(beta(p, q, sampled.rng_key[b], 2 * node + 1, draw), MIN_SIZE)
    return size if kind == BUY else -size


@inlined
def draw_root_candidates(sampled: SampledTree, config: SearchConfig, b: int) -> None:
    """Candidates of root b: HOLD or CLOSE as a whole, `samples` sizes of an entry, each with its part of the prior.

    The last size of a side comes from anywhere: a head that learns from its own draws alone contracts around them.
    """
    tree, count = sampled.tree, 0
    side = np.float64(tree.position[b, 0, SIDE])
    for kind in range(NUM_ACTION_KINDS):
        if not is_legal(side, kind, NUM_ACTION_KINDS, config.reverse):
            continue
        parts = config.num_sampled_sizes if kind == BUY or kind == SELL else 1
        for part in range(parts):
            from_uniform = 0 < part == parts - 1
            sampled.candidate_size[b, 0, count] = draw_target(sampled, b, 0, kind, side, count, from_uniform)
            sampled.draw_count[b, 0, count] = 1
            tree.prior[b, 0, count] = np.float64(sampled.policy_head[b, 0, kind]) - math.log(parts)
            count += 1
    masked_softmax(tree.policy[b, 0], tree.prior[b, 0], tree.score.shape[1])


@inlined
def widen(sampled: SampledTree, config: SearchConfig, b: int, node: int) -> None:
    """Draw from the policy until there are as many draws as the visits of the node allow, its own evaluation included.

    Every draw weighs the same, so what was drawn again weighs more: the density is accounted for by the sampling.
    """
    tree, drawn, visits = sampled.tree, 0, 1
    for e in range(sampled.draw_count.shape[2]):
        drawn += sampled.draw_count[b, node, e]
        visits += int(tree.edge_visits[b, node, e])
    side = np.float64(tree.position[b, node, SIDE])
    for draw in range(drawn, sampled.max_draws[visits]):
        quantile = uniform(sampled.rng_key[b], 2 * node, draw)
        kind = draw_action_kind(sampled.policy_head[b, node], side, config.reverse, quantile)
        target = np.float32(draw_target(sampled, b, node, kind, side, draw, False))
        e = 0
        while sampled.draw_count[b, node, e] > 0 and sampled.candidate_size[b, node, e] != target:
            e += 1
        sampled.candidate_size[b, node, e] = target
        sampled.draw_count[b, node, e] += 1
        tree.prior[b, node, e] = math.log(sampled.draw_count[b, node, e])
    masked_softmax(tree.policy[b, node], tree.prior[b, node], tree.score.shape[1])


@inlined
def simulate_sampled(
    sampled: SampledTree, config: SearchConfig, table: NDArray[np.int32], b: int, simulation: int
) -> None:
    """Find the candidate to expand, widening the nodes on the way: tree.leaf[b], tree.leaf_edge[b]."""
    tree, node, depth = sampled.tree, 0, 1
    edge = root_action_selection(tree, config, table, b, simulation)
    while tree.child[b, node, edge] != NONE:
        afterstate = tree.child[b, node, edge]
        node = tree.child[b, afterstate, select_chance_code(tree, b, afterstate)]
        depth += 2
        widen(sampled, config, b, node)
        edge = interior_action(tree, config, b, node)
    tree.leaf[b] = node
    tree.leaf_edge[b] = edge
    tree.depth[b] = max(tree.depth[b], depth)


@inlined
def add_sampled_afterstate(
    x: NDArray[np.float32], sampled: SampledTree, costs: ExogenousCosts, config: SearchConfig, b: int
) -> None:
    """Add the chance node behind the leaf edge of tree b and write its network row x; it becomes the leaf."""
    tree = sampled.tree
    parent, edge = tree.leaf[b], tree.leaf_edge[b]
    node = add_node(tree, b, CHANCE, parent, edge)
    side, target = tree.position[b, parent, SIDE], sampled.candidate_size[b, parent, edge]
    apply_fill(tree.position[b, node], tree.position[b, parent], target, costs.entry_cost[b])
    D = write_states(x, tree, b, parent, tree.state.shape[2])
    write_position(x, tree, config, append_one_hot(x, D, NUM_ACTION_KINDS, action_kind_to(side, target)), b, node)
    tree.leaf[b] = node


@inlined
def read_policy_head(sampled: SampledTree, y: NDArray[np.float32], b: int, node: int) -> None:
    """Take head and value of a decision node from the columns y of its network row; it has no candidates yet."""
    tree = sampled.tree
    for i in range(POLICY_HEAD_WIDTH):
        sampled.policy_head[b, node, i] = y[i]
    tree.raw_value[b, node] = y[POLICY_HEAD_WIDTH]
    tree.value[b, node] = y[POLICY_HEAD_WIDTH]
    for e in range(sampled.draw_count.shape[2]):
        sampled.draw_count[b, node, e] = 0
        tree.prior[b, node, e] = MASKED_LOGIT


@inlined
def init_sampled_root(
    sampled: SampledTree, config: SearchConfig, b: int, y: NDArray[np.float32], position: NDArray[np.float32]
) -> None:
    """Start tree b at its root's network row y and raw `position` [RAW], and draw the candidates of the root."""
    tree, D = sampled.tree, sampled.tree.state.shape[2]
    init_root(tree, b, y[:D], y[D:D], y[D + POLICY_HEAD_WIDTH])
    for i in range(NUM_POSITION_FIELDS):
        tree.position[b, 0, i] = position[i]
    read_policy_head(sampled, y[D:], b, 0)
    draw_root_candidates(sampled, config, b)


@inlined
def expand_sampled_leaves(sampled: SampledTree, networks: Networks, costs: ExogenousCosts, config: SearchConfig) -> int:
    """Evaluate and add what is behind every leaf edge: the afterstate, which becomes the leaf, and all its codes."""
    tree, graph = sampled.tree, networks.dynamics
    B, C = costs.move.shape
    for b in range(B):
        add_sampled_afterstate(networks.afterstate.x[b], sampled, costs, config, b)
    status, first = evaluate(networks.afterstate, B), 0
    for b in range(B):
        read_afterstate(tree, networks.afterstate.y[b], b, tree.leaf[b], C)
        tree.network_rows[b] += 1 + C
    while status == 0 and first < B * C:
        count = min(B * C - first, graph.x.shape[0])
        for i in range(count):
            b = (first + i) // C
            node = add_decision(networks, i, tree, costs, config, b, tree.leaf[b], (first + i) % C)
            write_dynamics_preactivation(tree, networks, i, b, node)
        status = evaluate_prefilled(graph, count, networks.code_preactivation.shape[1])
        for i in range(count):
            b = (first + i) // C
            node = tree.child[b, tree.leaf[b], (first + i) % C]
            read_sampled_decision(sampled, graph.y[i], b, node)
            update_edge_stats(tree, b, node, config.discount)
        first += count
    return status


@inlined
def read_sampled_decision(sampled: SampledTree, y: NDArray[np.float32], b: int, node: int) -> None:
    """Take state, reward, head and value of a decision node from its network row y."""
    D = sampled.tree.state.shape[2]
    for d in range(D):
        sampled.tree.state[b, node, d] = y[d]
    sampled.tree.reward[b, node] = y[D]
    read_policy_head(sampled, y[D + 1 :], b, node)


@kernel
def run_sampled_simulations(
    sampled: SampledTree, networks: Networks, costs: ExogenousCosts, config: SearchConfig, table: NDArray[np.int32]
) -> int:
    """Run all simulations of all searches and choose; 0 or the status of a failed network call."""
    tree, B = sampled.tree, sampled.rng_key.shape[0]
    for simulation in range(config.num_simulations):
        for b in range(B):
            simulate_sampled(sampled, config, table, b, simulation)
        status = expand_sampled_leaves(sampled, networks, costs, config)
        if status != 0:
            return status
        for b in range(B):
            backward_expectation(tree, config, b)
    for b in range(B):
        improved_policy(sampled.policy[b], tree, config, b, 0)
        sampled.target[b] = sampled.candidate_size[b, 0, final_action(tree, config, b)]
    return 0
