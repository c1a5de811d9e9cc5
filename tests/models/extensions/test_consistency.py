"""The consistency loss: its gradient where it has one, zeros where it must stop, and what it is compared with."""

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from kernels.learning.replay_buffer import Batch, new_batch
from models import loss as unroll
from models import params as net
from models.extensions import consistency
from models.learner import Learner
from tests.fixtures.windows import SHAPE as PLAIN
from tests.fixtures.windows import K, lively, random_batch
from tests.oracles.gradients import slope

SHAPE = PLAIN._replace(projector_width=5)
RNG = np.random.default_rng(3)
WEIGHTS = unroll.LossWeights(consistency=0.8)
ALONE = unroll.LossWeights(0, 0, 0, 0, 0, 1.0)
HEADS = ("predict", "policy", "value", "chance", "code", "after", "afterstate_value", "gain", "reward")


def ahead_batch(windows: int, seed: int = 0) -> Batch:
    plain = random_batch(windows, SHAPE, K, seed)
    batch = new_batch(windows, K, SHAPE.features, SHAPE.position, SHAPE.actions, with_next_features=True)
    batch = plain._replace(next_features=batch.next_features)
    batch.next_features[:] = np.random.default_rng(seed + 1).normal(size=batch.next_features.shape)
    return batch


def evaluate(
    flat: np.ndarray, target: np.ndarray, batch: Batch, weights: unroll.LossWeights = WEIGHTS
) -> tuple[list[float], net.Params, np.ndarray]:
    """(losses, gradient by name, gradient)."""
    n = len(batch.features)
    work, sight = (
        unroll.new_activations(SHAPE, n, K, flat.dtype),
        consistency.new_consistency_work(SHAPE, K * n, flat.dtype),
    )
    sight.x[:] = batch.next_features.swapaxes(0, 1).reshape(K * n, -1)
    gradient = np.full_like(flat, np.nan)
    p, d, aim = (net.as_views(x, SHAPE) for x in (flat, gradient, target))
    unroll.fill_inputs(work, batch, 0)
    unroll.fill_targets(work, batch, 0, SHAPE, 0.0)
    x = batch.features.astype(flat.dtype)
    return unroll.loss_and_gradient(d, work, p, x, weights, 1.0, (sight, aim)), d, gradient


def parameters(seed: int) -> np.ndarray:
    return np.concatenate([lively(seed), np.random.default_rng(seed).normal(size=net.num_params(SHAPE)) * 0.5])[
        : net.num_params(SHAPE)
    ]


@pytest.mark.parametrize("size", [1.0, 1e-7])  # the second is below the floor of a length
def test_negative_cosine(size: float) -> None:
    a, b, w = RNG.normal(size=(4, 6)) * size, RNG.normal(size=(4, 6)), RNG.uniform(0.5, 2, 4)
    v, da = RNG.normal(size=a.shape) * size, np.empty_like(a)

    def loss(a: np.ndarray, factor: float = 1.0) -> float:
        return consistency.negative_cosine(da, a, b, w, factor)

    expected = slope(loss, a, v)
    total = loss(a, 0.3)
    assert (da * v).sum() == pytest.approx(0.3 * expected, rel=1e-6)
    if size == 1.0:
        lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        assert total == pytest.approx(-(w * (a * b).sum(axis=1) / lengths).sum(), rel=1e-12)


def test_gradient_of_the_whole_loss() -> None:
    flat, target, batch = parameters(1), parameters(2), ahead_batch(3)
    batch.weight[1, 2:] = 0

    def total(flat: np.ndarray) -> float:
        return float(np.dot(evaluate(flat, target, batch)[0], WEIGHTS[:6]))

    gradient = evaluate(flat, target, batch)[2]
    new = net.num_params(PLAIN)
    picked = [*RNG.choice(new, 30, replace=False), *RNG.choice(np.arange(new, len(flat)), 30, replace=False)]
    for i in picked:
        h = np.zeros_like(flat)
        h[i] = 1e-6
        expected = (total(flat + h) - total(flat - h)) / 2e-6
        assert gradient[i] == pytest.approx(expected, rel=5e-6, abs=2e-9), i


def test_it_moves_what_leads_to_the_latent_and_nothing_else() -> None:
    """No head, and nothing of the target: the gradient is the same whether the target is these very weights."""
    flat, batch = parameters(1), ahead_batch(16)
    losses, d, gradient = evaluate(flat, flat, batch, ALONE)
    np.testing.assert_array_equal(gradient, evaluate(flat, flat.copy(), batch, ALONE)[2])
    for name, view in d._asdict().items():
        moved = np.abs(view).max(initial=0) > 0
        assert moved == (name[:-2] not in HEADS and view.size > 0), name
    loss = losses[-1]

    def stopped(flat: np.ndarray) -> float:
        return evaluate(flat, fixed, batch, ALONE)[0][-1]

    fixed, v = flat.copy(), RNG.normal(size=len(flat))
    assert gradient @ v == pytest.approx(slope(stopped, flat, v), rel=1e-5)
    through = slope(lambda t: evaluate(t, t, batch, ALONE)[0][-1], flat, v)
    assert abs(through - gradient @ v) > 1e-3 * abs(through)  # the target does depend on the weights
    assert -1 <= loss <= 1


def test_it_compares_each_step_with_its_own_bar_and_only_up_to_the_end() -> None:
    flat, target, batch = parameters(1), parameters(2), ahead_batch(4)
    batch.weight[:, 2:] = 0  # decision 1 is the last
    before, _, gradient = evaluate(flat, target, batch)
    batch.next_features[:, 1:] += 1
    after, _, same = evaluate(flat, target, batch)
    assert before == after
    np.testing.assert_array_equal(gradient, same)
    batch.next_features[0, 0] += 1
    moved = evaluate(flat, target, batch)[0]
    assert moved[:-1] == before[:-1]
    assert moved[-1] != before[-1]


def test_the_learner_brings_the_latents_together_whatever_the_threads() -> None:
    batch, found = ahead_batch(32), []
    for threads in (1, 2):
        learner = Learner(SHAPE, 32, K, 5, 1e-2, 0.0, 10_000, threads, WEIGHTS)
        target = net.as_views(learner.params.copy(), SHAPE)
        with threadpool_limits(1, "blas"):
            losses = [learner.learn(batch, target)["consistency"] for _ in range(60)]
        found.append(learner.params.tobytes())
    assert found[0] == found[1]
    assert losses[-1] < losses[0] - 0.3


def test_halves_of_it_are_refused() -> None:
    for shape, weights in ((SHAPE, unroll.DEFAULT_LOSS_WEIGHTS), (PLAIN, WEIGHTS)):
        with pytest.raises(ValueError, match="both or neither"):
            Learner(shape, 32, K, 5, 1e-2, 0.0, 10, 1, weights)
    learner = Learner(SHAPE, 32, K, 5, 1e-2, 0.0, 10, 1, WEIGHTS)
    for batch, target in ((ahead_batch(32), None), (random_batch(32, SHAPE, K), net.as_views(learner.params, SHAPE))):
        with pytest.raises(ValueError, match="looks ahead"):
            learner.learn(batch, target)
