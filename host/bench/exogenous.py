"""`bench exogenous`: how good decisions are, at equal network rows, with and without the market's independence.

Small random markets whose exact values are known: a chain of M states in which a code decides the move and the next
state, positions -1, 0 and 1, and a cost of every fill.  The networks are exact but for the noise on their values, the
same for both searches.  Regret is what a decision loses against the best one if all later ones are optimal.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from host.artifact.networks import OnnxNetworks
from host.bench.process import BenchRow
from kernels.market.position import (
    BUY,
    CLOSE,
    HOLD,
    NUM_POSITION_FEATURES,
    NUM_POSITION_FIELDS,
    PREVIOUS_SIDE,
    SELL,
    SIDE,
    is_legal,
    position_features,
)
from kernels.ort import OutputHead, check_status
from kernels.search.config import ALGORITHMS, GUMBEL, MARKET, new_search_config
from kernels.search.networks import NetworkShape
from kernels.search.planner import Planner, plan

Array = NDArray[np.float64]
M, C, A = 6, 3, 4
HYPOTHESIS_SIDES = (0, 1, -1)  # of the slots of the market tree
CODE_MOVES = np.array([-1.0, 0.0, 1.0])  # R, of each code
FILL_COST, VALUE_NOISE, DISCOUNT = 0.2, 0.5, 0.95
CHANGED_COLUMN = NUM_POSITION_FEATURES - 1  # column of a position that tells how the last action changed its side
FILL_COLUMN_WEIGHT = 1e-12  # weight of the excursion that changes no reward, but under which networks see that column
ROW_BUDGETS = (25, 50, 100, 200, 400)


class Chain(NamedTuple):
    """A market whose next state is a function of its state and the code, and what it is worth."""

    probability: Array  # [M, C] probability of the codes
    next_state: NDArray[np.int64]  # [M, C]
    q: Array  # [M, 3, A] exact, by state and position of SIDES; -inf where illegal
    value: Array  # [M, 3] with the error of a network


def new_chain(seed: int) -> Chain:
    """A random chain, its Q by value iteration, and its values with an error."""
    draw = np.random.Generator(np.random.Philox(key=seed))
    chance, following = draw.dirichlet(np.full(C, 0.7), size=M), draw.integers(M, size=(M, C))
    targets = {BUY: 1, SELL: -1, CLOSE: 0}
    q, value = np.full((M, len(HYPOTHESIS_SIDES), A), -np.inf), np.zeros((M, len(HYPOTHESIS_SIDES)))
    for _ in range(600):
        for p, side in enumerate(HYPOTHESIS_SIDES):
            for a in range(A):
                if is_legal(side, a, A, False):
                    then = side if a == HOLD else targets[a]
                    ahead = CODE_MOVES * then + DISCOUNT * value[following, HYPOTHESIS_SIDES.index(then)]
                    q[:, p, a] = (chance * ahead).sum(axis=1) - FILL_COST * abs(then - side)
        value = q.max(axis=2)
    return Chain(chance, following, q, value + draw.normal(0, VALUE_NOISE, value.shape))


def relu_unit_graph(inputs: int, units: list[tuple[dict[int, float], float, dict[int, float]]], outputs: int) -> bytes:
    """ONNX of relu units, each (weights by column of x, bias, weights by column of y)."""
    from models.onnx_builder import GraphBuilder

    into, bias = np.zeros((inputs, len(units)), np.float32), np.zeros(len(units), np.float32)
    out = np.zeros((len(units), outputs), np.float32)
    for u, (weights, bias[u], effects) in enumerate(units):
        for column, weight in weights.items():
            into[column, u] = weight
        for column, effect in effects.items():
            out[u, column] = effect
    g = GraphBuilder()
    g.linear(g.linear_relu("x", "units", into, bias), "y", out, np.zeros(outputs, np.float32))
    return g.serialise(inputs, [OutputHead("y", outputs)])


def chain_graphs(chain: Chain) -> dict[str, bytes]:
    """The four networks of kernels.search.Model; their latent is the state, one-hot.

    A unit is 1 where all that it asks for is so: the state, the code, the side.  The value of an afterstate is none:
    at full width nobody reads it.
    """
    logit = np.log(chain.probability)
    P, at = (
        NUM_POSITION_FEATURES,
        M + C,
    )  # column of the side in a row of `dynamics` after the action; the next one is at + P
    roots, afters, moves, worths = [], [], [], []
    for m in range(M):
        codes = dict(enumerate(logit[m]))
        here = {m: 1.0}
        roots.append(({m: 1.0}, 0.0, {**here, **{M + A + 1 + c: w for c, w in codes.items()}}))
        afters.append(({m: 1.0}, 0.0, {**here, **{M + c: w for c, w in codes.items()}}))
        for p, side in enumerate(HYPOTHESIS_SIDES):
            roots.append(({m: 1.0, **side_weights(M, side)}, side_bias(side) - 1.0, {M + A: chain.value[m, p]}))
        for c in range(C):
            then = chain.next_state[m, c]
            known = {M + i: w for i, w in enumerate(logit[then])} | {
                M + C + p: v for p, v in enumerate(chain.value[then])
            }
            moves.append(({m: 1.0, M + c: 1.0}, -1.0, {then: 1.0, **known}))
            worths.append(({m: 1.0, M + c: 1.0}, -1.0, {then: 1.0}))
            for p, side in enumerate(HYPOTHESIS_SIDES):
                asked = {m: 1.0, M + c: 1.0, **side_weights(at + P, side)}
                worths.append((asked, side_bias(side) - 2.0, {M + 1 + A: chain.value[then, p]}))
    for c in range(C):
        for side in (1, -1):
            worths.append(({M + c: 1.0, **side_weights(at, side)}, -1.0, {M: side * CODE_MOVES[c]}))
    for sign in (1.0, -1.0):
        worths.append(({at + CHANGED_COLUMN: sign}, 0.0, {M: -FILL_COST}))
    return {
        "root": relu_unit_graph(M + P, roots, M + A + 1 + C),
        "afterstate": relu_unit_graph(M + A + P, afters, M + C + 1),
        "dynamics": relu_unit_graph(M + C + 2 * P, worths, M + A + 2),
        "market": relu_unit_graph(M + C, moves, M + C + len(HYPOTHESIS_SIDES)),
    }


def side_weights(column: int, side: int) -> dict[int, float]:
    """Weights that give 1 for a position of this side; for a flat one with the bias `side_bias`."""
    return {column: float(side)} if side else {column + 1: -1.0}


def side_bias(side: int) -> float:
    """Bias that goes with `side_weights`."""
    return 0.0 if side else 1.0


def decide_everywhere(agent: OnnxNetworks, rule: int, rows: int) -> Planner:
    """A planner that has decided from every state and position with about so many rows."""
    simulations = (rows - 1) // (C if rule == MARKET else C + 1)
    sees = 0.0 if rule == MARKET else FILL_COLUMN_WEIGHT
    config = new_search_config(simulations, A, DISCOUNT, mae_penalty=sees, algorithm=rule)
    planner = agent.planner(M * len(HYPOTHESIS_SIDES), config)
    for b in range(M * len(HYPOTHESIS_SIDES)):
        m, p = divmod(b, len(HYPOTHESIS_SIDES))
        x, position = planner.networks.root.x[b], np.zeros(NUM_POSITION_FIELDS, np.float32)
        position[SIDE] = position[PREVIOUS_SIDE] = HYPOTHESIS_SIDES[p]
        x[m] = 1.0
        position_features(x[M:], position, rule == MARKET)
        planner.position[b] = position
        planner.costs.move[b] = CODE_MOVES
        planner.costs.action_target[b] = (0, 1, -1, 0)
    planner.costs.entry_cost[:] = planner.costs.exit_cost[:] = FILL_COST
    check_status(plan(planner))
    return planner


def bench_exogenous(options: Any) -> list[BenchRow]:
    """The document of `bench exogenous`: means over chains, states and positions."""
    chains = [new_chain(seed) for seed in range(options.chains)]
    agents = [OnnxNetworks(chain_graphs(chain), NetworkShape(M, NUM_POSITION_FEATURES, M, A, C)) for chain in chains]
    found: list[BenchRow] = []
    for rows in ROW_BUDGETS:
        for rule in (GUMBEL, MARKET):
            regrets, used = [], []
            for chain, agent in zip(chains, agents, strict=True):
                planner, q = decide_everywhere(agent, rule, rows), chain.q.reshape(-1, A)
                regrets.append(q.max(axis=1) - q[np.arange(len(q)), planner.action])
                used.append(planner.network_rows.mean())
            regret = np.concatenate(regrets)
            cost = {"search": ALGORITHMS[rule], "allowed": rows, "rows": round(float(np.mean(used)), 1)}
            good = {"regret": round(float(regret.mean()), 5), "optimal": round(float((regret < 1e-6).mean()), 4)}
            found.append(cost | good)
    return found
