"""Files of one instrument become one history; files that contradict each other are refused with a way out."""

import gzip
import hashlib
import io
import subprocess
import sys
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from host.commands.data_check import check_histories, print_check
from host.data import bar_cache
from host.data.csv_reader import read_bars
from host.data.formats import DataError, ReadOptions
from host.data.history import expand_paths, read_histories
from tests.fixtures.files import FILES, HEADER, equal
from tests.fixtures.paths import ROOT

MONDAY = datetime(2021, 1, 4, 3, 0, tzinfo=UTC)
NONE = ReadOptions()
Line = tuple[datetime, float]


def minutes(begin: datetime, count: int = 90, price: float = 1.1) -> list[Line]:
    return [(begin + timedelta(minutes=k), price + 0.0001 * ((k * 7) % 11)) for k in range(count)]


def months(number: int, year: int = 2021) -> list[list[Line]]:
    return [minutes(MONDAY.replace(year=year) + timedelta(weeks=4 * k)) for k in range(number)]


def histdata(lines: list[Line]) -> str:
    return "".join(f"{t:%Y%m%d %H%M%S};{p:.6f};{p + 2e-4:.6f};{p - 2e-4:.6f};{p:.6f};0\n" for t, p in lines)


def metatrader(lines: list[Line]) -> str:
    server = [(t + timedelta(hours=2), p) for t, p in lines]  # Athens, in winter
    return "".join(f"{t:%Y.%m.%d,%H:%M},{p:.5f},{p + 2e-4:.5f},{p - 2e-4:.5f},{p:.5f},9\n" for t, p in server)


def canonical(lines: list[Line]) -> str:
    rows = (f"{t:%Y-%m-%dT%H:%M:%SZ},{p:.5f},{p + 2e-4:.5f},{p - 2e-4:.5f},{p:.5f},9\n" for t, p in lines)
    return HEADER + "".join(rows)


def write(path: Path, lines: list[Line]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(canonical(lines), encoding="utf-8")
    return path


def pack(path: Path, *files: tuple[str, str]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files:
            archive.writestr(name, text)
            archive.writestr(name.replace(".csv", ".txt"), "File Status Report: gaps of 61 s")
    return path


def vendor_folder(folder: Path) -> Path:
    """2020 as a year, January to March of 2021 as months, and again all of them in one archive."""
    folder.mkdir()
    name = "DAT_ASCII_EURUSD_M1_{}.csv"
    year = [line for month in months(3, 2020) for line in month]
    pack(folder / "HISTDATA_COM_ASCII_EURUSD_M12020.zip", (name.format(2020), histdata(year)))
    parts = [(name.format(f"20210{k}"), histdata(month)) for k, month in enumerate(months(3), 1)]
    for k, part in enumerate(parts, 1):
        pack(folder / f"HISTDATA_COM_ASCII_EURUSD_M120210{k}.zip", part)
    pack(folder / "EURUSD_2021.zip", *parts)
    (folder / ".hidden.csv").write_text("nothing")
    (folder / "notes.md").write_text("nothing")
    return folder


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_one_file_is_what_it_was(path: Path) -> None:
    (history,) = read_histories([path], NONE)
    bars, source = read_bars(path)
    assert equal(history.bars, bars)
    assert history.source == source


def test_years_and_months_of_a_vendor_are_one_history(tmp_path: Path) -> None:
    folder = vendor_folder(tmp_path / "EURUSD")
    (history,) = read_histories([folder], NONE)
    all_lines = [line for year in (2020, 2021) for month in months(3, year) for line in month]
    (tmp_path / "EURUSD.csv").write_text(histdata(all_lines))
    bars, source = read_bars(tmp_path / "EURUSD.csv")
    assert equal(history.bars, bars)
    joined = history.source
    assert (joined.rows, joined.first, joined.last) == (source.rows, source.first, source.last)
    assert (joined.spread, joined.hours, joined.instrument) == (source.spread, source.hours, source.instrument)
    assert [gap.text for gap in joined.gaps] == [gap.text for gap in source.gaps]
    assert joined.gap_notes == source.gap_notes
    assert "270 bars are in two files, equal" in joined.notes
    assert joined.path == f"{folder / 'HISTDATA_COM_ASCII_EURUSD_M12020.zip'} (DAT_ASCII_EURUSD_M1_2020.csv) and 6 more"
    assert sum(note.startswith(str(folder)) and " bars, 20" in note for note in joined.notes) == 7
    assert len(joined.notes) == len({*joined.notes})
    assert joined.sha256 != source.sha256


def test_the_hash_is_that_of_the_files_in_order_of_time(tmp_path: Path) -> None:
    parts = [write(tmp_path / f"EURUSD_{k}.csv", month) for k, month in enumerate(months(3))]
    both = [read_histories(paths, NONE)[0] for paths in (parts, parts[::-1])]
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in parts]
    assert {history.source.sha256 for history in both} == {hashlib.sha256("".join(hashes).encode()).hexdigest()}
    assert equal(both[0].bars, both[1].bars)
    assert (np.diff(both[0].bars.time) > 0).all()


def test_instruments_come_in_the_order_of_their_symbols(tmp_path: Path) -> None:
    first, second = months(2)
    write(tmp_path / "USDCHF_1.csv", first)
    write(tmp_path / "EURUSD_1.csv", first)
    (tmp_path / "EURUSD_2.csv.gz").write_bytes(gzip.compress(canonical(second).encode()))
    histories = read_histories([tmp_path / "USD*.csv", tmp_path / "EURUSD_*"], NONE)
    assert [(h.source.instrument.symbol, h.source.rows) for h in histories] == [("EURUSD", 180), ("USDCHF", 90)]


def test_paths_are_files_folders_and_patterns_each_file_once(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", "report.html", ".c.csv"):
        write(tmp_path / "bars" / name, minutes(MONDAY, 2))
    folder = tmp_path / "bars"
    expected = [folder / "a.csv", folder / "b.csv"]
    assert expand_paths([folder]) == expand_paths([folder / "*.csv"]) == expected
    assert expand_paths([folder / "b.csv", folder, tmp_path / "**" / "a.csv"]) == expected[::-1]
    odd = write(tmp_path / "a[1].csv", minutes(MONDAY, 2))
    assert expand_paths([odd]) == [odd]
    for nothing in (tmp_path / "*.zip", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(DataError, match=r"no file of bars there: .* 'data/\*\.csv'"):
            expand_paths([nothing])
    with pytest.raises(DataError, match=r"gone\.csv: No such file"):
        read_histories([tmp_path / "gone.csv"], NONE)


def test_files_without_a_symbol_need_one(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{name}.csv", month) for name, month in zip("ab", months(2), strict=True)]
    with pytest.raises(DataError, match=r"a\.csv: one of 2 files, with no symbol .* say --symbol EURUSD"):
        read_histories(paths, NONE)
    (history,) = read_histories(paths, ReadOptions(symbol="EURUSD"))
    assert (history.source.rows, history.source.instrument.symbol) == (180, "EURUSD")
    assert read_histories(paths[:1], NONE)[0].source.instrument.symbol == "-"


def overlapping(folder: Path, changed: int) -> list[Path]:
    """Two exports; the older one begins later, and its last bars are others in the newer one."""
    older, newer = minutes(MONDAY, 60)[10:], minutes(MONDAY, 120)
    older[-changed:] = [(t, p + 0.00007) for t, p in older[-changed:]]
    return [write(folder / "EURUSD_new.csv", newer), write(folder / "EURUSD_old.csv", older)]


def test_bars_that_differ_are_refused_by_file_and_line(tmp_path: Path) -> None:
    new, old = overlapping(tmp_path, 2)
    with pytest.raises(DataError) as refused:
        read_histories([new, old], NONE)
    said = str(refused.value)
    assert f"{old} line 50 and {new} line 60: bars that close at 2021-01-04T03:59:00Z differ, open 1.1" in said
    assert said.endswith("; 2 bars do; --drop-bad keeps those of the file that ends later")
    for paths in ([new, old], [old, new]):
        (history,) = read_histories(paths, ReadOptions(drop_bad=True))
        assert equal(history.bars, read_bars(new)[0])
        assert any("2 bars differ, those of the file that ends later are kept" in note for note in history.source.notes)
        assert "48 bars are in two files, equal" in history.source.notes


def test_of_files_of_one_span_the_later_one_holds(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"EURUSD_{k}.csv", minutes(MONDAY, 60)) for k in range(2)]
    text = paths[1].read_text()
    paths[1].write_text(text.replace("03:30:00Z,1.10010", "03:30:00Z,1.10011"))
    with pytest.raises(DataError, match=r"close at 2021-01-04T03:31:00Z differ, open 1\.1001 and 1\.10011"):
        read_histories(paths, NONE)
    for order in (paths, paths[::-1]):
        (history,) = read_histories(order, ReadOptions(drop_bad=True))
        assert equal(history.bars, read_bars(order[1])[0])


def test_files_that_differ_throughout_are_refused_in_any_case(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"as do 40 of 50 bars that are in both: of one clock and one side\?"):
        read_histories(overlapping(tmp_path, 40), ReadOptions(drop_bad=True))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "EURUSD_ask.csv"}, r"EURUSD_bid\.csv: side bid, and .*EURUSD_ask\.csv: ask: .*--side says"),
        ({"step": 5}, r"interval 60, and .*: 300: .*bring bars of one length"),
        ({"first": "Europe/Athens"}, r"timezone Europe/Athens, and .*: UTC: .*--timezone says"),
        ({"head": "close time,open,high,low,close,volume\n"}, r"label open, and .*: close: .*--label says"),
        ({"extra": ",0.0001", "head": HEADER[:-1] + ",spread\n"}, r"spread_pips 0\.8, and .*: of the file: .*--spread"),
    ],
)
def test_files_of_one_instrument_agree(change: dict[str, str], said: str, tmp_path: Path) -> None:
    first = write(tmp_path / "EURUSD_bid.csv", months(1)[0])
    if "first" in change:
        first.write_text(metatrader(months(1)[0]))  # a clock that is known; that of the second one is assumed
    step = int(change.get("step", 1))
    later = [(MONDAY + timedelta(weeks=4, minutes=step * k), p) for k, (_, p) in enumerate(months(1)[0])]
    text = canonical(later).replace(HEADER, change.get("head", HEADER))
    head, *lines = text.splitlines()
    second = tmp_path / change.get("name", "EURUSD_bid_2.csv")
    lines = [f"{line}{change.get('extra', '')}" for line in lines]
    second.write_text("\n".join([head, *(line.replace("Z", "") for line in lines)]) + "\n")
    with pytest.raises(DataError, match=said):
        read_histories([first, second], NONE)


def test_known_clocks_may_differ(tmp_path: Path) -> None:
    """HistData, then MetaTrader, then UTC, which overlaps with it: each by its own clock, whatever their order."""
    one, two, three = months(3)
    paths = [tmp_path / f"EURUSD_{k}.csv" for k in range(3)]
    utc = [*two[-30:], *three]
    texts = histdata([(t - timedelta(hours=5), p) for t, p in one]), metatrader(two), canonical(utc)
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    write(tmp_path / "EURUSD.csv", [*one, *two, *three])
    bars, source = read_bars(tmp_path / "EURUSD.csv")
    for order in (paths, paths[::-1]):
        (history,) = read_histories(order, NONE)
        assert all(np.array_equal(getattr(history.bars, name), getattr(bars, name)) for name in bars._fields[:-1])
        joined = history.source
        assert (joined.first, joined.last, joined.timezone) == (source.first, source.last, "UTC")
        assert [note.rpartition(", ")[2] for note in joined.notes[:3]] == [
            "clock Europe/Athens-7h", "clock Europe/Athens", "clock UTC"
        ]  # fmt: skip
    (history,) = read_histories(paths[:2], NONE)
    assert history.source.timezone == "Europe/Athens"  # of the file that ends last: a feed goes on with it
    paths[1].write_text(canonical(two).replace("Z,", ","))  # its clock is assumed
    with pytest.raises(DataError, match=r"timezone Europe/Athens-7h, and .*: UTC: .*--timezone says"):
        read_histories(paths[:2], NONE)


def test_seams_are_checked(tmp_path: Path) -> None:
    first = write(tmp_path / "EURUSD_1.csv", minutes(MONDAY, 60))
    half = [(t + timedelta(seconds=30), p) for t, p in minutes(MONDAY, 60)]
    with pytest.raises(DataError, match=r"a bar of one file opens before that of the other has closed: .* one clock\?"):
        read_histories([first, write(tmp_path / "EURUSD_2.csv", half)], NONE)
    higher = minutes(MONDAY + timedelta(hours=2), 60, price=1.5)
    with pytest.raises(DataError, match=r"EURUSD_1\.csv and .*EURUSD_2\.csv, at .*: prices move from 1\.1.* to 1\.5"):
        read_histories([first, write(tmp_path / "EURUSD_2.csv", higher)], NONE)


def test_instruments_of_one_agent_have_bars_of_one_length(tmp_path: Path) -> None:
    first = write(tmp_path / "EURUSD.csv", minutes(MONDAY, 60))
    longer = [(MONDAY + timedelta(minutes=5 * k), 1.2 + 0.0001 * (k % 3)) for k in range(60)]
    with pytest.raises(DataError, match=r"EURUSD\.csv: bars of 60 s, and .*GBPUSD\.csv: of 300 s: .*train them apart"):
        read_histories([first, write(tmp_path / "GBPUSD.csv", longer)], NONE)


def test_a_joined_history_is_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bar_cache, "cache_root", lambda: tmp_path / "kernels")
    monkeypatch.setattr(bar_cache, "MIN_ROWS", 150)
    paths = [write(tmp_path / f"EURUSD_{k}.csv", month) for k, month in enumerate(months(2))]
    (fresh,), (again,) = read_histories(paths, NONE), read_histories(paths, NONE)
    assert len([*(tmp_path / "bars").iterdir()]) == 1
    assert equal(fresh.bars, again.bars)
    assert fresh.source == again.source


def test_data_check_takes_many_files(tmp_path: Path) -> None:
    new, old = overlapping(tmp_path, 2)
    (document,) = check_histories([new, old], NONE)
    assert "--drop-bad" in document["refused"]
    write(tmp_path / "GBPUSD.csv", minutes(MONDAY, 60))
    documents = check_histories([tmp_path], ReadOptions(drop_bad=True))
    assert [document["symbol"] for document in documents] == ["EURUSD", "GBPUSD"]
    out = io.StringIO()
    print_check(documents[0], out)
    assert f"  {old}: 50 bars, 2021-01-04T03:11:00Z" in out.getvalue()
    command = [sys.executable, "swt.py", "data-check", str(new), str(old)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, "refused: " in done.stdout) == (4, True)
