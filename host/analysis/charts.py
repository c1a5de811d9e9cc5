"""The charts of `report.html`, as Bokeh draws them: each takes a part of the report's document.

Zoom and pan of price, equity and drawdown are linked, as in backtesting.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from bokeh.models import (
    BoxZoomTool,
    ColumnDataSource,
    CustomJS,
    DatetimeTickFormatter,
    HoverTool,
    NumeralTickFormatter,
    PanTool,
    Range1d,
    ResetTool,
    Span,
    WheelZoomTool,
    Whisker,
)
from bokeh.plotting import figure
from numpy.typing import NDArray

GOOD, BAD, INK, BLUE, AMBER, FAINT = "#17805a", "#c8412f", "#5b6573", "#2b62d9", "#b7791f", "#e4e8ee"
MAX_POINTS = 16_000  # of a line; a bucket keeps the highest and the lowest price and equity
BUCKET_POINTS = 4
FEW_TRADES = 250
DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
FIT_Y = """
const x = source.data.x, from = cb_obj.start, to = cb_obj.end;
let low = Infinity, high = -Infinity;
for (const name of names) {
  const y = source.data[name];
  for (let i = 0; i < x.length; i++) if (x[i] >= from && x[i] <= to && isFinite(y[i])) {
    if (y[i] < low) low = y[i];
    if (y[i] > high) high = y[i];
  }
}
if (low > high) return;
const margin = 0.06 * (high - low) || 1;
range.setv({start: low - margin, end: high + margin});
"""


def new_figure(height: int, **options: Any) -> Any:
    """An empty figure as wide as its place, in the style of the report."""
    plot = figure(
        height=height, sizing_mode="stretch_width", min_border=6, **{"toolbar_location": None, "tools": "", **options}
    )
    plot.outline_line_color = plot.background_fill_color = plot.border_fill_color = None
    plot.grid.grid_line_color = FAINT
    for axis in plot.axis:
        axis.axis_line_color = axis.major_tick_line_color = axis.minor_tick_line_color = None
        axis.major_label_text_color = axis.axis_label_text_color = INK
        axis.major_label_text_font = axis.axis_label_text_font = FONT
        axis.major_label_text_font_size, axis.axis_label_text_font_size = "11px", "12px"
        axis.axis_label_text_font_style = "normal"
    return plot


def thin(price: NDArray[np.float64], equity: NDArray[np.float64]) -> NDArray[np.int64]:
    """Ascending indices of at most about MAX_POINTS of n points that keep the extremes of both lines."""
    n = len(price)
    size = -(-n * BUCKET_POINTS // MAX_POINTS)
    if n <= MAX_POINTS:
        return np.arange(n)
    full = n // size * size
    first = np.arange(0, full, size)
    found = [
        first + f(line[:full].reshape(-1, size), axis=1) for line in (price, equity) for f in (np.argmin, np.argmax)
    ]
    return np.unique(np.concatenate([*found, np.arange(full, n), [0]]))


def timeline(equity: pd.DataFrame, trades: pd.DataFrame) -> list[Any]:
    """Equity, drawdown and the price with the trades, over one axis of time."""
    pips = equity["Equity [pips]"].to_numpy(float)
    price = equity["Close"].to_numpy(float)
    fall = pips - np.maximum(np.maximum.accumulate(pips), 0.0)
    at = thin(price, pips)
    lines = {"equity": pips, "drawdown": fall, "price": price}
    data = {name: line[at].astype(np.float32) for name, line in lines.items()}
    source = ColumnDataSource({"x": milliseconds(equity["Time"].iloc[at]), **data})
    x = source.data["x"]
    shared = Range1d(x[0], x[-1], bounds=(x[0], x[-1]) if x[-1] > x[0] else None)
    plots = [
        time_figure(200, shared, source, "equity", "Equity, pips"),
        time_figure(110, shared, source, "drawdown", "Drawdown"),
        time_figure(300, shared, source, "price", "Price"),
    ]
    plots[0].varea("x", 0, "equity", source=source, fill_color=BLUE, fill_alpha=0.10)
    plots[0].line("x", "equity", source=source, line_color=BLUE, line_width=1.6)
    plots[0].add_layout(Span(location=0, dimension="width", line_color=INK, line_width=1, line_alpha=0.6))
    plots[1].varea("x", 0, "drawdown", source=source, fill_color=BAD, fill_alpha=0.25)
    plots[1].line("x", "drawdown", source=source, line_color=BAD, line_width=1)
    plots[2].line("x", "price", source=source, line_color=INK, line_width=1, line_alpha=0.8)
    draw_trades(plots[2], trades)
    for plot in plots[:2]:
        plot.xaxis.visible = False
    return plots


def time_figure(height: int, shared: Any, source: Any, name: str, label: str) -> Any:
    """A figure over time that pans and zooms with the others; its y axis fits what is seen of the line `name`."""
    line = source.data[name]
    low, high = float(min(line)), float(max(line))
    margin = 0.06 * (high - low) or 1.0
    pan, wheel = PanTool(dimensions="width"), WheelZoomTool(dimensions="width")
    hover = HoverTool(
        mode="vline",
        tooltips=[("", "@x{%F %H:%M}"), (label, f"@{name}{{0,0.[0000]}}")],
        formatters={"@x": "datetime"},
        point_policy="follow_mouse",
        line_policy="nearest",
        renderers=[],
    )
    plot = new_figure(
        height,
        x_range=shared,
        y_range=Range1d(low - margin, high + margin),
        x_axis_type="datetime",
        tools=[pan, wheel, BoxZoomTool(dimensions="width"), ResetTool(), hover],
        toolbar_location="above" if name == "equity" else None,
        active_drag=pan,
        active_scroll=None,
    )
    hover.renderers = [plot.line("x", name, source=source, line_alpha=0)]
    plot.toolbar.logo, plot.yaxis.axis_label, plot.min_border_left = None, label, 72
    plot.xaxis.formatter = DatetimeTickFormatter(days="%d %b", months="%b %Y", hours="%d %b %H:%M", years="%Y")
    if name != "price":
        plot.yaxis.formatter = NumeralTickFormatter(format="0,0.[0]")
    shared.js_on_change("start", CustomJS(args={"source": source, "names": [name], "range": plot.y_range}, code=FIT_Y))
    return plot


def draw_trades(plot: Any, trades: pd.DataFrame) -> None:
    """Draw each trade from entry to exit, green where it earned, with a triangle that points to its side."""
    if not len(trades):
        return
    pips, size = trades["PnL [pips]"].to_numpy(float), trades["Size"].to_numpy(float)
    source = ColumnDataSource(
        {
            "x0": milliseconds(trades["EntryTime"]),
            "x1": milliseconds(trades["ExitTime"]),
            "y0": trades["EntryPrice"].to_numpy(float),
            "y1": trades["ExitPrice"].to_numpy(float),
            "pips": pips,
            "size": size,
            "colour": np.where(pips > 0, GOOD, BAD).tolist(),
            "marker": np.where(size > 0, "triangle", "inverted_triangle").tolist(),
        }
    )
    few = len(pips) <= FEW_TRADES
    width, mark = (2.5, 9) if few else (1.5, 4)  # many are read by zooming in
    plot.segment("x0", "y0", "x1", "y1", source=source, line_color="colour", line_width=width, line_alpha=0.8)
    entries = plot.scatter("x0", "y0", source=source, marker="marker", color="colour", size=mark, alpha=0.8)
    tips = [("entry", "@x0{%F %H:%M}"), ("exit", "@x1{%F %H:%M}"), ("size", "@size"), ("net pips", "@pips{0,0.0}")]
    plot.add_tools(HoverTool(renderers=[entries], tooltips=tips, formatters={"@x0": "datetime", "@x1": "datetime"}))


def milliseconds(times: pd.Series[Any]) -> NDArray[np.float64]:
    """Milliseconds since the epoch of ISO times."""
    return pd.to_datetime(times).to_numpy("datetime64[ms]").astype(np.float64)


def bars(names: Sequence[str], values: Sequence[float], unit: str, colours: Sequence[str] | None = None) -> Any:
    """Horizontal bars from 0, the first name on top, green above 0 and red below, with their values."""
    value = np.round(np.array(values, float), 3) + 0.0  # no -0.0
    colours = colours or np.where(value >= 0, GOOD, BAD).tolist()
    plot = new_figure(46 + 26 * len(names), y_range=list(names)[::-1])
    low, high = min(0.0, value.min()), max(0.0, value.max())
    room = 0.34 * ((high - low) or 1.0)
    plot.x_range = Range1d(low - (room if low < 0 else 0.0), high + room)
    texts = [brief(pips) for pips in value.tolist()]
    data: dict[str, Any] = {"name": list(names), "value": value, "colour": list(colours), "text": texts}
    source = ColumnDataSource(data)
    plot.hbar("name", right="value", height=0.62, source=source, color="colour", alpha=0.85)
    for sign, align in ((1, "left"), (-1, "right")):
        keep = np.flatnonzero((value >= 0) == (sign > 0))
        part = ColumnDataSource({key: [list(column)[i] for i in keep] for key, column in data.items()})
        style = {"text_font": {"value": FONT}, "text_font_size": "11px", "text_color": INK, "text_baseline": "middle"}
        plot.text("value", "name", "text", source=part, x_offset=5 * sign, text_align=align, **style)
    plot.add_layout(Span(location=0, dimension="height", line_color=INK, line_width=1))
    plot.ygrid.grid_line_color, plot.xaxis.axis_label = None, unit
    plot.xaxis.formatter = NumeralTickFormatter(format="0,0.[00]")
    plot.xaxis.ticker.desired_num_ticks = 4
    return plot


def brief(pips: float) -> str:
    """A figure at a bar: three digits or more."""
    return f"{pips:,.0f}" if abs(pips) >= 100 else f"{pips:,.1f}" if abs(pips) >= 10 else f"{pips:,.2f}"


def edges(seen: dict[str, Any]) -> Any:
    """The expected edge of an entry beside the cost of a round trip, at the best and at the median bar."""
    best = seen["best"]
    rows = {
        "best edge": best["edge_pips"],
        "its cost": best["cost_pips"],
        "median edge": seen["median_edge_pips"],
        "median cost": seen["median_cost_pips"],
    }
    return bars(list(rows), list(rows.values()), "pips", [BLUE, AMBER] * 2)


def folds(rows: Sequence[dict[str, Any]]) -> Any:
    """Net pips of each fold, with the interval."""
    names = [f"{i + 1}: {row['first'][:10]}" for i, row in enumerate(rows)]
    net = [row["net_pips"] for row in rows]
    low, high = ([(row["interval"] or (n, n))[side] for row, n in zip(rows, net, strict=True)] for side in (0, 1))
    plot = new_figure(60 + 30 * len(names), y_range=names[::-1])
    colours = [GOOD if value >= 0 else BAD for value in net]
    source = ColumnDataSource({"name": names, "net": net, "low": low, "high": high, "colour": colours})
    whisker = Whisker(source=source, base="name", lower="low", upper="high", dimension="width", line_color=INK)
    whisker.upper_head.size = whisker.lower_head.size = 8
    plot.add_layout(whisker)
    points = plot.scatter("net", "name", source=source, size=11, color="colour")
    plot.x_range.only_visible = False
    plot.x_range = Range1d(*padded([*low, *high, 0.0]))
    tips = [("from", "@name"), ("net pips", "@net{0,0.0}"), ("95 %", "@low{0,0.0} to @high{0,0.0}")]
    plot.add_tools(HoverTool(renderers=[points], tooltips=tips))
    plot.add_layout(Span(location=0, dimension="height", line_color=INK, line_width=1))
    plot.xaxis.axis_label, plot.xaxis.formatter = "net pips, 95 % interval", NumeralTickFormatter(format="0,0")
    plot.xaxis.ticker.desired_num_ticks = 4
    return plot


def padded(values: Sequence[float]) -> tuple[float, float]:
    """The range of `values` with a margin."""
    low, high = float(min(values)), float(max(values))
    margin = 0.08 * ((high - low) or 1.0)
    return low - margin, high + margin


def heat_map(hours: Sequence[Sequence[float]]) -> Any:
    """Net pips by hour and weekday; `hours` is [24, 7]."""
    table = np.array(hours)
    keep = [day for day in range(7) if day < 5 or table[:, day].any()]
    largest = float(np.abs(table).max()) or 1.0
    cells = [(hour, DAYS[day], table[hour, day]) for day in keep for hour in range(24)]
    hour, day, pips = (list(column) for column in zip(*cells, strict=True))
    colours = [mix(value / largest) for value in pips]
    plot = new_figure(66 + 30 * len(keep), y_range=[DAYS[day] for day in keep][::-1], x_range=Range1d(-0.5, 23.5))
    source = ColumnDataSource({"hour": hour, "day": day, "pips": pips, "colour": colours})
    plot.rect("hour", "day", 0.94, 0.90, source=source, color="colour", line_color=None)
    plot.grid.grid_line_color, plot.xaxis.axis_label = None, "hour, UTC"
    plot.xaxis.ticker = list(range(0, 24, 3))
    plot.add_tools(HoverTool(tooltips=[("", "@day @hour:00"), ("net pips", "@pips{0,0.0}")]))
    return plot


def mix(share: float) -> str:
    """The colour of a share in [-1, 1] of the largest profit or loss: white at 0."""
    end = GOOD if share > 0 else BAD
    weight = min(abs(share), 1.0) ** 0.7
    channels = (int(end[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(244 + (channel - 244) * weight):02x}" for channel in channels)


def reliability(bins: Sequence[dict[str, Any]]) -> Any:
    """The observed frequency of a rise against its predicted probability; on the diagonal where they agree."""
    plot = new_figure(300, x_range=Range1d(0, 1), y_range=Range1d(0, 1))
    plot.line([0, 1], [0, 1], line_color=INK, line_dash="dashed")
    bins = [row for row in bins if row["bars"]]
    data = {key: [row[key] for row in bins] for key in ("predicted", "observed", "bars")}
    sizes = [6 + 18 * (row["bars"] / max(data["bars"])) ** 0.5 for row in bins]
    source = ColumnDataSource({**data, "size": sizes})
    plot.line("predicted", "observed", source=source, line_color=BLUE, line_width=1.5)
    points = plot.scatter("predicted", "observed", source=source, size="size", color=BLUE, alpha=0.7)
    tips = [("predicted", "@predicted{0.0%}"), ("observed", "@observed{0.0%}"), ("bars", "@bars{0,0}")]
    plot.add_tools(HoverTool(renderers=[points], tooltips=tips))
    plot.xaxis.axis_label, plot.yaxis.axis_label = "predicted probability of a rise", "observed"
    for axis in plot.axis:
        axis.formatter = NumeralTickFormatter(format="0%")
    return plot


def learning(sources: Sequence[Any], name: str, colours: Sequence[str] = (BLUE,)) -> Any:
    """A metric of trainings, over the x of each of `sources`; the tip shows `run` where a source has it."""
    plot = new_figure(170)
    lines = [
        plot.line("x", name, source=source, line_color=colour, line_width=1.6)
        for source, colour in zip(sources, colours, strict=True)
    ]
    tips = [("", "@run")] if "run" in sources[0].data else []
    tips += [("episodes", "@episodes{0,0}"), (name, f"@{{{name}}}{{0,0.[0000]}}")]
    plot.add_tools(HoverTool(renderers=lines, mode="mouse" if len(lines) > 1 else "vline", tooltips=tips))
    plot.xaxis.axis_label, plot.xaxis.formatter = "episodes", NumeralTickFormatter(format="0,0.[00]")
    plot.xaxis.ticker.desired_num_ticks = plot.yaxis.ticker.desired_num_ticks = 4
    plot.yaxis.formatter.power_limit_high = 7
    return plot
