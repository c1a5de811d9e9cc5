"""The transformer against a naive one, central differences, and what its mask must keep apart."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from kernels.learning.replay_buffer import Batch
from models import loss as unroll
from models import params as net
from models.extensions import transformer
from models.extensions.unizero import LATENT_LOSS_WEIGHT, UniZero
from models.layers import LAYERNORM_EPSILON, decode
from models.learner import Learner
from tests.fixtures.sequences import K, batch_of, evaluate, lively
from tests.fixtures.windows import random_batch
from tests.oracles.gradients import slope

MLP = net.ModelShape(
    features=7, position=3, latent=8, hidden=10, actions=4, codes=5, reward_bins=9, value_bins=11, reward_limit=4.0,
    value_limit=6.0,
)  # fmt: skip
SHAPE = MLP._replace(num_layers=2, num_heads=2, attention_window=2)
LONG = SHAPE._replace(context=3)
JOINT = unroll.DEFAULT_LOSS_WEIGHTS._replace(unizero=0.7)
RNG = np.random.default_rng(0)


def weighted(flat: np.ndarray, shape: net.ModelShape, batch: Batch, weights: unroll.LossWeights) -> float:
    losses = evaluate(flat, shape, batch, weights)[0]
    latent = [weights.unizero * LATENT_LOSS_WEIGHT] if weights.unizero else []
    return float(np.dot(losses, [*weights[: len(unroll.LOSSES)], *latent]))


CASES = {
    "transformer": (SHAPE, unroll.DEFAULT_LOSS_WEIGHTS),
    "joint": (SHAPE, JOINT),
    "context": (LONG, unroll.DEFAULT_LOSS_WEIGHTS),
    "joint, context": (LONG, JOINT),
    "joint MLP": (MLP, JOINT),
}


@pytest.mark.parametrize("case", CASES)
def test_gradient_of_the_whole_loss(case: str) -> None:
    shape, weights = CASES[case]
    flat, batch, h = lively(shape), batch_of(shape), 1e-6
    batch.weight[1, 2:] = 0  # one window ends early
    gradient = evaluate(flat, shape, batch, weights)[1]
    spans = np.cumsum([0, *(view.size for view in vars(net.as_views(flat, shape)).values())])
    rng = np.random.default_rng(3)
    for first, stop in pairwise(spans):
        for i in rng.choice(np.arange(first, stop), min(stop - first, 3), replace=False):
            up, down = flat.copy(), flat.copy()
            up[i] += h
            down[i] -= h
            expected = (weighted(up, shape, batch, weights) - weighted(down, shape, batch, weights)) / (2 * h)
            assert gradient[i] == pytest.approx(expected, rel=2e-6, abs=2e-9), i


def norm(x: np.ndarray) -> np.ndarray:
    return np.asarray((x - x.mean()) / np.sqrt(x.var() + LAYERNORM_EPSILON))


def turned(x: np.ndarray, position: int, width: int) -> np.ndarray:
    """Each head [width] as complex numbers, turned by its position."""
    half, y = width // 2, x.reshape(-1, width)
    z = (y[:, :half] + 1j * y[:, half:]) * np.exp(1j * position * 10_000.0 ** (-np.arange(half) / half))
    return np.concatenate([z.real, z.imag], axis=1)


def naive_latents(p: net.Params, shape: net.ModelShape, tokens: dict[Any, Any]) -> dict[Any, np.ndarray]:
    """What heads read of each token ("z" or "c", bar): one token at a time, its attention spelled out."""
    width = shape.latent // shape.num_heads

    def sees(a: Any, b: Any) -> bool:
        if a[0] == "z":
            return b[0] == "z" and a[1] - shape.context < b[1] <= a[1]
        return (b[0] == "c" or b[1] == 0) and a[1] - shape.attention_window <= b[1] <= a[1]

    stream = dict(tokens)
    for i in range(shape.num_layers):
        q, k, v = ({}, {}, {})
        for name, x in stream.items():
            parts = np.split(norm(x) @ p.qkv_w[i] + p.qkv_b[i], 3)
            q[name], k[name] = (turned(part, name[1], width) for part in parts[:2])
            v[name] = parts[2].reshape(-1, width)
        for name, x in list(stream.items()):
            told = []
            for e in range(shape.num_heads):
                seen = [other for other in stream if sees(name, other)]
                score = np.exp([q[name][e] @ k[other][e] / np.sqrt(width) for other in seen])
                told.append(sum(s * v[other][e] for s, other in zip(score / score.sum(), seen, strict=True)))
            h = x + np.concatenate(told) @ p.attproj_w[i] + p.attproj_b[i]
            u = norm(h) @ p.fc_w[i] + p.fc_b[i]
            bent = 0.5 * u * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3)))
            stream[name] = h + bent @ p.fcproj_w[i] + p.fcproj_b[i]
    return {name: norm(x) for name, x in stream.items()}


@pytest.mark.parametrize("shape", [SHAPE, LONG, LONG._replace(num_heads=4, attention_window=3, num_layers=3)], ids=str)
def test_the_latents_are_those_of_the_naive_transformer(shape: net.ModelShape) -> None:
    flat, batch = lively(shape), batch_of(shape)
    work, p = evaluate(flat, shape, batch, JOINT)[2].activations, net.as_views(flat, shape)

    def bar(x: np.ndarray) -> np.ndarray:
        hidden = np.maximum(x.astype(float) @ p.representation_hidden_w + p.representation_hidden_b, 0)
        return norm(hidden @ p.representation_out_w + p.representation_out_b)

    for b in range(2):
        past = batch.features[b].reshape(shape.context, -1)
        tokens = {("z", k - shape.context + 1): bar(x) for k, x in enumerate(past)}
        tokens |= {("z", k + 1): bar(x) for k, x in enumerate(batch.next_features[b])}
        tokens |= {("c", k + 1): p.code_embedding_w[c] + p.code_embedding_b for k, c in enumerate(batch.code[b])}
        found = naive_latents(p, shape, tokens)
        names = [*(("z", k) for k in range(1, K + 1)), ("z", 0), *(("c", k) for k in range(1, K + 1))]
        np.testing.assert_allclose(work.latent[:, b], [found[name] for name in names], rtol=0, atol=1e-12)


def test_attention_and_its_gradient() -> None:
    T, n, D, E = 4, 3, 6, 3
    qkv, dy, v = (RNG.normal(size=(T, n, width)) for width in (3 * D, D, 3 * D))
    sees = np.tril(RNG.uniform(size=(T, T)) > 0.4) | np.eye(T, dtype=bool)

    def forward(qkv: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        told, share = np.empty((T, n, D)), np.full((n, E, T, T), np.nan)
        transformer.attention_forward(told, share, qkv, sees)
        return told, share

    told, share = forward(qkv)
    np.testing.assert_allclose(share.sum(axis=3), 1, rtol=1e-12)
    assert ((share > 0) == sees).all()
    d_qkv = np.zeros_like(qkv)
    transformer.attention_backward(d_qkv, dy, told, share, qkv, sees)
    assert (d_qkv * v).sum() == pytest.approx(slope(lambda z: (forward(z)[0] * dy).sum(), qkv, v), rel=2e-6)


def test_gelu_and_its_gradient() -> None:
    x, b, dy, v, u = (RNG.normal(size=size) for size in ((4, 6), 6, (4, 6), (4, 6), 6))

    def forward(x: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, ...]:
        y, bend, z = np.empty_like(x), np.empty_like(x), x.copy()
        transformer.gelu_forward(y, bend, z, b)
        return y, bend, z

    _, bend, z = forward(x, b)
    np.testing.assert_allclose(forward(np.array([[1.0, -1.0]]), np.zeros(2))[0], [[0.841192, -0.158808]], rtol=1e-5)
    dx, db = dy.copy(), np.empty(6)
    transformer.gelu_backward(dx, db, z, bend)
    assert (dx * v).sum() == pytest.approx(slope(lambda t: (forward(t, b)[0] * dy).sum(), x, v), rel=2e-6)
    assert (db * u).sum() == pytest.approx(slope(lambda t: (forward(x, t)[0] * dy).sum(), b, u), rel=2e-6)


def test_turning_keeps_lengths_and_makes_scores_a_matter_of_distance() -> None:
    position, E, width = np.array([0, 3, 5, 8]), 2, 4
    turn, one = transformer.rope_table(position, width), RNG.normal(size=(1, 1, 3 * E * width))
    qkv = np.tile(one, (4, 2, 1))
    transformer.apply_rope(qkv, turn, E, 1.0)
    q, k = (part.reshape(4, 2, E, width) for part in np.split(qkv, 3, axis=2)[:2])
    score = np.einsum("tew,sew->tse", q[:, 0], k[:, 0])
    np.testing.assert_allclose(score[1, 0], score[3, 2], rtol=1e-12)  # three apart, either way
    assert np.abs(score[1, 0] - score[2, 1]).max() > 1e-2
    transformer.apply_rope(qkv, turn, E, -1.0)
    np.testing.assert_allclose(qkv, np.tile(one, (4, 2, 1)), rtol=1e-12)


def test_neither_later_codes_nor_later_bars_reach_what_comes_before_them() -> None:
    flat, batch = lively(LONG), batch_of(LONG)
    before = evaluate(flat, LONG, batch, JOINT)[2].activations.latent.copy()
    came, unrolled = slice(0, K), slice(K, None)
    for k in range(K):
        other = batch_of(LONG)
        other.code[:, k] = (other.code[:, k] + 1) % LONG.codes
        change = np.abs(evaluate(flat, LONG, other, JOINT)[2].activations.latent - before).max(axis=(1, 2))
        assert (change[came] == 0).all()
        assert (change[unrolled][: k + 1] == 0).all()
        assert (change[unrolled][k + 1 :] > 1e-6).all()
        other = batch_of(LONG)
        other.next_features[:, k] += 1
        change = np.abs(evaluate(flat, LONG, other, JOINT)[2].activations.latent - before).max(axis=(1, 2))
        assert (change[unrolled] == 0).all()
        assert (change[came][:k] == 0).all()
        assert (change[came][k : k + LONG.context] > 1e-6).all()


def test_the_last_token_sees_so_far_and_no_farther() -> None:
    """Through two blocks and a window of two: four codes back, and z_0 from nowhere near."""
    shape, batch = SHAPE._replace(attention_window=1), batch_of(SHAPE)
    flat = lively(shape)
    before = evaluate(flat, shape, batch)[2].activations.latent[-1].copy()
    for k, reaches in enumerate((False, True, True, True)):
        other = batch_of(SHAPE)
        other.code[:, k] = (other.code[:, k] + 1) % shape.codes
        assert (np.abs(evaluate(flat, shape, other)[2].activations.latent[-1] - before).max() > 0) == reaches, k


def test_every_parameter_gets_gradient_and_stays_its_own() -> None:
    for shape, weights in CASES.values():
        gradient = evaluate(lively(shape), shape, batch_of(shape, 64), weights)[1]
        for name, view in vars(net.as_views(gradient, shape)).items():
            assert view.size == 0 or (np.abs(view) > 0).mean() > 0.8, name


@pytest.mark.parametrize("shape", [SHAPE, MLP], ids=["transformer", "MLP"])
def test_the_target_of_the_latent_loss_is_constant(shape: net.ModelShape) -> None:
    """With that loss alone nothing but what leads to the unrolled latents moves: no head, not the bars that came."""
    flat, batch = lively(shape), batch_of(shape, 8)
    nothing = unroll.LossWeights(0, 0, 0, 0, 0, unizero=1.0)
    losses, gradient, room = evaluate(flat, shape, batch, nothing)
    assert losses[-1] > 0
    for name, view in vars(net.as_views(gradient, shape)).items():
        leads = name.split("_")[0] in (
            "representation", "dynamics", "code", "qkv", "attproj", "fc", "fcproj",
        )  # fmt: skip
        assert (np.abs(view).max(initial=0) > 0) == (leads and view.size > 0), name
    assert (room.activations.d_latent[:K] == 0).all()
    unizero = next(e for e in room.extensions if isinstance(e, UniZero))
    np.testing.assert_allclose(
        losses[-1],
        ((room.activations.latent[K + 1 :] - unizero.latent[:K]) ** 2).mean(axis=2).mean(),
        rtol=1e-6,
    )


def test_bars_that_came_are_judged_by_the_same_heads() -> None:
    """With all other losses off: policy and value of z_k weigh `joint`, and their latents get the gradient."""
    flat, batch = lively(MLP), batch_of(MLP, 8)
    plain, both = (evaluate(flat, MLP, batch, w)[0] for w in (unroll.DEFAULT_LOSS_WEIGHTS, JOINT))
    room = evaluate(flat, MLP, batch, JOINT)[2]
    z = np.maximum(
        room.activations.prediction_input @ net.as_views(flat, MLP).prediction_hidden_w
        + net.as_views(flat, MLP).prediction_hidden_b,
        0,
    )
    logits = z @ net.as_views(flat, MLP).policy_w + net.as_views(flat, MLP).policy_b
    logits[~room.activations.legal] = -np.inf
    chosen = (np.where(room.activations.legal, logits, 0) * room.activations.policy.probability).sum(axis=1)
    surprise = np.log(np.exp(logits).sum(axis=1)) - chosen
    came = surprise[: 8 * K].reshape(K, 8).T
    assert both[0] - plain[0] == pytest.approx(0.7 * came.mean(), rel=1e-6)
    assert both[2:5] == plain[2:]
    for k in range(K):
        rows = slice(8 * k, 8 * k + 8)
        np.testing.assert_array_equal(room.activations.policy.probability[rows], batch.policy[:, k + 1])
        told = room.activations.prediction_input[rows]
        np.testing.assert_array_equal(told[:, : MLP.latent], room.activations.latent[k])
        np.testing.assert_array_equal(told[:, MLP.latent :], batch.position[:, k + 1])


def test_threads_change_no_byte_and_learning_lowers_every_loss() -> None:
    batch, found = batch_of(LONG, 32), []
    for threads in (1, 2):
        learner = Learner(LONG, 32, K, 5, 1e-2, 0.0, 10_000, threads, JOINT)
        target = net.as_views(learner.params.copy(), LONG)
        with threadpool_limits(1, "blas"):
            first = learner.learn(batch, target)
            for _ in range(150):
                last = learner.learn(batch, target)
        found.append(learner.params.tobytes())
    assert found[0] == found[1]
    assert all(last[name] < first[name] for name in (*unroll.LOSSES, "latent"))


@pytest.mark.parametrize("shape", [LONG, MLP], ids=["transformer", "MLP"])
def test_reward_errors_are_those_of_the_open_loop(shape: net.ModelShape) -> None:
    """Of what the reward head makes of the unrolled latents, over the windows that go so far."""
    flat, batch = lively(shape), batch_of(shape, 8)
    batch.weight[:3, 2:] = 0
    work, p = evaluate(flat, shape, batch, JOINT)[2].activations, net.as_views(flat, shape)
    room = unroll.new_workspace(shape, 8, K, JOINT, np.dtype(np.float64))
    z = np.maximum(work.reward_input @ p.reward_hidden_w + p.reward_hidden_b, 0) @ p.reward_w + p.reward_b
    gap = np.abs(decode(z, shape.reward_limit).reshape(K, 8).T - batch.reward)
    expected = [gap[3 * (k > 0) :, k].mean() for k in range(K)]
    np.testing.assert_allclose(unroll.reward_errors(room, p, batch), expected, rtol=1e-6)


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ValueError, match="joint training compares"):
        Learner(
            SHAPE._replace(projector_width=4),
            32,
            K,
            0,
            1e-2,
            0.0,
            10,
            1,
            unroll.DEFAULT_LOSS_WEIGHTS._replace(consistency=1.0),
        )
    learner = Learner(SHAPE, 32, K, 0, 1e-2, 0.0, 10, 1, JOINT)
    with pytest.raises(ValueError, match="looks ahead"):
        learner.learn(random_batch(32, SHAPE, K), net.as_views(learner.params, SHAPE))
