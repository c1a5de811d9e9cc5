"""Draws by Bellman error against their exact cdf, their weights, and errors that stay with their decisions."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.training.market_replay import PRIORITY_CAP_QUANTILE
from kernels.learning.prioritized import UNIFORM_FRACTION, bellman_errors, fill_cdf, sample_index, sample_prioritized
from kernels.learning.replay_buffer import Batch, ReplayBuffer, ValueTargetConfig, new_batch
from kernels.market.position import NUM_POSITION_FEATURES
from tests.fixtures.replays import A, F, L, R, check_window, draw_batch, few, market_data_of, naive_value, random_replay
from tests.fixtures.trainings import same_state, trained

TARGET_CONFIG = ValueTargetConfig(3, 0.9, 0.5)


def naive_probabilities(error: np.ndarray, cap: float, alpha: float) -> np.ndarray:
    """[N] probabilities."""
    share = np.minimum(error, cap) ** alpha
    share = share / share.sum() if share.sum() > 0 else np.full(len(error), 1 / len(error))
    return np.asarray(UNIFORM_FRACTION / len(error) + (1 - UNIFORM_FRACTION) * share)


def draw(
    replay: ReplayBuffer, cdf: np.ndarray, beta: float, seed: int, step: int, B: int = 64
) -> tuple[Batch, Any, np.ndarray]:
    """(batch, (slots, first decisions), probabilities)."""
    batch, probability = new_batch(B, 5, F, NUM_POSITION_FEATURES, A), np.zeros(B)
    sample_prioritized(batch, probability, cdf, replay, market_data_of(0), TARGET_CONFIG, beta, seed, step)
    exact = np.diff(cdf, prepend=0.0)
    i = np.abs(exact - probability[:, None]).argmin(axis=1)  # the errors of a random replay differ
    return batch, np.divmod(i, L), probability


def cdf_of(replay: ReplayBuffer, filled: int, alpha: float = 1.0) -> np.ndarray:
    error = np.zeros((filled, L))
    bellman_errors(error, replay, TARGET_CONFIG)
    cdf = np.zeros(filled * L)
    fill_cdf(cdf, error.ravel(), np.inf, alpha)
    return cdf


@given(st.integers(0, 2**20), st.integers(1, R), st.sampled_from([1, 3]))
@few
def test_errors_are_between_the_value_and_its_target(seed: int, filled: int, M: int) -> None:
    replay, error = random_replay(seed, M), np.zeros((filled, L))
    bellman_errors(error, replay, TARGET_CONFIG)
    for slot, k in np.ndindex(filled, L):
        expected = abs(float(replay.value[slot, k, replay.held[slot, k]]) - naive_value(replay, slot, k, TARGET_CONFIG))
        assert error[slot, k] == pytest.approx(expected, rel=1e-5, abs=1e-6)


@given(
    st.lists(st.sampled_from([0.0, 0.1, 1.0, 3.0, 100.0]), min_size=1, max_size=40),
    st.sampled_from([0.5, 5.0, np.inf]),
    st.sampled_from([0.4, 1.0]),
)
@few
def test_the_cdf_is_half_uniform_and_half_by_the_winsorised_error(
    errors: list[float], cap: float, alpha: float
) -> None:
    error, cdf = np.array(errors), np.zeros(len(errors))
    fill_cdf(cdf, error, cap, alpha)
    expected = naive_probabilities(error, cap, alpha)
    np.testing.assert_allclose(np.diff(cdf, prepend=0.0), expected, atol=1e-14)
    for u in (0.0, *np.random.default_rng(len(errors)).random(20), 1 - 2.0**-53):
        assert sample_index(cdf, u) == min(np.searchsorted(cdf, u, side="right"), len(errors) - 1)


def test_windows_are_drawn_as_often_as_their_probabilities_say() -> None:
    """Chi-square of 72 cells: 99.9 % quantile 113."""
    replay, n = random_replay(3), 4
    cdf, seen = cdf_of(replay, R), np.zeros(R * L)
    for step in range(n):
        _, (slot, first), _ = draw(replay, cdf, 0.0, 5, step, 6400)
        np.add.at(seen, slot * L + first, 1)
    expected = np.diff(cdf, prepend=0.0) * n * 6400
    assert ((seen - expected) ** 2 / expected).sum() < 113
    uniform = np.full(R * L, n * 6400 / (R * L))
    assert ((seen - uniform) ** 2 / uniform).sum() > 1000


@given(st.integers(0, 2**20), st.integers(1, R))
@few
def test_windows_are_those_of_uniform_draws_at_other_places(seed: int, filled: int) -> None:
    replay = random_replay(seed)
    batch, (slot, first), _ = draw(replay, cdf_of(replay, filled), 0.0, seed, 3)
    assert (slot < filled).all()
    for b in range(len(batch.features)):
        check_window(batch, b, replay, int(slot[b]), int(first[b]), TARGET_CONFIG)


def test_weights_make_up_for_the_draws() -> None:
    replay = random_replay(1)
    cdf = cdf_of(replay, R)
    plain, _, probability = draw(replay, cdf, 0.0, 2, 2)
    for beta in (0.4, 1.0):
        weighed, _, same = draw(replay, cdf, beta, 2, 2)
        np.testing.assert_array_equal(probability, same)
        w = (R * L * probability) ** -beta
        np.testing.assert_allclose(weighed.weight, plain.weight * (w / w.max())[:, None], rtol=1e-6)
        assert all((a == b).all() for a, b in zip(plain[:9], weighed[:9], strict=True))


def test_without_errors_the_draws_are_the_uniform_ones() -> None:
    replay, cdf = random_replay(2), np.zeros(R * L)
    fill_cdf(cdf, np.zeros(R * L), 0.0, 0.4)
    batch, probability = new_batch(64, 5, F, NUM_POSITION_FEATURES, A), np.zeros(64)
    sample_prioritized(batch, probability, cdf, replay, market_data_of(0), TARGET_CONFIG, 1.0, 4, 4)
    plain = draw_batch(replay, R, TARGET_CONFIG, 4, 4)
    assert (batch.features == plain.features).all()
    np.testing.assert_allclose(batch.weight, plain.weight, rtol=1e-12)


def test_errors_follow_their_decisions_round_the_ring_and_new_episodes_have_their_own() -> None:
    """Five iterations of four episodes in a ring of sixteen: the last four took the place of the first."""
    trainer = trained(5, 1, "train.per_alpha=0.4", "train.reanalyze_interval=0")
    replay, target_config = trainer.markets[0].replay, trainer.value_target._replace(iteration=trainer.iteration)
    assert trainer.episodes == 20
    assert sorted(replay.played_iteration.tolist()) == sorted([*[1] * 4, *[2] * 4, *[3] * 4, *[4] * 4])
    cdf = trainer.markets[0].priority_cdf(target_config)
    target = np.array([[naive_target(replay, s, k, target_config) for k in range(24)] for s in range(16)])
    held = replay.held[:, :24, None].astype(int)
    value = np.take_along_axis(replay.value[:, :24], held, axis=2)[..., 0]
    error = np.abs(value.astype(float) - target)
    np.testing.assert_allclose(trainer.markets[0].bellman_error, error, atol=1e-5)
    expected = naive_probabilities(error.ravel(), float(np.quantile(error, PRIORITY_CAP_QUANTILE)), 0.4)
    np.testing.assert_allclose(np.diff(cdf, prepend=0.0), expected, rtol=1e-3)
    assert len(np.unique(error[replay.played_iteration == 4].round(4))) > 20  # not one and the same


def naive_target(replay: ReplayBuffer, slot: int, k: int, target_config: ValueTargetConfig) -> float:
    """Of a share of the search's value of 1, the default."""
    assert target_config.search_value_weight == 1
    return float(replay.search_value[slot, k, replay.held[slot, k]])


def test_off_it_costs_and_changes_nothing() -> None:
    off, on = trained(3, 1, "train.per_beta=0.3"), trained(3, 1, "train.per_alpha=0.4")
    assert off.markets[0].bellman_error.size == off.markets[0].priority_cdf(off.value_target).size == 0
    assert same_state(off, trained(3))
    assert not same_state(on, trained(3))
    assert same_state(on, trained(3, 2, "train.per_alpha=0.4"))


def test_an_error_that_is_not_finite_is_refused() -> None:
    trainer = trained(2, 1, "train.per_alpha=0.5")
    kept = trainer.markets[0].replay.search_value[3, 7]
    trainer.markets[0].replay.search_value[3, 7] = np.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        trainer.markets[0].priority_cdf(trainer.value_target)
    trainer.markets[0].replay.search_value[3, 7] = kept
