"""Markets whose best policy is known, and that policy: what `selftest` measures an agent against, and nothing else.

One-minute bars around the clock, weekends too; every bar opens at the close before it, so a fill is at the price seen.
    noise         a driftless random walk: the best is to stay flat
    planted       close = mean + x, x' = phi x + e, phi = 0.5^(1 / half-life): a spread, then a known expected move
    leak          noise, with the sign of the next move as an extra feature: an agent that finds nothing here is broken
    planted-hard  planted, phi = 0.95, under a random walk of half its noise: x is hidden, Kalman's filter knows best
    close         noise with phases: quiet, then 4 bars that rise by 1.5 deviations, then 2 that fall by 1.7; or the
                  same mirrored.  Extra features tell the phase; the spread is 4.  An entry into the rise is worth 2
                  if it is closed when the fall begins and -1.4 if it is not, and nothing done instead earns more
The best average reward per bar is found by relative value iteration (Puterman 1994, section 8.5) over the true state;
in `planted-hard` over the filter's, which is all that can be known of it.
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
SPREAD_STDS = {"noise": 0.5, "planted": 0.5, "leak": 1.0, "planted-hard": 1.0, "close": 4.0}  # deviations of a move
HALF_LIFE = {"planted": math.log(0.5) / math.log(0.9), "planted-hard": math.log(0.5) / math.log(0.95)}  # bars
WALK_STD = 0.5  # of `planted-hard`: the walk's deviation in those of e
QUIET_BARS, RISE_BARS, FALL_BARS = 12, 4, 2  # of `close`; quiet on average
RISE_MOVE, FALL_MOVE = 1.5, -1.7  # expected moves, deviations
START_PRICE, PIP, INTERVAL_NS = 1.1, 0.0001, 60 * SECOND_NS
SYNTHETIC_INSTRUMENT = Instrument("-", PIP, PIP / 10, DEFAULT_SPREAD_PIPS)
MIN_PRICE = 0.2  # a random walk that comes here is refused: its pips would no longer mean the same
FIRST_CLOSE_NS = 1_577_836_800 * SECOND_NS  # 2020-01-01 00:00 UTC
SUBSTEPS = 16  # of a bar's path, for its high and low
STREAM_PATH, STREAM_INTRABAR, STREAM_WALK, STREAM_PHASES = (
    0,
    1,
    2,
    3,
)  # streams of random numbers: what closes are made of must not depend on the rest
MAX_ITERATIONS = 100_000


class SyntheticOptions(NamedTuple):
    """What a market is made from."""

    half_life: float | None = None  # bars, of `planted` and `planted-hard`; None is HALF_LIFE
    noise: float = 5.0  # standard deviation of a move, pips
    cost: float | None = None  # spread in standard deviations of a move; None is SPREAD
    length: int = 100_000  # bars
    seed: int = 0


class SyntheticMarket(NamedTuple):
    """A market and what only its maker knows."""

    name: str
    options: SyntheticOptions
    bars: Bars
    extra: NDArray[np.float32]  # [T, E] features that the market gives away
    state: Floats  # [T] planted: x, px; planted-hard: Kalman's x; leak: sign of the next move; close: phase; noise: 0
    spread_px: float
    noise_px: float
    phi: float
    state_noise_px: float  # deviation of what is new in x or in Kalman's x


def make_market(name: str, options: SyntheticOptions) -> SyntheticMarket:
    """The market `name` of MARKETS; a longer one of the same seed begins with the same bars."""
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
    """Raise ValueError for a market that cannot be made."""
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
    """([T + 2] closes, one before the first bar and one after the last; [T + 1] phases of the moves between them)."""
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
    """The phases of `close`: 0 is quiet, then the bars of a rise and its fall, then the same mirrored."""

    drift: Floats  # [S] expected move, deviations
    features: Floats  # [S, 2] share that is left of a rise, of a fall; negative when mirrored
    transition: Floats  # [S, S] transition


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
    """[T + 1] phases of `close`, quiet at first."""
    draws = _generator(options.seed, STREAM_PHASES).random(options.length)
    table = np.cumsum(CLOSE_PHASES.transition, axis=1)[:, :-1].tolist()
    phases = accumulate(draws.tolist(), lambda phase, u: bisect_right(table[phase], u), initial=0)
    return np.array(list(phases))


def kalman_gain(phi: float, walk: float) -> tuple[float, float]:
    """(gain, deviation of the innovation) of the steady filter of x in p = x + w, in deviations of e.

    x' = phi x + e, w' = w + u, u of deviation `walk`, p seen exactly; P is the variance of x given all p.
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
    """[T + 2] the steady filter's x along the closes `path`, from 0."""
    # x' = phi x + gain (move - (phi - 1) x)
    decay = phi - gain * (phi - 1.0)
    return np.array(list(accumulate((gain * np.diff(path)).tolist(), lambda x, e: decay * x + e, initial=0.0)))


def _make_bars(path: Floats, noise_px: float, spread_px: float, seed: int) -> Bars:
    """T bars through the T + 1 prices of `path`; highs and lows are those of a Brownian bridge between them."""
    start, end = path[:-1], path[1:]
    steps = _generator(seed, STREAM_INTRABAR).standard_normal((len(end), SUBSTEPS)) * (noise_px / math.sqrt(SUBSTEPS))
    walk = np.cumsum(steps, axis=1)
    share = np.arange(1, SUBSTEPS + 1) / SUBSTEPS
    inside = start[:, None] + walk + share * (end - start - walk[:, -1])[:, None]
    high = np.maximum(np.maximum(start, end), inside[:, :-1].max(axis=1))
    low = np.minimum(np.minimum(start, end), inside[:, :-1].min(axis=1))
    time = FIRST_CLOSE_NS + INTERVAL_NS * np.arange(len(end), dtype=np.int64)
    return Bars(time, start.copy(), high, low, end.copy(), start + spread_px, end + spread_px, np.ones(len(end)))
