"""A header is read by the names of its columns, a stamp by its shape, a spread by its unit: in bulk and as a feed."""

import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from host.data.csv_reader import read_bars
from host.data.feed import feed_bars
from host.data.formats import DataError, ReadOptions, Source
from kernels.market.bars import SECOND_NS, Bars
from tests.fixtures.feeds import assert_same
from tests.fixtures.headers import ATHENS, HEAD, IB, ISO, KNOWN
from tests.fixtures.paths import FOUND

N = 70  # bars: more than the lines that a file is recognised by
OPENED = [datetime(2023, 1, 2, 6, tzinfo=UTC) + timedelta(hours=h) for h in range(N)]
STEP = (0.0, 0.00013, 0.0003, -0.00012, 0.00021, 0.0)
PX = [[f"{1.08 + STEP[(t + k) % 6] + d:.5f}" for k, d in enumerate((0.0, 0.001, -0.001, 0.0))] for t in range(N)]


def lines_of(template: str, count: int = N) -> list[str]:
    """Lines of the first bars: `template` has their opening, t in UTC (u: UNIX), s 2 h ahead (us) and n 5 h behind."""
    lines = []
    for i, t in enumerate(OPENED[:count]):
        clocks = {"t": t, "s": t + timedelta(hours=2), "n": t - timedelta(hours=5), "c": t + timedelta(hours=1)}
        words: dict[str, object] = {"o": PX[i][0], "h": PX[i][1], "l": PX[i][2], "p": PX[i][3], "v": 100 + i, "i": i}
        words |= {"u": int(t.timestamp()), "us": int(clocks["s"].timestamp())}
        words |= {"half": t.hour % 12 or 12, "ap": "ap"[t.hour > 11], "ymd": f"{t.year}/{t.month}/{t.day}"}
        lines.append(template.replace("BAR", "{o},{h},{l},{p},{v}").format(**clocks, **words))
    return lines


def write(folder: Path, header: str, template: str, name: str = "b.csv", separator: str = ",") -> Path:
    """A file of the bars above."""
    text = "\n".join([header, *lines_of(template)] if header else lines_of(template))
    (folder / name).write_bytes(text.replace(",", separator).encode())
    return folder / name


def both_ways(path: Path, options: ReadOptions | None = None) -> tuple[Bars, Source]:
    """The bars of a file, which are the same in bulk and as a feed."""
    bars, source = read_bars(path, options)
    assert_same(list(feed_bars(path, options)), bars)
    return bars, source


def refused(path: Path, options: ReadOptions | None = None, feed: bool = True) -> str:
    """The error of a file that is refused, by a feed too."""
    with pytest.raises(DataError) as bulk:
        read_bars(path, options)
    if feed:
        with pytest.raises(DataError):
            list(feed_bars(path, options))
    return str(bulk.value)


HEADED = {  # header and line of files that tell the same bars
    "order": ("volume,close,low,high,open,date", f"{{v}},{{p}},{{l}},{{h}},{{o}},{ISO}"),
    "index": (f",{HEAD}", f"{{i}},{ISO},BAR"),
    "named index": (f"index,{HEAD}", f"{{i}},{ISO},BAR"),
    "index of R": (HEAD, f'"{{i}}",{ISO},BAR'),
    "no name": (",Open,High,Low,Close,Volume", f"{ISO},BAR"),
    "another name": ("Bar of,Open,High,Low,Close,Volume", f"{ISO},BAR"),
    "text": (f"{HEAD},note,x", f'{ISO},BAR,"a, b",'),
    "symbol": (f"symbol,{HEAD}", f"EURUSD,{ISO},BAR"),
    "short": ("t,o,h,l,c,v", "{u},BAR"),
    "upper case": ("TIMESTAMP,OPEN,HIGH,LOW,CLOSE,VOL", f"{ISO},BAR"),
    "repeated": (f"{HEAD},close,time,rsi,rsi", f"{ISO},BAR,7,8,9,"),
    "other volumes": (f"{HEAD},tick_volume,real_volume,spread_avg", f"{ISO},BAR,5,6,77"),
    "all end": (HEAD + ",", f"{ISO},BAR,"),
    "header ends": (HEAD + ",", f"{ISO},BAR"),
    "lines end": (HEAD, f"{ISO},BAR,"),
    "quotes": ('"Date","Open","High","Low","Close","Volume"', f'"{ISO}","{{o}}","{{h}}","{{l}}","{{p}}","{{v}}"'),
    "blanks": ("time, open, high, low, close, volume", f"{ISO}, {{o}}, {{h}}, {{l}}, {{p}}, {{v}}"),
    "title": (f"EURUSD one hour\n# by hand\n\n{HEAD}", f"{ISO},BAR"),
    "mark": (f"\ufeff{HEAD}\r", f"{ISO},BAR\r"),
    "date and time": ("Date,Time,Open,High,Low,Close,Volume", "{t:%Y/%m/%d},{t:%H:%M},BAR"),
    "time and date": ("Time,Date,Open,High,Low,Close,Volume", "{t:%H:%M:%S},{t:%d-%b-%Y},BAR"),
    "packed": ("<TICKER>,<DTYYYYMMDD>,<TIME>,<OPEN>,<HIGH>,<LOW>,<CLOSE>,<VOL>", "EURUSD,{t:%Y%m%d},{t:%H%M%S},BAR"),
    "last": ("Date, Time, Open, High, Low, Last, Volume, # of Trades", "{ymd}, {t:%H:%M:%S}, BAR, 3"),
    "seconds": (HEAD, "{u},BAR"),
    "milliseconds": (HEAD, "{u}000,BAR"),
    "microseconds": (HEAD, "{u}000000,BAR"),
    "nanoseconds": (HEAD, "{u}000000000,BAR"),
    "float": (HEAD, "{u}.0,BAR"),
    "dotted": (HEAD, "{t:%Y.%m.%d %H:%M},BAR"),
    "slashed": (HEAD, "{t:%Y/%m/%d %H:%M:%S},BAR"),
    "no zeros": (HEAD, "{t.year}-{t.month}-{t.day} {t.hour}:{t:%M},BAR"),
    "twelve hours": (HEAD, "{t:%Y-%m-%d} {half}:{t:%M:%S} {ap}m,BAR"),
    "minutes": (HEAD, "{t:%Y%m%d%H%M},BAR"),
    "packed date": (HEAD, "{t:%Y%m%d %H:%M},BAR"),
    "Z": (HEAD, "{t:%Y-%m-%dT%H:%M:%SZ},BAR"),
    "basic Z": (HEAD, "{t:%Y%m%dT%H%M%SZ},BAR"),
    "offset": (HEAD, "{s:%Y-%m-%d %H:%M:%S}+0200,BAR"),
    "named offset": (HEAD, "{n:%Y-%m-%d %H:%M:%S} GMT-0500,BAR"),
    "UTC": (HEAD, f"{ISO} UTC,BAR"),
    "comma": (HEAD, f"{ISO},000,BAR"),
    "quoted comma": (HEAD, f'"{ISO},000",BAR'),
    "month": (HEAD, '"{t:%b %d, %Y %H:%M}",BAR'),
    "beside local time": (
        "Local time,Gmt time,Open,High,Low,Close,Volume",
        "{s:%Y-%m-%d %H:%M},{t:%Y-%m-%d %H:%M},BAR",
    ),
    "two stamps": ("datetime,timestamp,open,high,low,close,volume", "{s:%Y-%m-%d %H:%M},{u}000,BAR"),
}


@pytest.mark.parametrize("name", HEADED)
def test_a_header_is_read_by_the_names_of_its_columns(name: str, tmp_path: Path) -> None:
    bars, source = both_ways(write(tmp_path, *HEADED[name]))
    assert bars.time.tolist() == [int((t + timedelta(hours=1)).timestamp()) * SECOND_NS for t in OPENED]
    for column, px in zip(("open", "high", "low", "close"), zip(*PX, strict=True), strict=True):
        assert getattr(bars, column).tolist() == [float(p) for p in px]
    assert bars.volume.tolist() == [100.0 + t for t in range(N)]
    assert (source.format, source.side, source.timezone, source.label) == ("canonical", "bid", "UTC", "open")


@pytest.mark.parametrize("known", KNOWN, ids=lambda k: f"{k[0]} {k[5]}")
def test_formats_that_have_marks_of_their_own(known: tuple[str, ...], tmp_path: Path) -> None:
    *told, separator, header, line = known
    bars, source = both_ways(write(tmp_path, header, line, separator=separator))
    shift = 0.00004 if source.side == "mid" else 0.0
    np.testing.assert_allclose(bars.close + shift, [float(px[3]) for px in PX], rtol=1e-12)
    assert bars.time.tolist() == [int((t + timedelta(hours=1)).timestamp()) * SECOND_NS for t in OPENED]
    assert bars.volume.tolist() == [100.0 + t for t in range(N)]
    assert [source.format, source.timezone, source.label] == told


FILES = [  # format, first close, clock, label, spread in price, symbol
    ("canonical_spread_and_symbol.csv", "canonical", "2023-01-01T23:00:00Z", "UTC", "open", 0.00031, "EURUSD"),
    ("mt5_dump_gold_20_points.csv", "MetaTrader 5 dump", "2023-01-01T21:00:00Z", ATHENS, "open", 0.2, "GOLD"),
    ("mt5_chart_save.csv", "MetaTrader 5 chart", "2023-01-01T21:00:00Z", ATHENS, "open", 0.00008, "-"),
    ("iso_hour_without_zero.csv", "canonical", "2023-01-01T23:00:00Z", "UTC", "open", 0.00008, "-"),
    ("epoch_us.csv", "canonical", "2023-01-01T23:00:00Z", "UTC", "open", 0.00008, "-"),
    ("header_and_dotted_date.csv", "canonical", "2023-01-01T23:00:00Z", "UTC", "open", 0.00008, "-"),
    ("daily_yyyymmdd.csv", "no header", "2022-11-29T00:00:00Z", "UTC", "open", 0.00008, "-"),
    ("index_then_time.csv", "canonical", "2023-01-01T23:00:00Z", "UTC", "open", 0.00008, "-"),
    ("newest_first.csv", "canonical", "2023-01-01T23:00:00Z", "UTC", "open", 0.00008, "-"),
    ("thousands_gold.csv", "canonical", "2023-01-01T23:00:00Z", "UTC", "open", 0.25, "GOLD"),
    ("pip_USDSEK_H1.csv", "canonical", "2023-01-01T23:00:00Z", "UTC", "open", 0.0045, "USDSEK"),
    ("pip_XAUUSD_H1.csv", "canonical", "2023-01-01T23:00:00Z", "UTC", "open", 0.25, "XAUUSD"),
]


@pytest.mark.parametrize(("name", "fmt", "first", "clock", "label", "spread_px", "symbol"), FILES)
def test_files_that_were_read_wrongly(
    name: str, fmt: str, first: str, clock: str, label: str, spread_px: float, symbol: str
) -> None:
    bars, source = read_bars(FOUND / name)
    assert (source.format, source.first, source.timezone, source.label) == (fmt, first, clock, label)
    assert source.instrument.symbol == symbol
    np.testing.assert_allclose(bars.ask_close - bars.close, spread_px, atol=1e-12)
    assert source.spread_px == pytest.approx(spread_px)
    if name == "newest_first.csv":
        assert "the newest bar stands first: read from the end" in source.notes
        assert "lists the newest bar first" in refused_as_feed(FOUND / name)
    else:
        assert_same(list(feed_bars(FOUND / name)), bars)


def refused_as_feed(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        list(feed_bars(path))
    return str(caught.value)


def spread_file(folder: Path, spread: str, column: str = "spread", name: str = "EURUSD.csv") -> Path:
    return write(folder, f"{HEAD},{column}", f"{ISO},BAR,{spread}", name)


@pytest.mark.parametrize(
    ("column", "text", "options", "pips", "origin"),
    [
        ("spread", "0.00031", ReadOptions(), 3.1, "column of the file, in price"),
        ("Spread (pips)", "1.2", ReadOptions(), 1.2, "column of the file, in pips"),
        ("spread_points", "12", ReadOptions(), 1.2, "column of the file, in points"),
        ("spread", "12", ReadOptions(spread_unit="points"), 1.2, "column of the file, in points"),
        ("spread", "1.2", ReadOptions(spread_unit="pips"), 1.2, "column of the file, in pips"),
        ("spread", "0.00031", ReadOptions(spread_pips=2.0), 2.0, "given"),
        ("spread", "0", ReadOptions(spread_pips=0.0), 0.0, "given"),
        ("spread_was", "0.00031", ReadOptions(), 0.8, "assumed"),
        ("spread", "n/a", ReadOptions(), 0.8, "assumed"),
    ],
)
def test_a_spread_is_an_amount(
    column: str, text: str, options: ReadOptions, pips: float, origin: str, tmp_path: Path
) -> None:
    bars, source = both_ways(spread_file(tmp_path, text, column), options)
    np.testing.assert_allclose(bars.ask_open - bars.open, pips * 0.0001, atol=1e-12)
    assert source.spread_px == pytest.approx(pips * 0.0001)
    assert source.range_px == pytest.approx(0.002, rel=0.2)
    share = f"{source.spread_px / source.range_px:.0%}".replace("%", " %")
    assert source.spread.endswith(f"= {pips:g} pips, {share} of the mean bar range ({origin})")
    assert source.spread_pips == (None if origin.startswith("column") else pips)
    said = "--spread 2 instead of the spread that the file has" in source.notes
    assert said == (options.spread_pips == 2.0)


@pytest.mark.parametrize(
    ("column", "text", "reason"),
    [
        ("spread", "12", "whole numbers, such as 12, .*--spread-unit points makes 0.00012 of 12, --spread-unit pips"),
        ("spread", "1.2", "0.002.*: in which unit is it. --spread-unit pips, --spread-unit points"),
        ("spread_pips", "120.5", "wider than the mean bar"),
        ("spread", "0", "zero throughout: --spread 0.8, or --spread 0"),
        ("spread", "0.00000", "zero throughout"),
        ("spread", "-0.00030", "-0.0003 in the mean: --spread 0.8"),
    ],
)
def test_a_spread_that_is_absurd_is_refused_with_the_flags_that_settle_it(
    column: str, text: str, reason: str, tmp_path: Path
) -> None:
    path = spread_file(tmp_path, text, column)
    said = refused(path, feed=False)
    assert re.search(reason, said), said
    flag = re.search(r"--spread (\d[\d.]*)", said)
    meant = ReadOptions(spread_pips=float(flag[1])) if flag else ReadOptions(spread_unit="points")
    assert read_bars(path, meant)[1].spread_px < 0.0002


@pytest.mark.parametrize("pip", [None, 0.01, 0.1, 1.0])
def test_points_are_of_the_last_digit_whatever_a_pip_is(pip: float | None, tmp_path: Path) -> None:
    bars, _ = both_ways(FOUND / "mt5_dump_gold_20_points.csv", ReadOptions(pip=pip))
    np.testing.assert_allclose(bars.ask_close - bars.close, 0.2, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "price", "point"),
    [
        ("XAUUSD.csv", "2000.123,2001.5,1999.002,2000.3", 0.001),  # more digits than the table has
        ("XAUUSD.csv", "2000,2001.5,1999.2,2000.3", 0.01),  # zeros at the end were dropped
        ("EURUSD.csv", "1.0800,1.0810,1.0790,1.0805", 0.0001),  # a broker with four digits
        ("b.csv", "1.08,1.081,1.07901,1.0805", 0.00001),
        ("b.csv", "1.08,1.081,1.07900000000001,1.0805", 0.0001),  # noise
    ],
)
def test_the_whole_head_shows_the_last_digit(name: str, price: str, point: float, tmp_path: Path) -> None:
    header = "time,open,high,low,close,tick_volume,spread,real_volume"
    bars, _ = both_ways(write(tmp_path, header, f"{ISO},{price},7,8,0", name))
    np.testing.assert_allclose(bars.ask_close - bars.close, 8 * point, rtol=1e-6)


def test_the_whole_head_shows_the_pip(tmp_path: Path) -> None:
    path = tmp_path / "b.csv"
    prices = ["2000,2003,1999,2001", *["2000.25,2003.75,1999.5,2001.25"] * 11]
    path.write_text("\n".join([HEAD[:-7], *(f"2023-01-02 {h:02}:00,{px}" for h, px in enumerate(prices))]))
    assert both_ways(path)[1].instrument.pip == 0.01


def test_yen_in_points_are_asked_for() -> None:
    said = refused(FOUND / "jpy_spread_in_points.csv")
    assert "--spread-unit points makes 0.006 of 6, --spread-unit pips makes 0.06 of 6" in said
    bars, _ = both_ways(FOUND / "jpy_spread_in_points.csv", ReadOptions(spread_unit="points"))
    np.testing.assert_allclose(bars.ask_close - bars.close, 0.006, atol=1e-9)


def test_bid_and_ask_without_a_spread_are_no_market(tmp_path: Path) -> None:
    names = ("open", "high", "low", "close")
    header = ",".join(["time", *(f"{side}_{name}" for side in ("bid", "ask") for name in names)])
    path = write(tmp_path, header, f"{ISO},{{o}},{{h}},{{l}},{{p}},{{o}},{{h}},{{l}},{{p}}")
    assert "zero throughout: --spread 0.8" in refused(path, feed=False)
    bars, source = both_ways(path, ReadOptions(spread_pips=1.5))
    assert source.side == "bid"
    np.testing.assert_allclose(bars.ask_close - bars.close, 0.00015, atol=1e-12)


THOUSANDS = [  # prices of a bar, and the close that is read, or what is said
    ("3,200.00|3,203.50|3,199.00|3,201.25", 3201.25),
    ("3,200|3,203.50|3,199|3,201", 3201.0),
    ("999.50|1,003.50|999.00|1,001.25", 1001.25),
    ("1,057|1,058|1,056|1,057", "line 2: '1,057': a decimal comma, or one between thousands"),
    ("1,05750|1,05800|1,05700|1,05760", "line 2: '1,05750': a decimal comma"),
    ("1.057,50|1.058,50|1.056,50|1.057,50", "line 2: '1.057,50': a decimal comma"),
    ("1,057.5|1,0585|1,056.5|1,057.5", "line 2: '1,0585': a decimal comma"),
]


@pytest.mark.parametrize("separator", ["quoted", ";", "\t"])
@pytest.mark.parametrize(("prices", "told"), THOUSANDS)
def test_commas_between_thousands(prices: str, told: float | str, separator: str, tmp_path: Path) -> None:
    cells = [HEAD.split(","), *([*f"2023-01-02 {h:02}:00|{prices}|1,071".split("|")] for h in range(9))]
    lines = ['"' + '","'.join(row) + '"' if separator == "quoted" else separator.join(row) for row in cells]
    path = tmp_path / "b.csv"
    path.write_text("\n".join(lines))
    if isinstance(told, str):
        assert told in refused(path)
    else:
        bars, _ = both_ways(path)
        assert (set(bars.close), set(bars.volume)) == ({told}, {1071.0})


REASONS = [  # a bad line among good ones, and what is said of it
    ("2023-01-02 06:00:00,1.08,1.081,1.0x,1.08,5", "line 8: not a bar: the price '1.0x' in column low is no number"),
    ("2023-01-02 06:00:00,1.08,1.081,1.07,1.08,-", "line 8: not a bar: the volume '-' in column volume is no number"),
    ("2023-01-32 06:00:00,1.08,1.081,1.07,1.08,5", "line 8: not a bar: '2023-01-32 06:00:00' in column time is no"),
    ("2023-01-02 06:00:00,1.08,1.081,1.07,1.08", "line 8: not a bar: 5 fields where 6 are wanted"),
    ("1.67E+09,1.08,1.081,1.07,1.08,5", "line 8: not a bar: '1.67E+09' in column time is no"),
]


@pytest.mark.parametrize(("line", "reason"), REASONS)
def test_a_refusal_names_the_cell_and_the_rule(line: str, reason: str, tmp_path: Path) -> None:
    lines = [f"2023-01-02 {h:02}:00:00,1.08,1.081,1.07,1.08,5" for h in range(12)]
    path = tmp_path / "b.csv"
    path.write_text("\n".join([HEAD, *lines[:6], line, *lines[7:]]))
    assert reason in refused(path)
    assert reason in refused_as_feed(path)
    assert len(read_bars(path, ReadOptions(drop_bad=True))[0].time) == 11


@pytest.mark.parametrize("text", ["1.67E+09", "1.6726104e+12", "noon"])
def test_a_time_that_cannot_be_read_is_shown(text: str, tmp_path: Path) -> None:
    assert f"line 2: the time {text!r} in column time" in refused(write(tmp_path, HEAD, f"{text},BAR"))


def test_names_that_are_no_prices_are_shown(tmp_path: Path) -> None:
    said = refused(write(tmp_path, "Datum,Kurs,Hoch,Tief,Schluss,V", f"{ISO},BAR"))
    assert "no column is called open, high, low or close: 'datum,kurs,hoch,tief,schluss,v'" in said


def test_columns_that_nobody_needs_are_named(tmp_path: Path) -> None:
    _, source = both_ways(write(tmp_path, f"x,{HEAD},RSI (14)", f"?,{ISO},BAR,"))
    assert "columns not used: x, RSI (14)" in source.notes


def test_an_unknown_volume_is_none(tmp_path: Path) -> None:
    bars, source = both_ways(write(tmp_path, IB, "{n:%Y%m%d  %H:%M:%S} US/Eastern,{o},{h},{l},{p},-1,1.08,-1"))
    assert not bars.volume.any()
    assert "columns not used: volume, average, barCount" in source.notes


def test_twelve_hours_in_dates_that_could_be_either(tmp_path: Path) -> None:
    path = write(tmp_path, HEAD, "{t:%m/%d/%Y} {half}:{t:%M:%S} {ap}m,BAR")
    assert "day or month first? --dates dmy or --dates mdy" in refused(path)
    bars, _ = both_ways(path, ReadOptions(dates="mdy"))
    assert bars.time[0] == int((OPENED[0] + timedelta(hours=1)).timestamp()) * SECOND_NS


def test_volume_shows_whose_minutes_they_are(tmp_path: Path) -> None:
    """HistData has none.  A feed waits for a volume; where there is no column of volumes the user is asked."""
    silent, flags = "{n:%Y%m%d %H%M%S},{o},{h},{l},{p}", ReadOptions(timezone="UTC", label="close")
    _, source = both_ways(write(tmp_path, "", f"{silent},0"))
    assert (source.format, source.timezone) == ("HistData ASCII", "Europe/Athens-7h")
    assert any("--timezone UTC --label close for NinjaTrader" in note for note in source.notes)
    lines = [line if i < 40 else re.sub("0$", "7", line) for i, line in enumerate(lines_of(f"{silent},0"))]
    path = tmp_path / "b.csv"
    path.write_text("\n".join(lines))
    for told in (path, FOUND / "ninjatrader_minute.txt"):
        assert "volumes, which HistData never has: NinjaTrader writes UTC" in refused(told)
        assert both_ways(told, flags)[1].format == "NinjaTrader"
    assert read_bars(told, flags)[1].first == "2023-01-01T22:00:00Z"
    path = write(tmp_path, "", silent)
    assert "HistData (--timezone Europe/Athens-7h --label open) from NinjaTrader (--timezone UTC" in refused(path)
    again, source = both_ways(path, flags)
    assert source.label == "close"
    assert again.time[0] == int((OPENED[0] - timedelta(hours=5)).timestamp()) * SECOND_NS
    typed, _ = both_ways(write(tmp_path, "", f"{silent},0"), flags)
    assert np.array_equal(typed.time, again.time)


def test_local_time_is_of_where_the_user_says(tmp_path: Path) -> None:
    path = write(tmp_path, "Local time,Open,High,Low,Close,Volume", "{n:%Y-%m-%d %H:%M},BAR")
    assert "local time, but of where? --timezone" in refused(path)
    server = write(tmp_path, "Server Time,Open,High,Low,Close,Volume", "{s:%Y-%m-%d %H:%M},BAR", "s.csv")
    assert "of most servers: --timezone Europe/Athens" in refused(server)
    bars, _ = both_ways(path, ReadOptions(timezone="America/New_York"))
    assert bars.time[0] == int((OPENED[0] + timedelta(hours=1)).timestamp()) * SECOND_NS


def test_the_column_of_symbols_wins_over_the_name_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, f"symbol,{HEAD}", f"EUR/USD,{ISO},BAR", "GBPUSD_H1.csv")
    _, source = both_ways(path)
    assert source.instrument.symbol == "EURUSD"
    assert "symbol EURUSD: the column of symbols; the file name says GBPUSD" in source.notes
    _, source = both_ways(path, ReadOptions(symbol="AUDUSD"))
    assert source.instrument.symbol == "AUDUSD"
    assert "symbol AUDUSD: --symbol; the column of symbols says EURUSD" in source.notes
    _, source = both_ways(write(tmp_path, f"symbol,{HEAD}", f"6E,{ISO},BAR", "EURUSD_H1.csv"))
    assert "symbol EURUSD: the file name; the column of symbols says 6E" in source.notes
    said = refused(write(tmp_path, HEAD, f"{ISO},BAR", "gold.csv"))
    assert "prices of about 1.08" in said
    assert "a usual spread of 0.25: is the symbol GOLD? --symbol" in said


def test_a_spread_that_is_missing_in_the_first_rows_is_no_column_to_leave_out(tmp_path: Path) -> None:
    path = spread_file(tmp_path, "0.00031")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], *(line.removesuffix("0.00031") for line in lines[1:4]), *lines[4:]]))
    assert "line 2: not a bar: the spread '' in column spread is no number" in refused(path)


def test_two_symbols_are_split_by_the_command_that_is_printed(tmp_path: Path) -> None:
    path = tmp_path / "it's $b.csv"
    lines = [f"{symbol},{line}" for symbol in ("EURUSD", "GBPUSD") for line in lines_of(f"{ISO},BAR")]
    path.write_text("\n".join([f"pair,{HEAD}", *lines, ""]))
    for said in (refused(path), refused(path, ReadOptions(drop_bad=True)), refused_as_feed(path)):
        command = re.search("python (-c .*)", said)
        assert command
        subprocess.run(f"{sys.executable} {command[1]}", shell=True, check=True, cwd=tmp_path)
        bars, source = both_ways(tmp_path / "GBPUSD.csv")
        assert (len(bars.time), source.instrument.symbol) == (N, "GBPUSD")


def test_the_clock_of_a_format_wins_over_what_a_model_remembers(tmp_path: Path) -> None:
    """The error has both readings.  A model settles what the format leaves open, and the user overrules both."""
    model = {"timezone": "UTC", "side": "ask", "label": "open", "pip": 0.0001, "spread_pips": 1.4}
    path = write(tmp_path, "", "{s:%Y.%m.%d},{s:%H:%M},BAR")
    said = refused(path, ReadOptions(model_defaults=model))
    assert "the file's clock is Europe/Athens (MetaTrader 4), the model was trained on UTC: --timezone" in said
    assert "the file's side is bid (MetaTrader 4), the model was trained on ask: --side bid or --side ask" in said
    _, source = both_ways(path, ReadOptions(timezone="Europe/Athens", side="bid", model_defaults=model))
    assert (source.timezone, source.side) == ("Europe/Athens", "bid")
    _, source = both_ways(path, ReadOptions(model_defaults={**model, "timezone": "Europe/Athens", "side": "both"}))
    assert source.spread_pips == 1.4
    path = write(tmp_path, HEAD, "{n:%Y-%m-%d %H:%M},BAR")
    bars, source = both_ways(path, ReadOptions(model_defaults={**model, "timezone": "America/New_York"}))
    assert (source.timezone, source.side, source.spread_pips) == ("America/New_York", "ask", 1.4)
    assert bars.time[0] == int((OPENED[0] + timedelta(hours=1)).timestamp()) * SECOND_NS
    assert "side ask: as in training (--side)" in source.notes
    both_ways(write(tmp_path, "", "{u},BAR,17"), ReadOptions(model_defaults={"timezone": "Europe/Athens"}))
    _, source = both_ways(write(tmp_path, HEAD, "{u},BAR"), ReadOptions(model_defaults={"side": "both"}))
    assert source.side == "bid"
    _, source = both_ways(spread_file(tmp_path, "0.0002"), ReadOptions(model_defaults={**model, "side": "bid"}))
    assert source.spread_pips is None
    assert source.spread_px == pytest.approx(0.0002)


def test_newest_first_is_read_from_the_end_in_any_format(tmp_path: Path) -> None:
    for header, line in (HEADED["seconds"], HEADED["two stamps"], ("", "{s:%Y.%m.%d},{s:%H:%M},BAR")):
        path = write(tmp_path, header, line)
        bars, _ = read_bars(path)
        lines = path.read_text().splitlines()
        top = bool(header)
        path.write_text("\n".join([*lines[:top], *lines[top:][::-1]]))
        again, source = read_bars(path)
        assert "the newest bar stands first: read from the end" in source.notes
        assert all(np.array_equal(a, b) for a, b in zip(bars, again, strict=True))
        assert "newest bar first" in refused_as_feed(path)
