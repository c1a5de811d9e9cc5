"""`report`: the page of a run made again from its files, and a picture of it."""

from __future__ import annotations

from pathlib import Path

from host.analysis.page_picture import draw_page
from host.analysis.report import write_html
from host.atomic import check_writable
from host.commands.plot import plot_runs
from host.console import log


def remake_report(folder: Path, png: Path | None, width: int) -> None:
    """Write report.html into `folder`, and a picture of it, `width` pixels wide, to `png`; a game's has its curves."""
    if png is not None:
        check_writable(png)
    if not (folder / "report.json").exists() and (folder / "environment.toml").exists():
        plot_runs([folder], folder / "report.html", png, width)
        return
    write_html(folder)
    log(f"{folder / 'report.html'}")
    if png is not None:
        draw_page(folder / "report.html", png, width)
