"""`bench environments`: what it measures, and in its long mode that the known ground is reached."""

import os
from dataclasses import replace

import numpy as np
import pytest

from host.bench import environments
from host.bench.all import run_bench
from host.bench.environments import GROUNDS, grid_fraction, new_trainer
from host.bench.options import BenchError, BenchOptions
from kernels.environments import grid
from tests.fixtures.environments import SMALL

LONG = pytest.mark.skipif("SWT_ENVIRONMENTS" not in os.environ, reason="set SWT_ENVIRONMENTS=1: minutes of training")
TINY = BenchOptions(only="grid", seeds=1, rival_minutes=1e-4, settings=tuple(SMALL))


def test_a_row_says_how_far_a_training_came() -> None:
    (row,) = run_bench("environments", TINY)
    assert row["environment"] == "grid"
    assert row["decisions"] == 4 * 7 * row["updates"] / 2
    assert -4 < row["score"] <= 1
    with pytest.raises(BenchError, match="--only chess: there is CartPole-v1, grid, 2048"):
        run_bench("environments", BenchOptions(only="chess"))


def test_the_grid_is_learnt_within_seconds() -> None:
    trainer, found = new_trainer(GROUNDS[1], 1), list[float]()
    for iteration in range(12):
        trainer.run_iteration()
        found += [grid_fraction(trainer)] if iteration in (0, 7, 9, 11) else []
    assert found[0] < 0  # the pit costs more than the goal pays
    assert max(found) > 0.9


def test_the_row_of_2048_stands_beside_those_of_players(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "TEST_EPISODES", 2)
    rows = run_bench("environments", replace(TINY, only="2048"))
    assert [row["environment"] for row in rows] == ["2048", "2048, greedy", "2048, expectimax-2"]
    for row in rows:
        assert row["score"] > 0
        assert (row["score"] * 2) % 4 == 0  # points are multiples of 4
        assert row["goal"] is None


@LONG
@pytest.mark.parametrize("ground", GROUNDS[:2], ids=lambda ground: ground.environment)
def test_the_known_ground_is_reached(ground) -> None:  # type: ignore[no-untyped-def]
    row, *_ = run_bench("environments", BenchOptions(threads=2, only=ground.environment, seeds=1, rival_minutes=3.0))
    assert row["score"] >= ground.goal
    assert row["seconds"] < 180


def test_the_optimum_of_the_grid_is_that_of_its_steps() -> None:
    """Without slips the best way is the shortest one around the pit; no policy is worth more than the optimum."""
    best = grid.solve_grid(0.9)
    rng = np.random.default_rng(0)
    assert all(grid.policy_return(rng.integers(0, 4, grid.CELLS), 0.9) < best for _ in range(20))
    value = np.zeros(grid.CELLS)
    for _ in range(200):
        value = grid.transition_values(value, 0.9).max(axis=1)
    assert grid.policy_return(grid.transition_values(value, 0.9).argmax(axis=1), 0.9) == pytest.approx(best)
    above = grid.GOAL - grid.SIZE  # the cell above the goal: down pays 1, a slip to a side a step
    side = grid.transition_values(value, 0.9)[above]
    landed = 0.1 * (2 * grid.STEP_REWARD + 0.9 * (value[above] + value[above - 1]))
    assert side[2] == pytest.approx(0.8 * grid.GOAL_REWARD + landed)
