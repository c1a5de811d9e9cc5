"""`render_learning`: the learning curves of runs as one page for a browser without network, in the style of the report.

Every number of the rows of metrics has a chart, with a line a run; one that is always 0 is named in a note.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import cycle, islice
from typing import Any

import numpy as np
from bokeh.models import ColumnDataSource
from bokeh.palettes import Category20_20

from host.analysis import charts
from host.analysis.html_report import LEARNING_TITLES, card, whole_page
from host.training.metrics import Row, scalars

MAX_POINTS = 400  # of a line
COLOURS = (charts.BLUE, charts.AMBER, charts.GOOD, charts.BAD, *Category20_20[8::2], *Category20_20[1::2])
AXES = {"episodes": "episodes", "minutes": "minutes of collecting, reanalyzing and learning", "updates": "updates"}
PHASES = ("collect_s", "reanalyze_s", "learn_s")
GROUPS = {  # by a pattern of the names that it holds; what fits none stands under Other
    "Result": r"mean_return|reward_per_(bar|decision)|exposure|entries|trades|.*net_pips.*|best_.*",
    "Losses": r"policy|value|afterstate_value|chance|reward|latent|consistency|commitment|code_(entropy|move)|.*loss.*",
    "Search": r"q_scale|search_rows|reanalyzed|skipped|reused|searches",
    "Forecast of the next bar": r".*(nll|_z|_scale|calibration|perplexity|code_r2).*",
    "Health": r"gradient.*|.*(norm|entropy|drift|explained|reward_error|learning_rate).*",
    "Speed and memory": r".*(_s|_mb|_per_s|seconds)",
    "Other": r".*",
}
SWITCH = """
<div class="legend">Over {choices}</div>
<script>
const SOURCES = {sources}, AXES = {axes};
function over(name, label) {{
  for (const doc of Bokeh.documents) {{
    for (const id of SOURCES) {{
      const source = doc.get_model_by_id(id);
      if (source) source.data = {{...source.data, x: source.data[name]}};
    }}
    for (const id of AXES) {{ const axis = doc.get_model_by_id(id); if (axis) axis.axis_label = label; }}
  }}
}}
</script>"""


def render_learning(runs: Mapping[str, Sequence[Row]]) -> str:
    """The page of the rows of metrics of each run by its name."""
    tables = {name: table(rows) for name, rows in runs.items()}
    names = [*dict.fromkeys(key for columns in tables.values() for key in columns)]
    always_0 = [name for name in names if not any(np.nan_to_num(t[name]).any() for t in tables.values() if name in t)]
    sources = [new_source(run, columns, names) for run, columns in tables.items()]
    colours = [*islice(cycle(COLOURS), len(sources))]
    plots, body = dict[str, Any](), ""
    for title, members in groups([name for name in names if name not in (*AXES, "iteration", *always_0)]):
        body += f'<h2 class="group">{title}</h2><div class="pair">'
        for name in members:
            heading, _, unit = LEARNING_TITLES.get(name, title_of(name)).partition(", ")
            body += card(heading, unit or name, [charts.learning(sources, name, colours)], plots)
        body += "</div>"
    note = f'<p class="note">Always 0: {escape(", ".join(always_0))}.</p>' if always_0 else ""
    head = f"<header><h1>Learning curves</h1>{legend(runs, colours)}{switch(sources, plots)}{note}</header>"
    return whole_page(f"Learning curves of {', '.join(runs)}", head + body, plots)


def title_of(name: str) -> str:
    """A name of a row of metrics as a title."""
    words = re.sub(r"_s$", "_in_seconds", name).replace("_", " ")
    return words[:1].upper() + words[1:]


def table(rows: Sequence[Row]) -> dict[str, Any]:
    """At most MAX_POINTS evenly spaced values [n] of each number, NaN where a row lacks it; the minutes summed up."""
    numbers = [scalars(row) for row in rows]
    seconds = np.cumsum([sum(row.get(phase, 0.0) for phase in PHASES) for row in numbers])
    at = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MAX_POINTS)).astype(np.int64))
    names = dict.fromkeys(key for row in numbers for key in row)
    columns = {name: np.array([numbers[i].get(name, np.nan) for i in at]) for name in names}
    return {"episodes": at.astype(float), **columns, "minutes": seconds[at] / 60}


def new_source(run: str, columns: dict[str, Any], names: Sequence[str]) -> Any:
    """The lines of a run over the episodes; every source has a column for each of `names`."""
    n = len(columns["episodes"])
    data = {name: columns.get(name, np.full(n, np.nan)) for name in (*AXES, *names)}
    return ColumnDataSource({**data, "x": data["episodes"], "run": [run] * n})


def groups(names: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Each group that has members, with them."""
    left = [*names]
    for title, pattern in GROUPS.items():
        members = [name for name in left if re.fullmatch(pattern, name)]
        left = [name for name in left if name not in members]
        if members:
            yield title, members


def legend(runs: Mapping[str, Sequence[Row]], colours: Sequence[str]) -> str:
    """The name of each run beside its colour, and how far it came."""
    text = ""
    for (name, rows), colour in zip(runs.items(), colours, strict=True):
        far = f"{len(rows):,} rows, {rows[-1].get('episodes', 0):,} episodes"
        text += f'<span><i style="background:{colour}"></i>{escape(name)}, {far}</span>'
    return f'<div class="legend">{text}</div>'


def switch(sources: Sequence[Any], plots: dict[str, Any]) -> str:
    """Radio buttons that draw every chart over something else."""
    choices = "".join(
        f'<label><input type="radio" name="x" onclick="over(\'{name}\', \'{label}\')"'
        f"{' checked' if name == 'episodes' else ''}> {label}</label>"
        for name, label in AXES.items()
    )
    axes = [plot.xaxis[0].id for plot in plots.values()]
    return SWITCH.format(choices=choices, sources=json.dumps([source.id for source in sources]), axes=json.dumps(axes))
