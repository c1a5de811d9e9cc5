"""A run goes on as it began or not at all; a refused start leaves nothing; what is printed runs as printed."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

import swt
from host import console as progress
from host.artifact.manifest import load_model
from host.artifact.networks import BacktestStats
from host.commands import train, train_report, training_spec
from host.commands.train import TrainOptions, train_files
from host.commands.training_spec import FLAG_NAMES, flag_name, run_to_resume
from host.config import Config, load_config
from host.data.formats import ReadOptions
from host.training import run_dir as run
from host.training.run_dir import latest_run, open_run_dir
from host.training.trainer import Budget, Trainer
from host.walkforward.trials import read_ledger
from models.learner import Learner
from tests.fixtures.command import Ended, Swt, new_command
from tests.fixtures.paths import ROOT
from tests.fixtures.runs import LINES, printed

OTHER = {  # another value of each reading option
    "symbol": "GBPUSD",
    "spread_unit": "pips",
    "side": "mid", "timezone": "Europe/Athens", "label": "close", "spread_pips": 2.5, "pip": 0.001, "point": 0.1,
    "dates": "dmy", "interval_s": 7200, "drop_bad": True,
}  # fmt: skip


SO_FAR = ", runs/0001/model-so-far.swt is the model so far"


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Swt:
    return new_command(tmp_path, monkeypatch, capsys)


def begin(command: Swt, *more: object, episodes: int = 4) -> Ended:
    return command("train", "bars.csv", "--config", "tiny.toml", "--episodes", episodes, "--threads", 1, *more)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "lock"
    }


def test_every_reading_option_is_a_flag_of_train() -> None:
    options = {option for word in typer.main.get_command(swt.app).commands["train"].params for option in word.opts}  # type: ignore[attr-defined]
    names = {*ReadOptions().explicit()}
    assert set(FLAG_NAMES) <= names
    assert {flag_name(name) for name in names - {"interval_s"}} <= options


def test_a_resumed_run_reads_as_it_began(command: Swt) -> None:
    """Without a word about them: bars, spread, side, label, clock and dates are the run's own, to the byte."""
    reading = ("--spread", 3.5, "--side", "mid", "--label", "close", "--timezone", "Europe/Athens", "--dates", "dmy")
    assert begin(command, *reading, "--out", "straight", episodes=8).code == 0
    assert begin(command, *reading, "--out", "halves").code == 0
    done = command("train", "--resume", "--out", "halves", "--episodes", 8)
    assert done.code == 0, done.err
    assert "resuming after iteration 2, 4 episodes" in done.err
    assert Path("halves/model.swt").read_bytes() == Path("straight/model.swt").read_bytes()
    (backtest, act) = printed(done.err)
    for flag, value in zip(reading[::2], reading[1::2], strict=True):
        assert backtest[backtest.index(flag) + 1] == act[act.index(flag) + 1] == str(value)


def test_another_reading_is_refused_by_the_name_of_its_flag(command: Swt, tmp_path: Path) -> None:
    assert begin(command, "--spread", 1.5, "--out", "r").code == 0
    before, stored = files(Path("r")), ReadOptions(spread_pips=1.5)
    for name in ReadOptions().explicit():
        given = ReadOptions(**{name: OTHER[name]})
        with pytest.raises(run.RunError) as refusal:
            train_files([], given, load_config(Path("tiny.toml")), TrainOptions(Path("r"), Budget(episodes=8), True, 1))
        value = getattr(stored, name)
        assert refusal.value.exit_code == 3
        assert f"{flag_name(name)}: the run has {'nothing' if value is None else value}" in str(refusal.value)
        assert f"asked for is {OTHER[name]}" in str(refusal.value)
    assert files(Path("r")) == before
    said = begin(command, "--spread", 1.5, "--resume", "--out", "r", "--set", "train.learning_rate=0.05", "--seed", 0)
    assert said.code == 3
    assert "train.learning_rate: the run has 0.003, asked for is 0.05" in said.err
    assert begin(command, "--spread", 1.5, "--resume", "--out", "r", "--set", "train.learning_rate=0.003").code == 0


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [("config.toml", "seed = 0", "seed = 1", "train.seed: the checkpoint has 0, config.toml 1"),
     ("config.toml", "commission = 0.0", "commission = 0.3", "commission: the checkpoint has 0.0, config.toml 0.3"),
     ("config.toml", "seed = 0", "seed = -1", "train.seed: -1 is not a number from 0"),
     ("config.toml", "seed = 0", "seed = ", "config.toml"),
     ("data.toml", "spread_pips = 1.5", "spread_pips = 0.5",
      "reading.spread_pips: the checkpoint has 1.5, data.toml 0.5"),
     ("data.toml", "drop_bad", "drop_good", "drop_good"),
     ("data.toml", "[reading]", "[read", "data.toml")],
)  # fmt: skip
def test_a_changed_file_of_a_run_is_refused_by_name(command: Swt, file: str, old: str, new: str, says: str) -> None:
    assert begin(command, "--spread", 1.5, "--out", "r").code == 0
    path = Path("r", file)
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    before = files(Path("r"))
    done = command("train", "--resume", "--out", "r", "--episodes", 8)
    assert (done.code, done.out) == (3, "")
    assert says in done.err.splitlines()[-1]
    assert files(Path("r")) == before


def test_other_bars_and_another_program_are_refused(command: Swt, monkeypatch: pytest.MonkeyPatch) -> None:
    assert begin(command, "--out", "r").code == 0
    Path("other.csv").write_text("".join(LINES[:-1]))
    before = files(Path("r"))
    other = command("train", "other.csv", "--resume", "--out", "r", "--episodes", 8)
    assert (other.code, "not those that r was begun with" in other.err) == (4, True)
    Path("bars.csv").rename("moved.csv")
    assert command("train", "--resume", "--out", "r", "--episodes", 8).code == 4  # the file it names is gone
    assert command("train", "moved.csv", "--resume", "--out", "r", "--episodes", 4).code == 0
    monkeypatch.setattr(training_spec, "program_digest", lambda: "another")
    done = command("train", "moved.csv", "--resume", "--out", "r", "--episodes", 8)
    assert done.code == 3
    assert re.search(r"program: the checkpoint has \w{16}, this program is another; check out the version", done.err)
    after = files(Path("r"))
    kept = [
        name for name in before if not re.search(r"model|report", name)
    ]  # they name the file, and the report a speed
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}


@pytest.mark.parametrize(
    ("code", "words"),
    [(3, ["bars.csv", "--set", "market.reward=sharpe"]), (3, ["bars.csv", "--set", "train.num_simulations=0"]),
     (3, ["bars.csv", "--seed", 2**32]), (3, ["bars.csv", "--minutes", "nan"]),
     (3, ["bars.csv", "--config", "none.toml"]), (4, ["none.csv"]),
     (4, ["bad.csv"]), (4, ["bars.csv", "--set", "market.episode_length=1190"]),
     (4, ["bars.csv", "--timezone", "Mars"]), (2, ["bars.csv", "--out", "bars.csv/x"]),
     (2, ["bars.csv", "--out", "bars.csv"]),
     (3, ["bars.csv", "--out", "old"])],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_refused_start_leaves_no_run_behind(command: Swt, code: int, words: list[Any]) -> None:
    Path("bad.csv").write_text("".join([*LINES[:700], LINES[600], *LINES[700:]]))
    Path("old").mkdir()
    Path("old/config.toml").write_text("mine")
    before = files(Path())
    for more in ([], ["--resume"]) if code != 3 or "old" not in words else ([],):
        done = command("train", *words, "--episodes", 4, *more)
        assert (done.code, done.out) == (code, "")
        assert done.err.splitlines()[-1].startswith("swt: ")
        assert files(Path()) == before
        assert {path.name for path in Path().iterdir()} == {"bars.csv", "tiny.toml", "bad.csv", "old"}


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_plain_runs_are_numbered_and_latest_is_the_last_that_finished(
    command: Swt, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:
        monkeypatch.setattr(Path, "symlink_to", Windows.symlink_to)
    for number, seed in enumerate((1, 2, 3), 1):
        done = begin(command, "--seed", seed, "--json")
        assert done.code == 0, done.err
        model = Path(f"runs/000{number}/model.swt")
        assert Path(json.loads(done.out)["model"]) == model
        assert Path("runs/latest/model.swt").read_bytes() == model.read_bytes()
        assert Path("runs/latest").is_symlink() == links
        assert load_config(model.parent / "config.toml").train.seed == seed
    assert len({path.read_bytes() for path in Path("runs").glob("0*/model.swt")}) == 3
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run_iteration", interrupted_at(1))
        assert begin(command).code == 130
    assert latest_run() == Path("runs/0004")
    assert Path("runs/latest/model.swt").read_bytes() == Path("runs/0003/model.swt").read_bytes()
    done = command("train", "--resume", "--episodes", 4)
    assert done.code == 0, done.err
    assert Path("runs/latest/model.swt").read_bytes() == Path("runs/0004/model.swt").read_bytes()
    assert sorted(path.name for path in Path("runs").iterdir()) == [
        "0001",
        "0002",
        "0003",
        "0004",
        "latest",
        "trials.jsonl",
    ]


class Windows:
    """A system that lets ordinary users make no links."""

    @staticmethod
    def symlink_to(*_: Any, **__: Any) -> None:
        raise OSError(22, "A required privilege is not held by the client")


def test_a_run_that_an_earlier_version_called_latest_gets_a_number(command: Swt) -> None:
    Path("runs/latest").mkdir(parents=True)
    for name in ("config.toml", "model.swt"):
        Path("runs/latest", name).write_text("of before")
    assert begin(command).code == 0
    assert Path("runs/0002/model.swt").read_text() == "of before"
    assert Path("runs/latest").resolve().name == "0001"


def test_a_named_run_leaves_latest_alone(command: Swt) -> None:
    assert begin(command, "--out", "runs/mine").code == 0
    assert sorted(path.name for path in Path("runs").iterdir()) == ["mine", "trials.jsonl"]
    assert run_to_resume(None) == (None, None)


def test_to_go_on_with_nothing_begins_and_says_so(command: Swt) -> None:
    done = begin(command, "--resume")
    assert done.code == 0
    assert "no run at runs to resume: starting from the beginning" in done.err
    assert Path("runs/0001/model.swt").exists()


def in_points(line: str) -> str:
    time, *prices, volume = line.split(",")
    return ",".join([time, *(str(round(float(price) * 100_000)) for price in prices), volume])


@pytest.mark.parametrize("folder", ["plain", "two words & more"])
def test_printed_commands_run_as_printed(command: Swt, folder: str) -> None:
    Path(folder).mkdir()
    bars = Path(folder, "bars 1.csv")
    bars.write_text("".join([LINES[0], *map(in_points, LINES[1:])]))
    reading = ("--side", "mid", "--dates", "mdy", "--drop-bad", "--spread", 1.25, "--point", 0.00001, "--pip", 0.0001)
    done = command("train", bars, "--config", "tiny.toml", "--episodes", 4, *reading, "--out", Path(folder, "r 1"))
    assert done.code == 0, done.err
    backtest, act = printed(done.err)
    again = command(*backtest, "--json")
    assert again.code == 0, again.err
    assert "assumed" not in again.err.splitlines()[1]
    assert json.loads(again.out)["bars"] > 0
    assert command(*act).code == 0
    assert {"--drop-bad", "--dates", "--side", "--spread", "--point"} <= set(backtest) & set(act)


def test_commands_are_quoted_as_the_system_wants(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    assert progress.program_command("act", Path("a b.csv")) == "python swt.py act 'a b.csv'"
    monkeypatch.setattr(sys, "platform", "win32")
    assert progress.program_command("act", Path("a b.csv")) == 'python swt.py act "a b.csv"'
    monkeypatch.chdir(tmp_path)
    assert progress.program_command("act") == f"python {ROOT / 'swt.py'} act"


def interrupted_at(iteration: int, by: BaseException | None = None) -> Callable[[Trainer], dict[str, Any]]:
    run_iteration = Trainer.run_iteration

    def step(trainer: Trainer) -> dict[str, Any]:
        if trainer.iteration == iteration:
            raise by or KeyboardInterrupt
        return run_iteration(trainer)

    return step


@pytest.mark.parametrize("iteration", [0, 2])
@pytest.mark.parametrize(
    ("by", "code"),
    [(KeyboardInterrupt(), 130), (SystemExit(75), 75), (MemoryError("Unable to allocate 9 TiB"), 1),
     (FloatingPointError("learning step 3: not finite: value"), 1)],
    ids=["ctrl-c", "sigterm", "memory", "numbers"],
)  # fmt: skip
def test_who_is_stopped_learns_what_is_kept_and_how_to_go_on(
    command: Swt, monkeypatch: pytest.MonkeyPatch, by: BaseException, code: int, iteration: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run_iteration", interrupted_at(iteration, by))
        done = begin(command, "--spread", 2, episodes=8)
    assert (done.code, done.out) == (code, "")
    last = done.err.splitlines()[-1]
    assert str(by) in last or code > 1
    assert (
        f"keeps all up to iteration 2{SO_FAR if code > 1 else ''}; go on: "
        if iteration
        else "no iteration was finished, runs/0001 keeps the settings"
    ) in last
    ((*again,),) = printed(last)
    assert again == ["train", "--resume", "--out", "runs/0001", "--episodes", "8"]
    assert command(*again).code == 0
    assert begin(command, "--spread", 2, "--out", "straight", episodes=8).code == 0
    assert Path("runs/0001/model.swt").read_bytes() == Path("straight/model.swt").read_bytes()


def test_a_budget_of_updates_is_one_of_whole_iterations(command: Swt) -> None:
    words = ("train", "bars.csv", "--config", "tiny.toml", "--threads", 1)
    assert command(*words, "--steps", 3, "--out", "steps").code == 0
    assert begin(command, "--out", "episodes").code == 0
    assert Path("steps/model.swt").read_bytes() == Path("episodes/model.swt").read_bytes()
    assert [json.loads(line)["updates"] for line in Path("steps/metrics.jsonl").read_text().splitlines()] == [2, 4]


def test_who_stops_a_run_gets_the_model_so_far_without_a_test(command: Swt, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the last whole iteration: the one that was stopped had moved weights and replay."""
    learn, words = Learner.learn, ("train", "bars.csv", "--config", "tiny.toml", "--threads", 1, "--steps", 8)

    def stopped(learner: Learner, *args: Any) -> dict[str, float]:
        if learner.step == 5:
            raise KeyboardInterrupt
        return learn(learner, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "learn", stopped)
        patch.setattr(train_report, "trade_unseen_bars", None)
        done = command(*words, "--out", "r")
    assert done.code == 130
    says = "stopped; r keeps all up to iteration 2, r/model-so-far.swt is the model so far; go on: "
    assert done.err.splitlines()[-1].startswith(says)
    assert [row["event"] for row in read_ledger(Path("trials.jsonl"))] == ["begin"]
    assert begin(command, "--out", "two", episodes=4).code == 0
    so_far, two = load_model(Path("r/model-so-far.swt")), load_model(Path("two/model.swt"))
    assert (so_far.networks.graphs, so_far.search) == (two.networks.graphs, two.search)
    assert so_far.backtest_stats == BacktestStats()
    ((*again,),) = printed(done.err.splitlines()[-1])
    assert again == ["train", "--resume", "--out", "r", "--steps", "8"]
    assert command(*again).code == 0
    assert command(*words, "--out", "straight").code == 0
    assert Path("r/model.swt").read_bytes() == Path("straight/model.swt").read_bytes()
    assert not Path("r/model-so-far.swt").exists(), "it is no longer what is so far"


@pytest.mark.parametrize("by", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_second_signal_and_a_full_disk_leave_out_the_model_so_far(
    command: Swt, monkeypatch: pytest.MonkeyPatch, by: BaseException
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise by

    monkeypatch.setattr(Trainer, "run_iteration", interrupted_at(1))
    monkeypatch.setattr(train_report, "save_model", fail)
    done = begin(command, "--out", "r")
    said = done.err.splitlines()
    assert (done.code, said[-1].startswith("stopped; r keeps all up to iteration 1; go on: ")) == (130, True)
    assert ("no model so far: r/model-so-far.swt: No space left on device" in said) == isinstance(by, OSError)


def test_exit_codes_are_the_documented_ones(command: Swt, monkeypatch: pytest.MonkeyPatch) -> None:
    section = Path(ROOT, "host/README.md").read_text(encoding="utf-8").partition("## Exit codes of train")[2]
    table = {int(code): errors for code, errors in re.findall(r"^\| (\d+) \| (.*?) \|", section, re.MULTILINE)}
    assert begin(command, "--out", "0").code == 0
    seen = {0}
    for code, words in (
        (2, ["--out", "bars.csv"]),
        (3, ["--out", "0"]),
        (3, ["--set", "train.seed=-1"]),
        (4, ["--timezone", "Mars"]),
        (4, ["--set", "market.episode_length=1190"]),
        (6, ["--ray", "nowhere"]),
    ):
        assert begin(command, *words).code == code
        seen.add(code)
    with open_run_dir(Path("0"), resume=True):
        seen.add(command("train", "--resume", "--out", "0").code)
    stops: list[tuple[int, BaseException]] = [
        (1, FloatingPointError("x")), (130, KeyboardInterrupt()), (75, SystemExit(75)),
    ]  # fmt: skip
    for code, by in stops:
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "run_iteration", interrupted_at(0, by))
            assert begin(command, "--out", str(code)).code == code
        seen.add(code)
    assert seen == {*table} - {5}
    modules = [module for name, module in sys.modules.items() if name.startswith("host.")]
    for code, errors in table.items():
        for name in re.findall(r"`(\w+)`", errors):
            (error,) = {getattr(module, name) for module in modules if hasattr(module, name)}
            assert error.exit_code == code, name


def test_who_stops_before_the_run_began_learns_that(command: Swt, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "new_dataset", stop)
    done = begin(command)
    assert done.code == 130
    assert done.err.splitlines()[-1] == "stopped; no run was begun: give the same command again"
    assert not Path("runs").exists()


def test_no_result_is_lost_with_a_path_that_cannot_be_written(command: Swt, tmp_path: Path) -> None:
    assert begin(command).code == 0
    Path("taken").mkdir()
    for path, says in (
        ("none/x.csv", f"{tmp_path / 'none'} does not exist"),
        ("bars.csv/x.csv", f"{tmp_path / 'bars.csv'} is no folder"),
        ("taken", "taken is a folder"),
    ):
        done = command("backtest", "bars.csv", "--decisions", path)
        assert (done.code, done.out) == (2, "")
        assert done.err == f"swt: {path} cannot be written: {says}\n"
    if Path("/dev/full").exists():
        for flags in ([], ["--json"]):
            done = command("backtest", "bars.csv", "--decisions", "/dev/full", *flags)
            assert done.code == 1
            assert "Net pips" in done.out or "net_pips" in done.out
            assert done.err.splitlines()[-1] == "swt: /dev/full: No space left on device"


@pytest.mark.parametrize(
    "start", ["2017-12-31", "1917-01-01T00:00:00Z", "2999-01-01", "999999-01-01", "NaT", "", "now"]
)
def test_a_start_outside_the_file_says_so(command: Swt, start: str) -> None:
    assert begin(command).code == 0
    done = command("backtest", "bars.csv", "--from", start)
    span = "bars.csv has 2017-01-01T23:00:00Z .. "
    if start.startswith("1917"):
        assert done.code == 0
        assert f"--from {start} is before the first bar: beginning after the warm-up; {span}" in done.err
    else:
        assert (done.code, done.out) == (4, "")
        assert (span if start.startswith("2") else "write it as 2017-10-02T08:00:00Z") in done.err.splitlines()[-1]


def test_a_locked_run_is_refused_before_its_bars_are_read(command: Swt, monkeypatch: pytest.MonkeyPatch) -> None:
    assert begin(command, "--out", "r").code == 0
    monkeypatch.setattr(train, "read_histories", None)
    with open_run_dir(Path("r"), resume=True):
        assert command("train", "--resume", "--out", "r").code == 8


def test_the_configuration_of_no_run_is_the_default(tmp_path: Path) -> None:
    assert run_to_resume(tmp_path) == (tmp_path, None)
    assert load_config(None, None, None) == Config()
