"""A clock is doubted where weeks open at another hour, and found where they prove it."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from host.commands.data_check import check_data
from host.data.csv_reader import read_bars
from host.data.feed import feed_bars
from host.data.formats import DataError, ReadOptions
from host.data.instruments import find_instrument, guess_instrument
from host.data.parsing import parse_clock
from host.data.weekly_open import CANDIDATE_CLOCKS, NEW_YORK, infer_clock
from kernels.market.bars import SECOND_NS
from tests.fixtures.files import HEADER, HOUR, MINUTE, real
from tests.fixtures.paths import FOUND, REAL

NY = ZoneInfo(NEW_YORK)


def openings(first: datetime, weeks: int, step_s: int = HOUR, at: int = 17, close: int = 17) -> list[datetime]:
    """When bars open, UTC, of a market that opens on Sunday `at` an hour of New York and closes on Friday."""
    found = []
    for week in range(weeks):
        sunday = first + timedelta(days=7 * week)
        begin = sunday.replace(hour=at, tzinfo=NY).timestamp()
        end = (sunday + timedelta(days=5)).replace(hour=close, tzinfo=NY).timestamp()
        aligned = begin - begin % step_s
        found += [datetime.fromtimestamp(t, UTC) for t in np.arange(aligned, end, step_s)]
    return found


def by_hands(utc: datetime, clock: str) -> datetime:
    """What a clock shows, without its zone."""
    zone, shift_s = parse_clock(clock)
    return utc.astimezone(zone).replace(tzinfo=None) + timedelta(seconds=shift_s)


def write(folder: Path, times: list[datetime], clock: str = "UTC", name: str = "bars.csv", shift_s: int = 0) -> Path:
    price = next((price for symbol, price in PRICES.items() if name.startswith(symbol)), 1.1)
    bar = ",".join(f"{price * (1 + part):.5f}" for part in (0, 0.001, -0.001, 0))
    lines = [
        f"{by_hands(t, clock) + timedelta(seconds=shift_s):%Y-%m-%d %H:%M:%S},{bar},{i % 7 + 1}"
        for i, t in enumerate(times)
    ]
    (folder / name).write_text(HEADER + "\n".join(lines) + "\n")
    return folder / name


def doubts(path: Path, **said: object) -> list[str]:
    _, source = read_bars(path, ReadOptions(drop_bad=True, **said))  # type: ignore[arg-type]
    return [note for note in source.notes if "doubtful" in note]


PRICES = {"XAUUSD": 2000.0, "BTCUSD": 3_000.0}
JANUARY, MARCH = datetime(2023, 1, 1), datetime(2023, 3, 5)  # Sundays


def test_a_clock_of_a_server_read_as_utc(capsys: pytest.CaptureFixture[str]) -> None:
    path = FOUND / "server_clock_as_utc.csv"
    said = (
        "clock UTC, assumed, is doubtful: by it 1 of 1 weeks open on Monday 00:00, after a close on Saturday 00:00; FX "
        "opens on Sunday, 17:00 in New York, 21:00 or 22:00 UTC: --timezone Europe/Athens or "
        "--timezone America/New_York+7h or --timezone UTC+2h fits"
    )
    assert doubts(path) == [said]
    assert said in check_data(path, ReadOptions())["notes"]
    assert len(list(feed_bars(path))) == 192
    assert capsys.readouterr().err.count(said) == 1
    assert doubts(path, timezone="Europe/Athens") == []
    with pytest.raises(DataError, match=r"Europe/Athens and America/New_York\+7h and UTC\+2h fit, but .* 1 of winter"):
        read_bars(path, ReadOptions(timezone="auto"))
    with pytest.raises(DataError, match="a feed cannot prove its clock"):
        list(feed_bars(path, ReadOptions(timezone="auto")))


@pytest.mark.parametrize("clock", CANDIDATE_CLOCKS)
def test_every_clock_is_proven_by_a_year(clock: str) -> None:
    walls = [by_hands(t, clock).replace(tzinfo=UTC).timestamp() for t in openings(JANUARY, 52)]
    fx = guess_instrument("-", 1.1, 5)
    assert infer_clock(np.array(walls).astype(np.int64) * SECOND_NS, HOUR * SECOND_NS, fx, "x") == clock


@pytest.mark.parametrize("clock", ["UTC", "Europe/Athens", "America/New_York+7h", "Asia/Kolkata"])
def test_a_year_proves_its_clock(clock: str, tmp_path: Path) -> None:
    step_s = HOUR if clock != "Asia/Kolkata" else MINUTE * 30
    path = write(tmp_path, openings(JANUARY, 52, step_s), clock)
    bars, source = read_bars(path, ReadOptions(timezone="auto", drop_bad=True))
    assert source.timezone == clock
    assert "clock proven by the weekly opens (--timezone auto)" in source.notes
    assert not any("doubtful" in note or "--timezone" in flag for note in source.notes for flag in source.assumed)
    assert bars.time[0] == int(openings(JANUARY, 1, step_s)[0].timestamp() + step_s) * SECOND_NS
    assert doubts(path, timezone=clock) == []
    wrong = "Asia/Tokyo" if clock != "Asia/Tokyo" else "UTC"
    (said,) = doubts(path, timezone=wrong)
    assert said.startswith(f"clock {wrong}, given, is doubtful")
    assert said.endswith(f": --timezone {clock} fits")


@pytest.mark.parametrize("step_s", [MINUTE, 5 * MINUTE, HOUR, 4 * HOUR])
@pytest.mark.parametrize("name", ["EURUSD.csv", "XAUUSD.csv", "x.csv"])
def test_a_right_clock_is_not_doubted(step_s: int, name: str, tmp_path: Path) -> None:
    hour = 18 if name[0] == "X" else 17
    for first in (JANUARY, MARCH):  # in March New York changes its clock, and then Europe
        path = write(tmp_path, openings(first, 5, step_s, at=hour), "UTC", name)
        assert doubts(path) == []


def test_a_thin_market_opens_late_and_closes_early(tmp_path: Path) -> None:
    times = [t for t in openings(MARCH, 6, MINUTE) if not (t.weekday() == 6 and t.minute < 20 and t.hour < 22)]
    assert doubts(write(tmp_path, times, "UTC", "USDCZK.csv")) == []
    assert doubts(write(tmp_path, openings(MARCH, 6, close=16), "UTC", "EURUSD.csv")) == []


def test_dates_of_america_where_those_of_europe_are_assumed(tmp_path: Path) -> None:
    path = write(tmp_path, openings(JANUARY, 18), "America/New_York+7h", "EURUSD.csv")
    (said,) = doubts(path, timezone="Europe/Athens")
    assert "by it 2 of 17 weeks open" in said
    assert said.endswith("--timezone America/New_York+7h fits")


def test_stamps_that_claim_an_offset_are_doubted_too(tmp_path: Path) -> None:
    lines = (FOUND / "server_clock_as_utc.csv").read_text().splitlines()
    path = tmp_path / "b.csv"
    path.write_text("\n".join([lines[0], *(text.replace(",", "Z,", 1) for text in lines[1:])]))
    (said,) = doubts(path)
    assert "clock UTC, of the stamps, is doubtful" in said
    assert (
        "no flag moves stamps with an offset of their own: write them without it, and --timezone Europe/Athens" in said
    )


def test_stamps_of_the_close_open_a_bar_late(tmp_path: Path) -> None:
    path = write(tmp_path, openings(MARCH, 8), "UTC", "EURUSD.csv", shift_s=HOUR)
    (said,) = doubts(path)
    assert "--label close" in said
    assert doubts(path, label="close") == []


def test_sundays_that_are_missing(tmp_path: Path) -> None:
    times = [t for t in openings(JANUARY, 8) if t.weekday() != 6]
    (said,) = doubts(write(tmp_path, times))
    assert "open on Monday 00:00, after a close on Friday 22:00" in said
    assert said.endswith("no clock that I know fits: are Sunday's bars missing?")


def test_what_proves_nothing_is_not_doubted(tmp_path: Path) -> None:
    days = [JANUARY.replace(tzinfo=UTC) + timedelta(days=d) for d in range(1, 300) if d % 7 < 6 and d % 7]
    assert doubts(write(tmp_path, days)) == []
    always = [JANUARY.replace(tzinfo=UTC) + timedelta(hours=h) for h in range(24 * 40)]
    assert doubts(write(tmp_path, [t for t in always if t.weekday() < 5], name="BTCUSD.csv")) == []
    stocks = [t for t in always if t.weekday() < 5 and 8 <= t.hour < 16]
    assert doubts(write(tmp_path, stocks)) == []
    for name, times in (("BTCUSD.csv", always), ("bars.csv", stocks)):
        with pytest.raises(DataError, match="no weekends to tell the clock by"):
            read_bars(write(tmp_path, times, name=name), ReadOptions(timezone="auto"))


def test_gold_opens_an_hour_later() -> None:
    gold, other = find_instrument("XAUUSD"), guess_instrument("-", 2000.0, 2)
    assert gold is not None
    times = np.array([int(t.timestamp()) for t in openings(JANUARY, 52, at=18)], np.int64) * SECOND_NS
    assert infer_clock(times, HOUR * SECOND_NS, gold, "x") == "UTC"
    with pytest.raises(DataError, match="do not prove"):  # closed for an hour at either end
        infer_clock(times, HOUR * SECOND_NS, other, "x")


def test_one_season_proves_nothing() -> None:
    fx = guess_instrument("-", 1.1, 5)
    times = np.array([int(t.timestamp()) for t in openings(JANUARY, 9)], np.int64) * SECOND_NS
    with pytest.raises(DataError, match="UTC and Europe/London fit, but 0 weekends of summer and 8 of winter"):
        infer_clock(times, HOUR * SECOND_NS, fx, "x")
    with pytest.raises(DataError, match="Asia/Tokyo fit, but 0 weekends of summer"):  # and clocks that are not listed
        infer_clock(times + 9 * HOUR * SECOND_NS, HOUR * SECOND_NS, fx, "x")
    with pytest.raises(DataError, match="no clock that I know opens"):
        infer_clock(times + 21 * 60 * SECOND_NS * 37, HOUR * SECOND_NS, fx, "x")


@real
def test_real_clocks_are_not_doubted() -> None:
    for path in sorted(REAL.glob("*_[HM]1_*.csv")):
        assert doubts(path) == [], path.name
    path = REAL / "EURUSD_H1_dukascopy_ask_2017.csv"
    assert read_bars(path, ReadOptions(timezone="auto"))[1].timezone == "UTC"
    (said,) = doubts(path, timezone="Europe/London")
    assert said.endswith(": --timezone UTC fits")
