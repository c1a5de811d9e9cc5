"""Synthetic markets whose optimal policy can be computed (`host/evaluation/optimum.py`).  Nobody can trade them.

Bars of one minute around the clock, weekends too.  A bar opens at the close before it, so a fill is at the price of the
decision.  Deviations are standard deviations of the noise of a move.

    noise         a random walk without drift: the optimum is to stay flat
    planted       close = mean + x, x' = phi x + e, phi = 0.5^(1 / half-life): x predicts the next move
    leak          noise; an extra feature is the sign of the next move: an agent that earns nothing here is broken
    planted-hard  planted with phi = 0.95 plus a random walk of half its noise: x is hidden, its best estimate is the
                  Kalman filter's, and the optimum is the best policy over that estimate
    close         noise with phases: quiet, then 4 bars that rise by 1.5 deviations, then 2 that fall by 1.7; or the
                  same mirrored.  Extra features give the phase; the spread is 4 deviations.  An entry into the rise
                  earns 2 deviations if it is closed when the fall begins, and loses 1.4 if it is not

Each of the others needs what an enhancement offers, and a test computes what is left without it:

    memory        an extra feature is a coin that each bar tosses, and the coin of 5 bars ago is the sign of the next
                  move, of 0.8 deviations.  Who sees the newest bar only earns nothing
    delayed       an extra feature promises a jump of 6 deviations, at one of the next 10 bars, each as likely: the sum
                  of the rewards is known, and hardly any single one of them.  The spread is 3 deviations: a jump is
                  more, but the mean move of its chance code, 2 deviations, is less
    jumps         noise with phases that rise by 3 deviations a bar, and that a bar with a path 10 times as wide ends: a
                  fall of 3 follows it.  An extra feature gives the phase.  No move tells that the fall comes.  An
                  entry pays if it is closed before the fall, so a search must see it come in the bars it imagines
    sparse        noise but for 2 bars in 250, which rise or fall by 2 deviations and which an extra feature announces
    stale         an extra feature is the sign of phases of 0.6 deviations a bar; until two thirds of the training bars
                  it had the other sign.  Who learns of all bars alike trades against the rule of today
    risk          planted with a half-life of 2 bars and a risk term in the reward, which is quadratic in the size: the
                  best size is in between, and costs make it worth keeping one that is nearly the best
                  (`certainty_equivalent`).  An error in the expected move is one in the size, and profit is linear in
                  the move, this objective quadratic: so the signal is stronger than that of planted
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from host.data.instruments import DEFAULT_SPREAD_PIPS, Instrument
from host.evaluation.market_models import (
    STREAM_INTRABAR,
    DrawnPath,
    LeakModel,
    LevelModel,
    MarketModel,
    PathSpec,
    PhaseModel,
    generator,
)
from kernels.market.bars import SECOND_NS, Bars

Floats = NDArray[np.float64]
PIP, INTERVAL_NS = 0.0001, 60 * SECOND_NS
SYNTHETIC_INSTRUMENT = Instrument("-", PIP, PIP / 10, DEFAULT_SPREAD_PIPS)
MIN_PRICE = 0.2  # a random walk that falls below is refused: a pip would no longer be the same fraction of it
FIRST_CLOSE_NS = 1_577_836_800 * SECOND_NS  # 2020-01-01 00:00 UTC
SUBSTEPS = 16  # of the path inside a bar, for its high and low
OLD_RULE = 2 / 3  # of the training bars of `stale`


class SyntheticOptions(NamedTuple):
    """The parameters of a synthetic market."""

    half_life: float | None = None  # bars, of `planted`, `planted-hard` and `risk`; None: that of KnownMarket
    noise: float = 5.0  # standard deviation of the noise of a move, pips
    cost: float | None = None  # spread, deviations; None: that of KnownMarket
    length: int = 100_000  # bars
    seed: int = 0
    train_fraction: float = 0.75  # training bars, after two thirds of which the rule of `stale` turns


class KnownMarket(NamedTuple):
    """The definition of a synthetic market, and its parameters unless others are given."""

    model: MarketModel
    spread: float  # deviations
    half_life: float | None = None  # bars, of a level
    settings: tuple[str, ...] = ()  # that belong to the market


class SyntheticMarket(NamedTuple):
    """A market, and its true state, which an agent does not see."""

    name: str
    options: SyntheticOptions
    bars: Bars
    extra: NDArray[np.float32]  # [T, extra features]
    state: Floats  # [T] planted, risk: x, px; planted-hard: its estimate; leak: sign of the next move; others: a phase
    spread_px: float
    noise_px: float
    phi: float
    model: MarketModel


def _events(quiet_bars: float, transition: Floats, moves: Floats, features: Floats, width: Floats) -> PhaseModel:
    """Phase 0, quiet for `quiet_bars` on average; then the n phases of an event from its first one, or their mirror.

    transition and moves [n, 1 + n] lead back to phase 0 or to a phase of the event; features [n, any], width [n].
    """
    n = len(transition)
    chain, move = np.zeros((2 * n + 1, 2 * n + 1)), np.zeros((2 * n + 1, 2 * n + 1))
    chain[0, [0, 1, 1 + n]] = 1 - 1 / quiet_bars, 0.5 / quiet_bars, 0.5 / quiet_bars
    for first, sign in ((1, 1.0), (1 + n, -1.0)):
        event = np.ix_(range(first, first + n), [0, *range(first, first + n)])
        chain[event], move[event] = transition, sign * moves
    mirrored = np.concatenate([np.zeros_like(features[:1]), features, 0.0 - features])
    return PhaseModel(chain, move, mirrored, np.concatenate([np.ones(1), width, width]))


def _sequence(quiet_bars: float, drift: list[float], features: list[list[float]]) -> PhaseModel:
    """Events of the expected moves `drift` [n], one bar each, with features [n, any]."""
    n = len(drift)
    transition = np.eye(n, n + 1, k=2)
    transition[-1, 0] = 1.0
    return _events(quiet_bars, transition, np.outer(drift, np.ones(n + 1)), np.array(features), np.ones(n))


def _memory(lag: int, move: float) -> PhaseModel:
    """A phase is the last lag + 1 coins, the newest one in the lowest bit; the highest is the sign of the move."""
    phase = np.arange(2 << lag)
    transition = np.zeros((len(phase), len(phase)))
    for coin in (0, 1):
        transition[phase, (2 * phase + coin) % len(phase)] = 0.5
    sign = np.where(phase >> lag, move, -move)
    newest = np.where(phase & 1, 1.0, -1.0)[:, None]
    return PhaseModel(transition, np.outer(sign, np.ones(len(phase))), newest, np.ones(len(phase)))


def _delayed(quiet_bars: float, bars: int, jump: float) -> PhaseModel:
    """An event lasts until its jump, which comes at one of `bars` bars; the feature is the fraction of them left."""
    left = np.arange(bars, 0, -1.0)
    transition = np.eye(bars, bars + 1, k=2) * (1.0 - 1.0 / left)[:, None]
    moves = np.zeros((bars, bars + 1))
    transition[:, 0], moves[:, 0] = 1.0 / left, jump
    return _events(quiet_bars, transition, moves, left[:, None] / bars, np.ones(bars))


RISE, FALL = [1.5] * 4, [-1.7] * 2  # expected moves of `close`, deviations
CLOSE_FEATURES = [*([i / 4, 0.0] for i in (4, 3, 2, 1)), *([0.0, i / 2] for i in (2, 1))]  # fraction left of either
JUMPS = np.array([[0.0, 0.4, 0.6], [1.0, 0.0, 0.0]]), np.outer([3.0, -3.0], np.ones(3))  # a rise, a wide bar
STALE = np.array([[1 / 8, 7 / 8]]), np.full((1, 2), 0.6)
PLANTED_HALF_LIFE = math.log(0.5) / math.log(0.9)
RISK_SETTINGS = (
    "market.risk_aversion=0.7",  # 0.52 a deviation: a range is 1.34 of them
    "market.position_sizes=[0.2,0.4,0.6,0.8,1.0]",
    "market.position_adjustment=true",
    "train.c_scale=10",  # sizes differ by hundredths of a range in Q: the policy head would outweigh them
    "search.num_simulations=32",  # and so would errors of the value head
    "search.num_sampled_sizes=4",  # of widening
)
MARKETS = {
    "noise": KnownMarket(PhaseModel(np.ones((1, 1)), np.zeros((1, 1)), np.empty((1, 0)), np.ones(1)), 0.5),
    "planted": KnownMarket(LevelModel(), 0.5, PLANTED_HALF_LIFE),
    "leak": KnownMarket(LeakModel(), 1.0),
    "planted-hard": KnownMarket(LevelModel(walk=0.5), 1.0, math.log(0.5) / math.log(0.95)),
    "close": KnownMarket(_sequence(12, RISE + FALL, CLOSE_FEATURES), 4.0),
    "memory": KnownMarket(_memory(5, 0.8), 1.6),
    "delayed": KnownMarket(_delayed(40, 10, 6.0), 3.0, settings=("search.num_simulations=16",)),
    "jumps": KnownMarket(_events(20, *JUMPS, np.ones((2, 1)), np.array([1.0, 10.0])), 3.2),
    "sparse": KnownMarket(_sequence(248, [2.0, 2.0], [[1.0], [0.5]]), 1.0),
    "stale": KnownMarket(_events(60, *STALE, np.ones((1, 1)), np.ones(1))._replace(turns=True), 0.5),
    "risk": KnownMarket(LevelModel(), 0.5, 2.0, RISK_SETTINGS),
}


def make_market(name: str, options: SyntheticOptions) -> SyntheticMarket:
    """The market `name` of MARKETS, or ValueError; a longer one of the same seed begins with the same bars.

    The rule of `stale` turns later in a longer one.
    """
    check_options(name, options)
    known = MARKETS[name]
    half_life = known.half_life if options.half_life is None else options.half_life
    options = options._replace(half_life=half_life)
    noise_px = options.noise * PIP
    spread_px = (known.spread if options.cost is None else options.cost) * noise_px
    phi = 0.5 ** (1.0 / half_life) if known.half_life and half_life else 1.0
    turn = int(options.length * options.train_fraction * OLD_RULE)
    path = known.model.draw(PathSpec(options.length, options.seed, noise_px, phi, turn))
    if path.close.min() < MIN_PRICE:
        raise ValueError(f"the price falls below {MIN_PRICE}: make the market shorter or its noise smaller")
    bars = _make_bars(path, noise_px, spread_px, options.seed)
    extra = path.extra.astype(np.float32)
    return SyntheticMarket(name, options, bars, extra, path.state, spread_px, noise_px, phi, known.model)


def check_options(name: str, options: SyntheticOptions) -> None:
    """Raise ValueError unless the market `name` can have `options`."""
    if name not in MARKETS:
        raise ValueError(f"no market {name!r}: {', '.join(MARKETS)}")
    half_life = 1.0 if options.half_life is None else options.half_life
    if not (half_life > 0 and options.noise > 0 and options.length > 1 and options.seed >= 0):
        raise ValueError("half-life and noise must be positive, the length 2 or more, the seed 0 or more")
    if options.cost is not None and not options.cost >= 0:
        raise ValueError("the cost must not be negative")


def _make_bars(path: DrawnPath, noise_px: float, spread_px: float, seed: int) -> Bars:
    """T bars through the first T + 1 closes; a high or low is that of a Brownian bridge between two of them."""
    start, end = path.close[:-2], path.close[1:-1]
    steps = generator(seed, STREAM_INTRABAR).standard_normal((len(end), SUBSTEPS)) * (noise_px / math.sqrt(SUBSTEPS))
    walk = np.cumsum(steps, axis=1) * path.width[:, None]
    fraction = np.arange(1, SUBSTEPS + 1) / SUBSTEPS
    inside = start[:, None] + walk + fraction * (end - start - walk[:, -1])[:, None]
    high = np.maximum(np.maximum(start, end), inside[:, :-1].max(axis=1))
    low = np.minimum(np.minimum(start, end), inside[:, :-1].min(axis=1))
    time = FIRST_CLOSE_NS + INTERVAL_NS * np.arange(len(end), dtype=np.int64)
    return Bars(time, start.copy(), high, low, end.copy(), start + spread_px, end + spread_px, np.ones(len(end)))
