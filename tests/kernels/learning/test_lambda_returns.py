"""Lambda-returns against a naive reading of their formula, and what must not enter them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.learning.replay_buffer import ReplayBuffer, backward_lambda
from kernels.market.position import ACTIONS
from tests.fixtures.replays import L, R, favourites, few, random_replay

AFTER = {"BUY": 1, "SELL": 2, "CLOSE": 0}  # which of three positions an action leads to
SLOTS = np.arange(R)


def naive_return(replay: ReplayBuffer, slot: int, k: int, m: int, discount: float, td_lambda: float) -> float:
    """The search's value at the end, and where an action explored and one position was searched; else r + gamma ..."""
    M, best = replay.policy.shape[2], int(replay.policy[slot, k, m].argmax())
    if k == L - 1 or (M == 1 and best != replay.action[slot, k]):
        return float(replay.search_value[slot, k, m])
    after = AFTER.get(ACTIONS[best], m) if M > 1 else 0
    later = naive_return(replay, slot, k + 1, after, discount, td_lambda)
    value = (1 - td_lambda) * float(replay.value[slot, k + 1, after]) + td_lambda * later
    return float(replay.expected_reward[slot, k, m]) + discount * value


@given(st.integers(0, 2**20), st.sampled_from([1, 3]), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([1.0, 0.9]))
@few
def test_returns_are_their_formula(seed: int, M: int, td_lambda: float, discount: float) -> None:
    replay, before = random_replay(seed, M), random_replay(seed, M)
    backward_lambda(replay, SLOTS[1:], discount, td_lambda)
    for slot, k, m in np.ndindex(R, L, M):
        expected = naive_return(before, slot, k, m, discount, td_lambda) if slot else before.search_value[slot, k, m]
        assert replay.search_value[slot, k, m] == pytest.approx(expected, rel=1e-4, abs=1e-4)
    for name in ("value", "expected_reward", "reward", "policy", "action", "held"):
        assert getattr(replay, name).tobytes() == getattr(before, name).tobytes(), name


@pytest.mark.parametrize("M", [1, 3])
def test_to_the_end_of_the_episode_they_are_sums_of_expected_rewards(M: int) -> None:
    """Of lambda = 1, where the search is worth 0 at the end: along the positions to which the best actions lead."""
    replay = random_replay(3, M)
    replay.action[:], replay.search_value[:, -1] = favourites(replay), 0.0
    held = np.zeros((R, L), int)
    if M > 1:
        for k in range(L - 1):
            best = np.take_along_axis(replay.policy[:, k], held[:, k, None, None], axis=1)[:, 0].argmax(axis=1)
            held[:, k + 1] = [AFTER.get(ACTIONS[a], m) for a, m in zip(best, held[:, k], strict=True)]
    followed = np.take_along_axis(replay.expected_reward, held[..., None], axis=2)[:, :-1, 0].astype(float)
    backward_lambda(replay, SLOTS, 1.0, 1.0)
    np.testing.assert_allclose(replay.search_value[:, 0, 0], followed.sum(axis=1), atol=1e-4)


@pytest.mark.parametrize("M", [1, 3])
@pytest.mark.parametrize("td_lambda", [0.0, 0.5, 1.0])
def test_an_error_of_imagined_bars_enters_no_return_but_the_last(td_lambda: float, M: int) -> None:
    """Where each search is worth e too little: the return loses (gamma lambda)^n e, of the search at the end."""
    plain, wrong = random_replay(5, M), random_replay(5, M)
    for replay in (plain, wrong):
        replay.action[:] = favourites(replay)
    wrong.search_value[:] -= 2.0
    for replay in (plain, wrong):
        backward_lambda(replay, SLOTS, 0.9, td_lambda)
    loss = plain.search_value.astype(float) - wrong.search_value
    left = 2.0 * (0.9 * td_lambda) ** np.arange(L - 1, -1, -1.0)
    np.testing.assert_allclose(loss, np.broadcast_to(left[:, None], loss.shape), atol=1e-4)
