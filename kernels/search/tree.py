"""`Tree`: B searches in flat arrays.  Decision nodes alternate with chance nodes (afterstates).

Node 0 is the root.  The edges of a decision node are actions, those of a chance node chance codes; the edge into a
chance node pays nothing and is not discounted, the edge into a decision node is one bar.  What a descent reads of the
edges of a node lies in rows of W lanes (kernels.simd), a register each: those of a decision node are its A actions.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.jit import inlined
from kernels.simd import LANES_4, Scalar, exponential, load_4, padded, reduce_add, reduce_max, select, store

NONE = -1
DECISION, CHANCE = 0, 1
REUSE_OFF, REUSE_CHANCE_CHILD, REUSE_KNOWN_ARM = (
    0,
    1,
    2,
)  # what a search takes over from the one a bar later: `ReusedValue`
VALUE_REUSES = ("off", "chance_child", "known_arm")
MASKED_LOGIT = np.float32(-1e30)  # logit of an illegal action: finite, so that a softmax over it stays finite
MIN_LEGAL_LOGIT = np.float32(-1e29)  # logits above are those of legal actions
PADDING_LOGIT = np.float32(-2e30)  # logit of a lane that is no edge
ZERO: Scalar = np.float32(0.0)
ONE: Scalar = np.float32(1.0)
CACHE_LINE = 16  # float32 in a line of the cache


class Tree(NamedTuple):
    """State of B searches of at most N nodes.  Kernels write into it; nothing ever reallocates it."""

    num_nodes: NDArray[np.int32]  # [B]       nodes in use
    kind: NDArray[np.int32]  # [B, N]    DECISION or CHANCE
    parent: NDArray[np.int32]  # [B, N]    NONE at the root
    edge: NDArray[np.int32]  # [B, N]    edge of the parent that leads here
    child: NDArray[np.int32]  # [B, N, E] node at the end of each edge, or NONE
    edge_visits: NDArray[np.float32]  # [B, N, W] visits of that node
    edge_value: NDArray[np.float32]  # [B, N, W] Q of each edge: its reward and the value behind it
    prior: NDArray[np.float32]  # [B, N, W] logits of actions, MASKED where illegal; probabilities of chance codes
    policy: NDArray[np.float32]  # [B, N, W] softmax of the logits of a decision node
    visits: NDArray[np.int32]  # [B, N]    simulations that passed through or ended here
    raw_value: NDArray[np.float32]  # [B, N]    the network's own value
    value: NDArray[np.float32]  # [B, N]    backed-up value
    reward: NDArray[np.float32]  # [B, N]    reward of the edge that leads here
    state: NDArray[np.float32]  # [B, N, D] what the networks remember of a node
    preactivation_row: NDArray[np.int32]  # [B, N]    row of `dynamics_preactivation` of an afterstate, NONE elsewhere
    preactivation_rows: NDArray[np.int32]  # [B]       rows of `dynamics_preactivation` in use
    dynamics_preactivation: NDArray[np.float32]  # [B, n, T] what `dynamics` is told of the afterstates of one decision
    position: NDArray[np.float32]  # [B, N, RAW] exact position, or RAW = 0 outside forex
    leaf: NDArray[np.int32]  # [B]       node the running simulation expands, then the node it added
    leaf_edge: NDArray[np.int32]  # [B]       edge it expands, NONE where nothing is to be evaluated
    reused_node: NDArray[np.int32]  # [B]       node whose value is `ReusedValue`, or NONE
    network_rows: NDArray[np.int32]  # [B]       network rows of the search, the root's included
    depth: NDArray[np.int32]  # [B]       edges on its longest path
    noise: NDArray[np.float32]  # [B, A]    Gumbel noise of the root
    score: NDArray[np.float32]  # [B, A in whole lanes] scratch of a selection


class ReusedValue(NamedTuple):
    """What happened after B roots and what the next state turned out to be worth (ReZero, Xuan et al. 2024).

    CHANCE_CHILD puts the value where it belongs, behind the realised code of the realised action, whose weight in the
    root is the probability of that code: unbiased.  KNOWN_ARM, the published form, lets it stand for the action.
    """

    action: NDArray[np.int32]  # [B] taken, or NONE: nothing is known
    code: NDArray[np.int32]  # [B] chance code that came
    reward: NDArray[np.float32]  # [B] of that bar, R
    value: NDArray[np.float32]  # [B] of the state it led to, R


def new_reused_value(roots: int) -> ReusedValue:
    """Nothing known of `roots` roots."""
    none = np.full(roots, NONE, np.int32)
    return ReusedValue(none, none.copy(), np.zeros(roots, np.float32), np.zeros(roots, np.float32))


def new_tree(
    searches: int,
    nodes: int,
    actions: int,
    codes: int,
    state: int,
    raw_position: int,
    preactivation_shape: tuple[int, int] = (0, 0),
) -> Tree:
    """Room for `searches` trees of `nodes` nodes each, and [n, T] `preactivation_shape` by afterstates."""
    B, N, E = searches, nodes, max(actions, codes)
    W = padded(E)
    rows = ("edge_visits", "edge_value", "policy", "prior")
    floats, numbers = ("raw_value", "value", "reward"), ("visits", "kind", "parent", "edge", "preactivation_row")
    width = len(rows) * W + E + len(floats) + len(numbers)
    record = cache_aligned(
        B, N, -(-width // CACHE_LINE) * CACHE_LINE
    )  # a node's data lie together: a descent waits for memory
    columns = record.view(np.int32)
    fields: dict[str, NDArray[Any]] = {name: record[..., i * W : (i + 1) * W] for i, name in enumerate(rows)}
    at = len(rows) * W
    fields |= {name: record[..., at + i] for i, name in enumerate(floats)}
    at += len(floats)
    fields |= {name: columns[..., at + i] for i, name in enumerate(numbers)}
    at += len(numbers)
    return Tree(
        num_nodes=np.zeros(B, np.int32),
        child=columns[..., at : at + E],
        **fields,
        state=np.zeros((B, N, state), np.float32),
        preactivation_rows=np.zeros(B, np.int32),
        # the first rows of all trees lie together: most searches use no more
        dynamics_preactivation=cache_aligned(preactivation_shape[0], B, preactivation_shape[1]).transpose(1, 0, 2),
        position=np.zeros((B, N, raw_position), np.float32),
        leaf=np.zeros(B, np.int32),
        leaf_edge=np.zeros(B, np.int32),
        reused_node=np.full(B, NONE, np.int32),
        network_rows=np.zeros(B, np.int32),
        depth=np.zeros(B, np.int32),
        noise=np.zeros((B, actions), np.float32),
        score=np.zeros((B, padded(actions)), np.float32),
    )


def cache_aligned(*shape: int) -> NDArray[np.float32]:
    """Zeros that begin at a line of the cache, with room for another behind them."""
    flat = np.zeros(math.prod(shape) + 2 * CACHE_LINE, np.float32)
    first = -flat.ctypes.data // flat.itemsize % CACHE_LINE
    return flat[first : first + math.prod(shape)].reshape(shape)


@inlined
def as_unsigned(i: int) -> int:
    """The same number, which is not negative, in a type of which no index has to be checked for that."""
    return np.uint32(i)  # type: ignore[return-value]


@inlined
def fill_lanes(row: NDArray[np.float32], lanes: int, number: Scalar) -> None:
    """The first lanes of a row become `number`."""
    for i in range(lanes):
        row[i] = number


@inlined
def append_one_hot(x: NDArray[np.float32], first: int, width: int, hot: int) -> int:
    """Write a one-hot of `width` at x[first:]; the column behind it."""
    fill_lanes(x[first:], width, ZERO)
    x[first + hot] = 1.0
    return first + width


@inlined
def masked_softmax(out: NDArray[np.float32], logits: NDArray[np.float32], width: int) -> None:
    """The first `width` lanes: out = softmax of the logits above LEGAL, 0 elsewhere; `out` may be `logits`."""
    highest, mass = MASKED_LOGIT, ZERO
    for i in range(0, width, LANES_4):
        highest = max(highest, reduce_max(load_4(logits, i)))
    for i in range(0, width, LANES_4):
        z = load_4(logits, i)
        weight = select(z > MIN_LEGAL_LOGIT, exponential(z - highest), ZERO)
        store(out, i, weight)
        mass += reduce_add(weight)
    for i in range(0, width, LANES_4):
        store(out, i, load_4(out, i) * (ONE / mass))


@inlined
def add_node(tree: Tree, b: int, kind: int, parent: int, edge: int) -> int:
    """Append an empty node behind `edge` of `parent`; its number."""
    node = int(tree.num_nodes[b])
    tree.num_nodes[b] = node + 1
    tree.kind[b, node] = kind
    tree.parent[b, node] = parent
    tree.edge[b, node] = edge
    tree.preactivation_row[b, node] = NONE
    tree.visits[b, node] = 0
    tree.reward[b, node] = 0.0
    for e in range(tree.child.shape[2]):
        tree.child[b, node, e] = NONE
    lanes = tree.edge_visits.shape[2]
    if kind == DECISION:
        lanes = tree.score.shape[1]
        fill_lanes(tree.prior[b, node], lanes, PADDING_LOGIT)
        fill_lanes(tree.edge_value[b, node], lanes, ZERO)
    fill_lanes(tree.edge_visits[b, node], lanes, ZERO)
    if parent != NONE:
        tree.child[b, parent, edge] = node
    return node


@inlined
def update_edge_stats(tree: Tree, b: int, node: int, discount: float) -> None:
    """Tell the edge into `node` its visits and its Q, discounted once per bar."""
    parent, edge = as_unsigned(tree.parent[b, node]), as_unsigned(tree.edge[b, node])
    value = np.float64(tree.value[b, node])
    if tree.kind[b, node] == DECISION:
        value = np.float64(tree.reward[b, node]) + discount * value
    tree.edge_visits[b, parent, edge] = tree.visits[b, node]
    tree.edge_value[b, parent, edge] = value
