"""The manifest of a model file: `save_model` writes it, `load_model` checks every field of it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from host.artifact.model_file import ModelError, ModelFile, check_selftest, read_model, write_model
from host.artifact.networks import (
    BacktestStats,
    InstrumentProfile,
    MarketSpec,
    OnnxNetworks,
    history_bars,
)
from host.artifact.onnx_check import check_graph, layout_of
from host.data.formats import ReadOptions
from host.data.instruments import find_instrument, same_instrument
from kernels.market.bars import SECOND_NS
from kernels.market.calendar import QUARTERS_PER_WEEK, ClosedHours, closed_periods, new_closed_hours
from kernels.market.chance import ChanceCodes
from kernels.market.features import Normaliser, feature_digest, new_feature_spec
from kernels.market.features import feature_names as feature_names
from kernels.market.ledger import Market, new_market
from kernels.market.position import NUM_POSITION_FIELDS, action_names
from kernels.ort import GraphLayout
from kernels.search.config import ALGORITHMS, MARKET, WIDENING, SearchConfig, new_search_config, nodes_needed
from kernels.search.market_search import MAX_CALL_ROWS, MAX_MARKET_DEPTH, num_hypotheses
from kernels.search.networks import NetworkShape, graph_widths
from kernels.search.progressive_widening import POLICY_HEAD_WIDTH, max_candidates
from kernels.search.tree import VALUE_REUSES

MAX_CONTEXT = 64  # bars
MAX_DECISION_BYTES, MAX_DECISION_WORK = 1 << 30, 1 << 40  # of a decision; the multiplications take a minute
MIN_PIP_PX, MAX_COST, MAX_FIGURE = 1e-9, 1e6, 1e12  # of a pip; of a cost or a weight; of a price or of a backtest
INSTRUMENT_COSTS = ("pip_px", "range_px")  # costs that the instrument repeats
INTEGER_LIMITS = {  # smallest and largest value of the integers of a manifest, by their keys
    "interval_s": (1, 7 * 86_400),
    "configuration.features.J": (1, 8),
    "configuration.features.Q": (1, 16),
    "search.algorithm": (0, len(ALGORITHMS) - 1),
    "search.value_reuse": (0, len(VALUE_REUSES) - 1),
    "search.num_simulations": (1, 4096),
    "search.num_sampled_sizes": (1, 64),
    **{f"sizes.{name}": (1, 1 << 12) for name in NetworkShape._fields},
    "sizes.context": (1, MAX_CONTEXT),
}


class LoadedModel(NamedTuple):
    """A checked model, ready to act."""

    networks: OnnxNetworks
    market_spec: MarketSpec
    search: SearchConfig
    manifest: dict[str, Any]
    sha256: str
    trained_ns: int  # close of the last bar of its data
    backtest_stats: BacktestStats


def save_model(
    path: Path,
    networks: OnnxNetworks,
    market_spec: MarketSpec,
    search: SearchConfig,
    configuration: dict[str, Any],
    data: dict[str, Any],
    backtest_stats: BacktestStats = BacktestStats(),  # noqa: B008
) -> str:
    """Write a model to `path` and return the sha256 of the file.

    `data` describes the file that the model was trained on, and the options to read such files.
    """
    market = market_spec.market._asdict()
    manifest = {
        "features": {"spec": feature_names(market_spec.features), "digest": feature_digest(market_spec.features)},
        "instrument": {
            **market_spec.profile._asdict(),
            **{name: market[name] for name in INSTRUMENT_COSTS},
            "closed": closed_periods(market_spec.hours),
        },
        "backtest": backtest_stats._asdict(),
        "interval_s": market["interval_ns"] // SECOND_NS,
        "history": networks.history,
        "actions": action_names(market_spec.market.sizes),
        "costs": market,
        "search": search._asdict(),
        "data": data,
        "configuration": configuration,
        "sizes": networks.shape._asdict(),
    }
    return write_model(path, manifest, networks.graphs, market_spec_arrays(market_spec))


def market_spec_arrays(market_spec: MarketSpec) -> dict[str, NDArray[Any]]:
    """The arrays of a model file; of the chance codes, only those that acting needs."""
    codes = {"edges": market_spec.codes.edges, "centres": market_spec.codes.centres}
    return {**market_spec.normaliser._asdict(), **codes}


def load_model(path: Path) -> LoadedModel:
    """A model, checked before its first inference and by its self-test; ModelError if a check fails."""
    model = read_model(path)
    try:
        shape, market_spec, search, trained_ns, backtest_stats = parse_manifest(model)
    except (LookupError, ArithmeticError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{path}: a manifest that makes no sense: {error!r}") from None
    check_selftest(model)
    networks = OnnxNetworks(model.graphs, shape)
    return LoadedModel(networks, market_spec, search, model.manifest, model.sha256, trained_ns, backtest_stats)


def parse_manifest(model: ModelFile) -> tuple[NetworkShape, MarketSpec, SearchConfig, int, BacktestStats]:
    """The content of a manifest, with the close of the last training bar.

    A manifest that is wrong raises ModelError, or any error that `load_model` turns into one.
    """
    manifest, arrays = model.manifest, model.arrays
    check_integers(manifest)
    filters = manifest["configuration"]["features"]
    features = new_feature_spec(filters["J"], filters["Q"], manifest["interval_s"] * SECOND_NS)
    if feature_digest(features) != manifest["features"]["digest"]:
        raise ModelError("made with other features than this program computes")
    market, shape = new_market(**manifest["costs"]), NetworkShape(**manifest["sizes"])
    if manifest["actions"] != action_names(market.sizes) or manifest["history"] != history_bars(shape):
        raise ModelError("its actions or its history are not this program's")
    market_spec = MarketSpec(
        features,
        Normaliser(arrays["shift"], arrays["scale"]),
        ChanceCodes(arrays["edges"], arrays["centres"]),
        checked_market(market, manifest),
        checked_hours(manifest["instrument"]["closed"]),
        checked_profile(manifest["instrument"]),
    )
    search = new_search_config(**manifest["search"])
    if search.mae_penalty != market.mae_penalty or not (search.stochastic and search.expectation_backup):
        raise ValueError("a search that is not one of this market")
    check_widths(shape, market_spec, model.graphs, search)
    max_considered = max_candidates(search.num_sampled_sizes) if search.algorithm == WIDENING else shape.actions
    check_int("max_considered_actions", search.max_considered_actions, 1, max_considered)
    weights = [value for value in search if isinstance(value, float)]
    if not (0 < search.discount <= 1 and search.q_scale > 0 and all(abs(w) < MAX_COST for w in weights)):
        raise ValueError(f"a search with {search}")
    check_decision_cost(shape, search, model.graphs)
    check_reading(manifest["data"])
    trained_ns = int(np.datetime64(manifest["data"]["span"][1].removesuffix("Z"), "ns").astype(np.int64))
    return shape, market_spec, search, trained_ns, checked_backtest_stats(manifest["backtest"])


def check_widths(shape: NetworkShape, market_spec: MarketSpec, graphs: dict[str, bytes], search: SearchConfig) -> None:
    """ValueError if the graphs or the arrays have other widths than `shape`."""
    F, C = shape.features, shape.codes
    arrays = {"shift": (F,), "scale": (F,), "edges": (C - 1,), "centres": (C,)}
    for name, array in market_spec_arrays(market_spec).items():
        dtype = np.float32 if name in Normaliser._fields else np.float64
        if array.shape != arrays[name] or array.dtype != dtype:
            raise ValueError(f"{name} is {array.dtype} {array.shape}, not {arrays[name]}")
    if F != len(feature_names(market_spec.features)) or not (market_spec.normaliser.scale > 0).all():
        raise ValueError("the normaliser is not one of these features")
    if not (np.diff(market_spec.codes.edges) > 0).all():
        raise ValueError("the edges of the chance codes do not ascend")
    layouts = {name: layout_of(graph) for name, graph in graphs.items()}
    widths = {name: layout[:2] for name, layout in layouts.items()}
    preactivation = check_int("preactivation", widths.get("code", (0, 0))[1], 0, 1 << 12)
    expected = graph_widths(shape, search, preactivation)
    for name in {"afterstate_value", *(() if search.algorithm == MARKET else ("market",))} - graphs.keys():
        del expected[name]
    if widths != expected:
        raise ValueError(f"the graphs have widths {widths}, not {expected}")
    if not first_slices_are(layouts["dynamics"], shape.state, preactivation):
        raise ValueError("dynamics does not read the preactivation on its own")


def check_decision_cost(shape: NetworkShape, search: SearchConfig, graphs: dict[str, bytes]) -> None:
    """ValueError if a decision would need more memory or time than MAX_DECISION_BYTES and MAX_DECISION_WORK."""
    C, nodes = shape.codes, nodes_needed(search, shape.codes)
    costs = {name: check_graph(graph)[1] for name, graph in graphs.items()}
    rows = {"root": 1, "afterstate": 1, "afterstate_value": 1, "code": C}  # in a call
    bytes_needed = max_tree_bytes(shape, search)
    bytes_needed += 4 * sum(rows.get(name, max(C, MAX_CALL_ROWS)) * cost.floats for name, cost in costs.items())
    multiplications = sum((1 if name == "root" else nodes) * cost.multiplications for name, cost in costs.items())
    if bytes_needed > MAX_DECISION_BYTES or multiplications > MAX_DECISION_WORK:
        raise ValueError(f"a decision of {bytes_needed} bytes and {multiplications} multiplications")


def max_tree_bytes(shape: NetworkShape, search: SearchConfig) -> int:
    """An upper bound of the bytes of the tree of one root."""
    memoryless = search.mae_penalty == 0
    hypotheses = num_hypotheses(shape.actions, MAX_MARKET_DEPTH, memoryless) * (
        1 if memoryless else 1 + NUM_POSITION_FIELDS
    )
    # Widening gives a node of 4096 visits at most 40 edges.
    edges = max(shape.actions, shape.codes, max_candidates(search.num_sampled_sizes), 40)
    node = NUM_POSITION_FIELDS + POLICY_HEAD_WIDTH + 6 * (edges + 16)
    if search.algorithm == MARKET:
        node = 8 + shape.codes + hypotheses
    return 4 * nodes_needed(search, shape.codes) * (shape.state + node)


def first_slices_are(layout: GraphLayout, first: int, width: int) -> bool:
    """Whether the first input slices of a graph cover these columns, as `kernels.ort.write_preactivation` assumes."""
    stop = first + width
    for input_slice in layout.input_slices:
        if first >= stop or input_slice.first_column != first:
            break
        first += input_slice.width
    return first == stop


def checked_market(market: Market, manifest: dict[str, Any]) -> Market:
    """`market`; ValueError if another section of the manifest contradicts it, or a number is absurd."""
    pairs = [(manifest["instrument"][name], getattr(market, name)) for name in INSTRUMENT_COSTS]
    pairs.append((manifest["interval_s"] * SECOND_NS, market.interval_ns))
    if any(a != b for a, b in pairs):
        raise ValueError("costs, instrument and interval_s do not agree")
    if not all(abs(value) < MAX_COST for value in market if isinstance(value, float)) or market.pip_px < MIN_PIP_PX:
        raise ValueError(f"costs beyond {MAX_COST:g}: {market}")
    return market


def checked_hours(periods: Any) -> ClosedHours:
    """The hours in which the market is closed, from `periods`: the first and the last quarter of an hour of each."""
    for first, stop in periods:
        check_int("closed", first, 0, QUARTERS_PER_WEEK - 1)
        check_int("closed", stop, first + 1, first + QUARTERS_PER_WEEK)
    return new_closed_hours(*periods[:QUARTERS_PER_WEEK])


def checked_profile(values: dict[str, Any]) -> InstrumentProfile:
    """The profile in a manifest; ValueError if a number of it is absurd."""
    profile = InstrumentProfile(**{name: values[name] for name in InstrumentProfile._fields})
    symbol, *sizes = profile
    if not isinstance(symbol, str) or not all(type(size) is float and 0 <= size < MAX_FIGURE for size in sizes):
        raise ValueError(f"an instrument that is none: {profile}")
    if not 0 < profile.low <= profile.price <= profile.high:
        raise ValueError(f"prices that are none: {profile}")
    return profile


def checked_backtest_stats(values: dict[str, Any]) -> BacktestStats:
    """The backtest in a manifest; ValueError if a number of it is absurd."""
    backtest_stats = BacktestStats(**values)
    if not all(type(value) in (int, float) and 0 <= value < MAX_FIGURE for value in backtest_stats):
        raise ValueError(f"a backtest with {backtest_stats}")
    return backtest_stats


def check_integers(manifest: dict[str, Any]) -> None:
    """ValueError if an integer of INTEGER_LIMITS is outside its limits; LookupError or TypeError if it is missing."""
    for keys, (low, high) in INTEGER_LIMITS.items():
        value: Any = manifest
        for key in keys.split("."):
            value = value[key]
        check_int(keys, value, low, high)


def check_int(name: str, value: Any, low: int, high: int) -> int:
    """`value`; ValueError if it is no integer from `low` to `high`."""
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{name} is {value!r:.40}, not a number from {low} to {high}")
    return value


def check_reading(data: dict[str, Any]) -> None:
    """ValueError unless `reading_options` can use the options in a manifest."""
    types = {"side": str, "timezone": str, "label": str, "pip": float}
    for name, value in data["reading"].items():
        if value is not None and not isinstance(value, types[name]):
            raise ValueError(f"reading.{name} is {value!r:.40}")
    spread = data["spread_pips"]
    if not (spread is None or (isinstance(spread, float) and 0 <= spread < math.inf)):
        raise ValueError(f"spread_pips is {spread!r:.40}")


def reading_options(loaded: LoadedModel, reading: ReadOptions, name: str = "") -> ReadOptions:
    """The options of a user for a feed called `name`, with those of the model's training as defaults.

    Pip and spread belong to an instrument: they are no defaults for a feed of another one.
    """
    data = loaded.manifest["data"]
    defaults = {**data["reading"], "spread_pips": data["spread_pips"]}
    instrument = find_instrument(reading.symbol or name)
    if instrument is not None and not same_instrument(instrument.symbol, loaded.market_spec.profile.symbol):
        defaults = {what: value for what, value in defaults.items() if what not in ("pip", "spread_pips")}
    interval_s = loaded.manifest["interval_s"] if reading.interval_s is None else reading.interval_s
    return replace(reading, interval_s=interval_s, model_defaults=defaults)
