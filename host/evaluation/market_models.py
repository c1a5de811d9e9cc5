"""How a synthetic market moves: its path and true state drawn, and its exact Markov chain.

`synthetic.MARKETS` is made of these models.  Letters: T bars, G states.  A deviation is a standard deviation of
the noise of a move, and phi an AR(1) coefficient.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
START_PRICE = 1.1
GRID_HALF_WIDTH = 6.0  # standard deviations of the state
MAX_ITERATIONS = 100_000
# Streams of random numbers: the closes must not depend on the number of other draws.
STREAM_PATH, STREAM_INTRABAR, STREAM_WALK, STREAM_PHASES = 0, 1, 2, 3


class PathSpec(NamedTuple):
    """What a path is drawn by."""

    length: int  # T
    seed: int
    noise_px: float  # a deviation
    phi: float  # of a level; else 1
    turn: int  # bar of the first decision to which the newest rule applies, where a rule changes


class DrawnPath(NamedTuple):
    """The path of a market, and what is known of it at each close."""

    close: Floats  # [T + 2] px: one before the first bar, and one after the last
    state: Floats  # [T] true state, on which the expected move depends
    extra: Floats  # [T, extra features]
    width: Floats  # [T] deviations of the path inside a bar: 1 is that of a Brownian motion with these closes


class Chain(NamedTuple):
    """A Markov chain of G states."""

    states: Floats  # [G] ascending and evenly spaced
    move_px: Floats  # [G] expected next move
    transition: Floats  # [G, G] probabilities


class LevelModel(NamedTuple):
    """close = mean + x + w, x' = phi x + e and w a random walk; x is what the next move depends on."""

    walk: float = 0.0  # standard deviation of a step of w, deviations of e; x is hidden unless it is 0

    def draw(self, spec: PathSpec) -> DrawnPath:
        """Draw a path; its state is x, or the estimate of x by all prices, px."""
        close = _closes(_noise(spec), spec.phi)
        if self.walk:
            walk = generator(spec.seed, STREAM_WALK).standard_normal(spec.length + 1)
            close[1:] += np.cumsum(walk) * (self.walk * spec.noise_px)
        state = kalman_states(close, spec.phi, self._filter(spec.phi)[0]) if self.walk else close - START_PRICE
        return DrawnPath(close, state[1:-1], np.empty((spec.length, 0)), np.ones(spec.length))

    def chain(self, noise_px: float, phi: float, cells: int) -> Chain:
        """The chain of a grid of `cells` states; ValueError where they are too few."""
        gain, innovation = self._filter(phi)
        noise_px = gain * innovation * noise_px
        reach = GRID_HALF_WIDTH * noise_px / math.sqrt(1.0 - phi**2)
        x = np.linspace(-reach, reach, cells)
        if x[1] - x[0] > noise_px:
            raise ValueError(f"{cells} cells are too few for a half-life of {math.log(0.5) / math.log(phi):g} bars")
        density = np.exp(-0.5 * ((x[None, :] - phi * x[:, None]) / noise_px) ** 2)
        return Chain(x, (phi - 1.0) * x, density / density.sum(axis=1, keepdims=True))

    def expected_moves(self, noise_px: float, phi: float, state: Floats) -> Floats:
        """[n] expected move after each state [n], px, off the grid too."""
        return (phi - 1.0) * state

    def _filter(self, phi: float) -> tuple[float, float]:
        return kalman_gain(phi, self.walk) if self.walk else (1.0, 1.0)


class LeakModel(NamedTuple):
    """A random walk; its state and its extra feature are the sign of the next move."""

    def draw(self, spec: PathSpec) -> DrawnPath:
        """Draw a path."""
        close = _closes(_noise(spec), 1.0)
        state = np.sign(np.diff(close)[1:])
        return DrawnPath(close, state, state[:, None], np.ones(spec.length))

    def chain(self, noise_px: float, phi: float, cells: int) -> Chain:
        """The chain of the two signs."""
        mean_move = noise_px * math.sqrt(2.0 / math.pi)
        return Chain(np.array([-1.0, 1.0]), np.array([-mean_move, mean_move]), np.full((2, 2), 0.5))

    def expected_moves(self, noise_px: float, phi: float, state: Floats) -> Floats:
        """[n] expected move after each state [n], px."""
        return state * noise_px * math.sqrt(2.0 / math.pi)


class PhaseModel(NamedTuple):
    """A random walk whose expected move depends on a phase and on the next one; both follow a Markov chain."""

    transition: Floats  # [G, G] probabilities
    moves: Floats  # [G, G] expected move on the way from a phase to the next, deviations
    features: Floats  # [G, extra features] negated in the mirror image of a phase
    width: Floats  # [G] of a bar that ends in a phase, see `DrawnPath`
    turns: bool = False  # the extra features have the other sign before `PathSpec.turn`

    def draw(self, spec: PathSpec) -> DrawnPath:
        """Draw a path, from phase 0; its state is the number of the phase."""
        draws = generator(spec.seed, STREAM_PHASES).random(spec.length + 1)
        table = np.cumsum(self.transition, axis=1)[:, :-1].tolist()
        phases = accumulate(draws.tolist(), lambda phase, u: bisect_right(table[phase], u), initial=0)
        phase = np.array(list(phases))
        noise = _noise(spec)
        noise[1:] += self.moves[phase[:-1], phase[1:]] * spec.noise_px
        state, extra = phase[1:-1], self.features[phase[1:-1]]
        if self.turns:
            extra[: spec.turn] = 0.0 - extra[: spec.turn]
        return DrawnPath(_closes(noise, 1.0), state.astype(np.float64), extra, self.width[state])

    def chain(self, noise_px: float, phi: float, cells: int) -> Chain:
        """The chain of the phases."""
        move = (self.transition * self.moves).sum(axis=1)
        return Chain(np.arange(float(len(move))), move * noise_px, self.transition)

    def expected_moves(self, noise_px: float, phi: float, state: Floats) -> Floats:
        """[n] expected move after each state [n], px."""
        return self.chain(noise_px, phi, 0).move_px[state.astype(np.int64)]


MarketModel = LevelModel | LeakModel | PhaseModel


def generator(seed: int, stream: int) -> np.random.Generator:
    """Random numbers of a stream."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, stream], np.uint64)))


def _noise(spec: PathSpec) -> Floats:
    """[T + 2] the first level, stationary from the start, and the noise of the moves after it, px."""
    draws = generator(spec.seed, STREAM_PATH).standard_normal(spec.length + 2) * spec.noise_px
    draws[0] *= 0.0 if spec.phi == 1.0 else 1.0 / math.sqrt(1.0 - spec.phi * spec.phi)
    return draws


def _closes(noise: Floats, phi: float) -> Floats:
    return START_PRICE + np.array(list(accumulate(noise.tolist(), lambda x, e: phi * x + e)))


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
