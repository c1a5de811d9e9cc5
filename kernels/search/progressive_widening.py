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
from kernels.market.position import ACTIONS, BUY, CLOSE, HOLD, RAW, SELL, SIDE, act_on, is_legal, kind_to
from kernels.ort import evaluate, evaluate_told
from kernels.rng import beta, bits, uniform
from kernels.search.config import SearchConfig
from kernels.search.costs import Outlook
from kernels.search.gumbel import improved_policy, interior_action, root_action, root_candidate
from kernels.search.mcts import (
    Model,
    add_decision,
    back_up_expectation,
    chance_code,
    nodes_needed,
    plant,
    position_columns,
    read_afterstate,
    state_columns,
    tell_code,
)
from kernels.search.tree import CHANCE, MASKED, NONE, Tree, add_node, new_tree, note_edge, one_hot, softmax

KINDS = len(ACTIONS)
BETAS = 4  # alpha and beta of a BUY and of a SELL, as the softplus takes them
HEAD = KINDS + BETAS  # of a decision node: the logits of the kinds, then those
LEAST_SIZE = 2.0**-10  # a size too small to tell from flat would be a HOLD


class Wide(NamedTuple):
    """Trees of E edges and the candidates of their decision nodes; the networks have HEAD columns for logits.

    The row of an afterstate has a one-hot of the kind of action: the size is in the features of its position.
    """

    tree: Tree
    head: NDArray[np.float32]  # [B, N, HEAD] of a decision node
    size: NDArray[np.float32]  # [B, N, E] signed size that each candidate brings about
    drawn: NDArray[np.int16]  # [B, N, E] how often it was drawn; 0 = no candidate yet
    limit: NDArray[np.int32]  # [n + 2] draws of a node below the root by its visits
    key: NDArray[np.int64]  # [B] seeds the draws of a tree; 0 when acting, so that equal bars get equal sizes
    policy: NDArray[np.float64]  # [B, E] improved policy of the root's candidates
    target: NDArray[np.float32]  # [B] size of the candidate that the decision takes


def widening_table(coefficient: float, exponent: float, visits: int) -> NDArray[np.int32]:
    """ceil(C N^alpha) for N = 0 .. visits; the root of an exact power is not to be rounded up."""
    return np.ceil(coefficient * np.arange(visits + 1.0) ** exponent - 1e-9).astype(np.int32)


def new_wide(
    config: SearchConfig,
    roots: int,
    codes: int,
    state: int,
    shared: int,
    coefficient: float = 2.0,
    exponent: float = 0.35,
) -> Wide:
    """Room for `roots` searches."""
    if not (
        config.stochastic
        and config.full_width
        and config.samples > 0
        and coefficient >= 1
        and 0 <= exponent <= 1
    ):
        raise ValueError("widening wants full width, a sample, C >= 1 and alpha in [0, 1]")
    limit = widening_table(coefficient, exponent, config.simulations + 1)
    nodes, edges = nodes_needed(config, codes), max(most_candidates(config.samples), int(limit[-1]))
    return Wide(
        tree=new_tree(roots, nodes, edges, codes, state, RAW, (config.simulations, shared)),
        head=np.zeros((roots, nodes, HEAD), np.float32),
        size=np.zeros((roots, nodes, edges), np.float32),
        drawn=np.zeros((roots, nodes, edges), np.int16),
        limit=limit,
        key=np.zeros(roots, np.int64),
        policy=np.zeros((roots, edges)),
        target=np.zeros(roots, np.float32),
    )


def most_candidates(samples: int) -> int:
    """Candidates of a root that is flat: HOLD, and `samples` sizes of both sides."""
    return 2 * samples + 1


def tree_bytes(wide: Wide) -> int:
    """Bytes of one tree; they are all there from the start, so no search needs more."""
    arrays = (*wide.tree, wide.head, wide.size, wide.drawn, wide.key, wide.policy, wide.target)
    return sum(array.nbytes for array in arrays) // len(wide.key)


@inlined
def draw_key(wide: Wide | None, b: int, seed: int, stream: int, step: int) -> None:
    """Key the sizes that tree b draws by (seed, stream, step), as `draw_noise` does its noise."""
    if wide is not None:
        wide.key[b] = bits(seed, stream, step) >> np.uint64(1)


@inlined
def draw_kind(head: NDArray[np.float32], side: float, reverse: bool, quantile: float) -> int:
    """The kind of action at a quantile of the softmax over the legal ones."""
    highest, total, chosen = MASKED, 0.0, HOLD
    for kind in range(KINDS):
        if is_legal(side, kind, KINDS, reverse):
            highest = max(highest, head[kind])
    for kind in range(KINDS):
        if is_legal(side, kind, KINDS, reverse):
            total += math.exp(head[kind] - highest)
    left = quantile * total
    for kind in range(KINDS):
        if left >= 0 and is_legal(side, kind, KINDS, reverse):
            chosen = kind
            left -= math.exp(head[kind] - highest)
    return chosen


@inlined
def softplus(z: float) -> float:
    """log(1 + e^z)."""
    return max(z, 0.0) + math.log1p(math.exp(-abs(z)))


@inlined
def draw_target(wide: Wide, b: int, node: int, kind: int, side: float, draw: int, anywhere: bool) -> float:
    """Signed size that draw number `draw` of a node brings about: of an entry, one from its Beta or from anywhere."""
    if kind == HOLD:
        return side
    if kind == CLOSE:
        return 0.0
    p = q = 1.0
    if not anywhere:
        first = KINDS + 2 * (kind - BUY)
        p += softplus(np.float64(wide.head[b, node, first]))
        q += softplus(np.float64(wide.head[b, node, first + 1]))
    size = max(beta(p, q, wide.key[b], 2 * node + 1, draw), LEAST_SIZE)
    return size if kind == BUY else -size


@inlined
def draw_root(wide: Wide, config: SearchConfig, b: int) -> None:
    """Candidates of root b: HOLD or CLOSE as a whole, `samples` sizes of an entry, each with its part of the prior.

    The last size of a side comes from anywhere: a head that learns from its own draws alone contracts around them.
    """
    tree, count = wide.tree, 0
    side = np.float64(tree.position[b, 0, SIDE])
    for kind in range(KINDS):
        if not is_legal(side, kind, KINDS, config.reverse):
            continue
        parts = config.samples if kind == BUY or kind == SELL else 1
        for part in range(parts):
            anywhere = 0 < part == parts - 1
            wide.size[b, 0, count] = draw_target(wide, b, 0, kind, side, count, anywhere)
            wide.drawn[b, 0, count] = 1
            tree.prior[b, 0, count] = np.float64(wide.head[b, 0, kind]) - math.log(parts)
            count += 1
    softmax(tree.policy[b, 0], tree.prior[b, 0], tree.score.shape[1])


@inlined
def widen(wide: Wide, config: SearchConfig, b: int, node: int) -> None:
    """Draw from the policy until there are as many draws as the visits of the node allow, its own evaluation included.

    Every draw weighs the same, so what was drawn again weighs more: the density is accounted for by the sampling.
    """
    tree, drawn, visits = wide.tree, 0, 1
    for e in range(wide.drawn.shape[2]):
        drawn += wide.drawn[b, node, e]
        visits += int(tree.edge_visits[b, node, e])
    side = np.float64(tree.position[b, node, SIDE])
    for draw in range(drawn, wide.limit[visits]):
        quantile = uniform(wide.key[b], 2 * node, draw)
        kind = draw_kind(wide.head[b, node], side, config.reverse, quantile)
        target = np.float32(draw_target(wide, b, node, kind, side, draw, False))
        e = 0
        while wide.drawn[b, node, e] > 0 and wide.size[b, node, e] != target:
            e += 1
        wide.size[b, node, e] = target
        wide.drawn[b, node, e] += 1
        tree.prior[b, node, e] = math.log(wide.drawn[b, node, e])
    softmax(tree.policy[b, node], tree.prior[b, node], tree.score.shape[1])


@inlined
def descend_wide(wide: Wide, config: SearchConfig, table: NDArray[np.int32], b: int, simulation: int) -> None:
    """Find the candidate to expand, widening the nodes on the way: tree.leaf[b], tree.leaf_edge[b]."""
    tree, node, depth = wide.tree, 0, 1
    edge = root_candidate(tree, config, table, b, simulation)
    while tree.child[b, node, edge] != NONE:
        afterstate = tree.child[b, node, edge]
        node = tree.child[b, afterstate, chance_code(tree, b, afterstate)]
        depth += 2
        widen(wide, config, b, node)
        edge = interior_action(tree, config, b, node)
    tree.leaf[b] = node
    tree.leaf_edge[b] = edge
    tree.depth[b] = max(tree.depth[b], depth)


@inlined
def add_wide_afterstate(
    x: NDArray[np.float32], wide: Wide, outlook: Outlook, config: SearchConfig, b: int
) -> None:
    """Add the chance node behind the leaf edge of tree b and write its network row x; it becomes the leaf."""
    tree = wide.tree
    parent, edge = tree.leaf[b], tree.leaf_edge[b]
    node = add_node(tree, b, CHANCE, parent, edge)
    side, target = tree.position[b, parent, SIDE], wide.size[b, parent, edge]
    act_on(tree.position[b, node], tree.position[b, parent], target, outlook.entry_cost[b])
    D = state_columns(x, tree, b, parent, tree.state.shape[2])
    position_columns(x, tree, config, one_hot(x, D, KINDS, kind_to(side, target)), b, node)
    tree.leaf[b] = node


@inlined
def read_head(wide: Wide, y: NDArray[np.float32], b: int, node: int) -> None:
    """Take head and value of a decision node from the columns y of its network row; it has no candidates yet."""
    tree = wide.tree
    for i in range(HEAD):
        wide.head[b, node, i] = y[i]
    tree.raw_value[b, node] = y[HEAD]
    tree.value[b, node] = y[HEAD]
    for e in range(wide.drawn.shape[2]):
        wide.drawn[b, node, e] = 0
        tree.prior[b, node, e] = MASKED


@inlined
def plant_wide(
    wide: Wide, config: SearchConfig, b: int, y: NDArray[np.float32], position: NDArray[np.float32]
) -> None:
    """Start tree b at its root's network row y and raw `position` [RAW], and draw the candidates of the root."""
    tree, D = wide.tree, wide.tree.state.shape[2]
    plant(tree, b, y[:D], y[D:D], y[D + HEAD])
    for i in range(RAW):
        tree.position[b, 0, i] = position[i]
    read_head(wide, y[D:], b, 0)
    draw_root(wide, config, b)


@inlined
def expand_wide(wide: Wide, model: Model, outlook: Outlook, config: SearchConfig) -> int:
    """Evaluate and add what is behind every leaf edge: the afterstate, which becomes the leaf, and all its codes."""
    tree, net = wide.tree, model.dynamics
    B, C = outlook.move.shape
    for b in range(B):
        add_wide_afterstate(model.afterstate.x[b], wide, outlook, config, b)
    status, first = evaluate(model.afterstate, B), 0
    for b in range(B):
        read_afterstate(tree, model.afterstate.y[b], b, tree.leaf[b], C)
        tree.rows[b] += 1 + C
    while status == 0 and first < B * C:
        count = min(B * C - first, net.x.shape[0])
        for i in range(count):
            b = (first + i) // C
            node = add_decision(model, i, tree, outlook, config, b, tree.leaf[b], (first + i) % C)
            tell_code(tree, model, i, b, node)
        status = evaluate_told(net, count, model.code.shape[1])
        for i in range(count):
            b = (first + i) // C
            node = tree.child[b, tree.leaf[b], (first + i) % C]
            read_wide_decision(wide, net.y[i], b, node)
            note_edge(tree, b, node, config.discount)
        first += count
    return status


@inlined
def read_wide_decision(wide: Wide, y: NDArray[np.float32], b: int, node: int) -> None:
    """Take state, reward, head and value of a decision node from its network row y."""
    D = wide.tree.state.shape[2]
    for d in range(D):
        wide.tree.state[b, node, d] = y[d]
    wide.tree.reward[b, node] = y[D]
    read_head(wide, y[D + 1 :], b, node)


@kernel
def grow_wide(
    wide: Wide, model: Model, outlook: Outlook, config: SearchConfig, table: NDArray[np.int32]
) -> int:
    """Run all simulations of all searches and choose; 0 or the status of a failed network call."""
    tree, B = wide.tree, wide.key.shape[0]
    for simulation in range(config.simulations):
        for b in range(B):
            descend_wide(wide, config, table, b, simulation)
        status = expand_wide(wide, model, outlook, config)
        if status != 0:
            return status
        for b in range(B):
            back_up_expectation(tree, config, b)
    for b in range(B):
        improved_policy(wide.policy[b], tree, config, b, 0)
        wide.target[b] = wide.size[b, 0, root_action(tree, config, b)]
    return 0
