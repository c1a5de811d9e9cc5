"""Learned chance codes of the bars of a run, and how well the chance prior predicts them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from host.artifact.networks import OnnxNetworks
from host.training.feature_store import FeatureStore
from kernels.market.bars import Bars
from kernels.market.chance import NO_LEARNED_CODES, ChanceCodes, fill_realised_codes, log_softmax, standardise_moves
from kernels.market.features import UNDIRECTED_WEIGHT, FeatureSpec, feature_names
from kernels.ort import check_status, evaluate
from models.extensions.chance_encoder import encode_bars
from models.params import Params
from models.shape import ModelShape, News

ROOT_BATCH = 64  # bars that the root network evaluates in one call
CONFIDENCE_LEVELS = 10  # of the calibration error


def new_learned_codes(codes: ChanceCodes, bars: int, kinds: int) -> ChanceCodes:
    """`kinds` kinds of each bin of `codes`, learned or not, before the first iteration: no bar has one."""
    repeats = kinds * (len(codes.edges) + 1) // len(codes.centres)
    centres, mean_square = np.repeat(codes.centres, repeats), np.repeat(codes.mean_square, repeats)
    return ChanceCodes(codes.edges, centres, np.zeros(bars, np.int16), mean_square)


def news_columns(spec: FeatureSpec, num_features: int) -> tuple[News, ...]:
    """The newest return, the range, and the changes of the columns that a self-test appends.

    No more is new: the levels, the volatilities and the scattering follow from the return and what was known.
    """
    names = feature_names(spec)
    appended = (News(column, 1.0, is_change=True) for column in range(len(names), num_features))
    return News(names.index("+-return_1")), News(names.index("range"), 1.0 / UNDIRECTED_WEIGHT), *appended


def assign_codes(
    codes: ChanceCodes, p: Params, shape: ModelShape, store: FeatureStore, bars: Bars, ts: NDArray[np.int64]
) -> None:
    """Write the codes of the bars after `ts`, by the chance encoder with the parameters `p`, and each code's mean move.

    Moves are centred: the drift of a training part is no forecast.  The mean move of an unused code is 0.
    """
    code = learned_codes(p, shape, store, ts)
    codes.learned_code[ts + 1] = code
    moves, C = moves_after_bars(bars, ts), len(codes.centres)
    total = np.bincount(code, moves - moves.mean(), minlength=C)
    codes.centres[:] = total / np.maximum(np.bincount(code, minlength=C), 1)
    codes.mean_square[:] = np.bincount(code, moves**2, minlength=C) / np.maximum(np.bincount(code, minlength=C), 1)


def learned_codes(p: Params, shape: ModelShape, store: FeatureStore, ts: NDArray[np.int64]) -> NDArray[np.int64]:
    """[n] codes of the bars after `ts` [n], by the chance encoder with the parameters `p`."""
    bins, market = np.zeros(len(ts), np.int64), store.market_data
    fill_realised_codes(bins, market.codes._replace(learned_code=NO_LEARNED_CODES), market.bars, ts)
    with threadpool_limits(1, "blas"):
        return encode_bars(p, store.X, store.row_of_bar[ts + 1], store.row_of_bar[ts], bins, shape)


def moves_after_bars(bars: Bars, ts: NDArray[np.int64]) -> NDArray[np.float64]:
    """[n] standardised moves of the bars after `ts` [n]."""
    moves = np.zeros(len(ts))
    standardise_moves(moves, bars, ts)
    return moves


def chance_logits(networks: OnnxNetworks, store: FeatureStore, ts: NDArray[np.int64]) -> NDArray[np.float64]:
    """[n, C] chance prior of the root network at the closes of the bars `ts` [n], as logits."""
    F, C, context = networks.shape.features, networks.shape.codes, networks.shape.context
    root, logits = networks.root(ROOT_BATCH), np.zeros((len(ts), C))
    for first in range(0, len(ts), ROOT_BATCH):
        part = ts[first : first + ROOT_BATCH]
        n = len(part)
        # the chance prior does not depend on the position, whose columns keep what they hold
        for i in range(context):
            root.x[:n, i * F : (i + 1) * F] = store.X[store.row_of_bar[part - (context - 1 - i)]]
        check_status(evaluate(root, n))
        logits[first : first + n] = root.y[:n, -C:]
    return logits


def diagnose(
    networks: OnnxNetworks, codes: ChanceCodes, store: FeatureStore, bars: Bars, ts: NDArray[np.int64]
) -> dict[str, float]:
    """Metrics of the codes of the bars after `ts` and of the chance prior; `code_r2`: variance the codes explain."""
    code = np.zeros(len(ts), np.int64)
    fill_realised_codes(code, codes, bars, ts)
    moves = moves_after_bars(bars, ts)
    residual = moves - codes.centres[code]
    return {
        "code_perplexity": perplexity(code),
        "code_r2": 1.0 - float(residual.var() / moves.var()) if moves.var() > 0 else 0.0,
        **calibration(chance_logits(networks, store, ts), code),
    }


def perplexity(code: NDArray[np.int64]) -> float:
    """exp of the entropy of the frequencies: the effective number of codes in use."""
    frequency = np.bincount(code) / len(code)
    frequency = frequency[frequency > 0]
    return math.exp(-float(frequency @ np.log(frequency)))


def calibration(logits: NDArray[np.float64], code: NDArray[np.int64]) -> dict[str, float]:
    """Mean negative log-likelihood of `code` [n] under `logits` [n, C]; expected calibration error of the likeliest."""
    log_p = log_softmax(logits)
    likeliest, rows = log_p.argmax(axis=1), np.arange(len(code))
    confidence = np.exp(log_p[rows, likeliest])
    level = np.minimum((confidence * CONFIDENCE_LEVELS).astype(np.int64), CONFIDENCE_LEVELS - 1)
    excess = np.bincount(level, confidence - (likeliest == code), minlength=CONFIDENCE_LEVELS)
    return {
        "chance_nll": -float(log_p[rows, code].mean()),
        "chance_calibration_error": float(np.abs(excess).sum() / len(code)),
    }
