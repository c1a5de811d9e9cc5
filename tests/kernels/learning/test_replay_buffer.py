"""Windows drawn from the replay against a naive reading of the episodes, and the rows of the feature store."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.config import load_config
from host.evaluation.synthetic import SYNTHETIC_INSTRUMENT
from host.training.dataset import Dataset, new_dataset
from host.training.feature_store import FeatureStore
from kernels.learning.replay_buffer import Batch, ValueTargetConfig, new_batch, sample_uniformly
from kernels.market.bars import SECOND_NS
from kernels.market.chance import code_of_move
from kernels.market.features import compute_features
from kernels.market.position import ACTIONS, NUM_POSITION_FEATURES, SIDE
from kernels.rng import randint
from tests.fixtures.replays import (
    CODES,
    SIGN,
    A,
    F,
    L,
    R,
    T,
    check_window,
    draw_batch,
    favourites,
    few,
    market_data_of,
    random_replay,
)
from tests.oracles.naive import wandering_bars


@given(
    st.integers(0, 2**20),
    st.integers(1, 2 * L),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from([1.0, 0.9]),
    st.sampled_from([0.0, 4.0, 1.5]),
    st.sampled_from([1, 3]),
)
@few
def test_windows_are_what_a_naive_reading_of_the_episodes_gives(
    seed: int, n: int, search_value_weight: float, discount: float, correction: float, M: int
) -> None:
    replay, target_config = random_replay(seed, M), ValueTargetConfig(n, discount, search_value_weight, correction, 20)
    batch = draw_batch(replay, R, target_config, seed, 3)
    for b in range(len(batch.features)):
        slot, first = divmod(randint(R * L, seed, 3, b), L)
        check_window(batch, b, replay, slot, first, target_config, (seed, 3))


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_all_positions_of_a_searched_bar_are_drawn_evenly_unless_the_target_needs_the_one_held(weight: float) -> None:
    """Chi-square of three positions at each of six decisions: 12 degrees of freedom, 99.9 % quantile 33."""
    replay, K = random_replay(0, 3), 5
    replay.start_bar[:] = 70 + 20 * np.arange(R)
    replay.policy[:] = np.arange(3)[:, None]  # which of them it is
    target_config, seen = ValueTargetConfig(2, 0.9, weight), np.zeros((K + 1, 3))
    for step in range(4):
        batch = draw_batch(replay, R, target_config, 1, step, B=512)
        for b in range(512):
            slot, first = divmod(randint(R * L, 1, step, b), L)
            for k in range(min(K + 1, L - first)):
                m = int(batch.policy[b, k, 0])
                seen[k, m] += 1
                assert weight == 1 or m == replay.held[slot, first + k]
    share = seen.sum(axis=1, keepdims=True) / 3
    assert weight < 1 or ((seen - share) ** 2 / share).sum() < 33


def test_old_episodes_have_shorter_returns() -> None:
    replay = random_replay(0)
    replay.action[:] = favourites(replay)
    replay.played_iteration[:] = 0
    for iteration, n in ((0, 5), (3, 5), (4, 4), (8, 3), (100, 1)):
        cut = draw_batch(replay, R, ValueTargetConfig(5, 0.9, 0.0, 4.0, iteration), 1, 1)
        np.testing.assert_array_equal(cut.value, draw_batch(replay, R, ValueTargetConfig(n, 0.9, 0.0), 1, 1).value)


def test_a_batch_looks_ahead_only_where_it_is_asked_to() -> None:
    replay, target_config = random_replay(4), ValueTargetConfig(5, 0.9, 0.0)
    plain, batch = draw_batch(replay, R, target_config, 2, 2), draw_batch(replay, R, target_config, 2, 2, ahead=True)
    assert plain.next_features.size == 0
    assert all((a == b).all() for a, b in zip(plain[:-2], batch[:-2], strict=True))
    market_data = market_data_of(0)
    for b in range(64):
        slot, first = divmod(randint(R * L, 2, 2, b), L)
        for k in range(min(5, L - first)):
            np.testing.assert_array_equal(
                batch.next_features[b, k],
                market_data.features[market_data.row_of_bar[replay.start_bar[slot] + first + k + 1]],
            )


@pytest.mark.parametrize("M", [1, 3])
def test_half_of_the_windows_are_those_of_the_mirrored_market(M: int) -> None:
    """Against a naive reading: what has a direction changes it, and nothing else changes."""
    replay, target_config, seen = random_replay(7, M), ValueTargetConfig(5, 0.9, 0.5 if M == 1 else 1.0), [0, 0]
    plain, batch = (draw_batch(replay, R, target_config, 2, 5, ahead=True, mirror=mirror) for mirror in (False, True))
    swap = [ACTIONS.index(name) for name in ("HOLD", "SELL", "BUY", "CLOSE")]
    side = np.array([-1, 1, 1, 1, 1, 1, 1, 1, -1], np.float32)
    turned = plain._replace(
        features=plain.features * SIGN,
        next_features=plain.next_features * SIGN,
        position=plain.position * side,
        afterstate_position=plain.afterstate_position * side,
        action=np.take(swap, plain.action),
        code=len(CODES.centres) - 1 - plain.code,
        policy=plain.policy[..., swap],
        legal=plain.legal[..., swap],
    )
    for b in range(64):
        draw = randint(2, 2, 5, 64 + b)
        seen[draw] += 1
        for name, array, expected in zip(Batch._fields, batch, (plain, turned)[draw], strict=True):
            if name != "position_work":
                np.testing.assert_array_equal(array[b], expected[b], err_msg=name)
    assert min(seen) > 20


@few
@given(st.floats(1e-9, 6))
def test_the_code_of_a_mirrored_move_is_the_mirrored_code(z: float) -> None:
    assert code_of_move(CODES, -z) == len(CODES.centres) - 1 - code_of_move(CODES, z)


def test_the_last_decision_of_a_episode_bootstraps_behind_it_and_never_from_the_next() -> None:
    replay = random_replay(0)
    replay.action[0] = favourites(replay)[0]
    target_config = ValueTargetConfig(5, 0.5, 0.0)
    before = draw_batch(replay, 1, target_config, 9, 0)
    replay.reward[1:], replay.value[1:], replay.position[1:], replay.policy[1:] = 1e6, 1e6, 1e6, 1e6
    after = draw_batch(replay, 1, target_config, 9, 0)
    assert all((a == b).all() for a, b in zip(before, after, strict=True))
    last = [b for b in range(64) if randint(L, 9, 0, b) == L - 1]
    assert last
    for b in last:
        expected = float(replay.reward[0, L - 1]) + 0.5 * float(replay.value[0, L, 0])
        assert after.value[b, 0] == pytest.approx(expected, rel=1e-5)
        assert after.weight[b].tolist() == [1, 0, 0, 0, 0, 0]


def test_draws_are_keyed_by_seed_and_step() -> None:
    replay, target_config = random_replay(0), ValueTargetConfig(5, 0.99, 0.5)
    draws = {key: draw_batch(replay, R, target_config, *key).features for key in ((1, 1), (1, 2), (2, 1))}
    assert (draws[1, 1] == draw_batch(replay, R, target_config, 1, 1).features).all()
    assert (draws[1, 1] != draws[1, 2]).any()
    assert (draws[1, 1] != draws[2, 1]).any()
    longer = draw_batch(replay, R, target_config, 1, 1, B=128).features
    assert (longer[:64] == draws[1, 1]).all()


def test_draws_are_uniform_over_the_filled_episodes_and_their_decisions() -> None:
    """Chi-square over episode x decision: 48 bins, far below the 1e-6 quantile of about 115."""
    replay, filled = random_replay(0), 4
    replay.start_bar[:] = 70 + 20 * np.arange(R)
    X, market_data = np.zeros((T, 1), np.float32), market_data_of(0)
    X[market_data.row_of_bar, 0] = np.arange(T)
    market_data, target_config = market_data._replace(features=X), ValueTargetConfig(1, 1.0, 0.0)
    seen = np.zeros(T, np.int64)
    for step in range(60):
        batch = new_batch(256, 1, 1, NUM_POSITION_FEATURES, A)
        sample_uniformly(batch, replay, filled, market_data, target_config, 5, step)
        seen += np.bincount(batch.features[:, 0].astype(int), minlength=T)
    bins = np.concatenate([seen[s : s + L] for s in replay.start_bar[:filled]])
    assert bins.sum() == seen.sum() == 60 * 256
    expected = 60 * 256 / len(bins)
    assert ((bins - expected) ** 2 / expected).sum() < 115


def test_entries_of_any_size_come_with_their_probabilities_and_explored_sizes_end_a_return() -> None:
    plain, J = random_replay(0), 3
    draw = np.random.default_rng(0)
    size = np.zeros((R, L, J), np.float32)
    size[..., :2] = draw.uniform(0.1, 1, (R, L, 2)) * [1, -1]
    candidate_policy = draw.dirichlet(np.ones(J), (R, L)).astype(np.float32)
    replay = plain._replace(candidate_size=size, candidate_policy=candidate_policy)
    replay.action[:] = favourites(replay)
    likeliest = np.take_along_axis(size, candidate_policy.argmax(axis=2)[..., None], axis=2)[..., 0]
    replay.position[:, 1:, SIDE] = np.where(draw.random((R, L)) < 0.7, likeliest, 0.05)
    batch, target_config = (
        new_batch(64, 5, F, NUM_POSITION_FEATURES, A, num_candidates=J),
        ValueTargetConfig(5, 0.9, 0.0),
    )
    sample_uniformly(batch, replay, R, market_data_of(0), target_config, 3, 3)
    greedy = np.isin(replay.action, (0, 3)) | (replay.position[:, 1:, SIDE] == likeliest)
    assert 0.5 < greedy.mean() < 0.95
    for b in range(64):
        slot, first = divmod(randint(R * L, 3, 3, b), L)
        for k in range(6):
            inside = first + k < L
            assert (batch.candidate_size[b, k] == (size[slot, first + k] if inside else 0)).all()
            assert (batch.candidate_policy[b, k] == (candidate_policy[slot, first + k] if inside else 0)).all()
        stop = first
        while stop < min(first + 5, L) and greedy[slot, stop]:
            stop += 1
        if stop == first:
            expected = float(replay.search_value[slot, first, 0])
        else:
            expected = 0.9 ** (stop - first) * float(replay.value[slot, stop, 0])
            expected += sum(0.9**i * float(r) for i, r in enumerate(replay.reward[slot, first:stop]))
        assert batch.value[b, 0] == pytest.approx(expected, rel=1e-5, abs=1e-5)


def small_market() -> Dataset:
    config = load_config(None, ["market.episode_length=24"])
    bars = wandering_bars(3, 700, 60)
    extra = np.arange(700, dtype=np.float32)[:, None] / 100
    return new_dataset(bars, extra, config, SYNTHETIC_INSTRUMENT, 3600 * SECOND_NS, 1)


DATA = small_market()


def expected_rows(data: Dataset, held: Any) -> Any:
    """Normalised features of bars, by numpy."""
    raw = np.concatenate(
        [compute_features(data.market_spec.features, data.bars, held, 1), data.extra_features[held]], axis=1
    )
    shift, scale = data.market_spec.normaliser
    return np.clip((raw.astype(np.float64) - shift) / scale, -8, 8)


@given(st.integers(0, 2**20), st.integers(1, 4), st.sampled_from([0, 1]))
@few
def test_the_store_has_the_features_of_every_bar_held_and_never_more_rows(
    seed: int, num_envs: int, room_mb: int
) -> None:
    draw, length, room = np.random.default_rng(seed), 25, 5
    store, held = FeatureStore(DATA, room * length, 1, room_mb), list[int]()
    for _ in range(12):
        while len(held) + num_envs > room or (held and draw.random() < 0.4):
            store.release(np.array([held.pop(int(draw.integers(len(held))))]), length)
        starts = draw.choice(DATA.starts[:180], num_envs)  # episodes share bars, and all together have no room
        store.acquire(starts, length)
        held += starts.tolist()
        bars = np.unique(np.add.outer(held, np.arange(length)))
        assert (store.row_of_bar[bars] >= 0).all()
        stored = np.flatnonzero(store.row_of_bar >= 0)
        rows = store.row_of_bar[stored]
        assert len(set(rows.tolist())) == len(stored) <= len(store.X) <= max(room * length, room_mb * 2**20 / 1180)
        np.testing.assert_allclose(store.X[rows], expected_rows(DATA, stored), rtol=1e-5, atol=1e-5)


def test_a_full_store_of_episodes_apart_fits_to_the_row_and_one_more_does_not() -> None:
    store = FeatureStore(DATA, 3 * 25, 1, 0)
    starts = DATA.starts[0] + 25 * np.arange(4)
    store.acquire(starts[:3], 25)
    assert sorted(store.row_of_bar[store.row_of_bar >= 0].tolist()) == list(range(75))
    with pytest.raises(IndexError, match="75 rows"):
        store.acquire(starts[3:], 25)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bars whose features are computed."""
    bars = list[int]()

    def spy(spec: Any, source: Any, ts: Any, threads: int) -> Any:
        bars.extend(ts.tolist())
        return compute_features(spec, source, ts, threads)

    monkeypatch.setattr("host.training.feature_store.compute_features", spy)
    return bars


def test_with_room_each_bar_is_computed_once(computed: list[int]) -> None:
    store = FeatureStore(DATA, 50, 1)
    for start in [0, 90, 10, 0, 80, 140, 10]:
        store.acquire(DATA.starts[start : start + 1], 25)
        store.release(DATA.starts[[start]], 25)
    assert len(computed) == len(set(computed)) == 35 + 35 + 25


def test_without_room_what_was_released_longest_ago_goes_first(computed: list[int]) -> None:
    store = FeatureStore(DATA, 75, 1, 0)
    a, b, c, d = (int(DATA.starts[0]) + 25 * np.arange(4)).tolist()
    store.acquire(np.array([a, b, c]), 25)
    for start in (b, a, c):
        store.release(np.array([start]), 25)
    store.acquire(np.array([d]), 25)  # in the room of b
    computed.clear()
    store.acquire(np.array([a, c]), 25)
    assert computed == []
    store.release(np.array([a]), 25)
    store.acquire(np.array([b]), 25)
    assert computed == list(range(b, b + 25))


def test_features_are_computed_a_piece_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, stores = list[int](), [FeatureStore(DATA, 400, 1) for _ in range(2)]
    stores[0].acquire(DATA.starts[:300:30], 25)
    monkeypatch.setattr("host.training.feature_store.FILL_PIECE", 60)
    monkeypatch.setattr(
        "host.training.feature_store.compute_features",
        lambda spec, bars, ts, threads: sizes.append(len(ts)) or compute_features(spec, bars, ts, threads),
    )
    stores[1].acquire(DATA.starts[:300:30], 25)
    assert max(sizes) == 60
    np.testing.assert_array_equal(stores[0].X, stores[1].X)


def test_rows_do_not_depend_on_threads() -> None:
    stores = [FeatureStore(DATA, 400, threads) for threads in (1, 2)]
    for store in stores:
        store.acquire(DATA.starts[:300:30], 25)
    assert (stores[0].X == stores[1].X).all()
