"""The reader of target.csv takes a whole, new, valid row it may trade, and nothing else."""

import re
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host.atomic import replace_file, write_atomic
from host.live import target_file as module
from host.live.bridge import Bridge
from host.live.target_file import (
    POSITION_HEADER,
    TARGET_HEADER,
    PositionRow,
    RowError,
    TargetRow,
    format_position,
    format_target,
    parse_position,
    parse_target,
)
from kernels.market.bars import SECOND_NS
from tests.fixtures.paths import ROOT
from tests.fixtures.targets import FAULTS, GOOD, NOW, ROW


def bridge(folder: Path, row: TargetRow | bytes | None, now_ns: int = NOW) -> Bridge:
    data = format_target(row).encode() if isinstance(row, TargetRow) else row
    if data is not None:
        (folder / "target.csv").write_bytes(data)
    return Bridge(folder, "EURUSD", 1.0, lambda: now_ns)


def test_a_good_row_is_taken_once(tmp_path: Path) -> None:
    reader = bridge(tmp_path, ROW)
    assert reader.poll() == -0.5
    assert (reader.poll(), reader.refusal) == (None, "repeated")
    bridge(tmp_path, ROW._replace(seq=8, target=0.0))
    assert (reader.poll(), reader.refusal) == (0.0, "")
    bridge(tmp_path, ROW)  # an older row comes back
    assert (reader.poll(), reader.refusal) == (None, "repeated")


@pytest.mark.parametrize("reason", FAULTS)
def test_every_fault_is_refused_by_name(tmp_path: Path, reason: str) -> None:
    reader = bridge(tmp_path, FAULTS[reason])
    assert reader.poll() is None
    assert reader.refusal.startswith(re.sub(" +", " ", reason))
    assert reader.seq == 0


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_a_torn_or_damaged_file_is_never_a_row(data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(GOOD)))
    stop = data.draw(st.integers(first, min(len(GOOD), first + 9)))
    damaged = GOOD[:first] + data.draw(st.binary(max_size=9)) + GOOD[stop:]
    for parse in (parse_target, parse_position):
        if parse is parse_position or damaged.replace(b"\r\n", b"\n") != GOOD:
            with pytest.raises(RowError):
                parse(damaged)


@settings(deadline=None, max_examples=100)
@given(seq=st.integers(0, 2**62), at=st.integers(0, 4_000_000_000), held=st.floats(-1, 1).map(lambda x: round(x, 4)))
def test_rows_survive_a_round_trip(seq: int, at: int, held: float) -> None:
    row = TargetRow(
        seq, at * SECOND_NS, at * SECOND_NS, (at + 60) * SECOND_NS, "EURUSD.m", held, "reducing spread", "ab"
    )
    assert parse_target(format_target(row).encode()) == row
    position = PositionRow(seq, at * SECOND_NS, "EURUSD.m", held)
    assert parse_position(format_position(position).encode()) == position


def test_the_row_is_the_documented_one() -> None:
    head, row, end = format_target(ROW).split("\n")
    assert head == "seq,decided_utc,bar_close_utc,valid_until_utc,symbol,target,reason,model,crc32"
    stamps = "2024-05-15T11:59:59Z,2024-05-15T11:59:58Z,2024-05-15T12:01:00Z"
    text = f"7,{stamps},EURUSD,-0.5000,active agent,0123456789abcdef"
    assert row == f"{text},{zlib.crc32(text.encode()):08x}"
    assert end == ""
    assert ",0.0000," in format_target(ROW._replace(target=-1e-9))


def test_the_bridge_reports_what_it_holds(tmp_path: Path) -> None:
    reader = bridge(tmp_path, ROW)
    reader.poll()
    reader.report_position(-0.5)
    assert parse_position((tmp_path / "position.csv").read_bytes()) == PositionRow(7, NOW, "EURUSD", -0.5)


def test_the_expert_advisor_has_the_same_headers_and_refusals() -> None:
    text = (ROOT / "host" / "live" / "swt_bridge.mq5").read_text()
    assert len(text.splitlines()) <= 150
    assert f'"{TARGET_HEADER}"' in text
    assert f'"{POSITION_HEADER}"' in text
    assert f'"{module.DRY_RUN_PREFIX}"' in text
    for refusal in ("torn", "bad crc", "symbol ", "repeated", "expired", "from the future", "above the maximum"):
        assert f'return "{refusal}"' in text


def test_replacing_waits_for_a_reader_as_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusals, replace = [3], Path.replace

    def busy(self: Path, other: Path) -> Path:
        refusals[0] -= 1
        if refusals[0] >= 0:
            raise PermissionError("in use")
        return replace(self, other)

    monkeypatch.setattr(Path, "replace", busy)
    write_atomic(tmp_path / "target.csv", "one\n")
    assert (tmp_path / "target.csv").read_bytes() == b"one\n"
    assert refusals == [-1]
    monkeypatch.setattr("host.atomic.RETRY_TIMEOUT_S", 0.03)
    refusals[0] = 10**9
    with pytest.raises(PermissionError):
        replace_file(tmp_path / "target.csv", tmp_path / "other.csv")
