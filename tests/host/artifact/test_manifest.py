"""A model file that anybody may have made: it acts, or it is refused with a reason; no third way, and no traceback.

`SWT_FUZZ_SECONDS=600` doctors models for so long.
"""

import copy
import json
import os
import random
import re
import sys
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host.artifact import model_file
from host.artifact.manifest import check_decision_cost, load_model, load_models, max_tree_bytes, save_model
from host.artifact.model_file import ModelError
from host.artifact.onnx_check import layout_of
from host.commands.act import act_on_feed
from host.commands.backtest import backtest_csv
from host.data.formats import ReadOptions
from host.data.parsing import parse_utc
from kernels.ort import OutputHead, check_status
from kernels.search.config import ALGORITHMS, GUMBEL, PUCT, WIDENING, new_search_config
from kernels.search.networks import NetworkShape, graph_widths, no_networks
from kernels.search.planner import new_planner, plan
from kernels.search.progressive_widening import POLICY_HEAD_WIDTH
from models.onnx_builder import GraphBuilder
from tests.fixtures.model_files import ModelMarket, loaded, market_of, members_of, save_several, signed
from tests.fixtures.trained import ROWS, Trained, feed_of

SECONDS = int(os.environ.get("SWT_FUZZ_SECONDS", "0"))
ODD: list[Any] = [None, True, -1, 0, 1, 3, 10**9, 10**400, 1e308, -0.5, "", "../../etc/passwd", "9" * 99, [], {}, [[]]]


def array(data: Any) -> bytes:
    return model_file._npy_bytes(np.asarray(data))


def change(*path: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    def apply(members: dict[str, Any]) -> None:
        at = members[model_file.MANIFEST]
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value

    return apply


def reordered(order: Callable[[list[Any]], list[Any]], members: dict[str, Any]) -> None:
    """The preactivation is not all that `dynamics` reads first."""
    model = onnx.load_from_string(members["graphs/dynamics.onnx"])
    carried, cuts, outputs = json.loads(model.metadata_props[0].value)
    model.metadata_props[0].value = json.dumps([carried, order(cuts), outputs])
    members["graphs/dynamics.onnx"] = model.SerializeToString()


LIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "J is 60": change("configuration", "features", "J", value=60),
    "interval_s is 0": change("interval_s", value=0),
    "num_simulations is 10": change("search", "num_simulations", value=10**9),
    "max_considered_actions is 9": change("search", "max_considered_actions", value=9),
    "unexpected keyword": change("search", "simulatoins", value=4),
    "do not agree": change("markets", 0, "costs", "interval_ns", value=10**400),
    "do not  agree": change("markets", 0, "instrument", "pip_px", value=0.01),
    "costs beyond": change("markets", 0, "costs", "slippage_px", value=1e300),
    "a search with": change("search", "discount", value=1e300),
    "a search  with": change("search", "dirichlet_fraction", value=1e300),
    "a search that is not": change("search", "stochastic", value=False),
    "value_reuse is 1000": change("search", "value_reuse", value=10**22),
    "algorithm is 4": change("search", "algorithm", value=4),
    "range -1": change("markets", 0, "costs", "range_px", value=-1.0),
    "state is 100": change("sizes", "state", value=100_000),
    "the graphs have widths": change("sizes", "state", value=9),
    "the graphs  have widths": change("sizes", "attention_window", value=2),
    "context is 0": change("sizes", "context", value=0),
    "its  history": change("sizes", "context", value=2),
    "shift is float32": change("sizes", "features", value=7),
    "reading.side is 7": change("markets", 0, "data", "reading", value={"side": 7}),
    "'drop_bad'": change("markets", 0, "data", "reading", value={"drop_bad": True}),
    "closed is 9999": change("markets", 0, "instrument", "closed", value=[[0, 9999]]),
    "not enough values": change("markets", 0, "instrument", "closed", value=[[]]),
    "an instrument that is none": change("markets", 0, "instrument", "price", value=-1.0),
    "expected string": change("markets", 0, "instrument", "symbol", value=7),
    "an instrument that  is none": change("markets", 0, "instrument", "symbol", value="../EURUSD"),
    "an instrument that is  none": change("markets", 0, "instrument", "symbol", value="EUR\nUSD"),
    "an  instrument that is none": change("markets", 0, "instrument", "symbol", value="E" * 33),
    "number of instruments is 0": change("markets", value=[]),
    "number of instruments is 10000": change("markets", value=[{}] * 10_000),
    "an instrument with": lambda members: members[model_file.MANIFEST]["markets"][0].update(search={}),
    "no attribute 'keys'": change("markets", value=["EURUSD"]),
    "an instrument  with": lambda members: members[model_file.MANIFEST]["markets"][0].pop("backtest"),
    "prices that are none": change("markets", 0, "instrument", "low", value=0.0),
    "costs  beyond": lambda members: [
        members[model_file.MANIFEST]["markets"][0][section].update(pip_px=1e-300) for section in ("costs", "instrument")
    ],
    "a backtest with": change("markets", 0, "backtest", "drawdown_pips", value=-1.0),
    "a backtest  with": change("markets", 0, "backtest", "changes_per_hour", value=10**400),
    "spread_pips is -1": change("markets", 0, "data", "spread_pips", value=-1.0),
    "IndexError": change("markets", 0, "data", "span", value=["2017-01-01"]),
    "'then' does not match": change("markets", 0, "data", "span", value=["2017-01-01", "then"]),
    "a stamp is -": change("markets", 0, "data", "span", value=["", "1017-01-01T00:00:00Z"]),
    "a stamp is 2": change("markets", 0, "data", "test_first", value="9017-01-01T00:00:00Z"),
    "'test_first'": lambda members: members[model_file.MANIFEST]["markets"][0]["data"].pop("test_first"),
    "sha256 is None": change("markets", 0, "data", "sha256", value=None),
    "other features": change("features", "digest", value="0" * 16),
    "its history": change("history", value=9),
    "'shift'": lambda members: members.pop("arrays/shift.npy"),
    "normaliser": lambda members: members.update(
        {"arrays/scale.npy": array(0 * np.frombuffer(members["arrays/scale.npy"][128:], np.float32)[None])}
    ),
    "edges is float32": lambda members: members.update({"arrays/edges.npy": array(np.zeros((1, 7), np.float32))}),
    "edges is float64 (7,)": lambda members: members.update({"arrays/edges.npy": array(np.arange(7.0))}),
    "edges is float64 (2, 7)": lambda members: members.update({"arrays/edges.npy": array(np.ones((2, 1)) * range(7))}),
    "8 chance codes of 6 bins": lambda members: members.update({"arrays/edges.npy": array(np.arange(5.0)[None])}),
    "on its own": partial(reordered, lambda cuts: cuts[::-1]),
    "on its  own": partial(reordered, lambda cuts: sorted(cuts, key=lambda cut: cut[1])),
    "do not ascend": lambda members: members.update({"arrays/edges.npy": array(np.zeros((1, 7)))}),
}


@pytest.mark.parametrize("reason", LIES)
def test_a_manifest_that_lies_is_refused_before_any_inference(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    members = members_of(trained.path.read_bytes())
    LIES[reason](members)
    (tmp_path / "model.swt").write_bytes(signed(members))
    monkeypatch.setattr(model_file, "Session", None)
    with pytest.raises(ModelError, match=re.escape(reason.replace("  ", " "))):
        load_model(tmp_path / "model.swt")


def test_instruments_that_do_not_belong_together_are_refused(trained: Trained, tmp_path: Path) -> None:
    first, path = market_of(trained), tmp_path / "model.swt"

    def second(symbol: str = "GBPUSD", **rules: Any) -> ModelMarket:
        profile, market = first.spec.profile._replace(symbol=symbol), first.spec.market._replace(**rules)
        return first._replace(spec=first.spec._replace(profile=profile, market=market))

    for other, reason in (
        (second("EURUSD"), "one twice: EURUSD, EURUSD"),
        (second("EURUSD.m"), r"one twice: EURUSD, EURUSD\.m"),
        (second("-"), "symbols that name no instrument"),
        (second(reverse=not first.spec.market.reverse), "instruments that differ in"),
        (second(mae_penalty=0.5), "instruments that differ in"),
        (second(sizes=(0.5, 1.0)), "instruments that differ in"),
        (second(interval_ns=1), "do not agree"),
    ):
        save_several(trained, path, first, other)
        with pytest.raises(ModelError, match=reason):
            load_models(path)
    save_several(trained, path, *(second(f"S{i}") for i in range(65)))
    with pytest.raises(ModelError, match="number of instruments is 65"):
        load_models(path)
    features = first.spec.features._replace(interval_ns=1)
    with pytest.raises(ValueError, match="features of the markets differ"):
        save_several(trained, path, first, first._replace(spec=first.spec._replace(features=features)))


def test_a_risk_term_brings_the_mean_squares_of_the_codes(trained: Trained, tmp_path: Path) -> None:
    market, codes = market_of(trained), trained.loaded.market_spec.codes
    np.testing.assert_array_equal(codes.mean_square, codes.centres**2)  # nothing reads them
    averse = market.spec.market._replace(risk_aversion=0.5)
    spec = market.spec._replace(market=averse, codes=codes._replace(mean_square=codes.centres**2 + 0.1))
    found = load_model(save_several(trained, tmp_path / "averse.swt", market._replace(spec=spec))).market_spec
    assert found.market.risk_aversion == 0.5
    np.testing.assert_array_equal(found.codes.mean_square, spec.codes.mean_square)
    resizing = market._replace(spec=spec._replace(market=averse._replace(position_adjustment=True)))
    with pytest.raises(ModelError, match="not one of this market"):
        load_model(save_several(trained, tmp_path / "resizing.swt", resizing))
    linear, own = tmp_path / "linear.swt", trained.loaded  # its values are linear in the size: it has no risk term
    save_model(linear, own.networks, [market._replace(spec=spec)], own.search, own.manifest["configuration"])
    with pytest.raises(ModelError, match="not one of this market"):
        load_model(linear)


def test_a_symbol_chooses_one_of_several_instruments(trained: Trained, tmp_path: Path) -> None:
    path = save_several(trained, tmp_path / "model.swt")
    for symbol, expected in (("EURUSD", market_of(trained)), ("gbp/usd.pro", market_of(trained, "GBPUSD"))):
        chosen = load_model(path, symbol)
        np.testing.assert_equal(chosen.market_spec, expected.spec)
        assert chosen.manifest["data"] == expected.data
        assert (chosen.backtest_stats, chosen.trained_ns) == (
            expected.backtest_stats,
            parse_utc(expected.data["span"][1]),
        )
        assert chosen.test_first_ns == parse_utc(expected.data["test_first"]) < chosen.trained_ns
    for unknown in (None, "", "-", "GBPJPY", "EURGBP"):
        with pytest.raises(ModelError, match=r"instruments.*: EURUSD, GBPUSD: --symbol EURUSD names one$"):
            load_model(path, unknown)
    assert load_model(trained.path, "GBPJPY").market_spec.profile.symbol == "EURUSD"


def test_a_model_that_cannot_decide_is_refused(trained: Trained, tmp_path: Path) -> None:
    members = members_of(trained.path.read_bytes())
    members["arrays/centres.npy"] = array(np.full_like(trained.loaded.market_spec.codes.centres[None], 1e300))
    assert loaded(signed(members), tmp_path) is None
    feed = feed_of(ROWS, tmp_path / "feed.csv")
    with pytest.raises(ModelError, match="cannot even decide on noise"):
        act_on_feed(str(feed), tmp_path / "model.swt", ReadOptions(), False, sys.stdout, False)
    with pytest.raises(ModelError, match="cannot even decide on noise"):
        backtest_csv(feed, tmp_path / "model.swt", ReadOptions(), None, None, True)


def test_a_decision_has_its_share_of_memory_and_time(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    agent, search = trained.loaded.networks, trained.loaded.search
    check_decision_cost(agent.shape, search, agent.graphs)
    for sizes in (agent.shape._replace(codes=4096), agent.shape._replace(state=4096, codes=512)):
        with pytest.raises(ValueError, match="bytes and"):
            check_decision_cost(sizes, search._replace(num_simulations=4096), agent.graphs)
    wide = GraphBuilder()  # its 512 rows would be two gigabytes
    wide.node("MatMul", ["x", wide.weight("w", np.ones((1, 1 << 15)))], "h")
    for i in range(31):
        wide.node("Relu", ["h"], f"h{i}")
    wide.node("MatMul", ["h", wide.weight("v", np.ones((1 << 15, 1)))], "y")
    with pytest.raises(ValueError, match="bytes and"):
        check_decision_cost(agent.shape, search, {**agent.graphs, "market": wide.serialise(1, [OutputHead("y", 1)])})
    monkeypatch.setattr("host.artifact.manifest.MAX_DECISION_WORK", 1000)
    with pytest.raises(ModelError, match="multiplications"):
        load_model(trained.path)


@pytest.mark.parametrize("algorithm", range(len(ALGORITHMS)))
@pytest.mark.parametrize("weight", [0.0, 0.01])
def test_no_tree_needs_more_room_than_is_counted(algorithm: int, weight: float) -> None:
    for n, codes, state, samples in ((40, 3, 100, 64), (300, 16, 8, 4), (4096, 2, 2, 1)):
        sizes = NetworkShape(
            features=1, position=9, state=state, actions=POLICY_HEAD_WIDTH if algorithm == WIDENING else 12, codes=codes
        )
        search = new_search_config(
            algorithm=algorithm, num_simulations=n, num_sampled_sizes=samples, mae_penalty=weight
        )
        tracemalloc.start()
        planner = new_planner(no_networks(), search, 1, sizes)
        taken = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert planner.config.algorithm == algorithm
        assert taken <= max_tree_bytes(sizes, search) + 50_000


def test_metadata_of_graphs_give_their_widths(trained: Trained, tmp_path: Path) -> None:
    agent = trained.loaded.networks
    assert {name: layout_of(graph)[:2] for name, graph in agent.graphs.items()} == graph_widths(
        agent.shape, trained.loaded.search, preactivation=2 * 8
    )
    assert loaded(signed(members_of(trained.path.read_bytes())), tmp_path)
    for missing in (tmp_path, tmp_path / "model.swt" / "model.swt"):
        with pytest.raises(ModelError, match="cannot be read"):
            load_model(missing)
    with pytest.raises(ModelError, match=r"no model at .*no\.swt: train one first: python swt\.py train CSV"):
        load_model(tmp_path / "no.swt")


def test_a_model_without_afterstate_value_evaluates_whole_afterstates(trained: Trained, tmp_path: Path) -> None:
    """As those of versions before; the tree is the same."""
    members, choices = members_of(trained.path.read_bytes()), list[Any]()
    for algorithm in (GUMBEL, PUCT):
        members[model_file.MANIFEST]["search"]["algorithm"] = algorithm
        choices.append(decisions(signed(members), tmp_path))
    del members["graphs/afterstate_value.onnx"], members[model_file.MANIFEST]["selftest"]["afterstate_value"]
    for algorithm, expected in zip((GUMBEL, PUCT), choices, strict=True):
        members[model_file.MANIFEST]["search"]["algorithm"] = algorithm
        np.testing.assert_allclose(decisions(signed(members), tmp_path), expected, rtol=1e-5, atol=1e-7)


def decisions(data: bytes, folder: Path) -> Any:
    """Policies of eight roots of noise."""
    model = loaded(data, folder)
    assert model is not None
    planner = model.networks.planner(8, model.search)
    draw = np.random.default_rng(0)
    for array in (planner.networks.root.x, planner.noise, planner.costs.move):
        array[...] = draw.normal(size=array.shape)
    check_status(plan(planner))
    return planner.policy


def doctor(members: dict[str, Any], draw: random.Random) -> None:
    """One random change somewhere inside."""
    name = draw.choice([*members, *[model_file.MANIFEST] * len(members)])
    if name != model_file.MANIFEST:
        data = bytearray(members[name])
        at = draw.randrange(len(data))
        data[at : at + draw.randrange(9)] = draw.randbytes(draw.randrange(9))
        members[name] = bytes(data)
        return
    at: Any = members[name]
    while True:
        key = draw.choice(list(at) if isinstance(at, dict) else range(len(at)))
        if not isinstance(at[key], dict | list) or not at[key] or draw.random() < 0.2:
            break
        at = at[key]
    if isinstance(at, dict) and draw.random() < 0.2:
        del at[key]
    else:
        at[key] = copy.deepcopy(draw.choice(ODD))  # or the next change would change the list


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**64))
def test_doctored_models_act_or_are_refused(
    trained: Trained, tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    draw, folder = random.Random(seed), tmp_path_factory.mktemp("doctored")
    members = members_of(save_several(trained, folder / "model.swt").read_bytes())
    for _ in range(draw.randint(1, 3)):
        doctor(members, draw)
    loaded(signed(members), folder)


@pytest.mark.skipif(not SECONDS, reason="long mode: SWT_FUZZ_SECONDS=600")
def test_doctored_models_for_a_long_time(trained: Trained, tmp_path: Path) -> None:
    original, end, refused, seed = save_several(trained, tmp_path / "a").read_bytes(), time.monotonic() + SECONDS, 0, 0
    while time.monotonic() < end:
        seed += 1
        draw, members = random.Random(seed), members_of(original)
        for _ in range(draw.randint(1, 3)):
            doctor(members, draw)
        try:
            refused += loaded(signed(members), tmp_path) is None
        except BaseException:
            print(f"seed {seed}")
            raise
    assert 0 < refused < seed
