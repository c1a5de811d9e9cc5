"""The value prefix of EfficientZero: the sum of the rewards since the last reset, from an LSTM over the steps.

It stands behind the hidden layer of the reward head, and its state and sum are reset every RESET steps.  What it puts
out is normalised: as it is, small and bounded, no layer learns to tell rewards apart from it.  A search takes the
difference of two prefixes for the reward, so its networks carry [h L | c L | prefix | steps] from node to node, behind
the latent.  Letters: K steps of n windows, H columns of input, L width of the LSTM.
"""

from typing import Any, NamedTuple

import numpy as np

from kernels.jit import inlined, kernel
from models.layers import Array, layernorm_backward, layernorm_forward, linear_backward, linear_backward_input

RESET_INTERVAL = 5  # steps (EfficientZero, section 4.2)


class ValuePrefixWork(NamedTuple):
    """Activations of the LSTM and the gradients that take their place."""

    gates: Array  # [K, n, 4 L] i, f, o, g; then the gradient of what they were made from
    cell: Array  # [K, n, L]
    tanh_cell: Array  # [K, n, L] tanh(cell)
    hidden: Array  # [K, n, L]
    previous_hidden: Array  # [K, n, L] hidden of the step before, 0 after a reset
    normed: Array  # [K n, L] hidden as the reward layer reads it
    rstd: Array  # [K n]
    d_hidden: Array  # [K, n, L] of normed, then of hidden
    d_cell: Array  # [n, L] what step k + 1 hands back to step k
    recurrent: Array  # [n, 4 L]


def new_value_prefix_work(L: int, n: int, K: int, dtype: Any = np.float32) -> ValuePrefixWork:
    """Room for n windows of K steps."""
    steps = {
        name: np.zeros((K, n, L), dtype) for name in ("cell", "tanh_cell", "hidden", "previous_hidden", "d_hidden")
    }
    return ValuePrefixWork(
        gates=np.zeros((K, n, 4 * L), dtype),
        normed=np.zeros((K * n, L), dtype),
        rstd=np.zeros(K * n, dtype),
        d_cell=np.zeros((n, L), dtype),
        recurrent=np.zeros((n, 4 * L), dtype),
        **steps,
    )


@inlined
def sum_since_reset(reward: Array, k: int) -> float:
    """What step k is to be told: the rewards [K] of the steps from the last reset up to it."""
    total = 0.0
    for i in range(k - k % RESET_INTERVAL, k + 1):
        total += reward[i]
    return total


def value_prefix_forward(work: ValuePrefixWork, x: Array, w: Array, b: Array) -> None:
    """work.normed from x [K n, H]; w [H + L, 4 L] has the rows of the input, then those of its own hidden layer."""
    told = x.shape[1]
    np.matmul(x, w[:told], out=work.gates.reshape(len(x), -1))
    for k in range(len(work.gates)):
        if k % RESET_INTERVAL:
            np.matmul(work.hidden[k - 1], w[told:], out=work.recurrent)
            np.add(work.gates[k], work.recurrent, out=work.gates[k])
            work.previous_hidden[k] = work.hidden[k - 1]
        _lstm_step(work, b, k)
    layernorm_forward(work.normed, work.rstd, work.hidden.reshape(work.normed.shape))


def _lstm_step(work: ValuePrefixWork, b: Array, k: int) -> None:
    """c[k] = f c[k - 1] + i g and h[k] = o tanh(c[k]), with sigmoid gates i, f, o and g = tanh."""
    gate, L = work.gates[k], work.cell.shape[2]
    np.add(gate, b, out=gate)
    gate[:, : 3 * L] *= 0.5  # sigmoid(z) = (1 + tanh(z / 2)) / 2: the hyperbolic tangent runs on vector units
    np.tanh(gate, out=gate)
    _update_cell(work, k)
    np.tanh(work.cell[k], out=work.tanh_cell[k])
    np.multiply(gate[:, 2 * L : 3 * L], work.tanh_cell[k], out=work.hidden[k])


@kernel
def _update_cell(work: ValuePrefixWork, k: int) -> None:
    """The sigmoid gates from their tanh, and c[k]; nothing is left of what was before a reset."""
    gate, cell = work.gates[k], work.cell[k]
    L, first, half = cell.shape[1], k % RESET_INTERVAL == 0, gate.dtype.type(0.5)
    for row in range(cell.shape[0]):
        for j in range(3 * L):
            gate[row, j] = half + half * gate[row, j]
        for j in range(L):
            cell[row, j] = gate[row, j] * gate[row, 3 * L + j]
            if not first:
                cell[row, j] += gate[row, L + j] * work.cell[k - 1, row, j]


def value_prefix_backward(dw: Array, db: Array, dx: Array, work: ValuePrefixWork, x: Array, w: Array) -> None:
    """From work.d_hidden, which is spent: gradients of w and b, and dx [K n, H]."""
    K, n, L = work.hidden.shape
    told, dh = x.shape[1], work.d_hidden.reshape(K * n, L)
    layernorm_backward(dh, dh, work.normed, work.rstd)
    for k in range(K - 1, -1, -1):
        _lstm_step_backward(work, k)
        if k % RESET_INTERVAL:
            np.matmul(work.gates[k], w[told:].T, out=work.tanh_cell[k])  # tanh(c) is not needed any more
            np.add(work.d_hidden[k - 1], work.tanh_cell[k], out=work.d_hidden[k - 1])
    dz = work.gates.reshape(K * n, -1)
    linear_backward(dw[:told], db, dz, x)
    np.matmul(work.previous_hidden.reshape(K * n, L).T, dz, out=dw[told:])
    linear_backward_input(dx, dz, w[:told])


@kernel
def _lstm_step_backward(work: ValuePrefixWork, k: int) -> None:
    """gate[k] <- the gradient of what the gates were made from; d_cell <- that of c[k - 1], 0 before a reset."""
    gate, squashed, dh, d_cell = work.gates[k], work.tanh_cell[k], work.d_hidden[k], work.d_cell
    L = dh.shape[1]
    first, last = k % RESET_INTERVAL == 0, k + 1 == work.gates.shape[0] or (k + 1) % RESET_INTERVAL == 0
    for row in range(dh.shape[0]):
        for j in range(L):
            i, f, o, g = gate[row, j], gate[row, L + j], gate[row, 2 * L + j], gate[row, 3 * L + j]
            old = 0.0 if first else work.cell[k - 1, row, j]
            tc = squashed[row, j]
            dc = dh[row, j] * o * (1 - tc * tc) + (0.0 if last else d_cell[row, j])
            gate[row, j] = dc * g * i * (1 - i)
            gate[row, L + j] = dc * old * f * (1 - f)
            gate[row, 2 * L + j] = dh[row, j] * tc * o * (1 - o)
            gate[row, 3 * L + j] = dc * i * (1 - g * g)
            d_cell[row, j] = dc * f
