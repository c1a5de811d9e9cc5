"""`render_html`: one page for a browser without network, from the files that `write_report` wrote.

The page is made of cards.  A card is a title, a line that says what is seen, and a chart or a table.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
from bokeh.embed import components
from bokeh.models import ColumnDataSource
from bokeh.resources import Resources

from host.analysis import charts
from host.analysis.summary import SCHEMA, ReportError, explain_opportunity, show

EQUITY_PIECE = 20_000  # rows: as texts, the times of a year of minutes take 30 MB
TILES = (
    *("Net Profit [pips]", "Sharpe Ratio", "Max. Drawdown [pips]", "# Trades"),
    *("Win Rate [%]", "Profit Factor", "Exposure Time [%]", "Buy & Hold [pips]"),
)
VERDICT_COLOURS = {"edge": charts.GOOD, "no edge": charts.BAD}
FEW_TRADES = 10
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
LEARNING_TITLES = {
    "reward_per_bar": "Reward a bar, in ranges, of the training episodes",
    "mean_return": "Mean return, of the last 100 episodes",
    "exposure": "Share of bars in the market, of the training episodes",
    "policy": "Policy loss",
    "value": "Value loss",
    "chance": "Chance loss",
    "chance_nll": "Forecast of the next bar, nats (lower is better)",
    "direction_z": "Evidence that directions are told, standard errors",
}
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light"><link rel="icon" href="data:,"><title>{title}</title>
<style>{style}</style>
{library}</head><body><main>
{body}
</main>
{script}
</body></html>
"""
STYLE = """
*{box-sizing:border-box}
body{margin:0;background:#f3f5f8;color:#1c232d;font:15px/1.5 FONT;-webkit-text-size-adjust:100%}
main{max-width:1240px;margin:0 auto;padding:20px 16px 48px}
h1{font-size:26px;line-height:1.2;margin:0 0 4px;letter-spacing:-.01em}
h2{font-size:16px;margin:0}h2.group{font-size:19px;margin-top:28px}
p{margin:4px 0}
.sub,.note{color:#5b6573}.note{font-size:13px}
.card,.tile{background:#fff;border:1px solid #e1e6ed;border-radius:12px;min-width:0}
.card{padding:16px 18px;margin-top:16px}
.card>.note{margin:0 0 8px}
.verdict{border-left:6px solid var(--tone)}
.verdict b{display:inline-block;color:#fff;background:var(--tone);border-radius:99px;padding:2px 14px;
 font-size:17px;letter-spacing:.02em}
.verdict ul{margin:10px 0 0;padding-left:20px}
.tiles{display:grid;grid-template-columns:repeat(4,1fr);gap:12px;margin-top:16px}
.tile{padding:12px 14px}.tile span{display:block;color:#5b6573;font-size:12px}
.tile strong{font-size:22px;font-weight:650;font-variant-numeric:tabular-nums}
.tile small{display:block;color:#5b6573;font-size:12px}
.pair{display:grid;grid-template-columns:1fr;column-gap:16px}
@media(min-width:880px){.pair{grid-template-columns:1fr 1fr}.pair>:last-child:nth-child(odd){grid-column:1/-1}
 .columns{columns:2;column-gap:40px}}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:14px}
th,td{text-align:right;padding:5px 8px;border-bottom:1px solid #edf0f4;white-space:nowrap}
th{font-weight:600;color:#5b6573}th:first-child,td:first-child{text-align:left}
tr:last-child td{border-bottom:0}
.months td{border:2px solid #fff;border-radius:6px;padding:6px 4px;text-align:center}
.months th{text-align:center;padding:4px}.months td:first-child{font-weight:600}
.stack{display:flex;height:26px;border-radius:6px;overflow:hidden;margin:8px 0 4px}
.legend{display:flex;flex-wrap:wrap;gap:2px 18px;font-size:13px;color:#5b6573;margin-bottom:14px}
.legend i{display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:6px}
dl{margin:0}dl div{display:flex;justify-content:space-between;gap:12px;padding:3px 0;border-bottom:1px solid #edf0f4;
 break-inside:avoid;font-size:14px}dt{color:#5b6573}dd{margin:0;text-align:right;font-variant-numeric:tabular-nums}
dd small{color:#5b6573;margin-left:8px}
@media(max-width:560px){main{padding:14px 10px 40px}h1{font-size:21px}.card{padding:12px 10px}
 .tiles{grid-template-columns:1fr 1fr;gap:10px}.tile strong{font-size:19px}
 table{font-size:12px}th,td{padding:5px 4px}.months td{padding:5px 1px;font-size:10px;border-width:1px}
 .months th{font-size:10px;padding:2px 0}
 dl div{font-size:13px}}
""".replace("FONT", charts.FONT)
SHARE_COLOURS = {
    "long": charts.GOOD,
    "flat": "#cfd6df",
    "short": charts.BAD,
    "HOLD": "#cfd6df",
    "BUY": charts.GOOD,
    "SELL": charts.BAD,
    "CLOSE": charts.AMBER,
}


def render_html(folder: Path) -> str:
    """The page of report.json, equity.csv and trades.csv in `folder`; ReportError where they cannot be read."""
    try:
        document = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        if document["schema"] != SCHEMA:
            raise ReportError(f"{folder / 'report.json'}: schema {document['schema']}, this program reads {SCHEMA}")
        pieces = pd.read_csv(folder / "equity.csv", chunksize=EQUITY_PIECE)
        equity = pd.concat([piece.assign(Time=pd.to_datetime(piece["Time"])) for piece in pieces], ignore_index=True)
        trades = pd.read_csv(folder / "trades.csv")
        cards, plots = list[str](), dict[str, Any]()
        for title, note, contents in sections(document, equity, trades):
            cards.append(card(title, note, contents, plots))
    except (OSError, ValueError, LookupError) as error:
        raise ReportError(
            f"{folder}: its report cannot be read: {error}; write it again with backtest --report"
        ) from None
    return whole_page(str(document["source"].get("title", "swt")), header(document) + "".join(cards), plots)


def whole_page(title: str, body: str, plots: dict[str, Any]) -> str:
    """A page with the charts `plots` at their places in `body`, and the library that draws them."""
    script, places = components(plots)
    for name, place in places.items():
        body = body.replace(f"<!--{name}-->", place)
    library = Resources(mode="inline", components=["bokeh"]).render_js()
    return PAGE.format(title=escape(title), style=STYLE, library=library, body=body, script=script)


def card(title: str, note: str, contents: list[Any], plots: dict[str, Any]) -> str:
    """A card with parts that are HTML or charts, which are added to `plots` by the name of their place."""
    inside = ""
    for part in contents:
        name = f"chart{len(plots)}"
        inside += part if isinstance(part, str) else f"<!--{name}-->"
        plots |= {} if isinstance(part, str) else {name: part}
    if not title:  # opens or closes a row
        return inside
    return f'<section class="card"><h2>{escape(title)}</h2><p class="note">{escape(note)}</p>{inside}</section>'


def header(document: dict[str, Any]) -> str:
    """Title, verdict with its reasons, and the figures that are read first."""
    source, span, found, bounds = (document[key] for key in ("source", "span", "statistics", "intervals"))
    verdict = document["verdict"]
    facts = " · ".join(f"{key} {value}" for key, value in source.items() if key != "title" and value is not None)
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in verdict["reasons"])
    tone = VERDICT_COLOURS.get(verdict["verdict"], charts.AMBER)
    tiles = []
    for name in TILES:
        low_high = bounds.get(name)
        small = f"<small>95 %: {' to '.join(brief(value) for value in low_high)}</small>" if low_high else ""
        tiles.append(f'<div class="tile"><span>{escape(name)}</span><strong>{brief(found[name])}</strong>{small}</div>')
    return (
        f"<header><h1>{escape(str(source.get('title', '')))}</h1>"
        f'<p class="sub">{span["first"][:10]} to {span["last"][:10]} · {span["bars"]:,} bars, {span["days"]:,} days, '
        f'after all costs</p><p class="note">{escape(facts)}</p></header>'
        f'<section class="card verdict" style="--tone:{tone}"><b>{escape(verdict["verdict"].capitalize())}</b>'
        f'<ul>{reasons}</ul></section><div class="tiles">{"".join(tiles)}</div>'
    )


def brief(value: Any) -> str:
    """A figure for a tile: no decimals from 1,000 on."""
    return f"{value:,.0f}" if isinstance(value, float) and abs(value) >= 1000 else show(value)


def sections(
    document: dict[str, Any], equity: pd.DataFrame, trades: pd.DataFrame
) -> Iterator[tuple[str, str, list[Any]]]:
    """Title, note and parts of each card, HTML or charts; a row of two cards lies in `pair`."""
    yield (
        "Equity, drawdown and trades",
        "Drag to move; the bar above has zooms by box and by wheel. The three move together.",
        (charts.timeline(equity, trades)),
    )
    seen = document["opportunity"]
    if seen is not None:
        few = document["statistics"]["# Trades"] <= FEW_TRADES
        lines = "".join(f"<p>{escape(line)}</p>" for line in explain_opportunity(document))
        edges = [charts.edges(seen)] if seen["best"] else []
        yield (
            "Why so few trades?" if few else "What it saw",
            "Edge that it expected of an entry, and its cost.",
            ([lines, *edges]),
        )
    yield "", "", ['<div class="pair">']
    names = {"agent": document["statistics"]["Net Profit [pips]"]}
    names |= {name: row["net_pips"] for name, row in document["baselines"].items()}
    yield (
        "Beside policies without knowledge",
        "Same bars and costs. random: as many trades at random times; policy head: the agent without its search.",
        [charts.bars(list(names), list(names.values()), "net pips")],
    )
    taken = document["costs"]["taken"]
    pips = [-value if name not in ("gross", "net") else value for name, value in taken.items()]
    yield "What each cost took", "Gross profit less the costs is net profit.", [charts.bars(list(taken), pips, "pips")]
    rows = document["costs"]["sensitivity"]
    even = show(document["costs"]["break_even_spread_pips"])
    yield (
        "If costs and fills were worse",
        f"The same decisions; it breaks even at a spread of {even} pips.",
        [charts.bars([row["name"] for row in rows], [row["net_pips"] for row in rows], "net pips")],
    )
    if seen is not None:
        yield (
            "Calibration",
            "Of the forecasts of a rise; on the line they are right. Larger: more bars.",
            [charts.reliability(seen["calibration"]["bins"])],
        )
    yield "By hour and weekday", "Net pips; green earned, red lost.", [charts.heat_map(document["hours"])]
    if document["folds"]:
        yield "Folds", "Each trained anew on the bars before it.", [charts.folds(document["folds"])]
    yield "Actions", "Shares of the bars by position, and of the decisions by action.", [shares(document["actions"])]
    yield "", "", ["</div>"]
    yield "By month", "Net pips.", [months(document["months"])]
    yield (
        "Statistics",
        "By the names of backtesting.py; intervals of 95 %, stationary bootstrap of days.",
        [statistics(document)],
    )
    yield from learning(document["learning"])


def shares(actions: dict[str, float]) -> str:
    """Two stacked bars with their legends."""
    text = ""
    for names in (("long", "flat", "short"), ("HOLD", "BUY", "SELL", "CLOSE")):
        parts = "".join(
            f'<div style="width:{100 * actions[name]:.3f}%;background:{SHARE_COLOURS[name]}"></div>' for name in names
        )
        keys = "".join(
            f'<span><i style="background:{SHARE_COLOURS[name]}"></i>{name} {actions[name]:.1%}</span>' for name in names
        )
        text += f'<div class="stack">{parts}</div><div class="legend">{keys}</div>'
    return text


def months(rows: list[dict[str, Any]]) -> str:
    """A table of years and months."""
    pips = {row["month"]: row["net_pips"] for row in rows}
    largest = max(abs(value) for value in pips.values()) or 1.0
    text = "<tr><th></th>" + "".join(f"<th>{name}</th>" for name in (*MONTHS, "Year")) + "</tr>"
    for year in sorted({month[:4] for month in pips}):
        values = [pips.get(f"{year}-{month:02}") for month in range(1, 13)]
        cells = "".join(
            f'<td style="background:{charts.mix(value / largest)}">{round(value):,}</td>'
            if value is not None
            else "<td></td>"
            for value in values
        )
        total = sum(value for value in values if value is not None)
        text += f"<tr><td>{year}</td>{cells}<td><strong>{round(total):,}</strong></td></tr>"
    return f'<div class="scroll"><table class="months">{text}</table></div>'


def statistics(document: dict[str, Any]) -> str:
    """Every statistic with its interval, and the evidence beside luck."""
    found, bounds, luck = document["statistics"], document["intervals"], document["significance"]
    rows = {**found, "Profit Factor (Days)": None} if "Profit Factor (Days)" in bounds else found
    rows = rows | {
        "Trials": luck["trials"],
        "Deflated Sharpe (probability)": luck["deflated_sharpe"],
        "Min. Track Record [days]": luck["min_track_record_days"],
        "Backtest Overfitting (probability)": luck["backtest_overfitting"],
        "Break-even Spread [pips]": document["costs"]["break_even_spread_pips"],
    }
    text = ""
    for name, value in rows.items():
        low_high = bounds.get(name)
        interval = f"<small>{' to '.join(map(show, low_high))}</small>" if low_high else ""
        figure = "" if value is None and low_high else escape(show(value))
        text += f"<div><dt>{escape(name)}</dt><dd>{figure}{interval}</dd></div>"
    return f'<dl class="columns">{text}</dl>'


def learning(curves: dict[str, list[float]]) -> Iterator[tuple[str, str, list[Any]]]:
    """A card for each metric of the training."""
    names = [name for name in LEARNING_TITLES if name in curves]
    if names and len(curves["episodes"]) > 1:
        yield "", "", ['<div class="pair">']
        source = ColumnDataSource({"x": curves["episodes"], **curves})
        for name in names:
            title, _, unit = LEARNING_TITLES[name].partition(", ")
            yield title, unit, [charts.learning([source], name)]
        yield "", "", ["</div>"]
