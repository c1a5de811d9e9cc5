"""What the chance codes of a run stand for, and how well its chance prior knows them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from host.artifact.networks import OnnxNetworks
from host.training.feature_store import FeatureStore
from kernels.market.bars import Bars
from kernels.market.chance import ChanceCodes, fill_realised_codes, standardise_moves
from kernels.ort import check_status, evaluate
from models.extensions.chance_encoder import encode_bars
from models.params import Params

ROOT_BATCH = 64  # bars the root network evaluates in one call
CONFIDENCE_LEVELS = 10  # of confidence, in the calibration error


def new_learned_codes(quantile: ChanceCodes, bars: int) -> ChanceCodes:
    """Learned codes of which nothing is known yet: no bar is named, and none of them promises a move."""
    return ChanceCodes(quantile.edges, np.zeros_like(quantile.centres), np.zeros(bars, np.int16))


def assign_codes(codes: ChanceCodes, p: Params, store: FeatureStore, bars: Bars, ts: NDArray[np.int64]) -> None:
    """Write the codes by which the bars after `ts` came, and the mean move of each code.

    Moves are taken about their mean: a training part that rose does not promise a rise.  A code that is not used
    promises nothing.
    """
    with threadpool_limits(1, "blas"):
        code = encode_bars(p, store.X, store.row_of_bar[ts + 1])
    codes.learned_code[ts + 1] = code
    moves, C = moves_after_bars(bars, ts), len(codes.centres)
    total = np.bincount(code, moves - moves.mean(), minlength=C)
    codes.centres[:] = total / np.maximum(np.bincount(code, minlength=C), 1)


def moves_after_bars(bars: Bars, ts: NDArray[np.int64]) -> NDArray[np.float64]:
    """[n] standardised moves."""
    moves = np.zeros(len(ts))
    standardise_moves(moves, bars, ts)
    return moves


def chance_logits(agent: OnnxNetworks, store: FeatureStore, ts: NDArray[np.int64]) -> NDArray[np.float64]:
    """[n, C] what the root network expects at the closes of the bars `ts`."""
    F, C, context = agent.shape.features, agent.shape.codes, agent.shape.context
    net, found = agent.root(ROOT_BATCH), np.zeros((len(ts), C))
    for first in range(0, len(ts), ROOT_BATCH):
        part = ts[first : first + ROOT_BATCH]
        n = len(part)
        # the position, whatever it is, does not reach the chance prior
        for i in range(context):
            net.x[:n, i * F : (i + 1) * F] = store.X[store.row_of_bar[part - (context - 1 - i)]]
        check_status(evaluate(net, n))
        found[first : first + n] = net.y[:n, -C:]  # its last columns
    return found


def diagnose(
    agent: OnnxNetworks, codes: ChanceCodes, store: FeatureStore, bars: Bars, ts: NDArray[np.int64]
) -> dict[str, float]:
    """What to log of the codes that followed the bars `ts`, and of the chance prior there."""
    code = np.zeros(len(ts), np.int64)
    fill_realised_codes(code, codes, bars, ts)
    moves = moves_after_bars(bars, ts)
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
    level = np.minimum((sure * CONFIDENCE_LEVELS).astype(np.int64), CONFIDENCE_LEVELS - 1)
    excess = np.bincount(level, sure - (likeliest == code), minlength=CONFIDENCE_LEVELS)
    return {
        "chance_nll": -float(log_p[each, code].mean()),
        "chance_calibration_error": float(np.abs(excess).sum() / len(code)),
    }
