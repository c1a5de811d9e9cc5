"""Readers given anything at all: bars in order and in range, the same in bulk and line by line, or DataError.

`SWT_FUZZ_SECONDS=600` with atheris installed fuzzes for so long; SWT_FUZZ_CORPUS keeps what it finds.
"""

import importlib.util
import io
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from host.data.csv_reader import read_bars
from host.data.feed import feed_bars
from host.data.formats import MAX_LINE, DataError, ReadOptions
from kernels.market.bars import Bars
from tests.fixtures.paths import DATA, ROOT

FILES = sorted(DATA.glob("*.[cj]s*"))
SECONDS = int(os.environ.get("SWT_FUZZ_SECONDS", "0"))
PIP = 0.0001  # otherwise the reader of a feed, who sees the first price only, may choose another
WAYS = [
    ReadOptions(pip=PIP),
    ReadOptions(pip=PIP, drop_bad=True),
    ReadOptions(pip=PIP, interval_s=3600),
    ReadOptions(pip=PIP, interval_s=14_400, timezone="Europe/Athens", drop_bad=True),
    ReadOptions(pip=PIP, dates="dmy", label="close", side="mid"),
    ReadOptions(pip=PIP, dates="mdy", point=0.001, spread_pips=0.0),
]
QUICK = settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])


def check(content: bytes, folder: Path) -> bool:
    """Read a file, by the way its first byte names; whether there were bars."""
    options = WAYS[content[0] % len(WAYS)] if content else WAYS[0]
    path = folder / "20210101.csv"
    path.write_bytes(content[1:])
    bulk = bars_or_none(lambda: read_bars(path, options)[0])
    feed = bars_or_none(lambda: columns(path, options))
    if bulk is not None and feed is not None and not options.drop_bad:
        assert [column.tobytes() for column in bulk] == [column.tobytes() for column in feed]
    return bulk is not None


def columns(path: Path, options: ReadOptions) -> Bars:
    rows = list(feed_bars(path, options))
    kinds = (np.int64 if name == "time" else np.float64 for name in Bars._fields)
    return Bars(*(np.array([row[i] for row in rows], kind) for i, kind in enumerate(kinds)))


def bars_or_none(read: Callable[[], Bars]) -> Bars | None:
    try:
        bars = read()
    except DataError:
        return None
    assert (np.diff(bars.time) > 0).all()
    for column in bars[1:7]:
        assert ((column > 0) & np.isfinite(column)).all()
    assert (bars.high >= bars.low).all()
    assert (bars.low <= bars.close).all()
    assert ((bars.ask_open >= bars.open) & (bars.ask_close >= bars.close)).all()
    assert ((bars.volume >= 0) & np.isfinite(bars.volume)).all()
    return bars


PIECES = st.one_of(
    st.binary(max_size=3),
    st.text('0123456789.,;-+eE\t\n\r "/:TZ', max_size=6).map(str.encode),
    st.sampled_from(
        [
            b"nan",
            b"{",
            b"[",
            b'"o":',
            b"inf",
            b"-0",
            b"1e400",
            b"9" * 400,
            b"1,5",
            b"\0",
            b"\r",
            b"\xef\xbb\xbf",
            b"False",
        ]
    ),
    st.sampled_from(["始値", "цена", "é"]).flatmap(
        lambda text: st.sampled_from([text.encode("utf-8"), text.encode("utf-16"), text.encode("cp932", "replace")])
    ),
)


@given(st.binary(max_size=300))
@QUICK
def test_arbitrary_bytes(tmp_path: Path, content: bytes) -> None:
    check(content, tmp_path)


@given(st.data())
@QUICK
def test_mutated_files(tmp_path: Path, data: st.DataObject) -> None:
    content = data.draw(st.sampled_from(FILES)).read_bytes()
    for _ in range(data.draw(st.integers(1, 4))):
        at, cut = data.draw(st.integers(0, len(content))), data.draw(st.integers(0, 40))
        content = content[:at] + data.draw(PIECES) + content[at + cut :]
    check(bytes([data.draw(st.integers(0, len(WAYS) - 1))]) + content, tmp_path)


@given(st.data())
@QUICK
def test_spliced_files(tmp_path: Path, data: st.DataObject) -> None:
    """Lines of one format in a file of another, out of order and repeated."""
    first, second = (data.draw(st.sampled_from(FILES)).read_bytes().splitlines(keepends=True) for _ in "ab")
    picked = data.draw(st.lists(st.sampled_from(first[:12] + second[:6]), max_size=30))
    check(bytes([data.draw(st.integers(0, len(WAYS) - 1))]) + b"".join(first[:2] + picked), tmp_path)


class Endless(io.RawIOBase):
    """A stream of one byte without end that counts what is taken from it."""

    def __init__(self, begin: bytes, byte: bytes) -> None:
        self.begin, self.byte, self.taken = begin, byte, 0

    def readline(self, size: int | None = -1, /) -> bytes:
        assert size is not None
        assert size >= 0, "all of it"
        self.taken += size
        if self.begin:
            line, newline, self.begin = self.begin.partition(b"\n")
            return line + newline
        return self.byte * size


@pytest.mark.parametrize("begin", [b"", b"time,open,high,low,close\n"])
@pytest.mark.parametrize("byte", [b"1", b"\0", b",", b"\r", b'"'])
def test_a_line_without_end_is_refused_soon(begin: bytes, byte: bytes) -> None:
    stream = Endless(begin, byte)
    with pytest.raises(DataError, match=f"longer than {MAX_LINE} bytes"):
        list(feed_bars(stream, WAYS[0]))  # type: ignore[arg-type]
    assert stream.taken < 3 * MAX_LINE


@pytest.mark.parametrize("separator", [",", "\t", ";"])
@pytest.mark.parametrize("field", ["1" * 380, "1." * 190, "a" * 380, "1,1" * 120, '"' * 380, "time" * 95])
@pytest.mark.parametrize("begin", ["20210326 03:00", "0", "2021-03-26", "time,open,high,low,close\n2021-03-26"])
def test_long_lines_cost_no_more_than_their_length(begin: str, field: str, separator: str, tmp_path: Path) -> None:
    """Patterns with two ways to match a number would take for ever to find that ten of them do not."""
    path = tmp_path / "20210101.csv"
    path.write_text(separator.join([begin, *[field] * 9, "x"]) + "\n")
    start = time.process_time()
    with pytest.raises(DataError):
        read_bars(path)
    assert time.process_time() - start < 1.0


FUZZ = """
import sys, tempfile
from pathlib import Path
import atheris
with atheris.instrument_imports(include=["host"]):
    from tests.host.data.test_fuzz import check
    import host.feed
host.data.feed.log = lambda text: None
folder = Path(tempfile.mkdtemp())
def one(content):
    check(content, folder)
atheris.Setup(sys.argv, one)
atheris.Fuzz()
"""


@pytest.mark.skipif(
    not SECONDS or importlib.util.find_spec("atheris") is None,
    reason="long mode: SWT_FUZZ_SECONDS=600 with atheris installed",
)
def test_fuzz_for_long(tmp_path: Path) -> None:
    corpus = Path(os.environ.get("SWT_FUZZ_CORPUS", tmp_path / "corpus"))
    corpus.mkdir(exist_ok=True)
    for way in range(len(WAYS)):
        for path in FILES:
            lines = path.read_bytes().splitlines(keepends=True)
            (corpus / f"{way}-{path.name}").write_bytes(bytes([way]) + b"".join(lines[:12]))
    limits = [f"-max_total_time={SECONDS}", "-max_len=6000", "-rss_limit_mb=2048", "-timeout=10"]
    command = [sys.executable, "-c", FUZZ, *limits, f"-artifact_prefix={corpus.parent}/", str(corpus)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, "\n".join(line for line in said.splitlines() if line[:1] != "#")[-4000:]
    print("\n".join(said.splitlines()[-3:]))
