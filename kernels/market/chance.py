"""Chance codes: each of C codes stands for the move from one close to the next, relative to the recent volatility.

They are the chance outcomes of Stochastic MuZero (Antonoglou et al. 2022).  A standardised move is a move divided by
the root mean square of the moves before it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.jit import kernel
from kernels.market.bars import Bars

SCALE_BARS = 64  # moves whose root mean square is the scale of the next one
MIN_SCALE = 1e-6  # of the price: the least scale of a move, a hundredth of a pip
NO_LEARNED_CODES = np.zeros(0, np.int16)
NO_MEAN_SQUARES = np.zeros(0)


class ChanceCodes(NamedTuple):
    """C codes: bins of the standardised move, symmetric about 0; or kinds of these bins, which an encoder learned."""

    edges: NDArray[np.float64]  # [bins - 1] ascending
    centres: NDArray[np.float64]  # [C] mean standardised move of each code
    # [T] learned code of the move to each bar from the bar before; [0] where codes are bins
    learned_code: NDArray[np.int16] = NO_LEARNED_CODES
    mean_square: NDArray[np.float64] = NO_MEAN_SQUARES  # [C] of the standardised moves of each code


@kernel
def move_scale_px(bars: Bars, t: int) -> float:
    """Root mean square of the last SCALE_BARS close-to-close moves up to bar t, or of as many as there are, px."""
    total, n = 0.0, min(t, SCALE_BARS)
    for i in range(t - n + 1, t + 1):
        total += (bars.close[i] - bars.close[i - 1]) ** 2
    return max(math.sqrt(total / max(n, 1)), float(MIN_SCALE * abs(bars.close[t])))


@kernel
def standardised_move(bars: Bars, t: int) -> float:
    """Move from the close of bar t to that of bar t + 1, divided by `move_scale_px` of bar t."""
    return float(bars.close[t + 1] - bars.close[t]) / move_scale_px(bars, t)


@kernel
def standardise_moves(out: NDArray[np.float64], bars: Bars, ts: NDArray[np.int64]) -> None:
    """Write into out [n] the standardised move after each bar of ts [n]."""
    for i in range(ts.shape[0]):
        out[i] = standardised_move(bars, ts[i])


@kernel
def code_of_move(codes: ChanceCodes, z: float) -> int:
    """Bin of the standardised move z.  An edge belongs to the bin farther from 0, and 0 to the upper bin."""
    c = 0
    for edge in codes.edges:
        if edge < z or (edge == z and z >= 0):
            c += 1
    return c


@kernel
def realised_code(codes: ChanceCodes, bars: Bars, t: int) -> int:
    """Chance code of the move from the close of bar t to that of bar t + 1.

    Learned codes must have been written for bar t + 1.
    """
    if codes.learned_code.shape[0] > 0:
        return int(codes.learned_code[t + 1])
    return code_of_move(codes, standardised_move(bars, t))


@kernel
def fill_realised_codes(out: NDArray[np.int64], codes: ChanceCodes, bars: Bars, ts: NDArray[np.int64]) -> None:
    """Write into out [n] the chance code of the move after each bar of ts [n]."""
    for i in range(ts.shape[0]):
        out[i] = realised_code(codes, bars, ts[i])


@kernel
def accumulate_bins(
    total: NDArray[np.float64],
    square: NDArray[np.float64],
    count: NDArray[np.int64],
    codes: ChanceCodes,
    moves: NDArray[np.float64],
) -> None:
    """Add the standardised moves [n] and their negatives, and their squares, to the sums [C] of their bins."""
    for move in moves:
        for z in (move, -move):
            c = code_of_move(codes, z)
            total[c] += z
            square[c] += z * z
            count[c] += 1


def fit_chance_codes(bars: Bars, ts: NDArray[np.int64], C: int = 8) -> ChanceCodes:
    """C about equally frequent bins of the moves after the bars `ts` [n] and of the negatives of those moves.

    The bins are symmetric: a training part that rose does not promise a rise.  The frequencies of the symmetric sample
    times the centres sum to 0, since a zero move counts in the mean of its bin.  Raises ValueError for fewer than two
    codes, and where a bar of `ts` has no bar after it.
    """
    if C < 2 or len(ts) == 0 or ts.min() < 0 or ts.max() + 1 >= len(bars.close):
        raise ValueError(f"{C} codes of {len(ts)} bars: needs two codes or more, and a bar after every bar of ts")
    moves = np.zeros(len(ts))
    standardise_moves(moves, bars, np.asarray(ts, np.int64))
    upper = np.quantile(np.abs(moves), np.arange(2 - C % 2, C - 1, 2) / C)
    edges = np.concatenate([-upper[::-1], np.zeros(1 - C % 2), upper])
    # an edge is the centre of an empty bin
    centres = np.concatenate([edges[:1], edges])
    codes = ChanceCodes(edges, centres, mean_square=centres**2)
    total, square, count = np.zeros(C), np.zeros(C), np.zeros(C, np.int64)
    accumulate_bins(total, square, count, codes, moves)
    for mean, totals in ((codes.centres, total), (codes.mean_square, square)):
        np.divide(totals, count, out=mean, where=count > 0)
    return codes


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """log p [n, C] of logits [n, C]; FloatingPointError where one is not finite."""
    if not np.isfinite(logits).all():
        raise FloatingPointError("the chance prior of a bar is not finite: is there a NaN in its features?")
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
