"""`MarketTree`: search over what the market may do, with exact backups over every position one could hold in it.

The market is exogenous: no action changes what it does next.  So a node is a market state alone, a row of the network
serves every action and every position in it, and an expectimax over the positions of the tree is a few additions.
Nodes are expanded with all C codes, likeliest first; one call evaluates a wave of them, for B searches in lockstep.

A node keeps the value of S positions ("slots").  The `pnl` reward forgets where a position was entered: a slot for
each side and size suffices, and the backup is exact.  `amddp` remembers the entry, so each depth opens slots of its
own: flat, the root's position, then a long and a short one for each bar ahead.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.jit import inlined, kernel
from kernels.market.position import (
    ADVERSE_EXCURSION,
    HOLD,
    NUM_POSITION_FEATURES,
    NUM_POSITION_FIELDS,
    SIDE,
    apply_fill,
    apply_move,
    is_legal,
    position_features,
)
from kernels.ort import BoundGraph, evaluate
from kernels.search.config import SearchConfig
from kernels.search.costs import ExogenousCosts, position_financing
from kernels.search.tree import NONE, REUSE_CHANCE_CHILD, REUSE_KNOWN_ARM, ReusedValue, append_one_hot

FLAT, ROOT_POSITION, FIRST_OPENED = (0, 1, 2)  # slots of `amddp`; OPENED is the first of those that the tree opens
EXPANSION_BATCH = 8  # nodes of a search that one call expands, after the root
MAX_CALL_ROWS = 512  # of a network call: more would leave the cache


class MarketTree(NamedTuple):
    """State of B searches of at most M market nodes.  Kernels write into it; nothing ever reallocates it."""

    num_nodes: NDArray[np.int32]  # [B]       nodes in use; node 0 is the root
    num_expanded: NDArray[np.int32]  # [B]       how many of them have children
    expansion_order: NDArray[np.int32]  # [B, n]    those nodes, in the order of their expansion
    first_child: NDArray[np.int32]  # [B, M]    first of the C children, or NONE
    parent: NDArray[np.int32]  # [B, M]    NONE at the root
    depth: NDArray[np.int32]  # [B, M]    bars after the root
    reach_probability: NDArray[np.float64]  # [B, M]    discounted probability of the codes that lead here
    state: NDArray[np.float32]  # [B, M, D] what the networks remember of a node
    prior: NDArray[np.float32]  # [B, M, C] logits of the codes; their probabilities once expanded
    value: NDArray[np.float32]  # [B, M, S] network's value of a slot, then the backed-up one
    position: NDArray[np.float32]  # [B, M, S, RAW] position of a slot; S = 0 under the `pnl` reward
    root_position: NDArray[np.float32]  # [B, RAW]  position of the root
    side: NDArray[np.float32]  # [B, S]    side of each slot
    q: NDArray[np.float64]  # [B, A]    value of each root action, R
    queue: NDArray[np.int32]  # [B * WAVE, 2] search and node of what is about to be expanded
    next_value: NDArray[np.float64]  # [S]       scratch of a backup
    afterstate_position: NDArray[np.float32]  # [RAW]     scratch: the afterstate of an entry


def num_hypotheses(actions: int, horizon: int, memoryless: bool) -> int:
    """S: slots of a node."""
    return actions - 1 if memoryless else FIRST_OPENED + horizon * (actions - 2)


def new_market_tree(
    searches: int, expansions: int, actions: int, codes: int, state: int, horizon: int, memoryless: bool
) -> MarketTree:
    """Room for `searches` trees of `expansions` expansions, at most `horizon` bars deep."""
    B, M, C, D = searches, 1 + expansions * codes, codes, state
    S = num_hypotheses(actions, horizon, memoryless)
    return MarketTree(
        num_nodes=np.zeros(B, np.int32),
        num_expanded=np.zeros(B, np.int32),
        expansion_order=np.zeros((B, expansions), np.int32),
        first_child=np.full((B, M), NONE, np.int32),
        parent=np.full((B, M), NONE, np.int32),
        depth=np.zeros((B, M), np.int32),
        reach_probability=np.zeros((B, M)),
        state=np.zeros((B, M, D), np.float32),
        prior=np.zeros((B, M, C), np.float32),
        value=np.zeros((B, M, S), np.float32),
        position=np.zeros((B, M, 0 if memoryless else S, NUM_POSITION_FIELDS), np.float32),
        root_position=np.zeros((B, NUM_POSITION_FIELDS), np.float32),
        side=np.zeros((B, S), np.float32),
        q=np.zeros((B, actions)),
        queue=np.zeros((B * EXPANSION_BATCH, 2), np.int32),
        next_value=np.zeros(S),
        afterstate_position=np.zeros(NUM_POSITION_FIELDS, np.float32),
    )


@inlined
def next_hypothesis(slot: int, action: int, depth: int, actions: int, memoryless: bool) -> int:
    """Slot that `action`, taken `depth` bars after the root, leads to."""
    if action == HOLD:
        return slot
    if action == actions - 1:  # CLOSE
        return FLAT
    return action if memoryless else FIRST_OPENED + depth * (actions - 2) + action - 1


@inlined
def root_hypothesis(tree: MarketTree, costs: ExogenousCosts, b: int) -> int:
    """Slot of the root's position."""
    side, slot = tree.root_position[b, SIDE], FLAT
    if side != 0 and tree.position.shape[2] > 0:
        return ROOT_POSITION
    for action in range(1, tree.q.shape[1] - 1):
        if costs.action_target[b, action] == side:
            slot = action
    return slot


@inlined
def hypotheses_at_depth(depth: int, actions: int, slots: int, memoryless: bool) -> int:
    """Slots that mean something `depth` bars after the root."""
    return slots if memoryless else FIRST_OPENED + depth * (actions - 2)


@inlined
def init_market_root(
    tree: MarketTree, costs: ExogenousCosts, b: int, state: NDArray[np.float32], logits: NDArray[np.float32]
) -> None:
    """Start tree b at a root with this state and these logits of its codes; tree.root[b] is the caller's."""
    A, S, memoryless = tree.q.shape[1], tree.side.shape[1], tree.position.shape[2] == 0
    tree.num_nodes[b], tree.num_expanded[b] = 1, 0
    tree.first_child[b, 0], tree.parent[b, 0] = NONE, NONE
    tree.depth[b, 0], tree.reach_probability[b, 0] = 0, 1.0
    for d in range(tree.state.shape[2]):
        tree.state[b, 0, d] = state[d]
    for c in range(tree.prior.shape[2]):
        tree.prior[b, 0, c] = logits[c]
    for s in range(S):
        tree.side[b, s] = 0.0
    for action in range(1, A - 1):
        for s in range(action if memoryless else FIRST_OPENED + action - 1, S, A - 1 if memoryless else A - 2):
            tree.side[b, s] = costs.action_target[b, action]
    if not memoryless:
        tree.side[b, ROOT_POSITION] = tree.root_position[b, SIDE]
        for s in range(FIRST_OPENED):
            for i in range(NUM_POSITION_FIELDS):
                tree.position[b, 0, s, i] = tree.root_position[b, i] if s == ROOT_POSITION else 0.0


@inlined
def softmax(prior: NDArray[np.float32]) -> None:
    """Logits of the codes [C] become their probabilities."""
    highest = prior[0]
    for c in range(1, prior.shape[0]):
        highest = max(highest, prior[c])
    total = 0.0
    for c in range(prior.shape[0]):
        total += math.exp(prior[c] - highest)
    for c in range(prior.shape[0]):
        prior[c] = math.exp(prior[c] - highest) / total


@inlined
def most_reachable(tree: MarketTree, b: int, horizon: int) -> int:
    """The node without children that the market most likely comes to, or NONE; chosen nodes have child 0."""
    best, best_reach = NONE, 0.0
    for node in range(tree.num_nodes[b]):
        if (
            tree.first_child[b, node] == NONE
            and tree.depth[b, node] < horizon
            and tree.reach_probability[b, node] > best_reach
        ):
            best, best_reach = node, tree.reach_probability[b, node]
    return best


@inlined
def enqueue_batch(tree: MarketTree, config: SearchConfig, horizon: int) -> int:
    """Queue the next nodes of every search; how many in all."""
    count = 0
    for b in range(tree.num_nodes.shape[0]):
        left = config.num_simulations - tree.num_expanded[b]
        for _ in range(1 if tree.num_expanded[b] == 0 else min(EXPANSION_BATCH, left)):
            node = most_reachable(tree, b, horizon)
            if node == NONE:
                break
            tree.first_child[b, node] = 0  # no longer a leaf; `add_children` names the child
            tree.queue[count, 0], tree.queue[count, 1] = b, node
            count += 1
    return count


@inlined
def move_hypotheses(tree: MarketTree, costs: ExogenousCosts, b: int, node: int, child: int, code: int) -> None:
    """Positions of the slots of `child`: those of `node` one bar later, and those that could be opened there."""
    A, depth = tree.q.shape[1], tree.depth[b, node]
    move = costs.move[b, code]
    old = FIRST_OPENED + depth * (A - 2)
    for s in range(old):
        apply_move(tree.position[b, child, s], tree.position[b, node, s], move)
    for action in range(1, A - 1):
        s = old + action - 1
        apply_fill(
            tree.afterstate_position, tree.position[b, node, FLAT], costs.action_target[b, action], costs.entry_cost[b]
        )
        apply_move(tree.position[b, child, s], tree.afterstate_position, move)


@inlined
def write_market_states(x: NDArray[np.float32], tree: MarketTree, b: int, node: int, stop: int) -> None:
    """Write the states of a node and of those before it at x[:stop], newest first; before the root they are zero."""
    D = tree.state.shape[2]
    for d in range(D):
        x[d] = tree.state[b, node, d]
    for first in range(D, stop, D):
        node = NONE if node == NONE else tree.parent[b, node]
        for d in range(D):
            x[first + d] = 0.0 if node == NONE else tree.state[b, node, d]


@inlined
def add_children(
    x: NDArray[np.float32], tree: MarketTree, costs: ExogenousCosts, config: SearchConfig, b: int, node: int
) -> None:
    """Add the C children of a node and write their network rows x [C, I]."""
    C, A = tree.prior.shape[2], tree.q.shape[1]
    states = x.shape[1] - C - tree.position.shape[2] * NUM_POSITION_FEATURES
    softmax(tree.prior[b, node])
    first, depth = tree.num_nodes[b], tree.depth[b, node] + 1
    tree.first_child[b, node] = first
    tree.expansion_order[b, tree.num_expanded[b]] = node
    tree.num_nodes[b] += C
    tree.num_expanded[b] += 1
    for c in range(C):
        child = first + c
        tree.first_child[b, child], tree.parent[b, child], tree.depth[b, child] = NONE, node, depth
        tree.reach_probability[b, child] = tree.reach_probability[b, node] * config.discount * tree.prior[b, node, c]
        write_market_states(x[c], tree, b, node, states)
        append_one_hot(x[c], states, C, c)
        if tree.position.shape[2] > 0:
            move_hypotheses(tree, costs, b, node, child, c)
            for s in range(FIRST_OPENED + depth * (A - 2)):
                position_features(x[c, states + C + s * NUM_POSITION_FEATURES :], tree.position[b, child, s], False)


@inlined
def read_children(tree: MarketTree, y: NDArray[np.float32], b: int, node: int) -> None:
    """Take state, logits of the codes and values of a node's children from their network rows y [C, O]."""
    C, D, S = tree.prior.shape[2], tree.state.shape[2], tree.value.shape[2]
    for c in range(C):
        child = tree.first_child[b, node] + c
        for d in range(D):
            tree.state[b, child, d] = y[c, d]
        for i in range(C):
            tree.prior[b, child, i] = y[c, D + i]
        for s in range(S):
            tree.value[b, child, s] = y[c, D + C + s]


@inlined
def expand_batch(tree: MarketTree, graph: BoundGraph, costs: ExogenousCosts, config: SearchConfig, count: int) -> int:
    """Evaluate and add the children of the `count` queued nodes; 0 or the status of a failed network call."""
    C = tree.prior.shape[2]
    most = max(1, graph.x.shape[0] // C)
    first = 0
    while first < count:
        stop = min(first + most, count)
        for i in range(first, stop):
            row = (i - first) * C
            add_children(graph.x[row : row + C], tree, costs, config, tree.queue[i, 0], tree.queue[i, 1])
        status = evaluate(graph, (stop - first) * C)
        if status != 0:
            return status
        for i in range(first, stop):
            row = (i - first) * C
            read_children(tree, graph.y[row : row + C], tree.queue[i, 0], tree.queue[i, 1])
        first = stop
    return 0


@inlined
def fill_next_value(tree: MarketTree, config: SearchConfig, b: int, node: int) -> None:
    """tree.ahead[s]: expected value one bar after `node` of the position that is then in slot s."""
    C, A, S = tree.prior.shape[2], tree.q.shape[1], tree.value.shape[2]
    memoryless = tree.position.shape[2] == 0
    first = tree.first_child[b, node]
    slots = hypotheses_at_depth(tree.depth[b, node] + 1, A, S, memoryless)
    for s in range(slots):
        tree.next_value[s] = 0.0
    for c in range(C):
        child, p = first + c, np.float64(tree.prior[b, node, c])
        for s in range(slots):
            worth = config.discount * np.float64(tree.value[b, child, s])
            if not memoryless:
                worth -= config.mae_penalty * np.float64(tree.position[b, child, s, ADVERSE_EXCURSION])
            tree.next_value[s] += p * worth


@inlined
def expected_move(tree: MarketTree, costs: ExogenousCosts, b: int, node: int) -> float:
    """Mean move of the bar after `node`, R."""
    total = 0.0
    for c in range(tree.prior.shape[2]):
        total += np.float64(tree.prior[b, node, c]) * np.float64(costs.move[b, c])
    return total


@inlined
def action_value(
    tree: MarketTree, costs: ExogenousCosts, b: int, node: int, slot: int, action: int, mean_move: float
) -> float:
    """Q of `action` with the position of `slot` at `node`, whose `next_value` has been found."""
    A, memoryless = tree.q.shape[1], tree.position.shape[2] == 0
    depth, side = tree.depth[b, node], np.float64(tree.side[b, slot])
    target = side if action == HOLD else np.float64(costs.action_target[b, action])
    worth = tree.next_value[next_hypothesis(slot, action, depth, A, memoryless)]
    worth += target * mean_move + position_financing(costs, b, depth, target)
    if target != side:
        worth -= abs(side) * np.float64(costs.exit_cost[b])
        worth -= abs(target) * np.float64(costs.entry_cost[b])
    return float(worth)


@inlined
def best_value(
    tree: MarketTree, costs: ExogenousCosts, config: SearchConfig, b: int, node: int, slot: int, mean_move: float
) -> float:
    """Value of the best legal action with the position of `slot` at `node`."""
    best = -np.inf
    for action in range(tree.q.shape[1]):
        if is_legal(tree.side[b, slot], action, tree.q.shape[1], config.reverse):
            best = max(best, action_value(tree, costs, b, node, slot, action, mean_move))
    return best


@inlined
def backward_market(tree: MarketTree, costs: ExogenousCosts, config: SearchConfig, reused: ReusedValue, b: int) -> None:
    """Exact values of every slot of every expanded node, children first, and Q of the root's actions."""
    A, S, memoryless = tree.q.shape[1], tree.value.shape[2], tree.position.shape[2] == 0
    held = root_hypothesis(tree, costs, b)
    known_node, known_slot = NONE, NONE
    if reused.action[b] != NONE and config.value_reuse == REUSE_CHANCE_CHILD:
        known_node = tree.first_child[b, 0] + reused.code[b]
        known_slot = next_hypothesis(held, reused.action[b], 0, A, memoryless)
        tree.value[b, known_node, known_slot] = reused.value[b]
    for i in range(tree.num_expanded[b] - 1, 0, -1):
        node = tree.expansion_order[b, i]
        fill_next_value(tree, config, b, node)
        mean_move = expected_move(tree, costs, b, node)
        for slot in range(hypotheses_at_depth(tree.depth[b, node], A, S, memoryless)):
            if node != known_node or slot != known_slot:
                tree.value[b, node, slot] = best_value(tree, costs, config, b, node, slot, mean_move)
    fill_next_value(tree, config, b, 0)
    mean_move = expected_move(tree, costs, b, 0)
    for action in range(A):
        tree.q[b, action] = -np.inf
        if is_legal(tree.root_position[b, SIDE], action, A, config.reverse):
            tree.q[b, action] = action_value(tree, costs, b, 0, held, action, mean_move)
    if reused.action[b] != NONE and config.value_reuse == REUSE_KNOWN_ARM:
        tree.q[b, reused.action[b]] = reused.reward[b] + config.discount * np.float64(reused.value[b])


@kernel
def run_market_simulations(
    tree: MarketTree, graph: BoundGraph, costs: ExogenousCosts, config: SearchConfig, reused: ReusedValue
) -> int:
    """Expand config.simulations nodes of every search and back up; 0 or the status of a failed network call."""
    horizon = costs.financing.shape[1]
    while True:
        count = enqueue_batch(tree, config, horizon)
        if count == 0:
            break
        status = expand_batch(tree, graph, costs, config, count)
        if status != 0:
            return status
    for b in range(tree.num_nodes.shape[0]):
        backward_market(tree, costs, config, reused, b)
    return 0
