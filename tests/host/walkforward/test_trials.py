"""The ledger counts every run that touched a span, and forgets none."""

import io
import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.commands.train import TrainOptions, train_files
from host.config import load_config
from host.data.formats import ReadOptions
from host.training.trainer import Budget
from host.walkforward.trials import (
    BEGIN,
    END,
    LEDGER,
    Span,
    TrialsError,
    append_trial,
    open_holdout,
    read_ledger,
    trials_of,
)
from tests.fixtures.runs import LINES, TINY

MAY = Span("EURUSD", "2017-05-01T00:00:00Z", "2017-06-01T00:00:00Z")
JUNE = Span("EURUSD", "2017-06-01T00:00:00Z", "2017-07-01T00:00:00Z")
BOTH = Span("EURUSD", "2017-05-20T00:00:00Z", "2017-06-20T00:00:00Z")
OTHER = Span("USDJPY", "2017-05-01T00:00:00Z", "2017-06-01T00:00:00Z")


def test_every_run_that_touched_a_span_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    assert trials_of(path, MAY) == (0, [])
    for trial, span in (("a", MAY), ("b", JUNE), ("c", BOTH), ("d", OTHER), ("a", MAY)):
        append_trial(path, BEGIN, trial, span)
    assert [trials_of(path, span).number for span in (MAY, JUNE, BOTH, OTHER)] == [2, 2, 3, 1]
    append_trial(path, END, "a", MAY, sharpe=0.25)
    append_trial(path, END, "c", BOTH, sharpe=None)  # it did not trade
    append_trial(path, END, "d", OTHER, sharpe=0.5)
    assert trials_of(path, MAY) == (2, [0.25])
    assert len(path.read_text(encoding="utf-8").splitlines()) == 7


@given(st.integers(0, 400))
def test_a_torn_line_is_dropped_and_every_whole_one_stays(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    """A run begins after its line is on the disk, so a torn line is of a run that never began."""
    path = tmp_path_factory.mktemp("torn") / "trials.jsonl"
    for trial in "abc":
        append_trial(path, BEGIN, trial, MAY)
    whole = path.read_bytes()
    path.write_bytes(whole[: min(cut, len(whole))])
    kept = path.read_bytes()
    kept = kept[: kept.rfind(b"\n") + 1]
    assert trials_of(path, MAY).number == kept.count(b"\n")
    append_trial(path, BEGIN, "d", MAY)
    assert path.read_bytes().startswith(kept)
    assert trials_of(path, MAY).number == kept.count(b"\n") + 1


@pytest.mark.parametrize("line", ["{", "[]", '{"event": "begin"}', "7"])
def test_a_damaged_ledger_is_refused_by_name(tmp_path: Path, line: str) -> None:
    path = tmp_path / "trials.jsonl"
    append_trial(path, BEGIN, "a", MAY)
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")
    with pytest.raises(TrialsError, match=r"trials\.jsonl: line 2 .* put the file back") as refused:
        trials_of(path, MAY)
    assert refused.value.exit_code == 3


def test_a_holdout_is_opened_once(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    open_holdout(path, "a", MAY, run="runs/first")
    open_holdout(path, "a", MAY, run="runs/first")  # it was killed and goes on
    for trial, span in (("b", MAY), ("c", BOTH)):
        with pytest.raises(TrialsError, match="was opened by runs/first"):
            open_holdout(path, trial, span)
    open_holdout(path, "b", JUNE)
    open_holdout(path, "b", OTHER)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [(row["trial"], row["market"]) for row in rows] == [("a", "EURUSD"), ("b", "EURUSD"), ("b", "USDJPY")]


def test_a_line_is_on_the_disk_before_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced = tmp_path / "trials.jsonl", list[bytes]()
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(path.read_bytes()))
    append_trial(path, BEGIN, "a", MAY)
    assert {*synced} == {path.read_bytes()}, "of the file and of its folder"
    assert synced[0].endswith(b"\n")


def test_a_training_is_a_trial_of_its_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it begins; the same once more is none, other settings are one, wherever they are trained."""

    def stop(*_: object) -> None:
        raise ArithmeticError

    monkeypatch.setattr("host.commands.train.run_first_iteration", stop)
    (tmp_path / "tiny.toml").write_text(TINY)
    (tmp_path / "bars.csv").write_text("".join(LINES))
    reading, counts = ReadOptions(side="ask", symbol="EURUSD"), list[int]()
    for name, seed in (("1", 0), ("2", 0), ("1", 1)):
        shutil.rmtree(tmp_path / name, ignore_errors=True)
        config = load_config(tmp_path / "tiny.toml", [f"train.seed={seed}"])
        with pytest.raises(ArithmeticError):
            train_files(
                [tmp_path / "bars.csv"], reading, config, TrainOptions(tmp_path / name, Budget(episodes=2), False, 1)
            )
        counts.append(trials_of(tmp_path / "trials.jsonl", Span("EURUSD", "2017-01-01", "2017-12-31")).number)
    assert counts == [1, 1, 2]


def test_a_line_that_another_process_writes_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, span = tmp_path / LEDGER, Span("EURUSD", "2017-01-01T00:00:00Z", "2017-02-01T00:00:00Z")
    append_trial(ledger, BEGIN, "one", span)

    class Disturbed(io.FileIO):
        def read(self, *size: int) -> bytes:
            text = super().read(*size)
            with ledger.open("ab") as other:
                other.write(text.replace(b"one", b"two"))
            return text

    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda *a, **k: Disturbed(a[0], "a+b") if "a+b" in a else opened(*a, **k))
    append_trial(ledger, BEGIN, "last", span)
    monkeypatch.undo()
    assert [row["trial"] for row in read_ledger(ledger)] == ["one", "two", "last"]
