"""What a model file says beside its graphs: written by `save_model`, checked field by field by `load_model`."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from host.artifact.model_file import ModelError, ModelFile, check_selftest, read_model, write_model
from host.artifact.networks import (
    MAX_CONTEXT,
    MAX_DECISION_BYTES,
    MAX_DECISION_WORK,
    MAX_FIGURE,
    MIN_PIP_PX,
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

MAX_COST = 1e6  # that a cost or a weight may be


INSTRUMENT_COSTS = ("pip_px", "range_px")  # of the costs, told again with the instrument


class LoadedModel(NamedTuple):
    """A model file, checked and ready to act."""

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
    """Write `model.swt`; its sha256.  `data` says what it was trained on and how to read such files."""
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


def market_spec_arrays(setting: MarketSpec) -> dict[str, NDArray[Any]]:
    """The arrays of a model file: of the codes what acting needs, not which bars they were seen at."""
    codes = {"edges": setting.codes.edges, "centres": setting.codes.centres}
    return {**setting.normaliser._asdict(), **codes}


def load_model(path: Path) -> LoadedModel:
    """Read and check `model.swt`, all that can be checked before the first inference; raises ModelRefused."""
    model = read_model(path)
    try:
        sizes, setting, search, trained_ns, record = parse_manifest(model)
    except (LookupError, ArithmeticError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{path}: a manifest that makes no sense: {error!r}") from None
    check_selftest(model)
    agent = OnnxNetworks(model.graphs, sizes)
    return LoadedModel(agent, setting, search, model.manifest, model.sha256, trained_ns, record)


def parse_manifest(model: ModelFile) -> tuple[NetworkShape, MarketSpec, SearchConfig, int, BacktestStats]:
    """What the manifest says, and the close of the last bar it was trained on; errors of any kind where it lies."""
    m, a = model.manifest, model.arrays
    interval_s = check_int("interval_s", m["interval_s"], 1, 7 * 86_400)
    filters = m["configuration"]["features"]
    J, Q = check_int("J", filters["J"], 1, 8), check_int("Q", filters["Q"], 1, 16)
    features = new_feature_spec(J, Q, interval_s * SECOND_NS)
    if feature_digest(features) != m["features"]["digest"]:
        raise ModelError("made with other features than this program computes")
    market = new_market(**m["costs"])
    check_int("context", m["sizes"]["context"], 1, MAX_CONTEXT)
    if m["actions"] != action_names(market.sizes) or m["history"] != history_bars(NetworkShape(**m["sizes"])):
        raise ModelError("its actions or its history are not this program's")
    setting = MarketSpec(
        features,
        Normaliser(a["shift"], a["scale"]),
        ChanceCodes(a["edges"], a["centres"]),
        checked_market(market, m, interval_s),
        checked_hours(m["instrument"]["closed"]),
        checked_profile(m["instrument"]),
    )
    search = new_search_config(**m["search"])
    if search.mae_penalty != market.mae_penalty or not (search.stochastic and search.expectation_backup):
        raise ValueError("a search that is not one of this market")
    check_int("rule", search.algorithm, 0, len(ALGORITHMS) - 1)
    check_int("reuse", search.value_reuse, 0, len(VALUE_REUSES) - 1)
    sizes = checked_network_shape(NetworkShape(**m["sizes"]), setting, model.graphs, search)
    check_int("simulations", search.num_simulations, 1, 4096)
    check_int("samples", search.num_sampled_sizes, 1, 64)
    candidates = max_candidates(search.num_sampled_sizes) if search.algorithm == WIDENING else sizes.actions
    check_int("considered", search.max_considered_actions, 1, candidates)
    weights = [value for value in search if isinstance(value, float)]
    if not (0 < search.discount <= 1 and search.q_scale > 0 and all(abs(w) < MAX_COST for w in weights)):
        raise ValueError(f"a search with {search}")
    check_decision_cost(sizes, search, model.graphs)
    check_reading(m["data"])
    trained_ns = int(np.datetime64(m["data"]["span"][1].removesuffix("Z"), "ns").astype(np.int64))
    return sizes, setting, search, trained_ns, checked_backtest_stats(m["backtest"])


def checked_network_shape(
    sizes: NetworkShape, setting: MarketSpec, graphs: dict[str, bytes], search: SearchConfig
) -> NetworkShape:
    """`sizes`, unless graphs or arrays have others, or those are beyond reason."""
    for name, size in sizes._asdict().items():
        check_int(name, size, 1, 1 << 12)
    F, C = sizes.features, sizes.codes
    arrays = {"shift": (F,), "scale": (F,), "edges": (C - 1,), "centres": (C,)}
    for name, array in market_spec_arrays(setting).items():
        kind = np.float32 if name in Normaliser._fields else np.float64
        if array.shape != arrays[name] or array.dtype != kind:
            raise ValueError(f"{name} is {array.dtype} {array.shape}, not {arrays[name]}")
    if F != len(feature_names(setting.features)) or not (setting.normaliser.scale > 0).all():
        raise ValueError("the normaliser is not one of these features")
    if not (np.diff(setting.codes.edges) > 0).all():
        raise ValueError("the edges of the chance codes do not ascend")
    layouts = {name: layout_of(graph) for name, graph in graphs.items()}
    found = {name: layout[:2] for name, layout in layouts.items()}
    shared = check_int("what afterstates share", found.get("code", (0, 0))[1], 0, 1 << 12)
    wanted = graph_widths(sizes, search, shared)
    for name in {"afterstate_value", *(() if search.algorithm == MARKET else ("market",))} - graphs.keys():
        del wanted[name]
    if found != wanted:
        raise ValueError(f"the graphs have widths {found}, not {wanted}")
    if not first_slices_are(layouts["dynamics"], sizes.state, shared):
        raise ValueError("dynamics does not read what afterstates share on its own")
    return sizes


def check_decision_cost(sizes: NetworkShape, search: SearchConfig, graphs: dict[str, bytes]) -> None:
    """ValueError where a decision takes beyond reason: a manifest of a few bytes can ask for all memory."""
    C, nodes = sizes.codes, nodes_needed(search, sizes.codes)
    costs = {name: check_graph(graph)[1] for name, graph in graphs.items()}
    rows = {"root": 1, "afterstate": 1, "afterstate_value": 1, "code": C}  # of a call
    taken = max_tree_bytes(sizes, search)
    taken += 4 * sum(rows.get(name, max(C, MAX_CALL_ROWS)) * cost.floats for name, cost in costs.items())
    work = sum((1 if name == "root" else nodes) * cost.multiplications for name, cost in costs.items())
    if taken > MAX_DECISION_BYTES or work > MAX_DECISION_WORK:
        raise ValueError(f"a decision of {taken} bytes and {work} multiplications")


def max_tree_bytes(sizes: NetworkShape, search: SearchConfig) -> int:
    """Bytes that the tree of one root does not exceed."""
    memoryless = search.mae_penalty == 0
    slots = num_hypotheses(sizes.actions, MAX_MARKET_DEPTH, memoryless) * (1 if memoryless else 1 + NUM_POSITION_FIELDS)
    edges = max(sizes.actions, sizes.codes, max_candidates(search.num_sampled_sizes), 40)  # of 4096 visits in widening
    node = (
        8 + sizes.codes + slots
        if search.algorithm == MARKET
        else NUM_POSITION_FIELDS + POLICY_HEAD_WIDTH + 6 * (edges + 16)
    )
    return 4 * nodes_needed(search, sizes.codes) * (sizes.state + node)


def first_slices_are(layout: GraphLayout, first: int, width: int) -> bool:
    """Whether the first cuts of a graph are these columns, as `kernels.ort.write_preactivation` takes them to be."""
    stop = first + width
    for cut in layout.input_slices:
        if first >= stop or cut.first_column != first:
            break
        first += cut.width
    return first == stop


def checked_market(market: Market, manifest: dict[str, Any], interval_s: int) -> Market:
    """`market`, unless the manifest says otherwise elsewhere or its numbers are beyond any market."""
    told = {name: manifest["instrument"][name] for name in INSTRUMENT_COSTS}
    if market.interval_ns != interval_s * SECOND_NS or told != {
        name: getattr(market, name) for name in INSTRUMENT_COSTS
    }:
        raise ValueError("costs, instrument and interval_s do not agree")
    if not all(abs(value) < MAX_COST for value in market if isinstance(value, float)) or market.pip_px < MIN_PIP_PX:
        raise ValueError(f"costs beyond {MAX_COST:g}: {market}")
    return market


def checked_hours(stretches: Any) -> ClosedHours:
    """The hours that a manifest gives as closed stretches of a week."""
    for first, stop in stretches:
        check_int("closed", first, 0, QUARTERS_PER_WEEK - 1)
        check_int("closed", stop, first + 1, first + QUARTERS_PER_WEEK)
    return new_closed_hours(*stretches[:QUARTERS_PER_WEEK])


def checked_profile(told: dict[str, Any]) -> InstrumentProfile:
    """The profile in a manifest, unless a number of it is beyond any market."""
    profile = InstrumentProfile(**{name: told[name] for name in InstrumentProfile._fields})
    symbol, *sizes = profile
    if not isinstance(symbol, str) or not all(type(size) is float and 0 <= size < MAX_FIGURE for size in sizes):
        raise ValueError(f"an instrument that is none: {profile}")
    if not 0 < profile.low <= profile.price <= profile.high:
        raise ValueError(f"prices that are none: {profile}")
    return profile


def checked_backtest_stats(told: dict[str, Any]) -> BacktestStats:
    """The backtest in a manifest, unless a number of it is beyond any backtest."""
    record = BacktestStats(**told)
    if not all(type(value) in (int, float) and 0 <= value < MAX_FIGURE for value in record):
        raise ValueError(f"a backtest with {record}")
    return record


def check_int(name: str, value: Any, low: int, high: int) -> int:
    """An integer of a manifest that is one, and no larger than it may be."""
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{name} is {value!r:.40}, not a number from {low} to {high}")
    return value


def check_reading(data: dict[str, Any]) -> None:
    """ValueError unless `reading_options` can use what the model says of its feed."""
    kinds = {"side": str, "timezone": str, "label": str, "pip": float}
    for name, value in data["reading"].items():
        if value is not None and not isinstance(value, kinds[name]):
            raise ValueError(f"reading.{name} is {value!r:.40}")
    spread = data["spread_pips"]
    if not (spread is None or (isinstance(spread, float) and 0 <= spread < math.inf)):
        raise ValueError(f"spread_pips is {spread!r:.40}")


def reading_options(loaded: LoadedModel, reading: ReadOptions, name: str = "") -> ReadOptions:
    """`reading` of a feed called `name`, with what the model remembers for what the user and the format leave open.

    Pip and spread are those of an instrument, so nothing of them is remembered for a feed of another.
    """
    data = loaded.manifest["data"]
    memory = {**data["reading"], "spread_pips": data["spread_pips"]}
    known = find_instrument(reading.symbol or name)
    if known is not None and not same_instrument(known.symbol, loaded.market_spec.profile.symbol):
        memory = {what: value for what, value in memory.items() if what not in ("pip", "spread_pips")}
    interval_s = loaded.manifest["interval_s"] if reading.interval_s is None else reading.interval_s
    return replace(reading, interval_s=interval_s, model_defaults=memory)
