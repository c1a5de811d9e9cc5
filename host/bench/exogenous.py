"""`bench exogenous`: how good decisions are, at equal network rows, with and without the market's independence.

Small random markets whose exact values are known: a chain of M states in which a code decides the move and the next
state, positions -1, 0 and 1, and a cost of every fill.  The networks are exact but for the noise on their values, the
same for both searches.  Regret is what a decision loses against the best one if all later ones are optimal.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from host.artifact.networks import Agent, Sizes
from host.bench.process import Row
from kernels.market.position import (
    BUY,
    CLOSE,
    FEATURES,
    HOLD,
    PREVIOUS,
    RAW,
    SELL,
    SIDE,
    is_legal,
    position_features,
)
from kernels.ort import Output, check
from kernels.search.config import GUMBEL, MARKET, RULES, new_search_config
from kernels.search.planner import Planner, plan

Array = NDArray[np.float64]
M, C, A = 6, 3, 4
SIDES = (0, 1, -1)  # of the slots of the market tree
MOVE = np.array([-1.0, 0.0, 1.0])  # R, of each code
FILL_COST, NOISE, DISCOUNT = 0.2, 0.5, 0.95
CHANGED = FEATURES - 1  # column of a position that tells how the last action changed its side
SEES_FILLS = 1e-12  # weight of the excursion that changes no reward, but under which networks see that column
ROWS = (25, 50, 100, 200, 400)


class Chain(NamedTuple):
    """A market whose next state is a function of its state and the code, and what it is worth."""

    chance: Array  # [M, C] probability of the codes
    next: NDArray[np.int64]  # [M, C]
    q: Array  # [M, 3, A] exact, by state and position of SIDES; -inf where illegal
    value: Array  # [M, 3] with the error of a network


def new_chain(seed: int) -> Chain:
    """A random chain, its Q by value iteration, and its values with an error."""
    draw = np.random.Generator(np.random.Philox(key=seed))
    chance, following = draw.dirichlet(np.full(C, 0.7), size=M), draw.integers(M, size=(M, C))
    targets = {BUY: 1, SELL: -1, CLOSE: 0}
    q, value = np.full((M, len(SIDES), A), -np.inf), np.zeros((M, len(SIDES)))
    for _ in range(600):
        for p, side in enumerate(SIDES):
            for a in range(A):
                if is_legal(side, a, A, False):
                    then = side if a == HOLD else targets[a]
                    ahead = MOVE * then + DISCOUNT * value[following, SIDES.index(then)]
                    q[:, p, a] = (chance * ahead).sum(axis=1) - FILL_COST * abs(then - side)
        value = q.max(axis=2)
    return Chain(chance, following, q, value + draw.normal(0, NOISE, value.shape))


def graph(inputs: int, units: list[tuple[dict[int, float], float, dict[int, float]]], outputs: int) -> bytes:
    """ONNX of relu units, each (weights by column of x, bias, weights by column of y)."""
    from models.onnx_builder import Graph

    into, bias = np.zeros((inputs, len(units)), np.float32), np.zeros(len(units), np.float32)
    out = np.zeros((len(units), outputs), np.float32)
    for u, (weights, bias[u], effects) in enumerate(units):
        for column, weight in weights.items():
            into[column, u] = weight
        for column, effect in effects.items():
            out[u, column] = effect
    g = Graph()
    g.linear(g.hidden("x", "units", into, bias), "y", out, np.zeros(outputs, np.float32))
    return g.serialise(inputs, [Output("y", outputs)])


def graphs(chain: Chain) -> dict[str, bytes]:
    """The four networks of kernels.search.Model; their latent is the state, one-hot.

    A unit is 1 where all that it asks for is so: the state, the code, the side.  The value of an afterstate is none:
    at full width nobody reads it.
    """
    logit = np.log(chain.chance)
    P, at = (
        FEATURES,
        M + C,
    )  # column of the side in a row of `dynamics` after the action; the next one is at + P
    roots, afters, moves, worths = [], [], [], []
    for m in range(M):
        codes = dict(enumerate(logit[m]))
        here = {m: 1.0}
        roots.append(({m: 1.0}, 0.0, {**here, **{M + A + 1 + c: w for c, w in codes.items()}}))
        afters.append(({m: 1.0}, 0.0, {**here, **{M + c: w for c, w in codes.items()}}))
        for p, side in enumerate(SIDES):
            roots.append(({m: 1.0, **is_side(M, side)}, is_flat(side) - 1.0, {M + A: chain.value[m, p]}))
        for c in range(C):
            then = chain.next[m, c]
            known = {M + i: w for i, w in enumerate(logit[then])} | {
                M + C + p: v for p, v in enumerate(chain.value[then])
            }
            moves.append(({m: 1.0, M + c: 1.0}, -1.0, {then: 1.0, **known}))
            worths.append(({m: 1.0, M + c: 1.0}, -1.0, {then: 1.0}))
            for p, side in enumerate(SIDES):
                asked = {m: 1.0, M + c: 1.0, **is_side(at + P, side)}
                worths.append((asked, is_flat(side) - 2.0, {M + 1 + A: chain.value[then, p]}))
    for c in range(C):
        for side in (1, -1):
            worths.append(({M + c: 1.0, **is_side(at, side)}, -1.0, {M: side * MOVE[c]}))
    for sign in (1.0, -1.0):
        worths.append(({at + CHANGED: sign}, 0.0, {M: -FILL_COST}))
    return {
        "root": graph(M + P, roots, M + A + 1 + C),
        "afterstate": graph(M + A + P, afters, M + C + 1),
        "dynamics": graph(M + C + 2 * P, worths, M + A + 2),
        "market": graph(M + C, moves, M + C + len(SIDES)),
    }


def is_side(column: int, side: int) -> dict[int, float]:
    """Weights that give 1 for a position of this side; for a flat one with the bias `is_flat`."""
    return {column: float(side)} if side else {column + 1: -1.0}


def is_flat(side: int) -> float:
    """Bias that goes with `is_side`."""
    return 0.0 if side else 1.0


def decisions(agent: Agent, rule: int, rows: int) -> Planner:
    """A planner that has decided from every state and position with about so many rows."""
    simulations = (rows - 1) // (C if rule == MARKET else C + 1)
    sees = 0.0 if rule == MARKET else SEES_FILLS
    config = new_search_config(simulations, A, DISCOUNT, excursion_weight=sees, rule=rule)
    planner = agent.planner(M * len(SIDES), config)
    for b in range(M * len(SIDES)):
        m, p = divmod(b, len(SIDES))
        x, position = planner.model.root.x[b], np.zeros(RAW, np.float32)
        position[SIDE] = position[PREVIOUS] = SIDES[p]
        x[m] = 1.0
        position_features(x[M:], position, rule == MARKET)
        planner.position[b] = position
        planner.outlook.move[b] = MOVE
        planner.outlook.size[b] = (0, 1, -1, 0)
    planner.outlook.entry_cost[:] = planner.outlook.exit_cost[:] = FILL_COST
    check(plan(planner))
    return planner


def bench_exogenous(size: Any) -> list[Row]:
    """The document of `bench exogenous`: means over chains, states and positions."""
    chains = [new_chain(seed) for seed in range(size.chains)]
    agents = [Agent(graphs(chain), Sizes(M, FEATURES, M, A, C)) for chain in chains]
    found: list[Row] = []
    for rows in ROWS:
        for rule in (GUMBEL, MARKET):
            regrets, used = [], []
            for chain, agent in zip(chains, agents, strict=True):
                planner, q = decisions(agent, rule, rows), chain.q.reshape(-1, A)
                regrets.append(q.max(axis=1) - q[np.arange(len(q)), planner.action])
                used.append(planner.rows.mean())
            regret = np.concatenate(regrets)
            cost = {"search": RULES[rule], "allowed": rows, "rows": round(float(np.mean(used)), 1)}
            good = {
                "regret": round(float(regret.mean()), 5),
                "optimal": round(float((regret < 1e-6).mean()), 4),
            }
            found.append(cost | good)
    return found
