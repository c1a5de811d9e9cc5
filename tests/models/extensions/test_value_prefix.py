"""The value prefix against a naive unroll: losses, slopes, and the graphs that a search calls step by step."""

import numpy as np
import pytest

from host.config import ConfigError
from host.training.trainer import Trainer
from kernels.learning.replay_buffer import Batch
from models import loss as unroll
from models import params as net
from models.export import export
from models.extensions.value_prefix import RESET_INTERVAL, sum_since_reset
from models.layers import LAYERNORM_EPSILON, decode
from tests.fixtures.graphs import run
from tests.fixtures.trainings import dataset, tiny, trained
from tests.fixtures.windows import SHAPE as PLAIN
from tests.fixtures.windows import evaluate_shape, random_batch
from tests.oracles.gradients import dense_target

L, K, P = 5, 7, PLAIN.position  # a reset within the window
SHAPE = PLAIN._replace(value_prefix_width=L)


def params(shape: net.ModelShape = SHAPE) -> np.ndarray:
    """Every path carries weight."""
    flat = np.random.default_rng(1).normal(size=net.num_params(shape)) * 0.3
    for name, view in vars(net.as_views(flat, shape)).items():
        if name.endswith("_b"):
            view += 0.5
    return flat


def evaluate(flat: np.ndarray, batch: Batch) -> tuple[list[float], np.ndarray]:
    """(losses, gradient of their weighted sum)."""
    losses, gradient, _ = evaluate_shape(flat, SHAPE, batch, K)
    return list(losses.values()), gradient


def sigmoid(z: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-z)))


def naive(p: net.Params, batch: Batch, b: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(latents, logits of the prefix) of window b, step by step."""

    def layer(name: str, x: np.ndarray) -> np.ndarray:
        return np.asarray(x @ getattr(p, f"{name}_w") + getattr(p, f"{name}_b"))

    def norm(x: np.ndarray) -> np.ndarray:
        return np.asarray((x - x.mean()) / np.sqrt(x.var() + LAYERNORM_EPSILON))

    m, found = (
        norm(
            layer("representation_out", np.maximum(layer("representation_hidden", batch.features[b].astype(float)), 0))
        ),
        [],
    )
    latents, h, c = [m], np.zeros(L), np.zeros(L)
    for k in range(K):
        if k in (0, 5):
            h, c = np.zeros(L), np.zeros(L)
        code = np.eye(SHAPE.codes)[batch.code[b, k]]
        told = np.concatenate([m, code, batch.afterstate_position[b, k], batch.position[b, k + 1]])
        gain = np.maximum(layer("reward_hidden", told), 0)
        z_in, z_forget, z_out, z_new = np.split(layer("lstm", np.concatenate([gain, h])), 4)
        c = sigmoid(z_forget) * c + sigmoid(z_in) * np.tanh(z_new)
        h = sigmoid(z_out) * np.tanh(c)
        found.append(layer("reward", norm(h)))
        m = norm(m + layer("dynamics_out", np.maximum(layer("dynamics_hidden", np.concatenate([m, code])), 0)))
        latents.append(m)
    return latents, found


def test_targets_are_sums_since_the_reset() -> None:
    assert RESET_INTERVAL == 5
    reward = np.array([1.0, 2, 4, 8, 16, 32, 64], np.float32)
    assert [sum_since_reset(reward, k) for k in range(K)] == [1, 3, 7, 15, 31, 32, 96]


def test_the_loss_is_its_definition() -> None:
    flat, batch, n = params(), random_batch(3, SHAPE, K), 3
    batch.reward[:] *= 0.5
    batch.weight[2, 4:] = 0
    expected, p = 0.0, net.as_views(flat, SHAPE)
    for b in range(n):
        for k, z in enumerate(naive(p, batch, b)[1]):
            total = float(batch.reward[b, (0 if k < 5 else 5) : k + 1].sum())
            target = dense_target(total, SHAPE.reward_limit, SHAPE.reward_bins)
            surprise = -(target * (z - np.log(np.exp(z).sum()))).sum()
            expected += batch.weight[b, k + 1] * surprise / (n * K)
    assert evaluate(flat, batch)[0][4] == pytest.approx(expected, rel=1e-6)


def test_gradient_of_the_whole_loss() -> None:
    flat, batch = params(), random_batch(2, SHAPE, K)
    batch.weight[1, 5:] = 0
    gradient = evaluate(flat, batch)[1]

    def total(flat: np.ndarray) -> float:
        return float(np.dot(evaluate(flat, batch)[0], unroll.DEFAULT_LOSS_WEIGHTS[:5]))

    first = len(flat) - net.as_views(flat, SHAPE).lstm_w.size - 4 * L
    draw = np.random.default_rng(3)
    for i in [*draw.choice(first, 30, replace=False), *draw.choice(range(first, len(flat)), 40, replace=False)]:
        h = np.zeros_like(flat)
        h[i] = 1e-6
        expected = (total(flat + h) - total(flat - h)) / 2e-6
        assert gradient[i] == pytest.approx(expected, rel=5e-6, abs=2e-9), i


def test_every_parameter_gets_gradient_and_the_past_reaches_no_further_than_the_reset() -> None:
    flat, batch = params(), random_batch(16, SHAPE, K)
    _, gradient = evaluate(flat, batch)
    for name, view in vars(net.as_views(gradient, SHAPE)).items():
        assert view.size == 0 or (np.abs(view) > 0).mean() > 0.9, name
    batch.weight[:, : K - 1] = 0  # only the last two steps count, both after the reset
    before = evaluate(flat, batch)[0][4]
    batch.afterstate_position[:, 4] += 1  # before it: what is told the LSTM only
    assert evaluate(flat, batch)[0][4] == before
    batch.afterstate_position[:, 5] += 1
    assert evaluate(flat, batch)[0][4] != before


def test_the_graphs_of_a_search_give_the_differences_of_a_naive_unroll() -> None:
    """Node by node through `afterstate` and `dynamics`, which alone know of the state that they pass on."""
    flat, batch, n = params().astype(np.float32), random_batch(6, SHAPE, K), 6
    graphs, p = export(flat, SHAPE, 0), net.as_views(flat.astype(float), SHAPE)
    windows = [naive(p, batch, b) for b in range(n)]
    S = SHAPE.state
    state = run(graphs["root"], np.concatenate([batch.features, batch.position[:, 0]], axis=1))[:, :S]
    assert (state[:, SHAPE.latent :] == 0).all()
    for k in range(K):
        action, code = np.eye(SHAPE.actions)[batch.action[:, k]], np.eye(SHAPE.codes)[batch.code[:, k]]
        after = run(graphs["afterstate"], np.concatenate([state, action, batch.afterstate_position[:, k]], axis=1))
        np.testing.assert_array_equal(after[:, :S], state)
        told = state, code, batch.afterstate_position[:, k], batch.position[:, k + 1]
        y = run(graphs["dynamics"], np.concatenate(told, axis=1))
        state = y[:, :S]
        latents = np.stack([latents[k + 1] for latents, _ in windows])
        np.testing.assert_allclose(state[:, : SHAPE.latent], latents + p.dynamics_out_b, atol=1e-4)
        sums = [decode(np.stack([z[i] for _, z in windows]), SHAPE.reward_limit) for i in range(k + 1)]
        before = 0.0 if k in (0, 5) else sums[k - 1]
        np.testing.assert_allclose(y[:, S], sums[k] - before, atol=1e-4)
        np.testing.assert_allclose(state[:, -2], sums[k], atol=1e-4)
        assert (state[:, -1] == (k + 1 if k < 5 else k - 4)).all()


def test_the_other_heads_do_not_see_what_the_lstm_remembers() -> None:
    flat, draw = params().astype(np.float32), np.random.default_rng(0)
    S, D = SHAPE.state, SHAPE.latent
    for name, columns in (("afterstate", SHAPE.actions + P), ("dynamics", SHAPE.codes + 2 * P)):
        x = draw.normal(size=(4, S + columns)).astype(np.float32)
        before = run(export(flat, SHAPE, 0)[name], x)
        x[:, D:S] += 1
        after = run(export(flat, SHAPE, 0)[name], x)
        first = S if name == "afterstate" else S + 1  # behind the state and the reward
        np.testing.assert_array_equal(before[:, :D], after[:, :D])
        np.testing.assert_array_equal(before[:, first:], after[:, first:])


@pytest.mark.parametrize("rule", ["gumbel", "widening"])
def test_a_run_with_it_learns_and_repeats_itself(rule: str) -> None:
    settings = f"search.algorithm={rule}", "train.value_prefix=true"
    trainer, again = trained(2, 1, *settings), Trainer([dataset(tiny(*settings))], tiny(*settings), 2)
    for _ in range(2):
        row = again.run_iteration()
    assert (trainer.target_params == again.target_params).all()
    assert np.isfinite([value for value in row.values() if isinstance(value, float)]).all()
    assert trainer.export_networks().shape.state == 8 + 2 * 8 + 2
    assert not trainer.acting_search_config().exact_rewards  # the search reads the prefix, and computes a plain reward
    assert Trainer([dataset(tiny())], tiny(), 1).acting_search_config().exact_rewards


def test_a_market_search_refuses_it() -> None:
    with pytest.raises(ConfigError, match="computes its rewards exactly"):
        Trainer([dataset(tiny())], tiny("train.value_prefix=true"), 1)
