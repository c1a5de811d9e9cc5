"""`act` is killed, and meets disks that fail, at any moment: what it promised holds, and no error is without its line.

SWT_TRIES=300 kills and injects so often; without it a few times.
"""

import io
import os
import random
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from host.atomic import WriteError
from host.commands.replay import replay_journal
from host.live import runner as module
from host.live.journal import read_journal
from host.live.live_agent import DECISION_COLUMNS
from host.live.target_file import DRY_RUN_PREFIX, UNWRITTEN_REASON, TargetRow, parse_target
from tests.fixtures.acting import outcomes
from tests.fixtures.kills import killed
from tests.fixtures.scenes import DECISIONS, Disk, Scene, failing, scene

__all__ = ["scene"]  # a fixture

TRIES = int(os.environ.get("SWT_TRIES", "12"))


def target_of(folder: Path) -> TargetRow | None:
    path = folder / "target.csv"
    return parse_target(path.read_bytes()) if path.exists() else None


def decided(folder: Path) -> list[list[str]]:
    return [outcome["row"] for outcome in outcomes(folder) if outcome["row"]]


def printed(text: str) -> list[list[str]]:
    """Rows without header and latency; a line that a kill cut short is none."""
    lines = [line.split(",") for line in text.splitlines()]
    return [line[:-1] for line in lines if line != [*DECISION_COLUMNS] and len(line) == len(DECISION_COLUMNS)]


def check_end(scene: Scene, folder: Path, live: bool, text: str) -> int:
    """All decisions are in the journal and on stdout; each part can be replayed; how many lines came twice."""
    assert decided(folder) == scene.expected[live]
    rows = printed(text)
    assert [row for i, row in enumerate(rows) if row not in rows[:i]] == scene.expected[live]
    for path in [*folder.glob("journal-*.jsonl"), folder / "journal.jsonl"]:
        replay_journal(path, scene.trained.path, io.StringIO(), False)
    row, last = target_of(folder), outcomes(folder)[-1]
    assert row
    assert (row.seq, row.target) == (last["seq"], last["target"])
    return len(rows) - len(scene.expected[live])


def check_killed(folder: Path) -> None:
    """The target is whole and of the last outcome, or of the one before; a position has a flat row in reserve."""
    path = folder / "journal.jsonl"
    made = [record["seq"] for _, record in read_journal(path) if "seq" in record] if path.exists() else []
    row = target_of(folder)
    if row:
        last = made[-1] if made else row.seq  # a snapshot has no outcome of its own
        assert last - 1 <= row.seq <= last
    if row and row.target:
        spare = parse_target((folder / ".target.reserve").read_bytes())
        assert spare.target == 0
        assert spare.seq >= row.seq + 2
        assert spare.reason.endswith(UNWRITTEN_REASON)
        assert spare.reason.startswith(DRY_RUN_PREFIX) == row.reason.startswith(DRY_RUN_PREFIX)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process of its own takes seconds each without fork")
@pytest.mark.parametrize("live", [False, True])
def test_kills_at_any_moment(live: bool, scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, counts = random.Random(TRIES), Counter[str]()
    while counts["kills"] < TRIES // 2:
        monkeypatch.setattr(module, "ROTATE_BYTES", draw.choice((40_000, module.ROTATE_BYTES)))
        folder = tmp_path / str(counts["runs"])
        folder.mkdir()
        size = 0
        work = partial(act, scene, folder, live)
        while not killed(work, draw.random() * draw.choice((0.1, 0.3, 1.0)), folder / "said"):
            counts["kills"] += 1
            check_killed(folder)
            before, size = size, sum(path.stat().st_size for path in folder.glob("journal*.jsonl"))
            counts["kills at work"] += size > before
        counts["runs"] += 1
        counts["lines twice"] += check_end(scene, folder, live, (folder / "out").read_text())
    print(f"live={live}: {dict(counts)}")
    assert counts["lines twice"] <= 0.02 * TRIES + 1


def act(scene: Scene, folder: Path, live: bool) -> int:
    with (folder / "out").open("a") as out:
        scene.act(folder, live, out)
    return 0


FAULTS = [("short", 10**9), ("full", 1), ("full", 10**9), ("broken", 1), ("rename", 1), ("rename", 10**9), ("fsync", 1)]


def test_faults_of_a_disk_at_any_moment(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw, counts = random.Random(TRIES), Counter[str]()
    for i in range(TRIES):
        monkeypatch.setattr(module, "ROTATE_BYTES", draw.choice((40_000, module.ROTATE_BYTES)))
        fault, times = FAULTS[i % len(FAULTS)]
        live, folder, out = fault == "fsync" or draw.random() < 0.5, tmp_path / str(i), io.StringIO()
        folder.mkdir()
        first = draw.randrange({"rename": 2, "fsync": 1}.get(fault, 9) * DECISIONS)
        disk, error = Disk(folder, fault, first, times, draw), None
        try:
            with failing(disk):
                scene.act(folder, live, out)
        except WriteError as caught:
            error = caught
        counts[f"{fault} x{times}: {'ends' if error else 'goes on'}"] += 1
        row = target_of(folder)
        if error:
            assert str(folder) in str(error)
            assert error.exit_code == 1
            assert row is None or row.target == 0, f"{error}: {row}"
        assert bool(error) == (disk.failed > 0 and fault != "short")
        assert "NOT FLAT" not in capsys.readouterr().err
        scene.act(folder, live, out)
        counts["lines twice"] += check_end(scene, folder, live, out.getvalue())
    print(*sorted(counts.items()), sep="\n")
    assert counts["lines twice"] <= 0.1 * TRIES + 1  # printed, and no room to note it
