"""`act`: follow a feed of closed bars and print one decision for each, the same one a backtest makes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from host.actor import COLUMNS, Actor
from host.agent import load_agent, reading_of
from host.feed import Bar, feed_bars
from host.formats import ReadOptions
from host.progress import say
from kernels._jit import program_digest
from kernels.features import HISTORY


def act(actor: Actor, feed: Iterable[Bar], out: IO[str], as_json: bool) -> int:
    """Print a header and one line per closed bar after the warm-up, flushed; the number of decisions."""
    decisions = 0
    if not as_json:
        print(",".join(COLUMNS), file=out, flush=True)
    for bar in feed:
        begin = time.perf_counter()
        if not actor.on_bar(bar):
            continue
        row = actor.decision(bar, round((time.perf_counter() - begin) * 1e6))
        print(as_json_line(row) if as_json else ",".join(row), file=out, flush=True)
        decisions += 1
    return decisions


def as_json_line(row: list[str]) -> str:
    """The same decision as a JSON object."""
    record = dict(zip(COLUMNS, row, strict=True))
    return json.dumps({k: v if k in ("time", "action") else json.loads(v) for k, v in record.items()})


def act_on_feed(
    feed: str, model: Path, reading: ReadOptions, follow: bool, out: IO[str], as_json: bool
) -> int:
    """`act`: load and check the model, then decide for every bar of the feed; the number of decisions."""
    loaded = load_agent(model)
    say(f"swt {program_digest()}, model {loaded.sha256[:16]}, waiting for {HISTORY} closed bars")
    actor = Actor(loaded.agent, loaded.setting, loaded.search)
    return act(actor, feed_bars(feed, reading_of(loaded, reading), follow), out, as_json)
