"""`MarketTree`: search over the moves of the market, with exact backups for every position one could hold.

The market is exogenous: no action changes its next move.  So a node is a state of the market alone.  One network row
serves every action and every position in a node, and an expectimax over positions is a few additions.  A node is
expanded with all C codes, the most reachable node first; one network call expands a batch of nodes of B searches.

A node has a value for each of M position hypotheses, the positions one could hold in it.  The `pnl` reward forgets the
entry of a position ("memoryless"): a hypothesis for each signed size suffices and the backup is exact.  `amddp`
remembers the entry: the hypotheses are flat, the root's position, and an entry of every signed size at every depth.
"""

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
from kernels.search.costs import ExogenousCosts, reward_without_move
from kernels.search.tree import NONE, REUSE_CHANCE_CHILD, REUSE_KNOWN_ARM, ReusedValue, append_one_hot, softmax

FLAT, ROOT_POSITION, FIRST_OPENED = range(3)  # hypotheses of `amddp`; from FIRST_OPENED on: entries inside the tree
MAX_MARKET_DEPTH = 4  # bars from the root to the deepest node
EXPANSION_BATCH = 8  # nodes of a search that one call expands, after the root
MAX_CALL_ROWS = 512  # of a network call: more would leave the cache


class MarketTree(NamedTuple):
    """State of B searches of at most N market nodes.  Kernels write into it; nothing ever reallocates it."""

    num_nodes: NDArray[np.int32]  # [B]       nodes in use; node 0 is the root
    num_expanded: NDArray[np.int32]  # [B]       nodes that have children
    expansion_order: NDArray[np.int32]  # [B, expansions] expanded nodes, the first one first
    first_child: NDArray[np.int32]  # [B, N]    first of the C children, or NONE
    parent: NDArray[np.int32]  # [B, N]    NONE at the root
    depth: NDArray[np.int32]  # [B, N]    bars after the root
    reach_probability: NDArray[np.float64]  # [B, N]    discounted probability of the codes that lead here
    state: NDArray[np.float32]  # [B, N, S] what the networks remember of a node
    prior: NDArray[np.float32]  # [B, N, C] logits of the codes; their probabilities once expanded
    value: NDArray[np.float32]  # [B, N, M] value of a hypothesis: the network's, then the backed-up one
    position: NDArray[np.float32]  # [B, N, M, NUM_POSITION_FIELDS] of a hypothesis; [B, N, 0, ..] where memoryless
    root_position: NDArray[np.float32]  # [B, NUM_POSITION_FIELDS] position of the root
    side: NDArray[np.float32]  # [B, M]    signed size of each hypothesis
    q: NDArray[np.float64]  # [B, M, A] value of each action of a hypothesis at the root, R; -inf where illegal
    queue: NDArray[np.int32]  # [B EXPANSION_BATCH, 2] search and node of the running expansions
    next_value: NDArray[np.float64]  # [B, M]    expected discounted value of a hypothesis one bar after the root
    afterstate_position: NDArray[np.float32]  # [NUM_POSITION_FIELDS] scratch: position after an entry


def num_hypotheses(actions: int, depth: int, memoryless: bool) -> int:
    """M: hypotheses of a node of a tree that is `depth` bars deep."""
    return actions - 1 if memoryless else FIRST_OPENED + depth * (actions - 2)


def num_network_values(actions: int, config: SearchConfig) -> int:
    """Hypotheses that the network `market` values: all, or flat and the largest position of each side."""
    memoryless = config.mae_penalty == 0
    return 3 if memoryless and config.linear_values else num_hypotheses(actions, MAX_MARKET_DEPTH, memoryless)


def new_market_tree(
    searches: int, expansions: int, actions: int, codes: int, state: int, depth: int, memoryless: bool
) -> MarketTree:
    """B = `searches` trees of `expansions` expansions, at most `depth` bars deep.

    Raises ValueError where a size is too small for a tree.
    """
    B, N, C, S = searches, 1 + expansions * codes, codes, state
    M = num_hypotheses(actions, depth, memoryless)
    if min(B, expansions, codes, depth) < 1 or actions < 3 or state < 0:
        raise ValueError(f"a market tree of {B} searches, {expansions} expansions, {actions} actions, {codes} codes")
    return MarketTree(
        num_nodes=np.zeros(B, np.int32),
        num_expanded=np.zeros(B, np.int32),
        expansion_order=np.zeros((B, expansions), np.int32),
        first_child=np.full((B, N), NONE, np.int32),
        parent=np.full((B, N), NONE, np.int32),
        depth=np.zeros((B, N), np.int32),
        reach_probability=np.zeros((B, N)),
        state=np.zeros((B, N, S), np.float32),
        prior=np.zeros((B, N, C), np.float32),
        value=np.zeros((B, N, M), np.float32),
        position=np.zeros((B, N, 0 if memoryless else M, NUM_POSITION_FIELDS), np.float32),
        root_position=np.zeros((B, NUM_POSITION_FIELDS), np.float32),
        side=np.zeros((B, M), np.float32),
        q=np.full((B, M, actions), -np.inf),
        queue=np.zeros((B * EXPANSION_BATCH, 2), np.int32),
        next_value=np.zeros((B, M)),
        afterstate_position=np.zeros(NUM_POSITION_FIELDS, np.float32),
    )


@inlined
def next_hypothesis(hypothesis: int, action: int, depth: int, actions: int, memoryless: bool) -> int:
    """Hypothesis after `action`, taken `depth` bars after the root with the position of `hypothesis`."""
    if action == HOLD:
        return hypothesis
    if action == actions - 1:  # CLOSE
        return FLAT
    return action if memoryless else FIRST_OPENED + depth * (actions - 2) + action - 1


@inlined
def root_hypothesis(tree: MarketTree, costs: ExogenousCosts, b: int) -> int:
    """Hypothesis of the root's position."""
    side, hypothesis = tree.root_position[b, SIDE], FLAT
    if side != 0 and tree.position.shape[2] > 0:
        return ROOT_POSITION
    for action in range(1, tree.q.shape[2] - 1):
        if costs.action_target[b, action] == side:
            hypothesis = action
    return hypothesis


@inlined
def hypotheses_at_depth(depth: int, actions: int, hypotheses: int, memoryless: bool) -> int:
    """Hypotheses that one can hold `depth` bars after the root, the first of all `hypotheses`."""
    return hypotheses if memoryless else FIRST_OPENED + depth * (actions - 2)


@inlined
def init_market_root(
    tree: MarketTree, costs: ExogenousCosts, b: int, state: NDArray[np.float32], logits: NDArray[np.float32]
) -> None:
    """Start tree b at a root with this state [S] and code logits [C]; the caller has set tree.root_position[b]."""
    A, M, memoryless = tree.q.shape[2], tree.side.shape[1], tree.position.shape[2] == 0
    tree.num_nodes[b], tree.num_expanded[b] = 1, 0
    tree.first_child[b, 0], tree.parent[b, 0] = NONE, NONE
    tree.depth[b, 0], tree.reach_probability[b, 0] = 0, 1.0
    for i in range(tree.state.shape[2]):
        tree.state[b, 0, i] = state[i]
    for c in range(tree.prior.shape[2]):
        tree.prior[b, 0, c] = logits[c]
    for m in range(M):
        tree.side[b, m] = 0.0
    for action in range(1, A - 1):
        for m in range(action if memoryless else FIRST_OPENED + action - 1, M, A - 1 if memoryless else A - 2):
            tree.side[b, m] = costs.action_target[b, action]
    if not memoryless:
        tree.side[b, ROOT_POSITION] = tree.root_position[b, SIDE]
        for m in range(FIRST_OPENED):
            for i in range(NUM_POSITION_FIELDS):
                tree.position[b, 0, m, i] = tree.root_position[b, i] if m == ROOT_POSITION else 0.0


@inlined
def most_reachable(tree: MarketTree, b: int, max_depth: int) -> int:
    """The most probably reached node that has no children and is less than `max_depth` bars deep, or NONE."""
    best, best_reach = NONE, 0.0
    for node in range(tree.num_nodes[b]):
        if (
            tree.first_child[b, node] == NONE
            and tree.depth[b, node] < max_depth
            and tree.reach_probability[b, node] > best_reach
        ):
            best, best_reach = node, tree.reach_probability[b, node]
    return best


@inlined
def enqueue_batch(tree: MarketTree, config: SearchConfig, max_depth: int) -> int:
    """Queue the nodes that every search expands next, the root alone or up to EXPANSION_BATCH; their number."""
    count = 0
    for b in range(tree.num_nodes.shape[0]):
        left = config.num_simulations - tree.num_expanded[b]
        for _ in range(1 if tree.num_expanded[b] == 0 else min(EXPANSION_BATCH, left)):
            node = most_reachable(tree, b, max_depth)
            if node == NONE:
                break
            # no longer a leaf for `most_reachable`; `add_children` writes the child
            tree.first_child[b, node] = 0
            tree.queue[count, 0], tree.queue[count, 1] = b, node
            count += 1
    return count


@inlined
def move_hypotheses(tree: MarketTree, costs: ExogenousCosts, b: int, node: int, child: int, code: int) -> None:
    """Positions of the hypotheses of `child`: those of `node` one bar later, then entries at `node`."""
    A, depth = tree.q.shape[2], tree.depth[b, node]
    move = costs.move[b, code]
    old = FIRST_OPENED + depth * (A - 2)
    for m in range(old):
        apply_move(tree.position[b, child, m], tree.position[b, node, m], move)
    for action in range(1, A - 1):
        target = costs.action_target[b, action]
        apply_fill(tree.afterstate_position, tree.position[b, node, FLAT], target, costs.entry_cost[b])
        apply_move(tree.position[b, child, old + action - 1], tree.afterstate_position, move)


@inlined
def write_market_states(x: NDArray[np.float32], tree: MarketTree, b: int, node: int, stop: int) -> None:
    """x[:stop] = states [S] of a node and of its ancestors, newest first; zeros before the root."""
    S = tree.state.shape[2]
    for i in range(S):
        x[i] = tree.state[b, node, i]
    for first in range(S, stop, S):
        node = NONE if node == NONE else tree.parent[b, node]
        for i in range(S):
            x[first + i] = 0.0 if node == NONE else tree.state[b, node, i]


@inlined
def add_children(
    x: NDArray[np.float32], tree: MarketTree, costs: ExogenousCosts, config: SearchConfig, b: int, node: int
) -> None:
    """Add the C children of a node and write their rows x of the network `market`, a row each."""
    C, A = tree.prior.shape[2], tree.q.shape[2]
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
            for m in range(FIRST_OPENED + depth * (A - 2)):
                position_features(x[c, states + C + m * NUM_POSITION_FEATURES :], tree.position[b, child, m], False)


@inlined
def read_children(tree: MarketTree, y: NDArray[np.float32], b: int, node: int) -> None:
    """Read state, logits of the codes and values of the C children of a node from their network rows y, a row each.

    A row with fewer values than hypotheses has those of flat and of the largest position of each side.  Between them
    the value is linear in the size: profit and costs are, so a part of a position is best led as the whole one is.
    """
    C, S, M = tree.prior.shape[2], tree.state.shape[2], tree.value.shape[2]
    values = y.shape[1] - S - C
    for c in range(C):
        child = tree.first_child[b, node] + c
        for i in range(S):
            tree.state[b, child, i] = y[c, i]
        for i in range(C):
            tree.prior[b, child, i] = y[c, S + i]
        for m in range(M):
            if values == M:
                tree.value[b, child, m] = y[c, S + C + m]
            else:
                flat, largest = y[c, S + C], y[c, S + C + (1 if tree.side[b, m] > 0 else 2)]
                part = abs(tree.side[b, m]) / tree.side[b, M // 2]
                tree.value[b, child, m] = flat + part * (largest - flat)


@inlined
def expand_batch(tree: MarketTree, graph: BoundGraph, costs: ExogenousCosts, config: SearchConfig, count: int) -> int:
    """Add the children of the `count` queued nodes and evaluate them; 0 or the status of a failed network call."""
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
    """tree.next_value[b] = expected discounted value of every hypothesis one bar after `node`, net of the penalty."""
    C, A, M = tree.prior.shape[2], tree.q.shape[2], tree.value.shape[2]
    memoryless = tree.position.shape[2] == 0
    first = tree.first_child[b, node]
    hypotheses = hypotheses_at_depth(tree.depth[b, node] + 1, A, M, memoryless)
    for m in range(hypotheses):
        tree.next_value[b, m] = 0.0
    for c in range(C):
        child, p = first + c, np.float64(tree.prior[b, node, c])
        for m in range(hypotheses):
            value = config.discount * np.float64(tree.value[b, child, m])
            if not memoryless:
                value -= config.mae_penalty * np.float64(tree.position[b, child, m, ADVERSE_EXCURSION])
            tree.next_value[b, m] += p * value


@inlined
def move_moments(tree: MarketTree, costs: ExogenousCosts, b: int, node: int) -> tuple[float, float]:
    """Expected price move of the bar after `node`, and expected risk penalty of a full position in it, in ranges."""
    mean, penalty = 0.0, 0.0
    for c in range(tree.prior.shape[2]):
        p = np.float64(tree.prior[b, node, c])
        mean += p * np.float64(costs.move[b, c])
        penalty += p * np.float64(costs.risk_penalty[b, c])
    return mean, penalty


@inlined
def action_value(
    tree: MarketTree,
    costs: ExogenousCosts,
    b: int,
    node: int,
    hypothesis: int,
    action: int,
    moments: tuple[float, float],
) -> float:
    """Q of `action` with the position of `hypothesis` at `node`, whose `next_value` stands in the tree."""
    A, memoryless = tree.q.shape[2], tree.position.shape[2] == 0
    depth, side = tree.depth[b, node], np.float64(tree.side[b, hypothesis])
    target = side if action == HOLD else np.float64(costs.action_target[b, action])
    value = tree.next_value[b, next_hypothesis(hypothesis, action, depth, A, memoryless)]
    reward = reward_without_move(costs, b, depth, side, target)
    return float(value + target * moments[0] + reward - target * target * moments[1])


@inlined
def permits(
    tree: MarketTree, costs: ExogenousCosts, config: SearchConfig, b: int, hypothesis: int, action: int
) -> bool:
    """Whether the position of `hypothesis` permits `action`."""
    side, target = tree.side[b, hypothesis], costs.action_target[b, action]
    return is_legal(side, action, tree.q.shape[2], config.reverse, config.position_adjustment, target)


@inlined
def best_value(
    tree: MarketTree,
    costs: ExogenousCosts,
    config: SearchConfig,
    b: int,
    node: int,
    hypothesis: int,
    moments: tuple[float, float],
) -> float:
    """Value of the best legal action with the position of `hypothesis` at `node`."""
    best = -np.inf
    for action in range(tree.q.shape[2]):
        if permits(tree, costs, config, b, hypothesis, action):
            best = max(best, action_value(tree, costs, b, node, hypothesis, action, moments))
    return best


@inlined
def backward_market(tree: MarketTree, costs: ExogenousCosts, config: SearchConfig, reused: ReusedValue, b: int) -> None:
    """Back up the values of every hypothesis of every expanded node, children first, and Q of the root's actions."""
    A, M, memoryless = tree.q.shape[2], tree.value.shape[2], tree.position.shape[2] == 0
    root = root_hypothesis(tree, costs, b)
    reused_node, reused_hypothesis = NONE, NONE
    if reused.action[b] != NONE and config.value_reuse == REUSE_CHANCE_CHILD:
        reused_node = tree.first_child[b, 0] + reused.code[b]
        reused_hypothesis = next_hypothesis(root, reused.action[b], 0, A, memoryless)
        tree.value[b, reused_node, reused_hypothesis] = reused.value[b]
    for i in range(tree.num_expanded[b] - 1, 0, -1):
        node = tree.expansion_order[b, i]
        fill_next_value(tree, config, b, node)
        moments = move_moments(tree, costs, b, node)
        for m in range(hypotheses_at_depth(tree.depth[b, node], A, M, memoryless)):
            if node != reused_node or m != reused_hypothesis:
                tree.value[b, node, m] = best_value(tree, costs, config, b, node, m, moments)
    fill_next_value(tree, config, b, 0)
    moments = move_moments(tree, costs, b, 0)
    for m in range(hypotheses_at_depth(0, A, M, memoryless)):
        for action in range(A):
            tree.q[b, m, action] = -np.inf
            if permits(tree, costs, config, b, m, action):
                tree.q[b, m, action] = action_value(tree, costs, b, 0, m, action, moments)
    if reused.action[b] != NONE and config.value_reuse == REUSE_KNOWN_ARM:
        tree.q[b, root, reused.action[b]] = reused.reward[b] + config.discount * np.float64(reused.value[b])


@kernel
def run_market_simulations(
    tree: MarketTree, graph: BoundGraph, costs: ExogenousCosts, config: SearchConfig, reused: ReusedValue
) -> int:
    """Expand up to num_simulations nodes of every search and back up; 0 or the status of a failed network call."""
    max_depth = costs.financing.shape[1]
    while True:
        count = enqueue_batch(tree, config, max_depth)
        if count == 0:
            break
        status = expand_batch(tree, graph, costs, config, count)
        if status != 0:
            return status
    for b in range(tree.num_nodes.shape[0]):
        backward_market(tree, costs, config, reused, b)
    return 0
