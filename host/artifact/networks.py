"""An agent: the three networks as ONNX Runtime sessions, and the planners that search with them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from host.artifact.onnx_check import layout_of
from kernels.market.calendar import ClosedHours
from kernels.market.chance import ChanceCodes
from kernels.market.features import HISTORY, FeatureSpec, Normaliser
from kernels.market.ledger import Market
from kernels.market.position import (
    FULL_SIZE_ONLY,
    NUM_POSITION_FIELDS,
    PREVIOUS_SIDE,
    SIDE,
    action_target,
    position_features,
)
from kernels.ort import BoundGraph, Session, check_status, evaluate
from kernels.search.config import MARKET, WIDENING, SearchConfig
from kernels.search.market_search import EXPANSION_BATCH, MAX_CALL_ROWS, num_hypotheses
from kernels.search.mcts import no_networks
from kernels.search.planner import MAX_MARKET_DEPTH, Planner, new_planner
from kernels.search.progressive_widening import POLICY_HEAD_WIDTH

MAX_CONTEXT = 64  # bars
MAX_DECISION_BYTES, MAX_DECISION_WORK = (1 << 30, 1 << 40)  # that a decision may take, and multiplications: a minute
MIN_PIP_PX, MAX_FIGURE = 1e-9, 1e12  # that a pip is at least; that a price or a figure of a backtest may be


class NetworkShape(NamedTuple):
    """Widths that the graphs share."""

    features: int  # F
    position: int  # P
    state: int  # D: what the networks remember of a node
    actions: int  # A
    codes: int  # C
    attention_window: int = 1  # states, of a node and of those before it, that a row of `dynamics` or `market` has
    context: int = 1  # bars that a row of `root` has the features of

    @property
    def history(self) -> int:
        """Bars that a decision depends on."""
        return HISTORY + self.context - 1


class InstrumentProfile(NamedTuple):
    """What is traded, and the scale of its prices in the training part."""

    symbol: str  # "-": nobody said
    point: float  # price of the last digit
    price: float  # median
    low: float
    high: float
    day_px: float  # mean range of a day
    spread_px: float  # mean
    usual_spread_px: float  # of the instrument


class MarketSpec(NamedTuple):
    """What a model assumes of the market it reads: fixed by the training part."""

    features: FeatureSpec
    normaliser: Normaliser
    codes: ChanceCodes
    market: Market
    hours: ClosedHours
    profile: InstrumentProfile


class BacktestStats(NamedTuple):
    """What a position of 1 went through out of sample, where a model has been tried; guards begin there."""

    drawdown_pips: float = 0.0  # largest fall below the best equity
    worst_day_pips: float = 0.0  # largest loss of a day, UTC
    losing_streak: int = 0  # trades
    changes_per_hour: int = 0  # of the target, at most


class OnnxNetworks:
    """Sessions made from the bytes of the graphs; every thread takes planners of its own from them."""

    def __init__(self, graphs: dict[str, bytes], sizes: NetworkShape) -> None:
        self.graphs, self.shape = graphs, sizes
        self._sessions = dict[str, Session]()

    def root(self, rows: int) -> BoundGraph:
        """The root network bound for `rows` rows."""
        return self._bind("root", row_buckets(rows))

    def planner(self, roots: int, config: SearchConfig) -> Planner:
        """A planner over `roots` roots, with the networks that its rule calls."""
        _, P, D, A, C, *_ = self.shape
        model = no_networks()._replace(root=self.root(roots))
        if config.algorithm == MARKET:
            nodes = min(roots * EXPANSION_BATCH, max(1, MAX_CALL_ROWS // C))
            model = model._replace(market=self._bind("market", [C * (i + 1) for i in range(nodes)]))
        else:
            if config.stochastic != ("afterstate" in self.graphs):
                raise ValueError("a search with afterstates wants networks for them, one without wants none")
            after = dict.fromkeys({"afterstate", "afterstate_value"} & self.graphs.keys(), roots)
            most = after | {"dynamics": min(roots * C, max(MAX_CALL_ROWS, C))}
            nets = {name: self._bind(name, row_buckets(rows)) for name, rows in most.items()}
            model = model._replace(**nets, code_preactivation=self._code_preactivations())
        return new_planner(model, config, roots, A, C, D, P > 0)

    def _code_preactivations(self) -> NDArray[np.float32]:
        """[C, T] what each code adds to what afterstates share; T = 0 where they share nothing."""
        if "code" not in self.graphs:
            return no_networks().code_preactivation
        net = self._bind("code", [self.shape.codes])
        np.fill_diagonal(net.x, 1.0)
        check_status(evaluate(net, self.shape.codes))
        return net.y  # it has room behind it, as `tell` wants

    def _bind(self, name: str, rows: list[int]) -> BoundGraph:
        """A network laid out as its graph says."""
        if name not in self._sessions:
            self._sessions[name] = Session(self.graphs[name])
        return self._sessions[name].bind(layout_of(self.graphs[name]), rows)


def graph_widths(
    sizes: NetworkShape, memoryless: bool, rule: int = MARKET, preactivation: int = 0
) -> dict[str, tuple[int, int]]:
    """Columns that each graph reads and writes, where afterstates share so many."""
    F, P, D, A, C, window, context = sizes
    H = POLICY_HEAD_WIDTH if rule == WIDENING else A
    slots = num_hypotheses(A, MAX_MARKET_DEPTH, memoryless)
    widths = {
        "root": (context * F + P, D + H + 1 + C),
        "afterstate": (D + A + P, D + preactivation + C + 1),
        "afterstate_value": (D + A + P, D + 1),
        "dynamics": (window * D + (preactivation or C) + 2 * P, D + H + 2),
        "market": (window * D + C + (0 if memoryless else slots * P), D + C + slots),
    }
    return widths | ({"code": (C, preactivation)} if preactivation else {})


def row_buckets(rows: int) -> list[int]:
    """Row counts to bind: 1, 2, 4, multiples of 8, and `rows` itself.  A search rarely fills a power of two."""
    return [count for count in (1, 2, 4, *range(8, rows, 8)) if count < rows] + [rows]


def hypothesis_positions(
    sizes: NetworkShape, config: SearchConfig, position_sizes: tuple[float, ...] = FULL_SIZE_ONLY
) -> tuple[int, NDArray[np.float32] | None]:
    """(S, features [S, P] of the slots' positions where they are always the same): what `market` is exported for.

    `position_sizes` are the sizes of an entry.  S = 0, and no such graph, for a game without positions.
    """
    if sizes.position == 0:
        return 0, None
    memoryless = config.mae_penalty == 0
    slots = num_hypotheses(sizes.actions, MAX_MARKET_DEPTH, memoryless)
    if not memoryless:
        return slots, None
    sides, position = np.zeros((slots, sizes.position), np.float32), np.zeros(NUM_POSITION_FIELDS, np.float32)
    for slot in range(slots):
        position[SIDE] = position[PREVIOUS_SIDE] = action_target(0.0, slot, position_sizes)
        position_features(sides[slot], position, True)
    return slots, sides
