"""Metrics read back from their lines, and as scalars of TensorBoard, which never end a training."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from host.training import metrics
from host.training.metrics import MetricsError, TensorBoardError, check_tensorboard, read_metrics, scalars, tensorboard
from tests.fixtures.paths import ROOT

ROWS = [{"iteration": i, "episodes": 4 * i, "policy": 1 / i, "parts": {"EURUSD": 0.5 * i}} for i in range(1, 6)]


def test_of_each_iteration_the_last_row_counts_and_a_torn_line_does_not(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps(row) + "\n" for row in [*ROWS, {**ROWS[4], "policy": 7.0}]]
    path.write_text("".join(lines) + '{"iteration": 6, "epi', encoding="utf-8")
    assert [row["policy"] for row in read_metrics(path)] == [1, 1 / 2, 1 / 3, 1 / 4, 7.0]
    path.write_text(lines[0] + "{]\n" + lines[1], encoding="utf-8")
    with pytest.raises(MetricsError, match=r"metrics\.jsonl: line 2 is no row of metrics"):
        read_metrics(path)


def test_scalars_are_the_numbers_of_a_row() -> None:
    row = {"a": 1, "b": None, "c": "word", "d": {"e": 0.5}, "f": True, "g": False, "h": [1]}
    assert scalars(row) == {"a": 1.0, "d/e": 0.5}


def points(folder: Path) -> dict[tuple[str, int], list[float]]:
    """What TensorBoard shows of the event files: a start drops the steps from its own on."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    found = dict[tuple[str, int], list[float]]()
    for path in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event, data = Event.FromString(data[12 : 12 + length]), data[16 + length :]
            if event.session_log.status == SessionLog.START:
                found = {key: values for key, values in found.items() if key[1] < event.step}
            for value in event.summary.value:
                found.setdefault((value.tag, event.step), []).append(value.simple_value)
    return found


def test_a_resumed_run_doubles_no_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboardX", reason="without tensorboardX there are no files for TensorBoard")
    with tensorboard(tmp_path / "board", 0, is_asked=True) as add:
        for row in ROWS[:4]:
            add(row)
    monkeypatch.setattr(metrics.os, "getpid", lambda: 77)
    with tensorboard(tmp_path / "board", 8, is_asked=True) as add:  # the checkpoint was that of iteration 2
        for row in ROWS[2:]:
            add(row)
    found = points(tmp_path / "board")
    assert {key: len(values) for key, values in found.items()} == {
        (name, row["episodes"]): 1 for row in ROWS for name in scalars(row)
    }
    assert found["parts/EURUSD", 20] == [2.5]


@pytest.mark.parametrize("after", [0, 2, 4])
def test_a_disk_that_fails_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], after: int
) -> None:
    pytest.importorskip("tensorboardX", reason="without tensorboardX there are no files for TensorBoard")
    syncs = iter(range(100))

    def fsync(_: Any) -> None:
        if next(syncs) >= after:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fsync)
    with tensorboard(tmp_path / "board", 0, is_asked=True) as add:
        for row in ROWS:
            add(row)
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"warning: {tmp_path / 'board'}: No space left on device: no more scalars")


def test_a_folder_that_cannot_be_made_is_a_warning_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboardX", reason="without tensorboardX there are no files for TensorBoard")
    (tmp_path / "board").write_text("a file", encoding="utf-8")
    with tensorboard(tmp_path / "board", 0, is_asked=True) as add:
        add(ROWS[0])
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_without_the_package_it_is_refused_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "find_spec", lambda name: None)
    check_tensorboard(is_asked=False)
    with pytest.raises(TensorBoardError, match=r"pip install '\.\[tensorboard\]'"):
        check_tensorboard(is_asked=True)


def test_the_package_is_not_imported_unless_it_is_asked_for(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom host.training.metrics import tensorboard\n"
        f"with tensorboard(Path({str(tmp_path / 'board')!r}), 0, False) as add:\n    add({{'episodes': 1}})\n"
        "assert 'tensorboardX' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
    assert not (tmp_path / "board").exists()
