"""Lines of results: whole ones count, a torn one is measured again, and numbers come back as they are printed."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.bench.job_results import add_result, read_results, rounded
from host.bench.options import BenchError

ROW = {"seed": 3, "result": {"curve": [0.123456789, 1e-9, 240.0], "trades": 7, "name": None, "settings": ("a", "b")}}


def test_results_are_read_back_by_key(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    assert read_results(path) == {}
    add_result(path, "one", ROW)
    add_result(path, "two", {"seed": 4})
    kept = {"curve": [0.123457, 1e-9, 240.0], "trades": 7, "name": None, "settings": ["a", "b"]}
    assert read_results(path) == {"one": {"seed": 3, "result": kept}, "two": {"seed": 4}}
    add_result(path, "one", {"seed": 5})
    assert read_results(path)["one"] == {"seed": 5}


@pytest.mark.parametrize("torn", [1, 10])
def test_a_torn_line_is_no_result(torn: int, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    add_result(path, "one", ROW)
    add_result(path, "two", ROW)
    path.write_bytes(path.read_bytes()[:-torn])
    assert [*read_results(path)] == ["one"]
    add_result(path, "three", ROW)
    assert [*read_results(path)] == ["one", "three"]


@pytest.mark.parametrize("text", ["<<<<<<< ours", "[1]", "7", '{"seed": 1}'])
def test_a_line_that_is_no_result_is_named(text: str, tmp_path: Path) -> None:
    """As a merge of two branches leaves it."""
    path = tmp_path / "x.jsonl"
    add_result(path, "one", ROW)
    path.write_text(path.read_text() + text + "\n")
    with pytest.raises(BenchError, match=r"x\.jsonl: line 2 is no result of a job: delete that line"):
        read_results(path)


def test_what_is_no_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        add_result(tmp_path / "x.jsonl", "one", {"loss": float("nan")})
    assert not read_results(tmp_path / "x.jsonl")


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_keeps_six_digits(value: float) -> None:
    again = json.loads(json.dumps(rounded([value])))[0]
    assert abs(again - value) <= 5.1e-6 * abs(value) + 1e-323
    assert rounded(again) == again
