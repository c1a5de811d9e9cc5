"""The scripts of host/README.md for a cluster: a long training that goes on as a new job, and an array of folds."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fixtures.paths import ROOT
from tests.fixtures.runs import LINES, TINY, printed

README = (ROOT / "host" / "README.md").read_text(encoding="utf-8")
SCRIPTS = dict(re.findall(r"<!-- (\w+\.sh) -->\n```bash\n(.*?)```", README, re.DOTALL))
BASH = shutil.which("bash")
pytestmark = pytest.mark.skipif(BASH is None or sys.platform == "win32", reason="no bash")


class Cluster:
    """What a script finds in a job of SLURM."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bars.csv").write_text("".join(LINES))
        (folder / "tiny.toml").write_text(TINY)
        for name, text in SCRIPTS.items():
            (folder / name).write_text(text)
        (folder / "bin").mkdir()
        for name, text in (("python", f'exec "{sys.executable}" "$@"'), ("scontrol", f'echo "$@" >>"{folder}/asked"')):
            (folder / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
            (folder / "bin" / name).chmod(0o755)

    def begin(self, name: str, *words: object, **job: object) -> "subprocess.Popen[str]":
        """A script with its words in the checkout, in a job."""
        given = {f"SLURM_{key}": str(value) for key, value in job.items()}
        paths = {"PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}
        bars = self.folder / "bars.csv", "--side", "ask", "--config", self.folder / "tiny.toml"
        return subprocess.Popen(
            [str(BASH), str(self.folder / name), *map(str, (*bars, *words))],
            cwd=ROOT,
            env={**os.environ, **paths, **given},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, said = process.communicate(timeout=200)
    assert "Traceback" not in said, said
    return process.returncode, out, said


@pytest.mark.parametrize("name", ["train.sh", "walkforward.sh"])
def test_a_script_is_bash_and_short(name: str, cluster: Cluster) -> None:
    checked = subprocess.run([str(BASH), "-n", str(cluster.folder / name)], capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert len(SCRIPTS[name].splitlines()) <= 12


def test_a_training_whose_time_is_up_goes_on_as_a_new_job(cluster: Cluster) -> None:
    """SLURM signals the shell alone, which passes it on."""
    run, asked = cluster.folder / "run", cluster.folder / "asked"
    words = "train.sh", "--threads", 1, "--episodes", 4000, "--out", run
    process = cluster.begin(*words, JOB_ID=4711)
    metrics, deadline = run / "metrics.jsonl", time.monotonic() + 120
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < 3:
        assert process.poll() is None, ended(process)
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGUSR1)
    code, out, said = ended(process)
    assert (code, out, asked.read_text()) == (75, "", "requeue 4711\n")
    last = said.splitlines()[-1]
    found = re.match(r"stopped; \S* keeps all up to iteration (\d+), \S*model-so-far\.swt is the model so far; ", last)
    assert found is not None, said
    assert printed(last) == [["train", "--resume", "--out", str(run), "--episodes", "4000"]]
    more = 2 * (int(found[1]) + 2)  # episodes of two more iterations
    code, out, said = ended(cluster.begin("train.sh", "--threads", 1, "--episodes", more, "--out", run, JOB_ID=4711))
    assert code == 0, said
    assert f"resuming after iteration {found[1]}, " in said
    assert (run / "model.swt").exists()
    assert asked.read_text() == "requeue 4711\n", "a run that has ended is not begun again"


def test_an_array_trains_and_one_job_judges(cluster: Cluster) -> None:
    """Tasks that run at once, each in processes of its own."""
    out = cluster.folder / "wf"
    words = "walkforward.sh", "--folds", 2, "--seeds", 1, "--episodes", 4, "--out", out
    tasks = [cluster.begin(*words, ARRAY_TASK_ID=task, ARRAY_TASK_COUNT=2) for task in range(2)]
    for process in tasks:
        code, printed_text, said = ended(process)
        assert (code, printed_text) == (0, ""), said
    assert {path.parent.name for path in out.glob("*/*/result.json")} == {"1-0", "2-0"}
    assert not (out / "walkforward.json").exists()
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/*/result.json")}
    code, printed_text, said = ended(cluster.begin(*words))
    assert code == 0, said
    assert "Verdict: " in printed_text
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/*/result.json")} == before
    assert (out / "bars" / "report.json").exists()
    events = [json.loads(line)["event"] for line in (cluster.folder / "trials.jsonl").read_text().splitlines()]
    assert events == ["begin", "end"]
