"""An agent: the three networks as ONNX Runtime sessions, and the planners that search with them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from host.formats import ReadOptions
from host.model_file import ModelFile, ModelRefused, check_selftest, read_model, write_model
from host.onnx_check import widths
from kernels.bars import NS
from kernels.features import HISTORY, Features, Normaliser, feature_digest, new_features
from kernels.features import names as feature_names
from kernels.gumbel import SearchConfig, new_search_config
from kernels.market import Codes, Market, new_market
from kernels.ort import Net, Session
from kernels.planner import Planner, new_planner
from kernels.position import ACTIONS
from kernels.search import Model

MOST_PX = 1e6  # that a price, a cost or a weight may be


class Sizes(NamedTuple):
    """Widths that the graphs share."""

    features: int  # F
    position: int  # P
    latent: int  # D
    actions: int  # A
    codes: int  # C


class Setting(NamedTuple):
    """What a model assumes of the market it reads: fixed by the training part."""

    features: Features
    normaliser: Normaliser
    codes: Codes
    market: Market


class Agent:
    """Sessions made from the bytes of the graphs; every thread takes planners of its own from them."""

    def __init__(self, graphs: dict[str, bytes], sizes: Sizes) -> None:
        self.graphs, self.sizes = graphs, sizes
        self._sessions = {name: Session(graph) for name, graph in graphs.items()}

    def model(self, roots: int) -> Model:
        """Networks bound for `roots` searches in lockstep."""
        rows = {"root": roots, "afterstate": roots, "dynamics": roots * self.sizes.codes}
        return Model(**{name: self._bind(name, rows[name]) for name in rows})

    def planner(self, roots: int, config: SearchConfig) -> Planner:
        """A planner over `roots` roots."""
        return new_planner(self.model(roots), config, roots, self.sizes.actions, self.sizes.codes)

    def _bind(self, name: str, rows: int) -> Net:
        return self._sessions[name].bind(*graph_widths(self.sizes)[name], row_buckets(rows))


def graph_widths(sizes: Sizes) -> dict[str, tuple[int, int]]:
    """Columns that each graph reads and writes."""
    F, P, D, A, C = sizes
    return {
        "root": (F + P, D + A + 1),
        "afterstate": (D + A + P, D + C + 1),
        "dynamics": (D + C + 2 * P, D + A + 2),
    }


def row_buckets(rows: int) -> list[int]:
    """Row counts to bind: powers of two, and `rows` itself."""
    return [2**i for i in range(rows.bit_length()) if 2**i < rows] + [rows]


class Loaded(NamedTuple):
    """A model file, checked and ready to act."""

    agent: Agent
    setting: Setting
    search: SearchConfig
    manifest: dict[str, Any]
    sha256: str
    trained_ns: int  # close of the last bar of its data


def save_agent(
    path: Path,
    agent: Agent,
    setting: Setting,
    search: SearchConfig,
    configuration: dict[str, Any],
    data: dict[str, Any],
) -> str:
    """Write `model.swt`; its sha256.  `data` says what it was trained on and how to read such files."""
    market = setting.market._asdict()
    manifest = {
        "features": {"spec": feature_names(setting.features), "digest": feature_digest(setting.features)},
        "instrument": {"pip_px": market["pip_px"], "range_px": market["range_px"]},
        "interval_s": market["interval_ns"] // NS,
        "history": HISTORY,
        "actions": list(ACTIONS),
        "costs": market,
        "search": search._asdict(),
        "data": data,
        "configuration": configuration,
        "sizes": agent.sizes._asdict(),
    }
    arrays = {**setting.normaliser._asdict(), **setting.codes._asdict()}
    return write_model(path, manifest, agent.graphs, arrays)


def load_agent(path: Path) -> Loaded:
    """Read and check `model.swt`, all that can be checked before the first inference; raises ModelRefused."""
    model = read_model(path)
    try:
        sizes, setting, search, trained_ns = interpret(model)
    except (LookupError, ArithmeticError, TypeError, ValueError, AttributeError) as error:
        raise ModelRefused(f"{path}: a manifest that makes no sense: {error!r}") from None
    check_selftest(model)
    agent = Agent(model.graphs, sizes)
    return Loaded(agent, setting, search, model.manifest, model.sha256, trained_ns)


def interpret(model: ModelFile) -> tuple[Sizes, Setting, SearchConfig, int]:
    """What the manifest says, and the close of the last bar it was trained on; errors of any kind where it lies."""
    m, a = model.manifest, model.arrays
    interval_s = within("interval_s", m["interval_s"], 1, 7 * 86_400)
    filters = m["configuration"]["features"]
    J, Q = within("J", filters["J"], 1, 8), within("Q", filters["Q"], 1, 16)
    features = new_features(J, Q, interval_s * NS)
    if feature_digest(features) != m["features"]["digest"]:
        raise ModelRefused("made with other features than this program computes")
    if m["actions"] != list(ACTIONS) or m["history"] != HISTORY:
        raise ModelRefused("its actions or its history are not this program's")
    setting = Setting(
        features,
        Normaliser(a["shift"], a["scale"]),
        Codes(a["edges"], a["centres"]),
        checked_market(new_market(**m["costs"]), m, interval_s),
    )
    sizes = checked_sizes(Sizes(**m["sizes"]), setting, model.graphs)
    search = new_search_config(**m["search"])
    within("simulations", search.simulations, 1, 4096)
    within("considered", search.considered, 1, sizes.actions)
    weights = search.c_visit, search.c_scale, search.value_unit
    if not (0 < search.discount <= 1 and search.value_unit > 0 and max(map(abs, weights)) < MOST_PX):
        raise ValueError(f"a search with {search}")
    check_reading(m["data"])
    trained_ns = int(np.datetime64(m["data"]["span"][1].removesuffix("Z"), "ns").astype(np.int64))
    return sizes, setting, search, trained_ns


def checked_sizes(sizes: Sizes, setting: Setting, graphs: dict[str, bytes]) -> Sizes:
    """`sizes`, unless graphs or arrays have others, or those are beyond reason."""
    for name, size in sizes._asdict().items():
        within(name, size, 1, 1 << 12)
    F, C = sizes.features, sizes.codes
    arrays = {"shift": (F,), "scale": (F,), "edges": (C - 1,), "centres": (C,)}
    for name, array in {**setting.normaliser._asdict(), **setting.codes._asdict()}.items():
        kind = np.float32 if name in Normaliser._fields else np.float64
        if array.shape != arrays[name] or array.dtype != kind:
            raise ValueError(f"{name} is {array.dtype} {array.shape}, not {arrays[name]}")
    if F != len(feature_names(setting.features)) or not (setting.normaliser.scale > 0).all():
        raise ValueError("the normaliser is not one of these features")
    if not (np.diff(setting.codes.edges) > 0).all():
        raise ValueError("the edges of the chance codes do not ascend")
    found = {name: widths(graph) for name, graph in graphs.items()}
    if found != graph_widths(sizes):
        raise ValueError(f"the graphs have widths {found}, not {graph_widths(sizes)}")
    return sizes


def checked_market(market: Market, manifest: dict[str, Any], interval_s: int) -> Market:
    """`market`, unless the manifest says otherwise elsewhere or its numbers are beyond any market."""
    told = {"pip_px": market.pip_px, "range_px": market.range_px}
    if market.interval_ns != interval_s * NS or manifest["instrument"] != told:
        raise ValueError("costs, instrument and interval_s do not agree")
    if not all(abs(value) < MOST_PX for value in market if isinstance(value, float)):
        raise ValueError(f"costs beyond {MOST_PX:g}: {market}")
    return market


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


def reading_of(loaded: Loaded, reading: ReadOptions) -> ReadOptions:
    """`reading`, with what it leaves open taken from the training of the model."""
    data = loaded.manifest["data"]
    known = {
        **data["reading"],
        "spread_pips": data["spread_pips"],
        "interval_s": loaded.manifest["interval_s"],
    }
    return replace(
        reading, **{name: value for name, value in known.items() if getattr(reading, name) is None}
    )
