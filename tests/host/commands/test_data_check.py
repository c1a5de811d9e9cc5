"""`data-check` names what is wrong by line, and the flags for what a file leaves open."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from host.commands.backtest import log_source
from host.commands.data_check import check_data, print_check
from host.commands.train import TrainOptions, train_files
from host.config import load_config
from host.data.csv_reader import read_bars
from host.data.formats import DataError, ReadOptions
from host.training.dataset import DatasetError, new_dataset
from host.training.trainer import Budget
from kernels.market.bars import SECOND_NS
from tests.fixtures.excerpts import SAMPLES
from tests.fixtures.files import FAULTS, HEADER, rows, write
from tests.fixtures.headers import KNOWN
from tests.fixtures.markets import KINDS, write_bars
from tests.fixtures.paths import DATA, ROOT

KEYS = {"format", "rows", "first", "last", "interval_s", "timezone", "label", "side", "problems"}
KEYS |= {"spread", "spread_px", "range_px", "point", "hours"}


def printed(document: dict[str, object]) -> str:
    out = io.StringIO()
    print_check(document, out)
    return out.getvalue()


@pytest.mark.parametrize("path", sorted(DATA.glob("*.csv")), ids=lambda path: path.name)
def test_good_files_have_no_problems(path: Path) -> None:
    document = check_data(path, ReadOptions())
    assert set(document) >= KEYS
    assert document["problems"] == []
    assert document["refused"] is None
    assert printed(document).endswith("nothing to refuse\n")


@pytest.mark.parametrize(("changes", "kind"), FAULTS)
def test_a_bad_row_is_named(changes: dict[int, str], kind: str, tmp_path: Path) -> None:
    lines = rows()
    fields = lines[5].split(",")
    for column, text in changes.items():
        fields[column] = text
    document = check_data(write(tmp_path, [*lines[:5], ",".join(fields), *lines[6:]]), ReadOptions())
    assert document["problems"] == [{"kind": kind, "line": 7, "text": ",".join(fields)}]
    assert document["rows"] == 11
    assert "--drop-bad" in document["refused"]
    assert f"1 x {kind}" in printed(document)
    assert "  line 7: " in printed(document)


def test_a_hole_is_named_and_no_reason_to_refuse(tmp_path: Path) -> None:
    later = [line.replace("03-24", "04-24") for line in rows()]
    document = check_data(write(tmp_path, [*rows(), *later]), ReadOptions())
    text = "no bars for 732 h, from 2021-03-24T12:00:00Z"
    assert document["problems"] == [{"kind": "hole", "line": 14, "text": text}]
    assert document["refused"] is None
    assert printed(document).count(text) == 1


def test_long_lists_are_cut_for_people_only(tmp_path: Path) -> None:
    lines = rows(24) + ["rubbish"] * 15
    document = check_data(write(tmp_path, lines), ReadOptions())
    assert len(document["problems"]) == 15
    assert "and 5 more" in printed(document)


def test_training_says_what_the_check_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On one screen: symbol, pip, point, spread, clock with its doubts, holes and what was assumed."""
    later = [line.replace("03-24", "04-24") for line in rows()]
    path = write(tmp_path, [*rows(), *later], "GBPUSD.csv")
    log_source(read_bars(path)[1])
    said = capsys.readouterr().err
    document = check_data(path, ReadOptions())
    assert printed(document) == f"{said}{document['training']}\nnothing to refuse\n"
    assert said.startswith(f"{path}: canonical, 24 bars of 3600 s, 2021-03-24T01:00:00Z .. ")
    for part in (
        "GBPUSD, pip 0.0001, point 1e-05; side bid, clock UTC",
        "spread 0.00012 = 1.2 pips",
        "1 x hole",
        "--spread 1.2",
    ):
        assert part in said


def test_flags_that_would_settle_it(tmp_path: Path) -> None:
    path = write(tmp_path, [row.replace("Z", "") for row in rows()])
    assumed = ["--side bid", "--timezone UTC", "--label open", "--spread 0.8", "--pip 0.0001"]
    assert check_data(path, ReadOptions())["assumed"] == assumed
    said = ReadOptions(side="ask", timezone="Europe/Athens", label="close", spread_pips=1.0, pip=0.0001)
    assert check_data(path, said)["assumed"] == []
    with_offset = check_data(write(tmp_path, rows()), ReadOptions())["assumed"]
    assert with_offset == [flag for flag in assumed if "timezone" not in flag]
    assert check_data(DATA / "lean.csv", ReadOptions())["assumed"] == ["--timezone UTC", *assumed[2:3], assumed[4]]


@pytest.mark.parametrize(
    ("name", "dates"), [("h4_then_h1", None), ("level_shift_40pct", None), ("short_day_first", "mdy")]
)
def test_what_the_check_refuses_training_refuses(name: str, dates: str | None, tmp_path: Path) -> None:
    path, reading = DATA / "found" / f"{name}.csv", ReadOptions(dates=dates, drop_bad=True)
    with pytest.raises(DataError) as refused:
        train_files([path], reading, load_config(), TrainOptions(tmp_path / "run", Budget(episodes=1), False, 1))
    assert check_data(path, reading)["refused"] == str(refused.value)
    assert refused.value.exit_code == 4


def test_a_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "b.csv"
    path.write_text("Date,Open,High,Low,Close\n03/01/2022,1.1,1.2,1.0,1.1\n")
    document = check_data(path, ReadOptions())
    assert set(document) >= KEYS
    assert (document["format"], document["rows"]) == (None, 0)
    assert [problem["kind"] for problem in document["problems"]] == ["unreadable"]
    assert "--dates dmy or --dates mdy" in document["refused"]
    assert printed(document).startswith("refused: ")


@pytest.mark.parametrize(
    ("content", "code"), [(HEADER + "\n".join(rows()), 0), (HEADER + "\n".join([*rows(), rows()[-1]]), 4)]
)
def test_the_command(content: str, code: int, tmp_path: Path) -> None:
    path = tmp_path / "b.csv"
    path.write_text(content)
    command = [sys.executable, "swt.py", "data-check", str(path), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert set(json.loads(done.stdout)) >= KEYS
    assert done.stderr == ""


def test_every_format_is_known_to_the_tests() -> None:
    """A row of the table that no file tells of is a row that nobody has tried."""
    from host.data.formats import FORMATS

    names = {check_data(path, ReadOptions())["format"] for path in DATA.glob("*.csv")}
    asked = {fmt.name for fmt in FORMATS if fmt.question}  # test_layout answers
    assert {fmt.name for fmt in FORMATS} - names - asked == {row[0] for row in KNOWN} - names
    assert {read[0] for read in SAMPLES.values() if isinstance(read, tuple)} <= names


def test_a_file_that_is_too_short_to_train_on_says_so(tmp_path: Path) -> None:
    """Of 700 bars the check said "nothing to refuse", and training refused them."""
    path = write_bars(tmp_path / "USDSEK_H1.csv", "USDSEK", KINDS["USDSEK"], 700)
    document, (bars, source) = check_data(path, ReadOptions()), read_bars(path)
    with pytest.raises(DatasetError) as refused:
        new_dataset(bars, np.zeros((700, 0)), load_config(), source.instrument, source.interval_s * SECOND_NS, 1)
    said = re.fullmatch(r"not enough to train with the default episode of \d+ decisions: (.*)", document["training"])
    assert said
    assert str(refused.value).endswith(said[1])
    assert document["refused"] is None
    assert printed(document).endswith(f"{said[0]}\nnothing to refuse\n")
    more = re.match(r"bring at least (\d+) bars", said[1])
    assert more
    path = write_bars(tmp_path / "USDSEK_H1.csv", "USDSEK", KINDS["USDSEK"], int(more[1]))
    assert check_data(path, ReadOptions())["training"] is None
