"""Whether a feed is of the market that a model was trained on: its instrument, and the scale of its prices."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from host.artifact.manifest import LoadedModel
from host.artifact.model_file import ModelError
from host.data.feed import Bar
from host.data.formats import ReadOptions
from host.data.instruments import find_instrument, same_instrument

MAX_PRICE_FACTOR = 2.0  # that prices may be beyond those of the training part
MAX_RANGE_FACTOR = 10.0  # between the mean range of bars and that of the training part
INSIST_HINT = "--insist trades it all the same"


def check_feed_name(loaded: LoadedModel, reading: ReadOptions, name: str) -> None:
    """ModelRefused where --symbol or the name of a feed speaks of another instrument: before a line of it is read."""
    named = find_instrument(Path(name).name)
    check_symbol(loaded, reading.symbol or (named.symbol if named else "-"), name)


def check_symbol(loaded: LoadedModel, symbol: str, name: str) -> None:
    """ModelRefused where a feed is of another instrument than the model; brokers' suffixes make no difference."""
    trained = loaded.market_spec.profile.symbol
    if not same_instrument(symbol, trained):
        raise ModelError(
            f"{name} is {symbol}, the model was trained on {trained}: give --model one of {symbol}; {INSIST_HINT}"
        )


def check_scale(
    loaded: LoadedModel, close: NDArray[np.float64], bar_range: NDArray[np.float64] | None, name: str
) -> None:
    """ModelRefused where closes [n], or ranges of bars [n], are of another scale than those of the training part."""
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
    """The bars of a feed; the first price is checked, and all those of the warm-up before the last of them goes on."""
    seen = list[Bar]()
    for bar in feed:
        if len(seen) < loaded.networks.history:
            seen.append(bar)
            if len(seen) in (1, loaded.networks.history):
                close, high, low = (np.array([getattr(b, n) for b in seen]) for n in ("close", "high", "low"))
                check_scale(loaded, close, high - low if len(seen) > 1 else None, name)
        yield bar
