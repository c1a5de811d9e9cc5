"""`Tree`: B searches in flat arrays.  Decision nodes alternate with chance nodes (afterstates).

Node 0 is the root.  The edges of a decision node are actions, those of a chance node chance codes; the edge into a
chance node pays nothing and is not discounted, the edge into a decision node is one bar.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels._jit import inlined

NONE = -1
DECISION, CHANCE = 0, 1
NOTHING, CHANCE_CHILD, KNOWN_ARM = 0, 1, 2  # what a search takes over from the one a bar later: `Known`
REUSES = ("off", "chance_child", "known_arm")
MASKED = np.float32(-1e30)  # logit of an illegal action: finite, so that a softmax over it stays finite


class Tree(NamedTuple):
    """State of B searches of at most N nodes.  Kernels write into it; nothing ever reallocates it."""

    used: NDArray[np.int32]  # [B]       nodes in use
    kind: NDArray[np.int8]  # [B, N]    DECISION or CHANCE
    parent: NDArray[np.int32]  # [B, N]    NONE at the root
    edge: NDArray[np.int32]  # [B, N]    edge of the parent that leads here
    child: NDArray[np.int32]  # [B, N, W] node at the end of each edge, or NONE
    prior: NDArray[np.float32]  # [B, N, W] logits of actions; probabilities of chance codes
    policy: NDArray[np.float64]  # [B, N, A] softmax of the logits of a decision node
    visits: NDArray[np.int32]  # [B, N]    simulations that passed through or ended here
    raw_value: NDArray[np.float32]  # [B, N]    the network's own value
    value: NDArray[np.float32]  # [B, N]    backed-up value
    reward: NDArray[np.float32]  # [B, N]    reward of the edge that leads here
    state: NDArray[np.float32]  # [B, N, D] what the networks remember of a node
    position: NDArray[np.float32]  # [B, N, RAW] exact position, or RAW = 0 outside forex
    legal: NDArray[np.bool_]  # [B, N, A] actions a decision node may take
    leaf: NDArray[np.int32]  # [B]       node the running simulation expands, then the node it added
    leaf_edge: NDArray[np.int32]  # [B]       edge it expands, NONE where nothing is to be evaluated
    known: NDArray[np.int32]  # [B]       node whose value is `Known`, or NONE
    rows: NDArray[np.int32]  # [B]       network rows of the search, the root's included
    depth: NDArray[np.int32]  # [B]       edges on its longest path
    noise: NDArray[np.float32]  # [B, A]    Gumbel noise of the root
    score: NDArray[np.float64]  # [B, A]    scratch of a selection


class Known(NamedTuple):
    """What happened after B roots and what the next state turned out to be worth (ReZero, Xuan et al. 2024).

    CHANCE_CHILD puts the value where it belongs, behind the realised code of the realised action, whose weight in the
    root is the probability of that code: unbiased.  KNOWN_ARM, the published form, lets it stand for the action.
    """

    action: NDArray[np.int32]  # [B] taken, or NONE: nothing is known
    code: NDArray[np.int32]  # [B] chance code that came
    reward: NDArray[np.float32]  # [B] of that bar, R
    value: NDArray[np.float32]  # [B] of the state it led to, R


def new_known(roots: int) -> Known:
    """Nothing known of `roots` roots."""
    none = np.full(roots, NONE, np.int32)
    return Known(none, none.copy(), np.zeros(roots, np.float32), np.zeros(roots, np.float32))


def new_tree(searches: int, nodes: int, actions: int, codes: int, state: int, raw_position: int) -> Tree:
    """Room for `searches` trees of `nodes` nodes each."""
    B, N, W = searches, nodes, max(actions, codes)
    return Tree(
        used=np.zeros(B, np.int32),
        kind=np.zeros((B, N), np.int8),
        parent=np.full((B, N), NONE, np.int32),
        edge=np.full((B, N), NONE, np.int32),
        child=np.full((B, N, W), NONE, np.int32),
        prior=np.zeros((B, N, W), np.float32),
        policy=np.zeros((B, N, actions)),
        visits=np.zeros((B, N), np.int32),
        raw_value=np.zeros((B, N), np.float32),
        value=np.zeros((B, N), np.float32),
        reward=np.zeros((B, N), np.float32),
        state=np.zeros((B, N, state), np.float32),
        position=np.zeros((B, N, raw_position), np.float32),
        legal=np.ones((B, N, actions), np.bool_),
        leaf=np.zeros(B, np.int32),
        leaf_edge=np.zeros(B, np.int32),
        known=np.full(B, NONE, np.int32),
        rows=np.zeros(B, np.int32),
        depth=np.zeros(B, np.int32),
        noise=np.zeros((B, actions), np.float32),
        score=np.zeros((B, actions)),
    )


@inlined
def add_node(tree: Tree, b: int, kind: int, parent: int, edge: int) -> int:
    """Append an empty node behind `edge` of `parent`; its number."""
    node = int(tree.used[b])
    tree.used[b] = node + 1
    tree.kind[b, node] = kind
    tree.parent[b, node] = parent
    tree.edge[b, node] = edge
    tree.visits[b, node] = 0
    tree.reward[b, node] = 0.0
    for a in range(tree.legal.shape[2]):
        tree.legal[b, node, a] = True
    for w in range(tree.child.shape[2]):
        tree.child[b, node, w] = NONE
    if parent != NONE:
        tree.child[b, parent, edge] = node
    return node


@inlined
def edge_value(tree: Tree, b: int, child: int, discount: float) -> float:
    """Q of the edge into `child`: its reward and the value behind it, discounted once per bar."""
    if tree.kind[b, child] == CHANCE:
        return np.float64(tree.value[b, child])
    return np.float64(tree.reward[b, child]) + discount * np.float64(tree.value[b, child])
