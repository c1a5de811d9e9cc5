"""`check-lookahead` and `check-warmup`: what a model sees of a file of bars depends on no bar that it must not see."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

from host.analysis.lookahead import (
    SPAN,
    Difference,
    draw_bars,
    find_fit_lookahead,
    find_lookahead,
    find_short_warmup,
    observe_decisions,
    observe_features,
)
from host.commands.backtest import load_model_and_bars
from host.config import Config, flatten, merge
from host.console import progress
from host.data.formats import DataError, ReadOptions
from host.data.parsing import format_utc
from host.training.dataset import DatasetError
from kernels.market.bars import SECOND_NS

MAX_SHOWN = 10  # differences of a part


def check_model(
    csv: Path | None, model: Path, reading: ReadOptions, checks: int, seed: int, insist: bool, warmup: bool
) -> dict[str, Any]:
    """The document of `check-warmup --json` if `warmup`, else of `check-lookahead --json`; DataError for few bars."""
    loaded, bars, source = load_model_and_bars(csv, model, reading, insist)
    history, find = loaded.networks.history, find_short_warmup if warmup else find_lookahead
    ts, parts = draw_bars(len(bars.time), history, checks, seed), dict[str, dict[str, Any]]()

    def add(name: str, checked: str, found: list[Difference]) -> None:
        rows = [{"time": format_utc(int(bars.time[d.bar])), **d._asdict()} for d in found[:MAX_SHOWN]]
        parts[name] = {"checked": checked, "count": len(found), "differences": rows}

    if not ts:
        raise DataError(f"{source.path}: {len(bars.time)} bars; bring more than the {history} of the warm-up")
    observations = {"features": observe_features(loaded.market_spec.features), "decisions": observe_decisions(loaded)}
    for name, observed in observations.items():
        found = list[Difference]()
        with progress(name) as report:
            for i, t in enumerate(ts):
                report(i / len(ts), f"bar {i} of {len(ts)}")
                found += find(observed, bars, t)
        add(name, f"{len(ts)} bars drawn, up to {SPAN} at a time", found)
    if not warmup:
        settings = {name: value for name, value in flatten(loaded.manifest["configuration"]) if value is not None}
        config = merge(Config(), settings, str(model))
        try:
            fit = find_fit_lookahead(bars, config, source.instrument, source.interval_s * SECOND_NS)
            add("fit", "normaliser, chance codes, costs and hours of the training part", fit)
        except DatasetError as error:
            add("fit", f"NOT CHECKED: {error}", [])
    return {"source": source.path, "parts": parts, "passed": not any(part["count"] for part in parts.values())}


def print_check(document: dict[str, Any], out: IO[str]) -> None:
    """Print a line a part, and under it its first differences."""
    for name, part in document["parts"].items():
        print(f"{name:>10}: {part['count'] or 'no'} differences; {part['checked']}", file=out)
        for row in part["differences"]:
            print("{time} {column}: {before:.40}, {change}: {after:.40}".format(**row), file=out)
