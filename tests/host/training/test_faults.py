"""Disks that fail while training, and kills: one line, a documented exit code, and a run that ends in the same bytes.

SWT_TRIES=1000 makes every call of a short run and of its resumption fail in every way, and kills 200 times; the default
is a part of that.
"""

import json
import os
import random
import re
import shutil
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import swt
from host import atomic
from host.training.run_dir import open_run_dir
from tests.fixtures.disks import ERRORS, LASTING, ONCE, SHORT, Disk, faults
from tests.fixtures.kills import killed
from tests.fixtures.runs import LINES, TINY

TRIES = int(os.environ.get("SWT_TRIES", "32"))
KILLS = min(TRIES // 5, 200)
FIRST, LAST = 2, 4  # episodes of the part that is resumed, and of the whole: one and two iterations
WRITTEN = ("model.swt", "checkpoints/step-000000002.ckpt", "trades.csv", "equity.csv", "daily.csv", "report.html")


def run(folder: Path, episodes: int = LAST, threads: int = 1) -> int:
    """Begin or resume the run in `folder`; the exit code.  A traceback ends the test."""
    words = ["bars.csv", "--config", "tiny.toml", "--out", folder, "--resume", "--threads", threads]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(swt, "install_signal_handlers", lambda *_: None)
        patch.setattr(sys, "argv", ["swt.py", "train", *map(str, words), "--episodes", str(episodes)])
        try:
            swt.main()
        except SystemExit as stop:
            return int(stop.code or 0)
    return 0


def result(folder: Path) -> dict[str, Any]:
    """All that a run determines: files, metrics without times, the two lines of its trial."""
    with open_run_dir(folder, resume=True) as opened:
        rows = [
            {k: v for k, v in row.items() if not re.search(r"_s$|_mb$|_per_minute$", k)}
            for row in opened.read_metrics()
        ]
    events = [json.loads(line)["event"] for line in (folder.parent / "trials.jsonl").read_text().splitlines()]
    kept = sorted(path.name for path in folder.rglob("*"))
    return {**{name: (folder / name).read_bytes() for name in WRITTEN}, "rows": rows, "events": events, "kept": kept}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Bars and settings in the current folder; pages of reports without the seconds that Bokeh takes."""
    monkeypatch.chdir(tmp_path)
    Path("bars.csv").write_text("".join(LINES))
    Path("tiny.toml").write_text(TINY)
    monkeypatch.setattr("host.analysis.html_report.render_html", lambda _: "<p>")
    monkeypatch.setattr(atomic, "RETRY_TIMEOUT_S", 0.05)
    return tmp_path


def test_every_call_that_fails_loses_nothing_promised(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begun, straight = Disk(folder / "straight"), Disk(folder / "half")
    with faults(begun):
        assert run(begun.folder / "run", FIRST) == 0
    shutil.copytree(begun.folder, straight.folder)
    with faults(straight):
        assert run(straight.folder / "run") == 0
    whole = folder / "whole" / "run"
    assert run(whole) == 0
    wanted = result(whole)
    assert result(straight.folder / "run") == {**wanted, "events": ["begin", "end"]}
    counts = Counter[str]()
    parts = {"begun": begun.calls, "resumed": straight.calls}
    cases = chosen(parts)
    for number, (part, at, mode) in enumerate(cases):
        home = folder / f"r{number}"
        if part == "resumed":
            shutil.copytree(begun.folder, home)
        disk = Disk(home, at, mode)
        case = f"{part}, call {at}, {mode}"
        kind, code = parts[part][at], check_fault(disk, case, FIRST if part == "begun" else LAST, capsys)
        counts[f"{kind}: exit {code}"] += 1
        assert result(home / "run") == wanted, case
        shutil.rmtree(home)
    with capsys.disabled():
        print(
            f"\n{len(cases)} faults at {[len(calls) for calls in parts.values()]} calls: {dict(sorted(counts.items()))}"
        )
    assert {count.partition(":")[0] for count in counts} == {*ERRORS}


def chosen(parts: dict[str, list[str]]) -> list[tuple[str, int, str]]:
    """Part, call and mode of so many faults: the first of each kind, and others evenly over all there are."""
    faults = [
        (part, at, mode)
        for part, calls in parts.items()
        for at, kind in enumerate(calls)
        for mode in (ONCE, LASTING, *([SHORT] if kind == "write" else []))
    ]
    first = [(part, calls.index(kind), ONCE) for part, calls in parts.items() for kind in dict.fromkeys(calls)]
    step = max(1, len(faults) // TRIES) | 1  # odd: of two modes not always the same
    return [*dict.fromkeys([*first, *faults[::step]])]


def check_fault(disk: Disk, case: str, episodes: int, capsys: pytest.CaptureFixture[str]) -> int:
    """Train on a disk that fails, and resume on one that does not; the exit code of the first."""
    out = disk.folder / "run"
    capsys.readouterr()
    with faults(disk):
        code = run(out, episodes)
    said = capsys.readouterr().err
    case = f"{case}: exit {code}: {said}"
    assert disk.met, case
    promised = 0
    if code:
        last = said.splitlines()[-1]
        assert code in (1, 2, 3, 5), case
        assert re.match(rf"swt: .*{re.escape(str(disk.folder))}", last), case
        found = re.search(r"keeps all up to iteration (\d+)", last)
        promised = int(found[1]) if found else 0
    assert run(out) == 0, case
    resumed = re.search(r"resuming after iteration (\d+)", capsys.readouterr().err)
    assert (int(resumed[1]) if resumed else 0) >= promised, case
    return code


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process of its own takes seconds each without fork")
def test_kills_at_any_moment_end_in_the_same_bytes(folder: Path) -> None:
    """Each time in another place and with another number of threads."""
    begin = time.perf_counter()
    assert run(folder / "whole" / "run") == 0
    wanted, took = result(folder / "whole" / "run"), time.perf_counter() - begin
    draw, counts = random.Random(KILLS), Counter[str]()
    while counts["kills"] < KILLS:
        home, longest = folder / f"{counts['runs']}", took
        home.mkdir()
        while not killed(
            partial(run, home / "run", threads=1 + counts["kills"] % 2), draw.random() ** 2 * longest, home / "said"
        ):
            counts["kills"] += 1
            longest *= 1.1  # however busy the machine, it comes to its end
            moved = folder / f"{counts['runs']} moved {counts['kills']}"
            home = home.rename(moved)
            counts["kills with a checkpoint"] += bool([*home.glob("run/checkpoints/step-*")])
        counts["runs"] += 1
        found = result(home / "run")
        assert found == {**wanted, "events": found["events"]}
        assert [*dict.fromkeys(found["events"])] == ["begin", "end"]
        shutil.rmtree(home)
    print(dict(counts))
