"""The command line as a user's script sees it: exit codes, documents, and runs that survive being killed."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from host.config import Config, LiveConfig
from host.console import program_command
from host.evaluation.synthetic import MARKETS
from host.settings import settings_text
from host.training.run_dir import open_run_dir
from kernels.jit import module_digest
from tests.fixtures.paths import ROOT, SAMPLE
from tests.fixtures.program import TINY
from tests.fixtures.trained import by_time

BACKTEST_KEYS = {"net_pips", "trades", "exposure", "max_drawdown_pips", "baselines", "bars", "decisions_per_s"}
EPISODES = "600"  # 150 iterations: time enough to be killed in


class Setup(NamedTuple):
    folder: Path
    bars: Path
    config: Path
    model: Path
    document: dict[str, Any]  # of `train --json`


def swt(*args: Any, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "swt.py"), *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def train_args(setup_bars: Path, config: Path, out: Path) -> list[Any]:
    return ["train", setup_bars, "--side", "ask", "--out", out, "--config", config, "--episodes", EPISODES]


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    """An uninterrupted run over the first bars of the sample."""
    folder = tmp_path_factory.mktemp("cli")
    bars, config = folder / "bars.csv", folder / "tiny.toml"
    bars.write_text("".join(SAMPLE.read_text().splitlines(keepends=True)[:1500]))
    config.write_text(TINY)
    board = ["--tensorboard"] if find_spec("tensorboardX") else []
    done = swt(*train_args(bars, config, folder / "run"), "--threads", 1, "--json", *board)
    assert done.returncode == 0, done.stderr
    assert (folder / "run" / "tensorboard").is_dir() == bool(board)
    assert "\ntraining:   1% iteration 1; episodes 4; " in done.stderr
    assert "\ntraining: 100% iteration 150; episodes 600; " in done.stderr
    return Setup(folder, bars, config, folder / "run" / "model.swt", json.loads(done.stdout))


def refused(code: int, *args: Any) -> str:
    """What a command says on stderr when it ends with `code`: one line, no traceback, nothing on stdout."""
    done = swt(*args)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("swt: ")
    return done.stderr


def test_train_says_what_it_earned_and_where_the_model_is(setup: Setup) -> None:
    assert setup.document.keys() >= BACKTEST_KEYS | {"model", "model_sha256"}
    assert Path(setup.document["model"]) == setup.model
    assert setup.document["baselines"].keys() >= {"flat", "random", "policy head", "untrained"}
    report = json.loads((setup.model.parent / "report.json").read_text(encoding="utf-8"))
    assert report.items() <= setup.document.items()
    assert report["learning"]["episodes"][-1] == int(EPISODES)
    assert {path.name for path in setup.model.parent.iterdir()} >= {"trades.csv", "equity.csv", "daily.csv"}
    rows = [json.loads(line) for line in (setup.model.parent / "metrics.jsonl").read_text().splitlines()]
    assert [row["episodes"] for row in rows] == list(range(4, int(EPISODES) + 1, 4))


def test_backtest_document(setup: Setup) -> None:
    out, folder = setup.folder / "decisions.csv", setup.folder / "report"
    done = swt("backtest", setup.bars, "--model", setup.model, "--decisions", out, "--report", folder, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document.keys() >= BACKTEST_KEYS
    assert all(isinstance(row["net_pips"], float) for row in document["baselines"].values())
    assert json.loads((folder / "report.json").read_text(encoding="utf-8")) == document
    assert any("unseen from" in reason for reason in document["verdict"]["reasons"])
    assert document["bars"] == len(out.read_text().splitlines()) - 1 == 1499 - 256 - 1


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "no command"),
        (["frobnicate"], "frobnicate"),
        (["train", "--nonsense"], "--nonsense"),
        (["train", "--episodes", "many"], "--episodes"),
        (["train", "--sessions", "many"], "--sessions"),  # the flag of earlier versions
        (["train", "--minutes", "0"], "--minutes"),
    ],
    ids=["nothing", "command", "option", "word", "old", "zero"],
)
def test_usage_errors_are_2(args: list[str], says: str) -> None:
    done = swt(*args)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_the_version_and_the_settings_are_printed_without_a_market() -> None:
    done = swt("--version")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert done.stdout == f"swt {project['version']}, {module_digest('kernels.live.policy_step')}\n"
    for command, config in (("train", Config()), ("backtest", LiveConfig()), ("act", LiveConfig())):
        done = swt(command, "--help-config")
        assert (done.returncode, done.stdout, done.stderr) == (0, settings_text(config), "")


def test_unknown_keys_are_3_and_named(setup: Setup, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "run")
    assert "search.simulation'" in refused(3, "train", setup.bars, *out, "--set", "search.simulation=9")
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(TINY + "momentum = 0.9\n")
    assert "train.momentum" in refused(3, "train", setup.bars, *out, "--config", wrong)
    assert not (tmp_path / "run").exists()


def test_bad_bars_are_4(setup: Setup, tmp_path: Path) -> None:
    lines = setup.bars.read_text().splitlines(keepends=True)
    bad = tmp_path / "bad.csv"
    bad.write_text("".join([*lines[:700], lines[600], *lines[700:]]))
    said = refused(4, *train_args(bad, setup.config, tmp_path / "run"))
    assert "bad.csv" in said
    assert "701" in said or "702" in said
    assert "missing.csv" in refused(4, "backtest", tmp_path / "missing.csv", "--model", setup.model)


def test_a_synthetic_market_is_no_argument_of_train(setup: Setup, tmp_path: Path) -> None:
    """Only `selftest` knows markets that nobody can trade."""
    for name in MARKETS:
        assert name in refused(4, *train_args(Path(name), setup.config, tmp_path / "run"))


def test_a_flipped_byte_in_the_model_is_5(setup: Setup, tmp_path: Path) -> None:
    data = bytearray(setup.model.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "model.swt").write_bytes(data)
    refused(5, "backtest", setup.bars, "--model", tmp_path / "model.swt")
    refused(5, "act", setup.bars, "--model", tmp_path / "model.swt")


def test_a_locked_run_is_8_and_left_alone(setup: Setup) -> None:
    before = setup.model.read_bytes()
    with open_run_dir(setup.folder / "run", resume=True):
        said = refused(8, *train_args(setup.bars, setup.config, setup.folder / "run"), "--resume")
    assert "in use by process" in said
    assert setup.model.read_bytes() == before


def test_a_finished_run_is_neither_overwritten_nor_trained_on(setup: Setup, tmp_path: Path) -> None:
    again = train_args(setup.bars, setup.config, setup.folder / "run")
    assert "--resume" in refused(3, *again)
    before = setup.model.read_bytes()
    assert swt(*again, "--resume").returncode == 0
    assert setup.model.read_bytes() == before
    refused(3, *again, "--resume", "--set", "train.learning_rate=0.5")
    other = tmp_path / "other.csv"
    other.write_text("".join(setup.bars.read_text().splitlines(keepends=True)[:-1]))
    assert "other.csv" in refused(4, *train_args(other, setup.config, setup.folder / "run"), "--resume")


def started(args: list[Any], out: Path, iterations: int) -> subprocess.Popen[bytes]:
    """A training process that has finished so many iterations."""
    command = [sys.executable, str(ROOT / "swt.py"), *map(str, args)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    metrics = out / "metrics.jsonl"
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < iterations:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def test_a_killed_run_resumes_to_the_same_model(setup: Setup, tmp_path: Path) -> None:
    out = tmp_path / "run"
    args = train_args(setup.bars, setup.config, out)
    with started([*args, "--threads", 2], out, 5) as process:
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not (out / "model.swt").exists()
    done = swt(*args, "--resume", "--threads", 2)
    assert done.returncode == 0, done.stderr
    assert "resuming after iteration" in done.stderr
    assert (out / "model.swt").read_bytes() == setup.model.read_bytes()
    shutil.rmtree(out)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_signals_have_their_exit_codes(setup: Setup, tmp_path: Path, number: int, code: int) -> None:
    out = tmp_path / "run"
    with started(train_args(setup.bars, setup.config, out), out, 2) as process:
        process.send_signal(number)
        assert process.wait(30) == code


def test_ctrl_c_while_acting_says_that_what_was_written_is_kept(setup: Setup) -> None:
    command = [sys.executable, str(ROOT / "swt.py"), "act", "-", "--model", str(setup.model)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("time,")
        time.sleep(1)  # until it reads
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "swt: interrupted; what was written so far is kept"
    assert "Traceback" not in said


def redirected(how: str, *args: Any) -> subprocess.CompletedProcess[str]:
    """A command whose streams lead where `how` says, as a shell understands it."""
    words = shlex.join([sys.executable, str(ROOT / "swt.py"), *map(str, args)])
    done = subprocess.run(["sh", "-c", f"{words} {how}"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    return done


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is always full")
def test_a_stdout_that_cannot_be_written_is_one_line_and_1(setup: Setup) -> None:
    model = ("--model", setup.model)
    for args in (
        ("--help",),
        ("data-check", setup.bars),
        ("backtest", setup.bars, *model),
        ("backtest", setup.bars, *model, "--json"),
        ("act", setup.bars, *model),
        ("doctor", *model),
    ):
        done = redirected(">/dev/full", *args)
        assert done.returncode == 1, args
        assert done.stderr.splitlines()[-1] == "swt: stdout: No space left on device"


@pytest.mark.skipif(os.name == "nt", reason="a shell of its own")
def test_nothing_depends_on_stderr_and_a_closed_stdout_is_no_file(setup: Setup, tmp_path: Path) -> None:
    act, whole = ("act", setup.bars, "--model", setup.model), swt("act", setup.bars, "--model", setup.model)
    for how in ("2>&-", "2>/dev/full" if Path("/dev/full").exists() else "2>/dev/null", "2>&1 >/dev/null | head -n 0"):
        done = redirected(how, *act)
        assert done.returncode == 0, how
        assert done.stderr == ""
        assert "head" in how or by_time(done.stdout) == by_time(whole.stdout)
    assert redirected("2>&-", "frobnicate").returncode == 2
    out = tmp_path / "out"
    for how in (">&-", ">&- 2>&-", "<&- >&- 2>&-"):
        assert redirected(how, *act, "--out", out).returncode == 0
        rows = (out / "target.csv").read_text().splitlines()
        assert len(rows) == 2, rows  # what goes to a closed stream goes into no file that got its number
    assert redirected("| head -n 1", *act).stdout.startswith("time,")


def test_a_file_that_cannot_be_written_is_named_with_the_reason(setup: Setup, tmp_path: Path) -> None:
    pack, file = ("pack", "--model", setup.model, "--out"), tmp_path / "file"
    file.write_text("")
    for out, reason in (
        (tmp_path / "nodir" / "x.pyz", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (Path("."), "Is a directory"),
        (file / "x.pyz", "Not a directory"),
    ):
        assert f"swt: {out}: {reason}" in refused(1, *pack, out)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_without_a_model_it_says_how_to_make_one(setup: Setup, tmp_path: Path) -> None:
    says = f"swt: no model at {tmp_path / 'm.swt'}: train one first: {program_command('train', 'CSV')}\n"
    for args in (("act", setup.bars), ("backtest", setup.bars), ("doctor",), ("pack", "--out", tmp_path / "x")):
        assert refused(5, *args, "--model", tmp_path / "m.swt") == says


def test_a_start_seldom_collects_garbage() -> None:
    says = "gc.callbacks.append(lambda *_: print(file=sys.stderr))"  # a line before and after a collection
    code = f"import gc, sys, swt; sys.argv[1:] = ['act', '--help-config']; {says}; swt.main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stderr.count("\n") < 50
