"""Reading files of bars: every format gives the same bars, and no bad row passes silently."""

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from host.data.csv_reader import read_bars, read_with_pandas, split_lines
from host.data.formats import DataError, Problem, ReadOptions, Source
from kernels.market.bars import SECOND_NS
from tests.fixtures.files import FAULTS, FILES, HEADER, REAL_FILES, check_both_ways, equal, layout_of, real, rows, write
from tests.fixtures.paths import DATA, REAL, SAMPLE

SAME = [p.name for p in FILES if not p.name.startswith(("2", "daily"))]  # the same bars in every format
DAILY = [p.name for p in FILES if p.name.startswith("daily")]
QUOTED = ("daily_investing.csv",)


def problems(path: Path, **options: object) -> list[tuple[str, int]]:
    """Kind and line of what is refused without, and dropped with, the flag."""
    with pytest.raises(DataError, match="--drop-bad drops them") as refused:
        read_bars(path, ReadOptions(**options))  # type: ignore[arg-type]
    _, source = read_bars(path, ReadOptions(**options, drop_bad=True))  # type: ignore[arg-type]
    assert isinstance(refused.value.source, Source)
    assert refused.value.source.problems == source.problems
    return [(p.kind, p.line) for p in source.problems]


@pytest.mark.parametrize("name", SAME)
def test_every_format_gives_the_same_bars(name: str) -> None:
    expected, _ = read_bars(DATA / "canonical_unix_s.csv")
    bars, source = read_bars(DATA / name)
    assert source.rows == 40
    assert source.interval_s == 3600
    assert source.problems == []
    assert np.array_equal(bars.time, expected.time)
    exact = source.side in ("bid", "both")
    for column in ("open", "high", "low", "close"):
        np.testing.assert_allclose(getattr(bars, column), getattr(expected, column), rtol=0 if exact else 1e-15)
    for column in ("ask_open", "ask_close"):
        np.testing.assert_allclose(getattr(bars, column), getattr(expected, column), rtol=1e-12)
    assert np.array_equal(bars.volume, expected.volume * (0 if "histdata" in name or "lean" in name else 1))


@pytest.mark.parametrize("name", DAILY)
def test_every_format_of_days_gives_the_same_bars(name: str) -> None:
    expected, _ = read_bars(DATA / "daily_canonical.csv")
    bars, source = read_bars(DATA / name, ReadOptions(side="bid"))
    assert (source.rows, source.interval_s, source.problems) == (40, 86_400, [])
    for column in ("open", "high", "low", "close"):
        assert np.array_equal(getattr(bars, column), getattr(expected, column))
    midnight = [datetime(2021, 10, 4 + i, tzinfo=ZoneInfo(source.timezone)) for i in range(5)]
    assert (bars.time[:5] - 86_400 * SECOND_NS).tolist() == [int(t.timestamp()) * SECOND_NS for t in midnight]
    reversed_too = "the newest bar stands first: read from the end"
    assert (reversed_too in source.notes) == (name in ("daily_investing.csv", "daily_myfxbook.csv"))


def test_rows_that_are_not_complete_are_counted() -> None:
    _, source = read_bars(DATA / "oanda.csv")
    assert "1 rows of bars that are not complete are left out" in source.notes


def test_candles_of_oanda_as_they_are_sent(tmp_path: Path) -> None:
    expected, _ = read_bars(DATA / "lean.csv")
    bars, source = read_bars(DATA / "oanda.json")
    assert (source.format, source.side, source.rows) == ("OANDA", "both", 40)
    assert equal(bars._replace(volume=expected.volume), expected)
    assert source.sha256 == hashlib.sha256((DATA / "oanda.json").read_bytes()).hexdigest()
    document = json.loads((DATA / "oanda.json").read_text())
    for candle in document["candles"]:
        candle["mid"] = candle.pop("bid")
        candle["time"] = f"{datetime.fromisoformat(candle['time']).timestamp():.9f}"
    document["candles"][-1]["complete"] = False
    (tmp_path / "b.json").write_text(json.dumps(document, indent=1))
    mid, source = read_bars(tmp_path / "b.json", ReadOptions(spread_pips=0.0))
    assert (source.side, source.rows) == ("mid", 39)
    assert np.array_equal(mid.time, bars.time[:39])
    assert np.array_equal(mid.close, bars.close[:39])


def test_without_pandas_the_bits_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    with_pandas = [read_bars(path) for path in FILES]
    monkeypatch.setattr("host.data.csv_reader.HAS_PANDAS", False)
    for path, (bars, source) in zip(FILES, with_pandas, strict=True):
        again, without = read_bars(path)
        assert equal(bars, again)
        assert source == without


def test_a_list_that_was_turned_round_is_read_as_it_stands(tmp_path: Path) -> None:
    """Newest first is what the format does by itself; a user may have turned the file."""
    title, header, *body = (DATA / "daily_myfxbook.csv").read_text().splitlines()
    (tmp_path / "b.csv").write_text("\n".join([title, header, *body[::-1]]))
    assert equal(read_bars(tmp_path / "b.csv")[0], read_bars(DATA / "daily_myfxbook.csv")[0])


def test_canonical_file_by_hand() -> None:
    bars, source = read_bars(DATA / "canonical_spread.csv")
    assert bars.time.dtype == np.int64
    assert bars.time[0] == datetime(2021, 3, 26, 4, tzinfo=UTC).timestamp() * SECOND_NS  # opened at 3
    first = [column[0] for column in bars[1:]]
    assert first == [1.18, 1.1801, 1.17943, 1.18004, 1.18 + 0.00008, 1.18004 + 0.00008, 88.0]
    assert (source.first, source.last) == ("2021-03-26T04:00:00Z", "2021-03-29T19:00:00Z")
    assert (source.side, source.label, source.timezone, source.instrument.pip) == ("bid", "open", "UTC", 0.0001)
    assert source.spread_pips is None
    assert source.sha256 == hashlib.sha256((DATA / "canonical_spread.csv").read_bytes()).hexdigest()
    assert source.notes == ["side bid: assumed (--side)"]
    assert source.gap_notes == ["1 weekends and 0 other gaps between bars"]


def test_one_minute_quotes_take_their_date_from_the_file_name(tmp_path: Path) -> None:
    bars, source = read_bars(DATA / "20210326_lean.csv")
    assert source.first == "2021-03-26T00:01:00Z"
    assert source.side == "both"
    assert bars.ask_close[0] == 1.18012
    (tmp_path / "quotes.csv").write_bytes((DATA / "20210326_lean.csv").read_bytes())
    with pytest.raises(DataError, match="date into the file name"):
        read_bars(tmp_path / "quotes.csv")


def test_sides_and_spreads(tmp_path: Path) -> None:
    path = write(tmp_path, rows())
    bid, source = read_bars(path)
    assert source.spread_pips == pytest.approx(0.8)
    np.testing.assert_allclose(bid.ask_open - bid.open, 0.00008)
    ask, _ = read_bars(path, ReadOptions(side="ask", spread_pips=2.0))
    assert np.array_equal(ask.ask_open, bid.open)
    np.testing.assert_allclose(bid.high - ask.high, 0.0002)
    mid, _ = read_bars(path, ReadOptions(side="mid", spread_pips=2.0))
    np.testing.assert_allclose(bid.low - mid.low, 0.0001)
    np.testing.assert_allclose(mid.ask_close - bid.close, 0.0001)
    wide, source = read_bars(path, ReadOptions(pip=0.001))
    np.testing.assert_allclose(wide.ask_open - wide.open, 0.0008)
    _, source = read_bars(write(tmp_path, rows(), "EURUSD_ASK_2021.csv"))
    assert source.side == "ask"
    assert source.notes == ["side ask: from the file name (--side)"]
    assert read_bars(write(tmp_path, rows(), "basket.csv"))[1].side == "bid"


def test_points_are_of_the_last_digit_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "USDJPY.csv"
    lines = [f"2021.03.24\t{i:02}:00:00\t110.000\t110.100\t109.900\t110.050\t7\t0\t8" for i in range(3)]
    names = ("DATE", "TIME", "OPEN", "HIGH", "LOW", "CLOSE", "TICKVOL", "VOL", "SPREAD")
    path.write_text("\n".join(["\t".join(f"<{name}>" for name in names), *lines]))
    bars, source = read_bars(path)
    assert np.allclose(bars.ask_open - bars.open, 0.008, atol=1e-12)
    assert (source.instrument.pip, source.spread_pips) == (0.01, None)


def test_label_and_interval(tmp_path: Path) -> None:
    path = write(tmp_path, rows())
    opened, _ = read_bars(path)
    closed, source = read_bars(path, ReadOptions(label="close"))
    assert source.label == "close"
    assert set(opened.time - closed.time) == {3600 * SECOND_NS}
    with pytest.raises(DataError, match="bars of 3600 s where 60 s are wanted"):
        read_bars(path, ReadOptions(interval_s=60))
    with pytest.raises(DataError, match="1 bars do not tell"):
        read_bars(write(tmp_path, rows(1)))
    assert read_bars(write(tmp_path, rows(1)), ReadOptions(interval_s=3600))[1].interval_s == 3600


def test_what_was_read_is_read_again_alike() -> None:
    """`Source` can be given back as options: the defaults of a model must be options of its feed."""
    for path in sorted(DATA.glob("*.csv")):
        bars, source = read_bars(path)
        known = {key: getattr(source, key) for key in ("side", "timezone", "label", "interval_s", "spread_pips")}
        known["pip"] = source.instrument.pip
        again, _ = read_bars(path, ReadOptions(**known))
        assert equal(bars, again)


@pytest.mark.parametrize(("changes", "kind"), FAULTS)
def test_a_bad_row_is_named_and_dropped_on_request(changes: dict[int, str], kind: str, tmp_path: Path) -> None:
    lines = rows()
    fields = lines[5].split(",")
    for column, text in changes.items():
        fields[column] = text
    path = write(tmp_path, [*lines[:5], ",".join(fields), *lines[6:]])
    assert problems(path) == [(kind, 7)]
    bars, source = read_bars(path, ReadOptions(drop_bad=True))
    assert f"dropped 1 bad row (1 {kind})" in source.notes
    good, _ = read_bars(write(tmp_path, [*lines[:5], *lines[6:]]))
    assert equal(bars, good)


def test_first_and_last_rows_are_watched_too(tmp_path: Path) -> None:
    lines = rows()
    damaged = lines[0].replace("1.1", "1001.1"), lines[-1].replace(",1.", ",1001.")
    assert problems(write(tmp_path, [damaged[0], *lines[1:-1], damaged[1]])) == [("damaged", 2), ("damaged", 13)]


def test_negative_and_absurd_spreads(tmp_path: Path) -> None:
    path = tmp_path / "b.csv"
    spreads = ["0.0001"] * 12
    spreads[3], spreads[8] = "-0.0001", "15"
    body = [f"{row},{spread}" for row, spread in zip(rows(), spreads, strict=True)]
    path.write_text(HEADER.replace("volume", "volume,spread") + "\n".join(body))
    assert problems(path) == [("spread", 5), ("number", 10)] or problems(path) == [("spread", 5), ("spread", 10)]
    lean = (DATA / "lean.csv").read_text().replace("1.18008,", "1.17008,", 1)
    (tmp_path / "lean.csv").write_text(lean)
    assert problems(tmp_path / "lean.csv") == [("spread", 1)]


@pytest.mark.parametrize("factor", [0.5, 0.7, 1.4, 100.0])
def test_a_level_that_moves_is_refused_with_its_line(factor: float, tmp_path: Path) -> None:
    def scaled(line: str) -> str:
        stamp, *prices, volume = line.split(",")
        return ",".join([stamp, *(f"{float(price) * factor:.5f}" for price in prices), volume])

    path = write(tmp_path, [*rows()[:6], *map(scaled, rows()[6:])])
    for drop_bad in (False, True):
        with pytest.raises(DataError, match=rf"line 8: prices move from 1.102 to {1.1 * factor:g} .* stay there"):
            read_bars(path, ReadOptions(drop_bad=drop_bad))


def test_still_minutes_without_any_volume_are_bars(tmp_path: Path) -> None:
    """HistData has no volume: a minute with one tick is no filler.  On a Saturday it is."""
    still = [f"2021-03-{{}}T{h:02}:00:00Z,1.1,1.1,1.1,1.1,0" for h in range(10)]
    assert len(read_bars(write(tmp_path, [line.format(24) for line in still]))[0].time) == 10
    friday = [line.format(26) for line in still]
    assert problems(write(tmp_path, [*friday, still[0].format(27)])) == [("flat", 12)]


def test_filler_is_known_once_there_has_been_volume(tmp_path: Path) -> None:
    """As a feed sees it, which knows no later rows; unless every real bar of the format has volume."""
    still = "1.1,1.1,1.1,1.1,0"
    lines = [f"2021-03-24T{h:02}:00:00Z,{still}" for h in (0, 1)] + rows()[2:4]
    lines += [f"2021-03-24T04:00:00Z,{still}", *rows()[5:]]
    assert problems(write(tmp_path, lines)) == [("flat", 6)]
    path = tmp_path / "dukascopy.csv"
    stamped = [f"24.03.2021 {h:02}:00:00.000,{still}" for h in (0, 1)]
    stamped += [f"24.03.2021 {h:02}:00:00.000,{rows()[h].split(',', 1)[1]}" for h in range(2, 12)]
    path.write_text("Gmt time,Open,High,Low,Close,Volume\n" + "\n".join(stamped))
    assert problems(path) == [("flat", 2), ("flat", 3)]


def test_order_is_judged_by_the_last_good_row(tmp_path: Path) -> None:
    lines = rows()
    swapped = [*lines[:3], lines[4], lines[3], *lines[5:]]
    assert problems(write(tmp_path, swapped)) == [("backward", 6)]
    turned = [*lines[::-1][:3], lines[7], lines[8], *lines[::-1][5:]]  # the newest first, two of them swapped
    assert problems(write(tmp_path, turned)) == [("backward", 5)]


def test_line_numbers_survive_blank_lines_and_ends(tmp_path: Path) -> None:
    lines = rows()
    path = tmp_path / "b.csv"
    text = HEADER + "\n".join([*lines[:4], "", "rubbish", *lines[4:]])
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert problems(path) == [("unparsable", 7)]


def test_holes_are_noted(tmp_path: Path) -> None:
    later = [line.replace("03-24", "04-24") for line in rows()]
    _, source = read_bars(write(tmp_path, [*rows(), *later]))
    assert source.gap_notes == ["0 weekends and 1 other gaps between bars"]
    assert source.gaps == [Problem("hole", 14, "no bars for 732 h, from 2021-03-24T12:00:00Z")]


def test_whole_and_line_by_line_agree() -> None:
    for path in sorted(DATA.glob("*.csv")):
        lines = split_lines(path.read_bytes(), path.name)
        layout = layout_of(lines, path.name)
        fast = read_with_pandas(lines, layout, "UTC") is not None
        assert fast == (path.name not in QUOTED), "a good file must take the fast way"
        check_both_ways(path.read_bytes(), path.name)


@pytest.mark.parametrize(
    "text",
    [
        "1",
        "+1.",
        ".5",
        "1e0",
        " 1",
        "1 ",
        "\t1",
        "1_0",
        "0x1",
        "1d0",
        "1,0",
        "inf",
        "nan",
        "",
        "true",
        "1\r",
        "\x1c1",
        "\x0c1",
        "\u00b2",
        "1" * 400,
    ],
)
def test_both_ways_take_the_same_for_a_number(text: str) -> None:
    check_both_ways("\n".join([HEADER + f"1600000000,1,{text},1,1,1", f"1600000060,1,1,1,1,{text}"]).encode(), "b.csv")


@given(st.lists(st.floats(1.0, 1.1), min_size=8, max_size=40))
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_numbers_come_back_to_the_bit(tmp_path: Path, price: list[float]) -> None:
    """The fast way leaves parsing to pandas, whose default was inexact once."""
    lines = [f"{1_600_000_000 + 60 * i},{p!r},{p!r},{p!r},{p!r},{p!r}" for i, p in enumerate(price)]
    bars, _ = read_bars(write(tmp_path, lines), ReadOptions(interval_s=60))
    assert bars.open.tolist() == bars.volume.tolist() == price


NOT_BARS = [
    (b"", "empty"),
    (b"\n \n", "empty"),
    (HEADER.encode(), "no bars"),
    (HEADER.encode() + b"2021-03-24,x,y,z,w,v\n", "no bars"),
    (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "not a text file"),
    ("time,open".encode("utf-16"), "no bars"),
    (b"1.05," * 2000, "longer than 4096"),
    (b"time;open;high;low;close\n2021-03-24;1,05;1,06;1,04;1,05\n", "decimal comma"),
    (b"Date,Open,High,Low,Close\n03/01/2022,1.1,1.2,1.0,1.1\n", "day or month first.*--dates"),
    (b"03.01.2022 00:00;1.1;1.2;1.0;1.1;5\n", "day or month first.*--dates"),
    (b"Date,Open,High,Low,Close\n3/1/2022,1.1,1.2,1.0,1.1\n", "day or month first.*--dates"),
    (b"2021-03-24\t1,05\t1,06\t1,04\t1,05\n", "decimal comma"),
    (b'2021-03-24,"1,05","1,06","1,04","1,05"\n', "decimal comma"),
    (b"20200101 170000065,1.121200,1.121720,0\n", "ticks"),
    (b"292,1.38676,1.38686\n", "ticks"),
    (b"timestamp,bid,ask\n2013-01-01 22:00:00.295,86.655,86.728\n", "ticks"),
    (b"EUR/USD,20130101 21:59:59.981,1.1,1.2\n", "ticks"),
    (b"USDJPY,,,EURUSD,,,\nDate,Open,,Date,Open,,\n2007/04/02,117.8,,2007/04/02,1.33,,\n", "many pairs"),
    (b"Local time,Open,High,Low,Close,Volume\n01.01.2017 22:00:00.000,1,1,1,1,1\n", "local time, but of where"),
    (b"2021-03-24;true" + b";1.1,1.1" * 4 + b";1.1\n", "not a format I know"),  # commas among other separators
    (b"Price,Close,High,Open\nTicker,X,X,X\nDate,,,\n2021-03-24,1.1,1.2,1.0\n", "no column for low"),
    (b"PK\3\4" + bytes(30), "zip, damaged"),
    (b"title\n" * 9, "not a format I know"),
    (b'{"candles": [{"time": "2021-03-24T00:00:00Z"}]}', "JSON, but no bars.*the keys candles;"),
    (b'{"candles": ' + b"[" * 100_000, "JSON, nested too deeply"),
    (b"{" + b"\n[" * 100_000, "broken JSON .*line 2 column 1"),
    (b'[{"time": 1}]', "JSON, but no bars.*a list of the keys time;"),
    (b",bidhigh,bidlow,bidclose,bidopen\n0,1.2,1.0,1.1,1.1\n", "no time stamps"),
    (b"Date,USD,JPY\n2021-03-24,1.1,120\n", "many currencies"),
    (
        HEADER.encode()
        + b"2012-11-15 15:00,128847,128904,128653,128692,6\n2012-11-15 16:00,128847,128904,128653,128692,6\n",
        "--pip",
    ),
]


@pytest.mark.parametrize(("content", "reason"), NOT_BARS)
def test_no_file_of_bars(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "b.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason) as refused:
        read_bars(path)
    assert refused.value.exit_code == 4
    assert str(path) in str(refused.value)


def test_a_title_that_looks_like_a_header_is_a_title(tmp_path: Path) -> None:
    """Found by fuzzing: it named more columns than the header did."""
    lines = (DATA / "daily_myfxbook.csv").read_text().splitlines()[1:]
    (tmp_path / "b.csv").write_text("\n".join(["x,BidOpen,BidHigh,BidLow,BidClose,AskOpen", *lines]))
    assert equal(read_bars(tmp_path / "b.csv")[0], read_bars(DATA / "daily_myfxbook.csv")[0])


def test_flags_settle_what_was_refused(tmp_path: Path) -> None:
    path = tmp_path / "b.csv"
    path.write_text(
        "Date,Open,High,Low,Close,Adj Close,Volume,x\n03/01/2022,1.1,1.2,1.0,1.1,1.1,0,\n"
        + "04/01/2022,1.1,1.2,1.0,1.1,1.1,0,\n"
    )
    assert read_bars(path, ReadOptions(dates="dmy"))[1].first == "2022-01-04T00:00:00Z"
    assert read_bars(path, ReadOptions(dates="mdy"))[1].first == "2022-03-31T23:00:00Z"
    points = "128847.00000000001,128904.0,128652.99999999999,128692.0,6341"
    lines = [f"2012-11-15 {hour}:00:00,{points}" for hour in (15, 16)]
    path.write_text("\n".join(["Date,open,high,low,close,tick_volume", *lines]))
    bars, source = read_bars(path, ReadOptions(point=0.001))
    np.testing.assert_allclose(bars.close, 128.692, rtol=1e-12)
    np.testing.assert_allclose(bars.ask_open - bars.open, 0.008, rtol=1e-9)
    assert source.instrument.pip == 0.01
    assert read_bars(path, ReadOptions(pip=10.0))[1].instrument.pip == 10.0
    with pytest.raises(DataError, match="look like points"):
        read_bars(path, ReadOptions(pip=0.01))  # what a model remembers of its pip says so too


def test_infinite_prices_warn_nobody(tmp_path: Path) -> None:
    path = tmp_path / "b.csv"
    opens = ["1e400", "-1e400", *["1.1"] * 6]
    lines = [f"2021-03-24T{h:02}:00:00Z,{o},1.2,1.0,1.1" for h, o in enumerate(opens)]
    path.write_text("\n".join(["time,open,high,low,close", *lines]))
    assert problems(path) == [("number", 2), ("number", 3)]
    path.write_text("\n".join(["time,open,high,low,close", *lines[:2]]))
    with pytest.raises(DataError):
        read_bars(path)


def test_endless_files_are_refused_unread() -> None:
    with pytest.raises(DataError, match="a device"):
        read_bars("/dev/zero")


def test_bars_of_a_month_are_the_longest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="up to 31 days"):
        read_bars(write(tmp_path, ["0000000001,1,1,1,1,1", "7000000001,1,1,1,1,1"]))
    with pytest.raises(DataError, match="no bars"):
        read_bars(write(tmp_path, ["9999999999,1,1,1,1,1", "9999999999999,1,1,1,1,1"]))


@pytest.mark.parametrize(
    "bad",
    [
        {"dates": "ymd"},
        {"point": 0.0},
        {"side": "left"},
        {"side": "both"},
        {"label": "mid"},
        {"pip": -1.0},
        {"pip": 0.0},
        {"spread_pips": -1.0},
    ],
)
def test_options_that_make_no_sense(bad: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(DataError):
        read_bars(write(tmp_path, rows()), replace(ReadOptions(), **bad))  # type: ignore[arg-type]


def test_no_file_at_all(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing.csv", tmp_path / "a\0b"):
        with pytest.raises(DataError):
            read_bars(path)


def read_or_refuse(path: Path, content: bytes, drop_bad: bool) -> None:
    path.write_bytes(content)
    try:
        bars, source = read_bars(path, ReadOptions(drop_bad=drop_bad))
    except DataError:
        return
    check_both_ways(content, path.name)
    assert len(bars.time) == source.rows > 0
    assert (np.diff(bars.time) > 0).all()
    for column in bars[1:7]:
        assert ((column > 0) & np.isfinite(column)).all()
    assert (bars.high >= bars.low).all()
    assert (bars.ask_open >= bars.open).all()


@given(st.data())
@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_files(tmp_path: Path, data: st.DataObject) -> None:
    content = data.draw(st.sampled_from(sorted(DATA.glob("*.csv")))).read_bytes()
    for _ in range(data.draw(st.integers(1, 4))):
        at, cut = data.draw(st.integers(0, len(content))), data.draw(st.integers(0, 40))
        piece = data.draw(
            st.one_of(st.binary(max_size=3), st.text("0123456789.,;-+eE\t\n\r ", max_size=6).map(str.encode))
        )
        content = content[:at] + piece + content[at + cut :]
    read_or_refuse(tmp_path / "20210101.csv", content, data.draw(st.booleans()))


@real
@pytest.mark.parametrize(("name", "count", "side", "first", "last"), REAL_FILES)
def test_real_files(name: str, count: int, side: str, first: str, last: str) -> None:
    bars, source = read_bars(REAL / name)
    assert (source.rows, source.side, source.first, source.last) == (count, side, first, last)
    assert source.problems == []
    assert len(bars.time) == count


@real
def test_holes_of_a_real_terminal_are_noted() -> None:
    _, source = read_bars(REAL / "EURUSD_M1_mt4_2022-08_10.csv")
    assert Problem("hole", 6541, "no bars for 772 h, from 2022-08-19T20:59:00Z") in source.gaps


def test_the_bundled_bars() -> None:
    bars, source = read_bars(SAMPLE, ReadOptions(side="ask"))
    assert source.rows == 6225
    assert source.sha256 == "28398b7edff9f74860d35a6f3c263f08e15c55264316dc07737d459d8688d7aa"
    assert bars.ask_open[0] == 1.05236
