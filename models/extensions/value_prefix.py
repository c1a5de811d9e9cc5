"""EfficientZero's value prefix (Ye et al. 2021, section 4.2): an LSTM over the steps predicts sums of rewards.

The LSTM stands between the hidden and the output layer of the reward head.  Its state and the sum are reset every
RESET_INTERVAL steps.  Its output is normalised, because the output layer learns nothing from values as small as the
raw ones.  A search takes the difference of two prefixes for a reward, so a node's state holds [h | c | prefix |
steps] behind the latent.  `width` is that of the LSTM, h its hidden state and c its cell.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.jit import inlined, kernel
from kernels.ort import OutputHead
from models.extension import Extension, Pass, WorkSize
from models.layers import hl_gauss, layernorm_backward, layernorm_forward, linear_backward, linear_backward_input
from models.onnx_builder import GraphBuilder
from models.shape import Array, CoreParams, ModelShape

RESET_INTERVAL = 5  # steps


class ValuePrefixParams(CoreParams):
    """Parameters of the LSTM."""

    lstm_w: Array  # [H + width, 4 width] from the hidden layer and from h to the gates i, f, o and the new cell g
    lstm_b: Array


class ValuePrefixWork(NamedTuple):
    """Activations of the LSTM over K steps of n windows, and the gradients that take their place."""

    gates: Array  # [K, n, 4 width] i, f, o, g; then the gradient of their pre-activations
    cell: Array  # [K, n, width]
    tanh_cell: Array  # [K, n, width] tanh(cell)
    hidden: Array  # [K, n, width]
    previous_hidden: Array  # [K, n, width] hidden of the step before, 0 after a reset
    normed: Array  # [K n, width] hidden as the reward layer reads it
    rstd: Array  # [K n]
    d_hidden: Array  # [K, n, width] of normed, then of hidden
    d_cell: Array  # [n, width] the gradient that step k + 1 passes to step k
    recurrent: Array  # [n, 4 width]


def new_value_prefix_work(width: int, n: int, K: int, dtype: Any = np.float32) -> ValuePrefixWork:
    """Allocate for n windows of K steps."""
    names = "cell", "tanh_cell", "hidden", "previous_hidden", "d_hidden"
    return ValuePrefixWork(
        gates=np.zeros((K, n, 4 * width), dtype),
        normed=np.zeros((K * n, width), dtype),
        rstd=np.zeros(K * n, dtype),
        d_cell=np.zeros((n, width), dtype),
        recurrent=np.zeros((n, 4 * width), dtype),
        **{name: np.zeros((K, n, width), dtype) for name in names},
    )


@inlined
def sum_since_reset(reward: Array, k: int) -> float:
    """Target of step k: the sum of the rewards [K] from the last reset up to it."""
    total = 0.0
    for i in range(k - k % RESET_INTERVAL, k + 1):
        total += reward[i]
    return total


@kernel
def fill_prefix_targets(
    first_bin: NDArray[np.int32], probability: Array, reward: Array, first: int, limit: float, bins: int
) -> None:
    """Write the targets of all steps of the windows from `first` on, of rewards [B, K]."""
    K = reward.shape[1]
    n = probability.shape[0] // K
    for k in range(K):
        for i in range(n):
            row, total = k * n + i, sum_since_reset(reward[first + i], k)
            first_bin[row] = hl_gauss(probability[row], total, limit, bins)


def value_prefix_forward(work: ValuePrefixWork, x: Array, w: Array, b: Array) -> None:
    """Write work.normed from x [K n, H]; the first H rows of w [H + width, 4 width] read x, the others h."""
    H = x.shape[1]
    np.matmul(x, w[:H], out=work.gates.reshape(len(x), -1))
    for k in range(len(work.gates)):
        if k % RESET_INTERVAL:
            np.matmul(work.hidden[k - 1], w[H:], out=work.recurrent)
            np.add(work.gates[k], work.recurrent, out=work.gates[k])
            work.previous_hidden[k] = work.hidden[k - 1]
        _lstm_step(work, b, k)
    layernorm_forward(work.normed, work.rstd, work.hidden.reshape(work.normed.shape))


def _lstm_step(work: ValuePrefixWork, b: Array, k: int) -> None:
    """c[k] = f c[k - 1] + i g and h[k] = o tanh(c[k]), with sigmoid gates i, f, o and g = tanh."""
    gate, width = work.gates[k], work.cell.shape[2]
    np.add(gate, b, out=gate)
    gate[:, : 3 * width] *= 0.5  # sigmoid(z) = (1 + tanh(z / 2)) / 2: the hyperbolic tangent runs on vector units
    np.tanh(gate, out=gate)
    _update_cell(work, k)
    np.tanh(work.cell[k], out=work.tanh_cell[k])
    np.multiply(gate[:, 2 * width : 3 * width], work.tanh_cell[k], out=work.hidden[k])


@kernel
def _update_cell(work: ValuePrefixWork, k: int) -> None:
    """Turn the tanh of the gates into their sigmoid, and write c[k]; the first step after a reset has no c[k - 1]."""
    gate, cell = work.gates[k], work.cell[k]
    width, first, half = cell.shape[1], k % RESET_INTERVAL == 0, gate.dtype.type(0.5)
    for row in range(cell.shape[0]):
        for j in range(3 * width):
            gate[row, j] = half + half * gate[row, j]
        for j in range(width):
            cell[row, j] = gate[row, j] * gate[row, 3 * width + j]
            if not first:
                cell[row, j] += gate[row, width + j] * work.cell[k - 1, row, j]


def value_prefix_backward(dw: Array, db: Array, dx: Array, work: ValuePrefixWork, x: Array, w: Array) -> None:
    """Gradients of w and b, and dx [K n, H], from work.d_hidden, which is overwritten."""
    K, n, width = work.hidden.shape
    H, dh = x.shape[1], work.d_hidden.reshape(K * n, width)
    layernorm_backward(dh, dh, work.normed, work.rstd)
    for k in range(K - 1, -1, -1):
        _lstm_step_backward(work, k)
        if k % RESET_INTERVAL:
            np.matmul(work.gates[k], w[H:].T, out=work.tanh_cell[k])  # tanh(c) is not needed any more
            np.add(work.d_hidden[k - 1], work.tanh_cell[k], out=work.d_hidden[k - 1])
    dz = work.gates.reshape(K * n, -1)
    linear_backward(dw[:H], db, dz, x)
    np.matmul(work.previous_hidden.reshape(K * n, width).T, dz, out=dw[H:])
    linear_backward_input(dx, dz, w[:H])


@kernel
def _lstm_step_backward(work: ValuePrefixWork, k: int) -> None:
    """Turn gate[k] into the gradient of its pre-activations, and d_cell into that of c[k - 1], 0 before a reset."""
    gate, tanh_cell, dh, d_cell = work.gates[k], work.tanh_cell[k], work.d_hidden[k], work.d_cell
    width = dh.shape[1]
    first, last = k % RESET_INTERVAL == 0, k + 1 == work.gates.shape[0] or (k + 1) % RESET_INTERVAL == 0
    for row in range(dh.shape[0]):
        for j in range(width):
            i, f, o, g = gate[row, j], gate[row, width + j], gate[row, 2 * width + j], gate[row, 3 * width + j]
            old = 0.0 if first else work.cell[k - 1, row, j]
            tc = tanh_cell[row, j]
            dc = dh[row, j] * o * (1 - tc * tc) + (0.0 if last else d_cell[row, j])
            gate[row, j] = dc * g * i * (1 - i)
            gate[row, width + j] = dc * old * f * (1 - f)
            gate[row, 2 * width + j] = dh[row, j] * tc * o * (1 - o)
            gate[row, 3 * width + j] = dc * i * (1 - g * g)
            d_cell[row, j] = dc * f


class ValuePrefix(Extension):
    """An LSTM within the reward head, and sums of rewards as its targets."""

    switch = "value_prefix_width"
    wraps_reward = True
    serves_market_search = False  # a market search knows its rewards exactly

    @staticmethod
    def layers(shape: ModelShape) -> dict[str, tuple[int, ...]]:
        width = shape.value_prefix_width
        return {"lstm": (shape.hidden + width if width else 0, 4 * width)}

    @staticmethod
    def reward_width(shape: ModelShape) -> int:
        return shape.value_prefix_width

    @staticmethod
    def state_parts(s: ModelShape) -> dict[str, int]:
        return {"h": s.value_prefix_width, "c": s.value_prefix_width, "prefix": 1, "steps": 1}

    def __init__(self, size: WorkSize) -> None:
        self.shape = size.shape
        self.work = new_value_prefix_work(self.shape.value_prefix_width, size.windows, size.steps, size.dtype)

    def fill(self, step: Pass) -> None:
        bins = self.shape.reward_limit, self.shape.reward_bins
        fill_prefix_targets(*step.work.reward, step.batch.reward, step.first, *bins)

    def reward_forward(self, step: Pass, hidden: Array) -> tuple[Array, Array]:
        value_prefix_forward(self.work, hidden, step.p.lstm_w, step.p.lstm_b)
        return self.work.normed, self.work.d_hidden.reshape(self.work.normed.shape)

    def reward_backward(self, step: Pass, d_hidden: Array, hidden: Array) -> None:
        value_prefix_backward(step.d.lstm_w, step.d.lstm_b, d_hidden, self.work, hidden, step.p.lstm_w)

    def rewards(self, outputs: Array) -> Array:
        rewards = outputs.copy()
        rewards[1:] -= outputs[:-1] * (np.arange(1, len(outputs)) % RESET_INTERVAL > 0)[:, None]
        return rewards

    @staticmethod
    def reward_step(g: GraphBuilder, hidden: str, p: ValuePrefixParams, s: ModelShape) -> tuple[OutputHead, list[str]]:
        """One step of the LSTM from the parts of a state, in ONNX; it starts anew every RESET_INTERVAL steps."""
        H, width = s.hidden, s.value_prefix_width
        left = g.node("Sub", [g.weight("reset", [RESET_INTERVAL]), "steps"], "steps_left")
        goes_on = g.node("Clip", [left, g.weight("zero", 0.0), g.weight("one", 1.0)], "goes_on")
        h, c, before, steps = (g.node("Mul", [name, goes_on], f"{name}_kept") for name in ("h", "c", "prefix", "steps"))
        fed = g.linear(hidden, "fed", p.lstm_w[:H], p.lstm_b)
        back = g.node("MatMul", [h, g.weight("back_w", p.lstm_w[H:])], "back")
        g.split(g.node("Add", [fed, back], "gates"), {"sigmoid_z": 3 * width, "tanh_z": width})
        g.split(g.node("Sigmoid", ["sigmoid_z"], "opened"), dict.fromkeys(("in", "forget", "out"), width))
        new = g.node("Mul", ["in", g.node("Tanh", ["tanh_z"], "fresh")], "new")
        c = g.node("Add", [g.node("Mul", ["forget", c], "old"), new], "next_c")
        h = g.node("Mul", ["out", g.node("Tanh", [c], "squashed")], "next_h")
        bins = g.linear(g.layernorm(h, "normed", width, "normed_scale"), "reward_bins", p.reward_w, p.reward_b)
        total = g.decode(bins, "next_prefix", s.reward_limit, s.reward_bins)
        reward = g.node("Sub", [total, before], "reward")
        return OutputHead(reward, 1), [h, c, total, g.node("Add", [steps, "one"], "next_steps")]
