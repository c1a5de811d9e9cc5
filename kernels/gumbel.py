"""What happens at a decision node: Gumbel MuZero's halving, completed Q, scores and improved policy; and PUCT.

Danihelka et al., "Policy improvement by planning with Gumbel", ICLR 2022; Schrittwieser et al., "Mastering Atari, Go,
chess and shogi by planning with a learned model", Nature 2020, for PUCT; conventions of mctx 0.0.71.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels._jit import inlined
from kernels.tree import MASKED, NONE, NOTHING, Tree, edge_value

LOWEST_SCORE = -1e9
TINY = 1.1754943508222875e-38
GUMBEL, PUCT, MARKET, WIDENING = (
    0,
    1,
    2,
    3,
)  # how a search chooses: also kernels.market_tree and kernels.widening
RULES = ("gumbel", "puct", "market", "widening")
PUCT_INIT, PUCT_BASE = 1.25, 19652.0


class SearchConfig(NamedTuple):
    """What a search is told, coerced once by `new_search_config`."""

    simulations: int
    considered: int  # m, root actions that enter the halving
    discount: float  # per bar
    c_visit: float
    c_scale: float
    value_unit: float  # S: Q is divided by this slow running scale
    rescale: bool  # min-max of completed Q, as mctx does by default
    stochastic: bool  # chance nodes between decisions
    full_width: bool  # expand all codes of an afterstate at once and back up their expectation
    reverse: bool  # an open position may be turned in one action
    excursion_weight: float  # k of the `amddp` reward; 0 is `pnl`, which forgets where a position was entered
    reuse: int  # NOTHING, CHANCE_CHILD or KNOWN_ARM of kernels.tree
    rule: int  # GUMBEL, PUCT, MARKET or WIDENING
    noise_share: float  # of Dirichlet noise in the root's prior, under PUCT
    noise_alpha: float  # its concentration
    samples: int  # sizes of each side at the root, under WIDENING


def new_search_config(
    simulations: int = 16,
    considered: int = 4,
    discount: float = 0.99,
    c_visit: float = 50.0,
    c_scale: float = 0.1,
    value_unit: float = 1.0,
    rescale: bool = False,
    stochastic: bool = True,
    full_width: bool = True,
    reverse: bool = False,
    excursion_weight: float = 0.0,
    reuse: int = NOTHING,
    rule: int = GUMBEL,
    noise_share: float = 0.25,
    noise_alpha: float = 0.3,
    samples: int = 4,
) -> SearchConfig:
    """The `forex` defaults; `parity` with mctx is rescale=True, full_width=False."""
    return SearchConfig(
        int(simulations),
        int(considered),
        float(discount),
        float(c_visit),
        float(c_scale),
        float(value_unit),
        bool(rescale),
        bool(stochastic),
        bool(full_width),
        bool(reverse),
        float(excursion_weight),
        int(reuse),
        int(rule),
        float(noise_share),
        float(noise_alpha),
        int(samples),
    )


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
def weigh_actions(tree: Tree, b: int, node: int) -> None:
    """tree.policy of a decision node, from its logits: once a node, for a search asks for it at every visit."""
    A, highest, total = tree.policy.shape[2], MASKED, 0.0
    for a in range(A):
        highest = max(highest, tree.prior[b, node, a])
    for a in range(A):
        weight = math.exp(tree.prior[b, node, a] - highest)
        tree.policy[b, node, a] = weight
        total += weight
    for a in range(A):
        tree.policy[b, node, a] /= total


@inlined
def completed_q(tree: Tree, config: SearchConfig, b: int, node: int) -> int:
    """tree.score[b] = Q of every action, visited ones their own, the others the mixed value; the most visits of one."""
    q = tree.score[b]
    actions = q.shape[0]
    visits, most, mass, weighted = 0, 0, 0.0, 0.0
    for a in range(actions):
        child = tree.child[b, node, a]
        if child == NONE or tree.visits[b, child] == 0:
            continue
        probability = max(tree.policy[b, node, a], TINY)
        q[a] = edge_value(tree, b, child, config.discount)
        visits += tree.visits[b, child]
        most = max(most, tree.visits[b, child])
        mass += probability
        weighted += probability * q[a]
    mixed = np.float64(tree.raw_value[b, node])
    if visits > 0:
        mixed = (mixed + visits * weighted / mass) / (1 + visits)
    for a in range(actions):
        child = tree.child[b, node, a]
        if child == NONE or tree.visits[b, child] == 0:
            q[a] = mixed
    return most


@inlined
def scaled_q(tree: Tree, config: SearchConfig, b: int, node: int) -> None:
    """tree.score[b] = sigma(completed Q)."""
    most = completed_q(tree, config, b, node)
    scale_q(tree.score[b], config, most)


@inlined
def greedy_q(policy: NDArray[np.float64], tree: Tree, config: SearchConfig, b: int, node: int) -> float:
    """Completed Q of the action that policy [A] likes best: what the node is worth to an agent that does not explore.

    The expectation under an improved policy charges every flat bar a little for entries nobody will make.
    """
    completed_q(tree, config, b, node)
    best = 0
    for a in range(1, policy.shape[0]):
        if policy[a] > policy[best]:
            best = a
    return float(tree.score[b, best])


@inlined
def scale_q(q: NDArray[np.float64], config: SearchConfig, most_visits: int) -> None:
    """q <- (c_visit + max N) c_scale q / S, after a min-max rescaling where the configuration asks for it."""
    unit = (config.c_visit + most_visits) * config.c_scale / config.value_unit
    low = 0.0
    if config.rescale:
        low, high = q[0], q[0]
        for a in range(q.shape[0]):
            low, high = min(low, q[a]), max(high, q[a])
        unit /= max(high - low, 1e-8)
    for a in range(q.shape[0]):
        q[a] = (q[a] - low) * unit


@inlined
def improved_policy(out: NDArray[np.float64], tree: Tree, config: SearchConfig, b: int, node: int) -> None:
    """out [A] = softmax(logits + sigma(completed Q)); `out` may be tree.score[b]."""
    scaled_q(tree, config, b, node)
    q = tree.score[b]
    highest = -np.inf
    for a in range(q.shape[0]):
        out[a] = q[a] + tree.prior[b, node, a]
        highest = max(highest, out[a])
    total = 0.0
    for a in range(q.shape[0]):
        out[a] = math.exp(out[a] - highest)
        total += out[a]
    for a in range(q.shape[0]):
        out[a] /= total


@inlined
def visits_of(tree: Tree, b: int, node: int, edge: int) -> int:
    """Visits of the node behind an edge; 0 where there is none."""
    child = tree.child[b, node, edge]
    return 0 if child == NONE else tree.visits[b, child]


@inlined
def best_of_visited(tree: Tree, config: SearchConfig, b: int, considered_visit: int) -> int:
    """Root action with `considered_visit` visits and the best noise + logit + sigma(completed Q)."""
    scaled_q(tree, config, b, 0)
    highest = MASKED
    for a in range(tree.score.shape[1]):
        highest = max(highest, tree.prior[b, 0, a])
    best, best_score = NONE, -np.inf
    for a in range(tree.score.shape[1]):
        if not tree.legal[b, 0, a] or visits_of(tree, b, 0, a) != considered_visit:
            continue
        score = tree.noise[b, a] + (tree.prior[b, 0, a] - highest) + tree.score[b, a]
        score = max(score, LOWEST_SCORE)
        if score > best_score:
            best, best_score = a, score
    return best


@inlined
def root_candidate(
    tree: Tree, config: SearchConfig, table: NDArray[np.int32], b: int, simulation: int
) -> int:
    """Action that sequential halving tries next; `table` [m + 1, n] comes from `halving_table`."""
    legal = 0
    for a in range(tree.legal.shape[2]):
        legal += tree.legal[b, 0, a]
    return best_of_visited(tree, config, b, table[min(config.considered, legal), simulation])


@inlined
def root_action(tree: Tree, config: SearchConfig, b: int) -> int:
    """The action to take: the winner among the most visited."""
    most = 0
    for a in range(tree.score.shape[1]):
        most = max(most, visits_of(tree, b, 0, a))
    return best_of_visited(tree, config, b, most)


@inlined
def interior_action(tree: Tree, config: SearchConfig, b: int, node: int) -> int:
    """Legal action whose improved probability most exceeds its share of the visits."""
    probability = tree.score[b]
    improved_policy(probability, tree, config, b, node)
    visits = 0
    for a in range(probability.shape[0]):
        visits += visits_of(tree, b, node, a)
    best, best_score = NONE, -np.inf
    for a in range(probability.shape[0]):
        score = probability[a] - visits_of(tree, b, node, a) / (1.0 + visits)
        if tree.legal[b, node, a] and score > best_score:
            best, best_score = a, score
    return best


@inlined
def mix_noise(tree: Tree, config: SearchConfig, b: int) -> None:
    """Root logits of (1 - share) prior + share noise, where `tree.noise` holds any: a draw over the legal actions."""
    mass = 0.0
    for a in range(tree.noise.shape[1]):
        if tree.legal[b, 0, a]:
            mass += tree.noise[b, a]
    if mass == 0:
        return
    for a in range(tree.noise.shape[1]):
        if tree.legal[b, 0, a]:
            noise = config.noise_share * tree.noise[b, a] / mass
            mixed = (1.0 - config.noise_share) * tree.policy[b, 0, a] + noise
            tree.prior[b, 0, a] = math.log(max(mixed, TINY))
    weigh_actions(tree, b, 0)


@inlined
def puct_action(tree: Tree, config: SearchConfig, b: int, node: int) -> int:
    """Legal action of the highest Q + prior sqrt(N) / (1 + N_a) (1.25 + log((N + 19653) / 19652)).

    An unvisited action takes the node's own value; Q is in units of S or, with `rescale`, within the node's range.
    """
    A, q = tree.legal.shape[2], tree.score[b]
    own = np.float64(tree.value[b, node])
    low, high, count = own, own, 1.0  # not tree.visits: at full width a code is added without a visit
    for a in range(A):
        child = tree.child[b, node, a]
        count += visits_of(tree, b, node, a)
        q[a] = own if child == NONE else edge_value(tree, b, child, config.discount)
        low, high = min(low, q[a]), max(high, q[a])
    unit = max(high - low, 1e-8) if config.rescale else config.value_unit
    bonus = math.sqrt(count) * (PUCT_INIT + math.log((count + PUCT_BASE + 1.0) / PUCT_BASE))
    best, best_score = NONE, -np.inf
    for a in range(A):
        explore = bonus * tree.policy[b, node, a] / (1.0 + visits_of(tree, b, node, a))
        score = (q[a] - low) / unit + explore
        if tree.legal[b, node, a] and score > best_score:
            best, best_score = a, score
    return best


@inlined
def visit_policy(out: NDArray[np.float64], tree: Tree, b: int) -> int:
    """out [A] = shares of the root's visits; the most visited action, the first of equals."""
    total, best = 0, 0
    for a in range(out.shape[0]):
        out[a] = visits_of(tree, b, 0, a)
        total += visits_of(tree, b, 0, a)
        if out[a] > out[best]:
            best = a
    for a in range(out.shape[0]):
        out[a] /= total
    return best
