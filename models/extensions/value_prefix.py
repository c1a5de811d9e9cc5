"""The value prefix of EfficientZero: the sum of the rewards since the last reset, from an LSTM over the steps.

It stands behind the hidden layer of the reward head, and its state and sum are reset every RESET steps.  What it puts
out is normalised: as it is, small and bounded, no layer learns to tell rewards apart from it.  A search takes the
difference of two prefixes for the reward, so its networks carry [h L | c L | prefix | steps] from node to node, behind
the latent.  Letters: K steps of n windows, H columns of input, L width of the LSTM.
"""

from typing import Any, NamedTuple

import numpy as np

from kernels.jit import inlined, kernel
from models.layers import Array, linear_backward, linear_backward_input, norm_backward, norm_forward

RESET = 5  # steps (EfficientZero, section 4.2)


class Prefix(NamedTuple):
    """Activations of the LSTM and the gradients that take their place."""

    gate: Array  # [K, n, 4 L] i, f, o, g; then the gradient of what they were made from
    cell: Array  # [K, n, L]
    squashed: Array  # [K, n, L] tanh(cell)
    hidden: Array  # [K, n, L]
    before: Array  # [K, n, L] hidden of the step before, 0 after a reset
    normed: Array  # [K n, L] hidden as the reward layer reads it
    rstd: Array  # [K n]
    d_hidden: Array  # [K, n, L] of normed, then of hidden
    d_cell: Array  # [n, L] what step k + 1 hands back to step k
    recurrent: Array  # [n, 4 L]


def new_prefix(L: int, n: int, K: int, dtype: Any = np.float32) -> Prefix:
    """Room for n windows of K steps."""
    steps = {
        name: np.zeros((K, n, L), dtype) for name in ("cell", "squashed", "hidden", "before", "d_hidden")
    }
    return Prefix(
        gate=np.zeros((K, n, 4 * L), dtype),
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
    for i in range(k - k % RESET, k + 1):
        total += reward[i]
    return total


def prefix_forward(work: Prefix, x: Array, w: Array, b: Array) -> None:
    """work.normed from x [K n, H]; w [H + L, 4 L] has the rows of the input, then those of its own hidden layer."""
    told = x.shape[1]
    np.matmul(x, w[:told], out=work.gate.reshape(len(x), -1))
    for k in range(len(work.gate)):
        if k % RESET:
            np.matmul(work.hidden[k - 1], w[told:], out=work.recurrent)
            np.add(work.gate[k], work.recurrent, out=work.gate[k])
            work.before[k] = work.hidden[k - 1]
        _gates(work, b, k)
    norm_forward(work.normed, work.rstd, work.hidden.reshape(work.normed.shape))


def _gates(work: Prefix, b: Array, k: int) -> None:
    """c[k] = f c[k - 1] + i g and h[k] = o tanh(c[k]), with sigmoid gates i, f, o and g = tanh."""
    gate, L = work.gate[k], work.cell.shape[2]
    np.add(gate, b, out=gate)
    gate[:, : 3 * L] *= 0.5  # sigmoid(z) = (1 + tanh(z / 2)) / 2: the hyperbolic tangent runs on vector units
    np.tanh(gate, out=gate)
    _remember(work, k)
    np.tanh(work.cell[k], out=work.squashed[k])
    np.multiply(gate[:, 2 * L : 3 * L], work.squashed[k], out=work.hidden[k])


@kernel
def _remember(work: Prefix, k: int) -> None:
    """The sigmoid gates from their tanh, and c[k]; nothing is left of what was before a reset."""
    gate, cell = work.gate[k], work.cell[k]
    L, first, half = cell.shape[1], k % RESET == 0, gate.dtype.type(0.5)
    for row in range(cell.shape[0]):
        for j in range(3 * L):
            gate[row, j] = half + half * gate[row, j]
        for j in range(L):
            cell[row, j] = gate[row, j] * gate[row, 3 * L + j]
            if not first:
                cell[row, j] += gate[row, L + j] * work.cell[k - 1, row, j]


def prefix_backward(dw: Array, db: Array, dx: Array, work: Prefix, x: Array, w: Array) -> None:
    """From work.d_hidden, which is spent: gradients of w and b, and dx [K n, H]."""
    K, n, L = work.hidden.shape
    told, dh = x.shape[1], work.d_hidden.reshape(K * n, L)
    norm_backward(dh, dh, work.normed, work.rstd)
    for k in range(K - 1, -1, -1):
        _gates_backward(work, k)
        if k % RESET:
            np.matmul(work.gate[k], w[told:].T, out=work.squashed[k])  # tanh(c) is not needed any more
            np.add(work.d_hidden[k - 1], work.squashed[k], out=work.d_hidden[k - 1])
    dz = work.gate.reshape(K * n, -1)
    linear_backward(dw[:told], db, dz, x)
    np.matmul(work.before.reshape(K * n, L).T, dz, out=dw[told:])
    linear_backward_input(dx, dz, w[:told])


@kernel
def _gates_backward(work: Prefix, k: int) -> None:
    """gate[k] <- the gradient of what the gates were made from; d_cell <- that of c[k - 1], 0 before a reset."""
    gate, squashed, dh, d_cell = work.gate[k], work.squashed[k], work.d_hidden[k], work.d_cell
    L = dh.shape[1]
    first, last = k % RESET == 0, k + 1 == work.gate.shape[0] or (k + 1) % RESET == 0
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
