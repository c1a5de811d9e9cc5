"""The networks of a model and what it assumes of its market: `OnnxNetworks`, `MarketSpec`."""

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
from kernels.ort import GraphLayout
from kernels.search.config import SearchConfig
from kernels.search.market_search import num_network_values
from kernels.search.networks import NetworkShape
from kernels.search.onnx_networks import OnnxNetworks as SearchNetworks


class InstrumentProfile(NamedTuple):
    """The instrument of a model, and the scale of its prices in the training part."""

    symbol: str  # "-" if unknown
    point: float  # price of the last digit
    price: float  # median
    low: float
    high: float
    day_px: float  # mean range of a day
    spread_px: float  # mean
    usual_spread_px: float  # of the instrument


class MarketSpec(NamedTuple):
    """The parameters of the market that a model was trained for, fixed by the training part of its data."""

    features: FeatureSpec
    normaliser: Normaliser
    codes: ChanceCodes
    market: Market
    hours: ClosedHours
    profile: InstrumentProfile


class BacktestStats(NamedTuple):
    """The extremes of a position of 1 in the backtest of a model, out of sample; risk limits begin there."""

    drawdown_pips: float = 0.0  # largest fall below the best equity
    worst_day_pips: float = 0.0  # largest loss of a day, UTC
    losing_streak: int = 0  # trades
    changes_per_hour: int = 0  # of the target, at most


class OnnxNetworks(SearchNetworks):
    """The graphs of a model, whose metadata say how their inputs and outputs lie in rows."""

    @property
    def history(self) -> int:
        """Bars that a decision depends on."""
        return history_bars(self.shape)

    def layout(self, name: str, config: SearchConfig) -> GraphLayout:
        """What the metadata of a graph say; GraphError for a graph that may not be run."""
        return layout_of(self.graphs[name])


def history_bars(shape: NetworkShape) -> int:
    """Bars that a decision with such networks depends on."""
    return HISTORY + shape.context - 1


def hypothesis_positions(
    shape: NetworkShape, config: SearchConfig, position_sizes: tuple[float, ...] = FULL_SIZE_ONLY
) -> tuple[int, NDArray[np.float32] | None]:
    """M position hypotheses of the network `market`, and their features [M, P] where these are always the same.

    `position_sizes` are the sizes of an entry.  A game without positions has M = 0 and no such network.
    """
    if shape.position == 0:
        return 0, None
    M = num_network_values(shape.actions, config)
    if config.mae_penalty != 0:
        return M, None
    valued_sizes = (max(position_sizes), 0.0, 0.0, 0.0, 0.0) if config.linear_values else position_sizes
    features, position = np.zeros((M, shape.position), np.float32), np.zeros(NUM_POSITION_FIELDS, np.float32)
    for m in range(M):
        position[SIDE] = position[PREVIOUS_SIDE] = action_target(0.0, m, valued_sizes)
        position_features(features[m], position, True)
    return M, features
