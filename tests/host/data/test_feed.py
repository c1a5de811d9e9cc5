"""A feed gives the bars of the bulk reader to the bit, as they come, and never a half or a wrong one."""

import io
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest

from host.data.csv_reader import read_bars
from host.data.feed import POLL_S, Bar, LineParser, feed_bars
from host.data.file_checks import MIN_OTHER_STEPS
from host.data.formats import DataError, ReadOptions
from host.data.layout import detect_layout
from host.data.row_checks import SNIFF_LINES
from kernels.market.bars import SECOND_NS, Bars
from kernels.market.features import HISTORY
from tests.fixtures.excerpts import SAMPLES, SETTLED
from tests.fixtures.feeds import HOURLY, Script, append, assert_same, follow
from tests.fixtures.files import FAULTS, HEADER, REAL_FILES, real, rows, write
from tests.fixtures.files import FILES as ALL
from tests.fixtures.paths import DATA, REAL, ROOT

NEWEST_FIRST = ("daily_investing.csv", "daily_myfxbook.csv")
FILES = [path for path in ALL if path.name not in NEWEST_FIRST]


def test_a_bar_has_the_fields_of_bars() -> None:
    assert Bar._fields == Bars._fields


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
@pytest.mark.parametrize(
    "options", [ReadOptions(), ReadOptions(label="close", spread_pips=1.3), ReadOptions(timezone="UTC+2h")]
)
def test_lines_are_read_as_the_file_is(path: Path, options: ReadOptions) -> None:
    assert_same(list(feed_bars(path, options)), read_bars(path, options)[0])


@pytest.mark.parametrize(
    ("clock", "first"), [("America/New_York+7h", datetime(2021, 3, 12)), ("Europe/Athens", datetime(2021, 3, 26))]
)
def test_a_server_changes_its_clock(clock: str, first: datetime, tmp_path: Path) -> None:
    """Over the weekend of the change, on American and on European dates: two hours ahead of UTC, then three."""
    before = [first + timedelta(hours=h) for h in range(20)]
    after = [first + timedelta(days=2, hours=h) for h in range(21, 47)]
    stamps = [t + timedelta(hours=2) for t in before] + [t + timedelta(hours=3) for t in after]
    lines = [f"{t:%Y.%m.%d,%H:%M},1.1,1.2,1.0,1.1,{i + 1}\n" for i, t in enumerate(stamps)]
    path, options = tmp_path / "b.csv", ReadOptions(timezone=clock)
    path.write_text("".join(lines))
    bars, _ = read_bars(path, options)
    expected = [(t + timedelta(hours=1)).replace(tzinfo=UTC).timestamp() for t in before + after]
    assert (bars.time / SECOND_NS).tolist() == expected
    assert_same(list(feed_bars(path, options)), bars)


@pytest.mark.parametrize("side", ["bid", "mid", "ask"])
def test_sides_are_read_as_the_file_is(side: str) -> None:
    options = ReadOptions(side=side)
    assert_same(list(feed_bars(DATA / "metatrader5.csv", options)), read_bars(DATA / "metatrader5.csv", options)[0])


@real
@pytest.mark.parametrize("name", [name for name, *_ in REAL_FILES])
def test_real_files_are_read_as_in_bulk(name: str) -> None:
    bars, source = read_bars(REAL / name)
    feed = list(islice(feed_bars(REAL / name, ReadOptions(interval_s=source.interval_s)), 20_000))
    assert_same(feed, Bars(*(column[: len(feed)] for column in bars)))


@pytest.mark.parametrize("name", NEWEST_FIRST)
def test_a_list_with_the_newest_bar_first_is_no_feed(name: str) -> None:
    with pytest.raises(DataError, match="lists the newest bar first"):
        list(feed_bars(DATA / name))


EXCERPTS = [(name, ReadOptions()) for name, read in SAMPLES.items() if isinstance(read, tuple)]


@real
@pytest.mark.parametrize(("name", "options"), EXCERPTS + [row[:2] for row in SETTLED])
def test_real_excerpts_are_read_as_in_bulk(name: str, options: ReadOptions) -> None:
    path = REAL / "format_samples" / name
    if "newest_first" in name:
        with pytest.raises(DataError, match="lists the newest bar first"):
            list(feed_bars(path, options))
    else:
        assert_same(list(feed_bars(path, options)), read_bars(path, options)[0])


@pytest.mark.parametrize(("changes", "kind"), FAULTS)
def test_a_bad_line_stops_the_feed_or_is_dropped(changes: dict[int, str], kind: str, tmp_path: Path) -> None:
    lines = rows()
    fields = lines[5].split(",")
    for column, text in changes.items():
        fields[column] = text
    path = write(tmp_path, [*lines[:5], ",".join(fields), *lines[6:]])
    feed = feed_bars(path, HOURLY)
    assert len(list(islice(feed, 5))) == 5
    with pytest.raises(DataError, match=r"line 7: .*--drop-bad"):
        next(feed)
    dropping = ReadOptions(interval_s=3600, drop_bad=True)
    assert_same(list(feed_bars(path, dropping)), read_bars(path, dropping)[0])


def test_bars_that_are_not_complete_are_skipped(tmp_path: Path) -> None:
    lines = [f"2021-03-24T{m // 60:02}:{m % 60:02}:00,{m % 30 == 0},1.1,1.2,1.0,1.1,5" for m in range(0, 600, 5)]
    path = tmp_path / "b.csv"
    path.write_text("\n".join(lines))
    for interval_s in (None, 3600):
        options = ReadOptions(interval_s=interval_s)
        assert_same(list(feed_bars(path, options)), read_bars(path, options)[0])


@pytest.mark.parametrize("name", ["dukascopy.csv", "canonical_spread.csv"])
def test_filler_at_the_beginning_is_judged_as_in_bulk(name: str, tmp_path: Path) -> None:
    header, *lines = (DATA / name).read_text().splitlines()
    fields = lines[0].split(",")
    lines[0] = ",".join([fields[0], *["1.18"] * 4, "0", *fields[6:]])
    path = tmp_path / "b.csv"
    path.write_text("\n".join([header, *lines]))
    dropping = ReadOptions(drop_bad=True)
    assert_same(list(feed_bars(path, dropping)), read_bars(path, dropping)[0])


def test_a_parser_by_itself() -> None:
    parser = LineParser(detect_layout(["20210325 220000;1.1;1.2;1.0;1.1;0"], HOURLY, "feed"), HOURLY, "feed")
    assert parser.parse("20210325 220000;1.1;1.2;1.0;1.15;0", 1) == Bar(
        1_616_731_200_000_000_000, 1.1, 1.2, 1.0, 1.15, 1.1 + 0.8 * 0.0001, 1.15 + 0.8 * 0.0001, 0.0
    )
    assert parser.parse("  ", 2) is None
    with pytest.raises(DataError, match="how long"):
        LineParser(parser.layout, ReadOptions(), "feed")


@pytest.mark.parametrize("content", [b"", HEADER.encode(), b"\0\1\2", b"1" * 5000, HEADER.encode() + b"2" * 5000])
@pytest.mark.parametrize("options", [HOURLY, ReadOptions()])
def test_no_feed_of_bars(content: bytes, options: ReadOptions, tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_bytes(content)
    for source in (io.BytesIO(content), tmp_path / "b.csv"):
        with pytest.raises(DataError):
            list(feed_bars(source, options))


def test_dropped_lines_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, [*rows()[:5], "rubbish", *rows()[5:]])
    assert len(list(feed_bars(path, ReadOptions(interval_s=3600, drop_bad=True)))) == len(rows())
    assert capsys.readouterr().err.splitlines()[1:] == [
        f"{path}: line 7: not a bar: 1 fields where 6 are wanted: 'rubbish'; dropped"
    ]


def test_a_level_that_stays_is_no_slip(tmp_path: Path) -> None:
    """The file and the feed name the same line in the same words."""
    moved = [line.replace(",1.", ",110.") for line in rows()[5:]]
    path, dropping = write(tmp_path, [*rows()[:5], *moved]), ReadOptions(interval_s=3600, drop_bad=True)
    with pytest.raises(DataError, match=r"line 7: prices move from 1.101 to 110.102 ") as bulk:
        read_bars(path, dropping)
    with pytest.raises(DataError) as feed:
        list(feed_bars(path, dropping))
    assert str(feed.value) == str(bulk.value)
    with pytest.raises(DataError, match=r"line 7: a price too far .*high 110.103 beside 1.101.*if few"):
        list(feed_bars(path, HOURLY))


def test_slips_that_do_not_stay_are_dropped(tmp_path: Path) -> None:
    lines = [line.replace(",1.", ",110.") if i in (2, 3, 7) else line for i, line in enumerate(rows())]
    dropping = ReadOptions(interval_s=3600, drop_bad=True)
    feed = list(feed_bars(write(tmp_path, lines), dropping))
    assert_same(feed, read_bars(tmp_path / "bars.csv", dropping)[0])
    assert len(feed) == 9


def test_a_byte_order_mark_and_carriage_returns_are_no_part_of_a_line() -> None:
    for text in (HEADER + "\n".join(rows()), "20210325 220000;1.1;1.2;1.0;1.1;0"):
        plain = list(feed_bars(io.BytesIO(text.encode()), HOURLY))
        marked = b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()
        assert list(feed_bars(io.BytesIO(marked), HOURLY)) == plain != []


def test_longer_bars_than_asked_for_are_refused(tmp_path: Path) -> None:
    lines = [f"{1_600_000_000 + 7200 * i},1,1,1,1,1" for i in range(SNIFF_LINES)]
    with pytest.raises(DataError, match="bars of 7200 s where 3600 s are wanted"):
        list(feed_bars(write(tmp_path, lines), HOURLY))
    assert len(list(feed_bars(write(tmp_path, lines[:MIN_OTHER_STEPS]), HOURLY))) == MIN_OTHER_STEPS, "too few to tell"


def test_dash_is_stdin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = write(tmp_path, rows())
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(path.read_bytes())))
    assert_same(list(feed_bars("-", HOURLY)), read_bars(path, HOURLY)[0])


def test_a_named_pipe_ends_with_its_writer(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = os.open(path, os.O_RDWR)
    os.write(writer, write(tmp_path, rows()[:3]).read_bytes())
    feed = feed_bars(path, HOURLY, follow=True)
    assert len(list(islice(feed, 3))) == 3
    os.close(writer)
    assert list(feed) == []


def test_another_length_of_bar_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="bars of 3600 s where 5400 s are wanted"):
        list(feed_bars(write(tmp_path, rows()), ReadOptions(interval_s=5400)))
    with pytest.raises(DataError, match="No such file"):
        next(feed_bars(tmp_path / "nothing.csv", HOURLY, follow=True))


def test_following_waits_for_the_newline(tmp_path: Path) -> None:
    lines = rows()
    path = write(tmp_path, lines[:3])
    whole = read_bars(write(tmp_path, lines, "whole.csv"))[0]
    half = lines[4][:30]
    steps = [
        append(path, lines[3] + "\n"),
        append(path, half),
        lambda: None,
        append(path, lines[4][30:]),
        append(path, "\n"),
    ]
    seen: list[int] = []
    bars: list[Bar] = []
    script = Script(*((lambda step=step: (seen.append(len(bars)), step())) for step in steps))  # type: ignore[misc]
    with suppress(Script.Over):
        for bar in feed_bars(path, HOURLY, follow=True, wait=script):
            bars.append(bar)
    assert seen == [3, 4, 4, 4, 4]
    assert_same(bars, Bars(*(column[:5] for column in whole)))


def test_following_a_file_that_begins_empty(tmp_path: Path) -> None:
    path = tmp_path / "b.csv"
    path.touch()
    text = HEADER + "\n".join(rows(2)) + "\n"
    assert len(follow(path, append(path, text[:20]), append(path, text[20:70]), append(path, text[70:]))) == 2


@pytest.mark.parametrize("way", ["truncated", "renamed", "window", "shorter"])
def test_a_file_that_starts_over_gives_only_what_is_newer(way: str, tmp_path: Path) -> None:
    lines = rows()
    path = write(tmp_path, lines[:6])

    def rewrite(first: int, stop: int) -> None:
        if way == "renamed":
            os.replace(write(tmp_path, lines[first:stop], "new.csv"), path)
        else:
            write(tmp_path, lines[first:stop])

    steps = {
        "truncated": [lambda: path.write_bytes(b""), lambda: rewrite(0, 8)],
        "renamed": [lambda: rewrite(4, 8)],
        "window": [lambda: rewrite(2, 8)],  # as many bytes as before
        "shorter": [lambda: path.unlink(), lambda: rewrite(5, 8)],
    }[way]
    bars = follow(path, *steps, lambda: None, append(path, lines[8] + "\n"))
    whole = read_bars(write(tmp_path, lines[:9], "whole.csv"))[0]
    assert_same(bars, whole)


def test_what_was_written_before_a_rotation_is_read(tmp_path: Path) -> None:
    """The last bars of the old file and the first of the new one come between two looks at it."""
    lines = rows()
    path = write(tmp_path, lines[:6])

    def rotate() -> None:
        append(path, lines[6] + "\n" + lines[7] + "\n" + lines[8][:20])()
        path.rename(tmp_path / "bars.csv.1")
        write(tmp_path, lines[8:10])

    bars = follow(path, rotate, append(path, lines[10] + "\n"))
    assert_same(bars, read_bars(write(tmp_path, lines[:11], "whole.csv"))[0])


def test_a_file_that_cannot_be_opened_for_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer may have it for itself while it writes."""
    lines, opened = rows(), Path.open
    path = write(tmp_path, lines[:6])

    def lock() -> None:
        def refuse(*_: object) -> None:
            raise PermissionError(13, "locked")

        monkeypatch.setattr(Path, "open", refuse)

    def unlock() -> None:
        monkeypatch.setattr(Path, "open", opened)
        os.replace(write(tmp_path, lines[3:8], "new.csv"), path)

    bars = follow(path, lock, lambda: None, unlock)
    assert_same(bars, read_bars(write(tmp_path, lines[:8], "whole.csv"))[0])
    lock()
    with pytest.raises(DataError, match="locked"):
        list(feed_bars(path, HOURLY))


def test_looking_at_a_file_costs_little(tmp_path: Path) -> None:
    """Less than 1 % of a processor at one look every POLL_S."""
    path = write(tmp_path, rows())
    looks, start = 500, time.process_time()
    assert len(follow(path, *[lambda: None] * looks)) == len(rows())
    assert (time.process_time() - start) / looks < 0.01 * POLL_S


def test_a_half_line_is_forgotten_when_the_file_starts_over(tmp_path: Path) -> None:
    lines = rows()
    path = write(tmp_path, lines[:11])
    assert lines[11][:-1].endswith(",1"), "half of it is a bar, too"
    bars = follow(path, append(path, lines[11][:-1]), lambda: write(tmp_path, lines[4:]))
    assert_same(bars, read_bars(write(tmp_path, lines, "whole.csv"))[0])


def test_a_file_rewritten_with_one_bar_more_goes_on(tmp_path: Path) -> None:
    lines = rows()
    path = write(tmp_path, lines[:6])
    assert len(follow(path, lambda: write(tmp_path, lines[:7]), lambda: write(tmp_path, lines[:8]))) == 8


def test_a_feed_that_turns_into_another_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, rows())
    other = (DATA / "metatrader4.csv").read_bytes()
    with pytest.raises(DataError, match="format has changed"):
        list(feed_bars(path, HOURLY, follow=True, wait=Script(lambda: path.write_bytes(other), lambda: None)))


def test_a_repeated_bar_is_refused_unless_the_file_started_over(tmp_path: Path) -> None:
    path = write(tmp_path, rows())
    with pytest.raises(DataError, match="line 14: the stamp of the bar before"):
        list(feed_bars(path, HOURLY, follow=True, wait=Script(append(path, rows()[-1] + "\n"))))


def test_bars_come_one_by_one_through_a_pipe(tmp_path: Path) -> None:
    """A bar but the first is there before the next line is written; the end of the pipe is the end of the feed."""
    program = (
        "import sys\nfrom host.data.formats import ReadOptions\nfrom host.data.feed import feed_bars\n"
        "options = ReadOptions(interval_s=3600)\n"
        "for bar in feed_bars(sys.stdin.buffer, options, follow=True):\n    print(bar.close, flush=True)"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write((HEADER + rows()[0] + "\n").encode())
        for line in rows(4)[1:]:
            child.stdin.write(line.encode() + b"\n")
            child.stdin.flush()
            if line == rows()[1]:
                assert float(child.stdout.readline()) == float(rows()[0].split(",")[4])
            assert float(child.stdout.readline()) == float(line.split(",")[4])
        child.stdin.write(b"2021-03-24T06:00:00Z,1.1")
        child.stdin.close()
        assert child.stdout.read() == b""
    assert child.returncode == 0


def test_a_growing_file_as_a_stream(tmp_path: Path) -> None:
    path = write(tmp_path, rows(3))
    with path.open("rb") as stream:
        feed: Iterator[Bar] = feed_bars(stream, HOURLY, follow=True, wait=Script(append(path, rows()[3] + "\n")))
        assert len(list(islice(feed, 4))) == 4
        with pytest.raises(Script.Over):
            next(feed)


@pytest.mark.parametrize(
    ("column", "spread", "reason"),
    [("spread", "0", "zero throughout"), ("spread_pips", "120.5", "wider than the mean bar")],
)
def test_an_absurd_spread_is_refused_before_the_first_decision(
    column: str, spread: str, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "b.csv"
    lines = [f"{1_672_700_400 + 3600 * i},1.08,1.081,1.079,1.0805,7,{spread}" for i in range(HISTORY + 9)]
    path.write_text("\n".join([f"{HEADER.strip()},{column}", *lines]))
    with pytest.raises(DataError, match=reason) as bulk:
        read_bars(path)
    feed = feed_bars(path)
    assert len(list(islice(feed, HISTORY - 1))) == HISTORY - 1
    with pytest.raises(DataError) as late:
        next(feed)
    assert str(late.value) == str(bulk.value)
    meant = ReadOptions(spread_pips=0.0)
    assert_same(list(feed_bars(path, meant)), read_bars(path, meant)[0])


def test_a_quiet_night_is_no_absurd_spread(tmp_path: Path) -> None:
    """Bars of a minute are narrower than their spread for hours; the file as a whole is not."""
    path, half = tmp_path / "b.csv", [0.00005] * (HISTORY + 9) + [0.002] * 500
    lines = [f"{1_672_700_400 + 60 * i},1.08,{1.08 + h:.5f},{1.08 - h:.5f},1.08,7,0.00025" for i, h in enumerate(half)]
    path.write_text("\n".join([f"{HEADER.strip()},spread", *lines]))
    assert_same(list(feed_bars(path)), read_bars(path)[0])
