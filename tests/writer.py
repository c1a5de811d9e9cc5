"""A bridge in a process of its own: for each line of JSON on stdin it writes a file, so often and in such a way.

Every bar's prices follow from its number, so that whoever reads them sees whether they are one bar's.
"""

import json
import os
import random
import sys
import time
from pathlib import Path

HEADER = "time,open,high,low,close,volume\n"
WAYS = ("truncate", "overwrite", "replace", "recreate", "append")
FIRST = 1_600_000_020  # open of bar 0, seconds


def prices(i: int) -> tuple[float, ...]:
    """Open, high, low and close of bar `i`."""
    base = 1.1 + 0.0001 * (i * 7 % 89)
    return tuple(round(base + 0.0001 * x, 5) for x in (0.3, 9.1, -7.7, i * 31 % 5 + 0.1))


def line(i: int) -> str:
    """Bar `i`, now and then with a longer volume."""
    return (
        f"{FIRST + 60 * i}," + ",".join(f"{price:.5f}" for price in prices(i)) + f",{10 ** (i % 11 // 5)}\n"
    )


def write(path: Path, way: str, text: bytes, draw: random.Random) -> None:
    """Replace what is in a file, in pieces that end anywhere, with pauses between them."""
    target = path.with_suffix(".new") if way == "replace" else path
    if way == "recreate":
        path.unlink()
    old = path.stat().st_size if way == "append" else 0
    with target.open("r+b" if way in ("overwrite", "append") else "wb", 0) as file:
        file.seek(old)
        done = old
        while done < len(text):
            done += file.write(text[done : done + draw.choice((37, 512, 4096, 8192))])
            if draw.random() < 0.3:
                time.sleep(draw.random() * 0.01)
        file.truncate(len(text))
    if way == "replace":
        os.replace(target, path)


def bridge() -> None:
    """Obey each command: path, way, first bar, bars, and for each rewrite how many bars scroll by; then a seed."""
    for command in sys.stdin:
        path, way, first, bars, scrolls, seed = json.loads(command)
        draw, stop = random.Random(seed), first + bars
        for scroll in scrolls:
            time.sleep(draw.random() * 0.08)
            stop += scroll
            begin = first if way == "append" else stop - bars
            text = HEADER + "".join(map(line, range(begin, stop)))
            write(Path(path), way, text.encode(), draw)


if __name__ == "__main__":
    bridge()
