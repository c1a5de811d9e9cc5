"""An agent: the three networks as ONNX Runtime sessions, and the planners that search with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from host.formats import ReadOptions
from host.model_file import ModelRefused, check_selftest, read_model, write_model
from kernels.bars import NS
from kernels.features import HISTORY, Features, Normaliser, feature_digest, new_features
from kernels.features import names as feature_names
from kernels.gumbel import MARKET, SearchConfig, new_search_config
from kernels.market import Codes, Market, new_market
from kernels.market_tree import CALL_ROWS, WAVE, slot_count
from kernels.ort import Net, Session, no_net
from kernels.planner import HORIZON, Planner, new_planner
from kernels.position import FULL, RAW, SIDE, action_names, position_features, target_side
from kernels.search import Model


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
        self._sessions = dict[str, Session]()

    def root(self, rows: int) -> Net:
        """The root network bound for `rows` rows."""
        F, P, D, A, C = self.sizes
        return self._bind("root", F + P, D + C + A + 1, row_buckets(rows))

    def planner(self, roots: int, config: SearchConfig) -> Planner:
        """A planner over `roots` roots, with the networks that its rule calls."""
        _, P, D, A, C = self.sizes
        after, dynamics, market = no_net(), no_net(), no_net()
        if config.rule == MARKET:
            memoryless = config.excursion_weight == 0
            slots = slot_count(A, HORIZON, memoryless)
            wide = D + C + (0 if memoryless else slots * P)
            nodes = min(roots * WAVE, max(1, CALL_ROWS // C))
            market = self._bind("market", wide, D + C + slots, [C * (i + 1) for i in range(nodes)])
        else:
            rows = min(roots * C, max(CALL_ROWS, C))
            dynamics = self._bind("dynamics", D + C + 2 * P, D + 1 + A + 1, row_buckets(rows))
            after = self._bind("afterstate", D + A + P, D + C + 1, row_buckets(roots))
        return new_planner(Model(self.root(roots), after, dynamics, market), config, roots, A, C, D, P > 0)

    def _bind(self, name: str, width_in: int, width_out: int, rows: list[int]) -> Net:
        if name not in self._sessions:
            self._sessions[name] = Session(self.graphs[name])
        return self._sessions[name].bind(width_in, width_out, rows)


def row_buckets(rows: int) -> list[int]:
    """Row counts to bind: powers of two, and `rows` itself."""
    return [2**i for i in range(rows.bit_length()) if 2**i < rows] + [rows]


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
        position[SIDE] = target_side(0.0, slot, entries)
        position_features(sides[slot], position, True)
    return slots, sides


class Loaded(NamedTuple):
    """A model file, checked and ready to act."""

    agent: Agent
    setting: Setting
    search: SearchConfig
    manifest: dict[str, Any]
    sha256: str


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
        "actions": action_names(setting.market.sizes),
        "costs": market,
        "search": search._asdict(),
        "data": data,
        "configuration": configuration,
        "sizes": agent.sizes._asdict(),
    }
    arrays = {**setting.normaliser._asdict(), **setting.codes._asdict()}
    return write_model(path, manifest, agent.graphs, arrays)


def load_agent(path: Path) -> Loaded:
    """Read and check `model.swt`; raises ModelRefused."""
    if not path.is_file():
        raise ModelRefused(f"{path}: there is no such file")
    model = read_model(path)
    check_selftest(model)
    m = model.manifest
    features = new_features(
        m["configuration"]["features"]["J"], m["configuration"]["features"]["Q"], m["interval_s"] * NS
    )
    if feature_digest(features) != m["features"]["digest"]:
        raise ModelRefused(f"{path}: made with other features than this program computes")
    try:
        market = new_market(**m["costs"])
    except (TypeError, ValueError) as error:
        raise ModelRefused(f"{path}: its costs: {error}") from None
    if m["actions"] != action_names(market.sizes) or m["history"] != HISTORY:
        raise ModelRefused(f"{path}: its actions or its history are not this program's")
    a = model.arrays
    setting = Setting(
        features,
        Normaliser(a["shift"], a["scale"]),
        Codes(a["edges"], a["centres"]),
        market,
    )
    agent = Agent(model.graphs, Sizes(**m["sizes"]))
    return Loaded(agent, setting, new_search_config(**m["search"]), m, model.sha256)


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
