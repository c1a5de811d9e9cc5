"""Learned chance codes (Antonoglou et al. 2022, section 4): an encoder reads the bar that came and picks its code.

The code of a bar of a market is a bin of its move and a kind: bin * `ModelShape.kinds` + kind.  The bin is known, and
the encoder picks the kind.  The market search knows of a code only its mean move, which must hold in every state: a
code without a bin is a rise here and a fall there.  What an environment does has one bin, and any code is a kind.

The encoder reads the news of the bar only, `ModelShape.news`.  Features that were known before would make a code name
the state: the prior would predict what is known.  It reads features of the market alone: no position, no action.

c[k] = onehot(argmax e(news[t + k + 1])) enters the dynamics and the reward head.  The gradient that c receives is
passed on to e as if c were p = softmax(e): straight-through.  argmax and softmax are over the kinds of the bin only.
The target of the chance prior is c as a constant.  Two losses shape the codes beside those of the other heads.

commitment    |stop(c) - p|^2: p follows the code that was picked.
code entropy  minus the entropy of the mean c: all codes stay in use.  Unsure p would satisfy that of the mean p.
"""

import math

import numpy as np
from numpy.typing import NDArray

from kernels.jit import kernel
from models.activations import one_hot_codes
from models.extension import CodeReader, Extension, Pass, WorkSize
from models.layers import (
    linear_backward,
    linear_backward_input,
    linear_forward,
    linear_relu_backward,
    linear_relu_forward,
)
from models.shape import Array, CoreParams, ModelShape, News

ENCODE_ROWS = 4096  # bars that are encoded in one call
MIN_PROBABILITY = 1e-9
MIN_FREQUENCY = 1e-3  # of a code, under the logarithm: an unused code is wanted no more than this


class ChanceEncoderParams(CoreParams):
    """Parameters of the encoder."""

    chance_encoder_hidden_w: Array  # [news, chance_encoder_width]
    chance_encoder_hidden_b: Array
    chance_encoder_out_w: Array  # [chance_encoder_width, C]
    chance_encoder_out_b: Array


@kernel
def softmax_of_kinds(z: Array, code: NDArray[np.int32], kinds: int) -> None:
    """Turn logits z [n, K, C] into probabilities of the kinds of the bin of code [K n]; 0 elsewhere."""
    n, K, C = z.shape
    for i in range(n):
        for k in range(K):
            row = z[i, k]
            first = code[k * n + i] // kinds * kinds
            highest, total = row[first], 0.0
            for c in range(first, first + kinds):
                highest = max(highest, row[c])
            for c in range(C):
                row[c] = math.exp(row[c] - highest) if first <= c < first + kinds else 0.0
                total += row[c]
            for c in range(first, first + kinds):
                row[c] /= total


@kernel
def write_one_hot(reward_input: Array, code: NDArray[np.int32], p: Array, D: int) -> None:
    """Write the likeliest code of each bar, from p [n, K, C], as a one-hot from column D on and as a number."""
    n, K, C = p.shape
    for i in range(n):
        for k in range(K):
            best, row = 0, k * n + i
            for c in range(C):
                reward_input[row, D + c] = 0.0
                if p[i, k, c] > p[i, k, best]:
                    best = c
            reward_input[row, D + best] = 1.0
            code[row] = best


@kernel
def code_frequencies(frequency: Array, one_hot: Array, weight: Array) -> float:
    """Write the weighted mean [C] of the one-hots [K n, C]; minus its entropy, times the sum of the weights [K n]."""
    total, loss = 0.0, 0.0
    frequency[:] = 0
    for row in range(one_hot.shape[0]):
        total += np.float64(weight[row])
        for c in range(frequency.shape[0]):
            frequency[c] += weight[row] * one_hot[row, c]
    for c in range(frequency.shape[0]):
        frequency[c] = max(frequency[c] / max(total, MIN_PROBABILITY), MIN_FREQUENCY)
        loss += total * frequency[c] * math.log(frequency[c])
    return loss


@kernel
def straight_through(
    p: Array,
    d_code: Array,
    d_code_part: Array,
    frequency: Array,
    code: NDArray[np.int32],
    weight: Array,
    commitment: float,
    code_entropy: float,
) -> float:
    """sum_i weight_i |c_i - p_i|^2; p [n, K, C] becomes the gradient p (g - <g, p>) of its logits, g being that of c.

    g gains the gradients of the commitment loss and of the code entropy loss, with these weights.
    """
    n, K, C = p.shape
    total = 0.0
    for i in range(n):
        for k in range(K):
            row, p_row, g = k * n + i, p[i, k], d_code[k, i]
            w, mean = np.float64(weight[row]), 0.0
            for c in range(C):
                off = np.float64(p_row[c]) - (1.0 if c == code[row] else 0.0)
                total += w * off * off
                g[c] += d_code_part[k, i, c] + w * (2.0 * commitment * off + code_entropy * math.log(frequency[c]))
                mean += np.float64(g[c]) * np.float64(p_row[c])
            for c in range(C):
                p_row[c] *= g[c] - mean
    return total


def news_of_bars(x: Array, before: Array, news: tuple[News, ...]) -> Array:
    """What bars with the features x [..., F] tell that bars before them did not [..., F]; [..., news]."""
    columns = [n.column for n in news]
    is_change, factor = (np.array(list(values), x.dtype) for values in ((n[2] for n in news), (n[1] for n in news)))
    return np.asarray((x[..., columns] - is_change * before[..., columns]) * factor)


def encode_bars(
    p: ChanceEncoderParams,
    X: Array,
    rows: NDArray[np.int32],
    before: NDArray[np.int32],
    bins: NDArray[np.int64],
    shape: ModelShape,
) -> NDArray[np.int64]:
    """Codes [n] of the bars whose features are X[rows] and whose moves have `bins` [n], after bars X[before]."""
    kinds = np.zeros(len(rows), np.int64)
    for first in range(0, len(rows), ENCODE_ROWS):
        part = slice(first, first + ENCODE_ROWS)
        x = news_of_bars(X[rows[part]], X[before[part]], shape.news)
        hidden = np.empty((len(x), len(p.chance_encoder_hidden_b)), X.dtype)
        linear_relu_forward(hidden, x, p.chance_encoder_hidden_w, p.chance_encoder_hidden_b)
        logits = hidden @ p.chance_encoder_out_w + p.chance_encoder_out_b
        of_bin = logits.reshape(len(x), -1, shape.kinds)[np.arange(len(x)), bins[part]]
        kinds[part] = np.argmax(of_bin, axis=1)
    return bins * shape.kinds + kinds


class ChanceEncoder(Extension):
    """Learned chance codes in the place of the batch's, of which the bins stay, and the losses that shape them."""

    switch = "chance_encoder_width"
    # an encoder with large random logits would stick to the codes it starts with
    small_init = ("chance_encoder_out_w",)
    needs = ("next_features",)

    @staticmethod
    def layers(shape: ModelShape) -> dict[str, tuple[int, ...]]:
        width = shape.chance_encoder_width
        return {
            "chance_encoder_hidden": (len(shape.news) if width else 0, width),
            "chance_encoder_out": (width, shape.codes if width else 0),
        }

    def __init__(self, size: WorkSize) -> None:
        n, K, C = size.windows, size.steps, size.shape.codes
        self.hidden, self.d_hidden = np.zeros((2, n * K, size.shape.chance_encoder_width), size.dtype)
        self.probability = np.zeros((n, K, C), size.dtype)  # p; becomes the gradient of the logits
        self.d_code, self.d_code_part = np.zeros((2, K, n, C), size.dtype)  # gradient of the one-hots
        self.frequency = np.zeros(C, size.dtype)
        self.news = np.zeros((n * K, len(size.shape.news)), size.dtype)
        self.columns, self.kinds = size.shape.news, size.shape.kinds

    def before_latents(self, step: Pass) -> None:
        p: ChanceEncoderParams = step.p
        logits = self.probability.reshape(len(self.hidden), -1)
        later = step.batch.next_features[step.rows]
        present = step.batch.features[step.rows, None, -later.shape[2] :]
        before = np.concatenate([present, later[:, :-1]], axis=1)
        self.news[:] = news_of_bars(later, before, self.columns).reshape(self.news.shape)
        linear_relu_forward(self.hidden, self.news, p.chance_encoder_hidden_w, p.chance_encoder_hidden_b)
        linear_forward(logits, self.hidden, p.chance_encoder_out_w, p.chance_encoder_out_b)
        softmax_of_kinds(self.probability, step.work.code.first_bin, self.kinds)
        write_one_hot(step.work.reward_input, step.work.code.first_bin, self.probability, step.work.latent.shape[2])

    def after_latents(self, step: Pass, readers: tuple[CodeReader, CodeReader]) -> dict[str, float]:
        d: ChanceEncoderParams = step.d
        p: ChanceEncoderParams = step.p
        work, weights, C = step.work, step.weights, len(self.frequency)
        for dc, reader in zip((self.d_code, self.d_code_part), readers, strict=True):
            linear_backward_input(dc.reshape(-1, C), reader.gradient, reader.w[:C])
        code_entropy = code_frequencies(self.frequency, one_hot_codes(work, C), work.step_weight)
        codes = self.probability, self.d_code, self.d_code_part, self.frequency, work.code.first_bin
        commitment = straight_through(*codes, work.step_weight, weights.commitment, weights.code_entropy)
        dz = self.probability.reshape(-1, C)
        linear_backward(d.chance_encoder_out_w, d.chance_encoder_out_b, dz, self.hidden)
        linear_backward_input(self.d_hidden, dz, p.chance_encoder_out_w)
        hidden = self.d_hidden, self.hidden, self.news
        linear_relu_backward(d.chance_encoder_hidden_w, d.chance_encoder_hidden_b, *hidden)
        return {"commitment": commitment, "code_entropy": code_entropy}
