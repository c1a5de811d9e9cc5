"""`from kernels.search import ...`: the example of the README, and the errors that a stranger meets."""

import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import kernels.search
from kernels.ort import GraphLayout, Session
from kernels.search import NETWORKS, NetworkShape, OnnxNetworks, graph_widths, new_planner, new_search_config, plan
from kernels.search.config import MARKET, WIDENING
from kernels.search.market_search import new_market_tree
from kernels.search.networks import check_networks, no_networks
from kernels.search.tree import new_tree
from tests.fixtures.graphs import graph
from tests.fixtures.paths import ROOT

SHAPE = NetworkShape(features=6, position=0, state=8, actions=3, codes=4)
CONFIG = new_search_config(num_simulations=4)


def plain(width_in: int, width_out: int) -> bytes:
    return graph(width_in, width_out, [("MatMul", ["x64", "w"], "y64")], {"w": np.full((width_in, width_out), 0.1)})


def bound(name: str, rows: int, more: int = 0) -> dict[str, Any]:
    """A network of the shape, bound for so many rows, with more columns of x than it should have."""
    width_in, width_out = graph_widths(SHAPE, CONFIG)[name]
    layout = GraphLayout(width_in + more, width_out)
    return {name: Session(plain(*layout[:2])).bind(layout, [rows])}


def test_the_example_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "README.md").read_text()
    code = re.findall(r"```python\n(.*?)```", text[text.index("## For RL engineers") :], re.S)[0]
    assert len([line for line in code.splitlines() if line]) <= 15
    names: dict[str, Any] = {}
    exec(code, names)
    planner = names["planner"]
    assert capsys.readouterr().out == f"{planner.action}\n{planner.policy}\n"
    assert planner.policy.shape == (5, 3)
    np.testing.assert_allclose(planner.policy.sum(axis=1), 1)
    assert set(planner.action) <= {0, 1, 2}
    assert (planner.network_rows > 1).all()


def test_the_game_of_the_map_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """Its search finds the discounted returns of the best way through the corridor, as far as it looks."""
    names: dict[str, Any] = {}
    exec(
        re.findall(r"```python\n(.*?)```", (ROOT / "kernels" / "README.md").read_text(encoding="utf-8"), re.S)[0], names
    )
    planner = names["planner"]
    assert capsys.readouterr().out == f"{planner.action}\n{planner.q.round(1)}\n"
    assert planner.action.tolist() == [1, 1, 1]
    best = 10 * 0.9 ** np.arange(2, -1, -1) / (1 - 0.9**3)
    assert (planner.q[:, 1] <= best + 1e-4).all()
    assert (planner.q[:, 1] > 1 / (1 - 0.9)).all()  # more than always to the left


def test_every_public_name_is_there_and_in_the_map() -> None:
    lines = (ROOT / "kernels" / "README.md").read_text()
    for name in kernels.search.__all__:
        assert getattr(kernels.search, name) is not None
        assert f"`{name}`" in lines, name
    with pytest.raises(AttributeError, match="no attribute nothing"):
        kernels.search.nothing  # noqa: B018


def test_settings_do_not_bring_in_the_search() -> None:
    program = "import sys, kernels.search.config\nassert not {'kernels.search.planner', 'kernels.ort'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_networks_of_other_widths_or_too_few_rows_are_refused_by_name() -> None:
    networks = no_networks()._replace(**bound("root", 5), **bound("afterstate", 5), **bound("dynamics", 1))
    check_networks(networks, SHAPE, CONFIG, 5)
    for wrong, message in (
        (bound("root", 4), r"networks\.root\.x is \[4, 6\], not \[5 or more, 6\]"),
        (bound("dynamics", 1, 1), r"networks\.dynamics\.x is \[1, 13\], not \[1 or more, 12\]"),
        (bound("afterstate", 2), r"networks\.afterstate\.x is \[2, 11\], not \[5 or more, 11\]"),
    ):
        with pytest.raises(ValueError, match=message):
            new_planner(networks._replace(**wrong), CONFIG, 5, SHAPE)
    for config in (new_search_config(algorithm=MARKET), new_search_config(algorithm=WIDENING)):
        with pytest.raises(ValueError, match="want positions"):
            check_networks(networks, SHAPE, config, 5)
    with pytest.raises(ValueError, match="0 or 9 features, not 3"):
        check_networks(networks, SHAPE._replace(position=3), CONFIG, 5)


@pytest.mark.parametrize(("name", "rows"), [("root", 4), ("afterstate", 4), ("dynamics", 0)])
def test_a_plan_that_would_run_beyond_a_network_is_refused(name: str, rows: int) -> None:
    networks = no_networks()._replace(**bound("root", 5), **bound("afterstate", 5), **bound("dynamics", 1))
    planner = new_planner(networks, CONFIG, 5, SHAPE)
    few = bound(name, rows) if rows else {name: no_networks().root}
    with pytest.raises(ValueError, match=f"networks.{name}.x has"):
        plan(planner._replace(networks=networks._replace(**few)))


def test_sizes_that_are_no_tree_are_refused() -> None:
    for sizes in ((0, 9, 3, 4, 8, 0), (1, 0, 3, 4, 8, 0), (1, 9, 0, 4, 8, 0), (1, 9, 3, 4, -1, 0)):
        with pytest.raises(ValueError, match="a tree of"):
            new_tree(*sizes)
    with pytest.raises(ValueError, match="a market tree of"):
        new_market_tree(1, 0, 4, 5, 8, 4, True)


def test_a_missing_graph_is_named() -> None:
    graphs = {name: plain(*graph_widths(SHAPE, CONFIG)[name]) for name in ("root", "afterstate")}
    with pytest.raises(ValueError, match="no graph dynamics: the search has afterstate, root"):
        OnnxNetworks(graphs, SHAPE).planner(1, CONFIG)


def test_the_table_has_every_network() -> None:
    assert {*NETWORKS} - {"code"} == {*kernels.search.Networks._fields} - {"code_preactivation"}
    assert {*graph_widths(SHAPE, CONFIG)} == {*NETWORKS} - {"code"}
    assert graph_widths(SHAPE, CONFIG, 7)["code"] == (4, 7)
