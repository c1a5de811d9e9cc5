"""What a line means: clocks and stamps, and how every real excerpt is recognised or refused."""

import subprocess
import sys
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host.data.csv_reader import read_bars
from host.data.formats import DataError, ReadOptions
from host.data.parsing import parse_stamp, wall_offset_ns
from kernels.market.bars import SECOND_NS
from tests.fixtures.excerpts import SAMPLES, SETTLED
from tests.fixtures.files import check_both_ways, real, rows, write
from tests.fixtures.paths import REAL, ROOT

CLOCKS = [  # clock, its hands, UTC
    ("Europe/Athens", "2021-01-15 12:00", "2021-01-15 10:00"),
    ("Europe/Athens", "2021-07-15 12:00", "2021-07-15 09:00"),
    ("Europe/Athens-7h", "2021-03-26 17:00", "2021-03-26 22:00"),  # New York has changed already, Europe has not
    ("Europe/Athens-7h", "2021-03-28 17:00", "2021-03-28 21:00"),
    ("Europe/Athens-7h", "2021-10-29 16:59", "2021-10-29 20:59"),
    ("Europe/Athens-7h", "2021-11-01 17:00", "2021-11-01 22:00"),
    ("UTC-5h", "2021-07-15 12:00", "2021-07-15 17:00"),
    ("Asia/Kolkata", "2021-07-15 12:00", "2021-07-15 06:30"),
    ("America/New_York+7h", "2021-03-12 12:00", "2021-03-12 10:00"),  # a server with American dates
    ("America/New_York+7h", "2021-03-15 12:00", "2021-03-15 09:00"),
    ("America/New_York+7h", "2021-11-05 12:00", "2021-11-05 09:00"),
    ("America/New_York+7h", "2021-11-08 12:00", "2021-11-08 10:00"),
]


@pytest.mark.parametrize(("clock", "hands", "utc"), CLOCKS)
def test_clocks(clock: str, hands: str, utc: str) -> None:
    wall_ns, is_utc = parse_stamp("iso", hands, "")
    assert not is_utc
    assert wall_ns - wall_offset_ns(clock, wall_ns // (900 * SECOND_NS)) == parse_stamp("iso", utc, "")[0]


@given(st.datetimes(datetime(1990, 1, 1), datetime(2035, 1, 1)))
@settings(deadline=None, max_examples=50)
def test_offsets_are_those_of_the_zone(wall: datetime) -> None:
    wall = wall.replace(second=0, microsecond=0, fold=0)
    expected = wall.replace(tzinfo=ZoneInfo("Europe/Athens")).timestamp()
    wall_ns = parse_stamp("iso", wall.isoformat(), "")[0]
    assert wall_ns - wall_offset_ns("Europe/Athens", wall_ns // (900 * SECOND_NS)) == expected * SECOND_NS


def test_a_machine_without_time_zones_knows_utc() -> None:
    """Windows has none, unless the package tzdata is installed."""
    program = (
        "import sys, zoneinfo\nzoneinfo.reset_tzpath(())\nsys.modules['tzdata'] = None\n"
        "from host.data.formats import DataError\nfrom host.data.parsing import wall_offset_ns\n"
        "print(wall_offset_ns('UTC', 0), wall_offset_ns('UTC+2h', 0))\n"
        "try:\n    wall_offset_ns('Europe/Athens', 0)\nexcept DataError as error:\n    print(error)"
    )
    said = subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, text=True)
    assert said.startswith(f"0 {7200 * SECOND_NS}\n--timezone Europe/Athens")
    assert "pip install tzdata" in said


@pytest.mark.parametrize("clock", ["Mars/Olympus", "../etc/passwd", "Europe", "UTC+99999h"])
def test_no_such_clock(clock: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="timezone"):
        read_bars(write(tmp_path, rows()), ReadOptions(timezone=clock))


@real
def test_every_real_excerpt_is_listed() -> None:
    assert {path.name for path in (REAL / "format_samples").iterdir()} == set(SAMPLES)


@real
@pytest.mark.parametrize("name", SAMPLES)
def test_real_excerpts(name: str) -> None:
    path, expected = REAL / "format_samples" / name, SAMPLES[name]
    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected):
            read_bars(path)
        return
    _, source = read_bars(path)
    assert (source.format, source.rows, source.side) == expected
    assert source.problems == []
    check_both_ways(path.read_bytes(), name)


@real
@pytest.mark.parametrize(("name", "options", "count"), SETTLED)
def test_real_excerpts_with_the_flag_they_need(name: str, options: ReadOptions, count: int) -> None:
    assert read_bars(REAL / "format_samples" / name, options)[1].rows == count
