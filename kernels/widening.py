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

from kernels._jit import inlined, kernel
from kernels.gumbel import (
    SearchConfig,
    greedy_q,
    improved_policy,
    interior_action,
    root_action,
    root_candidate,
)
from kernels.ort import evaluate
from kernels.planner import Planner, new_planner
from kernels.position import ACTIONS, BUY, CLOSE, HOLD, RAW, SELL, SIDE, act_on, is_legal
from kernels.rng import beta, bits, uniform
from kernels.search import (
    Model,
    add_decision,
    back_up_expectation,
    chance_code,
    nodes_needed,
    one_hot,
    position_columns,
    read_afterstate,
    state_columns,
)
from kernels.tree import CHANCE, DECISION, MASKED, NONE, Tree, add_node, note_edge, softmax

KINDS = len(ACTIONS)
HEAD = (
    KINDS + 4
)  # logits of the kinds, then alpha and beta of a BUY and of a SELL, as the softplus takes them
LEAST_SIZE = 2.0**-10  # a size too small to tell from flat would be a HOLD


class Wide(NamedTuple):
    """What widening adds to a `Planner` of E edges; its networks are those of `Model` with HEAD columns for logits.

    The row of an afterstate has a one-hot of the kind of action: the size is in the features of its position.
    """

    head: NDArray[np.float32]  # [B, N, HEAD] of a decision node
    size: NDArray[np.float32]  # [B, N, E] signed size that each candidate brings about
    drawn: NDArray[np.int16]  # [B, N, E] how often it was drawn; 0 = no candidate yet
    limit: NDArray[np.int32]  # [n + 2] draws of a node below the root by its visits
    key: NDArray[np.int64]  # [B] seeds the draws of a tree
    samples: int  # sizes of each side at the root
    tree: Tree  # that of its planner


def widening_table(coefficient: float, exponent: float, visits: int) -> NDArray[np.int32]:
    """ceil(C N^alpha) for N = 0 .. visits; the root of an exact power is not to be rounded up."""
    return np.ceil(coefficient * np.arange(visits + 1.0) ** exponent - 1e-9).astype(np.int32)


def new_wide(
    model: Model,
    config: SearchConfig,
    roots: int,
    codes: int,
    samples: int = 4,
    coefficient: float = 2.0,
    exponent: float = 0.35,
) -> tuple[Planner, Wide]:
    """Room for `roots` searches; `action` and `policy` of the planner are over candidates of the root."""
    if not (
        config.stochastic and config.full_width and samples > 0 and coefficient >= 1 and 0 <= exponent <= 1
    ):
        raise ValueError("widening wants full width, a sample, C >= 1 and alpha in [0, 1]")
    limit = widening_table(coefficient, exponent, config.simulations + 1)
    edges = max(2 * samples + 1, int(limit[-1]))  # flat: HOLD and both sides
    nodes, state = nodes_needed(config, codes), model.afterstate.y.shape[1] - codes - 1
    planner = new_planner(model, config, roots, edges, codes, state)
    tree = planner.tree
    if tree is None:
        raise ValueError("widening wants a tree of actions, not of market states")
    wide = Wide(
        head=np.zeros((roots, nodes, HEAD), np.float32),
        size=np.zeros((roots, nodes, edges), np.float32),
        drawn=np.zeros((roots, nodes, edges), np.int16),
        limit=limit,
        key=np.zeros(roots, np.int64),
        samples=int(samples),
        tree=tree,
    )
    return planner, wide


def tree_bytes(planner: Planner, wide: Wide) -> int:
    """Bytes of one tree; they are all there from the start, so no search needs more."""
    arrays = (*wide.tree, wide.head, wide.size, wide.drawn, wide.key)
    return sum(array.nbytes for array in arrays) // len(wide.key)


@inlined
def draw_key(wide: Wide, b: int, seed: int, stream: int, step: int) -> None:
    """Key the sizes that tree b draws by (seed, stream, step), as `draw_noise` does its noise."""
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
def draw_target(wide: Wide, b: int, node: int, kind: int, side: float, draw: int) -> float:
    """Signed size that draw number `draw` of a node brings about: of an entry, one from the Beta distribution."""
    if kind == HOLD:
        return side
    if kind == CLOSE:
        return 0.0
    first = KINDS + 2 * (kind - BUY)
    p = 1.0 + softplus(np.float64(wide.head[b, node, first]))
    q = 1.0 + softplus(np.float64(wide.head[b, node, first + 1]))
    size = max(beta(p, q, wide.key[b], 2 * node + 1, draw), LEAST_SIZE)
    return size if kind == BUY else -size


@inlined
def draw_root(planner: Planner, wide: Wide, b: int) -> None:
    """Candidates of root b: HOLD or CLOSE as a whole, `samples` sizes of an entry, each with its part of the prior."""
    tree, count = wide.tree, 0
    side = np.float64(tree.position[b, 0, SIDE])
    for kind in range(KINDS):
        if not is_legal(side, kind, KINDS, planner.config.reverse):
            continue
        parts = wide.samples if kind == BUY or kind == SELL else 1
        for _ in range(parts):
            wide.size[b, 0, count] = draw_target(wide, b, 0, kind, side, count)
            wide.drawn[b, 0, count] = 1
            tree.prior[b, 0, count] = np.float64(wide.head[b, 0, kind]) - math.log(parts)
            count += 1
    softmax(tree.policy[b, 0], tree.prior[b, 0], tree.score.shape[1])


@inlined
def widen(planner: Planner, wide: Wide, b: int, node: int) -> None:
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
        kind = draw_kind(wide.head[b, node], side, planner.config.reverse, quantile)
        target = np.float32(draw_target(wide, b, node, kind, side, draw))
        e = 0
        while wide.drawn[b, node, e] > 0 and wide.size[b, node, e] != target:
            e += 1
        wide.size[b, node, e] = target
        wide.drawn[b, node, e] += 1
        tree.prior[b, node, e] = math.log(wide.drawn[b, node, e])
    softmax(tree.policy[b, node], tree.prior[b, node], tree.score.shape[1])


@inlined
def descend_wide(planner: Planner, wide: Wide, b: int, simulation: int) -> None:
    """Find the candidate to expand, widening the nodes on the way: tree.leaf[b], tree.leaf_edge[b]."""
    tree, node = wide.tree, 0
    edge = root_candidate(tree, planner.config, planner.table, b, simulation)
    while tree.child[b, node, edge] != NONE:
        afterstate = tree.child[b, node, edge]
        node = tree.child[b, afterstate, chance_code(tree, b, afterstate)]
        widen(planner, wide, b, node)
        edge = interior_action(tree, planner.config, b, node)
    tree.leaf[b] = node
    tree.leaf_edge[b] = edge


@inlined
def add_wide_afterstate(planner: Planner, wide: Wide, b: int) -> None:
    """Add the chance node behind the leaf edge of tree b and write its network row; it becomes the leaf."""
    tree, x = wide.tree, planner.model.afterstate.x[b]
    parent, edge = tree.leaf[b], tree.leaf_edge[b]
    node = add_node(tree, b, CHANCE, parent, edge)
    side, target = tree.position[b, parent, SIDE], wide.size[b, parent, edge]
    act_on(tree.position[b, node], tree.position[b, parent], target, planner.outlook.entry_cost[b])
    D = state_columns(x, tree, b, parent, tree.state.shape[2])
    kind = HOLD if target == side else BUY if target > 0 else SELL if target < 0 else CLOSE
    position_columns(x, tree, planner.config, one_hot(x, D, KINDS, kind), b, node)
    tree.leaf[b] = node


@inlined
def read_head(planner: Planner, wide: Wide, y: NDArray[np.float32], b: int, node: int) -> None:
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
def plant_wide(planner: Planner, wide: Wide, b: int) -> None:
    """Start tree b at the row of its root, and draw the candidates of the root."""
    tree, y = wide.tree, planner.model.root.y[b]
    tree.used[b] = 0
    root = add_node(tree, b, DECISION, NONE, NONE)
    D = tree.state.shape[2]
    for d in range(D):
        tree.state[b, root, d] = y[d]
    for i in range(RAW):
        tree.position[b, root, i] = planner.position[b, i]
    tree.visits[b, root] = 1
    read_head(planner, wide, y[D:], b, root)
    draw_root(planner, wide, b)


@inlined
def expand_wide(planner: Planner, wide: Wide) -> int:
    """Evaluate and add what is behind every leaf edge: the afterstate, which becomes the leaf, and all its codes."""
    tree, model, outlook = wide.tree, planner.model, planner.outlook
    B, C = outlook.move.shape
    for b in range(B):
        add_wide_afterstate(planner, wide, b)
    status = evaluate(model.afterstate, B)
    if status != 0:
        return status
    for b in range(B):
        read_afterstate(tree, model.afterstate.y[b], b, tree.leaf[b], C)
        for c in range(C):
            add_decision(model.dynamics.x[b * C + c], tree, outlook, planner.config, b, tree.leaf[b], c)
    status = evaluate(model.dynamics, B * C)
    D = tree.state.shape[2]
    for row in range(B * C):
        b, y = row // C, model.dynamics.y[row]
        node = tree.child[b, tree.leaf[b], row % C]
        for d in range(D):
            tree.state[b, node, d] = y[d]
        tree.reward[b, node] = y[D]
        read_head(planner, wide, y[D + 1 :], b, node)
        note_edge(tree, b, node, planner.config.discount)
    return status


@kernel
def grow_wide(planner: Planner, wide: Wide) -> int:
    """Run all simulations of all searches; 0 or the status of a failed network call."""
    B = planner.action.shape[0]
    for simulation in range(planner.config.simulations):
        for b in range(B):
            descend_wide(planner, wide, b, simulation)
        status = expand_wide(planner, wide)
        if status != 0:
            return status
        for b in range(B):
            back_up_expectation(wide.tree, planner.config, b)
    return 0


@kernel
def plan_wide(planner: Planner, wide: Wide) -> int:
    """`plan` over sizes: fills action (a candidate of the root), policy and value.  0 or a network status."""
    tree, config = wide.tree, planner.config
    B = planner.action.shape[0]
    status = evaluate(planner.model.root, B)
    if status != 0:
        return status
    for b in range(B):
        plant_wide(planner, wide, b)
    status = grow_wide(planner, wide)
    for b in range(B):
        planner.action[b] = root_action(tree, config, b)
        improved_policy(planner.policy[b], tree, config, b, 0)
        planner.value[b] = greedy_q(planner.policy[b], tree, config, b, 0)
    return status
