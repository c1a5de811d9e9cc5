"""A file that another process writes while it is read: bars are right or refused, none spliced, none skipped silently.

SWT_TRIES=1000 rewrites so many files; without it a few.
"""

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from host.data import follow as module
from host.data.csv_reader import read_bars
from host.data.feed import Bar, feed_bars
from host.data.follow import RewriteDetector
from host.data.formats import DataError, ReadOptions
from kernels.market.bars import SECOND_NS
from tests.fixtures.feeds import HOURLY, Script, append, assert_same, follow
from tests.fixtures.files import rows, write
from tests.fixtures.paths import ROOT
from tests.fixtures.writer import FIRST, WAYS, line, prices

TRIES = int(os.environ.get("SWT_TRIES", "25"))
MINUTE = ReadOptions(interval_s=60, spread_pips=0.0, side="bid")
LOOK_S, PATIENCE_S = 0.003, 20.0
CHUNKS = (8_000, 20_000, module.MAX_NEW_BYTES)


class Late(Exception):  # noqa: N818
    """The last bar has not come."""


@contextmanager
def bridge() -> Iterator["subprocess.Popen[bytes]"]:
    command = [sys.executable, "-m", "tests.fixtures.writer"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, cwd=ROOT) as process:
        yield process
        assert process.stdin
        process.stdin.close()
        assert process.wait(30) == 0


def until(last: int, path: Path, draw: random.Random) -> Iterator[Bar]:
    """The bars of a feed up to bar `last`, with pauses anywhere: whoever decides takes his time."""
    deadline = time.monotonic() + PATIENCE_S

    def wait() -> None:
        if time.monotonic() > deadline:
            raise Late
        time.sleep(LOOK_S)

    for bar in feed_bars(path, MINUTE, follow=True, wait=wait):
        yield bar
        if number(bar) == last:
            return
        if draw.random() < 0.01:
            time.sleep(draw.random() * 0.05)


def number(bar: Bar) -> int:
    return bar.time // SECOND_NS // 60 - FIRST // 60 - 1


def judge(bars: list[Bar], begin: int, last: int, refused: bool, told: bool) -> str:
    """What came of a file that was rewritten while it was read; `told`: that bars had scrolled out of it unread."""
    found = [number(bar) for bar in bars]
    if any((bar.open, bar.high, bar.low, bar.close) != prices(number(bar)) for bar in bars):
        return "spliced"
    if found != list(range(found[0], found[0] + len(found))) if found else False:
        return "missed aloud" if told else "skipped"
    if refused:
        return "refused"
    return "right" if found and begin <= found[0] and found[-1] == last else "skipped"


def test_files_rewritten_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, counts, said = random.Random(TRIES), {way: Counter[str]() for way in WAYS}, list[str]()
    monkeypatch.setattr(module, "log", said.append)
    monkeypatch.setattr("host.data.feed.log", lambda _: None)
    with bridge() as process:
        for i in range(TRIES):
            way, path = WAYS[i % len(WAYS)], tmp_path / f"{i}.csv"
            monkeypatch.setattr(module, "MAX_NEW_BYTES", draw.choice(CHUNKS))
            bars, scrolls = draw.choice((40, 300, 1500)), [draw.randint(1, 3) for _ in range(3)]
            path.write_text("time,open,high,low,close,volume\n" + "".join(map(line, range(1000, 1000 + bars))))
            assert process.stdin
            command = [str(path), way, 1000, bars, scrolls, i]
            process.stdin.write(json.dumps(command).encode() + b"\n")
            process.stdin.flush()
            time.sleep(draw.random() * 0.1)
            last, got, refused = 999 + bars + sum(scrolls), list[Bar](), False
            try:
                got += until(last, path, draw)
            except DataError:
                refused = True
            told = len(said) == 1 and "was never read" in said[0]
            assert told or said == []
            said.clear()
            counts[way][judge(got, 1000, last, refused, told)] += 1
            assert not told or "missed aloud" in counts[way]
    print(*(f"{way}: {dict(count)}" for way, count in counts.items()), sep="\n")
    total = sum(counts.values(), Counter[str]())
    assert total["spliced"] == total["skipped"] == 0
    assert total["right"] >= 0.9 * TRIES


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(module, "log", found.append)
    return found


@pytest.mark.parametrize("shift", [1, 3])
def test_a_window_that_moves_while_it_is_read_gives_every_bar_once(
    shift: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader is in the middle: what follows there is another part of the text now."""
    monkeypatch.setattr(module, "MAX_NEW_BYTES", 300)
    lines = rows(20)
    feed = feed_bars(write(tmp_path, lines[:12]), HOURLY, follow=True, wait=Script(lambda: None))
    bars = [next(feed) for _ in range(5)]
    write(tmp_path, lines[shift : 12 + shift])
    for _ in range(7 + shift):
        bars.append(next(feed))
    whole = read_bars(write(tmp_path, lines[: 12 + shift], "whole.csv"))[0]
    assert_same(bars, whole)
    feed.close()  # type: ignore[attr-defined]


def test_half_of_an_overwritten_line_is_never_a_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer is in the middle of a line: a stamp of the new text, prices of the old one."""
    lines = [line.rpartition(",")[0] + ",1" for line in rows(20)]
    path = write(tmp_path, lines[:12])
    old, new = path.read_bytes(), write(tmp_path, lines[1:13], "new.csv").read_bytes()
    assert len(old) == len(new)
    at = new.rindex(b"\n", 0, -1) + 30
    steps = [lambda: path.write_bytes(new[:at] + old[at:]), lambda: path.write_bytes(new)]
    script = Script(steps[0], lambda: None)
    monkeypatch.setattr(module.time, "sleep", lambda _: steps[1]() if len(script.steps) < 2 else None)
    bars: list[Bar] = []
    with suppress(Script.Over):
        bars += feed_bars(path, HOURLY, follow=True, wait=script)
    assert_same(bars, read_bars(write(tmp_path, lines[:13], "whole.csv"))[0])


def test_a_bar_that_was_rewritten_is_reported_once_with_both_values(tmp_path: Path, said: list[str]) -> None:
    lines = rows()
    path = write(tmp_path, lines[:6])
    stamp, *prices = lines[3].split(",")
    other = ",".join([stamp, prices[0], "1.3", *prices[2:]])
    changed = [*lines[:3], other, *lines[4:7]]
    bars = follow(path, lambda: write(tmp_path, changed), lambda: write(tmp_path, changed[1:]))
    assert_same(bars, read_bars(write(tmp_path, lines[:7], "whole.csv"))[0])
    assert len(said) == 1
    assert said[0].startswith(f"{path}: line 5: the bar of 2021-")
    assert f"taken as {float(prices[0]):.10g}/{float(prices[1]):.10g}/" in said[0]
    assert f"now {float(prices[0]):.10g}/1.3/" in said[0]


def test_a_bar_that_comes_after_its_turn_is_reported(tmp_path: Path, said: list[str]) -> None:
    lines = rows()
    path = write(tmp_path, [*lines[:3], *lines[4:6]])
    assert len(follow(path, lambda: write(tmp_path, lines[:7]))) == 6
    assert len(said) == 1
    assert "was not there in its turn" in said[0]


def test_a_window_that_has_passed_unread_bars_is_reported(tmp_path: Path, said: list[str]) -> None:
    lines = rows()
    path = write(tmp_path, lines[:4])
    bars = follow(path, lambda: write(tmp_path, lines[4:6]), lambda: write(tmp_path, lines[7:9]))
    assert len(bars) == 8
    assert len(said) == 1
    assert said[0].startswith(f"{path}: line 2: the feed begins at ")
    assert "was never read" in said[0]


def test_no_more_bars_are_remembered_than_a_window_has(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    monkeypatch.setattr(module, "MAX_REMEMBERED_BARS", 3)
    taken = RewriteDetector("feed", SECOND_NS)
    for i in range(9):
        taken.remember(i * SECOND_NS, (float(i),))
    for i in range(9):
        taken.compare(i * SECOND_NS, (-1.0,))
    assert len(said) == 3


def test_a_look_reads_no_more_than_it_must(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the file: twice the new text and what stands before it."""
    path = tmp_path / "b.csv"
    path.write_text("time,open,high,low,close,volume\n" + "".join(map(line, range(6_000))))
    read, read_at = list[int](), module.read_at

    def counted(*arguments: object) -> bytes:
        found = read_at(*arguments)  # type: ignore[arg-type]
        read.append(len(found))
        return found

    monkeypatch.setattr(module, "read_at", counted)
    steps = [read.clear, append(path, line(6_000)), lambda: None]
    assert len(follow(path, *steps, options=MINUTE)) == 6_001
    assert path.stat().st_size > 4 * module.OVERLAP_BYTES
    assert sum(read) <= 6 * module.OVERLAP_BYTES + 2 * len(line(6_000))


def test_on_windows_nobody_is_kept_from_replacing_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two looks the file is closed; what was read before holds all the same."""
    lines, held = rows(), list[object]()
    path = write(tmp_path, lines[:6])
    opened = module.open_when_there

    def noted(*arguments: object) -> object:
        held.append(opened(*arguments))  # type: ignore[arg-type]
        return held[-1]

    def replace() -> None:
        assert all(file.closed for file in held)  # type: ignore[attr-defined]
        os.replace(write(tmp_path, lines[2:8], "new.csv"), path)

    monkeypatch.setattr(module, "open_when_there", noted)
    monkeypatch.setattr(module, "KEEPS_FILE_OPEN", False)
    bars = follow(path, replace, append(path, lines[8] + "\n"))
    monkeypatch.undo()
    assert_same(bars, read_bars(write(tmp_path, lines[:9], "whole.csv"))[0])
