"""Pictures: whole, of few points, and the same numbers as their data."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from host.svg import CHART_HEIGHT, COLOURS, MAX_POINTS, line_charts

SVG = "{http://www.w3.org/2000/svg}"


def points_of(picture: str) -> list[np.ndarray]:
    lines = ElementTree.fromstring(picture).findall(f"{SVG}polyline")
    return [np.array([point.split(",") for point in line.attrib["points"].split()], float) for line in lines]


@pytest.mark.parametrize("bars", [1, 2, 40_000])
def test_a_chart_has_its_lines_to_scale(bars: int) -> None:
    rise = np.linspace(0, 300, bars)
    picture = line_charts({"a < b & c": {"agent": rise / 2, "optimum": rise}, "flat": {"agent": rise * 0}}, "pips")
    optimum, agent, flat = points_of(picture)
    assert all(1 <= len(points) <= MAX_POINTS for points in (optimum, agent, flat))
    assert len(picture) < 40_000
    texts = [text.text for text in ElementTree.fromstring(picture).findall(f"{SVG}text")]
    assert {"a < b & c", "flat", "pips", f"{bars:,} unseen bars"} <= {*texts}
    assert {f"optimum {rise[-1]:,.0f}", f"agent {rise[-1] / 2:,.0f}", "agent 0"} <= {*texts}
    assert (optimum[:, 1] < CHART_HEIGHT).all()
    assert (flat[:, 1] > CHART_HEIGHT).all()
    if bars > 1:
        assert optimum[0, 1] == agent[0, 1] > agent[-1, 1] > optimum[-1, 1]
        assert optimum[0, 1] - agent[-1, 1] == pytest.approx((optimum[0, 1] - optimum[-1, 1]) / 2, abs=0.1)
        assert len(np.unique(flat[:, 1])) == 1


def test_a_picture_needs_nothing_else_and_no_background() -> None:
    picture = line_charts({"x": {name: np.arange(9.0) for name in COLOURS}}, "%", "{:,} seconds")
    assert all(picture.count(f'stroke="{colour}"') == 1 for colour in COLOURS)
    assert ">9 seconds<" in picture
    assert not re.search(r"href|url\(|<style|<script|white|black|#fff|#000", picture)
    assert ElementTree.fromstring(picture).find(f"{SVG}rect") is not None
