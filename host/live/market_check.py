"""Checks that a feed is of the market that the model was trained on: its instrument and the scale of its prices."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from host.artifact.manifest import LoadedModel, choose_market, load_models
from host.artifact.model_file import ModelError
from host.data.feed import Bar, open_lines
from host.data.formats import DataError, ReadOptions
from host.data.instruments import find_instrument, same_instrument
from host.data.layout import detect_layout, first_lines

MAX_PRICE_FACTOR = 2.0  # between a price and the lowest or highest price of the training part
MAX_RANGE_FACTOR = 10.0  # between the mean range of bars and that of the training part
INSIST_HINT = "--insist trades it all the same"


def load_model_of(feed: str, model: Path, reading: ReadOptions, insist: bool) -> LoadedModel:
    """The model for the instrument of a feed, as --symbol, its name or its column of symbols says.

    Raises ModelError if a model of several has none for it or, unless `insist`, if a model of one has another.
    """
    models, instrument = load_models(model), find_instrument(Path(feed).name)
    symbol = reading.symbol or (instrument.symbol if instrument else None)
    if len(models) > 1:
        return choose_market(model, models, symbol or column_symbol(feed, reading))
    if not insist:
        check_symbol(models[0], symbol or "-", feed)
    return models[0]


def column_symbol(feed: str, reading: ReadOptions) -> str:
    """The symbol in the first lines of a file; empty for a file without that column, and for a stream."""
    with suppress(DataError, OSError):
        if Path(feed).is_file():
            name, lines = open_lines(Path(feed), follow=False, wait=lambda: None)
            return detect_layout(first_lines(text for _, text in lines), reading, name).symbol
    return ""


def check_symbol(loaded: LoadedModel, symbol: str, name: str) -> None:
    """Raise ModelError if a feed is of another instrument than the model; brokers' suffixes are ignored."""
    trained = loaded.market_spec.profile.symbol
    if not same_instrument(symbol, trained):
        raise ModelError(
            f"{name} is {symbol}, the model was trained on {trained}: give --model one of {symbol}, or --symbol "
            f"{trained} if it is that; {INSIST_HINT}"
        )


def check_scale(
    loaded: LoadedModel, close: NDArray[np.float64], bar_range: NDArray[np.float64] | None, name: str
) -> None:
    """Raise ModelError if `close` [n] or `bar_range` [n], both prices, are far from those of the training part."""
    profile, range_px = loaded.market_spec.profile, loaded.market_spec.market.range_px
    price, mean_px = float(np.median(close)), range_px if bar_range is None else float(np.mean(bar_range))
    fits_price = profile.low / MAX_PRICE_FACTOR <= price <= profile.high * MAX_PRICE_FACTOR
    if fits_price and range_px / MAX_RANGE_FACTOR <= mean_px <= range_px * MAX_RANGE_FACTOR:
        return
    raise ModelError(
        f"{name}: prices of about {price:.6g}{'' if bar_range is None else f', bars of {mean_px:.3g}'}; the model "
        f"({profile.symbol}) knows prices from {profile.low:.6g} to {profile.high:.6g} and bars of {range_px:.3g}: "
        f"another instrument, another unit, or it is time to train again; {INSIST_HINT}"
    )


def with_scale_check(loaded: LoadedModel, feed: Iterable[Bar], name: str) -> Iterator[Bar]:
    """Yield the bars of a feed; check the first close, and closes and ranges of the whole warm-up at its last bar.

    Raises ModelError before the bar that completes the warm-up is yielded, so before any decision.
    """
    warm_up, history = list[Bar](), loaded.networks.history
    for bar in feed:
        if len(warm_up) < history:
            warm_up.append(bar)
            if len(warm_up) in (1, history):
                close, high, low = (np.array([getattr(b, n) for b in warm_up]) for n in ("close", "high", "low"))
                check_scale(loaded, close, high - low if len(warm_up) > 1 else None, name)
        yield bar
