"""Synthetic markets whose optimal policy can be computed (`host/evaluation/optimum.py`).  Nobody can trade them.

Bars of one minute around the clock, weekends too.  A bar opens at the close before it, so a fill is at the price of the
decision.  Deviations are standard deviations of a move.

    noise         a random walk without drift: the optimum is to stay flat
    planted       close = mean + x, x' = phi x + e, phi = 0.5^(1 / half-life): x predicts the next move
    leak          noise; an extra feature is the sign of the next move: an agent that earns nothing here is broken
    planted-hard  planted with phi = 0.95 plus a random walk of half its noise: x is hidden, its best estimate is the
                  Kalman filter's, and the optimum is the best policy over that estimate
    close         noise with phases: quiet, then 4 bars that rise by 1.5 deviations, then 2 that fall by 1.7; or the
                  same mirrored.  Extra features give the phase; the spread is 4 deviations.  An entry into the rise
                  earns 2 deviations if it is closed when the fall begins, and loses 1.4 if it is not
"""

from __future__ import annotations

import math
from bisect import bisect_right
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from host.data.instruments import DEFAULT_SPREAD_PIPS, Instrument
from kernels.market.bars import SECOND_NS, Bars

Floats = NDArray[np.float64]
MARKETS = ("noise", "planted", "leak", "planted-hard", "close")
SPREAD_STDS = {"noise": 0.5, "planted": 0.5, "leak": 1.0, "planted-hard": 1.0, "close": 4.0}  # deviations
HALF_LIFE = {"planted": math.log(0.5) / math.log(0.9), "planted-hard": math.log(0.5) / math.log(0.95)}  # bars
WALK_STD = 0.5  # of the walk in `planted-hard`, in standard deviations of e
QUIET_BARS, RISE_BARS, FALL_BARS = 12, 4, 2  # of `close`; QUIET_BARS is a mean
RISE_MOVE, FALL_MOVE = 1.5, -1.7  # expected moves, deviations
START_PRICE, PIP, INTERVAL_NS = 1.1, 0.0001, 60 * SECOND_NS
SYNTHETIC_INSTRUMENT = Instrument("-", PIP, PIP / 10, DEFAULT_SPREAD_PIPS)
MIN_PRICE = 0.2  # a random walk that falls below is refused: a pip would no longer be the same fraction of it
FIRST_CLOSE_NS = 1_577_836_800 * SECOND_NS  # 2020-01-01 00:00 UTC
SUBSTEPS = 16  # of the path inside a bar, for its high and low
# Streams of random numbers: the closes must not depend on the number of other draws.
STREAM_PATH, STREAM_INTRABAR, STREAM_WALK, STREAM_PHASES = 0, 1, 2, 3
MAX_ITERATIONS = 100_000


class SyntheticOptions(NamedTuple):
    """The parameters of a synthetic market."""

    half_life: float | None = None  # bars, of `planted` and `planted-hard`; None: HALF_LIFE
    noise: float = 5.0  # standard deviation of a move, pips
    cost: float | None = None  # spread, deviations; None: SPREAD_STDS
    length: int = 100_000  # bars
    seed: int = 0


class SyntheticMarket(NamedTuple):
    """A market, and its true state, which an agent does not see."""

    name: str
    options: SyntheticOptions
    bars: Bars
    extra: NDArray[np.float32]  # [T, extra features]
    state: Floats  # [T] planted: x, px; planted-hard: its estimate; leak: sign of the next move; close: phase; noise: 0
    spread_px: float
    noise_px: float
    phi: float
    state_noise_px: float  # standard deviation of the innovation of `state`


def make_market(name: str, options: SyntheticOptions) -> SyntheticMarket:
    """The market `name` of MARKETS, or ValueError; a longer one of the same seed begins with the same bars."""
    check_options(name, options)
    half_life = HALF_LIFE.get(name) if options.half_life is None else options.half_life
    options = options._replace(half_life=half_life)
    noise_px = options.noise * PIP
    cost = SPREAD_STDS[name] if options.cost is None else options.cost
    phi = 0.5 ** (1.0 / half_life) if name in HALF_LIFE and half_life else 1.0
    path, phase = _draw_path(name, options, noise_px, phi)
    if path.min() < MIN_PRICE:
        raise ValueError(f"the price falls below {MIN_PRICE}: make the market shorter or its noise smaller")
    bars = _make_bars(path[:-1], noise_px, cost * noise_px, options.seed)
    extra, state_noise_px = np.empty((options.length, 0)), noise_px
    if name == "planted":
        state = path[1:-1] - START_PRICE
    elif name == "planted-hard":
        gain, innovation = kalman_gain(phi, WALK_STD)
        state, state_noise_px = kalman_states(path, phi, gain)[1:-1], gain * innovation * noise_px
    elif name == "leak":
        state = np.sign(np.diff(path)[1:])
        extra = state[:, None]
    elif name == "close":
        state = phase[1:].astype(np.float64)
        extra = CLOSE_PHASES.features[phase[1:]]
    else:
        state = np.zeros(options.length)
    return SyntheticMarket(
        name, options, bars, extra.astype(np.float32), state, cost * noise_px, noise_px, phi, state_noise_px
    )


def check_options(name: str, options: SyntheticOptions) -> None:
    """Raise ValueError unless the market `name` can have `options`."""
    if name not in MARKETS:
        raise ValueError(f"no market {name!r}: {', '.join(MARKETS)}")
    half_life = 1.0 if options.half_life is None else options.half_life
    if not (half_life > 0 and options.noise > 0 and options.length > 1 and options.seed >= 0):
        raise ValueError("half-life and noise must be positive, the length 2 or more, the seed 0 or more")
    if options.cost is not None and not options.cost >= 0:
        raise ValueError("the cost must not be negative")


def _generator(seed: int, stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array([seed, stream], np.uint64)))


def _draw_path(name: str, options: SyntheticOptions, noise_px: float, phi: float) -> tuple[Floats, NDArray[np.int64]]:
    """Closes [T + 2], one before the first bar and one after the last; phases [T + 1] of the moves between them."""
    draws = _generator(options.seed, STREAM_PATH).standard_normal(options.length + 2) * noise_px
    draws[0] *= 0.0 if phi == 1.0 else 1.0 / math.sqrt(1.0 - phi * phi)  # stationary from the start
    phase = np.zeros(options.length + 1, np.int64)
    if name == "close":
        phase = _draw_phases(options)
        draws[1:] += CLOSE_PHASES.drift[phase] * noise_px
    path = START_PRICE + np.array(list(accumulate(draws.tolist(), lambda x, e: phi * x + e)))
    if name == "planted-hard":
        walk = _generator(options.seed, STREAM_WALK).standard_normal(options.length + 1)
        path[1:] += np.cumsum(walk) * (WALK_STD * noise_px)
    return path, phase


class ClosePhases(NamedTuple):
    """The phases of `close`: phase 0 is quiet, then the bars of a rise and its fall, then the same mirrored."""

    drift: Floats  # [phases] expected move, deviations
    features: Floats  # [phases, 2] fraction left of a rise and of a fall; negative where mirrored
    transition: Floats  # [phases, phases] probabilities


def _new_phases() -> ClosePhases:
    drift, features = [0.0], [(0.0, 0.0)]
    for sign in (1.0, -1.0):
        drift += [sign * RISE_MOVE] * RISE_BARS + [sign * FALL_MOVE] * FALL_BARS
        features += [(sign * left / RISE_BARS, 0.0) for left in range(RISE_BARS, 0, -1)]
        features += [(0.0, sign * left / FALL_BARS) for left in range(FALL_BARS, 0, -1)]
    chain, length = np.eye(len(drift), k=1), RISE_BARS + FALL_BARS
    chain[[0, length, 2 * length]] = 0.0
    chain[0, [0, 1, 1 + length]] = 1 - 1 / QUIET_BARS, 0.5 / QUIET_BARS, 0.5 / QUIET_BARS
    chain[[length, 2 * length], 0] = 1.0
    return ClosePhases(np.array(drift), np.array(features), chain)


CLOSE_PHASES = _new_phases()


def _draw_phases(options: SyntheticOptions) -> NDArray[np.int64]:
    """[T + 1] phases of `close`, the first of them quiet."""
    draws = _generator(options.seed, STREAM_PHASES).random(options.length)
    table = np.cumsum(CLOSE_PHASES.transition, axis=1)[:, :-1].tolist()
    phases = accumulate(draws.tolist(), lambda phase, u: bisect_right(table[phase], u), initial=0)
    return np.array(list(phases))


def kalman_gain(phi: float, walk: float) -> tuple[float, float]:
    """Gain and standard deviation of the innovation of the stationary Kalman filter of x, in deviations of e.

    The price p = x + w is observed exactly; x' = phi x + e, w' = w + u, and `walk` is the standard deviation of u.
    P is the variance of x given all prices.
    """
    P = 1.0 / (1.0 - phi * phi)
    for _ in range(MAX_ITERATIONS):
        S = (phi - 1.0) ** 2 * P + 1.0 + walk * walk
        gain = (phi * (phi - 1.0) * P + 1.0) / S
        fresh = phi * phi * P + 1.0 - gain * gain * S
        if abs(fresh - P) < 1e-14 * P:
            return gain, math.sqrt(S)
        P = fresh
    raise ArithmeticError("the filter does not settle: the half-life is too long")


def kalman_states(path: Floats, phi: float, gain: float) -> Floats:
    """[T + 2] estimates of x along the closes `path` by the stationary filter, from 0."""
    # x' = phi x + gain (move - (phi - 1) x)
    decay = phi - gain * (phi - 1.0)
    return np.array(list(accumulate((gain * np.diff(path)).tolist(), lambda x, e: decay * x + e, initial=0.0)))


def _make_bars(path: Floats, noise_px: float, spread_px: float, seed: int) -> Bars:
    """T bars through the T + 1 prices of `path`; a high or low is that of a Brownian bridge between two prices."""
    start, end = path[:-1], path[1:]
    steps = _generator(seed, STREAM_INTRABAR).standard_normal((len(end), SUBSTEPS)) * (noise_px / math.sqrt(SUBSTEPS))
    walk = np.cumsum(steps, axis=1)
    fraction = np.arange(1, SUBSTEPS + 1) / SUBSTEPS
    inside = start[:, None] + walk + fraction * (end - start - walk[:, -1])[:, None]
    high = np.maximum(np.maximum(start, end), inside[:, :-1].max(axis=1))
    low = np.minimum(np.minimum(start, end), inside[:, :-1].min(axis=1))
    time = FIRST_CLOSE_NS + INTERVAL_NS * np.arange(len(end), dtype=np.int64)
    return Bars(time, start.copy(), high, low, end.copy(), start + spread_px, end + spread_px, np.ones(len(end)))
