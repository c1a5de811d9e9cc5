"""Locks that hold, writes that are whole, and a journal that goes on whatever stands beside it."""

import errno
import io
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from host import atomic as module
from host.atomic import (
    LockedError,
    OutputPathError,
    WriteError,
    create_file,
    locked,
    overwrite,
    write_all,
    write_atomic,
)
from host.commands.act import act_on_feed, new_live_options, run_live
from host.commands.backtest import backtest_csv
from host.commands.pack import pack
from host.data.formats import ReadOptions
from host.live.journal import Journal, read_journal
from host.live.live_agent import DecisionPrinter
from host.live.runner import LiveOptions, LiveRunner
from host.live.target_file import UNWRITTEN_REASON, TargetRow, parse_target, reserve_row
from kernels.market.bars import SECOND_NS
from kernels.market.features import HISTORY
from tests.fixtures.paths import ROOT
from tests.fixtures.scenes import GUARD, Disk, Scene, failing, scene
from tests.fixtures.trained import ROWS, Trained, feed_of

__all__ = ["scene"]  # a fixture


class Stingy(io.FileIO):
    """A file that takes one byte a write, or none."""

    most = 1

    def write(self, data: Any, /) -> int:
        return super().write(memoryview(data)[: self.most])


def test_a_write_is_whole_however_little_is_taken_at_once(tmp_path: Path) -> None:
    with Stingy(tmp_path / "x", "w") as file:
        write_all(file, b"all of it")
        file.most = 0
        with pytest.raises(OSError, match="took nothing"):
            write_all(file, b"more")
    assert (tmp_path / "x").read_bytes() == b"all of it"


def test_what_a_command_reads_is_not_written_over(trained: Trained, tmp_path: Path) -> None:
    feed = feed_of(ROWS[: HISTORY + 9], tmp_path / "EURUSD.csv")
    model = tmp_path / "model.swt"
    model.write_bytes(trained.path.read_bytes())
    (tmp_path / "link.csv").symlink_to(feed)
    for out in (feed, model, tmp_path / "link.csv"):
        with pytest.raises(OutputPathError, match="is read by this command"):
            backtest_csv(feed, model, ReadOptions(), None, out)
    with pytest.raises(OutputPathError, match="is read by this command"):
        pack(model, model)
    assert model.read_bytes() == trained.path.read_bytes()


def test_what_is_written_over_leaves_nothing_behind(tmp_path: Path) -> None:
    write_atomic(tmp_path / "x", "a long text\n")
    overwrite(tmp_path / "x", "short\n")
    assert (tmp_path / "x").read_bytes() == b"short\n"
    with pytest.raises(WriteError, match=f"{tmp_path}/none: No such file") as caught:
        overwrite(tmp_path / "none", "x")
    assert caught.value.exit_code == 1


LOCK = """
import sys
from pathlib import Path
from host.atomic import locked
with locked(Path(sys.argv[1])):
    print(1)
"""


def another(path: Path) -> str:
    """What another process says that wants the lock."""
    done = subprocess.run([sys.executable, "-c", LOCK, str(path)], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or done.stderr.splitlines()[-1]


@pytest.mark.skipif(os.name == "nt", reason="there, an open file cannot be deleted")
def test_a_deleted_lock_lets_nobody_in(tmp_path: Path) -> None:
    with locked(tmp_path / "lock") as check_held:
        assert "in use" in another(tmp_path / "lock")
        (tmp_path / "lock").unlink()
        assert "whose lock was deleted" in another(tmp_path / "lock")
        check_held()
    assert another(tmp_path / "lock") == "1"


@pytest.mark.skipif(os.name == "nt", reason="there, a folder with open files cannot be moved")
@pytest.mark.parametrize("have_locks", [True, False])
def test_who_holds_a_folder_notices_that_it_was_moved(
    have_locks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or that the lock was deleted, on a drive whose folders cannot be locked."""
    lock, folder = module._lock, tmp_path / "out"

    def no_folders(handle: int) -> None:
        if os.path.isdir(handle):
            raise OSError(errno.EBADF, "no locks here")
        lock(handle)

    if not have_locks:
        monkeypatch.setattr(module, "_lock", no_folders)
    folder.mkdir()
    with locked(folder / "lock") as check_held:
        check_held()
        (folder / "file").touch()
        check_held()
        folder.rename(tmp_path / "moved")
        with pytest.raises(LockedError, match="was moved or deleted"):
            check_held()
        folder.mkdir()
        with pytest.raises(LockedError, match="writes no more there") as caught:
            check_held()
        assert caught.value.exit_code == 8
        assert another(folder / "lock") == "1"


@pytest.mark.skipif(os.name == "nt", reason="there, a folder with open files cannot be moved")
def test_a_folder_made_anew_is_not_written_into(scene: Scene, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()

    def bars() -> Any:
        for i, bar in enumerate(scene.bars()):
            if i == HISTORY + 9:
                folder.rename(tmp_path / "moved")
                folder.mkdir()
            yield bar

    with locked(folder / "lock") as check_held:
        publishing = LiveOptions(folder, False, False, "EURUSD", GUARD)
        office = LiveRunner(scene.trained.loaded, publishing, DecisionPrinter(io.StringIO(), False), check_held)
        with pytest.raises(LockedError, match="out was moved"):
            run_live(office, bars())
    assert list(folder.iterdir()) == []
    assert parse_target((tmp_path / "moved" / "target.csv").read_bytes()).seq == 10


def test_files_of_other_names_are_left_alone_by_a_rotation(tmp_path: Path) -> None:
    others = [f"journal-{name}" for name in ("old.jsonl", ".jsonl", "1.jsonl", "000007.bak", "\u00b2\u00b2.jsonl")]
    for name in others:
        (tmp_path / name).write_text("mine")
    journal = Journal(tmp_path)
    for i in range(4):
        journal.append({"a": i})
        journal.rotate({"b": i})
    journal.close()
    Journal(tmp_path).close()
    assert [(tmp_path / name).read_text() for name in others] == ["mine"] * len(others)
    parts = sorted(tmp_path.glob("journal-00000?.jsonl"))
    assert [path.stem[-6:] for path in parts] == [f"{i:06}" for i in (1, 2, 3, 4)]


@pytest.mark.parametrize("renames", [0, 1])
@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_rotation_that_fails_leaves_a_journal_to_go_on_with(renames: int, times: int, tmp_path: Path) -> None:
    """A stop must be journaled after it: no closed file, nothing lost."""
    journal = Journal(tmp_path)
    journal.append({"a": 1})
    with failing(Disk(tmp_path, "rename", renames, times, None)), pytest.raises(WriteError):  # type: ignore[arg-type]
        journal.rotate({"b": 2})
    journal.append({"c": 3})
    journal.close()
    paths = [*sorted(tmp_path.glob("journal-*.jsonl")), tmp_path / "journal.jsonl"]
    found = [record for path in paths for _, record in read_journal(path)]
    assert [record for record in found if record != {"b": 2}] == [{"a": 1}, {"c": 3}]
    assert not (tmp_path / "journal.next.jsonl").exists()


def test_a_record_that_was_torn_is_cut_off_before_the_next(tmp_path: Path) -> None:
    with failing(Disk(tmp_path, "full", 1, 1, random.Random(0))):
        journal = Journal(tmp_path)
        journal.append({"a": 1})
        with pytest.raises(WriteError, match="No space"):
            journal.append({"torn": 1})
        assert not journal.path.read_bytes().endswith(b"\n")
        journal.append({"b": 2})
        journal.close()
    assert [record for _, record in read_journal(tmp_path / "journal.jsonl")] == [{"a": 1}, {"b": 2}]


@pytest.fixture
def position(scene: Scene, tmp_path: Path) -> TargetRow:
    """What `out` holds once a process was killed over a position."""
    folder = tmp_path / "out"
    folder.mkdir()
    scene.go_back(folder)
    office = new_office(scene, folder)
    for bar in scene.bars():
        office.on_bar(bar)
        if office._published_row and office._published_row.target:
            break
    office._journal.close()
    return parse_target((folder / "target.csv").read_bytes())


def new_office(scene: Scene, folder: Path) -> LiveRunner:
    publishing = LiveOptions(folder, True, False, "EURUSD", GUARD)
    return LiveRunner(scene.trained.loaded, publishing, DecisionPrinter(io.StringIO(), False))


def test_a_start_that_cannot_journal_goes_flat(
    scene: Scene, position: TargetRow, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the row in reserve: nothing can be written.  It keeps its number once there is room again."""
    folder = tmp_path / "out"
    with failing(Disk(folder, "full", 0, 10**9, random.Random(0))), pytest.raises(WriteError, match="No space"):
        new_office(scene, folder)
    spare = parse_target((folder / "target.csv").read_bytes())
    assert spare == reserve_row(position)
    assert (spare.seq, spare.target, spare.reason) == (position.seq + 2, 0.0, UNWRITTEN_REASON)
    assert spare.valid_until_ns > position.valid_until_ns + 50 * 3600 * SECOND_NS
    again = new_office(scene, folder)
    assert (again._seq(), again._engine.risk_state.target) == (position.seq + 2, 0.0)
    again._journal.close()
    assert "target 0: halted unwritten" in capsys.readouterr().err


@pytest.mark.parametrize("reserve", [b"", b"seq,", None])
def test_where_nothing_can_be_renamed_flat_is_written_over_the_position(
    reserve: bytes | None, scene: Scene, position: TargetRow, tmp_path: Path
) -> None:
    """A power cut may leave no more of the row in reserve, which is not fsynced."""
    folder = tmp_path / "out"
    if reserve is None:
        (folder / ".target.reserve").unlink()
    else:
        (folder / ".target.reserve").write_bytes(reserve)
    disk = Disk(folder, "rename", 0, 10**9, random.Random(0))
    with failing(disk), pytest.raises(WriteError, match="target"):
        new_office(scene, folder)
    assert parse_target((folder / "target.csv").read_bytes()) == reserve_row(position)


def test_a_position_that_cannot_be_made_flat_is_said_aloud(
    scene: Scene,
    position: TargetRow,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("host.live.runner.overwrite", write_atomic)
    disk = Disk(tmp_path / "out", "rename", 0, 10**9, random.Random(0))
    with failing(disk), pytest.raises(WriteError):
        new_office(scene, tmp_path / "out")
    assert f"target.csv IS NOT FLAT: {position.target:g} until 20" in capsys.readouterr().err


def test_a_folder_that_is_none_is_one_line(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    feed = feed_of(ROWS[:HISTORY], tmp_path / "EURUSD.csv")
    publishing = new_live_options(str(feed), tmp_path / "out", False, None, False, None, None)
    with pytest.raises(WriteError, match="out: File exists"):
        act_on_feed(str(feed), trained.path, ReadOptions(), False, io.StringIO(), False, publishing)


@pytest.mark.parametrize("fault", [None, OSError(errno.EPERM, "Operation not permitted"), NotImplementedError()])
def test_a_file_is_created_whole_and_once(
    fault: Exception | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A drive without hard links gets the file too."""
    if fault is None:
        (tmp_path / "old").write_text("first")
        with pytest.raises(FileExistsError):
            create_file(tmp_path / "old", b"second")
        assert (tmp_path / "old").read_text() == "first"
        (tmp_path / "old").unlink()
    else:
        monkeypatch.setattr(os, "link", Mock(side_effect=fault))
    create_file(tmp_path / "new", b"all")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("new", b"all")]
