"""What happens at a decision node: Gumbel MuZero's halving, completed Q, scores and improved policy; and PUCT.

Danihelka et al., "Policy improvement by planning with Gumbel", ICLR 2022; Schrittwieser et al., "Mastering Atari, Go,
chess and shogi by planning with a learned model", Nature 2020, for PUCT; conventions of mctx 0.0.71.
"""

import math

import numpy as np
from numpy.typing import NDArray

from kernels.jit import inlined
from kernels.search.config import SearchConfig
from kernels.search.tree import BEYOND, LEGAL, MASKED, NONE, ONE, ZERO, Tree
from kernels.simd import FEW, Number, choose, exponential, first, largest, load_few, smallest, store, total

LOWEST_SCORE = -1e9
TINY = np.float32(1.1754943508222875e-38)
LEAST_SPAN: Number = np.float32(1e-8)


def halving_table(considered: int, simulations: int) -> NDArray[np.int32]:
    """Visit count an action must have to be picked, [m + 1, n]: row m for m considered actions (paper, section 2)."""
    table = np.zeros((considered + 1, simulations), np.int32)
    for m in range(considered + 1):
        table[m] = _halving_row(m, simulations)
    return table


def _halving_row(m: int, n: int) -> list[int]:
    if m <= 1:
        return list(range(n))
    phases, alive = math.ceil(math.log2(m)), m
    visits, row = [0] * m, list[int]()
    while len(row) < n:
        for _ in range(max(1, n // (phases * alive))):
            row += visits[:alive]
            visits[:alive] = [count + 1 for count in visits[:alive]]
        alive = max(2, alive // 2)
    return row[:n]


@inlined
def completed_q(tree: Tree, b: int, node: int) -> Number:
    """tree.score[b] = Q of every action, visited ones their own, the others the mixed value; the most visits of one."""
    visits, most, mass, weighted = ZERO, ZERO, ZERO, ZERO
    q, count, value = tree.score[b], tree.edge_visits[b, node], tree.edge_value[b, node]
    for i in range(0, q.shape[0], FEW):
        n, policy = load_few(count, i), load_few(tree.policy[b, node], i)
        probability = choose(n > ZERO, choose(policy > TINY, policy, TINY), ZERO)
        visits += total(n)
        most = max(most, largest(n))
        mass += total(probability)
        weighted += total(probability * load_few(value, i))
    mass = mass if visits > ZERO else ONE
    mixed = (tree.raw_value[b, node] * mass + visits * weighted) / (mass * (ONE + visits))
    for i in range(0, q.shape[0], FEW):
        store(q, i, choose(load_few(count, i) > ZERO, load_few(value, i), mixed))
    return most


@inlined
def scaled_q(tree: Tree, config: SearchConfig, b: int, node: int) -> None:
    """tree.score[b] = sigma(completed Q)."""
    most = completed_q(tree, b, node)
    scale_q(tree.score[b], tree.prior[b, node], config, most)


@inlined
def greedy_q(policy: NDArray[np.float64], tree: Tree, config: SearchConfig, b: int, node: int) -> float:
    """Completed Q of the action that policy [A] likes best: what the node is worth to an agent that does not explore.

    The expectation under an improved policy charges every flat bar a little for entries nobody will make.
    """
    completed_q(tree, b, node)
    best = 0
    for a in range(1, policy.shape[0]):
        if policy[a] > policy[best]:
            best = a
    return float(tree.score[b, best])


@inlined
def scale_q(
    q: NDArray[np.float32], logits: NDArray[np.float32], config: SearchConfig, most_visits: Number
) -> None:
    """q <- (c_visit + max N) c_scale q / S, after a min-max rescaling where the configuration asks for it."""
    unit = np.float32((config.c_visit + most_visits) * config.c_scale / config.value_unit)
    low = ZERO
    if config.rescale:
        low, high = span(q, logits)
        unit /= max(high - low, LEAST_SPAN)
    for i in range(0, q.shape[0], FEW):
        store(q, i, (load_few(q, i) - low) * unit)


@inlined
def span(q: NDArray[np.float32], logits: NDArray[np.float32]) -> tuple[Number, Number]:
    """The smallest and the largest of q [W] among the actions, illegal ones too, as in mctx."""
    low, high = -BEYOND, BEYOND
    for i in range(0, q.shape[0], FEW):
        is_action = load_few(logits, i) > BEYOND
        low = min(low, smallest(choose(is_action, load_few(q, i), -BEYOND)))
        high = max(high, largest(choose(is_action, load_few(q, i), BEYOND)))
    return low, high


@inlined
def improved_policy(out: NDArray[np.float64], tree: Tree, config: SearchConfig, b: int, node: int) -> None:
    """out [A] = softmax(logits + sigma(completed Q))."""
    scaled_q(tree, config, b, node)
    highest = -np.inf
    for a in range(out.shape[0]):
        out[a] = np.float64(tree.score[b, a]) + np.float64(tree.prior[b, node, a])
        highest = max(highest, out[a])
    mass = 0.0
    for a in range(out.shape[0]):
        out[a] = math.exp(out[a] - highest)
        mass += out[a]
    for a in range(out.shape[0]):
        out[a] /= mass


@inlined
def best_of_visited(tree: Tree, config: SearchConfig, b: int, considered_visit: Number) -> int:
    """Root action with `considered_visit` visits and the best noise + logit + sigma(completed Q)."""
    scaled_q(tree, config, b, 0)
    highest = MASKED
    for a in range(tree.noise.shape[1]):
        highest = max(highest, tree.prior[b, 0, a])
    best, best_score = NONE, -np.inf
    for a in range(tree.noise.shape[1]):
        wanted = tree.prior[b, 0, a] > LEGAL and tree.edge_visits[b, 0, a] == considered_visit
        score = max(tree.noise[b, a] + (tree.prior[b, 0, a] - highest) + tree.score[b, a], LOWEST_SCORE)
        better = wanted and score > best_score
        best, best_score = a if better else best, score if better else best_score
    return best


@inlined
def root_candidate(
    tree: Tree, config: SearchConfig, table: NDArray[np.int32], b: int, simulation: int
) -> int:
    """Action that sequential halving tries next; `table` [m + 1, n] comes from `halving_table`."""
    legal = 0
    for a in range(tree.noise.shape[1]):
        legal += tree.prior[b, 0, a] > LEGAL
    return best_of_visited(tree, config, b, table[min(config.considered, legal), simulation])


@inlined
def root_action(tree: Tree, config: SearchConfig, b: int) -> int:
    """The action to take: the winner among the most visited."""
    most = ZERO
    for a in range(tree.noise.shape[1]):
        most = max(most, tree.edge_visits[b, 0, a])
    return best_of_visited(tree, config, b, most)


@inlined
def interior_action(tree: Tree, config: SearchConfig, b: int, node: int) -> int:
    """Legal action whose improved probability most exceeds its share of the visits."""
    scaled_q(tree, config, b, node)
    z, logits, count = tree.score[b], tree.prior[b, node], tree.edge_visits[b, node]
    highest, mass, visits = MASKED, ZERO, ZERO
    for i in range(0, z.shape[0], FEW):
        highest = max(highest, largest(load_few(z, i) + load_few(logits, i)))
    for i in range(0, z.shape[0], FEW):
        weight = exponential(load_few(z, i) + load_few(logits, i) - highest)
        store(z, i, weight)
        mass += total(weight)
        visits += total(load_few(count, i))
    for i in range(0, z.shape[0], FEW):  # all scores times mass (1 + visits): the best stays the best
        store(z, i, load_few(z, i) * (ONE + visits) - load_few(count, i) * mass)
    return best_legal(z, logits)


@inlined
def best_legal(score: NDArray[np.float32], logits: NDArray[np.float32]) -> int:
    """The legal action with the highest score [W], the first of equals."""
    best, best_score = NONE, MASKED
    for i in range(0, score.shape[0], FEW):
        z = choose(load_few(logits, i) > LEGAL, load_few(score, i), MASKED)
        top = largest(z)
        if top > best_score:
            best, best_score = i + first(z == top), top
    return best
