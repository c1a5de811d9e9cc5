"""The dynamics through afterstates: their gradient is that of the loss, and their graphs are the unrolled model."""

import numpy as np
import pytest

from models import params as net
from models.export import export
from models.extension import LossWeights
from models.loss import new_pass, new_workspace, unroll_forward
from tests.fixtures.windows import K, evaluate_shape, random_batch
from tests.oracles.gradients import slope

SHAPE = net.ModelShape(
    features=5, position=0, latent=6, hidden=8, actions=3, codes=4, reward_bins=9, value_bins=11, reward_limit=4.0,
    value_limit=6.0, afterstate_width=7,
)  # fmt: skip
WEIGHTS = LossWeights(policy=1.0, value=0.7, afterstate_value=0.5, chance=0.9, reward=1.1)


def parameters() -> np.ndarray:
    flat = np.random.default_rng(3).normal(size=net.num_params(SHAPE)) * 0.4
    for name, view in vars(net.as_views(flat, SHAPE)).items():
        if name.endswith("_b"):
            view += 0.3  # no unit is dead
    return flat


def test_the_gradient_is_the_slope_of_the_loss() -> None:
    flat, batch, rng = parameters(), random_batch(4, SHAPE, K), np.random.default_rng(0)

    def total(x: np.ndarray) -> float:
        losses, _, _ = evaluate_shape(x, SHAPE, batch, K, WEIGHTS)
        return sum(getattr(WEIGHTS, name) * loss for name, loss in losses.items())

    _, gradient, _ = evaluate_shape(flat, SHAPE, batch, K, WEIGHTS)
    assert np.isfinite(gradient).all()
    for name, view in vars(net.as_views(gradient, SHAPE)).items():
        if view.size == 0:
            continue
        assert np.abs(view).max() > 0, name
        direction = np.zeros_like(flat)
        own = getattr(net.as_views(direction, SHAPE), name)
        own[:] = rng.normal(size=own.shape)
        assert slope(total, flat, direction) == pytest.approx(float(direction @ gradient), rel=1e-5, abs=1e-9), name


def test_the_graphs_compute_what_the_learner_unrolls() -> None:
    flat, batch = parameters().astype(np.float32), random_batch(2, SHAPE, 1)
    graphs = export(flat, SHAPE, 0)
    assert sorted(graphs) == ["afterstate", "dynamics", "root"]  # no part of them is shared by actions
    workspace = new_workspace(SHAPE, 2, 1, WEIGHTS)
    step = new_pass(workspace, net.as_views(flat, SHAPE), batch, 0)
    unroll_forward(step, workspace.extensions)
    S, A, C = SHAPE.latent, SHAPE.actions, SHAPE.codes
    rows = run(graphs["root"], batch.features)
    np.testing.assert_allclose(rows[:, :S], workspace.activations.latent[0], atol=1e-5)
    after = run(graphs["afterstate"], np.concatenate([rows[:, :S], np.eye(A)[batch.action[:, 0]]], axis=1))
    np.testing.assert_allclose(after[:, :S], workspace.extensions[0].latent[0], atol=1e-5)
    then = run(graphs["dynamics"], np.concatenate([after[:, :S], np.eye(C)[batch.code[:, 0]]], axis=1))
    np.testing.assert_allclose(then[:, :S], workspace.activations.latent[1], atol=1e-5)


def run(graph: bytes, x: np.ndarray) -> np.ndarray:
    """Rows y of rows x, as a search reads them."""
    from host.artifact.onnx_check import layout_of
    from kernels.ort import Session, check_status, evaluate

    bound = Session(graph).bind(layout_of(graph), [len(x)])
    bound.x[: len(x)] = x
    check_status(evaluate(bound, len(x)))
    return np.array(bound.y[: len(x)])
