"""The exported graphs give what the trainer's own networks give, whatever the batch."""

import numpy as np

from host.artifact.onnx_check import layout_of
from models import params as net
from models.export import export
from models.layers import decode
from tests.fixtures.graphs import run
from tests.fixtures.windows import SHAPE, K, lively, random_batch
from tests.oracles.networks import naive_outputs


def test_graphs_equal_the_networks_of_the_trainer() -> None:
    """Through the naive forward, which the trainer's losses equal."""
    batch, flat, n = random_batch(6, SHAPE, K), lively().astype(np.float32), 6
    p = net.as_views(flat.astype(float), SHAPE)
    limits = {"value": SHAPE.value_limit, "afterstate_value": SHAPE.value_limit, "reward": SHAPE.reward_limit}
    windows = [naive_outputs(p, batch, b) for b in range(n)]

    def rows(k: int, name: str) -> np.ndarray:
        z = np.stack([window[k][name] for window in windows])
        return decode(z, limits[name])[:, None] if name in limits else z

    sides = np.random.default_rng(0).normal(size=(2, SHAPE.position)).astype(np.float32)
    graphs = export(flat, SHAPE, 2, sides)
    latent, later = (rows(k, "latent") + p.dynamics_out_b for k in (0, 1))
    action, code = np.eye(SHAPE.actions)[batch.action[:, 0]], np.eye(SHAPE.codes)[batch.code[:, 0]]
    D = SHAPE.latent
    first_layers = np.hstack([p.dynamics_hidden_w, p.reward_hidden_w[: D + SHAPE.codes]])
    shared = rows(0, "latent") @ first_layers[:D] + np.hstack([p.dynamics_hidden_b, p.reward_hidden_b])
    told_code = code @ first_layers[D:]
    told = {
        "root": (batch.features, batch.position[:, 0]),
        "afterstate": (latent, action, batch.afterstate_position[:, 0]),
        "afterstate_value": (latent, action, batch.afterstate_position[:, 0]),
        "code": (code,),
        "dynamics": (latent, shared + told_code, batch.afterstate_position[:, 0], batch.position[:, 1]),
        "market": (latent, code),
    }

    def judged(side: np.ndarray) -> np.ndarray:
        """Values of the next latents in a position of the caller's."""
        told = np.concatenate([rows(1, "latent"), np.tile(side, (n, 1))], axis=1)
        hidden = np.maximum(told @ p.prediction_hidden_w + p.prediction_hidden_b, 0)
        return decode(hidden @ p.value_w + p.value_b, SHAPE.value_limit)[:, None]

    expected = {
        "root": [latent, rows(0, "policy"), rows(0, "value"), rows(0, "code")],
        "afterstate": [latent, shared, rows(0, "code"), rows(0, "afterstate_value")],
        "afterstate_value": [latent, rows(0, "afterstate_value")],
        "code": [told_code],
        "dynamics": [later, rows(0, "reward"), rows(1, "policy"), rows(1, "value")],
        "market": [later, rows(1, "code"), *map(judged, sides)],
    }
    for name, graph in graphs.items():
        found = run(graph, np.concatenate(told[name], axis=1))
        np.testing.assert_allclose(found, np.concatenate(expected[name], axis=1), atol=1e-4, err_msg=name)
    whole = export(flat, SHAPE, 0, afterstates=False)
    assert whole.keys() == {"root", "dynamics"}
    x = np.concatenate([latent, code, batch.afterstate_position[:, 0], batch.position[:, 1]], axis=1)
    np.testing.assert_allclose(run(whole["dynamics"], x), np.concatenate(expected["dynamics"], axis=1), atol=1e-4)
    x = np.concatenate([latent, code, np.tile(sides.ravel(), (n, 1))], axis=1).astype(np.float32)
    given = run(export(flat, SHAPE, 2)["market"], x)  # positions in the input instead of the graph
    np.testing.assert_allclose(given, np.concatenate(expected["market"], axis=1), atol=1e-4)


def test_a_row_does_not_depend_on_its_batch() -> None:
    shape = net.ModelShape(features=300)
    rng = np.random.default_rng(0)
    for name, graph in export(net.new_params(shape, 3), shape, 6).items():
        x = rng.normal(size=(512, layout_of(graph).width_in)).astype(np.float32)
        together = run(graph, x)
        for rows in (1, 7, 8, 64):
            np.testing.assert_array_equal(run(graph, x[:rows]), together[:rows], err_msg=name)
        x[1::2] *= 1e3  # what the other rows hold
        np.testing.assert_array_equal(run(graph, x)[::2], together[::2], err_msg=name)


def test_equal_weights_give_equal_bytes() -> None:
    flat = net.new_params(SHAPE, 0)
    assert export(flat, SHAPE, 4) == export(flat.copy(), SHAPE, 4)
    assert export(flat, SHAPE, 4) != export(net.new_params(SHAPE, 1), SHAPE, 4)
