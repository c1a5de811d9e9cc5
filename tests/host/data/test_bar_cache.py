"""A cached parse is the parse: the same bytes, the same Source, and nothing damaged is believed."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.data import bar_cache, csv_reader
from host.data.csv_reader import parse_bars, read_bars
from host.data.formats import Problem, ReadOptions, Source
from kernels.market.bars import Bars
from tests.fixtures.files import FILES, equal, rows, write
from tests.fixtures.paths import SAMPLE

SIDE = ReadOptions(side="ask")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache that takes small files too."""
    monkeypatch.setattr(bar_cache, "cache_root", lambda: tmp_path / "kernels")
    monkeypatch.setattr(bar_cache, "MIN_ROWS", 1)
    monkeypatch.setattr(csv_reader, "MIN_FILE_BYTES", 1)
    return tmp_path / "bars"


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.bars"))


def must_not_parse(*_: object) -> None:
    raise AssertionError("parsed again")


def same(a: tuple[Bars, Source], b: tuple[Bars, Source]) -> bool:
    return equal(a[0], b[0]) and a[1] == b[1] and all(type(x) is type(y) for x, y in zip(a[0], b[0], strict=True))


@pytest.mark.parametrize("path", [*FILES, SAMPLE], ids=lambda path: path.name)
def test_a_cached_file_is_the_parsed_file(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh, stored = parse_bars(path, SIDE if path == SAMPLE else ReadOptions())[:2], None
    for _ in range(2):
        stored = read_bars(path, SIDE if path == SAMPLE else ReadOptions())
        assert same(stored, fresh)
        monkeypatch.setattr(csv_reader, "parse_bars", must_not_parse)
    assert len(entries(folder)) == 1
    assert stored is not None
    assert all(column.flags.aligned and column.flags.writeable and column.flags.c_contiguous for column in stored[0])


def test_an_array_may_be_written_into_and_the_file_stays(folder: Path) -> None:
    read_bars(SAMPLE, SIDE)[0].close[:] = 1.0
    assert equal(read_bars(SAMPLE, SIDE)[0], parse_bars(SAMPLE, SIDE)[0])


@given(
    numbers=st.lists(st.floats(allow_nan=True), min_size=7, max_size=7),
    texts=st.lists(st.text(max_size=9), min_size=3, max_size=3),
    price=st.floats(allow_nan=False),
)
def test_whatever_is_stored_comes_back(numbers: list[float], texts: list[str], price: float) -> None:
    _, source = SOURCES[0]
    bars = Bars(np.array([-(2**62)]), *(np.array([number]) for number in numbers))
    problems = [Problem("hole", 7, texts[0])]
    source = replace(source, path=texts[1], notes=texts, problems=problems, gaps=problems, spread_px=price)
    path = bar_cache.entry_path("any")
    assert path is not None
    bar_cache.store_entry(path, bars, source)
    found = bar_cache.load_entry(path)
    assert found is not None
    assert found[1] == source
    assert [column.tobytes() for column in found[0]] == [column.tobytes() for column in bars]


SOURCES = [parse_bars(SAMPLE, SIDE)[:2]]


@pytest.mark.parametrize("where", [0, 100, 5000, -1, "cut", "grown", "empty"])
def test_a_damaged_entry_is_made_anew(where: int | str, folder: Path) -> None:
    read_bars(SAMPLE, SIDE)
    (entry,) = entries(folder)
    good = entry.read_bytes()
    data = {"cut": good[:-8], "grown": good + bytes(8), "empty": b""}.get(str(where))
    if isinstance(where, int):
        changed = bytearray(good)
        changed[where] ^= 1
        data = bytes(changed)
    assert data is not None
    entry.write_bytes(data)
    assert same(read_bars(SAMPLE, SIDE), parse_bars(SAMPLE, SIDE)[:2])
    assert entry.read_bytes() == good


def test_another_file_option_path_or_program_is_another_entry(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, counts = write(folder.parent, rows()), []
    for change in (
        lambda: None,
        lambda: None,
        lambda: path.write_text(path.read_text().replace("1.10000", "1.10001", 1)),
        lambda: path.rename(path.with_name("GBPUSD.csv")),
        lambda: monkeypatch.setattr(bar_cache, "reader_digest", lambda: "another"),
    ):
        change()
        read_bars(path if path.exists() else path.with_name("GBPUSD.csv"))
        counts.append(len(entries(folder)))
    assert counts == [1, 1, 2, 3, 4]
    _, source = read_bars(path.with_name("GBPUSD.csv"), ReadOptions(label="close"))
    assert (source.label, source.instrument.symbol, len(entries(folder))) == ("close", "GBPUSD", 5)


def test_the_program_of_the_key_is_every_file_that_reads() -> None:
    assert len(bar_cache.reader_digest()) == 64


def test_entries_that_were_not_used_for_longest_go(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [write(folder.parent, rows(9 + i), f"bars{i}.csv") for i in range(3)]
    stamps = []
    for number, path in enumerate(paths[:2]):
        read_bars(path)
        (new,) = {*entries(folder)} - {*stamps}
        os.utime(new, (number, number))
        stamps.append(new)
    read_bars(paths[0])  # now the second one is the older
    (left := folder / ".x.bars.1.tmp").write_bytes(b"of a killed process")
    os.utime(left, (1, 1))
    monkeypatch.setattr(bar_cache, "MAX_CACHE_BYTES", 2 * stamps[0].stat().st_size + 1000)
    read_bars(paths[2])
    assert stamps[0].exists()
    assert not stamps[1].exists()
    assert not left.exists()
    assert len(entries(folder)) == 2


def test_without_a_folder_files_are_read_all_the_same(folder: Path) -> None:
    folder.write_bytes(b"a file where the folder would be")
    assert same(read_bars(SAMPLE, SIDE), parse_bars(SAMPLE, SIDE)[:2])


def test_a_full_disk_costs_the_entry_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bar_cache, "atomic_write", full)
    assert same(read_bars(SAMPLE, SIDE), parse_bars(SAMPLE, SIDE)[:2])
    assert entries(folder) == []


def test_a_file_that_changes_while_it_is_read_is_not_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_reader, "file_sha256", lambda _: "0" * 64)
    read_bars(SAMPLE, SIDE)
    assert entries(folder) == []
