"""Stochastic tree search: B trees grow in lockstep, one network call per kind of node and simulation for all of them.

A simulation descends to an edge without a node, evaluates what lies behind it, adds it and backs its value up.  With
`full_width` an afterstate is added together with all its codes and backs up their expectation (algorithms: the visit
mean of sampled codes estimates the same sum).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.jit import inlined, kernel
from kernels.market.position import FEATURES, HOLD, SIDE, act_on, is_legal, move_on, position_features
from kernels.ort import Net, evaluate, evaluate_told, no_net, tell
from kernels.search.config import PUCT, SearchConfig
from kernels.search.costs import Outlook
from kernels.search.gumbel import interior_action, root_candidate
from kernels.search.puct import mix_noise, puct_action
from kernels.search.tree import (
    BEYOND,
    CHANCE,
    CHANCE_CHILD,
    DECISION,
    KNOWN_ARM,
    LINE,
    MASKED,
    NONE,
    ONE,
    ZERO,
    Known,
    Tree,
    add_node,
    index,
    note_edge,
    one_hot,
    softmax,
)
from kernels.simd import FEW, fetch, first, largest, load_few, total

GROUP = 16  # searches that go up and down together: their nodes fit into the nearest cache


class Model(NamedTuple):
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
    Where afterstates share something (T > 0), `dynamics` has the sum of that and of the row of the code in `code`
    instead of a one-hot of it.  Where there is a network `sibling`, an afterstate that is not the first of its decision
    takes what is shared and the prior of the codes from that one.
    """

    root: Net
    afterstate: Net
    sibling: Net
    dynamics: Net
    market: Net
    code: NDArray[np.float32]  # [C, T] what each code adds to what is shared


def no_model() -> Model:
    """Networks that a search does not call, and codes that add to nothing."""
    none = no_net()
    return Model(none, none, none, none, none, np.zeros((0, 0), np.float32))


class Work(NamedTuple):
    """Scratch of a search."""

    row_tree: NDArray[np.int32]  # [R] search of each row of the running network call
    row_node: NDArray[np.int32]  # [R] its parent node
    row_edge: NDArray[np.int32]  # [R] its edge
    gain: NDArray[np.float64]  # [B] return of each search on its way up
    calls: NDArray[np.int32]  # [n, 3] rows of `dynamics`, `afterstate` and `sibling` of each simulation


def new_work(searches: int, codes: int, simulations: int) -> Work:
    """Scratch for `searches` trees."""
    row_tree, row_node, row_edge = np.zeros((3, searches * codes), np.int32)
    gain, calls = np.zeros(searches), np.zeros((simulations, 3), np.int32)
    return Work(row_tree, row_node, row_edge, gain, calls)


@inlined
def plant(tree: Tree, b: int, state: NDArray[np.float32], logits: NDArray[np.float32], value: float) -> None:
    """Start tree b at a root with this state, policy and value; its position and what is illegal are the caller's."""
    tree.used[b], tree.shares[b], tree.known[b], tree.rows[b], tree.depth[b] = 0, 0, NONE, 1, 0
    root = add_node(tree, b, DECISION, NONE, NONE)
    for d in range(
        state.shape[0]
    ):  # loops: the assignment of a slice compiles for seconds and runs no faster
        tree.state[b, root, d] = state[d]
    tree.visits[b, root] = 1
    tree.raw_value[b, root] = value
    tree.value[b, root] = value
    for a in range(logits.shape[0]):
        tree.prior[b, root, a] = logits[a]


@inlined
def mask(tree: Tree, b: int, node: int, reverse: bool) -> None:
    """Forbid what the position at a decision node does not allow."""
    if tree.position.shape[2] == 0:
        return
    A = tree.noise.shape[1]
    for a in range(A):
        if not is_legal(tree.position[b, node, SIDE], a, A, reverse):
            tree.prior[b, node, a] = MASKED


@inlined
def descend(
    tree: Tree,
    work: Work,
    config: SearchConfig,
    table: NDArray[np.int32],
    simulation: int,
    begin: int,
    stop: int,
) -> None:
    """Find the edge that searches [begin, stop) expand: tree.leaf, tree.leaf_edge; NONE at a node of known value.

    They go down level by level together: the choice at a node is a chain of latencies, and several chains overlap.
    """
    count = stop - begin
    for i in range(count):
        b = begin + i
        tree.leaf[b], work.row_tree[i] = 0, b
        if config.rule == PUCT:
            tree.leaf_edge[b] = puct_action(tree, config, b, 0)
        else:
            tree.leaf_edge[b] = root_candidate(tree, config, table, b, simulation)
    depth = 0
    while count > 0:
        depth += 1
        count = go_down(tree, work, depth, count)
        for i in range(count):
            b = index(work.row_tree[i])
            tree.leaf_edge[b] = next_edge(tree, config, b, index(tree.leaf[b]))


@inlined
def go_down(tree: Tree, work: Work, depth: int, count: int) -> int:
    """Take each of the first `count` searches of work.row_tree along its edge; keep those that are not at a leaf."""
    kept = 0
    for i in range(count):
        b = index(work.row_tree[i])
        child = tree.child[b, index(tree.leaf[b]), index(tree.leaf_edge[b])]
        tree.depth[b] = max(tree.depth[b], depth)
        if child == NONE:
            for d in range(0, tree.state.shape[2], LINE):
                fetch(tree.state[b, index(tree.leaf[b])], d)
            continue
        tree.leaf[b] = child
        fetch(tree.edge_visits[b, index(child)], 0)
        fetch(tree.edge_visits[b, index(child)], LINE)
        if child == tree.known[b]:
            tree.leaf_edge[b] = NONE
            tree.depth[b] = max(tree.depth[b], depth + 1)
        else:
            work.row_tree[kept] = b
            kept += 1
    return kept


@inlined
def next_edge(tree: Tree, config: SearchConfig, b: int, node: int) -> int:
    """The edge to take at a node below the root."""
    if tree.kind[b, node] == CHANCE:
        return chance_code(tree, b, node)
    if config.rule == PUCT:
        return puct_action(tree, config, b, node)
    return interior_action(tree, config, b, node)


@inlined
def chance_code(tree: Tree, b: int, node: int) -> int:
    """Quasi-random outcome: argmax prior / (visits + 1) (Ozair et al. 2021, A.3)."""
    best, best_score = 0, -ONE
    for i in range(0, tree.prior.shape[2], FEW):
        score = load_few(tree.prior[b, node], i) / (load_few(tree.edge_visits[b, node], i) + ONE)
        top = largest(score)
        if top > best_score:
            best, best_score = i + first(score == top), top
    return best


@inlined
def decision_before(tree: Tree, b: int, node: int) -> int:
    """The decision node before the one that a node is, or is the afterstate of; NONE before the root."""
    for _ in range(2 if tree.kind[b, node] == CHANCE else 1):
        node = tree.parent[b, node]
    if node != NONE and tree.kind[b, node] == CHANCE:
        node = tree.parent[b, node]
    return node


@inlined
def state_columns(x: NDArray[np.float32], tree: Tree, b: int, node: int, stop: int) -> int:
    """Write the states of a node and of the decisions before it at x[:stop], newest first; `stop`."""
    D = tree.state.shape[2]
    for d in range(D):
        x[d] = tree.state[b, node, d]
    for column in range(D, stop, D):
        node = NONE if node == NONE else decision_before(tree, b, node)
        for d in range(D):
            x[column + d] = 0.0 if node == NONE else tree.state[b, node, d]
    return stop


@inlined
def position_columns(
    x: NDArray[np.float32], tree: Tree, config: SearchConfig, first: int, b: int, node: int
) -> int:
    """Write the position features of a node at x[first:]; the column behind them."""
    if tree.position.shape[2] == 0:
        return first
    position_features(x[first:], tree.position[b, node], config.excursion_weight == 0)
    return first + FEATURES


@inlined
def add_afterstate(
    x: NDArray[np.float32],
    tree: Tree,
    outlook: Outlook,
    config: SearchConfig,
    b: int,
    parent: int,
    action: int,
) -> int:
    """Add the chance node behind `action` and write its network row x."""
    node = add_node(tree, b, CHANCE, parent, action)
    if tree.position.shape[2] > 0:
        target = tree.position[b, parent, SIDE] if action == HOLD else outlook.size[b, action]
        act_on(tree.position[b, node], tree.position[b, parent], target, outlook.entry_cost[b])
    column = state_columns(x, tree, b, parent, tree.state.shape[2])
    column = one_hot(x, column, tree.noise.shape[1], action)
    position_columns(x, tree, config, column, b, node)
    return node


@inlined
def add_decision(
    model: Model, row: int, tree: Tree, outlook: Outlook, config: SearchConfig, b: int, parent: int, edge: int
) -> int:
    """Add the decision node behind a chance code (or, deterministic, an action) and write its network row."""
    x = model.dynamics.x[row]
    node = add_node(tree, b, DECISION, parent, edge)
    has_position, T = tree.position.shape[2] > 0, model.code.shape[1]
    if T > 0:
        column = state_columns(x, tree, b, parent, tree.state.shape[2]) + T
    else:
        edges = outlook.move.shape[1] if tree.kind[b, parent] == CHANCE else tree.noise.shape[1]
        states = x.shape[0] - edges - (2 * FEATURES if has_position else 0)
        column = one_hot(x, state_columns(x, tree, b, parent, states), edges, edge)
    if has_position:
        column = position_columns(x, tree, config, column, b, parent)
        move_on(tree.position[b, node], tree.position[b, parent], outlook.move[b, edge])
        position_columns(x, tree, config, column, b, node)
    return node


@inlined
def tell_code(tree: Tree, model: Model, row: int, b: int, node: int) -> None:
    """Tell `dynamics` in a row, of which it has the rest, what its first layers have of the latent and of the code."""
    if model.code.shape[1] > 0:
        parent, edge = index(tree.parent[b, node]), index(tree.edge[b, node])
        tell(model.dynamics, row, tree.shared[b, index(tree.share[b, parent])], model.code[edge])


@inlined
def read_afterstate(tree: Tree, y: NDArray[np.float32], b: int, node: int, codes: int) -> None:
    """Take state and value of an afterstate from its network row y; what is shared and its prior too if y has them."""
    D, T = tree.state.shape[2], tree.shared.shape[2]
    for d in range(D):
        tree.state[b, node, d] = y[d]
    value = y[y.shape[0] - 1]
    tree.raw_value[b, node] = value
    tree.value[b, node] = value
    if y.shape[0] == D + 1:
        first = first_afterstate(tree, b, index(tree.parent[b, node]))
        tree.share[b, node] = tree.share[b, first]
        for c in range(tree.prior.shape[2]):
            tree.prior[b, node, c] = tree.prior[b, first, c]
        return
    shared, logits = y[D:], y[D + T :]  # a sum as an index might be negative, and would be checked for that
    tree.share[b, node] = tree.shares[b]
    tree.shares[b] += 1
    for i in range(T):
        tree.shared[b, tree.share[b, node], i] = shared[i]
    for c in range(codes):
        tree.prior[b, node, c] = logits[c]
    for c in range(codes, tree.prior.shape[2]):
        tree.prior[b, node, c] = BEYOND
    softmax(tree.prior[b, node], tree.prior[b, node], tree.prior.shape[2])


@inlined
def first_afterstate(tree: Tree, b: int, node: int) -> int:
    """An evaluated afterstate of a decision node, or NONE."""
    for a in range(tree.noise.shape[1]):
        child = tree.child[b, node, a]
        if child != NONE and tree.share[b, index(child)] != NONE:
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
    mask(tree, b, node, config.reverse)


@inlined
def is_known(tree: Tree, config: SearchConfig, known: Known, b: int, node: int, edge: int) -> bool:
    """Whether what lies behind `edge` of `node` needs no network: the realised code, or with KNOWN_ARM the action."""
    if config.reuse == KNOWN_ARM:
        return bool(node == 0 and edge == known.action[b])
    if config.reuse == CHANCE_CHILD and tree.kind[b, node] == CHANCE and tree.parent[b, node] == 0:
        return bool(tree.edge[b, node] == known.action[b] and edge == known.code[b])
    return False


@inlined
def add_known(tree: Tree, config: SearchConfig, known: Known, b: int, parent: int, edge: int) -> int:
    """Add the node whose value is known: nothing below it will be searched."""
    kind = CHANCE if config.reuse == KNOWN_ARM and config.stochastic else DECISION
    node = add_node(tree, b, kind, parent, edge)
    value = np.float64(known.value[b])
    if kind == CHANCE:  # the edge into it pays nothing: the reward is part of what it is worth
        value = np.float64(known.reward[b]) + config.discount * value
    else:
        tree.reward[b, node] = known.reward[b]
    tree.raw_value[b, node] = value
    tree.value[b, node] = value
    tree.known[b] = node
    note_edge(tree, b, node, config.discount)
    return node


@inlined
def queue(work: Work, rows: int, b: int, node: int, edge: int) -> int:
    """Note that edge `edge` of `node` is to be expanded; the new number of rows."""
    work.row_tree[rows], work.row_node[rows], work.row_edge[rows] = b, node, edge
    return rows + 1


@inlined
def expand_afterstates(
    tree: Tree, work: Work, net: Net, outlook: Outlook, config: SearchConfig, first: int, stop: int
) -> int:
    """Evaluate and add the chance node behind each of the queued edges [first, stop)."""
    if first == stop:
        return 0
    for row in range(first, stop):
        b = work.row_tree[row]
        x = net.x[row - first]
        node = add_afterstate(x, tree, outlook, config, b, work.row_node[row], work.row_edge[row])
        work.row_node[row] = node
    status = evaluate(net, stop - first)
    for row in range(first, stop):
        b, node = work.row_tree[row], work.row_node[row]
        read_afterstate(tree, net.y[row - first], b, node, outlook.move.shape[1])
        tree.leaf[b] = node
        tree.rows[b] += 1
    return status


@inlined
def expand_decisions(
    tree: Tree, work: Work, model: Model, outlook: Outlook, config: SearchConfig, first: int, stop: int
) -> int:
    """Evaluate and add the decision node behind each of the queued edges [first, stop)."""
    net = model.dynamics
    while first < stop:
        count = min(stop - first, net.x.shape[0])
        for i in range(count):
            b, row = work.row_tree[first + i], first + i
            parent, edge = work.row_node[row], work.row_edge[row]
            node = add_decision(model, i, tree, outlook, config, b, parent, edge)
            work.row_node[row] = node
        # apart from the walk through the trees: the memory sees long rows in their order
        for i in range(count):
            tell_code(tree, model, i, work.row_tree[first + i], work.row_node[first + i])
        status = evaluate_told(net, count, model.code.shape[1])
        if status != 0:
            return status
        for i in range(count):
            b, node = work.row_tree[first + i], work.row_node[first + i]
            read_decision(tree, config, net.y[i], b, node)
            tree.leaf[b] = node
            tree.rows[b] += 1
        # not at once: what was stored number by number is not yet there to load as a row
        for i in range(count):
            b, node = work.row_tree[first + i], work.row_node[first + i]
            softmax(tree.policy[b, node], tree.prior[b, node], tree.score.shape[1])
            note_edge(tree, b, node, config.discount)
        first += count
    return 0


@inlined
def simulate(
    tree: Tree,
    work: Work,
    model: Model,
    outlook: Outlook,
    config: SearchConfig,
    known: Known,
    simulation: int,
) -> int:
    """Expand the leaf edge of every search; tree.leaf becomes the node to back up from."""
    B, decisions = tree.used.shape[0], 0
    for b in range(B):
        node, edge = tree.leaf[b], tree.leaf_edge[b]
        if edge != NONE and is_known(tree, config, known, b, node, edge):
            tree.leaf[b], tree.leaf_edge[b] = add_known(tree, config, known, b, node, edge), NONE
        elif edge != NONE and (not config.stochastic or tree.kind[b, node] == CHANCE):
            decisions = queue(work, decisions, b, node, edge)
    firsts = queue_afterstates(tree, work, model, config, decisions, False)
    rows = queue_afterstates(tree, work, model, config, firsts, True)
    calls = work.calls[simulation]
    calls[0], calls[1], calls[2] = decisions, firsts - decisions, rows - firsts
    status = expand_decisions(tree, work, model, outlook, config, 0, decisions)
    if status == 0:
        status = expand_afterstates(tree, work, model.afterstate, outlook, config, decisions, firsts)
    if status == 0:
        status = expand_afterstates(tree, work, model.sibling, outlook, config, firsts, rows)
    return status


@inlined
def queue_afterstates(
    tree: Tree, work: Work, model: Model, config: SearchConfig, rows: int, siblings: bool
) -> int:
    """Queue the edges to afterstates for which `sibling` suffices, or the others; the new number of rows."""
    for b in range(tree.used.shape[0]):
        node, edge = tree.leaf[b], tree.leaf_edge[b]
        if config.stochastic and edge != NONE and tree.kind[b, node] == DECISION:
            has_elder = model.sibling.x.shape[0] > 0 and first_afterstate(tree, b, node) != NONE
            if has_elder == siblings:
                rows = queue(work, rows, b, node, edge)
    return rows


@inlined
def expand_all_codes(
    tree: Tree,
    work: Work,
    model: Model,
    outlook: Outlook,
    config: SearchConfig,
    known: Known,
    simulation: int,
) -> int:
    """Full width: add every code of the afterstates just added; they stay the nodes to back up from."""
    rows = 0
    for b in range(tree.used.shape[0]):
        if tree.leaf_edge[b] == NONE:
            continue
        for c in range(outlook.move.shape[1]):
            if is_known(tree, config, known, b, tree.leaf[b], c):
                add_known(tree, config, known, b, tree.leaf[b], c)
            else:
                rows = queue(work, rows, b, tree.leaf[b], c)
    work.calls[simulation, 0] += rows
    status = expand_decisions(tree, work, model, outlook, config, 0, rows)
    for row in range(rows):
        b = work.row_tree[row]
        tree.leaf[b] = tree.parent[b, work.row_node[row]]
    return status


@inlined
def back_up_mean(tree: Tree, work: Work, config: SearchConfig, begin: int, stop: int) -> None:
    """Running means of the discounted returns, from the leaves to the roots, level by level as in `descend`."""
    count = stop - begin
    for i in range(count):
        b = begin + i
        work.row_tree[i], work.gain[b] = b, tree.value[b, index(tree.leaf[b])]
    while count > 0:
        count = go_up(tree, work, config, count)


@inlined
def go_up(tree: Tree, work: Work, config: SearchConfig, count: int) -> int:
    """Add the gain of each of the first `count` searches of work.row_tree to its node; keep those below the root."""
    kept = 0
    for i in range(count):
        b = index(work.row_tree[i])
        node, gain = index(tree.leaf[b]), work.gain[b]
        visits = tree.visits[b, node]
        tree.value[b, node] = (np.float64(tree.value[b, node]) * visits + gain) / (visits + 1)
        tree.visits[b, node] = visits + 1
        parent = tree.parent[b, node]
        if parent == NONE:
            continue
        note_edge(tree, b, node, config.discount)
        if tree.kind[b, node] == DECISION:
            work.gain[b] = np.float64(tree.reward[b, node]) + config.discount * gain
        tree.leaf[b] = parent
        work.row_tree[kept] = b
        kept += 1
    return kept


@inlined
def expected_value(tree: Tree, b: int, node: int) -> float:
    """Prior-weighted expectation over all codes of a fully expanded chance node."""
    value = ZERO
    for i in range(0, tree.prior.shape[2], FEW):
        value += total(load_few(tree.prior[b, node], i) * load_few(tree.edge_value[b, node], i))
    return float(value)


@inlined
def visited_value(tree: Tree, b: int, node: int) -> float:
    """Mean of a decision node's own value and its actions' values, weighted by visits."""
    value, visits = tree.raw_value[b, node], ONE
    for i in range(0, tree.score.shape[1], FEW):
        n = load_few(tree.edge_visits[b, node], i)
        value += total(n * load_few(tree.edge_value[b, node], i))
        visits += total(n)
    return float(value / visits)


@inlined
def back_up_expectation(tree: Tree, config: SearchConfig, b: int) -> None:
    """Recompute the values on the path from the new afterstate to the root from those of their children."""
    node = tree.leaf[b]
    while node != NONE:
        tree.visits[b, node] += 1
        if node == tree.known[b]:
            pass  # its value stands
        elif tree.kind[b, node] == CHANCE:
            tree.value[b, node] = expected_value(tree, b, node)
        else:
            tree.value[b, node] = visited_value(tree, b, node)
        if tree.parent[b, node] != NONE:
            note_edge(tree, b, node, config.discount)
        node = tree.parent[b, node]


@inlined
def back_up(tree: Tree, work: Work, config: SearchConfig, begin: int, stop: int) -> None:
    """Back up from the leaves of searches [begin, stop)."""
    if not config.full_width:
        back_up_mean(tree, work, config, begin, stop)
        return
    for b in range(begin, stop):
        back_up_expectation(tree, config, b)


@kernel
def grow(
    tree: Tree,
    work: Work,
    model: Model,
    outlook: Outlook,
    config: SearchConfig,
    known: Known,
    table: NDArray[np.int32],
) -> int:
    """Run all simulations of all searches; 0 or the status of a failed network call."""
    for b in range(tree.used.shape[0]):
        softmax(tree.policy[b, 0], tree.prior[b, 0], tree.score.shape[1])
        if config.rule == PUCT:
            mix_noise(tree, config, b)
    B = tree.used.shape[0]
    for simulation in range(config.simulations):
        for begin in range(0, B, GROUP):
            stop = min(begin + GROUP, B)
            if simulation > 0:
                back_up(tree, work, config, begin, stop)
            descend(tree, work, config, table, simulation, begin, stop)
        status = simulate(tree, work, model, outlook, config, known, simulation)
        if status == 0 and config.full_width:
            status = expand_all_codes(tree, work, model, outlook, config, known, simulation)
        if status != 0:
            return status
    back_up(tree, work, config, 0, B)
    return 0


def nodes_needed(config: SearchConfig, codes: int) -> int:
    """Nodes of a tree after all its simulations."""
    return 1 + config.simulations * (1 + codes if config.full_width else 1)
