"""Stochastic tree search: B trees grow in lockstep, one network call per kind of node and simulation for all of them.

A simulation follows the tree to an edge without a node, adds that node, evaluates it and backs its value up.  With
`expectation_backup` an afterstate is added together with all its codes, and its value is their expectation; the visit
mean of sampled codes estimates the same sum.  Antonoglou et al., "Planning in stochastic environments with a learned
model", ICLR 2022.  This file has the ways down and up, kernels.search.expansion the new nodes.

`sampled` is None but for progressive widening, where `tree` is `sampled.tree` and the edges of a decision are
candidates.  The compiler knows a None by its type and leaves the branch out.
"""

import numpy as np
from numpy.typing import NDArray

from kernels.jit import inlined, kernel
from kernels.search.config import PUCT, SearchConfig
from kernels.search.costs import ExogenousCosts
from kernels.search.expansion import SearchWork, expand_all_codes, expand_leaves
from kernels.search.gumbel import interior_action, root_action_selection
from kernels.search.networks import Networks
from kernels.search.progressive_widening import SampledTree, widen
from kernels.search.puct import add_dirichlet_noise, puct_action
from kernels.search.tree import (
    CACHE_LINE,
    CHANCE,
    DECISION,
    NONE,
    ONE,
    ZERO,
    ReusedValue,
    Tree,
    as_unsigned,
    masked_softmax,
    update_edge_stats,
)
from kernels.simd import LANES_4, first_set, load_4, prefetch, reduce_add, reduce_max

SEARCH_GROUP = 16  # searches that step down and up together: their nodes fit into the nearest cache


@inlined
def simulate(
    tree: Tree,
    sampled: SampledTree | None,
    work: SearchWork,
    config: SearchConfig,
    table: NDArray[np.int32],
    simulation: int,
    begin: int,
    stop: int,
) -> None:
    """Walk searches [begin, stop) down to the edge that each expands: tree.leaf, tree.leaf_edge.

    leaf_edge is NONE where the leaf has a reused value.  The searches step down together, level by level: the choice
    at a node is a chain of latencies, and several chains overlap.
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
            tree.leaf_edge[b] = select_edge(tree, sampled, config, b, as_unsigned(tree.leaf[b]))


@inlined
def step_down(tree: Tree, work: SearchWork, depth: int, count: int) -> int:
    """Take the first `count` searches of work.row_search along their edges; keep those at no leaf, return how many."""
    kept = 0
    for i in range(count):
        b = as_unsigned(work.row_search[i])
        child = tree.child[b, as_unsigned(tree.leaf[b]), as_unsigned(tree.leaf_edge[b])]
        tree.depth[b] = max(tree.depth[b], depth)
        if child == NONE:
            tree.leaf_bars[b] = (depth - 1) // 2  # in a stochastic search, whose decisions are two edges apart
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
def select_edge(tree: Tree, sampled: SampledTree | None, config: SearchConfig, b: int, node: int) -> int:
    """The edge to take at a node below the root."""
    if tree.kind[b, node] == CHANCE:
        return select_chance_code(tree, b, node)
    if sampled is not None:
        widen(sampled, config, b, node)
    if config.algorithm == PUCT:
        return puct_action(tree, config, b, node)
    return interior_action(tree, config, b, node)


@inlined
def select_chance_code(tree: Tree, b: int, node: int) -> int:
    """The code with the largest prior / (visits + 1), a quasi-random outcome (Ozair et al. 2021, A.3)."""
    best, best_score = 0, -ONE
    for i in range(0, tree.prior.shape[2], LANES_4):
        score = load_4(tree.prior[b, node], i) / (load_4(tree.edge_visits[b, node], i) + ONE)
        top = reduce_max(score)
        if top > best_score:
            best, best_score = i + first_set(score == top), top
    return best


@inlined
def backward_mean(tree: Tree, work: SearchWork, config: SearchConfig, begin: int, stop: int) -> None:
    """Add a discounted return to the mean of every node from the leaf to the root, level by level as in `simulate`."""
    count = stop - begin
    for i in range(count):
        b = begin + i
        work.row_search[i], work.discounted_return[b] = b, tree.value[b, as_unsigned(tree.leaf[b])]
    while count > 0:
        count = step_up(tree, work, config, count)


@inlined
def step_up(tree: Tree, work: SearchWork, config: SearchConfig, count: int) -> int:
    """Add the returns of the first `count` searches of work.row_search to their nodes; keep those below a root."""
    kept = 0
    for i in range(count):
        b = as_unsigned(work.row_search[i])
        node, discounted_return = as_unsigned(tree.leaf[b]), work.discounted_return[b]
        visits = tree.visits[b, node]
        tree.value[b, node] = (np.float64(tree.value[b, node]) * visits + discounted_return) / (visits + 1)
        tree.visits[b, node] = visits + 1
        parent = tree.parent[b, node]
        if parent == NONE:
            continue
        update_edge_stats(tree, b, node, config.discount)
        if tree.kind[b, node] == DECISION:
            work.discounted_return[b] = np.float64(tree.reward[b, node]) + config.discount * discounted_return
        tree.leaf[b] = parent
        work.row_search[kept] = b
        kept += 1
    return kept


@inlined
def expected_value(tree: Tree, b: int, node: int) -> float:
    """Expectation over the codes of a chance node that has all of them."""
    value = ZERO
    for i in range(0, tree.prior.shape[2], LANES_4):
        value += reduce_add(load_4(tree.prior[b, node], i) * load_4(tree.edge_value[b, node], i))
    return float(value)


@inlined
def visited_value(tree: Tree, b: int, node: int) -> float:
    """Mean of the network's value of a decision node and of the Q of its actions, weighted by visits."""
    value, visits = tree.raw_value[b, node], ONE
    for i in range(0, tree.score.shape[1], LANES_4):
        n = load_4(tree.edge_visits[b, node], i)
        value += reduce_add(n * load_4(tree.edge_value[b, node], i))
        visits += reduce_add(n)
    return float(value / visits)


@inlined
def backward_expectation(tree: Tree, config: SearchConfig, b: int) -> None:
    """Recompute the values from the new afterstate to the root, each from the values of its children."""
    node = tree.leaf[b]
    while node != NONE:
        tree.visits[b, node] += 1
        if node == tree.reused_node[b]:
            pass  # the reused value stays
        elif tree.kind[b, node] == CHANCE:
            tree.value[b, node] = expected_value(tree, b, node)
        else:
            tree.value[b, node] = visited_value(tree, b, node)
        if tree.parent[b, node] != NONE:
            update_edge_stats(tree, b, node, config.discount)
        node = tree.parent[b, node]


@inlined
def backward(tree: Tree, work: SearchWork, config: SearchConfig, begin: int, stop: int) -> None:
    """Back up from the leaves of searches [begin, stop), by means or by expectations."""
    if not config.expectation_backup:
        backward_mean(tree, work, config, begin, stop)
        return
    for b in range(begin, stop):
        backward_expectation(tree, config, b)


@kernel
def run_simulations(
    tree: Tree,
    sampled: SampledTree | None,
    work: SearchWork,
    networks: Networks,
    costs: ExogenousCosts,
    config: SearchConfig,
    reused: ReusedValue,
    table: NDArray[np.int32],
) -> int:
    """Run all simulations of all searches from their roots; 0 or the status of a failed network call."""
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
            simulate(tree, sampled, work, config, table, simulation, begin, stop)
        status = expand_leaves(tree, sampled, work, networks, costs, config, reused, simulation)
        if status == 0 and config.expectation_backup:
            status = expand_all_codes(tree, sampled, work, networks, costs, config, reused, simulation)
        if status != 0:
            return status
    backward(tree, work, config, 0, B)
    return 0
