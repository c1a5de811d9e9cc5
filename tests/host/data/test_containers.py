"""A file that is packed, in UTF-16, JSON or a table of pyarrow gives the bars of the plain file."""

import bz2
import codecs
import csv
import gzip
import hashlib
import importlib.util
import io
import json
import lzma
import os
import pickle
import socket
import sqlite3
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from host.data.containers import UNPACK_CHUNK_BYTES, read_text
from host.data.csv_reader import read_bars
from host.data.feed import feed_bars
from host.data.formats import DataError, ReadOptions, Source
from kernels.market.bars import Bars
from tests.fixtures.feeds import append, columns, follow
from tests.fixtures.files import HEADER, equal, rows, write
from tests.fixtures.paths import DATA, FOUND, ROOT

PLAIN = (HEADER + "\n".join(rows()) + "\n").encode()
QUICK = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
HAS_ARROW = importlib.util.find_spec("pyarrow") is not None
arrow = pytest.mark.skipif(not HAS_ARROW, reason="pyarrow is not installed: Feather and Parquet are not tried for real")


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zip": lambda data: zipped({"EURUSD.csv": data}),
}
WAYS = {
    **PACKERS,
    "gzip, two members": lambda data: gzip.compress(data[:70]) + gzip.compress(data[70:]),
    "gzip, padded": lambda data: gzip.compress(data) + bytes(512),
    "bzip2, two streams": lambda data: bz2.compress(data[:70]) + bz2.compress(data[70:]),
    "xz, two streams": lambda data: lzma.compress(data[:70]) + bytes(4) + lzma.compress(data[70:]),
    "zip, stored": lambda data: zipped({"EURUSD.csv": data}, zipfile.ZIP_STORED),
    "zip of a Mac": lambda data: zipped(
        {
            "a/": b"",
            "a/EURUSD.csv": data,
            "__MACOSX/a/._EURUSD.csv": b"\0\1",
            "__MACOSX/EURUSD.csv": b"",
            "a/.DS_Store": b"\0\2",
        }
    ),
    "zip of HistData": lambda data: zipped({"DAT_M1.csv": data, "DAT_M1.txt": b"Status Report\n"}),
    "zip of UTF-16": lambda data: zipped({"EURUSD.csv": data.decode().encode("utf-16")}),
}


def put(folder: Path, content: bytes, name: str = "bars.csv") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def read_both(path: Path, options: ReadOptions | None = None) -> tuple[Bars, Source]:
    """The bars of a file, which are those of the feed that is not followed."""
    bars, source = read_bars(path, options)
    feed = columns(list(feed_bars(path, options)))
    assert [column.tobytes() for column in feed] == [column.tobytes() for column in bars]
    return bars, source


def refused(path: Path, says: str = "") -> str:
    """The error of both readers, one line."""
    with pytest.raises(DataError) as bulk:
        read_bars(path)
    with pytest.raises(DataError) as feed:
        list(feed_bars(path))
    assert str(bulk.value) == str(feed.value)
    assert str(bulk.value).startswith(str(path))
    assert "\n" not in str(bulk.value)
    assert bulk.match(says)
    return str(bulk.value)


@pytest.mark.parametrize("way", WAYS)
def test_packed_bars_are_the_bars(way: str, tmp_path: Path) -> None:
    """By their content: the file is called .csv."""
    expected, _ = read_bars(put(tmp_path, PLAIN, "plain.csv"))
    packed = WAYS[way](PLAIN)
    bars, source = read_both(put(tmp_path, packed))
    assert equal(bars, expected)
    assert source.sha256 == hashlib.sha256(packed).hexdigest()


def test_pieces_of_any_size_are_put_together(tmp_path: Path) -> None:
    """Packed and unpacked, streams end anywhere in a chunk of UNPACK_CHUNK_BYTES."""
    text = np.random.default_rng(1).integers(33, 126, 3 * UNPACK_CHUNK_BYTES, np.uint8).tobytes() + b"\n"
    blank = b"\n" * (40 * UNPACK_CHUNK_BYTES)
    for pack in (gzip.compress, bz2.compress, lzma.compress):
        spare = len(pack(b"")) - 3
        for cut in (0, UNPACK_CHUNK_BYTES - spare, 2 * UNPACK_CHUNK_BYTES, 3 * UNPACK_CHUNK_BYTES - 1):
            packed = pack(b"\n" + text[:cut]) + pack(text[cut:])
            assert read_text(put(tmp_path, packed)).data == b"\n" + text
        assert read_text(put(tmp_path, pack(blank))).data == blank


def test_the_file_that_was_found(tmp_path: Path) -> None:
    packed = (FOUND / "plain.csv.xz").read_bytes()
    plain, _ = read_bars(put(tmp_path, lzma.decompress(packed)))
    bars, source = read_both(FOUND / "plain.csv.xz")
    assert equal(bars, plain)
    assert (source.format, source.rows, source.first) == ("canonical", len(plain.time), "2023-01-01T23:00:00Z")


def test_the_name_of_a_member_serves_as_that_of_a_file(tmp_path: Path) -> None:
    """The name of the archive counts where that of the member shows nothing; lines are counted in the member."""
    yen = PLAIN.replace(b"1.1", b"111.1").replace(b"1.0", b"111.0")
    path = put(tmp_path, zipped({"folder/USDJPY_ASK.csv": yen}), "bars_bid.zip")
    _, source = read_both(path)
    assert source.path == f"{path} (USDJPY_ASK.csv)"
    assert (source.side, source.instrument.symbol) == ("ask", "USDJPY")
    assert read_both(put(tmp_path, zipped({"b.csv": yen}), "USDJPY_ASK.zip"))[1].side == "ask"
    lean = (DATA / "20210326_lean.csv").read_bytes()
    path = put(tmp_path, zipped({"20210326_quote.csv": lean}), "loaded 20240101.zip")
    assert equal(read_both(path)[0], read_bars(DATA / "20210326_lean.csv")[0])
    path = put(tmp_path, zipped({"b.csv": PLAIN + b"rubbish\n"}))
    with pytest.raises(DataError, match=r"bars.csv \(b.csv\): 1 bad row \(1 unparsable\); line 14: "):
        read_bars(path)


def database(folder: Path) -> bytes:
    with sqlite3.connect(folder / "db") as connection:
        connection.execute("create table bars(time)")
    return (folder / "db").read_bytes()


def tape(folder: Path) -> bytes:
    with tarfile.open(folder / "tar", "w") as archive:
        archive.add(put(folder, PLAIN, "b.csv"), "b.csv")
    return (folder / "tar").read_bytes()


def encrypted(_: Path) -> bytes:
    data = bytearray(zipped({"b.csv": PLAIN}))
    for mark, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(mark) + at] |= 1
    return bytes(data)


STRANGE: dict[str, tuple[bytes | Callable[[Path], bytes], str]] = {
    "zst": (b"\x28\xb5\x2f\xfd\x04" + bytes(9), "packed by Zstandard: `zstd -d` unpacks it"),
    "lz4": (b"\x04\x22\x4d\x18" + bytes(9), "packed by LZ4"),
    "7z": (b"7z\xbc\xaf\x27\x1c\0\4", "packed by 7-Zip"),
    "rar": (b"Rar!\x1a\7\1\0", "packed by RAR"),
    "Z": (b"\x1f\x9d\x90", "packed by compress"),
    "bi5": (b"]\0\0\x20\0" + bytes(20), "packed by LZMA, as ticks of Dukascopy"),
    "tar": (tape, "a tar archive: `tar -xf` unpacks it"),
    "tar.gz": (lambda folder: gzip.compress(tape(folder)), "a tar archive"),
    "xls": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "an Excel workbook: save it as CSV"),
    "xlsx": (zipped({"[Content_Types].xml": b"<Types/>", "xl/workbook.xml": b""}), "an Excel workbook: save it as CSV"),
    "ods": (zipped({"mimetype": b"", "content.xml": b"<x/>"}), "a workbook of LibreOffice: save it as CSV"),
    "h5": (b"\x89HDF\r\n\x1a\n" + bytes(90), "an HDF5 file"),
    "npy": (b"\x93NUMPY\1\0", "an array of numpy"),
    "db": (database, "a SQLite database"),
    "pkl": (pickle.dumps([1.0]), "a pickle"),
    "hst": (b"\x91\1\0\0Copyright" + bytes(140), "a history file of MetaTrader 4"),
    "pdf": (b"%PDF-1.7\n", "a PDF document"),
    "html": (b"\xef\xbb\xbf\n <!DOCTYPE html><html><title>Log in", "a web page .*login"),
    "html.gz": (gzip.compress(b"<html>" + b" " * 9000), "a web page"),
    "report": ("<html>\n".encode("utf-16"), "a web page"),
    "UTF-32": ("time,open".encode("utf-32"), "UTF-32: save it as UTF-8"),
    "UTF-32 without a mark": (PLAIN.decode().encode("utf-32-be"), "UTF-32"),
    "gzip within zip": (zipped({"b.csv.gz": gzip.compress(PLAIN)}), r"\(b.csv.gz\): gzip within a packed file"),
    "gzip within gzip": (gzip.compress(gzip.compress(PLAIN)), "gzip within a packed file: unpack bars.csv"),
    "zip within zip": (zipped({"b.zip": zipped({"b.csv": PLAIN})}), "zip within"),
    "two members": (
        zipped({"EURUSD.csv": PLAIN, "GBPUSD.csv": PLAIN}),
        r"2 files \(EURUSD.csv, GBPUSD.csv\): `python -m zipfile -e .*bars.csv.* \.` unpacks it",
    ),
    "a member twice": (zipped({"a/b.csv": PLAIN, "c/b.csv": PLAIN}), r"2 files \(b.csv, b.csv\)"),
    "many members": (zipped({f"{i}.csv": PLAIN for i in range(9)}), r"9 files \(0.csv, .*, 4.csv, ...\)"),
    "too many members": (zipped({f"{i}": b"" for i in range(1001)}), "more than 1000 files"),
    "no member": (zipped({"a/": b""}), "no file in it"),
    "empty zip": (zipped({}), "no file in it"),
    "encrypted": (encrypted, "encrypted"),
    "zip by LZMA": (zipped({"b.csv": PLAIN}, zipfile.ZIP_LZMA), "packed by method 14 of zip: `7z x` unpacks it"),
    "a name of two lines": (zipped({"a\nb.csv": b"\n"}), r"\(a\?b.csv\): empty"),
    "gzip and more": (gzip.compress(PLAIN) + b"more", "gzip, damaged or cut short"),
    "bzip2 and more": (bz2.compress(PLAIN) + b"more", "bzip2, damaged or cut short"),
    "xz and more": (lzma.compress(PLAIN) + b"more", "xz, damaged or cut short"),
    "xz for much memory": (
        lzma.compress(PLAIN, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 28}]),
        "xz, damaged or cut short .*limit",
    ),
    "a wrong sum": (gzip.compress(PLAIN)[:-8] + bytes(8), "gzip, damaged or cut short"),
    "nothing": (gzip.compress(b""), "empty"),
    "one line": (gzip.compress(b"1," * 9000), "line 1: longer than 4096 bytes"),
    "half a letter": ("1,2\n3,4".encode("utf-16")[:-1], "damaged UTF-16 .*save it as UTF-8"),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_what_is_not_read_is_named(kind: str, tmp_path: Path) -> None:
    content, says = STRANGE[kind]
    path = put(tmp_path, content(tmp_path) if callable(content) else content)
    refused(path, says)


@pytest.mark.parametrize("pack", PACKERS)
def test_a_file_cut_short_is_one_line(pack: str, tmp_path: Path) -> None:
    packed = PACKERS[pack](PLAIN)
    for stop in range(8, len(packed), 7):
        assert "damaged or cut short" in refused(put(tmp_path, packed[:stop]))


@pytest.mark.parametrize("pack", PACKERS)
def test_a_bomb_is_refused_in_little_memory(pack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("host.data.containers.MAX_FILE_BYTES", 1 << 20)
    path = put(tmp_path, PACKERS[pack](b"\n" * (1 << 25)))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="unpacks to more than 1 MB"):
            read_bars(path)
        assert tracemalloc.get_traced_memory()[1] < 12 << 20, "xz has a dictionary of 8 MB"
    finally:
        tracemalloc.stop()


def test_many_empty_streams_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("host.data.containers.MAX_STREAMS", 100)
    assert "more than 100 streams" in refused(put(tmp_path, gzip.compress(b"") * 101 + gzip.compress(PLAIN)))


def test_only_files_of_a_disk_are_read_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for path, what in ((tmp_path, "a folder"), (tmp_path / "pipe", "a pipe"), (tmp_path / "socket", "a pipe")):
            with pytest.raises(DataError, match=f"{path}: {what}"):
                read_bars(path)


def test_a_large_file_is_refused_unread(tmp_path: Path) -> None:
    path = put(tmp_path, PLAIN)
    os.truncate(path, 2 << 30)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="more than 1024 MB"):
            read_bars(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


ENCODINGS = {
    "LE": (codecs.BOM_UTF16_LE, "utf-16-le"),
    "BE": (codecs.BOM_UTF16_BE, "utf-16-be"),
    "LE without a mark": (b"", "utf-16-le"),
    "BE without a mark": (b"", "utf-16-be"),
    "UTF-8 with a mark": (codecs.BOM_UTF8, "utf-8"),
}


@pytest.mark.parametrize("name", ["metatrader5.csv", "daily_japanese.csv"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_utf16_gives_the_same_bars(encoding: str, end: str, name: str, tmp_path: Path) -> None:
    mark, codec = ENCODINGS[encoding]
    content = mark + end.join((DATA / name).read_text("utf-8").splitlines()).encode(codec)
    bars, source = read_both(put(tmp_path, content))
    assert equal(bars, read_bars(DATA / name)[0])
    assert source.sha256 == hashlib.sha256(content).hexdigest()
    lines = columns(list(feed_bars(io.BytesIO(content))))
    assert equal(lines, bars), "a stream is read line by line"


def test_what_metatrader_saves_is_text() -> None:
    text = read_text(FOUND / "mt5_chart_save_utf16.csv")
    assert text.data == (FOUND / "mt5_chart_save_utf16.csv").read_bytes().decode("utf-16").encode()
    assert text.data.startswith(b"2023.01.01 22:00,1.08000,1.08097,1.08000,")


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("mark", ["\ufeff", ""])
def test_utf16_is_followed_as_it_grows(codec: str, mark: str, tmp_path: Path) -> None:
    """Whatever byte a writer stops at."""
    path = tmp_path / "bars.csv"
    content = (mark + HEADER + "\r\n".join(rows(4)) + "\r\n").encode(codec)
    cuts = [0, 1, 30, *range(len(content) - 40, len(content) + 1)]
    path.write_bytes(b"")
    steps = [lambda a=a, b=b: grow(path, content[a:b]) for a, b in pairwise(cuts)]  # type: ignore[misc]
    expected, _ = read_bars(write(tmp_path, rows(4), "plain.csv"))
    assert equal(columns(follow(path, *steps)), expected)


def grow(path: Path, more: bytes) -> None:
    with path.open("ab") as file:
        file.write(more)


def test_letters_that_hold_a_line_feed_are_refused_where_they_are_followed(tmp_path: Path) -> None:
    for codec in ("utf-16-le", "utf-16-be"):
        for letter in ("\u4e0a", "\u0a05"):
            path = put(tmp_path, (HEADER + "\n".join(rows(4)) + f"\n{letter} 1,2\n1,2\n").encode(codec))
            with pytest.raises(DataError, match=r"line [67]: no line of UTF-16: save it as UTF-8"):
                follow(path, lambda: None)


@pytest.mark.parametrize(
    ("content", "says"),
    [(gzip.compress(PLAIN), "gzip"), (zipped({"b.csv": PLAIN}), "zip"), (b"[]", "JSON"), (b"PAR1", "Parquet")],
)
def test_what_is_no_text_is_not_followed(content: bytes, says: str, tmp_path: Path) -> None:
    path = put(tmp_path, content)
    with pytest.raises(DataError, match=f"{path}: {says}: a file that is followed is text"):
        follow(path)
    with pytest.raises(DataError, match="a PDF"):
        follow(put(tmp_path, b"%PDF-1.4"))


def test_a_plain_file_that_is_followed_grows_as_before(tmp_path: Path) -> None:
    path = write(tmp_path, rows(3))
    assert len(follow(path, append(path, rows(4)[3] + "\n"))) == 4


TABLE = [line.split(",") for line in rows()]
MS = [int(np.datetime64(row[0][:-1], "ms").astype(np.int64)) for row in TABLE]
BARS = [[ms, *map(float, row[1:])] for ms, row in zip(MS, TABLE, strict=True)]
NAMES = HEADER.strip().split(",")
RECORDS = [dict(zip(NAMES, row, strict=True)) for row in BARS]
KRAKEN = [[ms // 1000, *row[1:5], "1.5", row[5], 9] for ms, row in zip(MS, TABLE, strict=True)]
DOCUMENTS: dict[str, Any] = {
    "ccxt": BARS,
    "without volume": [row[:5] for row in BARS],
    "Binance": [[ms, *row[1:], ms + 1, "7", 9, "1", "2", "0"] for ms, row in zip(MS, TABLE, strict=True)],
    "Kraken": {"error": [], "result": {"XXBTZUSD": KRAKEN, "last": 7}},
    "Kraken, open bar": {"error": [], "result": {"X": [*KRAKEN, [MS[-1], *KRAKEN[0][1:]]], "last": KRAKEN[-1][0]}},
    "records": RECORDS,
    "records of texts": [dict(zip(NAMES, row, strict=True)) for row in TABLE],
    "records in any order": [dict(reversed(record.items())) for record in RECORDS],
    "records in capitals": [{key.capitalize(): value for key, value in record.items()} for record in RECORDS],
    "records within": {"status": "ok", "data": {"values": RECORDS}},
    "Polygon": {
        "ticker": "C:EURUSD",
        "results": [
            dict(zip(["v", "o", "c", "h", "l", "t"], (r[5], r[1], r[4], r[2], r[3], r[0]), strict=True)) for r in BARS
        ],
    },
}


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("kind", DOCUMENTS)
def test_json_gives_the_bars_of_the_table(kind: str, indent: int | None, tmp_path: Path) -> None:
    expected, _ = read_bars(put(tmp_path, PLAIN))
    content = json.dumps(DOCUMENTS[kind], indent=indent).encode()
    bars, source = read_both(put(tmp_path, content))
    volume = expected.volume * (kind != "without volume")
    assert equal(bars, expected._replace(volume=volume))
    assert source.sha256 == hashlib.sha256(content).hexdigest()
    assert equal(read_both(put(tmp_path, gzip.compress(content)))[0], bars)
    assert equal(read_both(put(tmp_path, content.decode().encode("utf-16")))[0], bars)


@pytest.mark.parametrize("lines", [BARS, RECORDS, DOCUMENTS["Binance"]])
def test_a_line_of_json_a_bar(lines: list[Any], tmp_path: Path) -> None:
    expected, _ = read_bars(put(tmp_path, PLAIN))
    content = "\r\n".join(map(json.dumps, lines)).encode()
    assert equal(read_both(put(tmp_path, codecs.BOM_UTF8 + content + b"\n"))[0], expected)


@given(st.lists(st.floats(1.0, 1.1), min_size=3, max_size=20))
@QUICK
def test_numbers_of_json_keep_their_bits(tmp_path: Path, price: list[float]) -> None:
    lines = [[1_600_000_000_000 + 60_000 * i, p, p, p, p, p] for i, p in enumerate(price)]
    bars, _ = read_bars(put(tmp_path, json.dumps(lines).encode()), ReadOptions(interval_s=60))
    assert bars.open.tolist() == bars.volume.tolist() == price


def test_a_number_is_text_as_it_was_written(tmp_path: Path) -> None:
    path = put(tmp_path, b'[[1, 1.10000, 1e0, NaN, null, true], [2, "2,0", -0, 1E+2, "a\\nb", [1]], [3]]')
    assert read_text(path).data.decode().splitlines() == [
        HEADER.strip(),
        "1,1.10000,1e0,NaN,null,true",
        '2,2,0,-0,1E+2,a b,["1"]',
        "3",
    ]


@pytest.mark.parametrize("bad", ["NaN", "null", '"x"', "[]"])
def test_a_bad_bar_of_json_is_named_by_its_line(bad: str, tmp_path: Path) -> None:
    content = json.dumps(BARS).replace(str(BARS[5][1]), bad, 1).encode()
    with pytest.raises(DataError, match=r"1 bad row \(1 unparsable\); line \d+: not a bar: .*--drop-bad"):
        read_bars(put(tmp_path, content))


def test_a_dump_of_metatrader_in_json_keeps_its_clock(tmp_path: Path) -> None:
    """Its names are the header that the table of formats knows."""
    with (DATA / "metatrader5_api.csv").open() as file:
        records = list(csv.DictReader(file))
    bars, source = read_both(put(tmp_path, json.dumps(records).encode()))
    expected, table = read_bars(DATA / "metatrader5_api.csv")
    assert equal(bars, expected)
    assert (source.format, source.timezone, source.spread) == (table.format, table.timezone, table.spread)


UNKNOWN = [
    ({"code": -1121, "msg": "Invalid symbol."}, "found the keys code, msg;"),
    ({"error": ["EQuery:Unknown asset pair"]}, "found the keys error;"),
    ({"result": {"A": KRAKEN, "B": KRAKEN}}, "found the keys result;"),
    ([], "found nothing in it;"),
    ([1, 2], "found a list of no lists and no records"),
    ([[1, 2]], "found lists of 2;"),
    ([[1] * 7], "found lists of 7;"),
    ([{"price": 1, "qty": 2}], "found a list of the keys price, qty;"),
    ([{"open": 1, "high": 1, "low": 1, "close": 1}], "found a list of the keys open"),
    ([RECORDS[0], 5], "found a list of the keys time"),
    ({"candles": [{"time": "1", "mid": {}}]}, "found the keys candles;"),
    ({"a\nb": {}}, r"found the keys a\?b;"),
]


@pytest.mark.parametrize(("document", "says"), UNKNOWN)
def test_other_json_is_refused_with_its_keys(document: Any, says: str, tmp_path: Path) -> None:
    path = put(tmp_path, json.dumps(document).encode())
    assert says.replace("\\?", "?") in refused(path)
    assert "known are candles of OANDA" in refused(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"a": ', r"broken JSON \(Expecting value: line 1 column 7.*as CSV"),
        (b"[[1, 2, 3, 4, 5, 6]", "broken JSON"),
        (b"[" * 200_000, "line 1: longer|nested too deeply"),
        (b'[["\xff"]]', "broken JSON .*utf-8"),
        (b'{"a":' * 900 + b"1" + b"}" * 900, "JSON, nested too deeply|no bars"),
    ],
)
def test_broken_json(content: bytes, says: str, tmp_path: Path) -> None:
    refused(put(tmp_path, content), says)


def test_too_much_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("host.data.containers.MAX_JSON_BYTES", 1 << 20)
    assert "more than 1 MB of JSON" in refused(put(tmp_path, b"[" + b" " * (1 << 20) + b"]"))


def test_tables_of_pyarrow_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for content in (b"PAR1" + bytes(99), b"ARROW1\0\0" + bytes(99)):
        assert "`pip install pyarrow`, and it is read" in refused(put(tmp_path, content))
    assert "write the table as CSV" in refused(put(tmp_path, b"FEA1" + bytes(9)))


class FakeTable:
    """As much of a table of pyarrow as is asked for."""

    def __init__(self, table: dict[str, list[str]]) -> None:
        self.table = table
        self.column_names = list(table)

    @classmethod
    def from_batches(cls, batches: list["FakeTable"]) -> "FakeTable":
        (batch,) = batches
        return batch

    def select(self, names: list[str]) -> "FakeTable":
        return FakeTable({name: self.table[name] for name in names})

    def rename_columns(self, names: list[str]) -> "FakeTable":
        return FakeTable(dict(zip(names, self.table.values(), strict=True)))


def write_fake(table: FakeTable, file: io.BytesIO, options: dict[str, bool]) -> None:
    lines = [",".join(f'"{name}"' for name in table.table)] * options["include_header"]
    lines += map(",".join, zip(*table.table.values(), strict=True))
    file.write("".join(f"{line}\n" for line in lines).encode())


def fake_arrow(batches: list[FakeTable]) -> dict[str, ModuleType]:
    """Modules that hold these batches whatever they are given; broken bytes raise what pyarrow raises."""

    class ArrowException(Exception):  # noqa: N818
        pass

    class File:
        num_record_batches = len(batches)

        def __init__(self, source: bytes) -> None:
            if b"broken" in source:
                raise ArrowException("no\nfooter")

        def get_batch(self, index: int) -> FakeTable:
            return batches[index]

        def iter_batches(self) -> list[FakeTable]:
            return batches

    modules = {name: ModuleType(name) for name in ("pyarrow", *(f"pyarrow.{n}" for n in ("csv", "ipc", "parquet")))}
    modules["pyarrow"].__dict__.update(
        {name.split(".")[1]: module for name, module in modules.items() if "." in name},
        BufferReader=bytes,
        Table=FakeTable,
        ArrowException=ArrowException,
    )
    modules["pyarrow.csv"].__dict__.update(write_csv=write_fake, WriteOptions=dict)
    modules["pyarrow.ipc"].__dict__["open_file"] = File
    modules["pyarrow.parquet"].__dict__["ParquetFile"] = File
    return modules


@pytest.mark.parametrize("magic", [b"PAR1", b"ARROW1\0\0"])
@pytest.mark.parametrize("time", ["date", "__index_level_0__"])
def test_tables_as_pyarrow_gives_them(magic: bytes, time: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In batches, with the index last, where pandas puts it."""
    expected, _ = read_bars(put(tmp_path, PLAIN))
    parts = [
        dict(zip([time, *NAMES[1:]], map(list, zip(*part, strict=True)), strict=True))
        for part in (TABLE[:5], TABLE[5:])
    ]
    last = [FakeTable({name: part[name] for name in (*NAMES[1:], time)}) for part in parts]
    for name, module in fake_arrow(last).items():
        monkeypatch.setitem(sys.modules, name, module)
    path = put(tmp_path, magic + bytes(99))
    assert equal(read_both(path)[0], expected)
    assert equal(read_both(put(tmp_path, zipped({"b": path.read_bytes()})))[0], expected)
    assert "no table of bars (no footer): write it as CSV" in refused(put(tmp_path, magic + b"broken"))
    monkeypatch.setattr("host.data.containers.MAX_FILE_BYTES", 500)
    assert "unpacks to more than 0 MB" in refused(put(tmp_path, magic))


@arrow
def test_feather_of_freqtrade_and_parquet_of_pandas(tmp_path: Path) -> None:
    """To the bit; the file of freqtrade is packed by LZ4."""
    import pyarrow as pa  # type: ignore[import-not-found]
    from pyarrow import feather, parquet

    expected, _ = read_bars(put(tmp_path, PLAIN))
    price = np.random.default_rng(2).uniform(1.0, 1.1, 12)
    columns_ = dict(zip(NAMES[1:], [price] * 4 + [expected.volume], strict=True))
    stamps = pa.array(np.array(MS, "datetime64[ms]"))
    utc = stamps.cast(pa.timestamp("ms", "UTC"))
    feather.write_feather(pa.table({"date": utc, **columns_}), tmp_path / "BTC_USDT-1h.feather", compression="lz4")
    parquet.write_table(pa.table({**columns_, "time": stamps}), tmp_path / "b.parquet", row_group_size=5)
    parquet.write_table(pa.table({**columns_, "__index_level_0__": utc}), tmp_path / "index.parquet")
    for path in ("BTC_USDT-1h.feather", "b.parquet", "index.parquet"):
        bars, source = read_both(tmp_path / path, ReadOptions(spread_pips=0.0))
        assert np.array_equal(bars.time, expected.time)
        assert bars.open.tolist() == bars.close.tolist() == price.tolist()
        assert bars.volume.tolist() == expected.volume.tolist()
        assert source.timezone == "UTC"
        for stop in (8, 100, 400):
            assert "no table of bars" in refused(put(tmp_path, (tmp_path / path).read_bytes()[:stop]))
    parquet.write_table(pa.table({"time": stamps, "open": [[1.0]] * 12}), tmp_path / "nested.parquet")
    assert "no table of bars" in refused(tmp_path / "nested.parquet")


def test_a_plain_feed_needs_neither_pandas_nor_pyarrow(tmp_path: Path) -> None:
    path = put(tmp_path, gzip.compress(PLAIN))
    program = (
        "import sys\nsys.modules.update(dict.fromkeys(('pandas', 'pyarrow')))\nfrom host.data.feed import feed_bars\n"
        f"print(len(list(feed_bars({str(path)!r}))))"
    )
    said = subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, text=True)
    assert said == f"{len(TABLE)}\n"


MAGIC = [
    *(pack(b"")[:6] for pack in (gzip.compress, bz2.compress, lzma.compress)),
    *(b"PK\3\4", b"PK\5\6", b"\xff\xfe", b"\xfe\xff", b"[", b"{", b'[{"time":', b"[[1,", b'{"candles":[{"bid":{'),
    *((b"PAR1", b"ARROW1\0\0") if not HAS_ARROW else ()),
]


@given(st.sampled_from(MAGIC), st.binary(max_size=200))
@QUICK
def test_anything_behind_a_magic_number(tmp_path: Path, magic: bytes, more: bytes) -> None:
    refused(put(tmp_path, magic + more))


@given(st.data())
@QUICK
def test_damaged_containers(tmp_path: Path, data: st.DataObject) -> None:
    """Bars or DataError, and the same from both readers."""
    documents = st.sampled_from(list(DOCUMENTS)).map(lambda kind: json.dumps(DOCUMENTS[kind]).encode())
    packed = st.sampled_from(list(WAYS)).map(lambda way: WAYS[way](PLAIN))
    encoded = st.sampled_from(list(ENCODINGS)).map(
        lambda way: ENCODINGS[way][0] + PLAIN.decode().encode(ENCODINGS[way][1])
    )
    content = data.draw(st.one_of(documents, packed, encoded))
    for _ in range(data.draw(st.integers(1, 3))):
        at, cut = data.draw(st.integers(0, len(content))), data.draw(st.integers(0, 40))
        content = content[:at] + data.draw(st.binary(max_size=3)) + content[at + cut :]
    path = put(tmp_path, content)
    with suppress(DataError):
        read_text(path)
        return
    refused(path)
