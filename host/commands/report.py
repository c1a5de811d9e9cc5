"""`report`: the page of a run made again from its files, and a picture of it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from host.analysis.report import write_html
from host.analysis.summary import ReportError
from host.atomic import check_writable
from host.console import log

BROWSERS = "chromium", "chromium-browser", "google-chrome", "chrome", "msedge"
PAGE_MS, TIMEOUT_S = 10_000, 120  # what a page may take, by its own clock and by ours
MAX_HEIGHT, MARGIN = 12_000, 32  # pixels of a page, and of its ground below the last card
COLOURS = 256  # of a picture: a third of the bytes


def remake_report(folder: Path, png: Path | None, width: int) -> None:
    """Write report.html into `folder`, and a picture of it, `width` pixels wide, to `png`; a game's has its curves."""
    if png is not None:
        check_writable(png)
    if not (folder / "report.json").exists() and (folder / "environment.toml").exists():
        from host.commands.plot import plot_runs  # which draws by this file

        plot_runs([folder], folder / "report.html", png, width)
        return
    write_html(folder)
    log(f"{folder / 'report.html'}")
    if png is not None:
        draw_page(folder / "report.html", png, width)


def draw_page(page: Path, png: Path, width: int) -> str:
    """Write a picture of the whole page to `png`; what the page said on the console of the browser."""
    from PIL import Image, ImageChops  # Bokeh brings it

    said = browse(page, f"--window-size={width},{MAX_HEIGHT}", f"--screenshot={png.resolve()}")
    picture = Image.open(png).convert("RGB")
    ground = Image.new("RGB", picture.size, picture.getpixel((0, picture.height - 1)))
    _, _, _, bottom = ImageChops.difference(picture, ground).getbbox() or (0, 0, 0, picture.height)
    picture.crop((0, 0, width, min(bottom + MARGIN, picture.height))).quantize(COLOURS).save(png, optimize=True)
    return said


def browse(page: Path, *flags: str) -> str:
    """What a browser without a window says of a page; ReportError where there is none, or where it fails."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise ReportError(f"no picture of {page}: it takes Chromium, Chrome or Edge; open the page instead")
    usual = "--headless", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr", "--v=0"
    of_root = ["--no-sandbox"] if getattr(os, "geteuid", lambda: 1)() == 0 else []  # Chromium refuses root its sandbox
    command = [browser, *usual, *of_root, f"--virtual-time-budget={PAGE_MS}", *flags, page.resolve().as_uri()]
    try:
        return subprocess.run(command, capture_output=True, check=True, timeout=TIMEOUT_S, encoding="utf-8").stderr
    except (OSError, subprocess.SubprocessError) as error:
        raise ReportError(f"no picture of {page}: {error}; open the page instead") from None
