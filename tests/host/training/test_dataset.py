"""What a training part says of its market: hours, costs, scale, and what to do where there is no episode."""

import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from host.config import MarketConfig, load_config
from host.data.csv_reader import read_bars
from host.data.formats import DataError, ReadOptions, Source
from host.data.instruments import Instrument, find_instrument, pip_fault
from host.training.dataset import Dataset, DatasetError, measure_profile, new_dataset, resolve_costs
from kernels.market.bars import SECOND_NS, Bars, slice_bars
from kernels.market.calendar import ALWAYS_OPEN, CLOSED_DAILY, CLOSED_ON_WEEKENDS
from tests.fixtures.markets import KINDS, Kind, week_of, write_bars
from tests.fixtures.paths import FOUND


def dataset(bars: Bars, source: Source, *settings: str) -> Dataset:
    config = load_config(None, list(settings))
    extra = np.zeros((len(bars.time), 0), np.float32)
    return new_dataset(bars, extra, config, source.instrument, source.interval_s * SECOND_NS, 2)


def made(tmp_path: Path, symbol: str, bars: int, kind: Kind | None = None) -> tuple[Bars, Source]:
    kind = kind or KINDS[symbol]
    return read_bars(write_bars(tmp_path / f"{symbol}_M{kind.minutes}.csv", symbol, kind, bars))


@pytest.mark.parametrize(
    ("symbol", "hours"), [("XAUUSD", CLOSED_DAILY), ("BTCUSD", ALWAYS_OPEN), ("EURUSD", CLOSED_ON_WEEKENDS)]
)
def test_five_minutes_of_every_kind_of_market_give_episodes_of_the_default_length(
    symbol: str, hours: np.ndarray, tmp_path: Path
) -> None:
    """Gold M5 with its daily break had none, whatever the number of bars."""
    data = dataset(*made(tmp_path, symbol, 9000))
    assert len(data.starts) > 500
    assert data.rejects["across a hole"] == 0
    np.testing.assert_array_equal(data.market_spec.hours, hours)
    assert data.market_spec.market.closes_weekends == (symbol != "BTCUSD")


def test_an_outage_of_btc_is_a_hole(tmp_path: Path) -> None:
    path = write_bars(tmp_path / "BTCUSD_M5.csv", "BTCUSD", KINDS["BTCUSD"], 9000, slice(3000, 3000 + 51 * 12))
    assert dataset(*read_bars(path)).rejects["across a hole"] == 360


def cash(t: datetime) -> bool:
    """A stock exchange: 9:30 to 16:00 on weekdays."""
    return week_of(t) < 5 * 24 and 570 <= t.hour * 60 + t.minute < 960


def test_where_no_number_of_bars_helps_a_shorter_episode_does(tmp_path: Path) -> None:
    """26 quarters of an hour a day make 130 between two weekends."""
    bars, source = made(tmp_path, "US500", 5000, Kind(5000.0, 0.01, 15, cash))
    with pytest.raises(DatasetError, match="more bars do not change that") as refused:
        dataset(bars, source)
    assert "bring" not in str(refused.value)
    setting = re.search(r"--set (market\.episode_length=\d+)$", str(refused.value))
    assert setting
    assert setting[1] == "market.episode_length=129"
    assert len(dataset(bars, source, setting[1]).starts) > 0


def test_where_more_bars_help_their_number_does(tmp_path: Path) -> None:
    bars, source = made(tmp_path, "USDSEK", 3000)
    with pytest.raises(DatasetError, match="bring at least") as refused:
        dataset(slice_bars(bars, 0, 700), source)
    found = re.search(r"bring at least (\d+) bars or --set (market\.episode_length=\d+)$", str(refused.value))
    assert found
    assert len(dataset(slice_bars(bars, 0, int(found[1])), source).starts) > 0
    assert len(dataset(slice_bars(bars, 0, 700), source, found[2]).starts) > 0
    with pytest.raises(DatasetError, match=r"bring at least \d+ bars$"):
        dataset(slice_bars(bars, 0, 100), source)


def test_hours_that_are_not_known_yet_want_weeks(tmp_path: Path) -> None:
    """An index that pauses for 3 h 15: in a week of bars each pause is a hole, in more a daily break."""
    bars, source = made(tmp_path, "DE40", 6000)
    with pytest.raises(DatasetError, match="bring at least") as refused:
        dataset(slice_bars(bars, 0, 1500), source)
    found = re.search(r"bring at least (\d+) bars", str(refused.value))
    assert found
    data = dataset(slice_bars(bars, 0, int(found[1])), source)
    assert len(data.starts) > 100
    assert data.rejects["across a hole"] == 0


@pytest.mark.parametrize(("symbol", "pip"), [("USDSEK", 0.0001), ("XAUUSD", 0.1)])
def test_pips_of_the_table_are_no_fault_of_any_command(symbol: str, pip: float) -> None:
    """Both were refused by `train`: "a pip of 0.01 does not fit a median price of 2000"."""
    bars, source = read_bars(FOUND / f"pip_{symbol}_H1.csv")
    assert (source.instrument.symbol, source.instrument.pip) == (symbol, pip)
    with pytest.raises(DatasetError, match="bring at least"):  # 80 bars
        dataset(bars, source)
    with pytest.raises(DataError, match=rf"no digit so small: --pip {pip:g}"):
        read_bars(FOUND / f"pip_{symbol}_H1.csv", ReadOptions(pip=pip / 100))


@pytest.mark.parametrize(
    ("symbol", "price", "digits", "pip", "fault"),
    [
        ("EURUSD", 1.1, 5, 0.0001, ""),
        ("EURUSD", 1.1, 5, 0.01, "--pip 0.0001"),
        ("USDJPY", 150.0, 3, 0.0001, "--pip 0.01"),
        ("XAUUSD.m", 2000.0, 2, 0.5, ""),
        ("XAUUSD.m", 2000.0, 2, 1.0, ""),
        ("XAUUSD.m", 2000.0, 2, 10.0, "--pip 0.1"),
        ("BTCUSD", 60_000.0, 2, 0.001, "--pip 1"),
        ("mine", 1.1, 5, 0.0001, ""),
        ("mine", 1.1, 5, 0.000001, "--pip 0.0001"),
        ("mine", 1.1, 5, 0.01, "--pip 0.0001"),
        ("mine", 2000.0, 2, 0.01, ""),
        ("mine", 2000.0, 2, 0.001, "--pip 0.01"),
        ("mine", 2000.0, 2, 10.0, "--pip 0.01"),
        ("mine", 1.1, 1, 0.0001, ""),
    ],
)
def test_one_rule_for_a_pip(symbol: str, price: float, digits: int, pip: float, fault: str) -> None:
    found = pip_fault(pip, symbol, price, digits)
    assert fault in found
    assert bool(found) == bool(fault)


def test_costs_follow_the_instrument_where_nobody_sets_them(tmp_path: Path) -> None:
    """Those of EURUSD are what they were: slippage 0.1 pips, swap -0.5 and -0.1 pips a night."""
    for symbol in ("EURUSD", "XAUUSD", "US30", "BTCUSD", "USDSEK", "USDTRY"):
        instrument = find_instrument(symbol)
        assert instrument
        bars, _ = made(tmp_path, symbol, 400)
        profile = measure_profile(bars, instrument._replace(spread_pips=99.0))
        costs = resolve_costs(MarketConfig(), instrument, profile)
        assert costs["slippage_px"] == instrument.spread_pips * instrument.pip / 8
        year = np.array([costs["swap_long_px"], costs["swap_short_px"]]) * 365 / profile.price
        assert (year < 0).all()
        assert year.min() > -0.06
        assert symbol != "EURUSD" or list(costs.values()) == [1e-5, 0.0, -5e-5, -1e-5]
        own = resolve_costs(MarketConfig(slippage=0.3, swap_long=-2.0, swap_short=0.0), instrument, profile)
        assert list(own.values()) == [0.3 * instrument.pip, 0.0, -2.0 * instrument.pip, 0.0]


def test_a_day_of_the_profile_is_one_by_utc() -> None:
    time = np.array(
        [int(datetime(2024, 1, d, h, tzinfo=UTC).timestamp()) * SECOND_NS for d, h in ((1, 12), (2, 0), (2, 12))]
    )
    price = np.array([1.0, 2.0, 4.0])
    bars = Bars(time, price, price + 0.5, price - 0.5, price, price, price + 0.1, price)
    profile = measure_profile(bars, Instrument("-", 0.01, 0.001, 1.0))
    assert profile.day_px == pytest.approx((2.0 + 1.0) / 2), "the bar that closes at 0:00 is of the day before"
    assert (profile.price, profile.low, profile.high) == (2.0, 0.5, 4.5)
