"""Files that change on the way, rows that may not be dropped, holes: decided alike for a file and for a feed."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from host.commands.data_check import check_data
from host.data.csv_reader import read_bars
from host.data.feed import feed_bars
from host.data.file_checks import MIN_LONGER_STEPS, MIN_OTHER_STEPS, MIN_SHORTER_STEPS, find_interval_change
from host.data.formats import DataError, ReadOptions
from host.data.instruments import hours_of
from kernels.market.bars import SECOND_NS
from kernels.market.calendar import format_closed_hours
from kernels.market.episodes import GAP, classify_gaps
from tests.fixtures.feeds import columns
from tests.fixtures.files import DAY, HEADER, HOUR, MINUTE, equal
from tests.fixtures.markets import KINDS, write_bars
from tests.fixtures.paths import FOUND

MONDAY = int(datetime(2022, 3, 7, tzinfo=UTC).timestamp())


def line(stamp_s: float, price: float = 1.1, volume: int = 7) -> str:
    spread = 0.001 * price
    prices = (price, price + spread, price - spread, price)
    return f"{datetime.fromtimestamp(stamp_s, UTC):%Y-%m-%d %H:%M:%S},{','.join(f'{p:.5f}' for p in prices)},{volume}"


def write(folder: Path, lines: list[str], name: str = "bars.csv") -> Path:
    (folder / name).write_text(HEADER + "\n".join(lines) + "\n")
    return folder / name


def week(step_s: int, first_s: int, stop_s: int) -> Iterator[int]:
    """Stamps while FX is open, from Sunday 22:00 to Friday 22:00 UTC; of days from Monday to Friday."""
    for stamp in range(first_s, stop_s, step_s):
        since = (stamp - MONDAY) % (7 * DAY)
        if since < 5 * DAY if step_s >= DAY else not 118 * HOUR <= since < 166 * HOUR:
            yield stamp


def refusals(path: Path, **said: object) -> tuple[str, str]:
    """Why a file and a feed are refused; the file whether rows may be dropped or not."""
    options = ReadOptions(**said)  # type: ignore[arg-type]
    with pytest.raises(DataError) as bulk:
        read_bars(path, options)
    with pytest.raises(DataError) as feed:
        list(feed_bars(path, options))
    return str(bulk.value), str(feed.value)


def test_a_history_that_becomes_finer(tmp_path: Path) -> None:
    path = FOUND / "h4_then_h1.csv"
    said = "line 72: bars of 14400 s before this line, of 3600 s from it on: keep the lines before it or those from"
    for drop_bad in (False, True):
        assert said in refusals(path, drop_bad=drop_bad)[0]
    assert "line 73: opens before the bar before has closed" in refusals(path)[1]
    assert "line 72: bars of 14400 s before this line" in refusals(path, drop_bad=True)[1]
    assert "bars of 14400 s where 3600 s are wanted" in refusals(path, interval_s=HOUR)[1]
    lines = path.read_text().splitlines()
    assert read_bars(write(tmp_path, lines[1:71]))[1].interval_s == 4 * HOUR  # as the refusal says
    assert read_bars(write(tmp_path, lines[71:]))[1].interval_s == HOUR


@pytest.mark.parametrize("label", ["open", "close"])
@pytest.mark.parametrize(
    ("was", "now", "days"),
    [
        (DAY, HOUR, (60, 30)),
        (DAY, HOUR, (60, 2)),
        (HOUR, DAY, (60, 40)),
        (HOUR, 4 * HOUR, (8, 40)),
        (5 * MINUTE, MINUTE, (3, 3)),
        (MINUTE, 5 * MINUTE, (2, 2)),
        (30 * MINUTE, HOUR, (5, 30)),
        (HOUR, 30 * MINUTE, (30, 5)),
        (7 * DAY, DAY, (400, 100)),
    ],
)
def test_bars_that_become_longer_or_shorter(
    was: int, now: int, days: tuple[int, int], label: str, tmp_path: Path
) -> None:
    middle = MONDAY + days[0] // 7 * 7 * DAY + (2 * DAY if was < 7 * DAY else 0)
    first = list(week(was, MONDAY, middle))
    stamps = first + list(week(now, middle, middle + days[1] * DAY))
    ends = [(stamp + (was if i < len(first) else now)) * (label == "close") for i, stamp in enumerate(stamps)]
    path = write(tmp_path, [line(end or stamp) for stamp, end in zip(stamps, ends, strict=True)])
    bulk, _ = refusals(path, label=label, drop_bad=True)
    assert f"line {len(first) + 2}: bars of {was} s before this line, of {now} s from it on" in bulk


def test_finer_bars_in_the_middle_and_coarser_ones(tmp_path: Path) -> None:
    for middle, outer in ((HOUR, 4 * HOUR), (4 * HOUR, HOUR)):
        stamps = [
            stamp
            for k, step in enumerate((outer, middle, outer))
            for stamp in week(step, MONDAY + 35 * k * DAY, MONDAY + 35 * (k + 1) * DAY)
        ]
        at = sum(stamp < MONDAY + 35 * DAY for stamp in stamps) + 2
        bulk, _ = refusals(write(tmp_path, [line(stamp) for stamp in stamps]))
        assert f"line {at}: bars of {outer} s before" in bulk or f"line {at}: bars of {middle} s before" in bulk


@pytest.mark.parametrize("missing", [0.02, 0.3, 0.5, 0.6, 0.75, 0.9])
@pytest.mark.parametrize("seed", range(4))
def test_missing_bars_are_no_bars_of_another_length(missing: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    times = np.flatnonzero(rng.random(400_000) > missing).astype(np.int64)
    nights = times[(times % 1440 > 480) | (rng.random(len(times)) > 0.8)]  # thin by night
    for stamps in (times, nights, times[(times % 1440 < 1260) | (times % 1440 >= 1320)]):
        assert find_interval_change(stamps * MINUTE * SECOND_NS, MINUTE * SECOND_NS) is None


def test_what_markets_do_is_no_other_length() -> None:
    """Weekends, holidays, a daily break, sessions of some hours, clocks that change, a Sunday of its own."""
    day = np.arange(0, 400 * DAY, DAY)
    weekdays = day[(day // DAY + 3) % 7 < 5]
    with_sunday = day[(day // DAY + 3) % 7 != 5]
    hours = np.arange(0, 400 * DAY, HOUR)
    for stamps, step in (
        (weekdays, DAY),
        (with_sunday, DAY),
        (weekdays + np.where((weekdays // DAY) % 365 > 180, HOUR, 0), DAY),
        (weekdays[np.abs(weekdays // DAY % 365 - 358) > 4], DAY),
        (hours[hours // HOUR % 24 != 21], HOUR),
        (hours[(hours // HOUR % 24 > 7) & (hours // HOUR % 24 < 16)], HOUR),
        (hours[hours // HOUR % 24 % 4 == 1], 4 * HOUR),
        (day[::7] + np.where(day[::7] // DAY % 365 > 180, HOUR, 0), 7 * DAY),
    ):
        assert find_interval_change(stamps.astype(np.int64) * SECOND_NS, step * SECOND_NS) is None


@pytest.mark.parametrize(
    ("step", "count"), [(0.25, MIN_SHORTER_STEPS), (2.0, MIN_OTHER_STEPS), (4.0, MIN_LONGER_STEPS)]
)
def test_so_many_steps_prove_another_length(step: float, count: int) -> None:
    steps = [1.0] * 40 + [step] * count
    opening = np.cumsum([0.0, *steps, 1.0]) * HOUR
    assert find_interval_change(opening.astype(np.int64) * SECOND_NS, HOUR * SECOND_NS) == (
        40,
        HOUR * SECOND_NS,
        int(step * HOUR) * SECOND_NS,
    )
    opening = np.cumsum([0.0, *steps[:-1], 1.0]) * HOUR
    assert find_interval_change(opening.astype(np.int64) * SECOND_NS, HOUR * SECOND_NS) is None


def test_a_level_that_moves(tmp_path: Path) -> None:
    """The line, both prices, and the same words from a file and from a feed that drops."""
    path = FOUND / "level_shift_40pct.csv"
    said = f"{path}: line 42: prices move from 1.07004 to 1.49806 between two bars, x1.4, and stay there: another level"
    assert refusals(path)[0].startswith(said)
    assert "line 42: a price too far from its neighbours" in refusals(path)[1]
    for text in refusals(path, drop_bad=True):
        assert text.startswith(said)
    assert check_data(path, ReadOptions())["refused"].startswith(said)
    lines = path.read_text().splitlines()
    for part in (lines[1:41], lines[41:]):  # as the refusal says
        assert read_bars(write(tmp_path, part))[1].rows == len(part)


STEPS = st.sampled_from([1.0] * 12 + [1.01, 0.98, 1.15, 0.87, 1.3, 0.75, 1.5, 0.6, 100.0, 0.01])


@given(
    st.lists(STEPS, min_size=3, max_size=40),
    st.lists(st.integers(0, 39), max_size=4),
    st.sampled_from(["", "EURUSD", "BTCUSD"]),
)
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_files_and_feeds_agree_on_prices(tmp_path: Path, steps: list[float], slips: list[int], symbol: str) -> None:
    price = 1000 * np.clip(np.cumprod(steps), 0.05, 20)
    price[[at for at in slips if at < len(price)]] *= 7
    stamps = week(HOUR, MONDAY, MONDAY + len(steps) * HOUR)
    path = write(tmp_path, [line(stamp, p) for stamp, p in zip(stamps, price.tolist(), strict=True)], f"{symbol}_x.csv")
    options = ReadOptions(interval_s=HOUR, pip=0.1)
    try:
        bars = read_bars(path, options)[0]
    except DataError:
        with pytest.raises(DataError):
            list(feed_bars(path, options))
    else:
        assert equal(columns(list(feed_bars(path, options))), bars)


@pytest.mark.parametrize(
    ("name", "factor", "refused"),
    [
        ("EURUSD.csv", 0.6, True),
        ("XAUUSD.csv", 1.3, True),
        ("BTCUSD.csv", 0.6, False),
        ("BTCUSD.csv", 0.01, True),
        ("some.csv", 0.6, False),  # bars on Saturdays: such a market never closes
    ],
)
@pytest.mark.parametrize("step", [HOUR, DAY])
def test_how_far_prices_go_depends_on_the_market(
    name: str, factor: float, refused: bool, step: int, tmp_path: Path
) -> None:
    """A crash inside a bar; between bars that follow each other no market jumps so."""
    stamps = (
        [MONDAY + i * step for i in range(12 * DAY // step)]
        if factor == 0.6 and name != "EURUSD.csv"
        else [*week(step, MONDAY, MONDAY + 12 * DAY)]
    )
    half = len(stamps) * 3 // 4
    scale = 2000.0 if name[0] in "BX" else 1.1
    lines = [line(s, scale) for s in stamps[:half]] + [line(s, scale * factor) for s in stamps[half:]]
    crash = lines[half].split(",")
    crash[1], crash[2] = f"{scale:.5f}", f"{scale * 1.002:.5f}"
    path = write(tmp_path, [*lines[:half], ",".join(crash), *lines[half + 1 :]] if factor < 1 else lines, name)
    if refused:
        refusals(path)
    else:
        assert equal(columns(list(feed_bars(path))), read_bars(path)[0])
        with pytest.raises(DataError, match=f"line {half + 2}: prices move"):
            read_bars(write(tmp_path, lines, name))


def test_wicks_that_are_damaged_are_no_level(tmp_path: Path) -> None:
    lines = [line(s) for s in week(HOUR, MONDAY, MONDAY + 40 * DAY)]
    for at in (30, 31, 32, 33):
        lines[at] = lines[at].replace(",1.10110,", ",1101.1,")
    with pytest.raises(
        DataError, match=r"4 bad rows \(4 damaged\).*high 1101.1.*from line 32 on, 3 or more follow each"
    ):
        read_bars(write(tmp_path, lines), ReadOptions(drop_bad=True))


def test_after_a_month_without_bars_the_level_may_be_another(tmp_path: Path) -> None:
    stamps = [*week(HOUR, MONDAY, MONDAY + 3 * DAY), *week(HOUR, MONDAY + 70 * DAY, MONDAY + 73 * DAY)]
    lines = [line(s, 1.1 if i < 72 else 1.5) for i, s in enumerate(stamps)]
    bars, source = read_bars(write(tmp_path, lines))
    assert len(source.gaps) == 1
    assert equal(columns(list(feed_bars(tmp_path / "bars.csv"))), bars)


def test_dates_in_the_wrong_order() -> None:
    path = FOUND / "short_day_first.csv"
    bulk, feed = refusals(path, dates="mdy")
    assert "read with --dates mdy, 8 lines from line 26 on" in bulk
    assert "--dates dmy is right" in bulk
    assert "line 26: read with --dates mdy, it does not follow the line before; with --dates dmy it does" in feed
    assert "--dates dmy is right" in refusals(path)[0]  # said without being asked
    assert read_bars(path, ReadOptions(dates="dmy"))[1].rows == 180


@pytest.mark.parametrize("step", [5 * MINUTE, HOUR, DAY])
@pytest.mark.parametrize("right", ["dmy", "mdy"])
@pytest.mark.parametrize("days", [4, 12, 60, 400])
def test_only_one_order_of_dates_makes_sense(step: int, right: str, days: int, tmp_path: Path) -> None:
    form = {"dmy": "%d/%m/%Y %H:%M", "mdy": "%m/%d/%Y %H:%M"}
    if (step, days) == (DAY, 4):
        return  # they could be four bars of a month
    begin = int(datetime(2023, 1, 2, tzinfo=UTC).timestamp())
    stamps = [begin + s - MONDAY for s in week(step, MONDAY, MONDAY + days * DAY)][:3000]
    lines = [f"{datetime.fromtimestamp(s, UTC):{form[right]}},{line(s).split(',', 1)[1]}" for s in stamps]
    path = write(tmp_path, lines)
    wrong = "mdy" if right == "dmy" else "dmy"
    for drop_bad in (False, True):
        assert f"--dates {right} is right" in refusals(path, dates=wrong, drop_bad=drop_bad)[0]
    assert f"with --dates {right} it does" in refusals(path, dates=wrong)[1]
    bars, source = read_bars(path, ReadOptions(dates=right))
    assert source.rows == len(stamps)
    assert equal(columns(list(feed_bars(path, ReadOptions(dates=right)))), bars)
    assert f"--dates {right} is right" in refusals(path)[0]


def spoil(folder: Path, bad: list[int], step: int = HOUR, days: int = 70) -> Path:
    """Canonical bars of which those at `bad` have a low above their high; the first bar stands in line 2."""
    lines = [line(s) for s in week(step, MONDAY, MONDAY + days * DAY)]
    for at in bad:
        lines[at] = lines[at].replace(",1.09890,", ",1.10190,")
    return write(folder, lines)


@pytest.mark.parametrize(
    ("bad", "step", "reason"),
    [
        (range(5, 1200, 77), HOUR, "16 of 1200 rows are more than 1 %"),
        ([40, 41, 42], HOUR, "from line 42 on, 3 or more follow each other"),
        (range(100, 1000, 240), HOUR, "they are every row in 240"),
        ([118 + 120 * k for k in (0, 1, 2, 4, 5, 7, 8, 9)], HOUR, r"they are 8 of the 10 rows at Sunday 22:00"),
        ([0, 24, 72, 96, 120], HOUR, None),  # Mondays to Fridays: fewer than half of the midnights
        ([4, 30, 31, 700], HOUR, None),
    ],
)
def test_only_a_few_rows_here_and_there_are_dropped(
    bad: list[int], step: int, reason: str | None, tmp_path: Path
) -> None:
    path = spoil(tmp_path, list(bad), step)
    if reason is None:
        assert "--drop-bad drops them" in check_data(path, ReadOptions())["refused"]
        assert read_bars(path, ReadOptions(drop_bad=True))[1].rows == 1200 - len(bad)
        return
    for drop_bad in (False, True):
        with pytest.raises(DataError, match=f"range.*; {reason}: such rows are not dropped") as refused:
            read_bars(path, ReadOptions(drop_bad=drop_bad))
        assert "--drop-bad" not in str(refused.value)


def test_lines_of_certain_hours_that_are_no_bars_are_kept(tmp_path: Path) -> None:
    """They have no stamp of their own: it is that of their place in the file."""
    lines = [line(s) for s in week(5 * MINUTE, MONDAY, MONDAY + 21 * DAY)]
    lines = [text.replace(" 09:0", " 9h0") for text in lines]
    with pytest.raises(DataError, match=r"30 unparsable.*; they are 15 of the 15 rows at 09:00"):
        read_bars(write(tmp_path, lines), ReadOptions(drop_bad=True))


def test_filler_is_dropped_in_any_number(tmp_path: Path) -> None:
    stamps = range(MONDAY, MONDAY + 21 * DAY, HOUR)
    traded = set(week(HOUR, MONDAY, MONDAY + 21 * DAY))
    path = write(tmp_path, [line(s) if s in traded else f"{line(s).split(',')[0]},1.1,1.1,1.1,1.1,0" for s in stamps])
    with pytest.raises(DataError, match=r"144 bad rows \(144 flat\).*--drop-bad drops them"):
        read_bars(path)
    bars, source = read_bars(path, ReadOptions(drop_bad=True))
    assert source.rows == len(traded)
    assert equal(columns(list(feed_bars(path, ReadOptions(drop_bad=True)))), bars)


def test_a_feed_does_not_drop_bad_rows_in_a_row_or_in_number(tmp_path: Path) -> None:
    dropping = ReadOptions(interval_s=HOUR, drop_bad=True)
    with pytest.raises(DataError, match=r"line 44: .*\(open 1.1.*so are the rows before it, from line 42 on"):
        list(feed_bars(spoil(tmp_path, [40, 41, 42]), dropping))
    with pytest.raises(DataError, match=r"11 of \d+ rows are bad, more than 1 %"):
        list(feed_bars(spoil(tmp_path, list(range(5, 1000, 40))), dropping))
    assert len(list(feed_bars(spoil(tmp_path, list(range(5, 1000, 111))), dropping))) == 1200 - 9


def holes(path: Path, stamps: list[int]) -> tuple[list[str], list[str]]:
    _, source = read_bars(write(path.parent, [line(s, 2000.0) for s in stamps], path.name))
    return [hole.text for hole in source.gaps], source.gap_notes


def test_a_daily_break_is_no_hole(tmp_path: Path) -> None:
    gold = [s for s in week(5 * MINUTE, MONDAY, MONDAY + 14 * DAY) if s % DAY // HOUR != 22]
    found, notes = holes(tmp_path / "XAUUSD_M5.csv", gold)
    assert found == []
    assert "2 weekends, 8 daily breaks and 0 other gaps between bars" in " ".join(notes)
    torn = [s for s in gold if not MONDAY + 2 * DAY + 9 * HOUR <= s < MONDAY + 2 * DAY + 10 * HOUR]
    assert holes(tmp_path / "XAUUSD_M5.csv", torn)[0] == ["no bars for 60 min, from 2022-03-09T09:00:00Z"]


@pytest.mark.parametrize("name", ["BTCUSD.csv", "XBTUSD_H1.csv", "solusdt.csv"])
def test_a_market_without_weekends_has_holes_on_them(name: str, tmp_path: Path) -> None:
    always = [MONDAY + h * HOUR for h in range(35 * 24)]
    gap = [s for s in always if not MONDAY + 19 * DAY - 3 * HOUR <= s < MONDAY + 21 * DAY]
    assert holes(tmp_path / name, always)[0] == []
    assert holes(tmp_path / name, gap)[0] == ["no bars for 51 h, from 2022-03-25T21:00:00Z"]
    rests, notes = holes(tmp_path / name, list(week(HOUR, MONDAY, MONDAY + 35 * DAY)))
    assert rests == []
    assert any(note.startswith("5 weekends and 0 other gaps") for note in notes)
    assert any(note.startswith("hours as the bars show them, closed (UTC): Fri 22:00-Sun 2") for note in notes)


@pytest.mark.parametrize("symbol", ["DE40", "JP225", "XAUUSD", "BTCUSD"])
def test_the_holes_of_a_file_are_those_that_no_episode_spans(symbol: str, tmp_path: Path) -> None:
    """An index that pauses for 3 h 15 had a hole every day that training did not have."""
    path = write_bars(tmp_path / f"{symbol}.csv", symbol, KINDS[symbol], 6000, slice(2000, 2030))
    bars, source = read_bars(path)
    hours = hours_of(bars.time, source.instrument, source.interval_s * SECOND_NS)
    before = np.flatnonzero(classify_gaps(bars.time, source.interval_s * SECOND_NS, hours) == GAP)
    assert [hole.line for hole in source.gaps] == (before + 2).tolist() == [2002]
    assert check_data(path, ReadOptions())["hours"] == f"closed (UTC): {format_closed_hours(hours)}"
