"""An agent: the three networks as ONNX Runtime sessions, and the planners that search with them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from host.formats import ReadOptions
from host.instruments import find_instrument, same_instrument
from host.model_file import ModelFile, ModelRefused, check_selftest, read_model, write_model
from host.onnx_check import judge, layout_of
from kernels.bars import NS
from kernels.features import HISTORY, Features, Normaliser, feature_digest, new_features
from kernels.features import names as feature_names
from kernels.gumbel import MARKET, RULES, WIDENING, SearchConfig, new_search_config
from kernels.hours import QUARTERS, Hours, closed_stretches, new_hours
from kernels.market import Codes, Market, new_market
from kernels.market_tree import CALL_ROWS, WAVE, slot_count
from kernels.ort import Layout, Net, Session, check, evaluate
from kernels.planner import HORIZON, Planner, new_planner
from kernels.position import FULL, PREVIOUS, RAW, SIDE, action_names, position_features, target_side
from kernels.search import no_model, nodes_needed
from kernels.tree import REUSES
from kernels.widening import HEAD, most_candidates

MOST_CONTEXT = 64  # bars
MOST_BYTES, MOST_WORK = 1 << 30, 1 << 40  # that a decision may take, and multiplications: a minute
MOST_PX = 1e6  # that a cost or a weight may be
LEAST_PX, MOST = 1e-9, 1e12  # that a pip is at least; that a price or a figure of a backtest may be
OF_MARKET = ("pip_px", "range_px")  # of the costs, told again with the instrument


class Sizes(NamedTuple):
    """Widths that the graphs share."""

    features: int  # F
    position: int  # P
    state: int  # D: what the networks remember of a node
    actions: int  # A
    codes: int  # C
    window: int = 1  # states, of a node and of those before it, that a row of `dynamics` or `market` has
    context: int = 1  # bars that a row of `root` has the features of

    @property
    def history(self) -> int:
        """Bars that a decision depends on."""
        return HISTORY + self.context - 1


class Profile(NamedTuple):
    """What is traded, and the scale of its prices in the training part."""

    symbol: str  # "-": nobody said
    point: float  # price of the last digit
    price: float  # median
    low: float
    high: float
    day_px: float  # mean range of a day
    spread_px: float  # mean
    usual_spread_px: float  # of the instrument


class Setting(NamedTuple):
    """What a model assumes of the market it reads: fixed by the training part."""

    features: Features
    normaliser: Normaliser
    codes: Codes
    market: Market
    hours: Hours
    profile: Profile


class Record(NamedTuple):
    """What a position of 1 went through out of sample, where a model has been tried; guards begin there."""

    drawdown_pips: float = 0.0  # largest fall below the best equity
    worst_day_pips: float = 0.0  # largest loss of a day, UTC
    losing_streak: int = 0  # trades
    changes_per_hour: int = 0  # of the target, at most


class Agent:
    """Sessions made from the bytes of the graphs; every thread takes planners of its own from them."""

    def __init__(self, graphs: dict[str, bytes], sizes: Sizes) -> None:
        self.graphs, self.sizes = graphs, sizes
        self._sessions = dict[str, Session]()

    def root(self, rows: int) -> Net:
        """The root network bound for `rows` rows."""
        return self._bind("root", row_buckets(rows))

    def planner(self, roots: int, config: SearchConfig) -> Planner:
        """A planner over `roots` roots, with the networks that its rule calls."""
        _, P, D, A, C, *_ = self.sizes
        model = no_model()._replace(root=self.root(roots))
        if config.rule == MARKET:
            nodes = min(roots * WAVE, max(1, CALL_ROWS // C))
            model = model._replace(market=self._bind("market", [C * (i + 1) for i in range(nodes)]))
        else:
            if config.stochastic != ("afterstate" in self.graphs):
                raise ValueError("a search with afterstates wants networks for them, one without wants none")
            after = dict.fromkeys({"afterstate", "sibling"} & self.graphs.keys(), roots)
            most = after | {"dynamics": min(roots * C, max(CALL_ROWS, C))}
            nets = {name: self._bind(name, row_buckets(rows)) for name, rows in most.items()}
            model = model._replace(**nets, code=self._codes())
        return new_planner(model, config, roots, A, C, D, P > 0)

    def _codes(self) -> NDArray[np.float32]:
        """[C, T] what each code adds to what afterstates share; T = 0 where they share nothing."""
        if "code" not in self.graphs:
            return no_model().code
        net = self._bind("code", [self.sizes.codes])
        np.fill_diagonal(net.x, 1.0)
        check(evaluate(net, self.sizes.codes))
        return net.y  # it has room behind it, as `tell` wants

    def _bind(self, name: str, rows: list[int]) -> Net:
        """A network laid out as its graph says."""
        if name not in self._sessions:
            self._sessions[name] = Session(self.graphs[name])
        return self._sessions[name].bind(layout_of(self.graphs[name]), rows)


def graph_widths(
    sizes: Sizes, memoryless: bool, rule: int = MARKET, shared: int = 0
) -> dict[str, tuple[int, int]]:
    """Columns that each graph reads and writes, where afterstates share so many."""
    F, P, D, A, C, window, context = sizes
    H = HEAD if rule == WIDENING else A
    slots = slot_count(A, HORIZON, memoryless)
    widths = {
        "root": (context * F + P, D + H + 1 + C),
        "afterstate": (D + A + P, D + shared + C + 1),
        "sibling": (D + A + P, D + 1),
        "dynamics": (window * D + (shared or C) + 2 * P, D + H + 2),
        "market": (window * D + C + (0 if memoryless else slots * P), D + C + slots),
    }
    return widths | ({"code": (C, shared)} if shared else {})


def row_buckets(rows: int) -> list[int]:
    """Row counts to bind: 1, 2, 4, multiples of 8, and `rows` itself.  A search rarely fills a power of two."""
    return [count for count in (1, 2, 4, *range(8, rows, 8)) if count < rows] + [rows]


def slot_sides(
    sizes: Sizes, config: SearchConfig, entries: tuple[float, ...] = FULL
) -> tuple[int, NDArray[np.float32] | None]:
    """(S, features [S, P] of the slots' positions where they are always the same): what `market` is exported for.

    `entries` are the sizes of an entry.  S = 0, and no such graph, for a game without positions.
    """
    if sizes.position == 0:
        return 0, None
    memoryless = config.excursion_weight == 0
    slots = slot_count(sizes.actions, HORIZON, memoryless)
    if not memoryless:
        return slots, None
    sides, position = np.zeros((slots, sizes.position), np.float32), np.zeros(RAW, np.float32)
    for slot in range(slots):
        position[SIDE] = position[PREVIOUS] = target_side(0.0, slot, entries)
        position_features(sides[slot], position, True)
    return slots, sides


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
