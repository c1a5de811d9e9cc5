"""Stochastic tree search: B trees grow in lockstep, one network call per kind of node and simulation for all of them.

A simulation descends to an edge without a node, evaluates what lies behind it, adds it and backs its value up.  With
`full_width` an afterstate is added together with all its codes and backs up their expectation (algorithms: the visit
mean of sampled codes estimates the same sum).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.jit import inlined, kernel
from kernels.market.position import (
    HOLD,
    NUM_POSITION_FEATURES,
    SIDE,
    apply_fill,
    apply_move,
    is_legal,
    position_features,
)
from kernels.ort import BoundGraph, evaluate, evaluate_prefilled, no_graph, write_preactivation
from kernels.search.config import PUCT, SearchConfig
from kernels.search.costs import ExogenousCosts
from kernels.search.gumbel import interior_action, root_action_selection
from kernels.search.puct import add_dirichlet_noise, puct_action
from kernels.search.tree import (
    CACHE_LINE,
    CHANCE,
    DECISION,
    MASKED_LOGIT,
    NONE,
    ONE,
    PADDING_LOGIT,
    REUSE_CHANCE_CHILD,
    REUSE_KNOWN_ARM,
    ZERO,
    ReusedValue,
    Tree,
    add_node,
    append_one_hot,
    as_unsigned,
    masked_softmax,
    update_edge_stats,
)
from kernels.simd import LANES_4, first_set, load_4, prefetch, reduce_add, reduce_max

SEARCH_GROUP = 16  # searches that go up and down together: their nodes fit into the nearest cache


class Networks(NamedTuple):
    """The networks of a search, all rows of one batch; a search binds those it calls.

    root:       [features F | position P]                   -> [state D | logits A | value | code logits C]
    afterstate: [state D | action A | position P]           -> [state D | shared T | code logits C | value]
    sibling:    the same                                    -> [state D | value]
    dynamics:   [states | code C | position P | next one P] -> [state D | reward | logits A | value]
    market:     [states | code C | S next positions P]      -> [state D | code logits C | S values]
    `states` are those of a node and of the decision nodes before it, newest first, as many as the graph is wide for;
    what lies before the root is all zero.  A network that remembers no more than its latent wants one.
    Outside forex P = 0; a deterministic search has no afterstates and gives `dynamics` the action one-hot.  Under the
    `pnl` reward the positions of `market` are constants of the graph.
    Where afterstates share something (T > 0), `dynamics` has the sum of that and of the row of the code in `code_preactivation`
    instead of a one-hot of it.  Where there is a network `afterstate_value`, an afterstate that is not the first of its decision
    takes what is shared and the prior of the codes from that one.
    """

    root: BoundGraph
    afterstate: BoundGraph
    afterstate_value: BoundGraph
    dynamics: BoundGraph
    market: BoundGraph
    code_preactivation: NDArray[np.float32]  # [C, T] what each code adds to what is shared


def no_networks() -> Networks:
    """Networks that a search does not call, and codes that add to nothing."""
    none = no_graph()
    return Networks(none, none, none, none, none, np.zeros((0, 0), np.float32))


class SearchWork(NamedTuple):
    """Scratch of a search."""

    row_search: NDArray[np.int32]  # [R] search of each row of the running network call
    row_node: NDArray[np.int32]  # [R] its parent node
    row_edge: NDArray[np.int32]  # [R] its edge
    discounted_return: NDArray[np.float64]  # [B] return of each search on its way up
    rows_per_call: NDArray[
        np.int32
    ]  # [n, 3] rows of `dynamics`, `afterstate` and `afterstate_value` of each simulation


def new_search_work(searches: int, codes: int, simulations: int) -> SearchWork:
    """Scratch for `searches` trees."""
    row_tree, row_node, row_edge = np.zeros((3, searches * codes), np.int32)
    gain, calls = np.zeros(searches), np.zeros((simulations, 3), np.int32)
    return SearchWork(row_tree, row_node, row_edge, gain, calls)


@inlined
def init_root(tree: Tree, b: int, state: NDArray[np.float32], logits: NDArray[np.float32], value: float) -> None:
    """Start tree b at a root with this state, policy and value; its position and what is illegal are the caller's."""
    (tree.num_nodes[b], tree.preactivation_rows[b], tree.reused_node[b], tree.network_rows[b], tree.depth[b]) = (
        0,
        0,
        NONE,
        1,
        0,
    )
    root = add_node(tree, b, DECISION, NONE, NONE)
    for d in range(state.shape[0]):  # loops: the assignment of a slice compiles for seconds and runs no faster
        tree.state[b, root, d] = state[d]
    tree.visits[b, root] = 1
    tree.raw_value[b, root] = value
    tree.value[b, root] = value
    for a in range(logits.shape[0]):
        tree.prior[b, root, a] = logits[a]


@inlined
def mask_illegal(tree: Tree, b: int, node: int, reverse: bool) -> None:
    """Forbid what the position at a decision node does not allow."""
    if tree.position.shape[2] == 0:
        return
    A = tree.noise.shape[1]
    for a in range(A):
        if not is_legal(tree.position[b, node, SIDE], a, A, reverse):
            tree.prior[b, node, a] = MASKED_LOGIT


@inlined
def simulate(
    tree: Tree, work: SearchWork, config: SearchConfig, table: NDArray[np.int32], simulation: int, begin: int, stop: int
) -> None:
    """Find the edge that searches [begin, stop) expand: tree.leaf, tree.leaf_edge; NONE at a node of known value.

    They go down level by level together: the choice at a node is a chain of latencies, and several chains overlap.
    """
    count = stop - begin
    for i in range(count):
        b = begin + i
        tree.leaf[b], work.row_search[i] = 0, b
        if config.algorithm == PUCT:
            tree.leaf_edge[b] = puct_action(tree, config, b, 0)
        else:
            tree.leaf_edge[b] = root_action_selection(tree, config, table, b, simulation)
    depth = 0
    while count > 0:
        depth += 1
        count = step_down(tree, work, depth, count)
        for i in range(count):
            b = as_unsigned(work.row_search[i])
            tree.leaf_edge[b] = select_edge(tree, config, b, as_unsigned(tree.leaf[b]))


@inlined
def step_down(tree: Tree, work: SearchWork, depth: int, count: int) -> int:
    """Take each of the first `count` searches of work.row_tree along its edge; keep those that are not at a leaf."""
    kept = 0
    for i in range(count):
        b = as_unsigned(work.row_search[i])
        child = tree.child[b, as_unsigned(tree.leaf[b]), as_unsigned(tree.leaf_edge[b])]
        tree.depth[b] = max(tree.depth[b], depth)
        if child == NONE:
            for d in range(0, tree.state.shape[2], CACHE_LINE):
                prefetch(tree.state[b, as_unsigned(tree.leaf[b])], d)
            continue
        tree.leaf[b] = child
        prefetch(tree.edge_visits[b, as_unsigned(child)], 0)
        prefetch(tree.edge_visits[b, as_unsigned(child)], CACHE_LINE)
        if child == tree.reused_node[b]:
            tree.leaf_edge[b] = NONE
            tree.depth[b] = max(tree.depth[b], depth + 1)
        else:
            work.row_search[kept] = b
            kept += 1
    return kept


@inlined
def select_edge(tree: Tree, config: SearchConfig, b: int, node: int) -> int:
    """The edge to take at a node below the root."""
    if tree.kind[b, node] == CHANCE:
        return select_chance_code(tree, b, node)
    if config.algorithm == PUCT:
        return puct_action(tree, config, b, node)
    return interior_action(tree, config, b, node)


@inlined
def select_chance_code(tree: Tree, b: int, node: int) -> int:
    """Quasi-random outcome: argmax prior / (visits + 1) (Ozair et al. 2021, A.3)."""
    best, best_score = 0, -ONE
    for i in range(0, tree.prior.shape[2], LANES_4):
        score = load_4(tree.prior[b, node], i) / (load_4(tree.edge_visits[b, node], i) + ONE)
        top = reduce_max(score)
        if top > best_score:
            best, best_score = i + first_set(score == top), top
    return best


@inlined
def previous_decision(tree: Tree, b: int, node: int) -> int:
    """The decision node before the one that a node is, or is the afterstate of; NONE before the root."""
    for _ in range(2 if tree.kind[b, node] == CHANCE else 1):
        node = tree.parent[b, node]
    if node != NONE and tree.kind[b, node] == CHANCE:
        node = tree.parent[b, node]
    return node


@inlined
def write_states(x: NDArray[np.float32], tree: Tree, b: int, node: int, stop: int) -> int:
    """Write the states of a node and of the decisions before it at x[:stop], newest first; `stop`."""
    D = tree.state.shape[2]
    for d in range(D):
        x[d] = tree.state[b, node, d]
    for column in range(D, stop, D):
        node = NONE if node == NONE else previous_decision(tree, b, node)
        for d in range(D):
            x[column + d] = 0.0 if node == NONE else tree.state[b, node, d]
    return stop


@inlined
def write_position(x: NDArray[np.float32], tree: Tree, config: SearchConfig, first: int, b: int, node: int) -> int:
    """Write the position features of a node at x[first:]; the column behind them."""
    if tree.position.shape[2] == 0:
        return first
    position_features(x[first:], tree.position[b, node], config.mae_penalty == 0)
    return first + NUM_POSITION_FEATURES


@inlined
def add_afterstate(
    x: NDArray[np.float32], tree: Tree, costs: ExogenousCosts, config: SearchConfig, b: int, parent: int, action: int
) -> int:
    """Add the chance node behind `action` and write its network row x."""
    node = add_node(tree, b, CHANCE, parent, action)
    if tree.position.shape[2] > 0:
        target = tree.position[b, parent, SIDE] if action == HOLD else costs.action_target[b, action]
        apply_fill(tree.position[b, node], tree.position[b, parent], target, costs.entry_cost[b])
    column = write_states(x, tree, b, parent, tree.state.shape[2])
    column = append_one_hot(x, column, tree.noise.shape[1], action)
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
    """Add the decision node behind a chance code (or, deterministic, an action) and write its network row."""
    x = networks.dynamics.x[row]
    node = add_node(tree, b, DECISION, parent, edge)
    has_position, T = tree.position.shape[2] > 0, networks.code_preactivation.shape[1]
    if T > 0:
        column = write_states(x, tree, b, parent, tree.state.shape[2]) + T
    else:
        edges = costs.move.shape[1] if tree.kind[b, parent] == CHANCE else tree.noise.shape[1]
        states = x.shape[0] - edges - (2 * NUM_POSITION_FEATURES if has_position else 0)
        column = append_one_hot(x, write_states(x, tree, b, parent, states), edges, edge)
    if has_position:
        column = write_position(x, tree, config, column, b, parent)
        apply_move(tree.position[b, node], tree.position[b, parent], costs.move[b, edge])
        write_position(x, tree, config, column, b, node)
    return node


@inlined
def write_dynamics_preactivation(tree: Tree, networks: Networks, row: int, b: int, node: int) -> None:
    """Tell `dynamics` in a row, of which it has the rest, what its first layers have of the latent and of the code."""
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
    """Take state and value of an afterstate from its network row y; what is shared and its prior too if y has them."""
    D, T = tree.state.shape[2], tree.dynamics_preactivation.shape[2]
    for d in range(D):
        tree.state[b, node, d] = y[d]
    value = y[y.shape[0] - 1]
    tree.raw_value[b, node] = value
    tree.value[b, node] = value
    if y.shape[0] == D + 1:
        first = first_evaluated_afterstate(tree, b, as_unsigned(tree.parent[b, node]))
        tree.preactivation_row[b, node] = tree.preactivation_row[b, first]
        for c in range(tree.prior.shape[2]):
            tree.prior[b, node, c] = tree.prior[b, first, c]
        return
    shared, logits = y[D:], y[D + T :]  # a sum as an index might be negative, and would be checked for that
    tree.preactivation_row[b, node] = tree.preactivation_rows[b]
    tree.preactivation_rows[b] += 1
    for i in range(T):
        tree.dynamics_preactivation[b, tree.preactivation_row[b, node], i] = shared[i]
    for c in range(codes):
        tree.prior[b, node, c] = logits[c]
    for c in range(codes, tree.prior.shape[2]):
        tree.prior[b, node, c] = PADDING_LOGIT
    masked_softmax(tree.prior[b, node], tree.prior[b, node], tree.prior.shape[2])


@inlined
def first_evaluated_afterstate(tree: Tree, b: int, node: int) -> int:
    """An evaluated afterstate of a decision node, or NONE."""
    for a in range(tree.noise.shape[1]):
        child = tree.child[b, node, a]
        if child != NONE and tree.preactivation_row[b, as_unsigned(child)] != NONE:
            return int(child)
    return NONE


@inlined
def read_decision(tree: Tree, config: SearchConfig, y: NDArray[np.float32], b: int, node: int) -> None:
    """Take state, reward, policy and value of a decision node from its network row y."""
    D, A = tree.state.shape[2], tree.noise.shape[1]
    for d in range(D):
        tree.state[b, node, d] = y[d]
    tree.reward[b, node] = y[D]
    for a in range(A):
        tree.prior[b, node, a] = y[D + 1 + a]
    tree.raw_value[b, node] = y[D + 1 + A]
    tree.value[b, node] = y[D + 1 + A]
    mask_illegal(tree, b, node, config.reverse)


@inlined
def has_reused_value(tree: Tree, config: SearchConfig, reused: ReusedValue, b: int, node: int, edge: int) -> bool:
    """Whether what lies behind `edge` of `node` needs no network: the realised code, or with KNOWN_ARM the action."""
    if config.value_reuse == REUSE_KNOWN_ARM:
        return bool(node == 0 and edge == reused.action[b])
    if config.value_reuse == REUSE_CHANCE_CHILD and tree.kind[b, node] == CHANCE and tree.parent[b, node] == 0:
        return bool(tree.edge[b, node] == reused.action[b] and edge == reused.code[b])
    return False


@inlined
def add_reused_node(tree: Tree, config: SearchConfig, reused: ReusedValue, b: int, parent: int, edge: int) -> int:
    """Add the node whose value is known: nothing below it will be searched."""
    kind = CHANCE if config.value_reuse == REUSE_KNOWN_ARM and config.stochastic else DECISION
    node = add_node(tree, b, kind, parent, edge)
    value = np.float64(reused.value[b])
    if kind == CHANCE:  # the edge into it pays nothing: the reward is part of what it is worth
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
    """Note that edge `edge` of `node` is to be expanded; the new number of rows."""
    work.row_search[rows], work.row_node[rows], work.row_edge[rows] = b, node, edge
    return rows + 1


@inlined
def expand_afterstates(
    tree: Tree, work: SearchWork, graph: BoundGraph, costs: ExogenousCosts, config: SearchConfig, first: int, stop: int
) -> int:
    """Evaluate and add the chance node behind each of the queued edges [first, stop)."""
    if first == stop:
        return 0
    for row in range(first, stop):
        b = work.row_search[row]
        x = graph.x[row - first]
        node = add_afterstate(x, tree, costs, config, b, work.row_node[row], work.row_edge[row])
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
    tree: Tree, work: SearchWork, networks: Networks, costs: ExogenousCosts, config: SearchConfig, first: int, stop: int
) -> int:
    """Evaluate and add the decision node behind each of the queued edges [first, stop)."""
    graph = networks.dynamics
    while first < stop:
        count = min(stop - first, graph.x.shape[0])
        for i in range(count):
            b, row = work.row_search[first + i], first + i
            parent, edge = work.row_node[row], work.row_edge[row]
            node = add_decision(networks, i, tree, costs, config, b, parent, edge)
            work.row_node[row] = node
        # apart from the walk through the trees: the memory sees long rows in their order
        for i in range(count):
            write_dynamics_preactivation(tree, networks, i, work.row_search[first + i], work.row_node[first + i])
        status = evaluate_prefilled(graph, count, networks.code_preactivation.shape[1])
        if status != 0:
            return status
        for i in range(count):
            b, node = work.row_search[first + i], work.row_node[first + i]
            read_decision(tree, config, graph.y[i], b, node)
            tree.leaf[b] = node
            tree.network_rows[b] += 1
        # not at once: what was stored number by number is not yet there to load as a row
        for i in range(count):
            b, node = work.row_search[first + i], work.row_node[first + i]
            masked_softmax(tree.policy[b, node], tree.prior[b, node], tree.score.shape[1])
            update_edge_stats(tree, b, node, config.discount)
        first += count
    return 0


@inlined
def expand_leaves(
    tree: Tree,
    work: SearchWork,
    networks: Networks,
    costs: ExogenousCosts,
    config: SearchConfig,
    reused: ReusedValue,
    simulation: int,
) -> int:
    """Expand the leaf edge of every search; tree.leaf becomes the node to back up from."""
    B, decisions = tree.num_nodes.shape[0], 0
    for b in range(B):
        node, edge = tree.leaf[b], tree.leaf_edge[b]
        if edge != NONE and has_reused_value(tree, config, reused, b, node, edge):
            tree.leaf[b], tree.leaf_edge[b] = add_reused_node(tree, config, reused, b, node, edge), NONE
        elif edge != NONE and (not config.stochastic or tree.kind[b, node] == CHANCE):
            decisions = enqueue(work, decisions, b, node, edge)
    firsts = enqueue_afterstates(tree, work, networks, config, decisions, False)
    rows = enqueue_afterstates(tree, work, networks, config, firsts, True)
    calls = work.rows_per_call[simulation]
    calls[0], calls[1], calls[2] = decisions, firsts - decisions, rows - firsts
    status = expand_decisions(tree, work, networks, costs, config, 0, decisions)
    if status == 0:
        status = expand_afterstates(tree, work, networks.afterstate, costs, config, decisions, firsts)
    if status == 0:
        status = expand_afterstates(tree, work, networks.afterstate_value, costs, config, firsts, rows)
    return status


@inlined
def enqueue_afterstates(
    tree: Tree, work: SearchWork, networks: Networks, config: SearchConfig, rows: int, value_only: bool
) -> int:
    """Queue the edges to afterstates for which `afterstate_value` suffices, or the others; the new number of rows."""
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
    work: SearchWork,
    networks: Networks,
    costs: ExogenousCosts,
    config: SearchConfig,
    reused: ReusedValue,
    simulation: int,
) -> int:
    """Full width: add every code of the afterstates just added; they stay the nodes to back up from."""
    rows = 0
    for b in range(tree.num_nodes.shape[0]):
        if tree.leaf_edge[b] == NONE:
            continue
        for c in range(costs.move.shape[1]):
            if has_reused_value(tree, config, reused, b, tree.leaf[b], c):
                add_reused_node(tree, config, reused, b, tree.leaf[b], c)
            else:
                rows = enqueue(work, rows, b, tree.leaf[b], c)
    work.rows_per_call[simulation, 0] += rows
    status = expand_decisions(tree, work, networks, costs, config, 0, rows)
    for row in range(rows):
        b = work.row_search[row]
        tree.leaf[b] = tree.parent[b, work.row_node[row]]
    return status


@inlined
def backward_mean(tree: Tree, work: SearchWork, config: SearchConfig, begin: int, stop: int) -> None:
    """Running means of the discounted returns, from the leaves to the roots, level by level as in `simulate`."""
    count = stop - begin
    for i in range(count):
        b = begin + i
        work.row_search[i], work.discounted_return[b] = b, tree.value[b, as_unsigned(tree.leaf[b])]
    while count > 0:
        count = step_up(tree, work, config, count)


@inlined
def step_up(tree: Tree, work: SearchWork, config: SearchConfig, count: int) -> int:
    """Add the gain of each of the first `count` searches of work.row_tree to its node; keep those below the root."""
    kept = 0
    for i in range(count):
        b = as_unsigned(work.row_search[i])
        node, gain = as_unsigned(tree.leaf[b]), work.discounted_return[b]
        visits = tree.visits[b, node]
        tree.value[b, node] = (np.float64(tree.value[b, node]) * visits + gain) / (visits + 1)
        tree.visits[b, node] = visits + 1
        parent = tree.parent[b, node]
        if parent == NONE:
            continue
        update_edge_stats(tree, b, node, config.discount)
        if tree.kind[b, node] == DECISION:
            work.discounted_return[b] = np.float64(tree.reward[b, node]) + config.discount * gain
        tree.leaf[b] = parent
        work.row_search[kept] = b
        kept += 1
    return kept


@inlined
def expected_value(tree: Tree, b: int, node: int) -> float:
    """Prior-weighted expectation over all codes of a fully expanded chance node."""
    value = ZERO
    for i in range(0, tree.prior.shape[2], LANES_4):
        value += reduce_add(load_4(tree.prior[b, node], i) * load_4(tree.edge_value[b, node], i))
    return float(value)


@inlined
def visited_value(tree: Tree, b: int, node: int) -> float:
    """Mean of a decision node's own value and its actions' values, weighted by visits."""
    value, visits = tree.raw_value[b, node], ONE
    for i in range(0, tree.score.shape[1], LANES_4):
        n = load_4(tree.edge_visits[b, node], i)
        value += reduce_add(n * load_4(tree.edge_value[b, node], i))
        visits += reduce_add(n)
    return float(value / visits)


@inlined
def backward_expectation(tree: Tree, config: SearchConfig, b: int) -> None:
    """Recompute the values on the path from the new afterstate to the root from those of their children."""
    node = tree.leaf[b]
    while node != NONE:
        tree.visits[b, node] += 1
        if node == tree.reused_node[b]:
            pass  # its value stands
        elif tree.kind[b, node] == CHANCE:
            tree.value[b, node] = expected_value(tree, b, node)
        else:
            tree.value[b, node] = visited_value(tree, b, node)
        if tree.parent[b, node] != NONE:
            update_edge_stats(tree, b, node, config.discount)
        node = tree.parent[b, node]


@inlined
def backward(tree: Tree, work: SearchWork, config: SearchConfig, begin: int, stop: int) -> None:
    """Back up from the leaves of searches [begin, stop)."""
    if not config.expectation_backup:
        backward_mean(tree, work, config, begin, stop)
        return
    for b in range(begin, stop):
        backward_expectation(tree, config, b)


@kernel
def run_simulations(
    tree: Tree,
    work: SearchWork,
    networks: Networks,
    costs: ExogenousCosts,
    config: SearchConfig,
    reused: ReusedValue,
    table: NDArray[np.int32],
) -> int:
    """Run all simulations of all searches; 0 or the status of a failed network call."""
    for b in range(tree.num_nodes.shape[0]):
        masked_softmax(tree.policy[b, 0], tree.prior[b, 0], tree.score.shape[1])
        if config.algorithm == PUCT:
            add_dirichlet_noise(tree, config, b)
    B = tree.num_nodes.shape[0]
    for simulation in range(config.num_simulations):
        for begin in range(0, B, SEARCH_GROUP):
            stop = min(begin + SEARCH_GROUP, B)
            if simulation > 0:
                backward(tree, work, config, begin, stop)
            simulate(tree, work, config, table, simulation, begin, stop)
        status = expand_leaves(tree, work, networks, costs, config, reused, simulation)
        if status == 0 and config.expectation_backup:
            status = expand_all_codes(tree, work, networks, costs, config, reused, simulation)
        if status != 0:
            return status
    backward(tree, work, config, 0, B)
    return 0


def nodes_needed(config: SearchConfig, codes: int) -> int:
    """Nodes of a tree after all its simulations."""
    return 1 + config.num_simulations * (1 + codes if config.expectation_backup else 1)
