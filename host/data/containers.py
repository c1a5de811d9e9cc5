"""The text of a file of any container: compressed, zipped, UTF-16, JSON, Parquet and Feather files become CSV.

The first bytes of a file show its kind, never its name.  `read_text` reads a whole file, in bounded memory;
`is_plain_text` and `decode_utf16_line` serve a file that is read line by line while it grows.
"""

from __future__ import annotations

import bz2
import hashlib
import io
import json
import lzma
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from host.console import shell_join
from host.data.formats import MAX_LINE, OHLC, DataError

MAX_FILE_BYTES = 1 << 30  # of a file, packed and unpacked: 15 years of minutes
MAX_JSON_BYTES = 1 << 26  # two years of minutes; parsing takes ten times as much memory
MAX_ZIP_MEMBERS = 1000
MAX_STREAMS = 1 << 16  # in a compressed file, one after another
MAX_XZ_BYTES = 1 << 27  # of memory to unpack xz: `xz -9` needs half of it
UNPACK_CHUNK_BYTES = 1 << 16  # unpacked at a time
SNIFF_BYTES = MAX_LINE + 3  # first bytes that show the kind of a file
UTF8_BOM = b"\xef\xbb\xbf".decode("latin-1")  # the byte order mark of UTF-8, read as latin-1
UTF16 = "UTF-16"
WHITESPACE = re.compile(r"[ \t\r\n]*")
DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    "gzip": partial(zlib.decompressobj, 31),
    "bzip2": bz2.BZ2Decompressor,
    "xz": partial(lzma.LZMADecompressor, lzma.FORMAT_XZ, MAX_XZ_BYTES),
}
MAGIC_BYTES = {  # the first bytes of each kind that is read
    "gzip": rb"\x1f\x8b",
    "bzip2": rb"BZh[1-9]",
    "xz": rb"\xfd7zXZ\0",
    "zip": rb"PK(\x03\x04|\x05\x06)",
    "Parquet": rb"PAR1",
    "Feather": rb"ARROW1",
    "JSON": rb"(\xef\xbb\xbf)?\s*[{\[]",
}
UNSUPPORTED_MAGIC = (  # the first bytes of each kind that is not read, and what to do
    (rb"\x28\xb5\x2f\xfd", "packed by Zstandard: `zstd -d` unpacks it"),
    (rb"\x04\x22\x4d\x18", "packed by LZ4: `lz4 -d` unpacks it"),
    (rb"7z\xbc\xaf\x27\x1c", "packed by 7-Zip: `7z x` unpacks it"),
    (rb"Rar!\x1a\x07", "packed by RAR: `unrar x` unpacks it"),
    (rb"\x1f\x9d", "packed by compress: `gzip -d` unpacks it"),
    (rb"\]\0\0", "packed by LZMA, as ticks of Dukascopy (.bi5) are: bring bars as CSV"),
    (rb"(?s).{257}ustar", "a tar archive: `tar -xf` unpacks it"),
    (rb"PK\x07\x08", "a part of a zip: put the parts together and unpack them"),
    (rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Excel workbook: save it as CSV"),
    (rb"FEA1", "Feather of version 1: write the table as CSV"),
    (rb"\x89HDF\r\n\x1a\n", "an HDF5 file: write its table as CSV, as with to_csv of pandas"),
    (rb"\x93NUMPY", "an array of numpy: write its rows as CSV, with the time of each bar"),
    (rb"\x80[\x02-\x05]", "a pickle, which runs what it likes when it is opened: write its table as CSV"),
    (rb"SQLite format 3\0", "a SQLite database: export its table of bars as CSV"),
    (rb"[\x90\x91]\x01\0\0", "a history file of MetaTrader 4: its History Center (F2) exports CSV"),
    (rb"%PDF", "a PDF document: bring the bars as CSV"),
    (
        rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype|html|head|\?xml)",
        "a web page or XML, no bars: does the download want a login, or another link?",
    ),
    (rb"\xff\xfe\0\0|\0\0\xfe\xff|([^\0]\0{3}){2}|(\0{3}[^\0]){2}", "UTF-32: save it as UTF-8"),
)
WORKBOOKS = {"[Content_Types].xml": "an Excel workbook", "content.xml": "a workbook of LibreOffice"}
UNPACK_ERRORS = (  # of the libraries that unpack, for a broken file
    *(OSError, EOFError, ValueError, LookupError, ArithmeticError, RuntimeError),
    *(zlib.error, lzma.LZMAError, zipfile.BadZipFile, zipfile.LargeZipFile, struct.error),
)
POLYGON_KEYS = {"t": "time", **dict(zip("ohlc", OHLC, strict=True)), "v": "volume"}
TIME_KEYS = ("date", "datetime", "timestamp", "time")
VOLUME_INDEX = {6: 5, 8: 6, 12: 5}  # by the number of fields: of ccxt and freqtrade; of Kraken; of Binance
JSON_FORMATS_TEXT = (
    "known are candles of OANDA with mid, or bid and ask, prices (price=M or price=BA), lists of time, open, high, "
    "low, close, volume as those of ccxt, freqtrade, Binance and Kraken, and records with these names"
)


class FileText(NamedTuple):
    """The text of a file of bars."""

    name: str  # for messages: the path and, for an archive, the member
    data: bytes  # of CSV
    sha256: str  # of the bytes on the disk, see `member_sha256`


def read_text(path: Path, member: str = "") -> FileText:
    """The text of a file, unpacked and converted to CSV; DataError if it has none.

    `member` is one of `list_members`: which file of a zip it is.
    """
    raw = read_file_bytes(path)
    name, data = unpack(raw, str(path), member)
    while (kind := detect_container(data[:SNIFF_BYTES], name)) in CONVERTERS:
        data = CONVERTERS[kind](data, name)
    if kind:
        raise DataError(f"{name}: {kind} within a packed file: unpack {path.name}, and bring what is in it")
    return FileText(name, data, member_sha256(hashlib.sha256(raw).hexdigest(), member))


def list_members(path: Path) -> list[str]:
    """The files of bars in a zip that has several, sorted; [""] for every other file, and where it cannot be opened."""
    try:
        with path.open("rb") as file:
            is_zip = detect_container(file.read(SNIFF_BYTES), str(path)) == "zip"
        data = read_file_bytes(path) if is_zip else b""
        if not is_zip or data.count(b"PK\1\2") > MAX_ZIP_MEMBERS:
            return [""]
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
    except (DataError, *UNPACK_ERRORS):  # reading it says what is wrong
        return [""]
    members = data_members(names)
    return sorted(members) if len(members) > 1 and not WORKBOOKS.keys() & {*names} else [""]


def file_sha256(path: Path) -> str:
    """The hash of the bytes of a file, which it does not hold in memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def member_sha256(sha256: str, member: str) -> str:
    """The hash of a file or, of a zip with several files, that of it and of the name of one."""
    return hashlib.sha256(f"{sha256}\0{member}".encode(errors="replace")).hexdigest() if member else sha256


def is_plain_text(path: Path, follow: bool) -> bool:
    """Whether a path is text that is read line by line as it is; DataError for a file that cannot be followed.

    True for a pipe, a device and a path that cannot be opened: opening it raises the error.
    """
    try:
        if not path.is_file():
            return True
        with path.open("rb") as file:
            begin = file.read(SNIFF_BYTES)
    except (OSError, ValueError):
        return True
    kind = detect_container(begin, str(path))
    if follow and kind not in ("", UTF16):
        raise DataError(f"{path}: {kind}: a file that is followed is text, with a line for each bar as it closes")
    return not kind or follow


def detect_container(begin: bytes, name: str) -> str:
    """The kind of a file that begins with these SNIFF_BYTES bytes, "" for text; DataError for one that is not read."""
    for pattern, reason in UNSUPPORTED_MAGIC:
        if re.match(pattern, begin):
            raise DataError(f"{name}: {reason}")
    if kind := next((kind for kind, pattern in MAGIC_BYTES.items() if re.match(pattern, begin)), ""):
        return kind
    if detect_utf16(begin):
        return UTF16
    if len(begin) >= SNIFF_BYTES and b"\n" not in begin:
        raise DataError(f"{name}: line 1: longer than {MAX_LINE} bytes, this is no file of bars")
    return ""


def read_file_bytes(path: Path) -> bytes:
    """The bytes of a file on a disk; DataError if it is no file, or larger than MAX_FILE_BYTES."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            folder = stat.S_ISDIR(status.st_mode)
            what = "a folder: name a file in it" if folder else "a pipe or a device: write its bars into a file"
            raise DataError(f"{path}: {what}")
        if status.st_size > MAX_FILE_BYTES:
            raise DataError(f"{path}: more than {MAX_FILE_BYTES >> 20} MB: bring it in parts")
        with path.open("rb") as file:
            return file.read(status.st_size)
    except DataError:
        raise
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def unpack(data: bytes, name: str, member: str = "") -> tuple[str, bytes]:
    """The name and the bytes of the content of a compressed file; any other file is returned as it is."""
    kind = detect_container(data[:SNIFF_BYTES], name)
    try:
        if kind == "zip":
            return read_zip_member(data, name, member)
        if kind in DECOMPRESSORS:
            return name, join_chunks(decompress_streams(DECOMPRESSORS[kind], data), name)
    except DataError:
        raise
    except UNPACK_ERRORS as error:
        raise DataError(f"{name}: {kind}, damaged or cut short ({error}): bring it again") from None
    return name, data


def decompress_streams(new_decompressor: Callable[[], Any], data: bytes) -> Iterator[bytes]:
    """The content of a compressed file, in chunks of at most UNPACK_CHUNK_BYTES; zeros may follow each stream."""
    blocks = (data[offset : offset + UNPACK_CHUNK_BYTES] for offset in range(0, len(data), UNPACK_CHUNK_BYTES))
    rest = next(blocks, b"")
    for _ in range(MAX_STREAMS):
        if not rest:
            return
        stream, chunk = new_decompressor(), b""
        while not stream.eof:
            if not rest and len(chunk) < UNPACK_CHUNK_BYTES:  # after a full chunk, more may come without input
                rest = next(blocks, b"")
                if not rest:
                    raise EOFError("the end is missing")
            chunk = stream.decompress(rest, UNPACK_CHUNK_BYTES)
            rest = getattr(stream, "unconsumed_tail", b"")  # zlib returns what the others keep
            yield chunk
        rest = next(filter(None, (block.lstrip(b"\0") for block in chain([stream.unused_data], blocks))), b"")
    raise EOFError(f"more than {MAX_STREAMS} streams")


def join_chunks(chunks: Iterable[bytes], name: str) -> bytes:
    """All chunks of a file; DataError for a kind that is not read, or for more than MAX_FILE_BYTES."""
    output = io.BytesIO()
    for chunk in chunks:
        if not output.tell():
            detect_container(chunk[:SNIFF_BYTES], name)
        output.write(chunk)
        if output.tell() > MAX_FILE_BYTES:
            raise DataError(f"{name}: unpacks to more than {MAX_FILE_BYTES >> 20} MB: bring it in parts")
    return output.getvalue()


def read_zip_member(data: bytes, name: str, chosen: str) -> tuple[str, bytes]:
    """The name and the bytes of the `chosen` or the one file of bars in a zip; DataError if none or several are."""
    if data.count(b"PK\1\2") > MAX_ZIP_MEMBERS:
        raise DataError(f"{name}: more than {MAX_ZIP_MEMBERS} files: {unzip_hint(name)}")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        for workbook in WORKBOOKS.keys() & {member.filename for member in members}:
            raise DataError(f"{name}: {WORKBOOKS[workbook]}: save it as CSV")
        candidates = [chosen] if chosen else data_members([member.filename for member in members])
        if not candidates:
            raise DataError(f"{name}: no file in it")
        if len(candidates) > 1:
            listed = ", ".join(sorted(map(member_name, candidates))[:5]) + ", ..." * (len(candidates) > 5)
            raise DataError(f"{name}: {len(candidates)} files ({listed}): {unzip_hint(name)}")
        member = archive.getinfo(candidates[0])
        if member.flag_bits & 1:
            raise DataError(f"{name}: encrypted: unpack it with its password, and bring {member_name(candidates[0])}")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(f"{name}: packed by method {member.compress_type} of zip: `7z x` unpacks it")
        name = f"{name} ({member_name(candidates[0])})"
        with archive.open(member) as file:
            return name, join_chunks(iter(partial(file.read, UNPACK_CHUNK_BYTES), b""), name)


def data_members(names: list[str]) -> list[str]:
    """The members of a zip that may be bars: no folder, no hidden file, no report that HistData adds to its bars."""
    files = [name for name in names if member_name(name)[:1] not in ("", ".") and "__MACOSX" not in name]
    return [name for name in files if not (name.endswith(".txt") and f"{name[:-4]}.csv" in files)]


def member_name(member: str) -> str:
    """The printable name of a member of an archive, without folders."""
    return to_printable(re.split(r"[/\\]", member)[-1])


def to_printable(text: str) -> str:
    """A text with a question mark for each character that cannot be printed."""
    return "".join(c if c.isprintable() else "?" for c in text)


def unzip_hint(name: str) -> str:
    """The command that unpacks a zip."""
    return f"`{shell_join('python', '-m', 'zipfile', '-e', name, '.')}` unpacks it; bring one of them"


def detect_utf16(begin: bytes) -> str:
    """The encoding of a text in UTF-16, by its byte order mark or the places of its zeros; "" for any other text."""
    if begin[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16-le" if begin[:1] == b"\xff" else "utf-16-be"
    first, second = begin[::2].count(0), begin[1::2].count(0)
    if 16 * max(first, second) <= len(begin) or min(first, second):
        return ""
    return "utf-16-le" if second else "utf-16-be"


def utf16_to_utf8(data: bytes, name: str) -> bytes:
    """A text in UTF-16, encoded in UTF-8; DataError if it is damaged."""
    try:
        return data.decode(detect_utf16(data[:SNIFF_BYTES])).removeprefix("\ufeff").encode()
    except UnicodeError as error:
        raise DataError(f"{name}: damaged UTF-16 ({error}): save it as UTF-8") from None


def decode_utf16_line(raw: bytes, encoding: str, where: str) -> str:
    """A line of UTF-16, cut at bytes 10, as UTF-8 bytes read as latin-1; DataError if it is damaged.

    The zero byte of a line feed begins the next line, or ends the line itself in utf-16-be.
    """
    try:
        text = (raw.removeprefix(b"\0") if encoding == "utf-16-le" else raw.removesuffix(b"\0")).decode(encoding)
    except UnicodeError:  # perhaps because the byte 10 is half of another character
        raise DataError(f"{where}: no line of UTF-16: save it as UTF-8") from None
    return text.encode().decode("latin-1")


def arrow_to_csv(data: bytes, name: str) -> bytes:
    """The table of a Parquet or Feather file; its time comes first, which pandas writes last if it is the index."""
    try:
        import pyarrow
        from pyarrow import csv, ipc, parquet
    except ImportError:
        raise DataError(f"{name}: Parquet or Feather: `pip install pyarrow`, and it is read") from None

    def piece(index: int, batch: Any) -> bytes:
        table, text = pyarrow.Table.from_batches([batch]), io.BytesIO()
        names = sorted(table.column_names, key=lambda key: not re.match("date|time|__index", key.lower()))
        header = ["" if key.startswith("__index_level_") else key for key in names]
        csv.write_csv(table.select(names).rename_columns(header), text, csv.WriteOptions(include_header=not index))
        return text.getvalue()

    try:
        source = pyarrow.BufferReader(data)
        if data.startswith(b"PAR1"):
            batches = parquet.ParquetFile(source).iter_batches()
        else:
            reader = ipc.open_file(source)
            batches = map(reader.get_batch, range(reader.num_record_batches))
        return join_chunks((piece(index, batch) for index, batch in enumerate(batches)), name)
    except DataError:
        raise
    except (pyarrow.ArrowException, *UNPACK_ERRORS) as error:
        reason = f"damaged or no table of bars ({' '.join(str(error).split())[:200]}): write it as CSV"
        raise DataError(f"{name}: Parquet or Feather, {reason}") from None


def json_to_csv(data: bytes, name: str) -> bytes:
    """The bars of a JSON document, or of one document a line, as CSV; numbers keep their digits."""
    if len(data) > MAX_JSON_BYTES:
        raise DataError(f"{name}: more than {MAX_JSON_BYTES >> 20} MB of JSON: bring it in parts")
    document = None
    try:
        document = parse_json(data.decode("utf-8-sig"))
        return "\n".join(bar_rows_to_csv(find_bar_rows(document))).encode(errors="replace")
    except (UnicodeError, json.JSONDecodeError) as error:
        reason = f"broken JSON ({error}): bring it again, or the bars as CSV"
    except RecursionError:
        reason = "JSON, nested too deeply: bring the bars as CSV"
    except (LookupError, TypeError, AttributeError):
        reason = f"JSON, but no bars that I know: found {describe_json(document)}; {JSON_FORMATS_TEXT}"
    raise DataError(f"{name}: {reason}")


def parse_json(text: str) -> Any:
    """A JSON document, or the list of several one after another; numbers are strings."""
    decoder = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=str)
    documents, position = [], len(text) - len(text.lstrip())
    while position < len(text):
        value, position = decoder.raw_decode(text, position)
        documents.append(value)
        position = WHITESPACE.match(text, position).end()  # type: ignore[union-attr]
    return documents[0] if len(documents) == 1 else documents


def find_bar_rows(value: Any) -> list[Any]:
    """The one list of lists or of records in a document; an empty list if there is none, or more than one.

    Kraken gives the time of the `last` closed bar: the bar after it is left out.
    """
    if isinstance(value, list):
        return value if value and isinstance(value[0], list | dict) else []
    nested = [rows for rows in map(find_bar_rows, value.values()) if rows] if isinstance(value, dict) else []
    if len(nested) != 1:
        return []
    rows = nested[0]
    return rows[:-1] if len(rows) > 1 and "last" in value and rows[-2][:1] == [value["last"]] else rows


def bar_rows_to_csv(rows: list[Any]) -> Iterable[str]:
    """Bars of JSON as lines of CSV; LookupError, TypeError or AttributeError if they are of no known kind."""
    first = rows[0]
    if isinstance(first, dict):
        return map(candle_to_csv, rows) if {"mid", "bid"} & first.keys() else records_to_csv(rows)
    indices = (0, 1, 2, 3, 4) if len(first) == 5 else (0, 1, 2, 3, 4, VOLUME_INDEX[len(first)])
    header = ",".join(("time", *OHLC, "volume")[: len(indices)])
    return chain([header], (",".join(to_csv_cell(row[i]) for i in indices if i < len(row)) for row in rows))


def records_to_csv(rows: list[dict[str, Any]]) -> Iterable[str]:
    """Records as lines of CSV; their names are the header, the time and the prices first."""
    first = rows[0]
    order = (*TIME_KEYS, *OHLC)
    ordered = sorted(first, key=lambda key: order.index(key.lower()) if key.lower() in order else len(order))
    columns = {key: key for key in ordered if not isinstance(first[key], list | dict)}
    if "o" in first:
        columns = {key: name for key, name in POLYGON_KEYS.items() if key in first}
    names = [name.lower() for name in columns.values()]
    if not {*TIME_KEYS} & {*names[:1]} or not {*OHLC} <= {*names}:
        raise LookupError("no time, or not all of the prices")
    header = ",".join(map(to_csv_cell, columns.values()))
    return chain([header], (",".join(to_csv_cell(row.get(key)) for key in columns) for row in rows))


def to_csv_cell(value: Any) -> str:
    """A value of JSON as a field of CSV."""
    return " ".join(value.split()) if isinstance(value, str) else json.dumps(value)


def candle_to_csv(candle: dict[str, Any]) -> str:
    """A candle of OANDA as a line of CSV: time, complete, open, high, low, close, volume, and the four ask prices."""
    time = candle["time"] if "T" in candle["time"] else candle["time"].partition(".")[0]  # RFC 3339 or UNIX
    first, *ask = [[candle[side][k] for k in "ohlc"] for side in (("bid", "ask") if "bid" in candle else ("mid",))]
    return ",".join(map(to_csv_cell, (time, candle["complete"], *first, candle["volume"], *chain(*ask))))


def describe_json(document: Any) -> str:
    """The keys or the lists that a document of JSON consists of, in words."""
    if isinstance(document, dict) and document:
        return f"the keys {', '.join(to_printable(key)[:40] for key in list(document)[:12])}"
    if isinstance(document, list) and document:
        first = document[0]
        return f"lists of {len(first)}" if isinstance(first, list) else f"a list of {describe_json(first)}"
    return "nothing in it" if isinstance(document, list | dict) else "no lists and no records"


CONVERTERS = {UTF16: utf16_to_utf8, "JSON": json_to_csv, **dict.fromkeys(("Parquet", "Feather"), arrow_to_csv)}
