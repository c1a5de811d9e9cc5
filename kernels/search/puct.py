"""PUCT: the selection rule of MuZero, and the policy of its visits.

Schrittwieser et al., "Mastering Atari, Go, chess and shogi by planning with a learned model", Nature 2020, appendix B.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from kernels.jit import inlined
from kernels.search.config import SearchConfig
from kernels.search.gumbel import TINY, best_legal_action, min_max_q
from kernels.search.tree import MIN_LEGAL_LOGIT, ONE, ZERO, Tree, masked_softmax
from kernels.simd import LANES_4, load_4, reduce_add, select, store

PUCT_INIT, PUCT_BASE = 1.25, 19652.0


@inlined
def add_dirichlet_noise(tree: Tree, config: SearchConfig, b: int) -> None:
    """Root logits = log((1 - f) prior + f noise), f = dirichlet_fraction; noise of zeros leaves them as they are.

    tree.noise[b] [A] holds gamma draws: divided by their sum over the legal actions they are a Dirichlet draw.
    """
    mass = 0.0
    for a in range(tree.noise.shape[1]):
        if tree.prior[b, 0, a] > MIN_LEGAL_LOGIT:
            mass += tree.noise[b, a]
    if mass == 0:
        return
    for a in range(tree.noise.shape[1]):
        if tree.prior[b, 0, a] > MIN_LEGAL_LOGIT:
            noise = config.dirichlet_fraction * tree.noise[b, a] / mass
            mixed = (1.0 - config.dirichlet_fraction) * np.float64(tree.policy[b, 0, a]) + noise
            tree.prior[b, 0, a] = math.log(max(mixed, TINY))
    masked_softmax(tree.policy[b, 0], tree.prior[b, 0], tree.score.shape[1])


@inlined
def puct_action(tree: Tree, config: SearchConfig, b: int, node: int) -> int:
    """Legal action with the largest Q + prior sqrt(N) / (1 + N_a) (1.25 + log((N + 19653) / 19652)).

    An unvisited action has the value of the node as its Q.  Q is divided by q_scale or, with `rescale_values`, scaled
    to [0, 1] over the actions and the node.
    """
    q, logits, visits, own = tree.score[b], tree.prior[b, node], tree.edge_visits[b, node], tree.value[b, node]
    # not tree.visits: under `expectation_backup` a code is added without a visit
    count = ONE
    for i in range(0, q.shape[0], LANES_4):
        n = load_4(visits, i)
        count += reduce_add(n)
        store(q, i, select(n > ZERO, load_4(tree.edge_value[b, node], i), own))
    low, unit = ZERO, config.q_scale
    if config.rescale_values:
        low, high = min_max_q(q, logits)
        low = min(low, own)
        unit = max(max(high, own) - low, 1e-8)
    bonus = np.float32(math.sqrt(count) * (PUCT_INIT + math.log((count + PUCT_BASE + 1.0) / PUCT_BASE)))
    for i in range(0, q.shape[0], LANES_4):
        explore = load_4(tree.policy[b, node], i) * bonus / (load_4(visits, i) + ONE)
        store(q, i, (load_4(q, i) - low) / np.float32(unit) + explore)
    return best_legal_action(q, logits)


@inlined
def visit_policy(out: NDArray[np.float64], tree: Tree, b: int) -> int:
    """out [A] = fractions of the root's visits; returns the most visited action, the first of equals."""
    count, best = 0.0, 0
    for a in range(out.shape[0]):
        out[a] = tree.edge_visits[b, 0, a]
        count += out[a]
        if out[a] > out[best]:
            best = a
    for a in range(out.shape[0]):
        out[a] /= count
    return best
