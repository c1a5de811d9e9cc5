"""The manifest of a model file: `save_model` writes it, `load_model` checks every field of it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from host.artifact.model_file import Arrays, ModelError, ModelFile, check_selftest, read_model, write_model
from host.artifact.networks import (
    BacktestStats,
    InstrumentProfile,
    MarketSpec,
    OnnxNetworks,
    history_bars,
)
from host.artifact.onnx_check import check_graph, layout_of
from host.data.formats import ReadOptions
from host.data.instruments import SYMBOL, canonical_symbol, find_instrument, same_instrument
from host.data.parsing import MAX_STAMP_NS, parse_utc
from kernels.market.bars import SECOND_NS
from kernels.market.calendar import QUARTERS_PER_WEEK, ClosedHours, closed_periods, new_closed_hours
from kernels.market.chance import ChanceCodes
from kernels.market.features import FeatureSpec, Normaliser, feature_digest, new_feature_spec
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
MAX_MARKETS = 64
MARKET_KEYS = ("instrument", "costs", "backtest", "data")  # of the section of an instrument
# of `Market`, equal in all instruments of a model
RULES = ("interval_ns", "mae_penalty", "reverse", "position_adjustment", "risk_aversion", "sizes")
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


class ModelMarket(NamedTuple):
    """One instrument of a model."""

    spec: MarketSpec
    data: dict[str, Any]  # its bars, how such bars are read, and `test_first`, the close of the first bar of the test
    backtest_stats: BacktestStats = BacktestStats()


class LoadedModel(NamedTuple):
    """A checked model, ready to act on one of its instruments."""

    networks: OnnxNetworks
    market_spec: MarketSpec
    search: SearchConfig
    manifest: dict[str, Any]  # with the section of its instrument alone, as keys beside the others
    sha256: str
    trained_ns: int  # close of the last bar of its data
    test_first_ns: int  # close of the first bar of the test part of its data
    backtest_stats: BacktestStats


def save_model(
    path: Path,
    networks: OnnxNetworks,
    markets: list[ModelMarket],
    search: SearchConfig,
    configuration: dict[str, Any],
) -> str:
    """Write a model of `markets`, which have the same features and RULES, to `path`; the sha256 of the file."""
    spec = markets[0].spec
    if any(feature_digest(market.spec.features) != feature_digest(spec.features) for market in markets):
        raise ValueError("the features of the markets differ")
    manifest = {
        "features": {"spec": feature_names(spec.features), "digest": feature_digest(spec.features)},
        "markets": [market_section(market) for market in markets],
        "interval_s": spec.market.interval_ns // SECOND_NS,
        "history": networks.history,
        "actions": action_names(spec.market.sizes),
        "search": search._asdict(),
        "configuration": configuration,
        "sizes": networks.shape._asdict(),
    }
    rows = [market_spec_arrays(market.spec) for market in markets]
    arrays = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return write_model(path, manifest, networks.graphs, arrays)


def market_section(market: ModelMarket) -> dict[str, Any]:
    """The section of an instrument in a manifest, with the keys MARKET_KEYS."""
    spec, costs = market.spec, market.spec.market._asdict()
    repeated = {name: costs[name] for name in INSTRUMENT_COSTS}
    return {
        "instrument": {**spec.profile._asdict(), **repeated, "closed": closed_periods(spec.hours)},
        "costs": costs,
        "backtest": market.backtest_stats._asdict(),
        "data": market.data,
    }


def market_spec_arrays(market_spec: MarketSpec) -> Arrays:
    """The arrays of a model file; of the chance codes, only those that acting needs."""
    codes = {"edges": market_spec.codes.edges, "centres": market_spec.codes.centres}
    if market_spec.market.risk_aversion > 0:
        codes["mean_square"] = market_spec.codes.mean_square
    return {**market_spec.normaliser._asdict(), **codes}


def load_model(path: Path, symbol: str | None = None) -> LoadedModel:
    """The model at `path` for the instrument `symbol`; ModelError if a check fails, or if it trades no such one."""
    return choose_market(path, load_models(path), symbol)


def load_models(path: Path) -> list[LoadedModel]:
    """A model for each of its instruments, checked before its first inference and by its self-test, or ModelError."""
    model = read_model(path)
    try:
        models = parse_manifest(model)
    except (LookupError, ArithmeticError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{path}: a manifest that makes no sense: {error!r}") from None
    check_selftest(model)
    return models


def choose_market(path: Path, models: list[LoadedModel], symbol: str | None) -> LoadedModel:
    """The one of `models` that trades `symbol`, or the only one; ModelError where there is no such one."""
    if len(models) == 1:
        return models[0]
    symbols = {loaded.market_spec.profile.symbol: loaded for loaded in models}
    for known, loaded in symbols.items():
        if symbol and symbol != "-" and same_instrument(symbol, known):
            return loaded
    asked = f"{symbol} is none of its instruments" if symbol else "one of its instruments, but which"
    raise ModelError(f"{path}: {asked}: {', '.join(symbols)}: --symbol {next(iter(symbols))} names one")


def parse_manifest(model: ModelFile) -> list[LoadedModel]:
    """The content of a manifest, for each of its instruments.

    A manifest that is wrong raises ModelError, or any error that `load_models` turns into one.
    """
    manifest, arrays, sections = model.manifest, model.arrays, model.manifest["markets"]
    check_integers(manifest)
    check_int("number of instruments", len(sections), 1, MAX_MARKETS)
    filters = manifest["configuration"]["features"]
    features = new_feature_spec(filters["J"], filters["Q"], manifest["interval_s"] * SECOND_NS)
    if feature_digest(features) != manifest["features"]["digest"]:
        raise ModelError("made with other features than this program computes")
    shape, search = NetworkShape(**manifest["sizes"]), new_search_config(**manifest["search"])
    if manifest["history"] != history_bars(shape):
        raise ModelError("its history is not this program's")
    check_arrays(shape, len(sections), features, arrays)
    check_widths(shape, model.graphs, search)
    common, networks = {k: v for k, v in manifest.items() if k != "markets"}, OnnxNetworks(model.graphs, shape)
    models = list[LoadedModel]()
    for i, section in enumerate(sections):
        if section.keys() != {*MARKET_KEYS}:
            raise ValueError(f"an instrument with {', '.join(section)}")
        own, (trained_ns, test_first_ns) = {**common, **section}, checked_stamps(section["data"])
        spec = parse_market_spec(own, features, {name: rows[i] for name, rows in arrays.items()})
        stats = checked_backtest_stats(section["backtest"])
        models.append(LoadedModel(networks, spec, search, own, model.sha256, trained_ns, test_first_ns, stats))
    check_instruments([loaded.market_spec for loaded in models], manifest["actions"])
    check_search(search, shape, models[0].market_spec.market)
    check_decision_cost(shape, search, model.graphs)
    return models


def parse_market_spec(section: dict[str, Any], features: FeatureSpec, arrays: Arrays) -> MarketSpec:
    """The market of an instrument, from its section with the other keys of the manifest, and its rows of the arrays."""
    return MarketSpec(
        features,
        Normaliser(arrays["shift"], arrays["scale"]),
        ChanceCodes(arrays["edges"], arrays["centres"], mean_square=arrays.get("mean_square", arrays["centres"] ** 2)),
        checked_market(new_market(**section["costs"]), section),
        checked_hours(section["instrument"]["closed"]),
        checked_profile(section["instrument"]),
    )


def check_instruments(specs: list[MarketSpec], actions: list[str]) -> None:
    """ModelError or ValueError if the instruments are not told apart by their symbols, or their RULES differ."""
    symbols = [spec.profile.symbol for spec in specs]
    if len(specs) > 1 and ("-" in symbols or len({*map(canonical_symbol, symbols)}) < len(symbols)):
        raise ValueError(f"symbols that name no instrument, or one twice: {', '.join(symbols)}")
    if len({tuple(getattr(spec.market, rule) for rule in RULES) for spec in specs}) > 1:
        raise ValueError(f"instruments that differ in {', '.join(RULES)}")
    if actions != action_names(specs[0].market.sizes):
        raise ModelError("its actions are not this program's")


def check_search(search: SearchConfig, shape: NetworkShape, market: Market) -> None:
    """ValueError for a search that is not one of `market` or whose numbers are absurd."""
    rules = all(getattr(search, rule) == getattr(market, rule) for rule in ("mae_penalty", "position_adjustment"))
    is_linear = market.risk_aversion == 0 == search.mae_penalty
    if not (rules and search.stochastic and search.expectation_backup and search.linear_values <= is_linear):
        raise ValueError("a search that is not one of this market")
    max_considered = max_candidates(search.num_sampled_sizes) if search.algorithm == WIDENING else shape.actions
    check_int("max_considered_actions", search.max_considered_actions, 1, max_considered)
    weights = [value for value in search if isinstance(value, float)]
    if not (0 < search.discount <= 1 and search.q_scale > 0 and all(abs(w) < MAX_COST for w in weights)):
        raise ValueError(f"a search with {search}")


def check_arrays(shape: NetworkShape, instruments: int, features: FeatureSpec, arrays: Arrays) -> None:
    """ValueError unless each of the `arrays` has a row for each instrument, of the widths of `shape`."""
    F, C, bins = shape.features, shape.codes, arrays["edges"].size // instruments + 1
    widths = {"shift": F, "scale": F, "edges": bins - 1, "centres": C}
    widths |= {"mean_square": C} if "mean_square" in arrays else {}  # which only a risk term reads
    for name, width in widths.items():
        array, dtype = arrays[name], np.float32 if name in Normaliser._fields else np.float64
        if array.shape != (instruments, width) or array.dtype != dtype:
            raise ValueError(f"{name} is {array.dtype} {array.shape}, not {(instruments, width)}")
    if F != len(feature_names(features)) or not (arrays["scale"] > 0).all():
        raise ValueError("the normaliser is not one of these features")
    if C % bins:
        raise ValueError(f"{C} chance codes of {bins} bins")
    if not (np.diff(arrays["edges"]) > 0).all():
        raise ValueError("the edges of the chance codes do not ascend")


def check_widths(shape: NetworkShape, graphs: dict[str, bytes], search: SearchConfig) -> None:
    """ValueError if the graphs have other widths than `shape`."""
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
    if not SYMBOL.fullmatch(symbol) or not all(type(size) is float and 0 <= size < MAX_FIGURE for size in sizes):
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


def checked_stamps(data: dict[str, Any]) -> tuple[int, int]:
    """Closes of the last bar of `data` and of the first bar of its test part, nanoseconds.

    ValueError unless `reading_options` can use its options.
    """
    types = {"side": str, "timezone": str, "label": str, "pip": float}
    for name, value in data["reading"].items():
        if value is not None and not isinstance(value, types[name]):
            raise ValueError(f"reading.{name} is {value!r:.40}")
    spread = data["spread_pips"]
    if not (spread is None or (isinstance(spread, float) and 0 <= spread < math.inf)):
        raise ValueError(f"spread_pips is {spread!r:.40}")
    if not isinstance(data["sha256"], str):
        raise ValueError(f"sha256 is {data['sha256']!r:.40}")
    trained_ns, test_first_ns = (
        check_int("a stamp", parse_utc(text), 0, MAX_STAMP_NS) for text in (data["span"][1], data["test_first"])
    )
    return trained_ns, test_first_ns


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
