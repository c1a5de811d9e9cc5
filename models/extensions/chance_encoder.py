"""Learned chance codes (Antonoglou et al. 2022, section 4): an encoder reads the bar that came and picks its code.

c[k] = onehot(argmax e(x[t + k + 1])) enters the dynamics and the reward head.  The gradient that c receives is passed
on to e as if c were p = softmax(e): straight-through.  The target of the chance prior is c as a constant.  Three
losses shape the codes; z is the standardised move of the bar.

commitment    |stop(c) - p|^2: p follows the code that was picked.
code entropy  minus the entropy of the mean p: all codes stay in use.
code move     (<c, code_move> - z)^2 / 2: a code predicts the move of its bar.

The code move loss is needed because the market search knows of a code only its mean move.  The reward loss does not
teach it: the reward head reads a latent too, and most positions are flat.  e reads features of the market alone: no
position, no action.
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
from models.shape import Array, CoreParams, ModelShape

ENCODE_ROWS = 4096  # bars that are encoded in one call
MIN_PROBABILITY = 1e-9
MAX_MOVE = 4.0  # the target of the code move loss is clipped to this, in standard deviations


class ChanceEncoderParams(CoreParams):
    """Parameters of the encoder and of the predicted moves."""

    chance_encoder_hidden_w: Array  # [F, chance_encoder_width], of an environment [2 F, ..]
    chance_encoder_hidden_b: Array
    chance_encoder_out_w: Array  # [chance_encoder_width, C]
    chance_encoder_out_b: Array
    code_move_w: Array  # [C, 1] predicted move of each code
    code_move_b: Array


@kernel
def softmax(z: Array) -> None:
    """Turn logits z [rows, C] into probabilities."""
    for i in range(z.shape[0]):
        highest, total = z[i, 0], 0.0
        for c in range(1, z.shape[1]):
            highest = max(highest, z[i, c])
        for c in range(z.shape[1]):
            z[i, c] = math.exp(z[i, c] - highest)
            total += z[i, c]
        for c in range(z.shape[1]):
            z[i, c] /= total


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
def move_loss(
    dw: Array, db: Array, d_code: Array, w: Array, b: Array, move: Array, one_hot: Array, weight: Array, factor: float
) -> float:
    """sum_i weight_i (<c_i, w> + b - z_i)^2 / 2 of moves z [n, K] and one-hots c [K n, C].

    dw and db become `factor` times its gradient; that of the one-hots is added to d_code [K, n, C].
    """
    n, K = move.shape
    total = 0.0
    dw[:, :] = 0
    db[:] = 0
    for i in range(n):
        for k in range(K):
            row, off = k * n + i, np.float64(b[0])
            for c in range(w.shape[0]):
                off += np.float64(one_hot[row, c]) * np.float64(w[c, 0])
            off -= min(max(np.float64(move[i, k]), -MAX_MOVE), MAX_MOVE)
            total += 0.5 * weight[row] * off * off
            off *= factor * weight[row]
            db[0] += off
            for c in range(w.shape[0]):
                dw[c, 0] += off * one_hot[row, c]
                d_code[k, i, c] += off * w[c, 0]
    return total


@kernel
def mean_code_probability(mean_probability: Array, p: Array, weight: Array) -> float:
    """Write the weighted mean [C] of p [n, K, C]; minus its entropy, times the sum of the weights [K n]."""
    n, K, C = p.shape
    total, loss = 0.0, 0.0
    mean_probability[:] = 0
    for i in range(n):
        for k in range(K):
            w = weight[k * n + i]
            total += np.float64(w)
            for c in range(C):
                mean_probability[c] += w * p[i, k, c]
    for c in range(C):
        mean_probability[c] = max(mean_probability[c] / max(total, MIN_PROBABILITY), MIN_PROBABILITY)
        loss += total * mean_probability[c] * math.log(mean_probability[c])
    return loss


@kernel
def straight_through(
    p: Array,
    d_code: Array,
    d_code_part: Array,
    mean_probability: Array,
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
                g[c] += d_code_part[k, i, c] + w * (
                    2.0 * commitment * off + code_entropy * math.log(mean_probability[c])
                )
                mean += np.float64(g[c]) * np.float64(p_row[c])
            for c in range(C):
                p_row[c] *= g[c] - mean
    return total


def encode_bars(p: ChanceEncoderParams, X: Array, rows: NDArray[np.int32]) -> NDArray[np.int64]:
    """Codes [n] of the bars whose features are X[rows]."""
    codes = np.zeros(len(rows), np.int64)
    for first in range(0, len(rows), ENCODE_ROWS):
        part = rows[first : first + ENCODE_ROWS]
        hidden = np.empty((len(part), len(p.chance_encoder_hidden_b)), X.dtype)
        linear_relu_forward(hidden, X[part], p.chance_encoder_hidden_w, p.chance_encoder_hidden_b)
        codes[first : first + len(part)] = np.argmax(hidden @ p.chance_encoder_out_w + p.chance_encoder_out_b, axis=1)
    return codes


class ChanceEncoder(Extension):
    """Learned chance codes in the place of the batch's, and the three losses that shape them."""

    switch = "chance_encoder_width"
    # an encoder with large random logits would stick to the codes it starts with
    small_init = ("chance_encoder_out_w",)
    needs = ("next_features", "move")

    @staticmethod
    def layers(shape: ModelShape) -> dict[str, tuple[int, ...]]:
        width = shape.chance_encoder_width
        return {
            "chance_encoder_hidden": (shape.features * (2 if shape.afterstate_width else 1), width),
            "chance_encoder_out": (width, shape.codes if width else 0),
            "code_move": (shape.codes, 1) if width else (0, 0),
        }

    def __init__(self, size: WorkSize) -> None:
        n, K, C = size.windows, size.steps, size.shape.codes
        self.reads_pairs = size.shape.afterstate_width > 0
        self.hidden, self.d_hidden = np.zeros((2, n * K, size.shape.chance_encoder_width), size.dtype)
        self.probability = np.zeros((n, K, C), size.dtype)  # p; becomes the gradient of the logits
        self.d_code, self.d_code_part = np.zeros((2, K, n, C), size.dtype)  # gradient of the one-hots
        self.mean_probability = np.zeros(C, size.dtype)

    def _later_bars(self, step: Pass) -> Array:
        """What came after each step; in an environment, behind what was before: chance is the difference."""
        x = step.batch.next_features[step.rows].astype(self.hidden.dtype, copy=False)
        if self.reads_pairs:
            before = np.concatenate([step.batch.features[step.rows][:, None], x[:, :-1]], axis=1)
            x = np.concatenate([before, x], axis=2)
        return x.reshape(len(self.hidden), -1)

    def before_latents(self, step: Pass) -> None:
        p: ChanceEncoderParams = step.p
        logits = self.probability.reshape(len(self.hidden), -1)
        linear_relu_forward(self.hidden, self._later_bars(step), p.chance_encoder_hidden_w, p.chance_encoder_hidden_b)
        linear_forward(logits, self.hidden, p.chance_encoder_out_w, p.chance_encoder_out_b)
        softmax(logits)
        write_one_hot(step.work.reward_input, step.work.code.first_bin, self.probability, step.work.latent.shape[2])

    def after_latents(self, step: Pass, readers: tuple[CodeReader, CodeReader]) -> dict[str, float]:
        d: ChanceEncoderParams = step.d
        p: ChanceEncoderParams = step.p
        work, weights, C = step.work, step.weights, len(self.mean_probability)
        for dc, reader in zip((self.d_code, self.d_code_part), readers, strict=True):
            linear_backward_input(dc.reshape(-1, C), reader.gradient, reader.w[:C])
        move = step.batch.move[step.rows].astype(self.hidden.dtype, copy=False)
        moves = d.code_move_w, d.code_move_b, self.d_code, p.code_move_w, p.code_move_b, move, one_hot_codes(work, C)
        code_move = move_loss(*moves, work.step_weight, weights.code_move)
        code_entropy = mean_code_probability(self.mean_probability, self.probability, work.step_weight)
        codes = self.probability, self.d_code, self.d_code_part, self.mean_probability, work.code.first_bin
        commitment = straight_through(*codes, work.step_weight, weights.commitment, weights.code_entropy)
        dz = self.probability.reshape(-1, C)
        linear_backward(d.chance_encoder_out_w, d.chance_encoder_out_b, dz, self.hidden)
        linear_backward_input(self.d_hidden, dz, p.chance_encoder_out_w)
        hidden = self.d_hidden, self.hidden, self._later_bars(step)
        linear_relu_backward(d.chance_encoder_hidden_w, d.chance_encoder_hidden_b, *hidden)
        return {"commitment": commitment, "code_entropy": code_entropy, "code_move": code_move}
