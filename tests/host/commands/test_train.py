"""Training on several instruments, the best agent on the validation part, and stopping early."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from host.artifact.manifest import load_models
from host.evaluation import validation
from host.evaluation.validation import ValidationResult
from host.training.checkpoint import is_intact, read_header
from host.training.run_dir import BEST_CHECKPOINT
from models.learner import Learner
from tests.fixtures.command import Ended, Swt, new_command
from tests.fixtures.runs import LINES

VALIDATE = "train.validation_interval=1"


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Swt:
    return new_command(tmp_path, monkeypatch, capsys)


def train(command: Swt, *more: object) -> Ended:
    return command("train", *more, "--config", "tiny.toml", "--threads", 1, "--out", "r")


def write_pairs() -> None:
    """Bars of two instruments: those of the second are a hundred times as dear, and fewer."""
    Path("pairs").mkdir()
    Path("pairs/EURUSD.csv").write_text("".join(LINES))
    head, *rows = (line.rstrip().split(",") for line in LINES[:1000])
    dear = [[row[0], *(f"{100 * float(x):.3f}" for x in row[1:5]), *row[5:]] for row in rows]
    Path("pairs/USDJPY.csv").write_text("\n".join(",".join(row) for row in [head, *dear]) + "\n")


def rows_of(run: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]


def test_one_agent_learns_two_instruments_and_trades_each(command: Swt) -> None:
    write_pairs()
    done = train(command, "pairs", "--side", "ask", "--episodes", 8)
    assert done.code == 0, done.err
    assert "all 2 instruments in equal shares" in done.err
    together = json.loads(Path("r/together.json").read_text())
    assert together["verdict"]["verdict"] in ("edge", "no edge", "too little data")
    models = load_models(Path("r/model.swt"))
    assert [model.market_spec.profile.symbol for model in models] == ["EURUSD", "USDJPY"]
    assert [round(model.market_spec.market.pip_px, 6) for model in models] == [0.0001, 0.01]
    for symbol, model in zip(("EURUSD", "USDJPY"), models, strict=True):
        report = json.loads(Path("r", symbol, "report.json").read_text())
        assert report["source"]["title"].startswith(symbol)
        file = f"pairs/{symbol}.csv"
        start = model.manifest["data"]["test_first"]
        again = command("backtest", file, "--side", "ask", "--model", "r/model.swt", "--from", start, "--json")
        assert again.code == 0, again.err
        assert json.loads(again.out)["statistics"] == report["statistics"]
    resumed = train(command, "--resume", "--episodes", 8)
    assert resumed.code == 0, resumed.err
    assert "resuming after iteration 4" in resumed.err


def test_other_bars_of_one_of_two_instruments_are_refused(command: Swt) -> None:
    write_pairs()
    assert train(command, "pairs", "--side", "ask", "--episodes", 2).code == 0
    Path("pairs/USDJPY.csv").write_text(Path("pairs/USDJPY.csv").read_text().replace("1", "2", 1))
    refused = train(command, "--resume", "--episodes", 4)
    assert refused.code != 0
    assert "USDJPY" in refused.err or "the bars are not those" in refused.err


def scripted(monkeypatch: pytest.MonkeyPatch, rewards: list[float]) -> None:
    """The validation part pays these rewards, one after the other, then the last."""
    left = list(rewards)

    def trade(_: object) -> ValidationResult:
        return ValidationResult(left.pop(0) if len(left) > 1 else left[0], 1.0, 1, 0.5)

    monkeypatch.setattr(validation, "trade_validation_part", trade)


def best_step(run: str) -> int:
    with Path(run, "checkpoints", BEST_CHECKPOINT).open("rb") as file:
        assert is_intact(file)
        return int(read_header(file)["step"])


def test_the_best_agent_is_kept_and_exported_beside_the_last(command: Swt, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [0.1, 0.3, 0.3, 0.2])
    done = train(command, "bars.csv", "--episodes", 12, "--set", VALIDATE)
    assert done.code == 0, done.err
    assert best_step("r") == 3, "of equal ones the later"
    assert [row["validation_reward_per_bar"] for row in rows_of("r")] == [0.1, 0.3, 0.3, 0.2, 0.2, 0.2]
    assert "after iteration 3: r/best.swt" in done.err.replace("\\", "/")
    best, last = (load_models(Path("r", name))[0] for name in ("best.swt", "model.swt"))
    assert best.sha256 != last.sha256
    assert best.backtest_stats == type(best.backtest_stats)(), "the test part was not looked at for it"
    resumed = train(command, "--resume", "--episodes", 16)
    assert resumed.code == 0
    assert best_step("r") == 3, "a resumed run remembers the best"


def test_patience_ends_a_training_with_its_best_agent(command: Swt, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [0.1, 0.3, 0.2])
    done = train(command, "bars.csv", "--episodes", 100, "--early-stopping", 3, "--set", VALIDATE)
    assert done.code == 0, done.err
    assert [row["iteration"] for row in rows_of("r")] == [1, 2, 3, 4, 5]
    assert "stopped early: 3 validations in a row were not better than iteration 2" in done.err
    assert not Path("r/best.swt").exists()
    again = train(command, "--resume", "--early-stopping", 3, "--episodes", 100)
    assert again.code == 0
    assert len(rows_of("r")) == 5, "it had ended"


def test_patience_is_that_of_the_whole_run(command: Swt, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [0.1, 0.3, 0.2])
    assert train(command, "bars.csv", "--episodes", 8, "--set", VALIDATE).code == 0
    resumed = train(command, "--resume", "--episodes", 100, "--early-stopping", 3)
    assert resumed.code == 0, resumed.err
    assert [row["iteration"] for row in rows_of("r")] == [1, 2, 3, 4, 5]


def files_of(run: str) -> dict[str, bytes]:
    """Models and checkpoints of a run."""
    return {path.name: path.read_bytes() for kind in ("*.swt", "checkpoints/*") for path in Path(run).glob(kind)}


def damage(run: str, *names: str) -> None:
    for name in names:
        Path(run, "checkpoints", name).write_bytes(b"x")


NEWEST = "step-000000005.ckpt"


@pytest.mark.parametrize(("damaged", "goes_on"), [([NEWEST], 5), ([NEWEST, BEST_CHECKPOINT], 4)])
def test_the_best_agent_is_never_of_a_lost_future(
    damaged: list[str], goes_on: int, command: Swt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest checkpoint is damaged, and it was the best: its copy is resumed from, or both are made again."""
    monkeypatch.setattr("host.analysis.html_report.render_html", lambda _: "<p>")
    rewards = {1: 0.1, 2: 0.3, 3: 0.2, 4: 0.2, 5: 0.4, 6: 0.2}

    def trade(trainer: Any) -> ValidationResult:
        return ValidationResult(rewards[trainer.iteration], 1.0, 1, 0.5)

    monkeypatch.setattr(validation, "trade_validation_part", trade)
    assert train(command, "bars.csv", "--episodes", 12, "--set", VALIDATE).code == 0
    straight = files_of("r")
    Path("r").rename("straight")
    assert train(command, "bars.csv", "--episodes", 10, "--set", VALIDATE).code == 0
    damage("r", *damaged)
    resumed = train(command, "--resume", "--episodes", 8)  # no more than there is
    assert f"resuming after iteration {goes_on}," in resumed.err
    assert resumed.code == 0, resumed.err
    assert Path("r/best.swt").exists() == (goes_on == 5), "of what was resumed from, or none"
    assert train(command, "--resume", "--episodes", 12).code == 0
    assert files_of("r") == straight


@pytest.mark.parametrize("damaged", [[4, 5], [3, 4, 5]], ids=str)
def test_a_rollback_forgets_the_best_agent_of_the_lost_future(
    damaged: list[int], command: Swt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault in iteration 6 leads back to iteration 3, or to the beginning: what is best now, is kept again."""
    monkeypatch.setattr("host.analysis.html_report.render_html", lambda _: "<p>")
    scripted(monkeypatch, [0.1, 0.3, 0.2, 0.2, 0.4, 0.35])
    learn, faults = Learner.learn, list[int]()

    def learn_until_a_fault(learner: Learner, batch: Any, *rest: Any) -> Any:
        if learner.step == 10 and not faults:
            faults.append(learner.step)
            damage("r", BEST_CHECKPOINT, *(f"step-{step:09d}.ckpt" for step in damaged))
            batch.value[1, 1] = np.nan
        return learn(learner, batch, *rest)

    monkeypatch.setattr(Learner, "learn", learn_until_a_fault)
    done = train(command, "bars.csv", "--episodes", 12, "--set", VALIDATE)
    assert done.code == 0, done.err
    assert f"back to iteration {0 if 3 in damaged else 3}, " in done.err
    assert best_step("r") == 6, "of equal ones the later"


def test_a_validation_trades_the_validation_part_alone(command: Swt) -> None:
    done = train(command, "bars.csv", "--episodes", 6, "--set", "train.validation_interval=2")
    assert done.code == 0, done.err
    rows = rows_of("r")
    assert [row["iteration"] for row in rows if "validation_net_pips" in row] == [2]
    assert train(command, "bars.csv", "--episodes", 6).code == 3
    off = command(
        *("train", "bars.csv", "--config", "tiny.toml", "--out", "off", "--episodes", 6),
        *("--set", "train.validation_interval=0"),
    )
    assert off.code == 0
    assert not any("validation_net_pips" in row for row in rows_of("off"))
    assert not Path("off/best.swt").exists()


def test_a_backtest_is_noted_under_the_training_of_its_agent(command: Swt) -> None:
    words = ("train", "bars.csv", "--config", "tiny.toml", "--episodes", 4)
    assert command(*words, "--out", "r").code == command(*words, "--out", "q", "--seed", 1).code == 0
    done = command("backtest", "bars.csv", "--model", "r/model.swt", "--json")
    assert json.loads(done.out)["significance"]["trials"] == 2
    rows = [json.loads(line) for line in Path("trials.jsonl").read_text().splitlines()]
    assert [row["event"] for row in rows] == ["begin", "end", "begin", "end", "backtest"]
    assert rows[-1]["trial"] == rows[0]["trial"] != rows[2]["trial"]
    Path("elsewhere").mkdir()
    Path("elsewhere/model.swt").write_bytes(Path("r/model.swt").read_bytes())
    Path("trials.jsonl").rename("kept.jsonl")
    assert command("backtest", "bars.csv", "--model", "elsewhere/model.swt").code == 0
    assert not Path("trials.jsonl").exists(), "a trading machine keeps no ledger"
