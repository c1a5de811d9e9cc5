"""What the chance codes of a run stand for, and how well its chance prior knows them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from host.artifact.networks import Agent
from host.training.feature_store import FeatureStore
from kernels.market.bars import Bars
from kernels.market.chance import Codes, realised_codes, standardise_moves
from kernels.ort import check, evaluate
from models.extensions.chance_encoder import name_bars
from models.params import Params

CALL_ROWS = 64  # bars the root network evaluates in one call
LEVELS = 10  # of confidence, in the calibration error


def new_codes(quantile: Codes, bars: int) -> Codes:
    """Learned codes of which nothing is known yet: no bar is named, and none of them promises a move."""
    return Codes(quantile.edges, np.zeros_like(quantile.centres), np.zeros(bars, np.int16))


def name_sessions(codes: Codes, p: Params, store: FeatureStore, bars: Bars, ts: NDArray[np.int64]) -> None:
    """Write the codes by which the bars after `ts` came, and the mean move of each code.

    Moves are taken about their mean: a training part that rose does not promise a rise.  A code that is not used
    promises nothing.
    """
    with threadpool_limits(1, "blas"):
        code = name_bars(p, store.X, store.row_of_bar[ts + 1])
    codes.of_bar[ts + 1] = code
    moves, C = moves_after(bars, ts), len(codes.centres)
    total = np.bincount(code, moves - moves.mean(), minlength=C)
    codes.centres[:] = total / np.maximum(np.bincount(code, minlength=C), 1)


def moves_after(bars: Bars, ts: NDArray[np.int64]) -> NDArray[np.float64]:
    """[n] standardised moves."""
    moves = np.zeros(len(ts))
    standardise_moves(moves, bars, ts)
    return moves


def chance_logits(agent: Agent, store: FeatureStore, ts: NDArray[np.int64]) -> NDArray[np.float64]:
    """[n, C] what the root network expects at the closes of the bars `ts`."""
    F, C, context = agent.sizes.features, agent.sizes.codes, agent.sizes.context
    net, found = agent.root(CALL_ROWS), np.zeros((len(ts), C))
    for first in range(0, len(ts), CALL_ROWS):
        part = ts[first : first + CALL_ROWS]
        n = len(part)
        # the position, whatever it is, does not reach the chance prior
        for i in range(context):
            net.x[:n, i * F : (i + 1) * F] = store.X[store.row_of_bar[part - (context - 1 - i)]]
        check(evaluate(net, n))
        found[first : first + n] = net.y[:n, -C:]  # its last columns
    return found


def assess(
    agent: Agent, codes: Codes, store: FeatureStore, bars: Bars, ts: NDArray[np.int64]
) -> dict[str, float]:
    """What to log of the codes that followed the bars `ts`, and of the chance prior there."""
    code = np.zeros(len(ts), np.int64)
    realised_codes(code, codes, bars, ts)
    moves = moves_after(bars, ts)
    left = moves - codes.centres[code]
    return {
        "code_perplexity": perplexity(code),
        "code_r2": 1.0 - float(left.var() / moves.var()) if moves.var() > 0 else 0.0,
        **calibration(chance_logits(agent, store, ts), code),
    }


def perplexity(code: NDArray[np.int64]) -> float:
    """exp of the entropy of the frequencies: how many codes are in use."""
    share = np.bincount(code) / len(code)
    share = share[share > 0]
    return math.exp(-float(share @ np.log(share)))


def calibration(logits: NDArray[np.float64], code: NDArray[np.int64]) -> dict[str, float]:
    """Mean surprise of a prior; how far its probability of the likeliest code is from how often that comes."""
    if not np.isfinite(logits).all():
        raise FloatingPointError("the chance prior of a bar is not finite: is there a NaN in its features?")
    log_p = logits - logits.max(axis=1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    likeliest = log_p.argmax(axis=1)
    each = np.arange(len(code))
    sure = np.exp(log_p[each, likeliest])
    level = np.minimum((sure * LEVELS).astype(np.int64), LEVELS - 1)
    excess = np.bincount(level, sure - (likeliest == code), minlength=LEVELS)
    return {
        "chance_nll": -float(log_p[each, code].mean()),
        "chance_calibration_error": float(np.abs(excess).sum() / len(code)),
    }
