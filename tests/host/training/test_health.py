"""A number that is not finite is named, undone once with a smaller step, and ends the training if it comes again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from host.commands import train
from host.commands.train import TrainingError, TrainOptions, train_files
from host.config import load_config
from host.data.formats import ReadOptions
from host.training.feature_store import FeatureStore
from host.training.health import FAULT_REGION, decision_metrics, policy_drift
from host.training.market_replay import MarketReplay
from host.training.run_dir import Checkpoint
from host.training.trainer import Budget, Trainer
from kernels.learning.replay_buffer import new_replay_buffer
from models import learner as module
from models.learner import Learner
from models.params import as_views
from tests.fixtures.runs import LINES, TINY
from tests.fixtures.trainings import dataset, model_bytes, same_state, tiny, trained

Plant = Callable[[Trainer], None]


def copied(trainer: Trainer) -> Checkpoint:
    arrays, state = trainer.snapshot()
    return Checkpoint(trainer.iteration, {name: array.copy() for name, array in arrays.items()}, dict(state))


def new_trainer(checkpoint: Checkpoint | None) -> Trainer:
    trainer = Trainer([dataset(tiny())], tiny(), 1)
    if checkpoint is not None:
        trainer.restore(checkpoint.arrays, checkpoint.state)
    trainer.load_checkpoint = lambda: checkpoint
    return trainer


def in_weight(trainer: Trainer) -> None:
    as_views(trainer.learner.params, trainer.learner.shape).value_w[3, 2] = np.nan


def in_target(trainer: Trainer) -> None:
    as_views(trainer.target_params, trainer.learner.shape).chance_logits_b[1] = np.inf


def once(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, fault: Callable[..., None], times: int = 1) -> None:
    """Let `fault` act on self and the arguments before the first calls of a method."""
    method, left = getattr(owner, name), [times]

    def call(self: Any, *arguments: Any) -> Any:
        if left[0] > 0:
            left[0] -= 1
            fault(self, *arguments)
        return method(self, *arguments)

    monkeypatch.setattr(owner, name, call)


def in_gradient(parts: Any, first: int, stop: int) -> None:
    as_views(parts[1], trained(2).learner.shape).policy_w[0, 0] = np.nan


def in_reward(market: MarketReplay, slots: Any) -> None:
    market.replay.reward[slots[1], 4] = np.nan


def in_value(learner: Learner, batch: Any, *_: Any) -> None:
    batch.value[5, 2] = np.nan


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (in_weight, "iteration 2: not finite: params value_w"),
        (in_target, "iteration 2: not finite: target chance_logits_b"),
        ((module, "reduce_gradients", in_gradient), "learning step 6: not finite: gradient_norm, gradient of policy"),
        ((MarketReplay, "check_rewards", in_reward), "the reward of the bar that closed at 2020-01-0"),
        ((Learner, "learn", in_value), "learning step 6: not finite: value, gradient_norm, gradient of "),
    ],
    ids=["weight", "target", "gradient", "reward", "value target"],
)  # fmt: skip
def test_a_fault_is_named_and_undone_once_with_half_the_step(
    fault: Any, says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = copied(trained(2))
    trainer = new_trainer(checkpoint)
    with monkeypatch.context() as patch:
        once(patch, *fault) if isinstance(fault, tuple) else fault(trainer)
        row = trainer.run_iteration()
    assert row["event"].startswith(says)
    assert row["event"].endswith("; back to iteration 2, learning rate times 0.5")
    assert capsys.readouterr().err.splitlines() == [row["event"]]
    # the same as a run that was stopped there and resumed with half the step
    resumed = new_trainer(checkpoint._replace(state={**checkpoint.state, "rate_factor": 0.5, "rolled_back": 2}))
    assert "event" not in resumed.run_iteration()
    assert same_state(trainer, resumed)
    assert not same_state(trainer, trained(3))
    trainer.run_iteration()
    resumed = new_trainer(copied(resumed))
    resumed.run_iteration()
    assert model_bytes(trainer, tmp_path) == model_bytes(resumed, tmp_path)


def test_a_fault_of_the_first_iteration_leads_back_to_the_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = new_trainer(None)
    with monkeypatch.context() as patch:
        once(patch, Learner, "learn", in_value)
        assert trainer.run_iteration()["event"].endswith("; back to iteration 0, learning rate times 0.5")
    fresh = Trainer([dataset(tiny())], tiny(), 1)
    fresh.learner.rate_factor, fresh.rolled_back = 0.5, 0
    fresh.run_iteration()
    assert same_state(trainer, fresh)


def test_a_second_fault_soon_after_ends_the_training_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = new_trainer(copied(trained(2)))
    once(monkeypatch, Learner, "learn", in_value, times=2)
    way_out = r"^learning step 6: not finite: value, .*: begin a new run with --set train.learning_rate=0.00075$"
    with pytest.raises(FloatingPointError, match=way_out):
        trainer.run_iteration()
    assert np.isfinite(trainer.learner.params).all()


def test_a_fault_far_from_the_last_rollback_is_undone_again(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = copied(trained(2))
    for rolled_back, factor in ((2 - FAULT_REGION, 0.25), (3 - FAULT_REGION, None)):
        trainer = new_trainer(
            checkpoint._replace(state={**checkpoint.state, "rate_factor": 0.5, "rolled_back": rolled_back})
        )
        in_weight(trainer)
        if factor is None:
            with pytest.raises(FloatingPointError, match="params value_w"):
                trainer.run_iteration()
        else:
            assert trainer.run_iteration()["event"].endswith(f"learning rate times {factor}")


def test_without_a_run_a_fault_ends_the_training() -> None:
    trainer = Trainer([dataset(tiny())], tiny(), 1)
    in_weight(trainer)
    with pytest.raises(FloatingPointError, match=r"params value_w$"):
        trainer.run_iteration()


def test_a_feature_that_is_not_finite_is_named_by_its_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataset(tiny())
    data.market_spec.normaliser.scale[1] = np.nan
    store = FeatureStore(data, 40, 1, 0)
    with pytest.raises(FloatingPointError, match=r"^feature \S+ of the bar that closed at 2020-01-01T05:00:00Z is not"):
        store.acquire(np.array([300]), 4)


def test_metrics_of_decisions_are_those_of_the_field() -> None:
    replay = new_replay_buffer(3, 4, 3, num_positions=2)
    replay.held[1] = [0, 1, 1, 0, 0]
    replay.policy[1] = np.array([0.5, 0.5, 0.0], np.float32)
    replay.policy[1, 1:3, 1] = [1.0, 0.0, 0.0]  # where position 1 was held: certain
    replay.search_value[1, :, 0], replay.search_value[1, :, 1] = [0, 9, 9, 3], [9, 1, 2, 9]
    replay.value[1, :, 0], replay.value[1, :, 1] = [0.5, 9, 9, 3.5, 9], [9, 1.5, 2.5, 9, 9]  # half too much each time
    row = decision_metrics(replay, np.array([1]))
    assert row == {"policy_entropy": pytest.approx(np.log(2) / 2), "explained_variance": 1.0}
    replay.value[1] = 7.0
    assert decision_metrics(replay, np.array([1]))["explained_variance"] == pytest.approx(0.0)
    assert decision_metrics(replay, np.array([0])) == {"policy_entropy": 0.0, "explained_variance": 0.0}


def test_drift_is_the_divergence_of_new_targets_from_old() -> None:
    old, new = np.array([0.5, 0.5, 0.0], np.float32), np.array([0.75, 0.25, 0.0], np.float32)
    expected = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    assert policy_drift(np.tile(old, (2, 3, 1, 1)), np.tile(new, (2, 3, 1, 1))) == pytest.approx(expected)
    assert policy_drift(np.zeros((0, 3, 1, 3), np.float32), np.zeros((0, 3, 1, 3), np.float32)) == 0.0


def test_a_row_of_metrics_has_memory_speeds_and_health() -> None:
    trainer = Trainer([dataset(tiny())], tiny(), 1)
    rows = [trainer.run_iteration() for _ in range(3)]
    assert same_state(trainer, trained(3))
    for row in rows:
        seconds = row["collect_s"] + row["reanalyze_s"] + row["learn_s"]
        assert row["episodes_per_minute"] == pytest.approx(4 * 60 / seconds)
        assert row["decisions_per_s"] == pytest.approx(4 * 24 / row["collect_s"])
        assert row["steps_per_s"] == pytest.approx(3 / row["learn_s"])
        assert row["rss_mb"] > 50 or not Path("/proc/self/status").exists()
        assert 0 < row["policy_entropy"] < np.log(3)
        assert row["explained_variance"] <= 1
        assert row["gradient_norm"] > 0
    # with an interval of 1 the third iteration is the first that gives targets anew
    assert [row["policy_target_drift"] > 0 for row in rows] == [row["reanalyzed"] > 0 for row in rows]
    assert rows[-1]["policy_target_drift"] > 0


def test_a_run_goes_back_to_its_checkpoint_or_ends_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bars.csv").write_text("".join(LINES))
    Path("tiny.toml").write_text(TINY)
    request = [Path("bars.csv")], ReadOptions(), load_config(Path("tiny.toml"))

    def at_step_2(learner: Learner, batch: Any, *_: Any) -> None:
        batch.value[5, 2] = np.nan if learner.step == 2 else batch.value[5, 2]

    with monkeypatch.context() as patch:
        once(patch, Learner, "learn", at_step_2, times=3)  # of the first iteration two, of the second the first
        patch.setattr(train, "finish_training", lambda *_: {})  # its report is no matter here
        patch.setattr(train, "print_results", lambda *_: None)
        train_files(*request, TrainOptions(Path("mended"), Budget(episodes=6)))
    rows = [json.loads(line) for line in Path("mended/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["iteration"] for row in rows] == [1, 2, 3]
    assert ["event" in row for row in rows] == [False, True, False]
    assert "; back to iteration 1, learning rate times 0.5" in rows[1]["event"]
    once(monkeypatch, Learner, "learn", at_step_2, times=99)
    ways_out = r"not finite: value, .* --set train.learning_rate=0.00075; \S+ keeps all up to iteration 1; go on: "
    with pytest.raises(TrainingError, match=ways_out) as stop:
        train_files(*request, TrainOptions(Path("stopped"), Budget(episodes=6)))
    assert stop.value.exit_code == 1
    assert "\n" not in str(stop.value)
