"""Tokens one at a time through ONNX against the whole window in numpy, alone and inside the compiled searches."""

from typing import Any

import numpy as np
import pytest

from host.artifact.networks import NetworkShape, OnnxNetworks, graph_widths, hypothesis_positions
from host.artifact.onnx_check import layout_of
from kernels.ort import check_status
from kernels.search.config import MARKET, SearchConfig, new_search_config
from kernels.search.market_search import MarketTree
from kernels.search.planner import Planner, draw_noise, plan, set_root
from kernels.search.tree import CHANCE, NONE, Tree
from models import loss as unroll
from models import params as net
from models.export import export
from models.layers import decode
from models.learner import new_workspace
from tests.fixtures.graphs import run
from tests.fixtures.roots import BARS, CODES, MARKETS, random_root
from tests.fixtures.sequences import batch_of, evaluate, lively

K = 4  # of those batches
SHAPE = net.ModelShape(features=12, latent=8, hidden=10, codes=5, num_layers=2, num_heads=2, attention_window=2)
SHAPES = [SHAPE, SHAPE._replace(context=3), SHAPE._replace(num_heads=4, num_layers=1, attention_window=3)]


def sizes_of(s: net.ModelShape) -> NetworkShape:
    return NetworkShape(s.context * s.features, s.position, s.state, s.actions, s.codes, s.attention_window)


def graphs_of(flat: np.ndarray, s: net.ModelShape, config: SearchConfig) -> dict[str, bytes]:
    return export(flat, s, *hypothesis_positions(sizes_of(s), config))


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("s", SHAPES, ids=lambda s: f"context{s.context}-heads{s.num_heads}-window{s.attention_window}")
def test_rows_of_a_window_equal_the_whole_pass(s: net.ModelShape) -> None:
    """Longer than the window, so that the oldest tokens leave it."""
    n, flat, batch = 3, lively(s).astype(np.float32), batch_of(s, 3)
    p, work = net.as_views(flat.astype(float), s), evaluate(flat.astype(float), s, batch)[2].activations
    config = new_search_config()
    graphs = graphs_of(flat, s, config)
    assert {name: layout_of(graph)[:2] for name, graph in graphs.items()} == graph_widths(sizes_of(s), True)
    D, S, A, C = s.latent, s.state, s.actions, s.codes

    def head(hidden: str, out: str, *inputs: Any) -> np.ndarray:
        layers = [getattr(p, f"{name}_{kind}") for name in (hidden, out) for kind in "wb"]
        z = np.maximum(np.hstack(inputs) @ layers[0] + layers[1], 0) @ layers[2] + layers[3]
        limit = s.reward_limit if out == "reward" else s.value_limit
        return decode(z, limit)[:, None] if out in ("reward", "value", "afterstate_value") else np.asarray(z)

    def decision(*told: Any) -> np.ndarray:
        return np.hstack([head("prediction_hidden", "policy", *told), head("prediction_hidden", "value", *told)])

    latent, position = work.latent, batch.position
    y = run(graphs["root"], np.hstack([batch.features, position[:, 0]]))
    close(y[:, 1 : 1 + D], latent[0])
    close(y[:, S:], np.hstack([decision(latent[0], position[:, 0]), head("chance_hidden", "chance_logits", latent[0])]))
    window = np.zeros((n, s.attention_window, S), np.float32)
    for k in range(K):
        now, later = latent[k], latent[k + 1]
        window = np.concatenate([y[:, None, :S], window[:, :-1]], axis=1)
        states, code, action = (window.reshape(n, -1), np.eye(C)[batch.code[:, k]], np.eye(A)[batch.action[:, k]])
        told = batch.afterstate_position[:, k], position[:, k + 1]
        after = run(graphs["afterstate"], np.hstack([y[:, :S], action, told[0]]))
        np.testing.assert_array_equal(after[:, :S], y[:, :S])
        value = head("afterstate_hidden", "afterstate_value", now, action, told[0])
        close(after[:, S:], np.hstack([head("chance_hidden", "chance_logits", now), value]))
        y = run(graphs["dynamics"], np.hstack([states, code, *told]))
        assert (y[:, 0] == 1).all()
        close(y[:, 1 : 1 + D], later)
        close(y[:, S:], np.hstack([head("reward_hidden", "reward", now, code, *told), decision(later, told[1])]))
        market = run(graphs["market"], np.hstack([states, code]))
        close(market[:, : S + C], np.hstack([y[:, :S], head("chance_hidden", "chance_logits", later)]))
        sides = hypothesis_positions(sizes_of(s), config)[1]
        assert sides is not None
        judged = [head("prediction_hidden", "value", later, np.tile(side, (n, 1))) for side in sides]
        close(market[:, S + C :], np.hstack(judged))


@pytest.mark.parametrize(
    "s",
    [net.ModelShape(features=40, num_layers=2), net.ModelShape(features=40, num_layers=2, context=4)],
    ids=["1", "4"],
)
def test_a_row_does_not_depend_on_its_batch(s: net.ModelShape) -> None:
    rng = np.random.default_rng(0)
    for name, graph in export(net.new_params(s, 3), s, 6).items():
        x = rng.normal(size=(512, layout_of(graph).width_in)).astype(np.float32)
        together = run(graph, x)
        for rows in (1, 2, 4, 8, 16, 64):
            np.testing.assert_array_equal(run(graph, x[:rows]), together[:rows], err_msg=f"{name} {rows}")
        x[1::2] *= 10  # what the other rows hold
        np.testing.assert_array_equal(run(graph, x)[::2], together[::2], err_msg=name)


def searched(agent: OnnxNetworks, config: SearchConfig, numbers: list[int]) -> Planner:
    planner = agent.planner(len(numbers), config)
    for b, number in enumerate(numbers):
        root = random_root(5, number, False)
        set_root(planner, b, root.features, root.position, BARS, root.t, CODES, MARKETS[False])
        draw_noise(planner, b, 1, number, 3)
    check_status(plan(planner))
    return planner


def codes_to(tree: Tree | MarketTree, b: int, node: int) -> list[int]:
    """Chance codes on the path from the root."""
    found = list[int]()
    while tree.parent[b, node] != NONE:
        above = int(tree.parent[b, node])
        if isinstance(tree, MarketTree):
            found.append(node - int(tree.first_child[b, above]))
        elif tree.kind[b, above] == CHANCE:
            found.append(int(tree.edge[b, node]))
        node = above
    return found[::-1]


@pytest.mark.parametrize("rule", ["gumbel", "market"])
def test_states_of_a_search_are_those_of_the_whole_pass_and_batches_change_nothing(rule: str) -> None:
    s = SHAPE._replace(attention_window=2)
    flat = net.new_params(s, 0) + np.random.default_rng(0).normal(0, 0.2, net.num_params(s)).astype(np.float32)
    rules = {"rule": MARKET} if rule == "market" else {"considered": 2, "c_scale": 0.02}
    config = new_search_config(num_simulations=40, **rules)
    agent = OnnxNetworks(graphs_of(flat, s, config), sizes_of(s))
    planner = searched(agent, config, [0, 1, 2])
    tree = planner.market_tree if rule == "market" else planner.tree
    assert tree is not None
    paths = [(b, node, codes_to(tree, b, node)) for b in range(3) for node in range(tree.num_nodes[b])]
    deepest = max(len(codes) for _, _, codes in paths)
    assert deepest > s.attention_window
    room = new_workspace(s, len(paths), deepest, unroll.DEFAULT_LOSS_WEIGHTS, np.dtype(np.float64))
    assert room.transformer is not None
    D = s.latent
    for i, (_, _, codes) in enumerate(paths):
        for k, code in enumerate(codes):
            room.activations.reward_input[k * len(paths) + i, D + code] = 1
    x = np.stack([random_root(5, b, False).features for b, _, _ in paths]).astype(float)
    unroll.unroll_forward(room.activations, net.as_views(flat.astype(float), s), x, room.transformer)
    expected = [room.activations.latent[len(codes), i] for i, (_, _, codes) in enumerate(paths)]
    close([tree.state[b, node, 1 : 1 + D] for b, node, _ in paths], expected)
    for b in range(3):
        alone = searched(agent, config, [b])
        for name in ("q", "policy", "value", "action"):
            assert getattr(planner, name)[b].tobytes() == getattr(alone, name)[0].tobytes(), (name, b)
