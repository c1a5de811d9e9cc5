"""`plot` draws every number of the metrics of runs, on a page that needs no network."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import swt
from host.analysis.page_picture import BROWSERS, draw_page
from host.analysis.summary import ReportError
from host.commands.plot import plot_runs, read_curves
from host.training.metrics import MetricsError


def write_run(folder: Path, seed: int, count: int = 60) -> Path:
    folder.mkdir(parents=True)
    draw = np.random.default_rng(seed)
    rows = [
        {
            **{"iteration": i, "episodes": 32 * i, "updates": 80 * i, "policy": 1 / i + 0.02 * draw.normal()},
            **{"reward_per_bar": float(draw.normal()), "reward": 0.0, "collect_s": 0.5, "learn_s": 0.25 + seed},
            **({"validation_net_pips": float(draw.normal())} if i > 9 else {"validation_net_pips": None}),
            **{"q_scale": 1.0 + seed, "mystery": i % 7, "EURUSD": {"exposure": 0.1}, "word": "a"},
        }
        for i in range(1, count + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    return [write_run(folder / "0001", 1), write_run(folder / "<b>", 2, 1500)]


def test_a_run_has_its_page_and_a_walk_forward_one_of_all(tmp_path: Path, runs: list[Path]) -> None:
    pytest.importorskip("bokeh", reason="without Bokeh there is no page")
    swt.plot(runs[:1], None, None)
    text = (runs[0] / "curves.html").read_text(encoding="utf-8")
    assert not re.search(r"<(script|link|img|iframe)[^>]*(src|href)=\"?(https?:)?//", text)
    titles = re.findall(r"<h2>(.*?)</h2>", text)
    assert {"Policy loss", "Validation net pips", "Mystery", "EURUSD/exposure", "Learn in seconds"} <= {*titles}
    assert "Always 0: reward." in text
    assert re.findall(r'<h2 class="group">(.*?)</h2>', text) == [
        "Result",
        "Losses",
        "Search",
        "Speed and memory",
        "Other",
    ]
    for fold in ("1-0", "1-1"):
        write_run(tmp_path / "wf" / "EURUSD" / fold, 3)
    plot_runs([tmp_path / "wf"], tmp_path / "wf.html", None)
    assert "EURUSD/1-1, 60 rows, 1,920 episodes" in (tmp_path / "wf.html").read_text(encoding="utf-8")


def test_runs_stand_beside_each_other_without_trust(tmp_path: Path, runs: list[Path]) -> None:
    pytest.importorskip("bokeh", reason="without Bokeh there is no page")
    plot_runs(runs, tmp_path / "both.html", None)
    text = (tmp_path / "both.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;, 1,500 rows, 48,000 episodes" in text
    assert "<b>" not in text.replace("\\u003c", "<").partition("</title>")[2].partition("<script")[0]
    assert len(text) < 3_000_000


def test_what_is_no_run_is_refused_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(MetricsError, match=r"holds no metrics\.jsonl: name a folder of `train --out`"):
        dict(read_curves(tmp_path))
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(MetricsError, match="no iteration has ended yet"):
        dict(read_curves(tmp_path))


def test_without_bokeh_a_line_says_how_to_get_it(
    tmp_path: Path, runs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("host.analysis.learning_page", "host.analysis.html_report", "host.analysis.charts"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name in ("bokeh", "bokeh.embed", "bokeh.models", "bokeh.palettes"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ReportError, match=r"it takes Bokeh; pip install '\.\[report\]', then python .*plot"):
        plot_runs(runs, tmp_path / "page.html", None)
    assert not (tmp_path / "page.html").exists()


def test_a_browser_draws_every_curve_over_either_axis(tmp_path: Path, runs: list[Path]) -> None:
    pytest.importorskip("bokeh", reason="without Bokeh there is no page")
    image: Any = pytest.importorskip("PIL.Image", reason="Bokeh brings Pillow, which reads the pictures")
    if not any(map(shutil.which, BROWSERS)):
        pytest.skip(f"none of {BROWSERS} is here")
    page, png = tmp_path / "both.html", tmp_path / "page.png"
    plot_runs(runs, page, png)
    pixels = np.asarray(image.open(png).convert("RGB")).astype(int)
    for name, colour in {"first": "#2b62d9", "second": "#b7791f"}.items():
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(pixels - wanted).max(axis=2) < 40).sum() > 500, name
    ask = (
        "<script>setTimeout(() => {over('minutes', 'm'); const id = SOURCES[0];"
        "console.log('LAST ' + Bokeh.documents.map(d => d.get_model_by_id(id)).find(m => m).data.x.at(-1))}, 3000)"
        "</script></body>"
    )
    page.write_text(page.read_text(encoding="utf-8").replace("</body>", ask), encoding="utf-8")
    said = draw_page(page, png, 1000)
    assert "LAST 1.75" in said, "60 iterations of 1.75 s"
    assert not [
        line for line in said.splitlines() if "CONSOLE" in line and "rror" in line and "ResizeObserver" not in line
    ]
