"""The transformer in ONNX: the tokens of seen bars, and one imagined token behind a window of states.

A state is [1 | latent D | key and value of each block 2 num_layers D].  A missing state is all zero, and its first
column masks it.  Keys are stored before their rotation.  A rotated score depends on the distance alone, <R(t) q, R(t
- d) k> = <R(d) q, k>, and the distance of each slot of the window is fixed.  So the weights of the query are rotated
instead, once for every slot, and a row needs no position.
"""

import numpy as np

from models.extensions.transformer import TransformerParams, rope_table
from models.layers import GELU_CUBIC, SQRT_2_OVER_PI
from models.onnx_builder import GraphBuilder
from models.shape import Array, ModelShape

MASKED_SCORE = -1e9  # added to a score, its attention weight is exactly 0


def rope_rotated(x: Array, position: int, heads: int) -> Array:
    """Queries or keys x [.., D] rotated by a position, as `models.extensions.transformer.apply_rope` does."""
    parts = x.reshape(*x.shape[:-1], heads, 2, -1)
    cosine, sine = rope_table([position], x.shape[-1] // heads)[0].T
    a, b = parts[..., 0, :], parts[..., 1, :]
    return np.stack([a * cosine - b * sine, a * sine + b * cosine], axis=-2).reshape(x.shape)


def rotate_half(x: Array, heads: int) -> Array:
    """The part of a rotation that goes with the sine: (a, b) -> (-b, a) of the halves of each head."""
    parts = x.reshape(*x.shape[:-1], heads, 2, -1)
    return np.stack([-parts[..., 1, :], parts[..., 0, :]], axis=-2).reshape(x.shape)


def state_parts(s: ModelShape) -> dict[str, int]:
    """Name and width of the parts of a state."""
    kept = {f"{part}{i}": s.latent for i in range(s.num_layers) for part in ("key", "value_of")}
    return {"present": 1, "latent": s.latent} | kept


def _feed_forward(g: GraphBuilder, x: str, p: TransformerParams, i: int, D: int) -> str:
    """x + fcproj(GELU(fc(norm(x)))) of block i."""
    u = g.linear(g.layernorm(x, f"thought{i}", D), f"up{i}", p.fc_w[i], p.fc_b[i])
    constants = {"three": 3.0, "cube": GELU_CUBIC, "slope": SQRT_2_OVER_PI, "one": 1.0, "half": 0.5}
    three, cube, slope, one, half = (g.weight(name, value) for name, value in constants.items())
    cubed = g.node("Mul", [g.node("Pow", [u, three], f"power{i}"), cube], f"cubed{i}")
    inner = g.node("Mul", [g.node("Add", [u, cubed], f"sum{i}"), slope], f"inner{i}")
    bend = g.node("Add", [g.node("Tanh", [inner], f"tanh{i}"), one], f"bend{i}")
    bent = g.node("Mul", [g.node("Mul", [u, half], f"half{i}"), bend], f"bent{i}")
    return g.node("Add", [x, g.linear(bent, f"down{i}", p.fcproj_w[i], p.fcproj_b[i])], f"x{i + 1}")


def newest_latent(g: GraphBuilder, states: str, s: ModelShape) -> str:
    """The latent of the first of `states` [n, window S]."""
    cut = [g.weight(name, [at], np.int64) for name, at in (("from", 1), ("to", 1 + s.latent), ("axis", 1))]
    return g.node("Slice", [states, *cut], "newest_latent")


def imagined_token(g: GraphBuilder, states: str, code: str, p: TransformerParams, s: ModelShape) -> list[str]:
    """The parts of the state after a chance code [n, C] behind `states` [n, window S]."""
    D, slots = s.latent, s.attention_window + 1
    parts = {f"seen_{name}": width for name, width in state_parts(s).items()}
    g.split(g.reshape(states, "seen", -1, s.attention_window, s.state), parts)
    # the last column is the constant 1, which marks the token as present
    w, b = np.pad(p.code_embedding_w, ((0, 0), (0, 1))), np.append(p.code_embedding_b, 1.0)
    g.split(g.linear(code, "embedded", w, b), {"x0": D, "present": 1})
    here = g.concat([g.reshape("present", "here", -1, 1, 1), "seen_present"], "is_there", axis=1)
    absent = g.node("Sub", [g.weight("unit", 1.0), here], "absent")
    mask = g.node("Mul", [absent, g.weight("hide", MASKED_SCORE)], "mask")
    heads = np.kron(np.eye(s.num_heads), np.ones((D // s.num_heads, 1)))  # [D, num_heads] the columns of each head
    g.weight("add_heads", heads / np.sqrt(D // s.num_heads))
    g.weight("spread_heads", heads.T)
    x = "x0"
    for i in range(s.num_layers):
        (wq, wk, wv), (bq, bk, bv) = np.split(p.qkv_w[i], 3, axis=1), np.split(p.qkv_b[i], 3)
        w = np.concatenate([*(rope_rotated(wq, d, s.num_heads) for d in range(slots)), wk, wv], axis=1)
        b = np.concatenate([*(rope_rotated(bq, d, s.num_heads) for d in range(slots)), bk, bv])
        qkv = g.linear(g.layernorm(x, f"heard{i}", D), f"qkv{i}", w, b)
        g.split(qkv, {f"query{i}": slots * D, f"key{i}": D, f"value_of{i}": D})
        keys, values = (
            g.concat([g.reshape(f"{name}{i}", f"own_{name}{i}", -1, 1, D), f"seen_{name}{i}"], f"all_{name}{i}", 1)
            for name in ("key", "value_of")
        )
        product = g.node("Mul", [g.reshape(f"query{i}", f"queries{i}", -1, slots, D), keys], f"product{i}")
        score = g.node("Add", [g.node("MatMul", [product, "add_heads"], f"plain{i}"), mask], f"score{i}")
        att = g.node("Softmax", [score], f"share{i}", axis=1)
        weighted = g.node("Mul", [g.node("MatMul", [att, "spread_heads"], f"spread{i}"), values], f"weighted{i}")
        atty = g.node("ReduceSum", [weighted, g.weight("slot_axis", [1], np.int64)], f"told{i}", keepdims=0)
        h = g.node("Add", [x, g.linear(atty, f"mix{i}", p.attproj_w[i], p.attproj_b[i])], f"h{i}")
        x = _feed_forward(g, h, p, i, D)
    g.layernorm(x, "latent", D)
    return list(state_parts(s))


def observed_token(g: GraphBuilder, features: str, p: TransformerParams, s: ModelShape) -> list[str]:
    """The parts of the state of the last of `context` bars, from their features [n, context F]."""
    D, c = s.latent, s.context
    bars = g.reshape(features, "bars", -1, s.features) if c > 1 else features
    hidden = g.linear_relu(bars, "represent", p.representation_hidden_w, p.representation_hidden_b)
    x = g.layernorm(g.linear(hidden, "before", p.representation_out_w, p.representation_out_b), "x0", D)
    kept = list[str]()
    for i in range(s.num_layers):
        ln1 = g.layernorm(x, f"heard{i}", D)
        atty, *own = (_attend_context if c > 1 else _attend_single_bar)(g, ln1, p, s, i)
        kept += own
        h = g.node("Add", [x, g.linear(atty, f"mix{i}", p.attproj_w[i], p.attproj_b[i])], f"h{i}")
        x = _feed_forward(g, h, p, i, D)
    whole = g.layernorm(_last_bar(g, x, "last", s), "latent", D)
    present = g.linear(whole, "present", np.zeros((D, 1)), np.ones(1))  # the mark of a present token
    return [present, whole, *kept]


def _attend_single_bar(g: GraphBuilder, ln1: str, p: TransformerParams, s: ModelShape, i: int) -> list[str]:
    """Attention of a bar to itself alone, which is its value: names of the output, of its key and of its value."""
    D = s.latent
    kv = g.linear(ln1, f"kv{i}", p.qkv_w[i][:, D:], p.qkv_b[i][D:])
    g.split(kv, {f"key{i}": D, f"value_of{i}": D})
    return [f"value_of{i}", f"key{i}", f"value_of{i}"]


def _attend_context(g: GraphBuilder, ln1: str, p: TransformerParams, s: ModelShape, i: int) -> list[str]:
    """Attention of bars to earlier ones: names of the output [n context, D], and of key and value of the last bar."""
    D, heads, c = s.latent, s.num_heads, s.context
    w, b = p.qkv_w[i], p.qkv_b[i][None]
    w, b = (
        np.concatenate([a, *(rotate_half(part, heads) for part in np.split(a, 3, axis=1)[:2])], axis=1) for a in (w, b)
    )
    names = [f"{name}{i}" for name in ("query", "keys", "values", "query_up", "keys_up")]
    g.split(g.linear(ln1, f"qkv{i}", w, b[0]), dict.fromkeys(names, D))
    wave = rope_table(np.arange(c), D // heads)  # [c, D / heads / 2, 2]
    cosine, sine = (np.tile(np.concatenate([part, part], axis=1), (1, heads)) for part in np.moveaxis(wave, 2, 0))
    g.weight("cosine", cosine)
    g.weight("sine", sine)
    sides = list[str]()
    for name, order in (("query", [0, 2, 1, 3]), ("keys", [0, 2, 3, 1])):
        parts = [
            g.node("Mul", [g.reshape(part, f"{part}_bars", -1, c, D), way], f"{part}_{way}")
            for part, way in ((f"{name}{i}", "cosine"), (f"{name}_up{i}", "sine"))
        ]
        each = g.reshape(g.node("Add", parts, f"{name}_turned{i}"), f"{name}_each{i}", -1, c, heads, D // heads)
        sides.append(g.node("Transpose", [each], f"{name}_heads{i}", perm=order))
    scale = g.weight("scale", 1 / np.sqrt(D // heads))
    score = g.node("Mul", [g.node("MatMul", sides, f"plain{i}"), scale], f"scaled{i}")
    later = g.weight("later", np.triu(np.full((c, c), MASKED_SCORE), 1))
    att = g.node("Softmax", [g.node("Add", [score, later], f"score{i}")], f"share{i}", axis=-1)
    each = g.reshape(f"values{i}", f"values{i}_each", -1, c, heads, D // heads)
    value = g.node("Transpose", [each], f"values{i}_heads", perm=[0, 2, 1, 3])
    atty = g.node("Transpose", [g.node("MatMul", [att, value], f"weighed{i}")], f"told{i}_bars", perm=[0, 2, 1, 3])
    own = [_last_bar(g, f"{name}{i}", f"last_{name}{i}", s) for name in ("keys", "values")]
    return [g.reshape(atty, f"told{i}", -1, D), *own]


def _last_bar(g: GraphBuilder, x: str, y: str, s: ModelShape) -> str:
    """The rows [n, D] of the last bar of each context, of x [n context, D]."""
    if s.context == 1:
        return x
    flat = g.reshape(x, f"{y}_bars", -1, s.context * s.latent)
    ends = (s.context - 1) * s.latent, s.context * s.latent, 1
    cut = [g.weight(f"last_{name}", [at], np.int64) for name, at in zip(("from", "to", "axis"), ends, strict=True)]
    return g.node("Slice", [flat, *cut], y)
