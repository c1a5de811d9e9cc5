"""A picture of a page, by a browser without a window."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from host.analysis.summary import ReportError

BROWSERS = "chromium", "chromium-browser", "google-chrome", "chrome", "msedge"
PAGE_MS, TIMEOUT_S = 10_000, 120  # what a page may take, by its own clock and by ours
MAX_HEIGHT, MARGIN = 12_000, 32  # pixels of a page, and of its ground below the last card
COLOURS = 256  # of a picture: a third of the bytes


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
