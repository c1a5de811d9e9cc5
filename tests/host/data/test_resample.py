"""Longer bars are made of closed shorter ones, in bulk and one by one alike, never of a bar that is still to come."""

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host.data.csv_reader import read_bars
from host.data.feed import Bar, feed_bars, resample_feed
from host.data.formats import DataError, ReadOptions
from host.data.parsing import parse_clock
from host.data.resample import period_bounds, resample_bars
from kernels.market.bars import SECOND_NS, Bars
from tests.fixtures.feeds import Script, append, assert_same, columns, follow
from tests.fixtures.files import HEADER, real
from tests.fixtures.paths import REAL

MINUTE, HOUR = 60 * SECOND_NS, 3600 * SECOND_NS
CLOCKS = ("UTC", "Europe/Athens", "Europe/Athens-7h", "America/New_York+7h", "Asia/Kolkata")
BEGIN = datetime(2021, 3, 27, tzinfo=UTC)  # European clocks change on the next day


def minute(open_ns: int, i: int) -> Bar:
    price = 1.1 + 0.001 * (i * 7919 % 13)
    low, high = price - 0.001, price + 0.0005 * (i % 3) + 0.001
    return Bar(open_ns + MINUTE, price, high, low, price + 0.0005, price + 1e-4, price + 6e-4, 0.1 * (i % 7))


def by_hand(bars: list[Bar], step_ns: int, interval_s: int, clock: str) -> list[Bar]:
    """Group by the hands of a clock: for each bar the start and the end of its period, with datetimes."""
    zone, shift_s = parse_clock(clock)
    shift = timedelta(seconds=shift_s)

    def period(bar: Bar) -> tuple[int, int]:
        utc = datetime.fromtimestamp((bar.time - step_ns) // SECOND_NS, UTC)
        wall = (utc.astimezone(zone) + shift).replace(tzinfo=None) if clock != "UTC" else utc.replace(tzinfo=None)
        since = (wall - datetime(1970, 1, 1)).total_seconds() % interval_s
        begin = wall - timedelta(seconds=since)
        ends = [(t - shift).replace(tzinfo=zone).timestamp() for t in (begin, begin + timedelta(seconds=interval_s))]
        return int(ends[0]) * SECOND_NS, int(ends[1]) * SECOND_NS

    longer = []
    groups = [(key, list(group)) for key, group in groupby(bars, key=period)]
    for i, ((begin, end), part) in enumerate(groups):
        whole = i > 0 or part[0].time - step_ns == begin
        over = i < len(groups) - 1 or part[-1].time >= end
        if whole and over:
            volume = 0.0
            for bar in part:
                volume += bar.volume
            high, low = max(bar.high for bar in part), min(bar.low for bar in part)
            first, last = part[0], part[-1]
            longer.append(Bar(end, first.open, high, low, last.close, first.ask_open, last.ask_close, volume))
    return longer


@given(
    st.integers(0, 3 * 24 * 60),
    st.lists(st.sampled_from([1] * 9 + [2, 17, 61, 1500]), min_size=0, max_size=200),
    st.sampled_from([300, 900, 3600]),
    st.sampled_from(CLOCKS),
)
@settings(deadline=None, max_examples=100)
def test_bulk_and_feed_do_what_is_done_by_hand(begin: int, steps: list[int], interval_s: int, clock: str) -> None:
    minutes = [int(BEGIN.timestamp()) // 60 + begin]
    for step in steps:
        minutes.append(minutes[-1] + step)
    bars = [minute(m * MINUTE, i) for i, m in enumerate(minutes)]
    expected = by_hand(bars, MINUTE, interval_s, clock if clock == "Asia/Kolkata" else "UTC")
    merged, first = resample_bars(columns(bars), MINUTE, interval_s * SECOND_NS, clock)
    assert list(resample_feed(bars, MINUTE, interval_s * SECOND_NS, clock)) == expected
    assert [Bar(*row) for row in zip(*(column.tolist() for column in merged), strict=True)] == expected
    assert [bars[t].open for t in first] == [bar.open for bar in expected]
    assert merged.volume.dtype == np.float64


@given(st.integers(0, 20 * 24), st.lists(st.sampled_from([1, 1, 1, 2, 49]), max_size=120), st.sampled_from([2, 4, 24]))
@settings(deadline=None, max_examples=60)
def test_days_and_their_parts_follow_the_clock_of_the_file(begin: int, steps: list[int], hours: int) -> None:
    """Over both changes of the clocks: the hour that comes twice is in one period, the one that is skipped in none."""
    for start in (datetime(2021, 3, 18, tzinfo=UTC), datetime(2021, 10, 21, tzinfo=UTC)):
        opens = [int(start.timestamp()) // 3600 + begin]
        for step in steps:
            opens.append(opens[-1] + step)
        bars = [minute(h * HOUR, i)._replace(time=(h + 1) * HOUR) for i, h in enumerate(opens)]
        for clock in ("Europe/Athens", "America/New_York+7h"):
            expected = by_hand(bars, HOUR, hours * 3600, clock)
            merged, _ = resample_bars(columns(bars), HOUR, hours * HOUR, clock)
            assert list(resample_feed(bars, HOUR, hours * HOUR, clock)) == expected
            assert merged.time.tolist() == [bar.time for bar in expected]
            assert merged.high.tolist() == [bar.high for bar in expected]


@given(st.sampled_from(CLOCKS), st.sampled_from([900, 1800, 3600, 7200, 10_800, 14_400, 28_800, 86_400]))
@settings(deadline=None, max_examples=15)
def test_periods_lie_one_after_another(clock: str, interval_s: int) -> None:
    for start in (datetime(2021, 3, 10, tzinfo=UTC), datetime(2021, 10, 28, tzinfo=UTC)):
        opens = int(start.timestamp()) * SECOND_NS + np.arange(30 * 96, dtype=np.int64) * 900 * SECOND_NS
        begin, end = period_bounds(opens, interval_s * SECOND_NS, clock)
        assert ((begin <= opens) & (opens < end)).all()
        assert (np.diff(end) >= 0).all()
        assert (np.diff(begin) >= 0).all()
        assert ((end - begin) % 900 == 0).all()


def test_a_day_of_a_server_begins_at_its_midnight() -> None:
    summer = int(datetime(2021, 7, 15, 12, tzinfo=UTC).timestamp()) * SECOND_NS
    (begin,), (end,) = period_bounds(np.array([summer]), 24 * HOUR, "Europe/Athens")
    midnight = datetime(2021, 7, 15, tzinfo=ZoneInfo("Europe/Athens")).timestamp()
    assert (begin, end) == (midnight * SECOND_NS, (midnight + 86_400) * SECOND_NS)


def minutes_file(folder: Path, minutes: list[int], name: str = "m1.csv") -> Path:
    lines = [f"{m * 60 + 1_617_062_400},1.1,{1.2 + m % 200 / 1e4:.4f},1.0,1.15,{m % 5}" for m in minutes]
    (folder / name).write_text(HEADER + "".join(line + "\n" for line in lines))
    return folder / name


def test_a_bar_is_given_with_its_last_minute_or_the_next_that_comes(tmp_path: Path) -> None:
    path = minutes_file(tmp_path, list(range(119)))  # from a full hour
    text = minutes_file(tmp_path, [119, 120, 178, 181], "rest.csv").read_text().splitlines(keepends=True)[1:]
    given_after: list[int] = []
    bars: list[Bar] = []
    script = Script(*(lambda line=line: (given_after.append(len(bars)), append(path, line)()) for line in text))  # type: ignore[misc]
    with suppress(Script.Over):
        for bar in feed_bars(path, ReadOptions(interval_s=3600), follow=True, wait=script):
            bars.append(bar)
    assert [*given_after, len(bars)] == [1, 2, 2, 2, 3]
    assert [bar.time // SECOND_NS for bar in bars] == [1_617_062_400 + 3600 * h for h in (1, 2, 3)]
    assert [bar.high for bar in bars] == [1.2059, 1.2119, 1.2178]
    assert_same(bars, read_bars(path, ReadOptions(interval_s=3600))[0])


def test_what_is_not_whole_is_left_out_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = minutes_file(tmp_path, list(range(17, 200)))
    options = ReadOptions(interval_s=3600)
    bars, source = read_bars(path, options)
    assert [bar_time // SECOND_NS - 1_617_062_400 for bar_time in bars.time] == [7200, 10_800]
    said = "bars of 60 s are put together into bars of 3600 s"
    assert said in source.notes
    assert (source.interval_s, source.rows) == (3600, 2)
    assert_same(list(feed_bars(path, options)), bars)
    assert said in capsys.readouterr().err
    short = minutes_file(tmp_path, list(range(17, 50)), "short.csv")
    assert len(read_bars(short, options)[0].time) == 0
    assert list(feed_bars(short, options)) == []


@pytest.mark.parametrize("label", ["open", "close"])
@pytest.mark.parametrize("interval_s", [120, 900, 3600, 86_400])
def test_files_and_feeds_agree(label: str, interval_s: int, tmp_path: Path) -> None:
    minutes = [m for m in range(3000) if m % 7 and not 600 <= m < 790]
    path = minutes_file(tmp_path, minutes)
    options = ReadOptions(interval_s=interval_s, label=label)
    assert_same(list(feed_bars(path, options)), read_bars(path, options)[0])


def test_bars_that_do_not_divide_those_wanted(tmp_path: Path) -> None:
    path = minutes_file(tmp_path, list(range(100)))
    for interval_s in (90, 30, 420, 172_800):
        with pytest.raises(DataError, match=f"bars of 60 s where {interval_s} s are wanted"):
            read_bars(path, ReadOptions(interval_s=interval_s))
        with pytest.raises(DataError, match=r"where|before has closed"):
            list(feed_bars(path, ReadOptions(interval_s=interval_s)))


def test_a_feed_of_minutes_that_starts_over(tmp_path: Path) -> None:
    path = minutes_file(tmp_path, list(range(90)))
    whole = minutes_file(tmp_path, list(range(200)), "whole.csv")
    options = ReadOptions(interval_s=3600)
    bars = follow(path, lambda: minutes_file(tmp_path, list(range(30, 200))), lambda: None, options=options)
    assert_same(bars, read_bars(whole, options)[0])


@real
def test_minutes_of_a_real_feed_as_hours() -> None:
    path, options = REAL / "GBPJPY_M1_histdata_ascii_2021-01_02.csv", ReadOptions(interval_s=3600)
    bars, _ = read_bars(path, options)
    assert len(bars.time) > 900
    feed = [bar for bar, _ in zip(feed_bars(path, options), range(300), strict=False)]
    assert_same(feed, Bars(*(column[:300] for column in bars)))
