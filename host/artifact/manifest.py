"""What a model file says beside its graphs: written by `save_agent`, checked field by field by `load_agent`."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from host.artifact.model_file import ModelFile, ModelRefused, check_selftest, read_model, write_model
from host.artifact.networks import (
    LEAST_PX,
    MOST,
    MOST_BYTES,
    MOST_CONTEXT,
    MOST_WORK,
    Agent,
    Profile,
    Record,
    Setting,
    Sizes,
    graph_widths,
)
from host.artifact.onnx_check import judge, layout_of
from host.data.formats import ReadOptions
from host.data.instruments import find_instrument, same_instrument
from kernels.market.bars import NS
from kernels.market.calendar import QUARTERS, Hours, closed_stretches, new_hours
from kernels.market.chance import Codes
from kernels.market.features import Normaliser, feature_digest, new_features
from kernels.market.features import names as feature_names
from kernels.market.ledger import Market, new_market
from kernels.market.position import RAW, action_names
from kernels.ort import Layout
from kernels.search.config import MARKET, RULES, WIDENING, SearchConfig, new_search_config
from kernels.search.market_search import CALL_ROWS, slot_count
from kernels.search.mcts import nodes_needed
from kernels.search.planner import HORIZON
from kernels.search.progressive_widening import HEAD, most_candidates
from kernels.search.tree import REUSES

MOST_PX = 1e6  # that a cost or a weight may be


OF_MARKET = ("pip_px", "range_px")  # of the costs, told again with the instrument


class Loaded(NamedTuple):
    """A model file, checked and ready to act."""

    agent: Agent
    setting: Setting
    search: SearchConfig
    manifest: dict[str, Any]
    sha256: str
    trained_ns: int  # close of the last bar of its data
    record: Record


def save_agent(
    path: Path,
    agent: Agent,
    setting: Setting,
    search: SearchConfig,
    configuration: dict[str, Any],
    data: dict[str, Any],
    record: Record = Record(),  # noqa: B008
) -> str:
    """Write `model.swt`; its sha256.  `data` says what it was trained on and how to read such files."""
    market = setting.market._asdict()
    manifest = {
        "features": {"spec": feature_names(setting.features), "digest": feature_digest(setting.features)},
        "instrument": {
            **setting.profile._asdict(),
            **{name: market[name] for name in OF_MARKET},
            "closed": closed_stretches(setting.hours),
        },
        "backtest": record._asdict(),
        "interval_s": market["interval_ns"] // NS,
        "history": agent.sizes.history,
        "actions": action_names(setting.market.sizes),
        "costs": market,
        "search": search._asdict(),
        "data": data,
        "configuration": configuration,
        "sizes": agent.sizes._asdict(),
    }
    return write_model(path, manifest, agent.graphs, setting_arrays(setting))


def setting_arrays(setting: Setting) -> dict[str, NDArray[Any]]:
    """The arrays of a model file: of the codes what acting needs, not which bars they were seen at."""
    codes = {"edges": setting.codes.edges, "centres": setting.codes.centres}
    return {**setting.normaliser._asdict(), **codes}


def load_agent(path: Path) -> Loaded:
    """Read and check `model.swt`, all that can be checked before the first inference; raises ModelRefused."""
    model = read_model(path)
    try:
        sizes, setting, search, trained_ns, record = interpret(model)
    except (LookupError, ArithmeticError, TypeError, ValueError, AttributeError) as error:
        raise ModelRefused(f"{path}: a manifest that makes no sense: {error!r}") from None
    check_selftest(model)
    agent = Agent(model.graphs, sizes)
    return Loaded(agent, setting, search, model.manifest, model.sha256, trained_ns, record)


def interpret(model: ModelFile) -> tuple[Sizes, Setting, SearchConfig, int, Record]:
    """What the manifest says, and the close of the last bar it was trained on; errors of any kind where it lies."""
    m, a = model.manifest, model.arrays
    interval_s = within("interval_s", m["interval_s"], 1, 7 * 86_400)
    filters = m["configuration"]["features"]
    J, Q = within("J", filters["J"], 1, 8), within("Q", filters["Q"], 1, 16)
    features = new_features(J, Q, interval_s * NS)
    if feature_digest(features) != m["features"]["digest"]:
        raise ModelRefused("made with other features than this program computes")
    market = new_market(**m["costs"])
    within("context", m["sizes"]["context"], 1, MOST_CONTEXT)
    if m["actions"] != action_names(market.sizes) or m["history"] != Sizes(**m["sizes"]).history:
        raise ModelRefused("its actions or its history are not this program's")
    setting = Setting(
        features,
        Normaliser(a["shift"], a["scale"]),
        Codes(a["edges"], a["centres"]),
        checked_market(market, m, interval_s),
        checked_hours(m["instrument"]["closed"]),
        checked_profile(m["instrument"]),
    )
    search = new_search_config(**m["search"])
    if search.excursion_weight != market.excursion_weight or not (search.stochastic and search.full_width):
        raise ValueError("a search that is not one of this market")
    within("rule", search.rule, 0, len(RULES) - 1)
    within("reuse", search.reuse, 0, len(REUSES) - 1)
    sizes = checked_sizes(Sizes(**m["sizes"]), setting, model.graphs, search.rule)
    within("simulations", search.simulations, 1, 4096)
    within("samples", search.samples, 1, 64)
    candidates = most_candidates(search.samples) if search.rule == WIDENING else sizes.actions
    within("considered", search.considered, 1, candidates)
    weights = [value for value in search if isinstance(value, float)]
    if not (0 < search.discount <= 1 and search.value_unit > 0 and all(abs(w) < MOST_PX for w in weights)):
        raise ValueError(f"a search with {search}")
    check_room(sizes, search, model.graphs)
    check_reading(m["data"])
    trained_ns = int(np.datetime64(m["data"]["span"][1].removesuffix("Z"), "ns").astype(np.int64))
    return sizes, setting, search, trained_ns, checked_record(m["backtest"])


def checked_sizes(sizes: Sizes, setting: Setting, graphs: dict[str, bytes], rule: int) -> Sizes:
    """`sizes`, unless graphs or arrays have others, or those are beyond reason."""
    for name, size in sizes._asdict().items():
        within(name, size, 1, 1 << 12)
    F, C = sizes.features, sizes.codes
    arrays = {"shift": (F,), "scale": (F,), "edges": (C - 1,), "centres": (C,)}
    for name, array in setting_arrays(setting).items():
        kind = np.float32 if name in Normaliser._fields else np.float64
        if array.shape != arrays[name] or array.dtype != kind:
            raise ValueError(f"{name} is {array.dtype} {array.shape}, not {arrays[name]}")
    if F != len(feature_names(setting.features)) or not (setting.normaliser.scale > 0).all():
        raise ValueError("the normaliser is not one of these features")
    if not (np.diff(setting.codes.edges) > 0).all():
        raise ValueError("the edges of the chance codes do not ascend")
    layouts = {name: layout_of(graph) for name, graph in graphs.items()}
    found = {name: layout[:2] for name, layout in layouts.items()}
    shared = within("what afterstates share", found.get("code", (0, 0))[1], 0, 1 << 12)
    wanted = graph_widths(sizes, setting.market.excursion_weight == 0, rule, shared)
    for name in {"sibling", *(() if rule == MARKET else ("market",))} - graphs.keys():
        del wanted[name]
    if found != wanted:
        raise ValueError(f"the graphs have widths {found}, not {wanted}")
    if not first_cuts_are(layouts["dynamics"], sizes.state, shared):
        raise ValueError("dynamics does not read what afterstates share on its own")
    return sizes


def check_room(sizes: Sizes, search: SearchConfig, graphs: dict[str, bytes]) -> None:
    """ValueError where a decision takes beyond reason: a manifest of a few bytes can ask for all memory."""
    C, nodes = sizes.codes, nodes_needed(search, sizes.codes)
    costs = {name: judge(graph)[1] for name, graph in graphs.items()}
    rows = {"root": 1, "afterstate": 1, "sibling": 1, "code": C}  # of a call
    taken = tree_room(sizes, search)
    taken += 4 * sum(rows.get(name, max(C, CALL_ROWS)) * cost.floats for name, cost in costs.items())
    work = sum((1 if name == "root" else nodes) * cost.work for name, cost in costs.items())
    if taken > MOST_BYTES or work > MOST_WORK:
        raise ValueError(f"a decision of {taken} bytes and {work} multiplications")


def tree_room(sizes: Sizes, search: SearchConfig) -> int:
    """Bytes that the tree of one root does not exceed."""
    memoryless = search.excursion_weight == 0
    slots = slot_count(sizes.actions, HORIZON, memoryless) * (1 if memoryless else 1 + RAW)
    edges = max(sizes.actions, sizes.codes, most_candidates(search.samples), 40)  # of 4096 visits in widening
    node = 8 + sizes.codes + slots if search.rule == MARKET else RAW + HEAD + 6 * (edges + 16)
    return 4 * nodes_needed(search, sizes.codes) * (sizes.state + node)


def first_cuts_are(layout: Layout, first: int, width: int) -> bool:
    """Whether the first cuts of a graph are these columns, as `kernels.ort.tell` takes them to be."""
    stop = first + width
    for cut in layout.cuts:
        if first >= stop or cut.first != first:
            break
        first += cut.width
    return first == stop


def checked_market(market: Market, manifest: dict[str, Any], interval_s: int) -> Market:
    """`market`, unless the manifest says otherwise elsewhere or its numbers are beyond any market."""
    told = {name: manifest["instrument"][name] for name in OF_MARKET}
    if market.interval_ns != interval_s * NS or told != {name: getattr(market, name) for name in OF_MARKET}:
        raise ValueError("costs, instrument and interval_s do not agree")
    if (
        not all(abs(value) < MOST_PX for value in market if isinstance(value, float))
        or market.pip_px < LEAST_PX
    ):
        raise ValueError(f"costs beyond {MOST_PX:g}: {market}")
    return market


def checked_hours(stretches: Any) -> Hours:
    """The hours that a manifest gives as closed stretches of a week."""
    for first, stop in stretches:
        within("closed", first, 0, QUARTERS - 1)
        within("closed", stop, first + 1, first + QUARTERS)
    return new_hours(*stretches[:QUARTERS])


def checked_profile(told: dict[str, Any]) -> Profile:
    """The profile in a manifest, unless a number of it is beyond any market."""
    profile = Profile(**{name: told[name] for name in Profile._fields})
    symbol, *sizes = profile
    if not isinstance(symbol, str) or not all(type(size) is float and 0 <= size < MOST for size in sizes):
        raise ValueError(f"an instrument that is none: {profile}")
    if not 0 < profile.low <= profile.price <= profile.high:
        raise ValueError(f"prices that are none: {profile}")
    return profile


def checked_record(told: dict[str, Any]) -> Record:
    """The backtest in a manifest, unless a number of it is beyond any backtest."""
    record = Record(**told)
    if not all(type(value) in (int, float) and 0 <= value < MOST for value in record):
        raise ValueError(f"a backtest with {record}")
    return record


def within(name: str, value: Any, low: int, high: int) -> int:
    """An integer of a manifest that is one, and no larger than it may be."""
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{name} is {value!r:.40}, not a number from {low} to {high}")
    return value


def check_reading(data: dict[str, Any]) -> None:
    """ValueError unless `reading_of` can use what the model says of its feed."""
    kinds = {"side": str, "timezone": str, "label": str, "pip": float}
    for name, value in data["reading"].items():
        if value is not None and not isinstance(value, kinds[name]):
            raise ValueError(f"reading.{name} is {value!r:.40}")
    spread = data["spread_pips"]
    if not (spread is None or (isinstance(spread, float) and 0 <= spread < math.inf)):
        raise ValueError(f"spread_pips is {spread!r:.40}")


def reading_of(loaded: Loaded, reading: ReadOptions, name: str = "") -> ReadOptions:
    """`reading` of a feed called `name`, with what the model remembers for what the user and the format leave open.

    Pip and spread are those of an instrument, so nothing of them is remembered for a feed of another.
    """
    data = loaded.manifest["data"]
    memory = {**data["reading"], "spread_pips": data["spread_pips"]}
    known = find_instrument(reading.symbol or name)
    if known is not None and not same_instrument(known.symbol, loaded.setting.profile.symbol):
        memory = {what: value for what, value in memory.items() if what not in ("pip", "spread_pips")}
    interval_s = loaded.manifest["interval_s"] if reading.interval_s is None else reading.interval_s
    return replace(reading, interval_s=interval_s, remembered=memory)
