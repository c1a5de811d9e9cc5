"""`train --env`: a run that resumes, its files, and what it refuses in one line with a way out."""

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import host.commands.train_env as command
from host.commands.report import remake_report
from host.commands.train_env import base_config
from host.config import ConfigError
from host.training.environments import UnplayableError, open_environment
from kernels.environments.game_2048 import VALUE_LIMIT
from swt import app
from tests.fixtures.environments import SMALL

ROOT = Path(__file__).parents[3]

SETTINGS = [word for setting in (*SMALL, "train.validation_interval=1") for word in ("--set", setting)]


def train(*words: str) -> dict:
    done = CliRunner().invoke(app, ["train", "--threads", "1", "--json", *words, *SETTINGS], catch_exceptions=True)
    if done.exception is not None:
        raise done.exception
    return json.loads(done.stdout.splitlines()[-1])


def test_a_run_resumes_to_the_same_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "TEST_EPISODES", 2)
    straight = train("--env", "grid", "--steps", "6", "--out", str(tmp_path / "a"))
    train("--env", "grid", "--steps", "2", "--out", str(tmp_path / "b"))
    resumed = train("--steps", "6", "--resume", "--out", str(tmp_path / "b"))  # which knows its environment
    assert {**straight, "run": ""} == {**resumed, "run": ""}
    assert straight["updates"] in (2, 4, 6)  # of the best agent
    assert (tmp_path / "a" / "checkpoints" / "best.ckpt").exists()
    for name in ("root", "afterstate", "dynamics"):
        file = f"networks/{name}.onnx"
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    with pytest.raises(Exception, match="holds a run"):
        train("--env", "grid", "--steps", "2", "--out", str(tmp_path / "a"))
    with pytest.raises(Exception, match="the run learns grid, asked for is tests"):
        train("--env", "tests.fixtures.environments:CORRIDOR", "--steps", "9", "--resume", "--out", str(tmp_path / "a"))
    with pytest.raises(Exception, match="its config differs"):
        train("--env", "grid", "--steps", "9", "--resume", "--out", str(tmp_path / "a"), "--set", "train.seed=5")


def test_the_report_of_a_run_shows_its_learning_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bokeh", reason="without Bokeh there is no page")
    monkeypatch.setattr(command, "TEST_EPISODES", 2)
    words = "--set", "train.random_episodes=0", "--steps", "4"  # the return of a lane that explores is not shown
    train("--env", "tests.fixtures.environments:CORRIDOR", *words, "--out", str(tmp_path))
    remake_report(tmp_path, None, 1400)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    result, _, losses = text.partition('<h2 class="group">Losses')
    assert losses
    assert "<h2>Mean return</h2>" in result


def test_values_of_2048_reach_as_far_as_its_discount() -> None:
    assert 0.3 / (1 - base_config("2048").search.discount) == pytest.approx(VALUE_LIMIT)


def test_the_environment_of_the_readme_is_learnt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gymnasium", reason="gymnasium is not installed")
    monkeypatch.setattr(command, "TEST_EPISODES", 2)
    text = (ROOT / "host" / "README.md").read_text(encoding="utf-8")
    code = text.split("<!-- hallway.py -->\n```python\n")[1].split("```")[0]
    (tmp_path / "hallway.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert train("--env", "hallway:Hallway", "--steps", "2", "--out", str(tmp_path / "run"))["updates"] == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--env", "grid", "--memory", "4GB"], "--env grid: --memory goes with bars"),
        (["--env", "grid", "bars.csv"], "--env grid: bars.csv goes with bars"),
        (["--env", "grid", "--set", "search.algorithm=market"], "wants a market; --env wants gumbel or puct"),
    ],
)
def test_what_goes_with_bars_alone_is_refused(words: list[str], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        train(*words, "--out", str(tmp_path / "run"))
    assert not (tmp_path / "run" / "config.toml").exists()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("NoSuchGame-v0", "give an id as CartPole-v1, module:Class, or one of grid, 2048"),
        ("Pendulum-v1", "this trainer plans over Discrete ones, at most 127: wrap it"),
        ("no_such_module:Game", "No module named 'no_such_module'; write it as module:Class"),
    ],
)
def test_an_environment_that_cannot_be_played_is_named_with_a_way_out(name: str, says: str) -> None:
    pytest.importorskip("gymnasium", reason="gymnasium is not installed")
    with pytest.raises(UnplayableError, match=says) as caught:
        open_environment(name)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"--env {name}: ")
    assert caught.value.exit_code == 4


def test_without_gymnasium_a_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(
        UnplayableError, match="gymnasium is not installed: pip install gymnasium, or take one of grid, 2048"
    ):
        open_environment("CartPole-v1")
    assert open_environment("grid").actions == 4  # which needs none
