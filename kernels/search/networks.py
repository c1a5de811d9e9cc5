"""The networks of a search: `NETWORKS`, the one table of what each reads and writes, and the graphs bound for a search.

A network is a function from rows `x` to rows `y`.  A search calls it for many nodes at once, a row for each.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.market.position import NUM_POSITION_FEATURES
from kernels.ort import BoundGraph, no_graph
from kernels.search.config import MARKET, WIDENING, SearchConfig
from kernels.search.market_search import num_network_values
from kernels.search.progressive_widening import POLICY_HEAD_WIDTH


class NetworkShape(NamedTuple):
    """Widths that the networks of a search have in common."""

    features: int  # F of a bar, or of an observation of a game
    position: int  # P; 0 for a game without positions
    state: int  # S: what the networks remember of a node
    actions: int  # A
    codes: int  # C; as many as actions where the search is deterministic
    attention_window: int = 1  # states in a row of `dynamics` or `market`
    context: int = 1  # bars in a row of `root`


class Columns(NamedTuple):
    """The columns of a row that a network reads and of the row that it writes; `column_widths` explains the names."""

    x: tuple[str, ...]
    y: tuple[str, ...]


NETWORKS = {
    # the decision at the root
    "root": Columns(("context_features", "position"), ("state", "policy", "value", "chance_logits")),
    # an action that was taken; `position` is the one after the action
    "afterstate": Columns(("state", "action", "position"), ("state", "preactivation", "chance_logits", "value")),
    # a second action of a decision: preactivation and chance_logits are those of the first.  Optional
    "afterstate_value": Columns(("state", "action", "position"), ("state", "value")),
    # the part of a code in a preactivation.  Only where `preactivation` is not 0 wide
    "code": Columns(("code",), ("preactivation",)),
    # the decision one bar after an afterstate and its code, or after the action of a deterministic search
    "dynamics": Columns(("states", "edge", "position", "next_position"), ("state", "reward", "policy", "value")),
    # a state of the market one bar later, with the value of every position one could hold in it
    "market": Columns(("states", "code", "hypothesis_positions"), ("state", "chance_logits", "hypothesis_values")),
}


def column_widths(
    shape: NetworkShape, policy: int, edge: int, preactivation: int, hypotheses: int, memoryless: bool
) -> dict[str, int]:
    """Width of each of the `NETWORKS`' columns, for a market search of so many position hypotheses.

    The first layers of `dynamics` are linear in [latent | code].  Their latent part is computed once per decision, by
    `afterstate`; their code part is a table row, by `code`; `edge` is the sum of both.  Where `preactivation` is 0,
    `edge` is a one-hot of `edge` columns.
    """
    F, P, S, A, C, window, context = shape
    return {
        "context_features": context * F,  # of the last bars, the newest last
        "position": P,
        "next_position": P,  # one bar later
        "state": S,
        "states": window * S,  # of a node and of the decisions before it, newest first; zeros before the root
        "action": A,  # one-hot; progressive widening: of the kind of the action
        "code": C,  # one-hot
        "edge": preactivation or edge,
        "preactivation": preactivation,
        "chance_logits": C,
        "policy": policy,  # logits of the actions; progressive widening: of their kinds, then the Beta parameters
        "reward": 1,
        "value": 1,
        "hypothesis_positions": 0 if memoryless else hypotheses * P,  # memoryless: they are constants of the graph
        "hypothesis_values": hypotheses,
    }


def row_widths(columns: dict[str, int]) -> dict[str, tuple[int, int]]:
    """Widths of x and of y of every network whose columns have these widths."""
    return {
        name: (sum(columns[column] for column in x), sum(columns[column] for column in y))
        for name, (x, y) in NETWORKS.items()
    }


def graph_widths(shape: NetworkShape, config: SearchConfig, preactivation: int = 0) -> dict[str, tuple[int, int]]:
    """Widths of x and of y of every network of such a search; `code` is left out where there is no preactivation."""
    policy = POLICY_HEAD_WIDTH if config.algorithm == WIDENING else shape.actions
    edge, memoryless = (shape.codes if config.stochastic else shape.actions), config.mae_penalty == 0
    hypotheses = num_network_values(shape.actions, config)
    widths = row_widths(column_widths(shape, policy, edge, preactivation, hypotheses, memoryless))
    return {name: width for name, width in widths.items() if name != "code" or preactivation}


class Networks(NamedTuple):
    """The networks of a search, each bound for a batch of rows; those that the search does not call have no rows."""

    root: BoundGraph
    afterstate: BoundGraph
    afterstate_value: BoundGraph
    dynamics: BoundGraph
    market: BoundGraph
    code_preactivation: NDArray[np.float32]  # [C, preactivation] rows y of the network `code` for every code


def no_networks() -> Networks:
    """Networks without a row, for those that a search does not call."""
    none = no_graph()
    return Networks(none, none, none, none, none, np.zeros((0, 0), np.float32))


def check_networks(networks: Networks, shape: NetworkShape, config: SearchConfig, roots: int) -> None:
    """ValueError that names array and widths where a bound network is not one of such a search of `roots` roots."""
    if shape.position not in (0, NUM_POSITION_FEATURES):
        raise ValueError(f"positions have 0 or {NUM_POSITION_FEATURES} features, not {shape.position}")
    if config.algorithm in (MARKET, WIDENING) and shape.position == 0:
        raise ValueError("a search of a market, and one that draws sizes, want positions")
    widths = graph_widths(shape, config, networks.code_preactivation.shape[1])
    for name in widths.keys() & set(Networks._fields):
        graph = getattr(networks, name)
        if len(graph.x) == 0:
            continue
        for array, width in zip("xy", widths[name], strict=True):
            rows = getattr(graph, array)
            least = {"dynamics": 1, "market": shape.codes}.get(name, roots)
            if len(rows) < least or rows.shape[1] != width:
                raise ValueError(f"networks.{name}.{array} is {[*rows.shape]}, not [{least} or more, {width}]")
