"""A model trades the market that it was trained on: another instrument or scale is refused unless insisted on."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from host.artifact.manifest import LoadedModel, load_model, reading_options
from host.artifact.model_file import ModelError
from host.commands.act import act_on_feed
from host.commands.backtest import backtest_csv
from host.commands.check_lookahead import check_model
from host.commands.compare import compare_journal
from host.commands.doctor import doctor
from host.commands.pack import pack
from host.commands.replay import replay_journal
from host.config import RiskConfig
from host.data.feed import feed_bars
from host.data.formats import DataError, ReadOptions
from host.data.instruments import same_instrument
from host.data.parsing import format_utc
from host.live.journal import JournalError
from host.live.limits import resolve_limits
from host.live.market_check import check_scale, check_symbol
from host.live.runner import LiveOptions
from host.live.target_file import parse_target
from kernels.market.features import HISTORY
from tests.fixtures.model_files import market_of, save_several
from tests.fixtures.trained import HEADER, ROWS, Trained, backtest_rows, by_time, feed_of


def traded(trained: Trained, feed: Path, reading: ReadOptions, insist: bool = False) -> tuple[int, int]:
    """Decisions of `act` and of a backtest; the refusal of one is that of the other."""
    out, refusals = io.StringIO(), list[Exception]()
    report = {"bars": 0}
    for run in (
        lambda: act_on_feed(str(feed), trained.path, reading, False, out, False, insist=insist),
        lambda: report.update(backtest_csv(feed, trained.path, reading, None, None, True, insist=insist)),
    ):
        try:
            run()
        except (ModelError, DataError) as error:
            refusals.append(error)
    assert len({(type(e), e.exit_code) for e in refusals}) <= 1
    if refusals:
        assert len(refusals) == 2
        assert len(out.getvalue().splitlines()) <= 1, "before any decision"
        raise refusals[0]
    return len(out.getvalue().splitlines()) - 1, report["bars"]


def scaled(factor: float, path: Path, rows: list[str] | None = None) -> Path:
    """The bundled bars at `factor` times their prices."""
    text = [row.split(",") for row in rows or ROWS[: HISTORY + 20]]
    lines = [",".join([t, *(f"{float(p) * factor:.6f}" for p in prices[:4]), *prices[4:]]) for t, *prices in text]
    path.write_text(HEADER + "\n".join(line.strip() for line in lines) + "\n")
    return path


@pytest.mark.parametrize("name", ["GBPJPY_M1.csv", "audusd.pro.csv", "US30.cash_H1.csv"])
def test_another_instrument_by_the_name_of_the_feed_is_refused(trained: Trained, tmp_path: Path, name: str) -> None:
    feed = feed_of(ROWS[: HISTORY + 20], tmp_path / name)
    with pytest.raises(ModelError, match=r"the model was trained on EURUSD: .*--insist") as refused:
        traded(trained, feed, ReadOptions())
    assert refused.value.exit_code == 5
    assert traded(trained, feed, ReadOptions(symbol="EURUSD")) == (21, 20), "--symbol says what it is"
    if "US30" not in name:  # whose usual spread is more than these prices
        assert traded(trained, feed, ReadOptions(), insist=True) == (21, 20)


def test_another_instrument_by_its_symbol_is_refused(trained: Trained, tmp_path: Path) -> None:
    feed = feed_of(ROWS[: HISTORY + 20], tmp_path / "EURUSD.m_H1.csv")
    assert traded(trained, feed, ReadOptions()) == (21, 20)
    for symbol in ("GBPUSD", "SOLUSD"):
        with pytest.raises(ModelError, match=f"is {symbol}, the model was trained on EURUSD"):
            traded(trained, feed, ReadOptions(symbol=symbol))
    for symbol in ("eurusd", "EURUSDpro", "EUR/USD"):
        assert traded(trained, feed, ReadOptions(symbol=symbol)) == (21, 20)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("GOLD", "XAUUSD", True),
        ("XAUUSD.m", "GOLD", True),
        ("GER40.cash", "DE30EUR", True),
        ("BTCUSDT", "XBTUSD", True),
        ("BTCUSD", "BTCEUR", False),
        ("XAUUSD", "XAUEUR", False),
        ("XAUUSD", "XAGUSD", False),
        ("USDJPY", "-", True),
        ("mine", "MINE", True),
        ("mine", "EURUSD", False),
    ],
)
def test_names_of_one_instrument(one: str, other: str, same: bool) -> None:
    assert same_instrument(one, other) == same == same_instrument(other, one)


@pytest.mark.parametrize("factor", [0.007, 0.4, 2.5, 140.0])
def test_a_scale_that_does_not_fit_is_refused_without_a_symbol(trained: Trained, tmp_path: Path, factor: float) -> None:
    feed = scaled(factor, tmp_path / "feed.csv")
    with pytest.raises(ModelError, match=r"prices of about .* knows prices from 1\.0") as refused:
        traded(trained, feed, ReadOptions())
    assert refused.value.exit_code == 5
    assert traded(trained, feed, ReadOptions(), insist=True) == (21, 20)


@pytest.mark.parametrize(("factor", "fits"), [(0.05, False), (0.5, True), (4.0, True), (15.0, False)])
def test_bars_of_another_volatility_are_refused_before_the_first_decision(
    trained: Trained, tmp_path: Path, factor: float, fits: bool
) -> None:
    rows = []
    for row in ROWS[: HISTORY + 20]:
        time, *prices = row.strip().split(",")
        o, h, low, c = (float(p) for p in prices[:4])
        o, h, low, c = (1.06 + (p - o) * factor for p in (o, h, low, c))
        rows.append(",".join([time, *(f"{p:.7f}" for p in (o, h, low, c)), *prices[4:]]) + "\n")
    feed = feed_of(rows, tmp_path / "feed.csv")
    if fits:
        assert traded(trained, feed, ReadOptions()) == (21, 20)
    else:
        with pytest.raises(ModelError, match=r"bars of .* and bars of"):
            traded(trained, feed, ReadOptions())


def test_of_a_model_without_a_symbol_only_the_scale_is_checked(trained: Trained) -> None:
    spec = trained.loaded.market_spec
    nameless = trained.loaded._replace(market_spec=spec._replace(profile=spec.profile._replace(symbol="-")))
    check_symbol(nameless, "GBPJPY", "GBPJPY.csv")
    with pytest.raises(ModelError):
        check_scale(nameless, np.array([150.0]), None, "GBPJPY.csv")


def test_a_clock_of_its_own_is_no_conflict(trained: Trained, tmp_path: Path) -> None:
    feed = feed_of(ROWS[: HISTORY + 20], tmp_path / "EURUSD_H1.csv")
    assert traded(trained, feed, ReadOptions(timezone="UTC+2h")) == (21, 20)


def test_defaults_of_a_model_are_not_flags_of_the_user(trained: Trained) -> None:
    """It fills what is open; the format of a feed may know better, and a pip of the model is not judged as typed."""
    options = reading_options(trained.loaded, ReadOptions(label="close"), "EURUSD_H1.csv")
    assert (options.side, options.timezone, options.label, options.interval_s) == (None, None, "close", 3600)
    assert (options.pip, options.spread_pips) == (None, None)
    memory = {"side": "ask", "timezone": "UTC", "label": "open", "pip": 0.0001, "spread_pips": 0.8}
    assert options.model_defaults == memory


def test_pip_and_spread_of_the_model_are_not_those_of_another_instrument(trained: Trained) -> None:
    ours = reading_options(trained.loaded, ReadOptions(), "EURUSD_H1.csv").model_defaults
    other = reading_options(trained.loaded, ReadOptions(), "GBPJPY_H1.csv").model_defaults
    assert {"pip", "spread_pips"} <= ours.keys()
    assert not {"pip", "spread_pips"} & other.keys()


def test_a_symbol_in_the_first_line_reaches_the_check(trained: Trained, tmp_path: Path) -> None:
    feed, loaded = feed_of(ROWS[:5], tmp_path / "EURUSD_H1.csv"), trained.loaded
    symbols = list[str]()
    bars = feed_bars(
        feed, reading_options(loaded, ReadOptions()), check=lambda rules: symbols.append(rules.instrument.symbol)
    )
    next(bars)
    assert symbols == ["EURUSD"]


@pytest.fixture(scope="module")
def several(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of EURUSD and GBPUSD."""
    return save_several(trained, tmp_path_factory.mktemp("several") / "model.swt")


def acted(model: Path, feed: Path, symbol: str | None = None, **given: Any) -> dict[str, list[str]]:
    """Decisions of `act`, by time."""
    out = io.StringIO()
    act_on_feed(str(feed), model, ReadOptions(symbol=symbol), False, out, False, **given)
    return by_time(out.getvalue())


def with_column(symbol: str, path: Path) -> Path:
    lines = [HEADER, *ROWS[: HISTORY + 20]]
    path.write_text("".join(f"{line.strip()},{symbol if i else 'symbol'}\n" for i, line in enumerate(lines)))
    return path


def test_one_file_trades_each_instrument_as_a_model_of_it_alone(
    trained: Trained, several: Path, tmp_path: Path
) -> None:
    rows, decisions = ROWS[: HISTORY + 20], dict[str, dict[str, list[str]]]()
    nameless = feed_of(rows, tmp_path / "bars.csv")
    for symbol in ("EURUSD", "GBPUSD"):
        alone = save_several(trained, tmp_path / "alone.swt", market_of(trained, symbol))
        decisions[symbol] = expected = acted(alone, feed_of(rows, tmp_path / f"{symbol}_H1.csv"))
        assert acted(several, tmp_path / f"{symbol}_H1.csv") == expected
        assert acted(several, nameless, symbol) == expected
        column = with_column(symbol, tmp_path / "column.csv")
        assert acted(several, column) == expected
        for feed in (tmp_path / f"{symbol}_H1.csv", column):
            assert backtest_rows(feed, several, None).items() <= expected.items()
    assert decisions["EURUSD"] != decisions["GBPUSD"]
    pack(several, tmp_path / "swt.pyz")
    assert acted(tmp_path / "swt.pyz" / "model.swt", tmp_path / "GBPUSD_H1.csv") == decisions["GBPUSD"]


def test_a_feed_that_names_none_or_another_of_several_instruments_is_refused(several: Path, tmp_path: Path) -> None:
    rows = ROWS[: HISTORY + 20]
    for name, says in (("bars.csv", "but which"), ("GBPJPY.csv", "GBPJPY is none"), ("EURUSD_GBPUSD.csv", "but which")):
        feed = feed_of(rows, tmp_path / name)
        for insist in (False, True):
            with pytest.raises(ModelError, match=rf"{says}.*: EURUSD, GBPUSD: --symbol EURUSD names one$") as refused:
                acted(several, feed, insist=insist)
            with pytest.raises(ModelError) as too:
                backtest_csv(feed, several, ReadOptions(), None, None, True, insist=insist)
            assert str(refused.value) == str(too.value)
        assert len(acted(several, feed, "EURUSD")) == 21
    with pytest.raises(ModelError, match="but which"):
        act_on_feed("-", several, ReadOptions(), False, io.StringIO(), False)
    with pytest.raises(ModelError, match=r"is EURUSD, the model was trained on GBPUSD: .* --symbol GBPUSD if it is"):
        acted(several, with_column("EURUSD", tmp_path / "GBPUSD.csv"))
    with pytest.raises(DataError, match="absent"):
        acted(several, tmp_path / "absent EURUSD.csv")


def test_a_journal_is_of_one_instrument(trained: Trained, several: Path, tmp_path: Path) -> None:
    column, out, printed = with_column("GBPUSD", tmp_path / "column.csv"), tmp_path / "out", io.StringIO()
    options = LiveOptions(out, False, False, "-", RiskConfig())
    decisions = acted(several, column, options=options)
    assert parse_target((out / "target.csv").read_bytes()).symbol == "GBPUSD"
    replay_journal(out / "journal.jsonl", several, printed, False)
    assert by_time(printed.getvalue()) == decisions
    assert compare_journal(out / "journal.jsonl", column, several, ReadOptions(), False)["decisions"] == 21
    euro = feed_of(ROWS[: HISTORY + 20], tmp_path / "EURUSD.csv")
    with pytest.raises(ModelError, match="instrument EURUSD: the journal is of GBPUSD; another instrument begins in"):
        acted(several, euro, options=options)
    with pytest.raises(ModelError, match="instrument EURUSD: the journal is of GBPUSD"):
        compare_journal(out / "journal.jsonl", euro, several, ReadOptions(), False)
    with pytest.raises(ModelError, match="another model"):
        replay_journal(out / "journal.jsonl", trained.path, printed, False)
    for damage in ('{"engine":5}\n', "{}\n"):
        (out / "journal.jsonl").write_text(damage)
        with pytest.raises(JournalError, match="line 1: not a record"):
            replay_journal(out / "journal.jsonl", several, printed, False)


def test_limits_and_doctor_know_each_instrument(several: Path) -> None:
    euro, pound = (resolve_limits(RiskConfig(), load_model(several, symbol)) for symbol in ("EURUSD", "GBPUSD"))
    assert pound.drawdown == 2 * 9999.0 > euro.drawdown
    models = [check["text"] for check in doctor(several)["checks"] if check["name"] == "model"]
    assert len(models) == 2
    assert "EURUSD, bars of 3600 s" in models[0]
    assert "GBPUSD, bars of 3600 s" in models[1]
    assert models[1].endswith("2017-11-30T00:00:00Z")


def test_lookahead_is_checked_for_the_instrument_of_the_file(several: Path, tmp_path: Path) -> None:
    feed = feed_of(ROWS[: HISTORY + 40], tmp_path / "GBPUSD.csv")
    document = check_model(feed, several, ReadOptions(), 2, 0, insist=False, warmup=False)
    assert document["passed"]
    assert document["parts"]["decisions"]["count"] == 0


def test_bars_from_the_test_part_on_are_unseen(trained: Trained, tmp_path: Path) -> None:
    first = format_utc(trained.loaded.test_first_ns)
    at = HISTORY - 1 + list(trained.decisions).index(first)
    feed = feed_of(ROWS[at - HISTORY : at + 10], tmp_path / "EURUSD_H1.csv")
    before, unseen = (
        backtest_csv(feed, trained.path, ReadOptions(), start, None, True)["verdict"]["reasons"]
        for start in (None, first)
    )
    assert any(f"unseen from {first} on (--from {first})" in reason for reason in before)
    assert not any("unseen" in reason for reason in unseen)


def test_the_manifest_has_the_instrument(trained: Trained) -> None:
    loaded: LoadedModel = trained.loaded
    instrument = loaded.manifest["instrument"]
    assert (instrument["symbol"], instrument["pip_px"], instrument["point"]) == ("EURUSD", 0.0001, 0.00001)
    assert instrument["closed"] == [[468, 664]], "Friday 21:00 to Sunday 22:00"
    assert 1.03 < instrument["low"] < instrument["price"] < instrument["high"] < 1.22
    assert instrument["spread_px"] == pytest.approx(0.8e-4)
    assert 4 < instrument["day_px"] / instrument["range_px"] < 12
    assert loaded.backtest_stats.drawdown_pips > 0
    assert loaded.backtest_stats.worst_day_pips > 0
