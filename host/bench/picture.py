"""The picture of `bench enhancements`: off against on, a row for each enhancement, a panel for each figure."""

from __future__ import annotations

from typing import Any
from xml.sax.saxutils import escape

PANELS = {
    "rss_anon_mb": "memory, MB", "tree_kb": "a tree, kB", "us_per_decision": "a decision, us",
    "selection_us": "selection, us", "rows_per_decision": "rows a decision", "ms_per_session": "a session, ms",
    "storage_mb": "storage, MB", "planted": "planted", "planted-hard": "planted-hard", "close": "close",
}  # fmt: skip
NAME, PANEL, ROW, TOP, BAR = 170, 112, 42, 56, 12  # pixels
LONGEST = 66  # a bar; its number stands behind it
COLOUR = {"off": "#a8a8a8", "on": "#1f6fb2"}


def picture(document: list[dict[str, Any]]) -> str:
    """An SVG; bars of a column have one scale, what was not reached has none."""
    width, height = NAME + PANEL * len(PANELS), TOP + ROW * len(document)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        text(
            8,
            18,
            "grey: off, blue: on; of markets the sessions to 90 % of the optimum or until closing is learnt",
            13,
        ),
    ]
    for i, (key, title) in enumerate(PANELS.items()):
        x = NAME + PANEL * i
        longest = max((value_of(row[side], key) or 0.0 for row in document for side in COLOUR), default=0.0)
        parts.append(text(x, TOP - 12, title))
        for j, row in enumerate(document):
            parts += bars(x, TOP + ROW * j, row, key, longest or 1.0)
    parts += [text(8, TOP + ROW * j + 18, row["enhancement"], 12) for j, row in enumerate(document)]
    return "\n".join([*parts, "</svg>", ""])


def bars(x: int, y: int, row: dict[str, Any], key: str, longest: float) -> list[str]:
    """One panel."""
    parts = []
    for n, (side, colour) in enumerate(COLOUR.items()):
        value, at = value_of(row[side], key), y + n * (BAR + 2)
        length = LONGEST * (value or 0.0) / longest
        parts.append(f'<rect x="{x}" y="{at}" width="{length:.1f}" height="{BAR}" fill="{colour}"/>')
        label = "not reached" if value is None else f"{value:.4g}"
        parts.append(text(x + length + 3, at + BAR - 2, label))
    return parts


def value_of(side: dict[str, Any], key: str) -> float | None:
    """A figure of one side; a market stands for the sessions it takes."""
    found: float | None = side["markets"][key]["sessions_to_90"] if key in side["markets"] else side[key]
    return None if found is None else max(found, 0.0)


def text(x: float, y: float, words: str, size: int = 11) -> str:
    """A line of text that begins at (x, y)."""
    return f'<text x="{x:.1f}" y="{y}" font-size="{size}">{escape(words)}</text>'
