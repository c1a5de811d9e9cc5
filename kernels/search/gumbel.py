"""Gumbel MuZero at a decision node: sequential halving, completed Q, the choice of an action and the improved policy.

Danihelka et al., "Policy improvement by planning with Gumbel", ICLR 2022, whose sections and equations are cited
below; conventions of mctx 0.0.71.  W lanes of a row hold the A actions of a node (kernels.search.tree).
"""

import math

import numpy as np
from numpy.typing import NDArray

from kernels.jit import inlined
from kernels.search.config import SearchConfig
from kernels.search.tree import MASKED_LOGIT, MIN_LEGAL_LOGIT, NONE, ONE, PADDING_LOGIT, ZERO, Tree, softmax
from kernels.simd import (
    LANES_4,
    Scalar,
    exponential,
    first_set,
    load_4,
    reduce_add,
    reduce_max,
    reduce_min,
    select,
    store,
)

MIN_SCORE = -1e9  # of a considered action, as in mctx
TINY = np.float32(1.1754943508222875e-38)  # the smallest normal float32
MIN_Q_RANGE: Scalar = np.float32(1e-8)  # of a rescaling


def halving_table(considered: int, simulations: int) -> NDArray[np.int32]:
    """[m + 1, n] visits of the action that each simulation tries, row m for m considered actions (section 2)."""
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
def completed_q(tree: Tree, b: int, node: int) -> Scalar:
    """tree.score[b] = completed Q of every action; returns the visits of the most visited one.

    A visited action has its own Q, any other the mixed value of the node (appendix D).
    """
    visits, most, mass, weighted = ZERO, ZERO, ZERO, ZERO
    q, count, value = tree.score[b], tree.edge_visits[b, node], tree.edge_value[b, node]
    for i in range(0, q.shape[0], LANES_4):
        n, policy = load_4(count, i), load_4(tree.policy[b, node], i)
        probability = select(n > ZERO, select(policy > TINY, policy, TINY), ZERO)
        visits += reduce_add(n)
        most = max(most, reduce_max(n))
        mass += reduce_add(probability)
        weighted += reduce_add(probability * load_4(value, i))
    mass = mass if visits > ZERO else ONE
    mixed = (tree.raw_value[b, node] * mass + visits * weighted) / (mass * (ONE + visits))
    for i in range(0, q.shape[0], LANES_4):
        store(q, i, select(load_4(count, i) > ZERO, load_4(value, i), mixed))
    return most


@inlined
def transformed_q(tree: Tree, config: SearchConfig, b: int, node: int) -> None:
    """tree.score[b] = sigma(completed Q), with the sigma of `transform_q`."""
    most = completed_q(tree, b, node)
    transform_q(tree.score[b], tree.prior[b, node], config, most)


@inlined
def value_of_greedy_action(policy: NDArray[np.float64], tree: Tree, config: SearchConfig, b: int, node: int) -> float:
    """Completed Q of the most probable action of policy [A]: the value of the node for an agent that does not explore.

    The expectation under the improved policy would charge every flat bar for entries that the agent never makes.
    """
    completed_q(tree, b, node)
    best = 0
    for a in range(1, policy.shape[0]):
        if policy[a] > policy[best]:
            best = a
    return float(tree.score[b, best])


@inlined
def transform_q(q: NDArray[np.float32], logits: NDArray[np.float32], config: SearchConfig, most_visits: Scalar) -> None:
    """q [W] <- (c_visit + max N) c_scale q / q_scale (eq. 8); `rescale_values` first scales q to [0, 1]."""
    unit = np.float32((config.c_visit + most_visits) * config.c_scale / config.q_scale)
    low = ZERO
    if config.rescale_values:
        low, high = min_max_q(q, logits)
        unit /= max(high - low, MIN_Q_RANGE)
    for i in range(0, q.shape[0], LANES_4):
        store(q, i, (load_4(q, i) - low) * unit)


@inlined
def min_max_q(q: NDArray[np.float32], logits: NDArray[np.float32]) -> tuple[Scalar, Scalar]:
    """Minimum and maximum of q [W] over all actions, legal or not, as in mctx."""
    low, high = -PADDING_LOGIT, PADDING_LOGIT
    for i in range(0, q.shape[0], LANES_4):
        is_action = load_4(logits, i) > PADDING_LOGIT
        low = min(low, reduce_min(select(is_action, load_4(q, i), -PADDING_LOGIT)))
        high = max(high, reduce_max(select(is_action, load_4(q, i), PADDING_LOGIT)))
    return low, high


@inlined
def improved_policy(out: NDArray[np.float64], tree: Tree, config: SearchConfig, b: int, node: int) -> None:
    """out [A] = softmax(logits + sigma(completed Q)) (eq. 11)."""
    transformed_q(tree, config, b, node)
    for a in range(out.shape[0]):
        out[a] = np.float64(tree.score[b, a]) + np.float64(tree.prior[b, node, a])
    softmax(out)


@inlined
def best_considered_action(tree: Tree, config: SearchConfig, b: int, considered_visit: Scalar) -> int:
    """Legal root action with `considered_visit` visits and the best noise + logit + sigma(completed Q), or NONE."""
    transformed_q(tree, config, b, 0)
    highest = MASKED_LOGIT
    for a in range(tree.noise.shape[1]):
        highest = max(highest, tree.prior[b, 0, a])
    best, best_score = NONE, -np.inf
    for a in range(tree.noise.shape[1]):
        considered = tree.prior[b, 0, a] > MIN_LEGAL_LOGIT and tree.edge_visits[b, 0, a] == considered_visit
        score = max(tree.noise[b, a] + (tree.prior[b, 0, a] - highest) + tree.score[b, a], MIN_SCORE)
        better = considered and score > best_score
        best, best_score = a if better else best, score if better else best_score
    return best


@inlined
def root_action_selection(tree: Tree, config: SearchConfig, table: NDArray[np.int32], b: int, simulation: int) -> int:
    """Root action that `simulation` tries; `table` [m + 1, n] is a `halving_table`."""
    legal = 0
    for a in range(tree.noise.shape[1]):
        legal += tree.prior[b, 0, a] > MIN_LEGAL_LOGIT
    return best_considered_action(tree, config, b, table[min(config.max_considered_actions, legal), simulation])


@inlined
def final_action(tree: Tree, config: SearchConfig, b: int) -> int:
    """The decision: the best considered action among the most visited ones."""
    most = ZERO
    for a in range(tree.noise.shape[1]):
        most = max(most, tree.edge_visits[b, 0, a])
    return best_considered_action(tree, config, b, most)


@inlined
def interior_action(tree: Tree, config: SearchConfig, b: int, node: int) -> int:
    """Legal action with the largest improved probability - N_a / (1 + N) (eq. 14)."""
    transformed_q(tree, config, b, node)
    z, logits, count = tree.score[b], tree.prior[b, node], tree.edge_visits[b, node]
    highest, mass, visits = MASKED_LOGIT, ZERO, ZERO
    for i in range(0, z.shape[0], LANES_4):
        highest = max(highest, reduce_max(load_4(z, i) + load_4(logits, i)))
    for i in range(0, z.shape[0], LANES_4):
        weight = exponential(load_4(z, i) + load_4(logits, i) - highest)
        store(z, i, weight)
        mass += reduce_add(weight)
        visits += reduce_add(load_4(count, i))
    # scores times mass (1 + visits), which is positive: the best action stays the best
    for i in range(0, z.shape[0], LANES_4):
        store(z, i, load_4(z, i) * (ONE + visits) - load_4(count, i) * mass)
    return best_legal_action(z, logits)


@inlined
def best_legal_action(score: NDArray[np.float32], logits: NDArray[np.float32]) -> int:
    """The legal action with the highest score [W], the first of equals; NONE where none is legal."""
    best, best_score = NONE, MASKED_LOGIT
    for i in range(0, score.shape[0], LANES_4):
        z = select(load_4(logits, i) > MIN_LEGAL_LOGIT, load_4(score, i), MASKED_LOGIT)
        top = reduce_max(z)
        if top > best_score:
            best, best_score = i + first_set(z == top), top
    return best
