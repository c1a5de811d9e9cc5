"""The transformer world model: the tokens of a window through L pre-norm blocks, and its hand-written backward.

A bar that was seen is a token z, its encoder's latent; an imagined one is a token c, its chance code, linearly
embedded.  c_k sees z_0 and the codes c_1 .. c_k, up to `window` tokens back: just what a search can see, so that its
states hold all there is to know.  z_k sees the context - 1 bars before it, which is what the root is given.  What comes
out is the latent that the heads read.  Letters: Z bars, T tokens, R = T n rows in the order of the tokens, L blocks,
E heads, H hidden.  The norms have no gain or bias of their own: the linear layer behind each of them has both.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.jit import kernel, reassociated
from models.layers import (
    Array,
    layernorm_backward,
    layernorm_forward,
    linear_backward,
    linear_backward_input,
    linear_forward,
    residual_forward,
)
from models.params import ModelShape, Params
from models.representation import RepresentationWork, new_representation_work, represent, represent_backward

ROPE_BASE = 10_000.0  # of the wave lengths of the positions (Su et al. 2021)
SQRT_2_OVER_PI, GELU_CUBIC = math.sqrt(2 / math.pi), 0.044715  # of GELU by tanh


class BlockActivations(NamedTuple):
    """Activations of one block."""

    ln1: Array  # [R, D] the normalised stream
    ln1_rstd: Array  # [R]
    qkv: Array  # [T, n, 3 D] queries and keys, turned by their positions, and values
    att: Array  # [n, E, T, T] of each token's attention
    atty: Array  # [T, n, D] what attention brings
    ln2: Array  # [R, D] the normalised stream after it
    ln2_rstd: Array  # [R]
    fch: Array  # [R, H] before the GELU
    gelu_tanh: Array  # [R, H] its tanh
    fch_gelu: Array  # [R, H] after it


class TransformerActivations(NamedTuple):
    """Activations and gradients of the tokens of n windows: context, z_1 .. z_J, z_0, c_1 .. c_K; Z = context + J."""

    representation: RepresentationWork  # Z n bars
    blocks: list[BlockActivations]  # [L]
    x: Array  # [R, D] the residual stream
    residual2: Array  # [R, D] the same within a block
    rstd: Array  # [R] of the last norm
    dx: Array  # [R, D]
    d_atty: Array  # [T, n, D]
    d_qkv: Array  # [T, n, 3 D]
    d_fch: Array  # [R, H]
    rope: Array  # [T, D / E / 2, 2] cosine and sine of each token's position
    mask: NDArray[np.bool_]  # [T, T]


def new_transformer_activations(
    shape: ModelShape, n: int, num_codes: int, num_later: int, dtype: Any = np.float32
) -> TransformerActivations:
    """Room for n windows of `num_codes` imagined bars and `num_later` seen ones after the context."""
    D, E, H = shape.latent, shape.num_heads, shape.hidden
    position, is_code = token_order(shape.context, num_codes, num_later)
    T = len(position)
    R = T * n

    def zeros(*size: int) -> Array:
        return np.zeros(size, dtype)

    def block() -> BlockActivations:
        attention = zeros(R, D), zeros(R), zeros(T, n, 3 * D), zeros(n, E, T, T), zeros(T, n, D)
        return BlockActivations(*attention, zeros(R, D), zeros(R), zeros(R, H), zeros(R, H), zeros(R, H))

    return TransformerActivations(
        representation=new_representation_work(shape, n * int((~is_code).sum()), dtype),
        blocks=[block() for _ in range(shape.num_layers)],
        x=zeros(R, D),
        residual2=zeros(R, D),
        rstd=zeros(R),
        dx=zeros(R, D),
        d_atty=zeros(T, n, D),
        d_qkv=zeros(T, n, 3 * D),
        d_fch=zeros(R, H),
        rope=rope_table(position, D // E).astype(dtype),
        mask=attention_mask(position, is_code, shape.attention_window, shape.context),
    )


def token_order(context: int, num_codes: int, num_later: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Bar of each token, 0 being the last of the context, and whether it is a code."""
    order = [*range(1 - context, 0), *range(1, num_later + 1), 0, *range(1, num_codes + 1)]
    return np.array(order), np.arange(len(order)) >= len(order) - num_codes


def attention_mask(
    position: NDArray[np.int64], is_code: NDArray[np.bool_], window: int, context: int
) -> NDArray[np.bool_]:
    """[T, T] whether a token sees another: a code z_0 and codes, a bar bars, both those before it and themselves."""
    back = position[:, None] - position
    codes = (back <= window) & (is_code | (position == 0))
    return np.asarray((back >= 0) & np.where(is_code[:, None], codes, (back < context) & ~is_code))


def rope_table(position: Any, width: int) -> NDArray[np.float64]:
    """[T, width / 2, 2] cosine and sine of the angles by which the halves of a head turn at each position."""
    angle = np.asarray(position)[:, None] * ROPE_BASE ** (-np.arange(width // 2) * 2 / width)
    return np.stack([np.cos(angle), np.sin(angle)], axis=2)


@kernel
def apply_rope(qkv: Array, rope: Array, E: int, sign: float) -> None:
    """Turn queries and keys of qkv [T, n, 3 D] by the angles `rope`, or with sign -1 turn their gradient back."""
    T, half = rope.shape[0], rope.shape[1]
    way = qkv.dtype.type(sign)
    for t in range(T):
        for i in range(qkv.shape[1]):
            for e in range(2 * E):
                a, b = qkv[t, i, 2 * half * e :], qkv[t, i, 2 * half * e + half :]
                for j in range(half):
                    cosine, sine = rope[t, j, 0], way * rope[t, j, 1]
                    a[j], b[j] = a[j] * cosine - b[j] * sine, a[j] * sine + b[j] * cosine


@reassociated
def _dot(a: Array, b: Array) -> Any:
    """<a, b> of two vectors."""
    total = a.dtype.type(0)
    for j in range(a.shape[0]):
        total += a[j] * b[j]
    return total


@kernel
def _axpy(y: Array, weight: Any, x: Array) -> None:
    """y += weight x."""
    for j in range(y.shape[0]):
        y[j] += weight * x[j]


@reassociated
def _softmax(z: Array, mask: NDArray[np.bool_]) -> None:
    """Scores z [T] become the shares of what is seen; what is not has none."""
    zero, highest, total = z.dtype.type(0), z.dtype.type(-np.inf), z.dtype.type(0)
    for s in range(z.shape[0]):
        highest = max(highest, z[s]) if mask[s] else highest
    for s in range(z.shape[0]):
        z[s] = math.exp(z[s] - highest) if mask[s] else zero
        total += z[s]
    for s in range(z.shape[0]):
        z[s] /= total


@kernel
def attention_forward(atty: Array, att: Array, qkv: Array, mask: NDArray[np.bool_]) -> None:
    """told [T, n, D] = share v, share [n, E, T, T] = softmax(q k / sqrt(D / E)) over what each token sees."""
    n, E, T, D = att.shape[0], att.shape[1], att.shape[2], atty.shape[2]
    width = D // E
    scale = atty.dtype.type(1.0 / math.sqrt(width))
    for i in range(n):
        for e in range(E):
            q, k, v = width * e, D + width * e, 2 * D + width * e
            for t in range(T):
                weights, out, query = att[i, e, t], atty[t, i, q : q + width], qkv[t, i, q : q + width]
                for s in range(T):
                    if mask[t, s]:
                        weights[s] = scale * _dot(query, qkv[s, i, k : k + width])
                _softmax(weights, mask[t])
                for j in range(width):
                    out[j] = 0
                for s in range(T):
                    if mask[t, s]:
                        _axpy(out, weights[s], qkv[s, i, v : v + width])


@kernel
def attention_backward(
    d_qkv: Array, d_atty: Array, atty: Array, att: Array, qkv: Array, mask: NDArray[np.bool_]
) -> None:
    """d_qkv [T, n, 3 D], zero before: dv = share dy, dz = share (<dy, v> - <dy, y>), dq = dz k, dk = dz q."""
    n, E, T, D = att.shape[0], att.shape[1], att.shape[2], atty.shape[2]
    width = D // E
    scale = atty.dtype.type(1.0 / math.sqrt(width))
    for i in range(n):
        for e in range(E):
            q, k, v = width * e, D + width * e, 2 * D + width * e
            for t in range(T):
                dy, query = d_atty[t, i, q : q + width], qkv[t, i, q : q + width]
                mean = _dot(dy, atty[t, i, q : q + width])
                for s in range(T):
                    if mask[t, s]:
                        slope = _dot(dy, qkv[s, i, v : v + width]) - mean
                        dz = scale * att[i, e, t, s] * slope
                        _axpy(d_qkv[t, i, q : q + width], dz, qkv[s, i, k : k + width])
                        _axpy(d_qkv[s, i, k : k + width], dz, query)
                        _axpy(d_qkv[s, i, v : v + width], att[i, e, t, s], dy)


@kernel
def _gelu_inner(inner: Array, x: Array, b: Array) -> None:
    """x [n, H] += b, and bend = sqrt(2 / pi) (x + 0.044715 x^3)."""
    slope, cube = x.dtype.type(SQRT_2_OVER_PI), x.dtype.type(GELU_CUBIC)
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            z = x[i, j] + b[j]
            x[i, j] = z
            inner[i, j] = slope * (z + cube * z * z * z)


@kernel
def _gelu(y: Array, x: Array, gelu_tanh: Array) -> None:
    """y [n, H] = x (1 + bend) / 2."""
    half, one = x.dtype.type(0.5), x.dtype.type(1)
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            y[i, j] = half * x[i, j] * (one + gelu_tanh[i, j])


def gelu_forward(y: Array, gelu_tanh: Array, x: Array, b: Array) -> None:
    """y [n, H] = GELU(x + b) by tanh, which `gelu_tanh` keeps; x becomes x + b."""
    _gelu_inner(gelu_tanh, x, b)
    np.tanh(gelu_tanh, out=gelu_tanh)
    _gelu(y, x, gelu_tanh)


@kernel
def gelu_backward(dy: Array, db: Array, x: Array, gelu_tanh: Array) -> None:
    """dy [n, H] becomes the gradient of what went into the GELU; db [H] = sum of its rows."""
    half, one, slope = x.dtype.type(0.5), x.dtype.type(1), x.dtype.type(0.5 * SQRT_2_OVER_PI)
    cube = x.dtype.type(3 * GELU_CUBIC)
    db[:] = 0
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            z, th = x[i, j], gelu_tanh[i, j]
            g = dy[i, j] * (half * (one + th) + slope * z * (one - th * th) * (one + cube * z * z))
            dy[i, j] = g
            db[j] += g


def transformer_forward(latent: Array, work: TransformerActivations, p: Params, x: Array, code: Array) -> None:
    """Latents [J + 1 + K, n, D] of z_1 .. z_J, z_0, c_1 .. c_K from the features x [Z n, F] and codes [K n, C]."""
    bars = len(work.representation.z)
    represent(work.representation, p, x)
    work.x[:bars] = work.representation.z
    linear_forward(work.x[bars:], code, p.code_embedding_w, p.code_embedding_b)
    for i, block in enumerate(work.blocks):
        _block_forward(work, block, p, i)
    rows = latent.reshape(-1, latent.shape[2])
    first = len(work.x) - len(rows)  # of what heads read: the context is only seen
    layernorm_forward(rows, work.rstd[first:], work.x[first:])


def _block_forward(work: TransformerActivations, block: BlockActivations, p: Params, i: int) -> None:
    """x += mix(attend(norm(x))), then x += down(GELU(up(norm(x))))."""
    flat = (len(work.x), -1)
    layernorm_forward(block.ln1, block.ln1_rstd, work.x)
    linear_forward(block.qkv.reshape(flat), block.ln1, p.qkv_w[i], p.qkv_b[i])
    apply_rope(block.qkv, work.rope, block.att.shape[1], 1.0)
    attention_forward(block.atty, block.att, block.qkv, work.mask)
    np.matmul(block.atty.reshape(flat), p.attproj_w[i], out=work.residual2)
    residual_forward(work.residual2, work.x, p.attproj_b[i])
    layernorm_forward(block.ln2, block.ln2_rstd, work.residual2)
    np.matmul(block.ln2, p.fc_w[i], out=block.fch)
    gelu_forward(block.fch_gelu, block.gelu_tanh, block.fch, p.fc_b[i])
    np.matmul(block.fch_gelu, p.fcproj_w[i], out=work.x)
    residual_forward(work.x, work.residual2, p.fcproj_b[i])


def transformer_backward(
    d: Params, work: TransformerActivations, p: Params, x: Array, code: Array, latent: Array, d_latent: Array
) -> None:
    """Gradients of encoder, embedding and blocks from that of the latents."""
    rows, d_rows = (array.reshape(-1, latent.shape[2]) for array in (latent, d_latent))
    first, bars = len(work.x) - len(rows), len(work.representation.z)
    work.dx[:first] = 0
    layernorm_backward(work.dx[first:], d_rows, rows, work.rstd[first:])
    for i in range(len(work.blocks) - 1, -1, -1):
        _block_backward(d, work, work.blocks[i], p, i)
    linear_backward(d.code_embedding_w, d.code_embedding_b, work.dx[bars:], code)
    represent_backward(d, work.dx[:bars], work.representation, p, x)


def _block_backward(d: Params, work: TransformerActivations, block: BlockActivations, p: Params, i: int) -> None:
    """The gradient dx of what left the block becomes that of what entered it."""
    dx, d_qkv = work.dx, work.d_qkv.reshape(len(work.x), -1)
    part = work.d_atty.reshape(dx.shape)
    linear_backward(d.fcproj_w[i], d.fcproj_b[i], dx, block.fch_gelu)
    linear_backward_input(work.d_fch, dx, p.fcproj_w[i])
    gelu_backward(work.d_fch, d.fc_b[i], block.fch, block.gelu_tanh)
    np.matmul(block.ln2.T, work.d_fch, out=d.fc_w[i])
    linear_backward_input(part, work.d_fch, p.fc_w[i])
    layernorm_backward(part, part, block.ln2, block.ln2_rstd)
    np.add(dx, part, out=dx)
    linear_backward(d.attproj_w[i], d.attproj_b[i], dx, block.atty.reshape(dx.shape))
    linear_backward_input(part, dx, p.attproj_w[i])
    work.d_qkv.fill(0)
    attention_backward(work.d_qkv, work.d_atty, block.atty, block.att, block.qkv, work.mask)
    apply_rope(work.d_qkv, work.rope, block.att.shape[1], -1.0)
    linear_backward(d.qkv_w[i], d.qkv_b[i], d_qkv, block.ln1)
    linear_backward_input(part, d_qkv, p.qkv_w[i])
    layernorm_backward(part, part, block.ln1, block.ln1_rstd)
    np.add(dx, part, out=dx)
