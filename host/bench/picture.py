"""The picture of `bench enhancements`: off against on, a row for each enhancement, a panel for each figure."""

from typing import Any

from host.svg import svg_bar, svg_document, svg_text

PANELS = {
    "rss_anon_mb": "memory, MB", "tree_kb": "a tree, kB", "us_per_decision": "a decision, us",
    "selection_us": "selection, us", "rows_per_decision": "rows a decision", "ms_per_episode": "an episode, ms",
    "storage_mb": "storage, MB", "planted": "planted", "planted-hard": "planted-hard", "close": "close",
}  # fmt: skip
NAME_WIDTH, PANEL_WIDTH, ROW_HEIGHT, TOP_MARGIN, BAR_HEIGHT = 170, 112, 42, 56, 12  # pixels
MAX_BAR_WIDTH = 66  # a bar; its number stands behind it
COLOURS = {"off": "#8b949e", "on": "#2f81f7"}


def render_svg(document: list[dict[str, Any]]) -> str:
    """The document as an SVG; the bars of a panel share one scale, and a figure that was not reached has no bar."""
    width, height = NAME_WIDTH + PANEL_WIDTH * len(PANELS), TOP_MARGIN + ROW_HEIGHT * len(document)
    parts = [
        svg_text(8, 18, "grey: off, blue: on; markets: episodes to 90 % of the optimum or until closing is learnt", 13),
    ]
    for i, (key, title) in enumerate(PANELS.items()):
        x = NAME_WIDTH + PANEL_WIDTH * i
        longest = max((side_value(row[side], key) or 0.0 for row in document for side in COLOURS), default=0.0)
        parts.append(svg_text(x, TOP_MARGIN - 12, title))
        for j, row in enumerate(document):
            parts += panel_bars(x, TOP_MARGIN + ROW_HEIGHT * j, row, key, longest or 1.0)
    parts += [svg_text(8, TOP_MARGIN + ROW_HEIGHT * j + 18, row["enhancement"], 12) for j, row in enumerate(document)]
    return svg_document(width, height, parts)


def panel_bars(x: int, y: int, row: dict[str, Any], key: str, longest: float) -> list[str]:
    """The two bars of one enhancement in one panel."""
    parts = []
    for n, (side, colour) in enumerate(COLOURS.items()):
        value, at = side_value(row[side], key), y + n * (BAR_HEIGHT + 2)
        length = MAX_BAR_WIDTH * (value or 0.0) / longest
        parts.append(svg_bar(x, at, length, BAR_HEIGHT, colour))
        label = "not reached" if value is None else f"{value:.4g}"
        parts.append(svg_text(x + length + 3, at + BAR_HEIGHT - 2, label))
    return parts


def side_value(side: dict[str, Any], key: str) -> float | None:
    """A figure of one side; that of a market is the episodes it takes."""
    value: float | None = side["markets"][key]["episodes_to_90"] if key in side["markets"] else side[key]
    return None if value is None else max(value, 0.0)
