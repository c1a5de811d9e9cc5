"""Learning curves: when they come to a level, what several seeds have in common, and their picture."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from host.svg import svg_bar, svg_document, svg_text

LEARNT_FRACTION = 0.9  # of the optimum
POINTS = 40  # of a curve of several seeds
AXES = {"episodes": "episodes", "seconds": "s of CPU time"}  # what a curve is drawn over, and its unit
LABEL_WIDTH, PANEL_WIDTH, PANEL_HEIGHT, GAP, TOP_MARGIN = 220, 260, 96, 28, 48  # pixels
COLOURS = {"off": "#8b949e", "on": "#2f81f7"}
LEVELS = (0.0, 0.5, LEARNT_FRACTION, 1.0)  # of the optimum, that have a line
LOWEST = -0.1  # of the optimum: what is less is drawn there


def median(values: Sequence[float | None]) -> float | None:
    """The median, where None is worse than any number; None of no values."""
    middle = statistics.median(math.inf if value is None else value for value in values or [None])
    return None if math.isinf(middle) else round(middle, 4)


def value_range(values: Sequence[float | None]) -> list[float | None]:
    """[least, greatest], where None is greater than any number."""
    numbers = [round(value, 4) for value in values if value is not None]
    return [min(numbers, default=None), None if None in values else max(numbers)]


def crossing(curve: dict[str, list[float]], axis: str) -> float | None:
    """Where on `axis` the agent has learnt: the first of two evaluations in a row that reach LEARNT_FRACTION."""
    fraction = curve["expected_fraction"]
    pairs = zip(curve[axis], fraction, fraction[1:], strict=False)
    return next((x for x, *two in pairs if min(two) >= LEARNT_FRACTION), None)


def summarize_curves(curves: list[dict[str, list[float]]], axis: str) -> dict[str, list[float]]:
    """Median and range over the seeds of the expected fraction along `axis`; one that has ended goes on as it ended."""
    ends = [(curve[axis][0], curve[axis][-1]) for curve in curves]
    x = np.linspace(max(first for first, _ in ends), max(last for _, last in ends), POINTS)
    y = np.array([np.interp(x, curve[axis], curve["expected_fraction"]) for curve in curves])
    lines = {"x": x, "low": y.min(axis=0), "median": np.median(y, axis=0), "high": y.max(axis=0)}
    return {name: np.round(line, 4).tolist() for name, line in lines.items()}


def render_curves(document: list[dict[str, Any]], axis: str) -> str:
    """An SVG of the document of `bench enhancements`: a row an enhancement, a panel a market, off grey and on blue."""
    results = [{side: row[side]["markets"] for side in COLOURS} for row in document]
    rows = [[(name, {side: of[side][name].get(axis) for side in COLOURS}) for name in of["on"]] for of in results]
    columns = max(map(len, rows))
    width, height = LABEL_WIDTH + (PANEL_WIDTH + GAP) * columns, TOP_MARGIN + (PANEL_HEIGHT + GAP) * len(rows)
    title = f"expected profit over the optimum's, by {AXES[axis]}: medians and ranges of the seeds, off grey, on blue"
    parts = [svg_text(8, 18, title, 13)]
    for i in range(columns):
        x, cells = LABEL_WIDTH + (PANEL_WIDTH + GAP) * i, {j: row[i] for j, row in enumerate(rows) if i < len(row)}
        longest = max((line["x"][-1] for _, sides in cells.values() for line in sides.values() if line), default=1.0)
        for j, (market, sides) in cells.items():
            top = TOP_MARGIN + (PANEL_HEIGHT + GAP) * j
            parts += [svg_text(x, top - 4, market), *panel(x, top, sides, longest, AXES[axis])]
    for j, row in enumerate(document):
        parts.append(svg_text(8, TOP_MARGIN + (PANEL_HEIGHT + GAP) * j + PANEL_HEIGHT / 2, row["enhancement"], 12))
    return svg_document(width, height, parts)


def panel(left: float, top: float, sides: dict[str, Any], longest: float, unit: str) -> list[str]:
    """The curves of both sides of an enhancement on one market; the axis ends at `longest`."""

    def y_of(fraction: float) -> float:
        return top + PANEL_HEIGHT * (1.0 - max(fraction, LOWEST)) / (1.0 - LOWEST)

    def path(x: list[float], y: list[float]) -> str:
        return " ".join(f"{left + PANEL_WIDTH * a / longest:.1f},{y_of(b):.1f}" for a, b in zip(x, y, strict=True))

    parts = [svg_bar(left, y_of(level), PANEL_WIDTH, 0.5, COLOURS["off"]) for level in LEVELS]
    parts += [svg_text(left - 4, y_of(level) + 4, f"{level:.0%}", 9, anchor="end") for level in LEVELS[1:3]]
    parts.append(svg_text(left + PANEL_WIDTH, top + PANEL_HEIGHT + 12, f"{longest:.0f} {unit}", 9, anchor="end"))
    for side, colour in COLOURS.items():
        if line := sides[side]:
            band = f"{path(line['x'], line['low'])} {path(line['x'][::-1], line['high'][::-1])}"
            parts.append(f'<polygon points="{band}" fill="{colour}" fill-opacity="0.25"/>')
            points = path(line["x"], line["median"])
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        else:
            y = top + PANEL_HEIGHT / 2 + 12 * (1 + list(COLOURS).index(side))
            parts.append(svg_text(left + 8, y, f"{side}: not measured yet", fill=colour))
    return parts
