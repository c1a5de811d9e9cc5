"""`act`: follow a feed of closed bars and print one decision for each, the same one a backtest makes.

With a folder to write into (`host/live/runner.py`) it also keeps a journal and publishes a guarded target.
"""

from __future__ import annotations

import gc
import os
import re
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from host.artifact.manifest import reading_of
from host.atomic import locked, naming
from host.config import ActConfig, ConfigError, load_into
from host.console import say
from host.data.feed import Bar, feed_bars
from host.data.formats import ReadOptions
from host.data.instruments import find_instrument
from host.live.live_agent import Actor, Printer, load_acting, microseconds_since
from host.live.market_check import check_named, check_symbol, of_scale
from host.live.runner import FeedStale, Halted, Office, Publishing
from kernels.jit import module_digest

WATCH_S = 0.5  # between two looks at the HALT file and at the time


def new_publishing(
    feed: str,
    out: Path | None,
    live: bool,
    symbol: str | None,
    lift: bool,
    config: Path | None,
    settings: list[str] | None,
) -> Publishing | None:
    """What `--out` and the flags that need it say."""
    guard = load_into(ActConfig(), config, settings).guard
    if out is None:
        if live or lift:
            raise ConfigError("--live and --lift-halt say what happens in --out: give a folder")
        return None
    return Publishing(out, live, lift, checked_symbol(symbol or symbol_of(feed)), guard)


def checked_symbol(symbol: str) -> str:
    """A symbol that can stand in a row of CSV."""
    if not re.fullmatch(r"[\w.#+-]{1,32}", symbol, re.ASCII):
        raise ConfigError(f"--symbol {symbol!r}: up to 32 letters, digits and . # + - _")
    return symbol


def act_on_feed(
    feed: str,
    model: Path,
    reading: ReadOptions,
    follow: bool,
    out: IO[str],
    as_json: bool,
    publishing: Publishing | None = None,
    insist: bool = False,
) -> None:
    """`act`: check the model, and the feed unless the user insists on it; then decide for every bar."""
    loaded = load_acting(model)
    if not insist:
        check_named(loaded, reading, feed)
    digest = module_digest("kernels.live.policy_step")  # all that a decision's machine code is made from
    say(f"swt {digest}, model {loaded.sha256[:16]}, waiting for {loaded.agent.sizes.history} closed bars")
    settled = reading_of(loaded, reading, Path(feed).name)
    if insist:
        bars = feed_bars(feed, settled, follow)
    else:
        read = feed_bars(
            feed, settled, follow, check=lambda rules: check_symbol(loaded, rules.instrument.symbol, feed)
        )
        bars = of_scale(loaded, read, feed)
    printer = Printer(out, as_json)
    gc.freeze()  # what is here now stays: a decision does not wait for a walk through it
    if publishing is None:
        act(Actor(loaded.agent, loaded.setting, loaded.search), bars, printer)
        return
    with naming(publishing.folder):
        publishing.folder.mkdir(parents=True, exist_ok=True)
    with locked(publishing.folder / "lock") as check_held:
        act_beside_money(Office(loaded, publishing, printer, check_held), bars)


def act(actor: Actor, feed: Iterable[Bar], printer: Printer) -> None:
    """Print one line per closed bar after the warm-up."""
    for bar in feed:
        begin = time.perf_counter()
        if actor.on_bar(bar):
            printer.print(actor.decision(bar, microseconds_since(begin)))


def act_beside_money(office: Office, feed: Iterable[Bar]) -> None:
    """Take bars in until the feed ends; on any fault the target goes flat first."""
    turn, done = threading.Lock(), threading.Event()
    threading.Thread(target=watch_over, args=(office, turn, done), daemon=True).start()
    try:
        for bar in feed:
            with turn:
                office.on_bar(bar)
        with turn:
            office.look()  # a HALT file holds too where no bar is new
    except (BrokenPipeError, Halted):
        raise
    except Exception as error:
        with turn:
            office.fail(error)
        raise
    finally:
        with turn:
            done.set()
            office.close()


def watch_over(office: Office, turn: threading.Lock, done: threading.Event) -> None:
    """End the process when a guard says so while the feed is silent: a read that waits cannot be ended otherwise."""
    while not done.wait(WATCH_S):
        with turn:
            if done.is_set():
                return
            try:
                office.look()
            except Exception as error:  # nobody else would see it, and nothing may go on unwatched
                if not isinstance(error, (Halted, FeedStale)):
                    office.fail(error)
                say(f"swt: {error or repr(error)}")
                os._exit(getattr(error, "exit_code", 1))


def symbol_of(feed: str) -> str:
    """What a feed's file is named for, or -."""
    found = find_instrument(Path(feed).name)
    return found.symbol if found else "-"
