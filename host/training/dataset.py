"""Bars split into a training and a test part, and the features of the bars that the replay refers to."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from host.artifact.networks import InstrumentProfile, MarketSpec
from host.config import Config, ConfigError, MarketConfig
from host.data.instruments import FX, Instrument, find_instrument, hours_of
from kernels.market.bars import Bars, slice_bars
from kernels.market.calendar import DAY_NS, MIN_SEASON_WEEKS, SATURDAY_NOON, WEEK_NS, ClosedHours
from kernels.market.chance import fit_chance_codes
from kernels.market.episodes import episode_starts, longest_episodes
from kernels.market.features import HISTORY, compute_features, fit_normaliser, new_feature_spec
from kernels.market.ledger import new_market

# Bars that the normaliser and the codes are fitted to, evenly spaced over the training part.
MAX_FIT_BARS = 20_000
SLIPPAGE_OF_SPREAD = 1 / 8  # of the usual spread
SWAP_PIPS = -0.5, -0.1  # of a night long and short, of pairs of PIPS_OF_PRICE pips, as most pairs are
SWAP_OF_PRICE = (-0.05 / 365, -0.01 / 365)  # of the price of all else, a night: about what brokers take of indices
PAIR_PRICE_PIPS = 3_000.0, 60_000.0


class Dataset(NamedTuple):
    """A market to train on."""

    bars: Bars
    extra_features: NDArray[np.float32]  # [T, E] columns that only a self-test has; a mirrored price negates them
    train_stop: int  # bars [0, train_stop) are the training part
    test_first: int  # first decision of the test part, an embargo later
    market_spec: MarketSpec
    starts: NDArray[np.int64]  # first bars of the training sessions
    rejects: dict[str, int]  # starts refused, by reason


class DatasetError(ValueError):
    """The bars do not suffice or do not fit the instrument."""

    exit_code = 4


def new_dataset(
    bars: Bars, extra: NDArray[np.float32], config: Config, instrument: Instrument, interval_ns: int, threads: int
) -> Dataset:
    """Split the bars and fit everything that is fitted, to the training part only."""
    if not all(np.isfinite(column).all() for column in bars):
        raise DatasetError("a price, volume or time of the bars is not a finite number")
    split, length = split_bars(bars.time, config, instrument, interval_ns), config.market.episode_length
    history, stop, hours = split.history_bars, split.train_stop, split.hours
    starts, rejects = episode_starts(bars, 0, stop, length, history, interval_ns, hours)
    if split.shortage:
        reasons = ", ".join(f"{count} {reason}" for reason, count in rejects.items() if count)
        raise DatasetError(
            f"{len(bars.time)} bars give no training session of {length} decisions ({reasons}); {split.shortage}"
        )
    setting = fit_market_spec(bars, extra, config, instrument, interval_ns, hours, stop, threads)
    return Dataset(bars, extra, stop, split.test_first, setting, starts, rejects)


class DataSplit(NamedTuple):
    """The training and the test part of bars."""

    history_bars: int  # bars that a decision needs
    train_stop: int
    test_first: int
    hours: ClosedHours  # that the training part shows
    shortage: str  # what gives a training session where there is none


def split_bars(time: NDArray[np.int64], config: Config, instrument: Instrument, interval_ns: int) -> DataSplit:
    """How bars that close at `time` [T] are split."""
    stop, length = int(len(time) * config.train.train_fraction), config.market.episode_length
    history = HISTORY + context_bars(config) - 1
    hours, test_first = hours_of(time[:stop], instrument, interval_ns), max(stop + length, history)
    longest, whole = longest_episodes(time, stop, history, interval_ns, hours)
    enough = longest >= length and test_first + 1 < len(time)
    lack = "" if enough else shortage_remedy(time, history, stop, longest, whole, config)
    return DataSplit(history, stop, test_first, hours, lack)


def shortage_remedy(
    time: NDArray[np.int64], history: int, train_stop: int, longest: int, whole: float, config: Config
) -> str:
    """What gives a training session where bars that close at `time` [T] do not.

    `longest` decisions fit into the training part, `whole` between two holes: no number of bars changes the latter.
    """
    T, share, length = len(time), config.train.train_fraction, config.market.episode_length
    weeks = MIN_SEASON_WEEKS * WEEK_NS / max(int(np.ptp(time)) if T else 0, 1) * T  # bars of weeks that tell the hours
    enough = math.ceil(max((history + length) / share, (length + 2) / (1 - share))) + 1
    enough = max(enough, math.ceil(weeks / share) + 1) if T >= enough else enough
    fits = min(longest, T - train_stop - 2)
    shorter = f"--set market.episode_length={fits}" if fits > config.train.td_steps else ""
    if whole < length:
        cause = f"the longest stretch between two holes has {whole:.0f}, and more bars do not change that: "
        return cause + (shorter or "bring bars with fewer holes")
    more = f"bring at least {enough} bars" if T < enough else "bring bars with fewer holes"
    return f"{more} or {shorter}" if shorter else more


def context_bars(config: Config) -> int:
    """Bars whose features the root network is given."""
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
    """Costs, feature specification, normaliser and chance codes from bars [0, train_stop)."""
    m, profile = config.market, measure_profile(slice_bars(bars, 0, train_stop), instrument)
    try:
        market = new_market(
            range_px=float(np.mean(bars.high[:train_stop] - bars.low[:train_stop])),
            pip_px=instrument.pip,
            interval_ns=interval_ns,
            **resolve_costs(m, instrument, profile),
            mae_penalty=m.mae_penalty if m.reward == "drawdown_penalised" else 0.0,
            reverse=m.reverse,
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
    """The scale of the prices of the training part."""
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
    """Slippage, commission and swap in price; those that nobody has set follow the instrument."""
    pip, price = instrument.pip, profile.price
    slippage_px = SLIPPAGE_OF_SPREAD * profile.usual_spread_px if m.slippage is None else m.slippage * pip
    is_pair = instrument.hours == FX and PAIR_PRICE_PIPS[0] <= price / pip <= PAIR_PRICE_PIPS[1]
    swaps_px = [share * (pip if is_pair else price) for share in (SWAP_PIPS if is_pair else SWAP_OF_PRICE)]
    given = [swap * pip if swap is not None else None for swap in (m.swap_long, m.swap_short)]
    swap_long_px, swap_short_px = (usual if own is None else own for own, usual in zip(given, swaps_px, strict=True))
    return {
        "slippage_px": slippage_px,
        "commission_px": m.commission * pip,
        "swap_long_px": swap_long_px,
        "swap_short_px": swap_short_px,
    }
