"""An agent: the three networks as ONNX Runtime sessions, and the planners that search with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from host.formats import ReadOptions
from host.model_file import ModelRefused, check_selftest, read_model, write_model
from kernels.bars import NS
from kernels.features import HISTORY, Features, Normaliser, feature_digest, new_features
from kernels.features import names as feature_names
from kernels.gumbel import SearchConfig, new_search_config
from kernels.market import Codes, Market, new_market
from kernels.ort import Net, Session
from kernels.planner import Planner, new_planner
from kernels.position import ACTIONS
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
        self._sessions = {name: Session(graph) for name, graph in graphs.items()}

    def model(self, roots: int) -> Model:
        """Networks bound for `roots` searches in lockstep."""
        F, P, D, A, C = self.sizes
        heads = A + 1
        root = self._bind("root", F + P, D + heads, roots)
        afterstate = self._bind("afterstate", D + A + P, D + C + 1, roots)
        dynamics = self._bind("dynamics", D + C + 2 * P, D + 1 + heads, roots * C)
        return Model(root, afterstate, dynamics)

    def planner(self, roots: int, config: SearchConfig) -> Planner:
        """A planner over `roots` roots."""
        return new_planner(self.model(roots), config, roots, self.sizes.actions, self.sizes.codes)

    def _bind(self, name: str, width_in: int, width_out: int, rows: int) -> Net:
        return self._sessions[name].bind(width_in, width_out, row_buckets(rows))


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
    """Read and check `model.swt`; raises ModelRefused."""
    model = read_model(path)
    check_selftest(model)
    m = model.manifest
    features = new_features(
        m["configuration"]["features"]["J"], m["configuration"]["features"]["Q"], m["interval_s"] * NS
    )
    if feature_digest(features) != m["features"]["digest"]:
        raise ModelRefused(f"{path}: made with other features than this program computes")
    if m["actions"] != list(ACTIONS) or m["history"] != HISTORY:
        raise ModelRefused(f"{path}: its actions or its history are not this program's")
    a = model.arrays
    setting = Setting(
        features,
        Normaliser(a["shift"], a["scale"]),
        Codes(a["edges"], a["centres"]),
        new_market(**m["costs"]),
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
