"""`Tree`: B searches in flat arrays.  Decision nodes alternate with chance nodes (afterstates).

Node 0 is the root.  The edges of a decision node are actions, those of a chance node are chance codes.  The edge into a
chance node has no reward and no discount; the edge into a decision node is one bar.  Data of the edges of a node that a
simulation reads lie in rows of W lanes (kernels.simd); a decision node uses the first A of them.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.jit import inlined
from kernels.simd import LANES_4, Scalar, exponential, load_4, padded, reduce_add, reduce_max, select, store

NONE = -1
DECISION, CHANCE = 0, 1
REUSE_OFF, REUSE_CHANCE_CHILD, REUSE_KNOWN_ARM = range(3)  # see `ReusedValue`
VALUE_REUSES = ("off", "chance_child", "known_arm")  # names of the three, in their order
MASKED_LOGIT = np.float32(-1e30)  # logit of an illegal action: finite, so that a softmax over it stays finite
MIN_LEGAL_LOGIT = np.float32(-1e29)  # logits above it are those of legal actions
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
    edge_value: NDArray[np.float32]  # [B, N, W] Q of each edge: its reward and the discounted value behind it
    prior: NDArray[np.float32]  # [B, N, W] logits of actions, MASKED_LOGIT where illegal; probabilities of chance codes
    policy: NDArray[np.float32]  # [B, N, W] softmax of the logits of a decision node
    visits: NDArray[np.int32]  # [B, N]    simulations that passed through or ended here
    raw_value: NDArray[np.float32]  # [B, N]    the network's value
    value: NDArray[np.float32]  # [B, N]    backed-up value
    reward: NDArray[np.float32]  # [B, N]    of the bar that leads here; at a chance node, the part before its move
    state: NDArray[np.float32]  # [B, N, S] what the networks remember of a node
    preactivation_row: NDArray[np.int32]  # [B, N]    row of `dynamics_preactivation` of an afterstate, NONE elsewhere
    preactivation_rows: NDArray[np.int32]  # [B]       rows of `dynamics_preactivation` in use
    # [B, rows, preactivation] output `preactivation` of the network `afterstate`, a row for each expanded decision
    dynamics_preactivation: NDArray[np.float32]
    position: NDArray[np.float32]  # [B, N, NUM_POSITION_FIELDS] exact position; [B, N, 0] of a game
    leaf: NDArray[np.int32]  # [B]       node that the running simulation expands, then the node that it added
    leaf_edge: NDArray[np.int32]  # [B]       edge that it expands, NONE where no network is called
    leaf_bars: NDArray[np.int32]  # [B]       bars from the root to the node that it expands
    reused_node: NDArray[np.int32]  # [B]       node that has a `ReusedValue`, or NONE
    network_rows: NDArray[np.int32]  # [B]       network rows of the search, the root's included
    depth: NDArray[np.int32]  # [B]       edges on the longest path
    noise: NDArray[np.float32]  # [B, A]    Gumbel or Dirichlet noise of the root's actions
    score: NDArray[np.float32]  # [B, A rounded up to whole vectors] scratch of a selection


class ReusedValue(NamedTuple):
    """What happened after B roots, and the value that a later search gave the next state (ReZero, Xuan et al. 2024).

    REUSE_CHANCE_CHILD puts that value behind the realised code of the realised action, where it weighs as much as the
    code is probable: an unbiased estimate.  REUSE_KNOWN_ARM, the published form, makes it the value of the action.
    """

    action: NDArray[np.int32]  # [B] realised action; NONE: there is no value to reuse
    code: NDArray[np.int32]  # [B] realised chance code
    reward: NDArray[np.float32]  # [B] reward of that bar, R
    value: NDArray[np.float32]  # [B] value of the state after that bar, R


def new_reused_value(roots: int) -> ReusedValue:
    """No value to reuse at any of `roots` roots."""
    none = np.full(roots, NONE, np.int32)
    return ReusedValue(none, none.copy(), np.zeros(roots, np.float32), np.zeros(roots, np.float32))


def new_tree(
    searches: int,
    nodes: int,
    actions: int,
    codes: int,
    state: int,
    position_fields: int,
    preactivation_shape: tuple[int, int] = (0, 0),
) -> Tree:
    """B = `searches` trees of N = `nodes` nodes; [rows, width] `preactivation_shape` of `dynamics_preactivation`.

    Raises ValueError where a size is too small for a tree.
    """
    B, N, E = searches, nodes, max(actions, codes)
    if min(B, N, actions) < 1 or min(codes, state, position_fields, *preactivation_shape) < 0:
        raise ValueError(f"a tree of {B} searches, {N} nodes, {actions} actions, {codes} codes, states of {state}")
    W = padded(E)
    rows = ("edge_visits", "edge_value", "policy", "prior")
    floats, integers = ("raw_value", "value", "reward"), ("visits", "kind", "parent", "edge", "preactivation_row")
    width = len(rows) * W + E + len(floats) + len(integers)
    # all fields of a node lie together: a simulation waits for memory
    record = cache_aligned(B, N, -(-width // CACHE_LINE) * CACHE_LINE)
    columns = record.view(np.int32)
    fields: dict[str, NDArray[Any]] = {name: record[..., i * W : (i + 1) * W] for i, name in enumerate(rows)}
    first = len(rows) * W
    fields |= {name: record[..., first + i] for i, name in enumerate(floats)}
    first += len(floats)
    fields |= {name: columns[..., first + i] for i, name in enumerate(integers)}
    first += len(integers)
    return Tree(
        num_nodes=np.zeros(B, np.int32),
        child=columns[..., first : first + E],
        **fields,
        state=np.zeros((B, N, state), np.float32),
        preactivation_rows=np.zeros(B, np.int32),
        # the first rows of all trees lie together: most searches use no more
        dynamics_preactivation=cache_aligned(preactivation_shape[0], B, preactivation_shape[1]).transpose(1, 0, 2),
        position=np.zeros((B, N, position_fields), np.float32),
        leaf=np.zeros(B, np.int32),
        leaf_edge=np.zeros(B, np.int32),
        leaf_bars=np.zeros(B, np.int32),
        reused_node=np.full(B, NONE, np.int32),
        network_rows=np.zeros(B, np.int32),
        depth=np.zeros(B, np.int32),
        noise=np.zeros((B, actions), np.float32),
        score=np.zeros((B, padded(actions)), np.float32),
    )


def cache_aligned(*shape: int) -> NDArray[np.float32]:
    """Zeros that begin at a line of the cache, with room for a line behind them."""
    flat = np.zeros(math.prod(shape) + 2 * CACHE_LINE, np.float32)
    first = -flat.ctypes.data // flat.itemsize % CACHE_LINE
    return flat[first : first + math.prod(shape)].reshape(shape)


@inlined
def as_unsigned(i: int) -> int:
    """i >= 0 as an unsigned integer: the compiler emits no check for a negative index."""
    return np.uint32(i)  # type: ignore[return-value]


@inlined
def fill_lanes(row: NDArray[np.float32], lanes: int, number: Scalar) -> None:
    """row[:lanes] = number."""
    for i in range(lanes):
        row[i] = number


@inlined
def append_one_hot(x: NDArray[np.float32], first: int, width: int, hot: int) -> int:
    """Write a one-hot of `width` columns at x[first:]; the column behind it."""
    fill_lanes(x[first:], width, ZERO)
    x[first + hot] = 1.0
    return first + width


@inlined
def masked_softmax(out: NDArray[np.float32], logits: NDArray[np.float32], width: int) -> None:
    """out[:width] = softmax of the logits above MIN_LEGAL_LOGIT, 0 elsewhere; `out` may be `logits`."""
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
def softmax(z: NDArray[Any]) -> None:
    """Softmax in place of a row of any length; `masked_softmax` is the one for rows of whole vectors."""
    highest = z[0]
    for i in range(1, z.shape[0]):
        highest = max(highest, z[i])
    mass = 0.0
    for i in range(z.shape[0]):
        z[i] = math.exp(z[i] - highest)
        mass += z[i]
    for i in range(z.shape[0]):
        z[i] /= mass


@inlined
def add_node(tree: Tree, b: int, kind: int, parent: int, edge: int) -> int:
    """Append an empty node at the end of `edge` of `parent`; its index."""
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
    """Copy visits and Q of `node` into the rows of its parent: its value, after a bar reward + discount value."""
    parent, edge = as_unsigned(tree.parent[b, node]), as_unsigned(tree.edge[b, node])
    value = np.float64(tree.value[b, node])
    if tree.kind[b, node] == DECISION:
        value = np.float64(tree.reward[b, node]) + discount * value
    tree.edge_visits[b, parent, edge] = tree.visits[b, node]
    tree.edge_value[b, parent, edge] = value


@inlined
def init_root(tree: Tree, b: int, state: NDArray[np.float32], logits: NDArray[np.float32], value: float) -> None:
    """Start tree b at a root with this state [S], policy logits [A] and value.

    The caller sets the root's position and masks its illegal actions.
    """
    tree.num_nodes[b], tree.preactivation_rows[b], tree.reused_node[b] = 0, 0, NONE
    tree.network_rows[b], tree.depth[b] = 1, 0
    root = add_node(tree, b, DECISION, NONE, NONE)
    # loops: the assignment of a slice compiles for seconds and runs no faster
    for i in range(state.shape[0]):
        tree.state[b, root, i] = state[i]
    tree.visits[b, root] = 1
    tree.raw_value[b, root] = value
    tree.value[b, root] = value
    for a in range(logits.shape[0]):
        tree.prior[b, root, a] = logits[a]
