"""What a walk-forward joins, keeps, counts and shows; the trainings are pretended but for one."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import swt
from host import console
from host.analysis.record import daily_returns, pool_returns
from host.analysis.report import join_records
from host.artifact.manifest import load_model
from host.atomic import LockedError, locked
from host.commands.walkforward import print_walkforward, read_walks
from host.config import load_config
from host.data.bar_cache import load_bars, save_bars
from host.data.csv_reader import read_bars
from host.evaluation.backtest import BacktestResult, run_backtest
from host.processes import ReportProgress
from host.training.run_dir import RunError
from host.walkforward.folds import HOLDOUT
from host.walkforward.trials import TrialsError
from host.walkforward.walkforward import (
    FoldJob,
    fold_records,
    median_seed,
    train_fold,
)
from kernels.market.bars import slice_bars
from tests.fixtures.paths import ROOT
from tests.fixtures.runs import LINES, TINY
from tests.fixtures.walks import COSTS, OPTIONS, READING, ledger, pretend, walk


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("bars.csv").write_text("".join(LINES))
    Path("tiny.toml").write_text(TINY)
    return tmp_path


def test_the_joined_record_is_the_sum_of_its_folds() -> None:
    """A position never spans two of them, so nothing is counted twice or lost."""
    jobs = list[FoldJob]()
    document = walk(OPTIONS._replace(seeds=1), lambda job, report: jobs.append(job) or pretend(job, report))
    bars = read_bars(Path("bars.csv"), READING)[0]
    jobs.sort(key=lambda job: job.fold.test_first)
    records = fold_records(jobs, bars)
    joined = join_records(records)
    assert joined.equity[-1] == pytest.approx(sum(record.equity[-1] for record in records), abs=1e-12)
    assert len(joined.trades) == sum(len(record.trades) for record in records) > 9
    first, stop = jobs[0].fold.test_first, jobs[-1].fold.test_stop
    np.testing.assert_array_equal(joined.bars.time, bars.time[first : stop + 1])
    by_fold = np.concatenate([daily_returns(record)[1] * record.bars.close[0] for record in records])
    assert by_fold.sum() == pytest.approx(daily_returns(joined)[1].sum() * bars.close[first], abs=1e-12)
    figures = document["markets"][0]["joined"]
    assert figures["net_pips"] == pytest.approx(joined.equity[-1] / COSTS.pip_px)
    assert figures["statistics"]["# Trades"] == len(joined.trades)


def test_the_median_seed_counts_and_the_best_never() -> None:
    assert median_seed({0: 5.0, 1: -1.0, 2: 9.0}) == 0
    assert median_seed({3: 5.0, 4: 9.0}) == 3
    document = walk()
    (market,) = document["markets"]
    pips = {row["seed"]: row["net_pips"] for row in market["seeds"]}
    assert sorted(pips.values())[1] == pips[market["median_seed"]] == market["joined"]["net_pips"]
    assert json.loads(Path("out/walkforward.json").read_text(encoding="utf-8"))["markets"][0]["name"] == "bars"
    report = json.loads(Path("out/bars/report.json").read_text(encoding="utf-8"))
    assert report["verdict"] == market["joined"]["verdict"]
    assert (len(report["folds"]), report["significance"]["trials"]) == (3, 1)
    said = io.StringIO()
    print_walkforward(document, said)
    assert f"joined, seed {market['median_seed']} (the median)" in said.getvalue()
    assert f"Verdict: {market['joined']['verdict']['verdict']}" in said.getvalue()
    assert "in 3 of 9 validation parts: 2.5 standard errors at best" in said.getvalue()
    hope = "In test 3, the most hopeful one: asked at 9 bars without a position, it expected most of a BUY"
    assert hope in said.getvalue()
    assert report["opportunity"]["fold"] == "3"
    assert report["baselines"]["policy head"]["trades"] == report["baselines"]["untrained"]["trades"] == 0


def test_markets_are_pooled_in_equal_shares() -> None:
    Path("more.csv").write_text("".join([*LINES[:1], *LINES[200:]]))
    document = walk(OPTIONS._replace(seeds=1), files=("bars.csv", "more.csv"))
    assert [market["name"] for market in document["markets"]] == ["bars", "more"]
    assert document["pool"]["verdict"]["verdict"] in ("edge", "no edge", "too little data")
    day, pooled = pool_returns([(np.array([1, 2]), np.array([0.2, 0.4])), (np.array([2, 5]), np.array([-0.2, 0.6]))])
    assert day.tolist() == [1, 2, 5]
    np.testing.assert_allclose(pooled, [0.1, 0.1, 0.3])


def test_a_kill_loses_the_folds_under_way_and_nothing_else() -> None:
    program = (
        "import sys, time\nsys.path.insert(0, sys.argv[1])\n"
        "from tests.fixtures.walks import pretend, walk\n"
        "def slow(job, report):\n    time.sleep(0.2)\n    return pretend(job, report)\n"
        "walk(runner=slow)"
    )
    given = {**os.environ, "TMPDIR": "."}
    with subprocess.Popen([sys.executable, "-c", program, str(ROOT)], env=given) as child:
        deadline = time.monotonic() + 120
        while len(list(Path("out").glob("*/*/result.json"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(child.pid, signal.SIGKILL)
    kept = {path: path.read_bytes() for path in Path("out").glob("*/*/result.json")}
    assert 3 <= len(kept) < 9
    again = list[str]()
    document = walk(runner=lambda job, report: again.append(job.folder.name) or pretend(job, report))
    assert len(again) == 9 - len(kept)
    assert all(path.read_bytes() == text for path, text in kept.items())
    assert document["trial"] == ledger()[0]["trial"]
    straight = walk(OPTIONS._replace(out=Path("other")))
    assert straight["markets"][0]["seeds"] == document["markets"][0]["seeds"]
    assert [row["event"] for row in ledger()] == ["begin", "end"] * 2


def test_a_run_that_was_stopped_is_a_trial_too() -> None:
    def fails(job: FoldJob, report: ReportProgress) -> dict[str, Any]:
        raise ArithmeticError("a fault")

    for number in range(2):
        with pytest.raises(ArithmeticError):
            walk(OPTIONS._replace(out=Path(f"out{number}")), fails)
    with pytest.raises(ArithmeticError):
        walk(OPTIONS._replace(out=Path("out0")), fails)
    joined = walk()["markets"][0]["joined"]
    assert joined["trials"] == 3
    assert walk()["markets"][0]["joined"] == joined  # asked again, it is no other trial
    assert [row["event"] for row in ledger()] == ["begin", "begin", "begin", "end"]


def test_a_run_goes_on_as_it_began_or_not_at_all() -> None:
    walk(OPTIONS._replace(seeds=1))
    before = Path("out/walkforward.json").read_bytes()
    for changed in (OPTIONS, OPTIONS._replace(seeds=1, folds=2), OPTIONS._replace(seeds=1, rolling=True)):
        with pytest.raises(RunError, match=r"out: (folds|seeds|rolling): the run has .* give the same command"):
            walk(changed)
    Path("bars.csv").write_text("".join(LINES[:-1]))
    with pytest.raises(RunError, match=r"files\.bars"):
        walk(OPTIONS._replace(seeds=1))
    assert Path("out/walkforward.json").read_bytes() == before
    with locked(Path("out/lock")), pytest.raises(LockedError):
        walk(OPTIONS._replace(seeds=1))


def test_the_holdout_is_sealed_and_opened_once() -> None:
    """Before it is opened no process is given its bars; the seed was chosen without it."""
    seen = dict[str, int]()

    def watch(job: FoldJob, report: ReportProgress) -> dict[str, Any]:
        seen[job.fold.name] = len(load_bars(job.bars).time)
        return pretend(job, report)

    closed = walk(runner=watch)
    assert closed["markets"][0]["holdout"] is None
    held = read_walks([Path("bars.csv")], READING, load_config(Path("tiny.toml")), OPTIONS)[0].folds[-1]
    assert set(seen.values()) == {held.test_first + 1}
    opened = walk(OPTIONS._replace(open_holdout=True), watch)
    assert seen[HOLDOUT] == held.test_stop + 1 == len(LINES) - 1
    (market,) = opened["markets"]
    assert market["holdout"]["trials"] == 1
    assert market["median_seed"] == closed["markets"][0]["median_seed"]
    assert market["joined"] == closed["markets"][0]["joined"]
    seen.clear()
    assert walk(OPTIONS._replace(open_holdout=True), watch) == walk(runner=watch) == opened
    assert not seen
    with pytest.raises(TrialsError, match=r"the holdout .* was opened by .*out, so it is none any more"):
        walk(OPTIONS._replace(out=Path("other"), open_holdout=True))
    assert not list(Path().glob("*/*/bars.npy"))


@pytest.mark.parametrize("codes", ["quantile", "learned"])
def test_a_training_of_a_fold_writes_all_that_a_report_needs(codes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And knows no bar behind its test: more bars there, the same bytes.  Its agent stays in the market to the end."""

    def held(*given: Any) -> BacktestResult:
        result = run_backtest(*given)
        result.log.target[:] = 1.0
        return result

    monkeypatch.setattr("host.walkforward.walkforward.run_backtest", held)
    jobs = list[FoldJob]()
    walk(OPTIONS._replace(seeds=1), lambda job, report: jobs.append(job) or pretend(job, report))
    bars, shares, texts = read_bars(Path("bars.csv"), READING)[0], list[float](), list[dict[str, bytes]]()
    config = load_config(Path("tiny.toml"), [f"train.chance_codes={codes}"])
    job = min(jobs, key=lambda job: job.fold.test_first)._replace(bars=Path("bars.npy"), config=config)
    for stop in (job.fold.test_stop + 1, len(bars.time)):
        save_bars(job.bars, slice_bars(bars, 0, stop))
        row = train_fold(job, shares.append)
        texts.append({path.name: path.read_bytes() for path in job.folder.iterdir() if path.name != "metrics.jsonl"})
    assert texts[0] == texts[1]
    assert shares == sorted(shares[: len(shares) // 2]) * 2
    (record,) = fold_records([job], bars)  # at the costs of the result that was pretended
    assert len(record.target) == row["test_bars"] == job.fold.test_stop - job.fold.test_first
    assert record.target.tolist() == [1.0] * (row["test_bars"] - 1) + [0.0]
    assert row["trades"] == 1
    assert row["episodes"] == 4
    assert row["trained_bars"] + row["validated_bars"] == job.fold.validation_stop
    assert row["train"][1] < row["test"][0] < row["test"][1]
    days = (job.folder / "daily.csv").read_text(encoding="utf-8").splitlines()
    assert days[0] == "day,return"
    assert len(days) == 1 + len(daily_returns(record)[0])
    assert len((job.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) == row["iterations"] == 2
    assert load_model(job.folder / "model.swt").manifest["data"]["span"] == row["train"]
    json.dumps(row, allow_nan=False)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("is_terminal", [True, False])
def test_one_panel_shows_every_job_that_runs(is_terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Piped, it is plain lines."""
    stream = Terminal() if is_terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(console, "LOG_INTERVAL_S", 0.0)
    with console.progress_panel("walkforward") as show:
        for share in (0.0, 0.2, 0.4, 0.6):
            show({"EURUSD 1-0": 1.0, "EURUSD 1-1": share, "EURUSD 2-0": 0.0})
            time.sleep(0.02)
        show({"EURUSD 1-0": 1.0, "EURUSD 1-1": 1.0, "EURUSD 2-0": 0.1})
    text = stream.getvalue()
    assert "1 of 3 done" in text
    assert ("\x1b" in text) == is_terminal
    last = text.splitlines()[-3:] if is_terminal else text.splitlines()[-1:]
    assert "EURUSD 2-0" in "".join(last)
    assert "EURUSD 1-1" not in "".join(last)
    assert ("0:00:0" if is_terminal else "s left") in text


def test_the_command_says_what_it_takes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(swt, "install_signal_handlers", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["swt.py", "walkforward", "bars.csv", "--folds", "2"])
    with pytest.raises(SystemExit) as stop:
        swt.main()
    assert stop.value.code == 2
    assert "--out" in capsys.readouterr().err
