"""An environment in the trainer: its pieces, its targets, its masks; the same bytes on any threads and after a stop."""

from typing import Any

import numpy as np
import pytest

from host.training.environment_replay import EnvironmentReplay, GreedyPlayer, play_greedily
from host.training.trainer import Trainer
from kernels.learning.replay_buffer import ValueTargetConfig, value_target
from tests.fixtures.environments import CORRIDOR_SPEC, LENGTH, STEP, env_trainer, played
from tests.fixtures.trainings import same_state


def replay_of(trainer: Trainer) -> Any:
    (replay,) = trainer.replays
    assert isinstance(replay, EnvironmentReplay)
    return replay


def test_pieces_are_what_was_played_and_end_where_episodes_end() -> None:
    replay = replay_of(played(CORRIDOR_SPEC, 3))
    steps, total = replay.steps, 0
    for slot in range(replay.num_stored_episodes):
        n, seen = steps.length[slot], steps.observation[slot]
        total += n
        first = int(seen[0, STEP])
        np.testing.assert_array_equal(seen[: n + 1, STEP], first + np.arange(n + 1))
        np.testing.assert_array_equal(replay.replay.reward[slot, :n], first + 1 + np.arange(n))
        assert len(set(seen[: n + 1, LENGTH])) == 1
        is_over = seen[n, STEP] >= seen[n, LENGTH]
        assert steps.is_terminal[slot] == (is_over and seen[n, LENGTH] % 2 == 1)
        assert replay.replay.value[slot, n, 0] == 0 or not steps.is_terminal[slot]
    assert total == replay.num_decisions(np.arange(replay.num_stored_episodes)) <= 3 * 4 * 7
    assert replay.episodes >= steps.is_terminal.sum() > 0


@pytest.mark.parametrize("algorithm", ["gumbel", "puct"])
def test_illegal_actions_are_never_taken_and_have_no_target(algorithm: str) -> None:
    replay = replay_of(played(CORRIDOR_SPEC, 2, 1, f"search.algorithm={algorithm}", "train.reanalyze_interval=0"))
    took = set[int]()
    for slot in range(replay.num_stored_episodes):
        for k in range(replay.steps.length[slot]):
            is_even = replay.steps.observation[slot, k, STEP] % 2 == 0
            action, policy = replay.replay.action[slot, k], replay.replay.policy[slot, k, 0]
            took.add(int(action))
            assert is_even or (action != 2 and policy[2] == 0)
            assert policy.sum() == pytest.approx(1)
    assert took >= ({0, 1, 2} if algorithm == "puct" else {0, 1})


def test_value_targets_end_with_the_episode_and_bootstrap_where_a_piece_was_cut() -> None:
    replay = replay_of(played(CORRIDOR_SPEC, 3))
    r, steps = replay.replay, replay.steps
    config, ends = ValueTargetConfig(3, 0.9, 0.0, 0.0, 3), set[bool]()
    for slot in range(replay.num_stored_episodes):
        n = int(steps.length[slot])
        greedy = [r.action[slot, k] == np.argmax(r.policy[slot, k, 0]) for k in range(n)]
        for k in range(n):
            stop = k
            while stop < min(k + 3, n) and greedy[stop]:
                stop += 1
            if stop == k:
                continue
            worth = 0.0 if stop == n and steps.is_terminal[slot] else float(r.value[slot, stop, 0])
            expected = (
                sum(0.9 ** (i - k) * float(r.reward[slot, i]) for i in range(k, stop)) + 0.9 ** (stop - k) * worth
            )
            assert value_target(r, slot, k, 0, config) == pytest.approx(expected, rel=1e-5)
            ends.add(bool(stop == n and steps.is_terminal[slot]))
    assert ends == {True, False}


def test_windows_go_on_behind_a_terminal_state_and_stop_where_a_piece_was_cut() -> None:
    trainer = played(CORRIDOR_SPEC, 3)
    replay = replay_of(trainer)
    batch, behind = trainer.batch, set[float]()
    for b in range(8):
        length, step = batch.features[b]
        for k in range(batch.weight.shape[1]):
            if step + k < length:  # a decision, unless the iteration ended before
                continue
            behind.add(float(batch.weight[b, k]))
            assert batch.value[b, k] == 0 or batch.weight[b, k] == 0
            assert batch.weight[b, k] == (1.0 if length % 2 == 1 else 0.0) or batch.weight[b, : k + 1].min() == 0
    assert 1.0 in behind
    assert replay.steps.length.max() == 7


@pytest.mark.parametrize("settings", [[], ["train.per_alpha=0.6", "search.value_reuse=chance_child"]])
def test_threads_and_a_restart_change_nothing(settings: list[str]) -> None:
    straight = played("grid", 4, 1, *settings)
    assert same_state(straight, played("grid", 4, 2, *settings))
    arrays, state = played("grid", 2, 1, *settings).snapshot()
    resumed = env_trainer("grid", 2, *settings)
    resumed.restore({name: array.copy() for name, array in arrays.items()}, state)
    for _ in range(2):
        resumed.run_iteration()
    assert same_state(resumed, straight)
    assert any(actions for lanes in state["episodes"][0]["lanes"] for _, actions in lanes)  # episodes were going on


def test_a_game_of_gymnasium_goes_on_after_a_restart() -> None:
    pytest.importorskip("gymnasium", reason="gymnasium is not installed")
    straight = played("CartPole-v1", 3)
    arrays, state = played("CartPole-v1", 2).snapshot()
    resumed = env_trainer("CartPole-v1", 1)
    resumed.restore({name: array.copy() for name, array in arrays.items()}, state)
    resumed.run_iteration()
    assert same_state(resumed, straight)


def test_some_lanes_explore_and_the_others_do_not() -> None:
    calm, one = (replay_of(played(CORRIDOR_SPEC, 1, 1, f"train.random_episodes={count}")) for count in (0, 1))
    same = (calm._played.action[:, :7] == one._played.action[:, :7]).all(axis=1)
    assert same[1::2].all()
    assert not same.all()  # the first of each batch of two explores


def test_another_seed_plays_other_episodes() -> None:
    one, two = (replay_of(played("grid", 1, 1, f"train.seed={seed}")) for seed in (0, 1))
    assert (one.steps.observation[:4] != two.steps.observation[:4]).any()


def test_a_greedy_agent_plays_so_many_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, asked, choose = played(CORRIDOR_SPEC, 1), list[int](), GreedyPlayer.choose
    monkeypatch.setattr(GreedyPlayer, "choose", lambda *given: [asked.append(len(given[1])), choose(*given)][1])
    returns = play_greedily(CORRIDOR_SPEC, trainer.export_networks(), trainer.acting_search_config(), 5, 7)
    assert set(returns) <= {n * (n + 1) / 2 for n in range(2, 11)}
    assert len(returns) == 5
    assert sum(asked) == sum(int((2 * total) ** 0.5) for total in returns)  # episodes that are over are not searched
