"""LightZero and mctx on CartPole-v1: their clock, their rows, and what is said where they are missing."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from host.bench import cartpole_rivals as rivals
from host.bench.options import BenchOptions
from host.bench.process import Measurement

FAKES = {  # what lightzero_cartpole.py uses of LightZero: 2 s of training and 30 s of evaluation take turns
    "torch.py": "def set_num_threads(count): assert count == 1",
    "lzero/worker.py": """
import time
now = [7.0]
time.process_time = lambda: now[0]
class MuZeroEvaluator:
    def eval(self, save, updates, steps):
        now[0] += 30
        score = min(500.0, 10.0 + steps)
        return score >= 475, {"eval_episode_return_mean": score}
""",
    "lzero/entry.py": """
from lzero.worker import MuZeroEvaluator, now
def train_muzero(configs, seed, max_env_step):
    main, create = configs
    env = main.env
    assert (env.env_id, env.stop_value, main.policy.cuda) == ("CartPole-v1", 475, False)
    assert create.env_manager.type == "base"
    if seed == 13: raise ValueError("no luck")
    for i in range(9):
        stop, _ = MuZeroEvaluator().eval(None, 100 * i, 200 * i)
        if stop: break
        now[0] += 2
""",
    "zoo/classic_control/cartpole/config/cartpole_muzero_config.py": """
from types import SimpleNamespace as N
main_config = N(env=N(env_id="CartPole-v0", stop_value=200), policy=N(cuda=True))
create_config, max_env_step = N(env_manager=N(type="subprocess")), 100000
""",
}


@pytest.fixture
def lightzero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A Python with an imitation of LightZero."""
    for name, text in FAKES.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    (tmp_path / "lzero/__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return sys.executable


def test_evaluation_stops_the_clock_of_lightzero(
    lightzero: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(Path(lightzero).parent)
    monkeypatch.setenv(rivals.LIGHTZERO_PYTHON, Path(lightzero).name)
    monkeypatch.setattr(rivals, "find_spec", lambda _: None)  # no mctx
    (row,) = rivals.cartpole_rivals(BenchOptions(seeds=1))
    assert (row["score"], row["decisions"], row["updates"]) == (500.0, 600, 300)  # the first evaluation at the goal
    assert (row["seconds"], row["steps_per_s"]) == (6.0, 100)
    assert "without mctx: pip install mctx" in capsys.readouterr().err


def test_a_training_of_lightzero_ends_with_its_minutes(lightzero: str, capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = rivals.train_lightzero(lightzero, 0, 4 / 60)
    assert (row["score"], row["decisions"]) == (410.0, 400)
    assert "LightZero, seed 0: not within 4 s; best score 410" in capsys.readouterr().err


def test_a_training_of_lightzero_that_fails_says_why(lightzero: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert rivals.train_lightzero(lightzero, 13, 1.0) == []
    (line,) = capsys.readouterr().err.splitlines()
    assert "LightZero ended with 1" in line
    assert line.endswith("ValueError: no luck")


@pytest.mark.parametrize("python", [sys.executable, "no/python"])
def test_rivals_that_are_missing_are_left_out(
    python: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(rivals.LIGHTZERO_PYTHON, python)
    monkeypatch.setattr(rivals, "HAS_LIGHTZERO", "raise SystemExit(1)")
    monkeypatch.setattr(rivals, "find_spec", lambda _: None)
    assert rivals.cartpole_rivals(BenchOptions()) == []
    lightzero, mctx = capsys.readouterr().err.splitlines()
    assert f"{Path(python).absolute()} has no LightZero: " in lightzero
    assert "pip install lightzero" in lightzero
    assert rivals.LIGHTZERO_PYTHON in lightzero
    assert mctx.endswith("pip install mctx")


def test_acting_is_compared_by_environment_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter((0.5, 2.0))
    monkeypatch.setattr(
        rivals, "measure_in_processes", lambda setups, _: [Measurement(next(seconds), 0.0, {}) for _ in setups]
    )
    ours, mctx = rivals.compare_acting(8, 1)
    assert (ours["steps_per_s"], mctx["steps_per_s"]) == (16, 4)
    assert mctx["environment"] == "CartPole-v1, mctx acting alone, B = 8"
    assert [*mctx] == [*rivals.lightzero_row([[1.0, 1, 1, 500.0]], 0)]  # rows of one table


@pytest.mark.parametrize("impl", ["ours", "imitation", "mctx"])
def test_every_lane_acts(impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gymnasium")
    if impl == "mctx":
        pytest.importorskip("mctx")
    if impl == "imitation":
        search = SimpleNamespace(compile_search=lambda *_: lambda x: (np.ones(len(x), np.int32), None))
        monkeypatch.setitem(sys.modules, "host.bench.mctx_search", search)  # type: ignore[arg-type]
    lanes, open_lanes = list[rivals.Lanes](), rivals.Lanes
    monkeypatch.setattr(rivals, "limit_cores", lambda _: None)  # the cores of the tests
    monkeypatch.setattr(rivals, "Lanes", lambda *of: lanes.append(open_lanes(*of)) or lanes[0])
    work = rivals.acting_work(impl, 3)
    for _ in range(20):
        work.calls[0]()
    (state,) = [lane.state() for lane in lanes]
    assert all(episode or len(actions) == 20 for episode, actions in state)
    actions = {action for _, actions in state for action in actions}
    assert actions <= {0, 1}
    assert actions == {1} if impl == "imitation" else actions
