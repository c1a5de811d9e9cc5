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

from kernels.jit import kernel, reordered
from models.layers import (
    Array,
    linear_backward,
    linear_backward_input,
    linear_forward,
    norm_backward,
    norm_forward,
    residual,
)
from models.params import Params, Shape
from models.representation import Encoded, encode, encode_backward, new_encoded

BASE = 10_000.0  # of the wave lengths of the positions (Su et al. 2021)
SLOPE, CUBE = math.sqrt(2 / math.pi), 0.044715  # of GELU by tanh


class Block(NamedTuple):
    """Activations of one block."""

    heard: Array  # [R, D] the normalised stream
    heard_rstd: Array  # [R]
    qkv: Array  # [T, n, 3 D] queries and keys, turned by their positions, and values
    share: Array  # [n, E, T, T] of each token's attention
    told: Array  # [T, n, D] what attention brings
    thought: Array  # [R, D] the normalised stream after it
    thought_rstd: Array  # [R]
    up: Array  # [R, H] before the GELU
    bend: Array  # [R, H] its tanh
    bent: Array  # [R, H] after it


class Stream(NamedTuple):
    """Activations and gradients of the tokens of n windows: context, z_1 .. z_J, z_0, c_1 .. c_K; Z = context + J."""

    encoded: Encoded  # Z n bars
    blocks: list[Block]  # [L]
    x: Array  # [R, D] the residual stream
    between: Array  # [R, D] the same within a block
    rstd: Array  # [R] of the last norm
    dx: Array  # [R, D]
    d_told: Array  # [T, n, D]
    d_qkv: Array  # [T, n, 3 D]
    d_up: Array  # [R, H]
    turn: Array  # [T, D / E / 2, 2] cosine and sine of each token's position
    sees: NDArray[np.bool_]  # [T, T]


def new_stream(shape: Shape, n: int, codes: int, later: int, dtype: Any = np.float32) -> Stream:
    """Room for n windows of `codes` imagined bars and `later` seen ones after the context."""
    D, E, H = shape.latent, shape.heads, shape.hidden
    position, is_code = token_order(shape.context, codes, later)
    T = len(position)
    R = T * n

    def zeros(*size: int) -> Array:
        return np.zeros(size, dtype)

    def block() -> Block:
        attention = zeros(R, D), zeros(R), zeros(T, n, 3 * D), zeros(n, E, T, T), zeros(T, n, D)
        return Block(*attention, zeros(R, D), zeros(R), zeros(R, H), zeros(R, H), zeros(R, H))

    return Stream(
        encoded=new_encoded(shape, n * int((~is_code).sum()), dtype),
        blocks=[block() for _ in range(shape.layers)],
        x=zeros(R, D),
        between=zeros(R, D),
        rstd=zeros(R),
        dx=zeros(R, D),
        d_told=zeros(T, n, D),
        d_qkv=zeros(T, n, 3 * D),
        d_up=zeros(R, H),
        turn=turns(position, D // E).astype(dtype),
        sees=sight(position, is_code, shape.window, shape.context),
    )


def token_order(context: int, codes: int, later: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Bar of each token, 0 being the last of the context, and whether it is a code."""
    order = [*range(1 - context, 0), *range(1, later + 1), 0, *range(1, codes + 1)]
    return np.array(order), np.arange(len(order)) >= len(order) - codes


def sight(
    position: NDArray[np.int64], is_code: NDArray[np.bool_], window: int, context: int
) -> NDArray[np.bool_]:
    """[T, T] whether a token sees another: a code z_0 and codes, a bar bars, both those before it and themselves."""
    back = position[:, None] - position
    codes = (back <= window) & (is_code | (position == 0))
    return np.asarray((back >= 0) & np.where(is_code[:, None], codes, (back < context) & ~is_code))


def turns(position: Any, width: int) -> NDArray[np.float64]:
    """[T, width / 2, 2] cosine and sine of the angles by which the halves of a head turn at each position."""
    angle = np.asarray(position)[:, None] * BASE ** (-np.arange(width // 2) * 2 / width)
    return np.stack([np.cos(angle), np.sin(angle)], axis=2)


@kernel
def rotate(qkv: Array, turn: Array, E: int, sign: float) -> None:
    """Turn queries and keys of qkv [T, n, 3 D] by the angles `turn`, or with sign -1 turn their gradient back."""
    T, half = turn.shape[0], turn.shape[1]
    way = qkv.dtype.type(sign)
    for t in range(T):
        for i in range(qkv.shape[1]):
            for e in range(2 * E):
                a, b = qkv[t, i, 2 * half * e :], qkv[t, i, 2 * half * e + half :]
                for j in range(half):
                    cosine, sine = turn[t, j, 0], way * turn[t, j, 1]
                    a[j], b[j] = a[j] * cosine - b[j] * sine, a[j] * sine + b[j] * cosine


@reordered
def _dot(a: Array, b: Array) -> Any:
    """<a, b> of two vectors."""
    total = a.dtype.type(0)
    for j in range(a.shape[0]):
        total += a[j] * b[j]
    return total


@kernel
def _add(y: Array, weight: Any, x: Array) -> None:
    """y += weight x."""
    for j in range(y.shape[0]):
        y[j] += weight * x[j]


@reordered
def _softmax(z: Array, sees: NDArray[np.bool_]) -> None:
    """Scores z [T] become the shares of what is seen; what is not has none."""
    zero, highest, total = z.dtype.type(0), z.dtype.type(-np.inf), z.dtype.type(0)
    for s in range(z.shape[0]):
        highest = max(highest, z[s]) if sees[s] else highest
    for s in range(z.shape[0]):
        z[s] = math.exp(z[s] - highest) if sees[s] else zero
        total += z[s]
    for s in range(z.shape[0]):
        z[s] /= total


@kernel
def attend(told: Array, share: Array, qkv: Array, sees: NDArray[np.bool_]) -> None:
    """told [T, n, D] = share v, share [n, E, T, T] = softmax(q k / sqrt(D / E)) over what each token sees."""
    n, E, T, D = share.shape[0], share.shape[1], share.shape[2], told.shape[2]
    width = D // E
    scale = told.dtype.type(1.0 / math.sqrt(width))
    for i in range(n):
        for e in range(E):
            q, k, v = width * e, D + width * e, 2 * D + width * e
            for t in range(T):
                weights, out, query = share[i, e, t], told[t, i, q : q + width], qkv[t, i, q : q + width]
                for s in range(T):
                    if sees[t, s]:
                        weights[s] = scale * _dot(query, qkv[s, i, k : k + width])
                _softmax(weights, sees[t])
                for j in range(width):
                    out[j] = 0
                for s in range(T):
                    if sees[t, s]:
                        _add(out, weights[s], qkv[s, i, v : v + width])


@kernel
def attend_backward(
    d_qkv: Array, d_told: Array, told: Array, share: Array, qkv: Array, sees: NDArray[np.bool_]
) -> None:
    """d_qkv [T, n, 3 D], zero before: dv = share dy, dz = share (<dy, v> - <dy, y>), dq = dz k, dk = dz q."""
    n, E, T, D = share.shape[0], share.shape[1], share.shape[2], told.shape[2]
    width = D // E
    scale = told.dtype.type(1.0 / math.sqrt(width))
    for i in range(n):
        for e in range(E):
            q, k, v = width * e, D + width * e, 2 * D + width * e
            for t in range(T):
                dy, query = d_told[t, i, q : q + width], qkv[t, i, q : q + width]
                mean = _dot(dy, told[t, i, q : q + width])
                for s in range(T):
                    if sees[t, s]:
                        slope = _dot(dy, qkv[s, i, v : v + width]) - mean
                        dz = scale * share[i, e, t, s] * slope
                        _add(d_qkv[t, i, q : q + width], dz, qkv[s, i, k : k + width])
                        _add(d_qkv[s, i, k : k + width], dz, query)
                        _add(d_qkv[s, i, v : v + width], share[i, e, t, s], dy)


@kernel
def _bend(bend: Array, x: Array, b: Array) -> None:
    """x [n, H] += b, and bend = sqrt(2 / pi) (x + 0.044715 x^3)."""
    slope, cube = x.dtype.type(SLOPE), x.dtype.type(CUBE)
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            z = x[i, j] + b[j]
            x[i, j] = z
            bend[i, j] = slope * (z + cube * z * z * z)


@kernel
def _gelu(y: Array, x: Array, bend: Array) -> None:
    """y [n, H] = x (1 + bend) / 2."""
    half, one = x.dtype.type(0.5), x.dtype.type(1)
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            y[i, j] = half * x[i, j] * (one + bend[i, j])


def gelu_forward(y: Array, bend: Array, x: Array, b: Array) -> None:
    """y [n, H] = GELU(x + b) by tanh, which `bend` keeps; x becomes x + b."""
    _bend(bend, x, b)
    np.tanh(bend, out=bend)
    _gelu(y, x, bend)


@kernel
def gelu_backward(dy: Array, db: Array, x: Array, bend: Array) -> None:
    """dy [n, H] becomes the gradient of what went into the GELU; db [H] = sum of its rows."""
    half, one, slope = x.dtype.type(0.5), x.dtype.type(1), x.dtype.type(0.5 * SLOPE)
    cube = x.dtype.type(3 * CUBE)
    db[:] = 0
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            z, th = x[i, j], bend[i, j]
            g = dy[i, j] * (half * (one + th) + slope * z * (one - th * th) * (one + cube * z * z))
            dy[i, j] = g
            db[j] += g


def forward_tokens(latent: Array, stream: Stream, p: Params, x: Array, code: Array) -> None:
    """Latents [J + 1 + K, n, D] of z_1 .. z_J, z_0, c_1 .. c_K from the features x [Z n, F] and codes [K n, C]."""
    bars = len(stream.encoded.z)
    encode(stream.encoded, p, x)
    stream.x[:bars] = stream.encoded.z
    linear_forward(stream.x[bars:], code, p.embed_w, p.embed_b)
    for i, block in enumerate(stream.blocks):
        _block_forward(stream, block, p, i)
    rows = latent.reshape(-1, latent.shape[2])
    first = len(stream.x) - len(rows)  # of what heads read: the context is only seen
    norm_forward(rows, stream.rstd[first:], stream.x[first:])


def _block_forward(stream: Stream, block: Block, p: Params, i: int) -> None:
    """x += mix(attend(norm(x))), then x += down(GELU(up(norm(x))))."""
    flat = (len(stream.x), -1)
    norm_forward(block.heard, block.heard_rstd, stream.x)
    linear_forward(block.qkv.reshape(flat), block.heard, p.qkv_w[i], p.qkv_b[i])
    rotate(block.qkv, stream.turn, block.share.shape[1], 1.0)
    attend(block.told, block.share, block.qkv, stream.sees)
    np.matmul(block.told.reshape(flat), p.mix_w[i], out=stream.between)
    residual(stream.between, stream.x, p.mix_b[i])
    norm_forward(block.thought, block.thought_rstd, stream.between)
    np.matmul(block.thought, p.up_w[i], out=block.up)
    gelu_forward(block.bent, block.bend, block.up, p.up_b[i])
    np.matmul(block.bent, p.down_w[i], out=stream.x)
    residual(stream.x, stream.between, p.down_b[i])


def backward_tokens(
    d: Params, stream: Stream, p: Params, x: Array, code: Array, latent: Array, d_latent: Array
) -> None:
    """Gradients of encoder, embedding and blocks from that of the latents."""
    rows, d_rows = (array.reshape(-1, latent.shape[2]) for array in (latent, d_latent))
    first, bars = len(stream.x) - len(rows), len(stream.encoded.z)
    stream.dx[:first] = 0
    norm_backward(stream.dx[first:], d_rows, rows, stream.rstd[first:])
    for i in range(len(stream.blocks) - 1, -1, -1):
        _block_backward(d, stream, stream.blocks[i], p, i)
    linear_backward(d.embed_w, d.embed_b, stream.dx[bars:], code)
    encode_backward(d, stream.dx[:bars], stream.encoded, p, x)


def _block_backward(d: Params, stream: Stream, block: Block, p: Params, i: int) -> None:
    """The gradient dx of what left the block becomes that of what entered it."""
    dx, d_qkv = stream.dx, stream.d_qkv.reshape(len(stream.x), -1)
    part = stream.d_told.reshape(dx.shape)
    linear_backward(d.down_w[i], d.down_b[i], dx, block.bent)
    linear_backward_input(stream.d_up, dx, p.down_w[i])
    gelu_backward(stream.d_up, d.up_b[i], block.up, block.bend)
    np.matmul(block.thought.T, stream.d_up, out=d.up_w[i])
    linear_backward_input(part, stream.d_up, p.up_w[i])
    norm_backward(part, part, block.thought, block.thought_rstd)
    np.add(dx, part, out=dx)
    linear_backward(d.mix_w[i], d.mix_b[i], dx, block.told.reshape(dx.shape))
    linear_backward_input(part, dx, p.mix_w[i])
    stream.d_qkv.fill(0)
    attend_backward(stream.d_qkv, stream.d_told, block.told, block.share, block.qkv, stream.sees)
    rotate(stream.d_qkv, stream.turn, block.share.shape[1], -1.0)
    linear_backward(d.qkv_w[i], d.qkv_b[i], d_qkv, block.heard)
    linear_backward_input(part, d_qkv, p.qkv_w[i])
    norm_backward(part, part, block.heard, block.heard_rstd)
    np.add(dx, part, out=dx)
