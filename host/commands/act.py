"""`act`: print a decision for each closed bar of a feed, the one that `backtest` makes.

With `--out` a LiveRunner (`host/live/runner.py`) also keeps a journal and publishes a target within the risk limits.
"""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from host.artifact.manifest import reading_options
from host.atomic import add_path_to_errors, locked
from host.config import ConfigError, LiveConfig, apply_overrides
from host.console import log
from host.data.feed import Bar, feed_bars
from host.data.formats import ReadOptions
from host.data.instruments import SYMBOL, find_instrument
from host.live.live_agent import DecisionPrinter, LiveAgent, elapsed_us, warm_up
from host.live.market_check import check_symbol, load_model_of, with_scale_check
from host.live.runner import HaltedError, LiveOptions, LiveRunner, StaleFeedError
from kernels.jit import module_digest

WATCH_INTERVAL_S = 0.5  # between two checks of the HALT file and of the clock


def new_live_options(
    feed: str,
    out: Path | None,
    live: bool,
    symbol: str | None,
    lift_halt: bool,
    config: Path | None,
    settings: list[str] | None,
) -> LiveOptions | None:
    """The options of a live run; None without `out`, ConfigError for flags that need it."""
    risk = apply_overrides(LiveConfig(), config, settings).risk
    if out is None:
        if live or lift_halt:
            raise ConfigError("--live and --lift-halt act on the folder --out: give one")
        return None
    return LiveOptions(out, live, lift_halt, checked_symbol(symbol or feed_symbol(feed)), risk)


def checked_symbol(symbol: str) -> str:
    """`symbol`; ConfigError unless it can stand in a row of CSV."""
    if not SYMBOL.fullmatch(symbol):
        raise ConfigError(f"--symbol {symbol!r}: up to 32 letters, digits and . # + - _")
    return symbol


def act_on_feed(
    feed: str,
    model: Path,
    reading: ReadOptions,
    follow: bool,
    out: IO[str],
    as_json: bool,
    options: LiveOptions | None = None,
    insist: bool = False,
) -> None:
    """Check the model, and unless `insist` the feed; then decide at every bar and print to `out`."""
    loaded = warm_up(load_model_of(feed, model, reading, insist))
    if options and options.symbol == "-" and not insist:
        options = options._replace(symbol=loaded.market_spec.profile.symbol)
    digest = module_digest("kernels.live.policy_step")  # all that a decision's machine code is made from
    log(f"swt {digest}, model {loaded.sha256[:16]}, waiting for {loaded.networks.history} closed bars")
    reading = reading_options(loaded, reading, Path(feed).name)
    if insist:
        bars = feed_bars(feed, reading, follow)
    else:
        bars = feed_bars(feed, reading, follow, check=lambda rules: check_symbol(loaded, rules.instrument.symbol, feed))
        bars = with_scale_check(loaded, bars, feed)
    printer = DecisionPrinter(out, as_json)
    gc.freeze()  # the objects made so far stay: no collection walks through them during a decision
    if options is None:
        print_decisions(LiveAgent(loaded.networks, loaded.market_spec, loaded.search), bars, printer)
        return
    with add_path_to_errors(options.folder):
        options.folder.mkdir(parents=True, exist_ok=True)
    with locked(options.folder / "lock") as check_held:
        run_live(LiveRunner(loaded, options, printer, check_held), bars)


def print_decisions(agent: LiveAgent, feed: Iterable[Bar], printer: DecisionPrinter) -> None:
    """Print one line per closed bar after the warm-up."""
    for bar in feed:
        begin = time.perf_counter()
        if agent.on_bar(bar):
            printer.print(agent.decision_row(bar, elapsed_us(begin)))


def run_live(runner: LiveRunner, feed: Iterable[Bar]) -> None:
    """Run `runner` over the bars until the feed ends; on any fault the target goes flat first."""
    lock, done = threading.Lock(), threading.Event()
    threading.Thread(target=watch_limits, args=(runner, lock, done), daemon=True).start()
    try:
        for bar in feed:
            with lock:
                runner.on_bar(bar)
        with lock:
            runner.check_between_bars()  # a HALT file counts even if no bar is new
    except (BrokenPipeError, HaltedError):
        raise
    except Exception as error:
        with lock:
            runner.fail(error)
        raise
    finally:
        with lock:
            done.set()
            runner.close()


def watch_limits(runner: LiveRunner, lock: threading.Lock, done: threading.Event) -> None:
    """End the process when a limit is hit while the feed is silent: nothing else ends a read that waits."""
    while not done.wait(WATCH_INTERVAL_S):
        with lock:
            if done.is_set():
                return
            try:
                runner.check_between_bars()
            except Exception as error:  # in this thread nobody else sees it, and no run goes on unwatched
                if not isinstance(error, (HaltedError, StaleFeedError)):
                    runner.fail(error)
                log(f"swt: {error or repr(error)}")
                os._exit(getattr(error, "exit_code", 1))


def feed_symbol(feed: str) -> str:
    """The symbol in the name of a feed's file, or -."""
    instrument = find_instrument(Path(feed).name)
    return instrument.symbol if instrument else "-"
