"""`bench exogenous`: how good decisions are, at equal network rows, with and without the market's independence.

The markets are small, random and solved exactly: chains of D states in which a chance code decides the move and the
next state, positions of side -1, 0 and 1, and a cost of every fill.  The networks are exact but for the noise on their
values, which both searches share.  Regret is the value that a decision loses against the best one if all later
decisions are optimal.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from host.artifact.networks import OnnxNetworks
from host.bench.options import BenchOptions
from host.bench.process import BenchRow
from kernels.market import position
from kernels.ort import OutputHead, check_status
from kernels.search.config import ALGORITHMS, GUMBEL, MARKET, new_search_config
from kernels.search.networks import NetworkShape
from kernels.search.planner import Planner, plan
from models.onnx_builder import GraphBuilder

Array = NDArray[np.float64]
HYPOTHESIS_SIDES = (0, 1, -1)  # of the position slots of the market search
D, C, A, M = 6, 3, 4, len(HYPOTHESIS_SIDES)  # the latent is the state, one-hot
ACTION_TARGETS = (0, 1, -1, 0)  # side after a HOLD of a flat position, a BUY, a SELL and a CLOSE
CODE_MOVES = np.array([-1.0, 0.0, 1.0])  # ranges, of each code
FILL_COST, VALUE_NOISE, DISCOUNT = 0.2, 0.5, 0.95
ROW_BUDGETS = (25, 50, 100, 200, 400)


class Chain(NamedTuple):
    """A market whose next state is a function of its state and the code, and the value of every state."""

    probability: Array  # [D, C] of the codes
    next_state: NDArray[np.int64]  # [D, C]
    q: Array  # [D, M, A] exact; -inf where illegal
    value: Array  # [D, M] with the error of a network


def new_chain(seed: int) -> Chain:
    """A random chain, its Q by value iteration, and its values with an error."""
    rng = np.random.Generator(np.random.Philox(key=seed))
    probability, next_state = rng.dirichlet(np.full(C, 0.7), size=D), rng.integers(D, size=(D, C))
    q, value = np.full((D, M, A), -np.inf), np.zeros((D, M))
    for _ in range(600):
        for m, side in enumerate(HYPOTHESIS_SIDES):
            for a in range(A):
                if position.is_legal(side, a, A, False):
                    target = side if a == position.HOLD else ACTION_TARGETS[a]
                    returns = CODE_MOVES * target + DISCOUNT * value[next_state, HYPOTHESIS_SIDES.index(target)]
                    q[:, m, a] = (probability * returns).sum(axis=1) - FILL_COST * abs(target - side)
        value = q.max(axis=2)
    return Chain(probability, next_state, q, value + rng.normal(0, VALUE_NOISE, value.shape))


def relu_unit_graph(inputs: int, units: list[tuple[dict[int, float], float, dict[int, float]]], outputs: int) -> bytes:
    """ONNX of relu units, each (weights by column of x, bias, weights by column of y)."""
    hidden_w, bias = np.zeros((inputs, len(units)), np.float32), np.zeros(len(units), np.float32)
    out_w = np.zeros((len(units), outputs), np.float32)
    for u, (weights, bias[u], effects) in enumerate(units):
        for column, weight in weights.items():
            hidden_w[column, u] = weight
        for column, effect in effects.items():
            out_w[u, column] = effect
    g = GraphBuilder()
    g.linear(g.linear_relu("x", "units", hidden_w, bias), "y", out_w, np.zeros(outputs, np.float32))
    return g.serialise(inputs, [OutputHead("y", outputs)])


def chain_graphs(chain: Chain) -> dict[str, bytes]:
    """The networks of a chain, by name as in `kernels.search.mcts.Networks`.

    A unit is 1 where its state, its code and its side are all present, else 0.  Afterstates have no value and decisions
    no reward: a search at full width, of the profit, reads neither.
    """
    logit = np.log(chain.probability)
    P = position.NUM_POSITION_FEATURES
    root, afterstate, dynamics, market = [], [], [], []
    for d in range(D):
        codes, here = dict(enumerate(logit[d])), {d: 1.0}
        root.append((here, 0.0, {**here, **{D + A + 1 + c: z for c, z in codes.items()}}))
        afterstate.append((here, 0.0, {**here, **{D + c: z for c, z in codes.items()}}))
        for m, side in enumerate(HYPOTHESIS_SIDES):
            weights, bias = side_unit(D, side)
            root.append(({d: 1.0, **weights}, bias - 1.0, {D + A: chain.value[d, m]}))
        for c in range(C):
            following = chain.next_state[d, c]
            outputs = {following: 1.0, **{D + i: z for i, z in enumerate(logit[following])}}
            outputs |= {D + C + m: value for m, value in enumerate(chain.value[following])}
            market.append(({d: 1.0, D + c: 1.0}, -1.0, outputs))
            dynamics.append(({d: 1.0, D + c: 1.0}, -1.0, {following: 1.0}))
            for m, side in enumerate(HYPOTHESIS_SIDES):
                weights, bias = side_unit(D + C + P, side)  # of the next position
                effect = {D + 1 + A: chain.value[following, m]}
                dynamics.append(({d: 1.0, D + c: 1.0, **weights}, bias - 2.0, effect))
    return {
        "root": relu_unit_graph(D + P, root, D + A + 1 + C),
        "afterstate": relu_unit_graph(D + A + P, afterstate, D + C + 1),
        "dynamics": relu_unit_graph(D + C + 2 * P, dynamics, D + A + 2),
        "market": relu_unit_graph(D + C, market, D + C + M),
    }


def side_unit(column: int, side: int) -> tuple[dict[int, float], float]:
    """(weights, bias) of a sum that is 1 for a position of this side and at most 0 for another."""
    return ({column: float(side)}, 0.0) if side else ({column + 1: -1.0}, 1.0)


def decide_everywhere(networks: OnnxNetworks, algorithm: int, rows: int) -> Planner:
    """A planner that has decided from every state and position with at most `rows` network rows."""
    simulations = (rows - 1) // (C if algorithm == MARKET else C + 1)
    config = new_search_config(simulations, A, DISCOUNT, algorithm=algorithm)
    planner = networks.planner(D * M, config)
    for b in range(D * M):
        d, m = divmod(b, M)
        x, row = planner.networks.root.x[b], np.zeros(position.NUM_POSITION_FIELDS, np.float32)
        row[position.SIDE] = row[position.PREVIOUS_SIDE] = HYPOTHESIS_SIDES[m]
        x[d] = 1.0
        position.position_features(x[D:], row, True)
        planner.position[b] = row
        planner.costs.move[b] = CODE_MOVES
        planner.costs.action_target[b] = ACTION_TARGETS
    planner.costs.entry_cost[:] = planner.costs.exit_cost[:] = FILL_COST
    check_status(plan(planner))
    return planner


def bench_exogenous(options: BenchOptions) -> list[BenchRow]:
    """The document of `bench exogenous`: means over chains, states and positions."""
    chains = [new_chain(seed) for seed in range(options.chains)]
    shape = NetworkShape(D, position.NUM_POSITION_FEATURES, D, A, C)
    agents = [OnnxNetworks(chain_graphs(chain), shape) for chain in chains]
    document: list[BenchRow] = []
    for rows in ROW_BUDGETS:
        for algorithm in (GUMBEL, MARKET):
            regrets, used = [], []
            for chain, agent in zip(chains, agents, strict=True):
                planner, q = decide_everywhere(agent, algorithm, rows), chain.q.reshape(-1, A)
                regrets.append(q.max(axis=1) - q[np.arange(len(q)), planner.action])
                used.append(planner.network_rows.mean())
            regret = np.concatenate(regrets)
            cost = {"search": ALGORITHMS[algorithm], "allowed": rows, "rows": round(float(np.mean(used)), 1)}
            good = {"regret": round(float(regret.mean()), 5), "optimal": round(float((regret < 1e-6).mean()), 4)}
            document.append(cost | good)
    return document
