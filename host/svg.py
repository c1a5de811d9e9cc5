"""Scalable Vector Graphics: the few marks that the pictures of the program are made of, and a chart of lines.

Colours are chosen to be readable on white and on black; a picture has no background.
"""

from __future__ import annotations

from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray

COLOURS = ("#2f81f7", "#d9822b", "#3fa35b", "#a371f7")  # of the lines of a chart, in turn
INK = "#7d8590"
CHART_WIDTH, CHART_HEIGHT, MARGIN, LEFT, LABEL_HEIGHT = 720, 240, 34, 64, 12  # pixels
MAX_POINTS = 480  # of a line

Floats = NDArray[np.float64]


def svg_document(width: float, height: float, parts: list[str]) -> str:
    """An SVG of `width` x `height` pixels that shows `parts`."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" font-family="sans-serif" font-size="11">'
    )
    return "\n".join([head, *parts, "</svg>", ""])


def svg_text(x: float, y: float, text: str, size: int = 11, fill: str = INK, anchor: str = "start") -> str:
    """A line of text; (x, y) is its left, middle or right end on the base line, as `anchor` says."""
    place = f'x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{fill}" text-anchor="{anchor}"'
    return f"<text {place}>{escape(text)}</text>"


def svg_bar(x: float, y: float, width: float, height: float, fill: str) -> str:
    """A filled rectangle whose upper left corner is (x, y)."""
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:g}" fill="{fill}"/>'


def line_charts(charts: dict[str, dict[str, Floats]], unit: str, axis: str = "{:,} unseen bars") -> str:
    """An SVG with a chart below the other: by title, the lines [T] by name, in `unit`; `axis` says what T is."""
    tops = [(i * CHART_HEIGHT, *chart) for i, chart in enumerate(charts.items())]
    parts = [mark for top, title, lines in tops for mark in _chart(top, title, lines, axis)]
    return svg_document(CHART_WIDTH, CHART_HEIGHT * len(charts), [*parts, svg_text(8, 20, unit)])


def _chart(top: float, title: str, lines: dict[str, Floats], axis: str) -> list[str]:
    """The marks of one chart whose upper edge is at `top`."""
    low, high = (float(f([0.0, *(f(line) for line in lines.values())])) for f in (np.min, np.max))
    low, high = (low, high) if high > low else (low - 1.0, high + 1.0)
    width, height = CHART_WIDTH - LEFT - MARGIN, CHART_HEIGHT - 2 * MARGIN
    num_bars = max(len(line) for line in lines.values())

    def y_of(value: float) -> float:
        return top + MARGIN + height * (high - value) / (high - low)

    parts = [svg_text(LEFT, top + 20, title, 13)]
    for value in (low, 0.0, high):
        y = y_of(value)
        if value != 0 and abs(y - y_of(0.0)) < LABEL_HEIGHT:
            continue
        parts.append(svg_bar(LEFT, y, width, 1, INK))
        parts.append(svg_text(LEFT - 6, y + 4, f"{value:,.0f}", anchor="end"))
    for i, (name, line) in reversed([*enumerate(lines.items())]):  # the first line lies above the others
        colour = COLOURS[i]
        at = np.unique(np.linspace(0, len(line) - 1, MAX_POINTS).astype(np.int64))
        points = " ".join(f"{LEFT + width * t / max(num_bars - 1, 1):.1f},{y_of(line[t]):.1f}" for t in at.tolist())
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        label = f"{name} {line[-1]:,.0f}"
        parts.append(svg_text(CHART_WIDTH - MARGIN - 150 * (len(lines) - 1 - i), top + 20, label, 12, colour, "end"))
    return [*parts, svg_text(CHART_WIDTH - MARGIN, top + CHART_HEIGHT - 12, axis.format(num_bars), anchor="end")]
