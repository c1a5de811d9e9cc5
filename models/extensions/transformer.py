"""The transformer world model: the tokens of a window through pre-norm blocks, and their hand-written backward.

The token of a bar that was seen is z, its representation.  The token of an imagined bar is c, its chance code linearly
embedded.  Token c_k attends to z_0 and to the codes c_1 .. c_k, up to `attention_window` tokens back: a search knows
just these, so its states hold all that the model reads.  Token z_k attends to the context - 1 bars before it, which are
all that the root is given.  The output of a token is the latent that the heads read.  The norms have no gain or bias of
their own, because the linear layer behind each of them has both.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.jit import kernel, reassociated
from models.layers import (
    gelu_backward,
    gelu_forward,
    layernorm_backward,
    layernorm_forward,
    linear_backward,
    linear_backward_input,
    linear_forward,
    residual_forward,
)
from models.representation import RepresentationWork, new_representation_work, represent, represent_backward
from models.shape import Array, CoreParams, ModelShape

ROPE_BASE = 10_000.0  # of the wave lengths of the positions (Su et al. 2021)


class TransformerParams(CoreParams):
    """Parameters of the embedding and of the blocks."""

    code_embedding_w: Array  # [C, D]
    code_embedding_b: Array
    qkv_w: Array  # [num_layers, D, 3 D] queries, keys and values
    qkv_b: Array  # [num_layers, 3 D]
    attproj_w: Array  # [num_layers, D, D]
    attproj_b: Array
    fc_w: Array  # [num_layers, D, H]
    fc_b: Array
    fcproj_w: Array  # [num_layers, H, D]
    fcproj_b: Array


class BlockActivations(NamedTuple):
    """Activations of one block over `rows` = tokens n rows."""

    ln1: Array  # [rows, D] normalised input of the attention
    ln1_rstd: Array  # [rows]
    qkv: Array  # [tokens, n, 3 D] queries and keys, rotated by their positions, and values
    att: Array  # [n, num_heads, tokens, tokens] attention weights of each token
    atty: Array  # [tokens, n, D] output of the attention
    ln2: Array  # [rows, D] normalised input of the MLP
    ln2_rstd: Array  # [rows]
    fch: Array  # [rows, H] before the GELU
    gelu_tanh: Array  # [rows, H] tanh within the GELU
    fch_gelu: Array  # [rows, H] after it


class TransformerActivations(NamedTuple):
    """Activations and gradients of the tokens of n windows: context, z_1 .. z_num_seen, z_0, c_1 .. c_K.

    `bars` = context + num_seen of the tokens are bars, and `rows` = tokens n.
    """

    representation: RepresentationWork  # bars n rows
    blocks: list[BlockActivations]  # [num_layers]
    x: Array  # [rows, D] residual stream
    residual2: Array  # [rows, D] the same between attention and MLP
    rstd: Array  # [rows] of the last norm
    dx: Array  # [rows, D]
    d_atty: Array  # [tokens, n, D]
    d_qkv: Array  # [tokens, n, 3 D]
    d_fch: Array  # [rows, H]
    rope: Array  # [tokens, D / num_heads / 2, 2] cosine and sine of each token's position
    mask: NDArray[np.bool_]  # [tokens, tokens] whether a token attends to another


def new_transformer_activations(
    shape: ModelShape, n: int, num_codes: int, num_later: int, dtype: Any = np.float32
) -> TransformerActivations:
    """Allocate for n windows of `num_codes` imagined bars and `num_later` seen bars after the context."""
    D, H, heads = shape.latent, shape.hidden, shape.num_heads
    position, is_code = token_order(shape.context, num_codes, num_later)
    tokens = len(position)
    rows = tokens * n

    def zeros(*size: int) -> Array:
        return np.zeros(size, dtype)

    def block() -> BlockActivations:
        attention = (
            zeros(rows, D),
            zeros(rows),
            zeros(tokens, n, 3 * D),
            zeros(n, heads, tokens, tokens),
            zeros(tokens, n, D),
        )
        return BlockActivations(*attention, zeros(rows, D), zeros(rows), zeros(rows, H), zeros(rows, H), zeros(rows, H))

    return TransformerActivations(
        representation=new_representation_work(shape, n * int((~is_code).sum()), dtype),
        blocks=[block() for _ in range(shape.num_layers)],
        x=zeros(rows, D),
        residual2=zeros(rows, D),
        rstd=zeros(rows),
        dx=zeros(rows, D),
        d_atty=zeros(tokens, n, D),
        d_qkv=zeros(tokens, n, 3 * D),
        d_fch=zeros(rows, H),
        rope=rope_table(position, D // heads).astype(dtype),
        mask=attention_mask(position, is_code, shape.attention_window, shape.context),
    )


def token_order(context: int, num_codes: int, num_later: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Bar of each token, 0 being the last of the context, and whether the token is a code."""
    order = [*range(1 - context, 0), *range(1, num_later + 1), 0, *range(1, num_codes + 1)]
    return np.array(order), np.arange(len(order)) >= len(order) - num_codes


def attention_mask(
    position: NDArray[np.int64], is_code: NDArray[np.bool_], window: int, context: int
) -> NDArray[np.bool_]:
    """Mask [tokens, tokens]: codes attend to z_0 and to codes, bars to bars; each to itself too, none to later ones."""
    back = position[:, None] - position
    codes = (back <= window) & (is_code | (position == 0))
    return np.asarray((back >= 0) & np.where(is_code[:, None], codes, (back < context) & ~is_code))


def rope_table(position: Any, width: int) -> NDArray[np.float64]:
    """Cosine and sine [tokens, width / 2, 2] of the angles by which a head is rotated at each position."""
    angle = np.asarray(position)[:, None] * ROPE_BASE ** (-np.arange(width // 2) * 2 / width)
    return np.stack([np.cos(angle), np.sin(angle)], axis=2)


@kernel
def apply_rope(qkv: Array, rope: Array, num_heads: int, sign: float) -> None:
    """Rotate queries and keys of qkv [tokens, n, 3 D] by the angles `rope`; sign -1 rotates their gradient back."""
    half, direction = rope.shape[1], qkv.dtype.type(sign)
    for t in range(rope.shape[0]):
        for i in range(qkv.shape[1]):
            for e in range(2 * num_heads):
                a, b = qkv[t, i, 2 * half * e :], qkv[t, i, 2 * half * e + half :]
                for j in range(half):
                    cosine, sine = rope[t, j, 0], direction * rope[t, j, 1]
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
    """Turn scores z [tokens] into attention weights, which are 0 where the mask is not set."""
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
    """atty [tokens, n, D] = att v, with att [n, num_heads, tokens, tokens] = softmax(q k / sqrt(D / num_heads)).

    The softmax of a token runs over the tokens of its row of the mask.
    """
    n, num_heads, tokens, D = att.shape[0], att.shape[1], att.shape[2], atty.shape[2]
    width = D // num_heads
    scale = atty.dtype.type(1.0 / math.sqrt(width))
    for i in range(n):
        for e in range(num_heads):
            q, k, v = width * e, D + width * e, 2 * D + width * e
            for t in range(tokens):
                weights, out, query = att[i, e, t], atty[t, i, q : q + width], qkv[t, i, q : q + width]
                for s in range(tokens):
                    if mask[t, s]:
                        weights[s] = scale * _dot(query, qkv[s, i, k : k + width])
                _softmax(weights, mask[t])
                for j in range(width):
                    out[j] = 0
                for s in range(tokens):
                    if mask[t, s]:
                        _axpy(out, weights[s], qkv[s, i, v : v + width])


@kernel
def attention_backward(
    d_qkv: Array, d_atty: Array, atty: Array, att: Array, qkv: Array, mask: NDArray[np.bool_]
) -> None:
    """Add to d_qkv [tokens, n, 3 D]: dv = att dy, dz = att (<dy, v> - <dy, y>), dq = dz k, dk = dz q."""
    n, num_heads, tokens, D = att.shape[0], att.shape[1], att.shape[2], atty.shape[2]
    width = D // num_heads
    scale = atty.dtype.type(1.0 / math.sqrt(width))
    for i in range(n):
        for e in range(num_heads):
            q, k, v = width * e, D + width * e, 2 * D + width * e
            for t in range(tokens):
                dy, query = d_atty[t, i, q : q + width], qkv[t, i, q : q + width]
                mean = _dot(dy, atty[t, i, q : q + width])
                for s in range(tokens):
                    if mask[t, s]:
                        slope = _dot(dy, qkv[s, i, v : v + width]) - mean
                        dz = scale * att[i, e, t, s] * slope
                        _axpy(d_qkv[t, i, q : q + width], dz, qkv[s, i, k : k + width])
                        _axpy(d_qkv[s, i, k : k + width], dz, query)
                        _axpy(d_qkv[s, i, v : v + width], att[i, e, t, s], dy)


def transformer_forward(
    latent: Array, work: TransformerActivations, p: TransformerParams, x: Array, code: Array
) -> None:
    """Latents [num_seen + 1 + K, n, D] of z_1 .. z_num_seen, z_0, c_1 .. c_K.

    x [bars n, F] are the features of the bars, and code [K n, C] the one-hot codes.
    """
    bars = len(work.representation.z)
    represent(work.representation, p, x)
    work.x[:bars] = work.representation.z
    linear_forward(work.x[bars:], code, p.code_embedding_w, p.code_embedding_b)
    for i, block in enumerate(work.blocks):
        _block_forward(work, block, p, i)
    rows = latent.reshape(-1, latent.shape[2])
    first = len(work.x) - len(rows)  # the heads do not read the context
    layernorm_forward(rows, work.rstd[first:], work.x[first:])


def _block_forward(work: TransformerActivations, block: BlockActivations, p: TransformerParams, i: int) -> None:
    """x += attproj(attention(norm(x))), then x += fcproj(GELU(fc(norm(x))))."""
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
    d: TransformerParams,
    work: TransformerActivations,
    p: TransformerParams,
    x: Array,
    code: Array,
    latent: Array,
    d_latent: Array,
) -> None:
    """Gradients of representation, embedding and blocks from that of the latents."""
    rows, d_rows = (array.reshape(-1, latent.shape[2]) for array in (latent, d_latent))
    first, bars = len(work.x) - len(rows), len(work.representation.z)
    work.dx[:first] = 0
    layernorm_backward(work.dx[first:], d_rows, rows, work.rstd[first:])
    for i in range(len(work.blocks) - 1, -1, -1):
        _block_backward(d, work, work.blocks[i], p, i)
    linear_backward(d.code_embedding_w, d.code_embedding_b, work.dx[bars:], code)
    represent_backward(d, work.dx[:bars], work.representation, p, x)


def _block_backward(
    d: TransformerParams, work: TransformerActivations, block: BlockActivations, p: TransformerParams, i: int
) -> None:
    """Turn the gradient dx of the block's output into that of its input."""
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
