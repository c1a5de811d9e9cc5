"""The whole loss against central differences, its stop signs, and a learning step that threads cannot change."""

from itertools import pairwise

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from kernels.learning.replay_buffer import Batch
from models import loss as unroll
from models import params as net
from models.adamw import (
    MAX_GRADIENT_NORM,
    WARMUP_STEPS,
    AdamState,
    adamw_update,
    learning_rate_at,
    new_adam_state,
    reduce_gradients,
)
from models.learner import Learner
from tests.fixtures.windows import SHAPE, K, evaluate, lively, random_batch
from tests.oracles.gradients import dense_target
from tests.oracles.networks import naive_outputs


def weighted(flat: np.ndarray, batch: Batch) -> float:
    losses = evaluate(flat, batch)[0]
    return float(np.dot(losses, unroll.DEFAULT_LOSS_WEIGHTS[: len(losses)]))


def test_gradient_of_the_whole_loss() -> None:
    flat, batch = lively(), random_batch(2, SHAPE, K)
    batch.weight[1, 2:] = 0  # one window ends early
    _, gradient, _ = evaluate(flat, batch)
    h = 1e-6
    for i in np.random.default_rng(3).choice(len(flat), 60, replace=False):
        up, down = flat.copy(), flat.copy()
        up[i] += h
        down[i] -= h
        expected = (weighted(up, batch) - weighted(down, batch)) / (2 * h)
        assert gradient[i] == pytest.approx(expected, rel=2e-6, abs=2e-9), i


def test_losses_are_their_definition() -> None:
    batch, n = random_batch(3, SHAPE, K), 3
    batch.weight[2, 2:] = 0
    flat = lively()
    p = net.as_views(flat, SHAPE)

    def surprise(z: np.ndarray, target: np.ndarray) -> float:
        return float(-(target * (z - np.log(np.exp(z).sum()))).sum())

    def categorical(x: float, limit: float, bins: int) -> np.ndarray:
        return dense_target(x, limit, bins)

    expected = np.zeros(5)
    for b in range(n):
        outputs = naive_outputs(p, batch, b)
        for k in range(K + 1):
            z, legal = outputs[k], batch.legal[b, k]
            value = categorical(batch.value[b, k], SHAPE.value_limit, SHAPE.value_bins)
            policy = surprise(z["policy"][legal], batch.policy[b, k, legal])
            expected[:2] += batch.weight[b, k] / (K + 1) * np.array([policy, surprise(z["value"], value)])
            if k == K:
                continue
            reward = categorical(batch.reward[b, k], SHAPE.reward_limit, SHAPE.reward_bins)
            step = [
                surprise(z["afterstate_value"], value),
                surprise(z["code"], np.eye(SHAPE.codes)[batch.code[b, k]]),
                surprise(z["reward"], reward),
            ]
            expected[2:] += batch.weight[b, k + 1] / K * np.array(step)
    np.testing.assert_allclose(evaluate(flat, batch)[0], expected / n, rtol=1e-6)


def test_every_parameter_gets_gradient() -> None:
    _, gradient, _ = evaluate(lively(), random_batch(64, SHAPE, K))
    for name, view in vars(net.as_views(gradient, SHAPE)).items():
        assert view.size == 0 or (np.abs(view) > 0).mean() > 0.9, name


def test_latent_gradient_scales_only_what_flows_back_through_time() -> None:
    flat, batch = lively(), random_batch(8, SHAPE, K)
    whole, half = (net.as_views(evaluate(flat, batch, s)[1], SHAPE) for s in (1.0, 0.5))
    np.testing.assert_array_equal(whole.prediction_hidden_w, half.prediction_hidden_w)
    assert np.abs(whole.representation_hidden_w - half.representation_hidden_w).max() > 0


def test_rewards_change_the_update() -> None:
    batch = random_batch(8, SHAPE, K)
    before = evaluate(lively(), batch)[1]
    batch.reward[:] = batch.reward[::-1].copy()
    assert np.abs(evaluate(lively(), batch)[1] - before).max() > 1e-6


def test_the_code_of_the_next_move_reaches_no_policy_or_value_before_it() -> None:
    """Other codes 1 change no loss up to decision 1, and with decision 2 all but the afterstate before the code."""
    flat, batch = lively(), random_batch(8, SHAPE, K)
    for last, same in ((1, unroll.LOSSES), (2, ("afterstate_value",))):
        batch.weight[:] = np.arange(K + 1) <= last
        old = evaluate(flat, batch)[0]
        batch.code[:, 1] = (batch.code[:, 1] + 1) % SHAPE.codes
        new = evaluate(flat, batch)[0]
        unchanged = [name for name, a, b in zip(unroll.LOSSES, old, new, strict=True) if a == b]
        assert unchanged == list(same)


def test_position_reaches_neither_latent_nor_chance() -> None:
    batch, flat = random_batch(8, SHAPE, K), lively()
    old, _, before = evaluate(flat, batch)
    batch.position[:] += 1
    batch.afterstate_position[:] -= 1
    new, _, after = evaluate(flat, batch)
    np.testing.assert_array_equal(before.latent, after.latent)
    same = [a == b for a, b in zip(old, new, strict=True)]
    assert same == [name == "chance" for name in unroll.LOSSES]


def test_what_lies_beyond_the_end_has_no_gradient() -> None:
    batch, flat = random_batch(4, SHAPE, K), lively()
    batch.weight[:, 2:] = 0
    old = evaluate(flat, batch)[1]
    batch.reward[:, 1:] += 3
    batch.value[:, 2:] -= 2
    batch.code[:, 1:] = 0
    np.testing.assert_array_equal(old, evaluate(flat, batch)[1])


def test_threads_change_no_byte() -> None:
    batch = random_batch(32, SHAPE, K)
    found = []
    for threads in (1, 2):
        learner = Learner(
            SHAPE, 32, K, seed=5, learning_rate=1e-3, weight_decay=1e-2, lr_decay_steps=10, threads=threads
        )
        with threadpool_limits(1, "blas"):
            for _ in range(5):
                learner.learn(batch)
        found.append(learner.params.tobytes())
    assert found[0] == found[1]


def test_few_bars_slow_the_model_of_the_market_and_not_the_heads() -> None:
    """A rate that has fallen to a thousandth moves the heads as it would on many bars."""
    batch, moved = random_batch(32, SHAPE, K), []
    for decay_steps in (0.05, 10_000.0):
        learner = Learner(
            SHAPE, 32, K, seed=5, learning_rate=1e-2, weight_decay=0.0, lr_decay_steps=decay_steps, threads=1
        )
        for _ in range(50):
            learner.learn(batch)
        before = learner.params.copy()
        learner.learn(batch)
        moved.append(net.as_views(np.abs(learner.params - before), SHAPE))
    few, many = moved
    for name, view in vars(few).items():
        if name.endswith("_w") and view.size and name.removesuffix("_w") in net.HEADS:
            assert view.max() > 0.2 * getattr(many, name).max(), name
    for name in ("representation_hidden_w", "chance_logits_w", "dynamics_out_w"):
        assert getattr(few, name).max() < 0.01 * getattr(many, name).max(), name


def test_only_heads_learn_after_the_freeze() -> None:
    learner = Learner(SHAPE, 32, K, 5, 1e-2, 0.0, lr_decay_steps=10_000, threads=1, freeze_steps=2)
    batch, moved = random_batch(32, SHAPE, K), []
    for _ in range(3):
        before = learner.params.copy()
        learner.learn(batch)
        moved.append(net.as_views(learner.params != before, SHAPE))
    for name in (name for name, view in vars(moved[1]).items() if view.any()):
        assert getattr(moved[2], name).any() == (name[:-2] in net.HEADS), name


def test_learning_lowers_every_loss_and_nan_is_refused() -> None:
    batch = random_batch(32, SHAPE, K)
    learner = Learner(SHAPE, 32, K, seed=5, learning_rate=1e-2, weight_decay=0.0, lr_decay_steps=10_000, threads=1)
    first = learner.learn(batch)
    for _ in range(300):
        last = learner.learn(batch)
    for name in unroll.LOSSES:
        assert last[name] < first[name], name
    before = learner.params.copy()
    batch.reward[0, 0] = np.nan
    with pytest.raises(FloatingPointError, match="step 301: not finite: reward, gradient_norm"):
        learner.learn(batch)
    np.testing.assert_array_equal(before, learner.params)


def test_illegal_actions_have_no_gradient() -> None:
    batch = random_batch(8, SHAPE, K)
    batch.legal[:, :, 2] = False
    batch.policy[:, :, 2] = 0.5  # what a careless target would say
    gradient = net.as_views(evaluate(lively(), batch)[1], SHAPE)
    assert (gradient.policy_w[:, 2] == 0).all()
    assert gradient.policy_b[2] == 0
    assert (gradient.policy_b[[0, 1, 3]] != 0).all()


def test_weights_of_the_losses_scale_their_gradient() -> None:
    batch = random_batch(4 * unroll.NUM_CHUNKS, SHAPE, K)
    nothing = unroll.LossWeights(0, 0, 0, 0, 0)
    heads = ("policy_w", "value_w", "afterstate_value_w", "chance_logits_w", "reward_w")
    for loss, head in zip(unroll.LOSSES, heads, strict=True):
        learner = Learner(SHAPE, len(batch.features), K, 0, 1e-2, 0.0, 10, 1, weights=nothing._replace(**{loss: 1.0}))
        before = learner.params.copy()
        learner.learn(batch)
        change = net.as_views(learner.params - before, SHAPE)
        assert {name for name in heads if np.abs(getattr(change, name)).max() > 0} == {head}


def test_a_head_that_is_not_learnt_has_gradients_of_0_and_changes_no_other() -> None:
    """The gradient is linear in the weights, so two computations of all heads tell what it is at a weight of 0."""
    batch, flat, heads = random_batch(8, SHAPE, K), lively(), ("reward", "afterstate_value")
    whole = unroll.DEFAULT_LOSS_WEIGHTS
    for skipped in (heads, heads[:1], heads[1:]):
        losses, gradient, work = evaluate(flat, batch, weights=whole._replace(**dict.fromkeys(skipped, 0.0)))
        half = whole._replace(**{name: getattr(whole, name) / 2 for name in skipped})
        expected = 2 * evaluate(flat, batch, weights=half)[1] - evaluate(flat, batch)[1]
        np.testing.assert_allclose(gradient, expected, rtol=1e-9, atol=1e-12)
        for name, d in vars(net.as_views(gradient, SHAPE)).items():
            is_skipped = name.startswith(tuple(f"{head.removesuffix('_value')}_" for head in skipped))
            assert (not d.any()) == (is_skipped or d.size == 0), name
        assert [name for name, x in zip(unroll.LOSSES, losses, strict=True) if x == 0] == sorted(skipped)
        assert "reward" not in skipped or not work.d_hidden[: len(work.reward_input)].any()  # of the learnt codes


def test_a_batch_that_is_not_equal_chunks_is_refused() -> None:
    with pytest.raises(ValueError, match="33 windows"):
        Learner(SHAPE, 33, K, 0, 1e-2, 0.0, 10, 1)


def test_adamw_is_its_formula() -> None:
    rng = np.random.default_rng(2)
    theta, decay = rng.normal(size=6), np.array([0.1, 0, 0.1, 0, 0.1, 0])
    adam: AdamState = new_adam_state(theta)
    expected, m, v = theta.copy(), np.zeros(6), np.zeros(6)
    for step in range(4):
        g = rng.normal(size=6)
        adamw_update(theta, adam, g, decay, step, 0.01, 0.5)
        m, v = 0.9 * m + 0.1 * (g / 2), 0.999 * v + 0.001 * (g / 2) ** 2
        ratio = (m / (1 - 0.9 ** (step + 1))) / (np.sqrt(v / (1 - 0.999 ** (step + 1))) + 1e-8)
        expected -= 0.01 * (ratio + decay * expected)
    np.testing.assert_allclose(theta, expected, rtol=1e-12)


def test_parts_add_up_in_their_order() -> None:
    parts = np.random.default_rng(0).normal(size=(4, 50)).astype(np.float32)
    expected = ((parts[0] + parts[1]) + parts[2]) + parts[3]
    square = reduce_gradients(parts, 0, 20) + reduce_gradients(parts, 20, 50)
    np.testing.assert_array_equal(parts[0], expected)
    assert square == pytest.approx((expected.astype(float) ** 2).sum(), rel=1e-12)


def test_a_long_gradient_is_clipped() -> None:
    batch = random_batch(32, SHAPE, K)
    weights = unroll.LossWeights(1e4, 1e4, 1e4, 1e4, 1e4)
    learner = Learner(SHAPE, 32, K, 0, 1e-2, 0.0, 10, 1, weights=weights)
    assert learner.learn(batch)["gradient_norm"] > 100 * MAX_GRADIENT_NORM
    norm = np.linalg.norm(learner.adam.mean.astype(float)) / 0.1  # after one step: the gradient it was given
    assert norm == pytest.approx(MAX_GRADIENT_NORM, rel=1e-4)


def test_schedule() -> None:
    rates = [learning_rate_at(step, 1.0, 1000) for step in range(200_001)]
    assert rates[0] == pytest.approx(1 / WARMUP_STEPS)
    assert max(rates) == pytest.approx(1.0, abs=0.03)
    assert rates[3000] == pytest.approx(1 / 8)
    assert rates[8000] == pytest.approx(1 / 27)
    assert all(a >= b for a, b in pairwise(rates[WARMUP_STEPS:]))
    assert 1800 < sum(rates) < 2000
