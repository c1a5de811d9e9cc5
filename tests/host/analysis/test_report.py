"""The report says what the ledger booked, in every file; and a browser shows all of it."""

import csv
import io
import json
import re
import shutil
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from host.analysis.page_picture import BROWSERS, draw_page
from host.analysis.record import TradingRecord, trade_targets
from host.analysis.report import (
    ANALYSIS_FILES,
    ReportContext,
    action_shares,
    build_report,
    hours,
    join_records,
    learning_curves,
    months,
    write_html,
    write_report,
)
from host.analysis.summary import ReportError, explain_opportunity, print_summary
from host.commands.report import remake_report
from kernels.market.bars import SECOND_NS, Bars, slice_bars
from kernels.market.ledger import ENTRY_BAR, ENTRY_PX, PROFIT_PX, new_market
from tests.oracles.naive import wandering_bars

PIP, HOUR_NS = 1e-4, 3600 * SECOND_NS
MARKET = new_market(range_px=5e-4, pip_px=PIP, interval_ns=HOUR_NS, slippage_px=1e-5, swap_long_px=-5e-5)
SEEN = {
    "bars": 4096,
    "best": {"time": "2017-10-20T10:00:00Z", "side": "BUY", "edge_pips": 0.84, "cost_pips": 1.1},
    **{"median_edge_pips": 0.12, "median_cost_pips": 1.05, "near": {"50%": 0.031, "100%": 0.0}},
    **{"spread_pips": 0.8, "first_entry_spread_pips": 0.54, "often_entry_spread_pips": -0.1, "direction_z": 0.7},
    "calibration": {
        "bins": [
            {"predicted": None, "observed": None, "bars": 0},
            *({"predicted": p, "observed": 0.5 + (p - 0.5) / 2, "bars": 900} for p in (0.4, 0.5, 0.6)),
        ],
        **{"nll": 2.07, "uniform_nll": 2.079},
    },
}
METRICS = [{"episodes": 32 * i, "policy": 1 / i, "exposure": 0.1 * (i % 3)} for i in range(1, 400)]


def traded(bars: Bars, seed: int = 0, length: int = 15) -> TradingRecord:
    """Long and short in turn, with pauses, by chance."""
    n = len(bars.time) - 1
    side = np.random.default_rng(seed).choice([-1.0, 1.0], n // (2 * length) + 1)
    t = np.arange(n)
    return trade_targets(bars, np.where(t % (2 * length) < length, side[t // (2 * length)], 0.0), MARKET)


def folds(n: int, count: int) -> list[TradingRecord]:
    bars = hourly_bars(n + 1)
    cuts = np.linspace(0, n, count + 1).astype(int).tolist()
    return [traded(slice_bars(bars, a, b + 1), a) for a, b in pairwise(cuts)]


def hourly_bars(n: int) -> Bars:
    bars = wandering_bars(5, n, 60)
    return bars._replace(time=np.int64(1_500_000_400 * SECOND_NS) + HOUR_NS * np.arange(n))


def context(**options: Any) -> ReportContext:
    return ReportContext({"title": "EURUSD <b>, H1", "file": "a.csv"}, opportunity=SEEN, metrics=METRICS, **options)


RECORDS = folds(2400, 3)
NET = sum(float(record.equity[-1]) for record in RECORDS) / PIP
DOCUMENT = build_report(RECORDS, context(trials=9))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "new" / "folder"
    write_report(folder, DOCUMENT, RECORDS)
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_document_is_json_and_adds_up() -> None:
    assert json.loads(json.dumps(DOCUMENT, allow_nan=False)).keys() == DOCUMENT.keys()
    assert DOCUMENT["schema"] == 1
    assert DOCUMENT["span"]["bars"] == 2400
    assert DOCUMENT["statistics"]["Net Profit [pips]"] == pytest.approx(NET)
    assert DOCUMENT["costs"]["taken"]["net"] == pytest.approx(NET)
    same = {row["name"]: row["net_pips"] for row in DOCUMENT["costs"]["sensitivity"]}
    assert same["spread x 1"] == pytest.approx(NET)
    for parts in (DOCUMENT["months"], DOCUMENT["folds"]):
        assert len(parts) > 1
        assert sum(part["net_pips"] for part in parts) == pytest.approx(NET)
    assert np.sum(DOCUMENT["hours"]) == pytest.approx(NET)
    low, high = DOCUMENT["intervals"]["Net Profit [pips]"]
    assert low < NET < high
    assert {"flat", "long", "random"} < DOCUMENT["baselines"].keys()
    assert any("9 trials" in reason for reason in DOCUMENT["verdict"]["reasons"])


def test_joined_records_keep_their_trades() -> None:
    joined = join_records(RECORDS)
    assert len(joined.bars.time) == len(joined.target) + 1 == len(joined.equity) + 1
    assert joined.trades[:, PROFIT_PX].sum() == pytest.approx(joined.equity[-1]) == pytest.approx(NET * PIP)
    entry = joined.trades[:, ENTRY_BAR].astype(int)
    bid, ask = joined.bars.open[entry] - 1e-5, joined.bars.ask_open[entry] + 1e-5
    assert (np.isclose(joined.trades[:, ENTRY_PX], bid) | np.isclose(joined.trades[:, ENTRY_PX], ask)).all()
    assert (np.diff(joined.trades[:, ENTRY_BAR]) > 0).all()


def test_pips_count_in_the_hour_and_month_in_which_a_bar_ends() -> None:
    bars = hourly_bars(48)
    start = np.datetime64("2017-07-31T22:00", "ns").astype(np.int64)  # a Monday
    bars = bars._replace(time=start + HOUR_NS * np.arange(48))
    record = trade_targets(bars, np.zeros(47), MARKET)._replace(equity=np.arange(1.0, 48.0) * PIP)
    assert months(record) == [
        {"month": "2017-07", "net_pips": pytest.approx(2)},
        {"month": "2017-08", "net_pips": pytest.approx(45)},
    ]
    table = hours(record)
    assert (table[22, 0], table[23, 0], table[0, 1]) == (pytest.approx(1), pytest.approx(1), pytest.approx(1))
    assert table[21, 0] == table[:, 3:].sum() == 0


def test_actions_are_those_of_act() -> None:
    share = action_shares(np.array([0.0, 1.0, 1.0, 0.0, -1.0, 1.0, 0.5, 0.5]))
    assert {name: share[name] * 8 for name in share} == {
        **{"HOLD": 3, "BUY": 3, "SELL": 1, "CLOSE": 1},
        **{"long": 5, "flat": 2, "short": 1},
    }


def test_learning_curves_are_thinned_and_whole() -> None:
    curves = learning_curves(METRICS)
    assert curves.keys() == {"episodes", "policy", "exposure"}
    assert len(curves["policy"]) == 200
    assert (curves["episodes"][0], curves["episodes"][-1]) == (32, 32 * 399)
    assert learning_curves([]) == {}


def test_the_tables_say_what_the_ledger_booked(folder: Path) -> None:
    joined = join_records(RECORDS)
    trades, equity, days = (rows(folder / name) for name in ("trades.csv", "equity.csv", "daily.csv"))
    assert sum(float(row["PnL [pips]"]) for row in trades) == pytest.approx(NET, abs=0.01)
    assert float(equity[-1]["Equity [pips]"]) == pytest.approx(NET, abs=1e-3)
    assert sum(float(row["Net [pips]"]) for row in days) == pytest.approx(NET, abs=0.01)
    assert sum(float(row["Return"]) for row in days) * joined.bars.close[0] / PIP == pytest.approx(NET)
    assert (len(trades), len(equity)) == (len(joined.trades), len(joined.target))
    opened = np.datetime64(trades[0]["EntryTime"].removesuffix("Z"), "ns").astype(np.int64)
    assert opened == joined.bars.time[int(joined.trades[0, ENTRY_BAR])] - HOUR_NS
    assert trades[0]["Duration [s]"] == str(15 * 3600)


def test_the_summary_says_it_all_in_any_encoding() -> None:
    for encoding in ("utf-8", "ascii"):
        file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        print_summary(DOCUMENT, file)
        file.flush()
        text = file.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
        assert f"Verdict: {DOCUMENT['verdict']['verdict']}" in text
        assert f"{NET:,.2f}" in text
        assert "ma_cross" in text
        assert max(map(len, text.partition("Verdict")[0].splitlines())) <= 80
        assert "expected most of a BUY at 2017-10-20T10:00:00Z: 0.84 pips, where a round trip cost 1.10." in text


def test_why_it_stayed_out_is_said_in_figures() -> None:
    text = " ".join(explain_opportunity(DOCUMENT))
    assert "3.1% of the bars promised 50% of the cost" in text
    assert "at its best bar with a spread of 0.54 or less, and at 1 % of the bars at no spread" in text
    assert "0.009 nats better than no forecast" in text
    assert "could not tell rises from falls (0.7 standard errors" in text
    sure = {"opportunity": {**SEEN, "direction_z": 3.0}}
    assert "could not tell" not in " ".join(explain_opportunity(sure))
    assert "too few simulations" in explain_opportunity({"opportunity": {"best": None}})[0]
    assert explain_opportunity({"opportunity": None}) == []


def test_a_caveat_stands_with_the_verdict() -> None:
    document = build_report(RECORDS[:1], context(caveat="Seen in training."))
    assert document["verdict"]["reasons"][-1] == "Seen in training."
    assert document["folds"] == []


def test_without_bokeh_all_but_the_page_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("host.analysis.html_report", "host.analysis.charts"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name in ("bokeh", "bokeh.embed", "bokeh.models"):
        monkeypatch.setitem(sys.modules, name, None)
    write_report(tmp_path, DOCUMENT, RECORDS)
    assert {path.name for path in tmp_path.iterdir()} == {*ANALYSIS_FILES} - {"report.html"}
    said = capsys.readouterr().err
    assert "pip install '.[report]'" in said
    assert len(said.splitlines()) == 1
    with pytest.raises(ReportError, match="Bokeh"):
        write_html(tmp_path)


def test_a_folder_without_a_report_is_refused_with_a_way_out(tmp_path: Path) -> None:
    pytest.importorskip("bokeh", reason="without Bokeh there is no page")
    with pytest.raises(ReportError, match=r"report.json.*backtest --report"):
        write_html(tmp_path)
    (tmp_path / "report.json").write_text('{"schema": 99}', encoding="utf-8")
    with pytest.raises(ReportError, match="schema 99"):
        write_html(tmp_path)


def test_the_page_needs_no_network_and_no_trust(folder: Path) -> None:
    pytest.importorskip("bokeh", reason="without Bokeh there is no page")
    page = folder / "report.html"
    text = page.read_text(encoding="utf-8")
    assert page.stat().st_size < 3_000_000
    assert not re.search(r"<(script|link|img|iframe)[^>]*(src|href)=\"?(https?:)?//", text)
    assert "EURUSD &lt;b&gt;, H1" in text
    assert "EURUSD <b>, H1" not in text.replace("\\u003c", "<").partition("</title>")[2].partition("<script")[0]


def test_ten_years_of_hours_take_five_seconds(tmp_path: Path) -> None:
    pytest.importorskip("bokeh", reason="without Bokeh there is no page")
    bars = hourly_bars(62_001)
    record = traded(bars)
    assert len(record.trades) > 2000
    write_report(tmp_path / "warm", DOCUMENT, RECORDS)  # imports and kernels are not the report's own
    begin = time.process_time()
    write_report(tmp_path, build_report([record], context()), [record])
    assert time.process_time() - begin < 5
    assert (tmp_path / "report.html").stat().st_size < 3_000_000


def test_the_page_is_made_again_from_its_files(folder: Path) -> None:
    pytest.importorskip("bokeh", reason="without Bokeh there is no page")
    (folder / "report.html").unlink()
    remake_report(folder, None, 1400)
    assert (folder / "report.html").stat().st_size > 100_000


@pytest.mark.parametrize("width", [400, 1400])
def test_a_browser_draws_every_chart(folder: Path, tmp_path: Path, width: int) -> None:
    pytest.importorskip("bokeh", reason="without Bokeh there is no page")
    image = pytest.importorskip("PIL.Image", reason="Bokeh brings Pillow, which reads the pictures")
    if not any(map(shutil.which, BROWSERS)):
        pytest.skip(f"none of {BROWSERS} is here")
    said = draw_page(folder / "report.html", tmp_path / "page.png", width)
    messages = [line for line in said.splitlines() if "CONSOLE" in line and "[bokeh" not in line]
    assert not [line for line in messages if "ResizeObserver loop" not in line]
    assert "document idle" in said
    pixels = np.asarray(image.open(tmp_path / "page.png").convert("RGB")).astype(int)
    assert pixels.shape[1] == width
    ground = pixels[-1, -1]
    assert (pixels[:, -4:] == ground).all(), "wider than the screen"
    edges = [80, width // 2, width - 80] if width > 880 else [12, width - 12]
    for (left, right), text in zip(pairwise(edges), (100, 190), strict=False):  # text stands on the left
        strip = pixels[320:, left + 24 : right - 24]
        is_blank = (strip == 255).all(axis=(1, 2)) | (strip == ground).all(axis=(1, 2))
        assert longest_run(is_blank) < text, "a chart is empty"
    for name, colour in {"equity": "#2b62d9", "profit": "#17805a", "loss": "#c8412f"}.items():
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(pixels - wanted).max(axis=2) < 40).sum() > 500, name


def longest_run(mask: Any) -> int:
    """Of True."""
    edges = np.flatnonzero(np.diff(mask, prepend=False, append=False))
    return int((edges[1::2] - edges[::2]).max(initial=0))
