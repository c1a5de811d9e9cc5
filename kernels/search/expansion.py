"""The new nodes of a tree search: their network rows, written before a call and read after it.

kernels.search.networks has the columns of the rows.  `sampled` is None but for progressive widening: see
kernels.search.mcts.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.jit import inlined
from kernels.market.position import (
    HOLD,
    NUM_POSITION_FEATURES,
    SIDE,
    apply_fill,
    apply_move,
    is_legal,
    position_features,
)
from kernels.ort import BoundGraph, evaluate, evaluate_prefilled, write_preactivation
from kernels.search.config import SearchConfig
from kernels.search.costs import ExogenousCosts, reward_without_move
from kernels.search.networks import Networks
from kernels.search.progressive_widening import SampledTree, apply_candidate, read_policy_head
from kernels.search.tree import (
    CHANCE,
    DECISION,
    MASKED_LOGIT,
    NONE,
    PADDING_LOGIT,
    REUSE_CHANCE_CHILD,
    REUSE_KNOWN_ARM,
    ReusedValue,
    Tree,
    add_node,
    append_one_hot,
    as_unsigned,
    masked_softmax,
    update_edge_stats,
)


class SearchWork(NamedTuple):
    """Scratch of a search."""

    row_search: NDArray[np.int32]  # [rows] search of each row of the running network call
    row_node: NDArray[np.int32]  # [rows] its parent node, then the node that was added
    row_edge: NDArray[np.int32]  # [rows] its edge
    discounted_return: NDArray[np.float64]  # [B] return of each search on its way up
    # [n, 3] rows of `dynamics`, `afterstate` and `afterstate_value` of each simulation
    rows_per_call: NDArray[np.int32]


def new_search_work(searches: int, codes: int, simulations: int) -> SearchWork:
    """Scratch of a search of B = `searches` trees.  Raises ValueError for sizes below 1."""
    if min(searches, codes, simulations) < 1:
        raise ValueError(f"a search of {searches} trees, {codes} codes and {simulations} simulations")
    row_search, row_node, row_edge = np.zeros((3, searches * codes), np.int32)
    return SearchWork(row_search, row_node, row_edge, np.zeros(searches), np.zeros((simulations, 3), np.int32))


@inlined
def mask_illegal(tree: Tree, costs: ExogenousCosts, config: SearchConfig, b: int, node: int) -> None:
    """Mask the actions that the position at a decision node does not allow; a game masks none."""
    if tree.position.shape[2] == 0:
        return
    A = tree.noise.shape[1]
    for a in range(A):
        side, target = tree.position[b, node, SIDE], costs.action_target[b, a]
        if not is_legal(side, a, A, config.reverse, config.position_adjustment, target):
            tree.prior[b, node, a] = MASKED_LOGIT


@inlined
def previous_decision(tree: Tree, b: int, node: int) -> int:
    """Parent decision of a node; an afterstate counts as part of its decision.  NONE at the root."""
    for _ in range(2 if tree.kind[b, node] == CHANCE else 1):
        node = tree.parent[b, node]
    if node != NONE and tree.kind[b, node] == CHANCE:
        node = tree.parent[b, node]
    return node


@inlined
def write_states(x: NDArray[np.float32], tree: Tree, b: int, node: int, stop: int) -> int:
    """x[:stop] = states [S] of a node and of the decisions before it, newest first, zeros before the root; `stop`."""
    S = tree.state.shape[2]
    for i in range(S):
        x[i] = tree.state[b, node, i]
    for column in range(S, stop, S):
        node = NONE if node == NONE else previous_decision(tree, b, node)
        for i in range(S):
            x[column + i] = 0.0 if node == NONE else tree.state[b, node, i]
    return stop


@inlined
def write_position(x: NDArray[np.float32], tree: Tree, config: SearchConfig, first: int, b: int, node: int) -> int:
    """Write the position features of a node, none of a game, at x[first:]; returns the column behind them."""
    if tree.position.shape[2] == 0:
        return first
    position_features(x[first:], tree.position[b, node], config.mae_penalty == 0)
    return first + NUM_POSITION_FEATURES


@inlined
def add_afterstate(
    x: NDArray[np.float32],
    tree: Tree,
    sampled: SampledTree | None,
    costs: ExogenousCosts,
    config: SearchConfig,
    b: int,
    parent: int,
    edge: int,
) -> int:
    """Add the chance node behind `edge`, an action or a candidate, and write its row x of `afterstate`; its index."""
    node = add_node(tree, b, CHANCE, parent, edge)
    column = write_states(x, tree, b, parent, tree.state.shape[2])
    if sampled is not None:
        column = apply_candidate(x, column, sampled, costs, b, parent, edge, node)
    else:
        column = append_one_hot(x, column, tree.noise.shape[1], edge)
        if tree.position.shape[2] > 0:
            target = tree.position[b, parent, SIDE] if edge == HOLD else costs.action_target[b, edge]
            apply_fill(tree.position[b, node], tree.position[b, parent], target, costs.entry_cost[b])
    if tree.position.shape[2] > 0:
        side, target = np.float64(tree.position[b, parent, SIDE]), np.float64(tree.position[b, node, SIDE])
        tree.reward[b, node] = reward_without_move(costs, b, tree.leaf_bars[b], side, target)
    write_position(x, tree, config, column, b, node)
    return node


@inlined
def add_decision(
    networks: Networks,
    row: int,
    tree: Tree,
    costs: ExogenousCosts,
    config: SearchConfig,
    b: int,
    parent: int,
    edge: int,
) -> int:
    """Add the decision node behind a code (in a deterministic search, an action); its index.

    Writes its row of `dynamics` but for the preactivation.
    """
    x = networks.dynamics.x[row]
    node = add_node(tree, b, DECISION, parent, edge)
    has_position, preactivation = tree.position.shape[2] > 0, networks.code_preactivation.shape[1]
    if preactivation > 0:
        column = write_states(x, tree, b, parent, tree.state.shape[2]) + preactivation
    else:
        edges = costs.move.shape[1] if tree.kind[b, parent] == CHANCE else tree.noise.shape[1]
        states = x.shape[0] - edges - (2 * NUM_POSITION_FEATURES if has_position else 0)
        column = append_one_hot(x, write_states(x, tree, b, parent, states), edges, edge)
    if has_position:
        column = write_position(x, tree, config, column, b, parent)
        apply_move(tree.position[b, node], tree.position[b, parent], costs.move[b, edge])
        write_position(x, tree, config, column, b, node)
        side = tree.position[b, node, SIDE]
        tree.reward[b, node] = tree.reward[b, parent] + side * costs.move[b, edge]
        tree.reward[b, node] -= side * side * costs.risk_penalty[b, edge]
    return node


@inlined
def write_dynamics_preactivation(tree: Tree, networks: Networks, row: int, b: int, node: int) -> None:
    """Write the preactivation of a row of `dynamics`, the sum of its afterstate's part and its code's; maybe none."""
    if networks.code_preactivation.shape[1] > 0:
        parent, edge = as_unsigned(tree.parent[b, node]), as_unsigned(tree.edge[b, node])
        write_preactivation(
            networks.dynamics,
            row,
            tree.dynamics_preactivation[b, as_unsigned(tree.preactivation_row[b, parent])],
            networks.code_preactivation[edge],
        )


@inlined
def read_afterstate(tree: Tree, y: NDArray[np.float32], b: int, node: int, codes: int) -> None:
    """Read an afterstate from its row y of `afterstate` or of `afterstate_value`.

    The latter has state and value only: preactivation and prior are those of an evaluated afterstate of the decision.
    """
    S, width = tree.state.shape[2], tree.dynamics_preactivation.shape[2]
    for i in range(S):
        tree.state[b, node, i] = y[i]
    value = y[y.shape[0] - 1]
    tree.raw_value[b, node] = value
    tree.value[b, node] = value
    if y.shape[0] == S + 1:
        first = first_evaluated_afterstate(tree, b, as_unsigned(tree.parent[b, node]))
        tree.preactivation_row[b, node] = tree.preactivation_row[b, first]
        for c in range(tree.prior.shape[2]):
            tree.prior[b, node, c] = tree.prior[b, first, c]
        return
    # slices: a sum as an index might be negative, and would be checked for that
    preactivation, logits = y[S:], y[S + width :]
    tree.preactivation_row[b, node] = tree.preactivation_rows[b]
    tree.preactivation_rows[b] += 1
    for i in range(width):
        tree.dynamics_preactivation[b, tree.preactivation_row[b, node], i] = preactivation[i]
    for c in range(codes):
        tree.prior[b, node, c] = logits[c]
    for c in range(codes, tree.prior.shape[2]):
        tree.prior[b, node, c] = PADDING_LOGIT
    masked_softmax(tree.prior[b, node], tree.prior[b, node], tree.prior.shape[2])


@inlined
def first_evaluated_afterstate(tree: Tree, b: int, node: int) -> int:
    """The first afterstate of a decision node that has a preactivation, or NONE."""
    for a in range(tree.noise.shape[1]):
        child = tree.child[b, node, a]
        if child != NONE and tree.preactivation_row[b, as_unsigned(child)] != NONE:
            return int(child)
    return NONE


@inlined
def read_decision(
    tree: Tree,
    sampled: SampledTree | None,
    costs: ExogenousCosts,
    config: SearchConfig,
    y: NDArray[np.float32],
    b: int,
    node: int,
) -> None:
    """Read state, policy, value and, where it is not exact, reward of a decision node from its row y of `dynamics`."""
    S, A = tree.state.shape[2], tree.noise.shape[1]
    for i in range(S):
        tree.state[b, node, i] = y[i]
    if not (config.exact_rewards and config.stochastic and config.mae_penalty == 0 and tree.position.shape[2] > 0):
        tree.reward[b, node] = y[S]
    if sampled is not None:
        read_policy_head(sampled, y[S + 1 :], b, node)
        return
    for a in range(A):
        tree.prior[b, node, a] = y[S + 1 + a]
    tree.raw_value[b, node] = y[S + 1 + A]
    tree.value[b, node] = y[S + 1 + A]
    mask_illegal(tree, costs, config, b, node)


@inlined
def has_reused_value(tree: Tree, config: SearchConfig, reused: ReusedValue, b: int, node: int, edge: int) -> bool:
    """Whether `edge` of `node` has a reused value: the realised code, or under REUSE_KNOWN_ARM the realised action."""
    if config.value_reuse == REUSE_KNOWN_ARM:
        return bool(node == 0 and edge == reused.action[b])
    if config.value_reuse == REUSE_CHANCE_CHILD and tree.kind[b, node] == CHANCE and tree.parent[b, node] == 0:
        return bool(tree.edge[b, node] == reused.action[b] and edge == reused.code[b])
    return False


@inlined
def add_reused_node(tree: Tree, config: SearchConfig, reused: ReusedValue, b: int, parent: int, edge: int) -> int:
    """Add the node that has the reused value, below which no simulation goes; its index."""
    kind = CHANCE if config.value_reuse == REUSE_KNOWN_ARM and config.stochastic else DECISION
    node = add_node(tree, b, kind, parent, edge)
    value = np.float64(reused.value[b])
    if kind == CHANCE:  # the edge into it has no reward: the reward is part of its value
        value = np.float64(reused.reward[b]) + config.discount * value
    else:
        tree.reward[b, node] = reused.reward[b]
    tree.raw_value[b, node] = value
    tree.value[b, node] = value
    tree.reused_node[b] = node
    update_edge_stats(tree, b, node, config.discount)
    return node


@inlined
def enqueue(work: SearchWork, rows: int, b: int, node: int, edge: int) -> int:
    """Queue `edge` of `node` for expansion as row `rows`; the new number of rows."""
    work.row_search[rows], work.row_node[rows], work.row_edge[rows] = b, node, edge
    return rows + 1


@inlined
def expand_afterstates(
    tree: Tree,
    sampled: SampledTree | None,
    work: SearchWork,
    graph: BoundGraph,
    costs: ExogenousCosts,
    config: SearchConfig,
    first: int,
    stop: int,
) -> int:
    """Add and evaluate the chance nodes behind the queued edges [first, stop); 0 or the status of a failed call."""
    if first == stop:
        return 0
    for row in range(first, stop):
        b = work.row_search[row]
        x = graph.x[row - first]
        node = add_afterstate(x, tree, sampled, costs, config, b, work.row_node[row], work.row_edge[row])
        work.row_node[row] = node
    status = evaluate(graph, stop - first)
    for row in range(first, stop):
        b, node = work.row_search[row], work.row_node[row]
        read_afterstate(tree, graph.y[row - first], b, node, costs.move.shape[1])
        tree.leaf[b] = node
        tree.network_rows[b] += 1
    return status


@inlined
def expand_decisions(
    tree: Tree,
    sampled: SampledTree | None,
    work: SearchWork,
    networks: Networks,
    costs: ExogenousCosts,
    config: SearchConfig,
    first: int,
    stop: int,
) -> int:
    """Add and evaluate the decision nodes behind the queued edges [first, stop); 0 or the status of a failed call."""
    graph = networks.dynamics
    while first < stop:
        count = min(stop - first, graph.x.shape[0])
        for i in range(count):
            b, row = work.row_search[first + i], first + i
            parent, edge = work.row_node[row], work.row_edge[row]
            node = add_decision(networks, i, tree, costs, config, b, parent, edge)
            work.row_node[row] = node
        # a loop of its own, without the walk through the trees: long rows are read in their order in memory
        for i in range(count):
            write_dynamics_preactivation(tree, networks, i, work.row_search[first + i], work.row_node[first + i])
        status = evaluate_prefilled(graph, count, networks.code_preactivation.shape[1])
        if status != 0:
            return status
        for i in range(count):
            b, node = work.row_search[first + i], work.row_node[first + i]
            read_decision(tree, sampled, costs, config, graph.y[i], b, node)
            tree.leaf[b] = node
            tree.network_rows[b] += 1
        # a loop of its own: a row that was just stored number by number stalls when it is loaded as a vector
        for i in range(count):
            b, node = work.row_search[first + i], work.row_node[first + i]
            if sampled is None:
                masked_softmax(tree.policy[b, node], tree.prior[b, node], tree.score.shape[1])
            update_edge_stats(tree, b, node, config.discount)
        first += count
    return 0


@inlined
def expand_leaves(
    tree: Tree,
    sampled: SampledTree | None,
    work: SearchWork,
    networks: Networks,
    costs: ExogenousCosts,
    config: SearchConfig,
    reused: ReusedValue,
    simulation: int,
) -> int:
    """Expand the leaf edge of every search; 0 or the status of a failed call.

    tree.leaf becomes the node to back up from.
    """
    B, decisions = tree.num_nodes.shape[0], 0
    for b in range(B):
        node, edge = tree.leaf[b], tree.leaf_edge[b]
        if sampled is None and edge != NONE and has_reused_value(tree, config, reused, b, node, edge):
            tree.leaf[b], tree.leaf_edge[b] = add_reused_node(tree, config, reused, b, node, edge), NONE
        elif edge != NONE and (not config.stochastic or tree.kind[b, node] == CHANCE):
            decisions = enqueue(work, decisions, b, node, edge)
    firsts = enqueue_afterstates(tree, work, networks, config, decisions, False)
    rows = enqueue_afterstates(tree, work, networks, config, firsts, True)
    calls = work.rows_per_call[simulation]
    calls[0], calls[1], calls[2] = decisions, firsts - decisions, rows - firsts
    status = expand_decisions(tree, sampled, work, networks, costs, config, 0, decisions)
    if status == 0:
        status = expand_afterstates(tree, sampled, work, networks.afterstate, costs, config, decisions, firsts)
    if status == 0:
        status = expand_afterstates(tree, sampled, work, networks.afterstate_value, costs, config, firsts, rows)
    return status


@inlined
def enqueue_afterstates(
    tree: Tree, work: SearchWork, networks: Networks, config: SearchConfig, rows: int, value_only: bool
) -> int:
    """Queue the leaf edges to afterstates for `afterstate_value`, or the others; the new number of rows."""
    for b in range(tree.num_nodes.shape[0]):
        node, edge = tree.leaf[b], tree.leaf_edge[b]
        if config.stochastic and edge != NONE and tree.kind[b, node] == DECISION:
            has_evaluated_afterstate = (
                networks.afterstate_value.x.shape[0] > 0 and first_evaluated_afterstate(tree, b, node) != NONE
            )
            if has_evaluated_afterstate == value_only:
                rows = enqueue(work, rows, b, node, edge)
    return rows


@inlined
def expand_all_codes(
    tree: Tree,
    sampled: SampledTree | None,
    work: SearchWork,
    networks: Networks,
    costs: ExogenousCosts,
    config: SearchConfig,
    reused: ReusedValue,
    simulation: int,
) -> int:
    """Add all codes of the afterstates just added, the nodes to back up from.  0 or the status of a failed call."""
    rows = 0
    for b in range(tree.num_nodes.shape[0]):
        if tree.leaf_edge[b] == NONE:
            continue
        for c in range(costs.move.shape[1]):
            if sampled is None and has_reused_value(tree, config, reused, b, tree.leaf[b], c):
                add_reused_node(tree, config, reused, b, tree.leaf[b], c)
            else:
                rows = enqueue(work, rows, b, tree.leaf[b], c)
    work.rows_per_call[simulation, 0] += rows
    status = expand_decisions(tree, sampled, work, networks, costs, config, 0, rows)
    for row in range(rows):
        b = work.row_search[row]
        tree.leaf[b] = tree.parent[b, work.row_node[row]]
    return status
