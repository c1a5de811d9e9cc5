"""`Dataset`: bars split into training, validation and test parts, and everything that is fitted to the first."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from host.artifact.networks import InstrumentProfile, MarketSpec
from host.config import Config, ConfigError, MarketConfig
from host.data.instruments import FX, Instrument, find_instrument, hours_of
from host.data.parsing import format_utc
from kernels.market.bars import Bars, slice_bars
from kernels.market.calendar import DAY_NS, MIN_SEASON_WEEKS, SATURDAY_NOON, WEEK_NS, ClosedHours
from kernels.market.chance import fit_chance_codes
from kernels.market.episodes import episode_starts, longest_episodes
from kernels.market.features import HISTORY, compute_features, fit_normaliser, new_feature_spec
from kernels.market.ledger import new_market

# The normaliser and the codes are fitted to at most so many bars, evenly spaced over the training part.
MAX_FIT_BARS = 20_000
SLIPPAGE_OF_SPREAD = 1 / 8
PAIR_PRICE_PIPS = 3_000.0, 60_000.0  # prices of most currency pairs, in pips
SWAP_PIPS = -0.5, -0.1  # a night, long and short, of a pair within PAIR_PRICE_PIPS
SWAP_OF_PRICE = (-0.05 / 365, -0.01 / 365)  # the same of other instruments: about what brokers take for indices


class Dataset(NamedTuple):
    """Bars [T], their split, and the market that was fitted to the training part."""

    bars: Bars
    extra_features: NDArray[np.float32]  # [T, extra features] of a self-test; a mirrored price negates them
    train_stop: int  # bars [0, train_stop) are the training part
    validation_stop: int  # bars [train_stop, validation_stop) are the validation part
    test_first: int  # bar of the first test decision, an embargo of an episode after validation_stop
    market_spec: MarketSpec
    starts: NDArray[np.int64]  # bars on which an episode of training may start
    rejects: dict[str, int]  # number of other bars of the training part, by reason
    episode_length: int  # decisions


class DatasetError(ValueError):
    """Bars that do not suffice for an episode, or are not finite."""

    exit_code = 4


def new_dataset(
    bars: Bars, extra: NDArray[np.float32], config: Config, instrument: Instrument, interval_ns: int, threads: int
) -> Dataset:
    """Split the bars and fit features, codes and costs to the training part; DatasetError where they do not suffice."""
    check_bars(bars)
    split, length = split_bars(bars.time, config, instrument, interval_ns), config.market.episode_length
    history, stop, hours = split.history_bars, split.train_stop, split.hours
    starts, rejects = episode_starts(bars, 0, stop, length, history, interval_ns, hours)
    if split.shortage:
        reasons = ", ".join(f"{count} {reason}" for reason, count in rejects.items() if count)
        raise DatasetError(
            f"{len(bars.time)} bars give no training episode of {length} decisions ({reasons}); {split.shortage}"
        )
    spec = fit_market_spec(bars, extra, config, instrument, interval_ns, hours, stop, threads)
    return Dataset(bars, extra, stop, split.validation_stop, split.test_first, spec, starts, rejects, length)


def check_bars(bars: Bars) -> None:
    """Raise DatasetError with the name and the time of the first number that is not finite."""
    for name, column in bars._asdict().items():
        if not np.isfinite(column).all():
            close = format_utc(bars.time[np.argmin(np.isfinite(column))])
            raise DatasetError(f"{name} of the bar that closed at {close} is not a finite number: mend or delete it")


class DataSplit(NamedTuple):
    """Where the training and validation parts end and the test part begins."""

    history_bars: int  # bars that a decision needs
    train_stop: int
    validation_stop: int
    test_first: int
    hours: ClosedHours  # learnt from the training part
    longest: int  # decisions of the longest episode that fits into the training part
    shortage: str  # a way to get a training episode, where the bars give none; else empty


def split_bars(time: NDArray[np.int64], config: Config, instrument: Instrument, interval_ns: int) -> DataSplit:
    """The split of bars that close at `time` [T]."""
    t, length = config.train, config.market.episode_length
    validation_stop = int(len(time) * t.train_fraction)
    stop = validation_stop - int(validation_stop * t.validation_fraction)
    history = HISTORY + context_bars(config) - 1
    hours, test_first = hours_of(time[:stop], instrument, interval_ns), max(validation_stop + length, history)
    longest, gapless = longest_episodes(time, stop, history, interval_ns, hours)
    enough = longest >= length and test_first + 1 < len(time)
    shortage = "" if enough else shortage_remedy(time, history, stop, longest, gapless, config)
    return DataSplit(history, stop, validation_stop, test_first, hours, longest, shortage)


def shortage_remedy(
    time: NDArray[np.int64], history: int, train_stop: int, longest: int, gapless: float, config: Config
) -> str:
    """Advice that gives a training episode, where bars that close at `time` [T] give none.

    An episode of `longest` decisions fits into the training part.  One of `gapless` decisions fits between two gaps,
    and more bars do not change that.
    """
    T, t, length = len(time), config.train, config.market.episode_length
    fraction = t.train_fraction * (1 - t.validation_fraction)
    # bars of as many weeks as the hours are learnt from
    weeks = MIN_SEASON_WEEKS * WEEK_NS / max(int(np.ptp(time)) if T else 0, 1) * T
    enough = math.ceil(max((history + length) / fraction, (length + 2) / (1 - t.train_fraction))) + 1
    enough = max(enough, math.ceil(weeks / fraction) + 1) if T >= enough else enough
    fits = min(longest, T - int(T * t.train_fraction) - 2)
    shorter = f"--set market.episode_length={fits}" if fits > config.train.td_steps else ""
    if gapless < length:
        cause = f"the longest stretch between two gaps has {gapless:.0f}, and more bars do not change that: "
        return cause + (shorter or "bring bars with fewer gaps")
    more = f"bring at least {enough} bars" if T < enough else "bring bars with fewer gaps"
    return f"{more} or {shorter}" if shorter else more


def context_bars(config: Config) -> int:
    """Number of bars whose features the root network takes."""
    return config.network.context if config.network.dynamics == "transformer" else 1


def fit_market_spec(
    bars: Bars,
    extra: NDArray[np.float32],
    config: Config,
    instrument: Instrument,
    interval_ns: int,
    hours: ClosedHours,
    train_stop: int,
    threads: int,
) -> MarketSpec:
    """Costs, feature specification, normaliser and chance codes, fitted to bars [0, train_stop)."""
    m, profile = config.market, measure_profile(slice_bars(bars, 0, train_stop), instrument)
    try:
        market = new_market(
            range_px=float(np.mean(bars.high[:train_stop] - bars.low[:train_stop])),
            pip_px=instrument.pip,
            interval_ns=interval_ns,
            **resolve_costs(m, instrument, profile),
            mae_penalty=m.mae_penalty if m.reward == "drawdown_penalised" else 0.0,
            reverse=m.reverse,
            position_adjustment=m.position_adjustment,
            risk_aversion=m.risk_aversion,
            closes_weekends=bool(hours[SATURDAY_NOON]),
            sizes=tuple(m.position_sizes),
        )
    except ValueError as error:
        raise ConfigError(f"market: {error}") from None
    spec = new_feature_spec(config.features.J, config.features.Q, interval_ns)
    ts = np.unique(np.linspace(HISTORY - 1, train_stop - 2, MAX_FIT_BARS).astype(np.int64))
    X = np.concatenate([compute_features(spec, bars, ts, threads), extra[ts]], axis=1)
    codes = fit_chance_codes(bars, ts, config.network.num_chance_codes)
    return MarketSpec(spec, fit_normaliser(X, spec), codes, market, hours, profile)


def measure_profile(bars: Bars, instrument: Instrument) -> InstrumentProfile:
    """Symbol, prices, day range and spread of the training part."""
    day = np.flatnonzero(np.diff((bars.time - 1) // DAY_NS, prepend=-1))
    days = np.maximum.reduceat(bars.high, day) - np.minimum.reduceat(bars.low, day)
    usual = find_instrument(instrument.symbol) or instrument
    return InstrumentProfile(
        symbol=instrument.symbol,
        point=float(instrument.point),
        price=float(np.median(bars.close)),
        low=float(bars.low.min()),
        high=float(bars.high.max()),
        day_px=float(days.mean()),
        spread_px=float(np.mean(bars.ask_close - bars.close)),
        usual_spread_px=float(usual.spread_pips * usual.pip),
    )


def resolve_costs(m: MarketConfig, instrument: Instrument, profile: InstrumentProfile) -> dict[str, Any]:
    """Slippage, commission and overnight swap as prices; an unset one follows the instrument."""
    pip, price = instrument.pip, profile.price
    slippage_px = SLIPPAGE_OF_SPREAD * profile.usual_spread_px if m.slippage is None else m.slippage * pip
    is_pair = instrument.hours == FX and PAIR_PRICE_PIPS[0] <= price / pip <= PAIR_PRICE_PIPS[1]
    usual_px = [swap * pip for swap in SWAP_PIPS] if is_pair else [fraction * price for fraction in SWAP_OF_PRICE]
    swap_long_px, swap_short_px = (
        usual if swap is None else swap * pip for swap, usual in zip((m.swap_long, m.swap_short), usual_px, strict=True)
    )
    return {
        "slippage_px": slippage_px,
        "commission_px": m.commission * pip,
        "swap_long_px": swap_long_px,
        "swap_short_px": swap_short_px,
    }
