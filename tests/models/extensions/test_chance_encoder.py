"""Learned codes: hard forward, straight-through backward, stops by their zeros; they learn to tell what pays."""

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from kernels.learning.replay_buffer import Batch
from models import loss as unroll
from models import params as net
from models.extensions import chance_encoder as codes
from models.learner import Learner
from models.shape import News
from tests.fixtures.windows import SHAPE as PLAIN
from tests.fixtures.windows import K, evaluate_shape, lively, random_batch
from tests.fixtures.windows import evaluate as evaluate_plain

NEWS = tuple(News(column) for column in range(PLAIN.features))
SHAPE = PLAIN._replace(chance_encoder_width=6, kinds=PLAIN.codes, news=NEWS)  # one bin
BINNED = SHAPE._replace(codes=6, kinds=2)
C, D, P = SHAPE.codes, SHAPE.latent, SHAPE.position
RNG = np.random.default_rng(4)
WEIGHTS = unroll.LossWeights(commitment=0.4, code_entropy=0.7)
NOTHING = unroll.LossWeights(0, 0, 0, 0, 0)
ENCODER = ("chance_encoder_hidden_w", "chance_encoder_hidden_b", "chance_encoder_out_w", "chance_encoder_out_b")
LOSSES = [*unroll.LOSSES, "commitment", "code_entropy"]


def coded_batch(windows: int, seed: int = 0, shape: net.ModelShape = SHAPE) -> Batch:
    later = np.random.default_rng(seed + 1).normal(size=(windows, K, shape.features)).astype(np.float32)
    return random_batch(windows, shape, K, seed)._replace(next_features=later)


def parameters(seed: int = 1, shape: net.ModelShape = SHAPE) -> np.ndarray:
    flat = np.random.default_rng(seed).normal(size=net.num_params(shape)) * 0.3
    if shape.num_layers == 0 and shape.codes == PLAIN.codes:
        flat[: net.num_params(PLAIN)] = lively(seed)
    net.as_views(flat, shape).chance_encoder_hidden_b[:] += 0.5
    return flat


def evaluate(
    flat: np.ndarray, batch: Batch, weights: unroll.LossWeights = WEIGHTS, shape: net.ModelShape = SHAPE
) -> tuple[list[float], np.ndarray, unroll.Activations]:
    """(losses, gradient, activations) in the precision of `flat`."""
    losses, gradient, workspace = evaluate_shape(flat, shape, batch, K, weights)
    return list(losses.values()), gradient, workspace.activations


def total(
    flat: np.ndarray, batch: Batch, weights: unroll.LossWeights = WEIGHTS, shape: net.ModelShape = SHAPE
) -> float:
    own = [*weights[:5], weights.commitment, weights.code_entropy]
    return float(np.dot(evaluate(flat, batch, weights, shape)[0], own))


def naive_probabilities(flat: np.ndarray, x: np.ndarray) -> np.ndarray:
    p = net.as_views(flat, SHAPE)
    z = (
        np.maximum(x.astype(float) @ p.chance_encoder_hidden_w + p.chance_encoder_hidden_b, 0) @ p.chance_encoder_out_w
        + p.chance_encoder_out_b
    )
    p = np.exp(z - z.max(axis=-1, keepdims=True))
    return np.asarray(p / p.sum(axis=-1, keepdims=True))


def soft(gain_in: np.ndarray, code: np.ndarray, p: np.ndarray, D: int) -> None:
    """`put_codes` without the argmax: what the backward pretends was done."""
    by_step = p.swapaxes(0, 1).reshape(-1, p.shape[2])
    gain_in[:, D : D + p.shape[2]], code[:] = by_step, by_step.argmax(axis=1)


def differs(
    flat: np.ndarray, gradient: np.ndarray, batch: Batch, picked: np.ndarray, shape: net.ModelShape = SHAPE
) -> None:
    for i in picked:
        h = np.zeros_like(flat)
        h[i] = 1e-6
        expected = (total(flat + h, batch, shape=shape) - total(flat - h, batch, shape=shape)) / 2e-6
        assert gradient[i] == pytest.approx(expected, rel=5e-6, abs=2e-9), i


def test_forward_the_code_is_the_likeliest_one_and_all_the_network_sees() -> None:
    flat, batch = parameters(), coded_batch(6)
    found, _, work = evaluate(flat, batch)
    p = naive_probabilities(flat, batch.next_features)
    assert len(set(p.argmax(axis=2).ravel().tolist())) > 2
    batch.code[:] = p.argmax(axis=2)
    assert (work.code.first_bin.reshape(K, -1).T == batch.code).all()
    assert found[:5] == evaluate_plain(flat[: net.num_params(PLAIN)], batch)[0]
    weight, hot = batch.weight[:, 1:, None] / (6 * K), np.eye(C)[batch.code]
    used = np.maximum((weight * hot).sum(axis=(0, 1)), codes.MIN_FREQUENCY)
    assert found[5] == pytest.approx((weight * (p - hot) ** 2).sum())
    assert found[6] == pytest.approx((used * np.log(used)).sum())


def test_gradient_of_the_whole_loss_where_the_code_is_its_probability(monkeypatch: pytest.MonkeyPatch) -> None:
    """With p in place of the one-hot nothing is straight-through: central differences hold for the encoder too."""
    monkeypatch.setattr(codes, "write_one_hot", soft)
    flat, batch, old = parameters(), coded_batch(2), net.num_params(PLAIN)
    batch.weight[1, 2:] = 0
    gradient = evaluate(flat, batch)[1]
    differs(flat, gradient, batch, RNG.choice(old, 20, replace=False))
    differs(flat, gradient, batch, RNG.choice(np.arange(old, len(flat)), 40, replace=False))


def test_gradient_of_a_transformer_that_is_told_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As above: what comes back through the embedding of the codes reaches the encoder."""
    monkeypatch.setattr(codes, "write_one_hot", soft)
    shape = SHAPE._replace(num_layers=2, num_heads=2, latent=8, attention_window=3)
    flat, batch = parameters(2, shape), coded_batch(2)
    gradient = evaluate(flat, batch, shape=shape)[1]
    of_encoder = np.zeros(len(flat))
    for name in (*ENCODER, "code_embedding_w"):
        getattr(net.as_views(of_encoder, shape), name)[...] = 1
    differs(flat, gradient, batch, RNG.choice(np.flatnonzero(of_encoder), 40, replace=False), shape)
    differs(flat, gradient, batch, RNG.choice(len(flat), 20, replace=False), shape)


def test_gradient_of_all_but_the_encoder_where_the_code_is_hard() -> None:
    flat, batch = parameters(), coded_batch(2)
    differs(flat, evaluate(flat, batch)[1], batch, RNG.choice(net.num_params(PLAIN), 40, replace=False))


def test_straight_through_is_the_jacobian_of_softmax_at_the_gradient_of_the_one_hot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flat, batch, hard = parameters(), coded_batch(2), codes.write_one_hot
    weights = unroll.DEFAULT_LOSS_WEIGHTS  # neither commitment nor usage
    found = net.as_views(evaluate(flat, batch, weights)[1], SHAPE)
    g, off = np.zeros((2, K, C)), np.zeros((2, K, C))

    def put(gain_in: np.ndarray, code: np.ndarray, p: np.ndarray, D: int) -> None:
        hard(gain_in, code, p, D)
        gain_in[:, D : D + C] += off.swapaxes(0, 1).reshape(-1, C)

    monkeypatch.setattr(codes, "write_one_hot", put)
    for at in np.ndindex(g.shape):
        for h in (1e-6, -1e-6):
            off[at] = h
            g[at] += total(flat, batch, weights) / (2 * h)
        off[at] = 0
    p = naive_probabilities(flat, batch.next_features)
    dz = p * (g - (g * p).sum(axis=2, keepdims=True))
    np.testing.assert_allclose(found.chance_encoder_out_b, dz.sum(axis=(0, 1)), rtol=1e-5, atol=1e-9)
    assert np.abs(found.chance_encoder_out_b).min() > 0


@pytest.mark.parametrize(
    ("loss", "steps", "reaches"),
    [
        ("policy", 1, True),  # of decision 1, through the dynamics
        ("value", 1, True),
        ("afterstate_value", 1, False),  # nothing is known of the bar that follows
        ("afterstate_value", 2, True),
        ("reward", 1, True),  # through the reward head
        ("chance", 1, False),  # its target is a constant
        ("chance", 2, True),  # what followed may tell what follows
        ("commitment", 1, True),
        ("code_entropy", 1, True),
    ],
)
def test_which_losses_reach_the_encoder(loss: str, steps: int, reaches: bool) -> None:
    flat, batch = parameters(), coded_batch(16)
    batch.weight[:, steps + 1 :] = 0
    d = net.as_views(evaluate(flat, batch, NOTHING._replace(**{loss: 1.0}))[1], SHAPE)
    for name in ENCODER:
        assert (np.abs(getattr(d, name)).max() > 1e-6) == reaches, name
        assert reaches or not getattr(d, name).any()
    of_the_rest = max(
        np.abs(view).max() for name, view in vars(d).items() if not name.startswith("chance_encoder") and view.size
    )
    assert (of_the_rest > 0) == (loss in unroll.LOSSES)


def test_the_code_of_a_step_is_the_first_thing_to_know_of_its_bar() -> None:
    """Another bar x[t + 2] changes no loss up to decision 1, and with decision 2 all but the afterstate before it."""
    flat, batch = parameters(), coded_batch(16)
    for last, same in ((1, LOSSES), (2, ["afterstate_value"])):
        batch.weight[:] = np.arange(K + 1) <= last
        old = evaluate(flat, batch)[0]
        batch.next_features[:, 1] = RNG.normal(size=batch.next_features[:, 1].shape)
        new = evaluate(flat, batch)[0]
        assert [name for name, a, b in zip(LOSSES, old, new, strict=True) if a == b] == same


def test_neither_position_nor_action_reaches_the_code() -> None:
    flat, batch = parameters(), coded_batch(8)
    before = evaluate(flat, batch)[2].code.first_bin
    batch.position[:] += 1
    batch.afterstate_position[:] -= 1
    batch.action[:] = (batch.action + 1) % SHAPE.actions
    np.testing.assert_array_equal(before, evaluate(flat, batch)[2].code.first_bin)


def test_what_lies_beyond_the_end_has_no_gradient() -> None:
    flat, batch = parameters(), coded_batch(4)
    batch.weight[:, 2:] = 0
    old = evaluate(flat, batch)[1]
    batch.next_features[:, 1:] += 3
    np.testing.assert_array_equal(old, evaluate(flat, batch)[1])


def telling_batch(windows: int) -> Batch:
    """The reward, the same for every position, is the sign of one feature of the bar that came."""
    batch = coded_batch(windows, 7)
    batch.afterstate_position[:], batch.position[:], batch.value[:] = 0, 0, 0
    batch.reward[:] = 3 * np.sign(batch.next_features[..., 3])
    return batch


def learner_of(weights: unroll.LossWeights, threads: int) -> Learner:
    return Learner(SHAPE._replace(chance_encoder_width=16), 128, K, 5, 3e-3, 0.0, 10_000, threads, weights)


@pytest.mark.parametrize("reward", [1.0, 0.0])
def test_codes_learn_to_tell_what_is_asked_of_them(reward: float) -> None:
    batch = telling_batch(128)
    learner = learner_of(unroll.LossWeights(reward=reward, commitment=0.25, code_entropy=0.3), 1)
    with threadpool_limits(1, "blas"):
        for _ in range(400):
            learner.learn(batch)
    rows = np.arange(128 * K, dtype=np.int32)
    x = batch.next_features.reshape(len(rows), -1)
    code = codes.encode_bars(learner._param_views, x, rows, rows, np.zeros(len(rows), np.int64), SHAPE)
    up = batch.reward.ravel() > 0
    told = sum(max(up[code == c].sum(), (~up)[code == c].sum()) for c in range(C)) / len(rows)
    assert told > 0.95 if reward else told < 0.8


def test_without_the_usage_loss_one_code_says_it_all() -> None:
    batch, last = telling_batch(128), list[float]()
    for usage in (0.0, 0.3):
        learner = learner_of(unroll.LossWeights(policy=0.0, commitment=0.25, code_entropy=usage), 1)
        with threadpool_limits(1, "blas"):
            for _ in range(300):
                losses = learner.learn(batch)
        last.append(losses["code_entropy"])
    assert last[0] > -0.3  # of at most log 5
    assert last[1] < -1.3


def test_threads_change_no_byte() -> None:
    batch, found = coded_batch(128), []
    for threads in (1, 2):
        learner = learner_of(WEIGHTS, threads)
        with threadpool_limits(1, "blas"):
            for _ in range(5):
                learner.learn(batch)
        found.append(learner.params.tobytes())
    assert found[0] == found[1]


def test_bars_are_named_in_calls_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    flat, x = parameters(), RNG.normal(size=(50, SHAPE.features))
    rows = RNG.permutation(50).astype(np.int32)[:41]
    expected = naive_probabilities(flat, x[rows]).argmax(axis=1)
    for size in (4096, 7, 41):
        monkeypatch.setattr(codes, "ENCODE_ROWS", size)
        found = codes.encode_bars(net.as_views(flat, SHAPE), x, rows, rows, np.zeros(41, np.int64), SHAPE)
        np.testing.assert_array_equal(found, expected)


def test_an_encoder_reads_the_news_and_nothing_else() -> None:
    shape = SHAPE._replace(news=(News(2, 3.0), News(5, is_change=True)))
    flat, batch = parameters(1, shape), coded_batch(8)
    p, later = net.as_views(flat, shape), batch.next_features
    before = np.concatenate([batch.features[:, None], later[:, :-1]], axis=1)
    news = np.stack([3 * later[..., 2], later[..., 5] - before[..., 5]], axis=-1)
    hidden = np.maximum(news @ p.chance_encoder_hidden_w + p.chance_encoder_hidden_b, 0)
    expected = (hidden @ p.chance_encoder_out_w + p.chance_encoder_out_b).argmax(axis=-1)
    found = evaluate(flat, batch, shape=shape)[2].code.first_bin.reshape(K, -1).T
    np.testing.assert_array_equal(found, expected)
    assert len(set(expected.ravel().tolist())) > 1
    x, rows = np.concatenate([batch.features, later[:, 0]]), np.arange(8, dtype=np.int32)
    found = codes.encode_bars(p, x, rows + 8, rows, np.zeros(8, np.int64), shape)
    np.testing.assert_array_equal(found, expected[:, 0])


def test_a_code_is_the_bin_of_the_move_and_a_kind_that_the_encoder_picks() -> None:
    flat, batch, rows = parameters(1, BINNED), coded_batch(32, shape=BINNED), np.arange(32, dtype=np.int32)
    p, bins = net.as_views(flat, BINNED), batch.code // 2
    hidden = np.maximum(batch.next_features @ p.chance_encoder_hidden_w + p.chance_encoder_hidden_b, 0)
    z = hidden @ p.chance_encoder_out_w + p.chance_encoder_out_b
    ahead = np.take_along_axis(z[..., 1::2] - z[..., ::2], bins[..., None], 2)[..., 0]  # of kind 0, in the own bin
    expected = 2 * bins + (ahead > 0)
    assert len(set(expected.ravel().tolist())) > 4
    losses, _, work = evaluate(flat, batch, shape=BINNED)
    np.testing.assert_array_equal(work.code.first_bin.reshape(K, -1).T, expected)
    unsure = 1 / (1 + np.exp(np.abs(ahead)))
    assert losses[5] == pytest.approx((batch.weight[:, 1:] / (32 * K) * 2 * unsure**2).sum(), rel=1e-5)
    x = np.concatenate([batch.features, batch.next_features[:, 0]])
    np.testing.assert_array_equal(codes.encode_bars(p, x, rows + 32, rows, bins[:, 0], BINNED), expected[:, 0])


def test_gradient_of_kinds_where_the_code_is_its_probability(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codes, "write_one_hot", soft)
    flat, batch = parameters(3, BINNED), coded_batch(2, shape=BINNED)
    gradient = evaluate(flat, batch, shape=BINNED)[1]
    of_encoder = np.zeros(len(flat))
    for name in ENCODER:
        getattr(net.as_views(of_encoder, BINNED), name)[...] = 1
    differs(flat, gradient, batch, RNG.choice(np.flatnonzero(of_encoder), 40, replace=False), BINNED)


def test_unsure_codes_do_not_count_as_used() -> None:
    """The loss that keeps codes in use counts those that were picked: equal probabilities would hide that one is."""
    flat, batch = np.zeros(net.num_params(SHAPE)), coded_batch(8)
    found, gradient, _ = evaluate(flat, batch, NOTHING._replace(code_entropy=1.0))
    assert found[6] > 5 * codes.MIN_FREQUENCY * np.log(codes.MIN_FREQUENCY)  # one code, which is picked always
    d = net.as_views(gradient, SHAPE).chance_encoder_out_b
    assert d[0] > 0.2 > 0 > d[1:].max()


def test_a_batch_that_does_not_look_ahead_is_refused() -> None:
    learner = Learner(SHAPE, 32, K, 5, 1e-2, 0.0, 10, 1, WEIGHTS)
    with pytest.raises(ValueError, match="looks ahead"):
        learner.learn(random_batch(32, SHAPE, K))
