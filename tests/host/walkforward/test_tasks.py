"""Tasks that share the folder of a walk-forward: each training runs once, one trial is counted, nothing is lost."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from host.atomic import LockedError, locked
from host.commands import walkforward
from host.processes import ReportProgress
from host.stop import EX_TEMPFAIL
from host.training.run_dir import RunError
from host.walkforward.walkforward import FoldJob
from tests.fixtures.command import Swt, new_command
from tests.fixtures.kills import forked, killed
from tests.fixtures.paths import ROOT
from tests.fixtures.runs import printed
from tests.fixtures.walks import OPTIONS, ledger, pretend, walk

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a process of its own takes seconds each without fork")
RAN, SAID, TEMPORARY = Path("ran"), Path("said"), Path("temporary")
COMMAND = "walkforward bars.csv --side ask --symbol EURUSD --config tiny.toml --out out --episodes 4".split()


@pytest.fixture(autouse=True)
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Swt:
    monkeypatch.setattr("host.analysis.html_report.render_html", lambda _: "<p>")
    run_command = new_command(tmp_path, monkeypatch, capsys)
    TEMPORARY.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(TEMPORARY))
    return run_command


def noted(job: FoldJob, report: ReportProgress, seconds: float = 0.0) -> dict[str, Any]:
    """A pretended training that leaves a line in RAN, at its end, and is not the only one to write there."""
    time.sleep(seconds)
    row = pretend(job, report)
    with RAN.open("ab", buffering=0) as file:
        file.write(f"{job.folder.name}\n".encode())
    return row


def work(task: int, tasks: int, begin: float = 0.0, seconds: float = 0.0) -> int:
    """Run a task, from a moment on; its exit code."""
    time.sleep(max(0.0, begin - time.time()))
    try:
        walk(OPTIONS._replace(task=task, tasks=tasks), partial(noted, seconds=seconds))
    except (LockedError, RunError) as error:
        print(error, flush=True)
        return error.exit_code
    return 0


def codes(children: list[int]) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def wait_for(is_there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_there():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def ran() -> list[str]:
    return RAN.read_text().split() if RAN.exists() else []


def straight() -> dict[str, Any]:
    """What one process alone finds."""
    markets: dict[str, Any] = walk(OPTIONS._replace(out=Path("straight")))["markets"][0]
    return markets["seeds"]


def test_tasks_that_begin_at_once_share_the_jobs_and_are_one_trial() -> None:
    for attempt in range(3):
        if attempt:
            RAN.unlink()
            Path("out").rename(f"out{attempt}")
        begin = time.time() + 0.2
        children = [forked(partial(work, task, 4, begin), SAID) for task in range(4)]
        assert codes(children) == [0] * 4, SAID.read_text()
        assert len(ran()) == len({*ran()}) == 9
        assert [row["event"] for row in ledger()] == ["begin"] * (attempt + 1)
    assert {path.name for path in Path("out").iterdir()} == {"settings.json", "bars"}
    document = walk(runner=None)  # nothing is left to run
    assert document["trial"] == ledger()[-1]["trial"] == json.loads(Path("out/settings.json").read_text())["trial"]
    assert [row["event"] for row in ledger()] == ["begin"] * 3 + ["end"]
    assert document["markets"][0]["seeds"] == straight()


def test_no_training_runs_twice_at_once() -> None:
    """Neither in the same task once more nor in the command that judges, which begin nothing."""
    child = forked(partial(work, 0, 3, seconds=0.4), SAID)
    wait_for(lambda: any(lock.stat().st_size for lock in Path("out").glob("*/*/lock")))
    with pytest.raises(LockedError, match=r"out/bars/\d-\d is in use by process"):
        walk(OPTIONS._replace(task=0, tasks=3), noted)
    with pytest.raises(LockedError, match=r"out/bars/\d-\d is in use by process"):
        walk(runner=noted)
    assert work(1, 3) == 0, "another task has other jobs"
    assert codes([child]) == [0], SAID.read_text()
    assert len(ran()) == len({*ran()}) == 6


def test_who_judges_too_early_begins_nothing() -> None:
    """A task runs the last training that is left."""
    Path("out/bars/3-2").mkdir(parents=True)
    with locked(Path("out/bars/3-2/lock")), pytest.raises(LockedError, match="out/bars/3-2 is in use by process"):
        walk(runner=noted)
    assert ran() == []


def test_a_training_that_was_taken_over_leaves_no_result() -> None:
    """On a drive that passes no locks between machines, where a task was begun once more."""

    def loses(job: FoldJob, report: ReportProgress) -> dict[str, Any]:
        (job.folder / "lock").write_text("process 1 on elsewhere since 2017-01-01T00:00:00Z: swt.py")
        return pretend(job, report)

    with pytest.raises(LockedError, match="taken over by process 1 on elsewhere"):
        walk(OPTIONS._replace(task=0, tasks=9), loses)
    assert not list(Path("out").glob("*/*/result.json"))


def test_the_trial_is_noted_by_whoever_begins_and_by_whoever_judges() -> None:
    assert work(0, 3) == 0
    Path("trials.jsonl").unlink()
    assert work(1, 3) == 0
    assert not Path("trials.jsonl").exists()
    walk()
    assert [row["event"] for row in ledger()] == ["begin", "end"]


def test_what_another_process_ended_meanwhile_is_not_begun_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at what is left and the lock."""
    run_at_once = walkforward.run_at_once

    def late(jobs: dict[str, FoldJob], *rest: Any) -> None:
        monkeypatch.setattr(walkforward, "run_at_once", run_at_once)
        assert work(0, 3) == 0
        run_at_once(jobs, *rest)

    monkeypatch.setattr(walkforward, "run_at_once", late)
    walk(runner=noted)
    assert len(ran()) == len({*ran()}) == 9


def test_a_task_that_was_killed_repeats_what_has_no_result() -> None:
    """At any moment; another task with other settings is refused."""
    for after_s in (0.05, 0.15, 0.25):
        assert not killed(partial(work, 0, 2, seconds=0.1), after_s, SAID)
    done = {path.parent.name for path in Path("out").glob("*/*/result.json")}
    assert len(done) < 5
    RAN.unlink(missing_ok=True)
    assert work(0, 2) == 0
    assert {*ran()} | done == {"1-0", "1-2", "2-1", "3-0", "3-2"}
    assert not {*ran()} & done
    with pytest.raises(RunError, match="episodes: the run has 4, asked for is 5"):
        walk(OPTIONS._replace(task=1, tasks=2, episodes=5))
    assert walk()["markets"][0]["seeds"] == straight()
    assert [row["event"] for row in ledger()] == ["begin", "end"] * 2


def test_minutes_are_shared_by_all_tasks() -> None:
    options = OPTIONS._replace(episodes=None, minutes=9.0, processes=2)
    for tasks, each in ((1, 9 / 5), (3, 9 / 2)):
        out = Path(f"out{tasks}")
        walk(options._replace(out=out, task=0, tasks=tasks))
        assert json.loads((out / "settings.json").read_text())["training_minutes"] == each


@pytest.mark.parametrize("words", ["--task 3 --tasks 3", "--task 0 --tasks 1 --open-holdout", "--tasks 3", "--task 1"])
def test_a_task_is_one_of_so_many_and_opens_no_holdout(command: Swt, words: str) -> None:
    done = command(*COMMAND, *words.split())
    assert (done.code, "--task I --tasks N" in done.err) == (2, True)


def test_a_task_says_how_far_all_are(command: Swt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walkforward.walkforward_csv.__wrapped__, "__defaults__", (pretend,))  # type: ignore[attr-defined]
    done = command(*COMMAND, "--folds", 2, "--task", 1, "--tasks", 4, "--json")
    found = json.loads(done.out)
    assert (found["trainings"], found["ended"], found["trial"]) == (6, 2, ledger()[0]["trial"])
    done = command(*COMMAND, "--folds", 2, "--task", 2, "--tasks", 4)
    assert (done.code, done.out) == (0, "")
    says = "3 of 6 trainings are done; the same command without --task and --tasks judges them"
    assert done.err.splitlines()[-1] == says
    assert "(the median)" in command(*COMMAND, "--folds", 2).out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_it_with_75_and_the_same_command_goes_on(command: Swt, number: int) -> None:
    program = (
        "import sys\nsys.path.insert(0, sys.argv[1])\n"
        "import swt\nfrom host.commands import walkforward\n"
        "from tests.host.walkforward.test_tasks import noted, partial\n"
        "walkforward.walkforward_csv.__wrapped__.__defaults__ = (partial(noted, seconds=0.2),)\n"
        "sys.argv = ['swt.py', *sys.argv[2:]]\nswt.main()"
    )
    words = [sys.executable, "-c", program, str(ROOT), *COMMAND, "--threads", "1"]
    given = {**os.environ, "TMPDIR": str(TEMPORARY)}
    with subprocess.Popen(words, env=given, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        wait_for(lambda: len(ran()) >= 2)
        child.send_signal(number)
        out, said = child.communicate(timeout=30)
    assert (child.returncode, out, [*TEMPORARY.iterdir()]) == (EX_TEMPFAIL, "", [])
    assert said.splitlines()[-1].startswith("stopped; what is finished is kept; go on: python ")
    ((*again,),) = printed(said.splitlines()[-1])
    assert again == [*COMMAND, "--threads", "1"]
    kept = len(list(Path("out").glob("*/*/result.json")))
    assert 2 <= kept <= 4
    assert json.loads(Path("out/settings.json").read_text())["origin"]["folds"] == 6
    RAN.unlink()
    walk(OPTIONS._replace(folds=6), noted)
    assert len(ran()) == 18 - kept
