"""The networks as ONNX graphs, each from one input `x` to one output `y`, equal weights in equal bytes.

root        [features F | position P]                            -> [latent D | logits A Z | value 1 | code logits C]
afterstate  [latent D | action A | position after P]             -> [latent D | code logits C | value 1]
dynamics    [latent D | code C | position after P | next P]      -> [latent D | reward 1 | policy logits A Z | value 1]
market      [latent D | code C | next positions S P]             -> [latent D | code logits C | values S]
Z are the parameters of the Beta head, if there is one.  Where the positions of `market` are always the same, they are
constants of the graph and not part of its input.  With a value prefix the latent D of a node is followed by what its
LSTM remembers, [h L | c L | prefix | steps], and the reward is the difference of two prefixes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from models.layers import EPSILON, support
from models.net import Array, Params, Shape, memory, views
from models.prefix import RESET

OPSET, IR_VERSION = 17, 8


class Graph:
    """Nodes and weights in the order they are added."""

    def __init__(self) -> None:
        self._nodes: list[NodeProto] = []
        self._weights: dict[str, NDArray[Any]] = {}

    def node(self, op: str, inputs: list[str], outputs: str | list[str], **attributes: Any) -> str:
        """Add a node; the name of its first output."""
        names = [outputs] if isinstance(outputs, str) else outputs
        self._nodes.append(helper.make_node(op, inputs, names, name=names[0], **attributes))
        return names[0]

    def weight(self, name: str, array: Any, dtype: Any = np.float32) -> str:
        """Add a constant; its name."""
        self._weights[name] = np.ascontiguousarray(array, dtype)
        return name

    def linear(self, x: str, y: str, w: Array, b: Array) -> str:
        """y = x @ w + b."""
        return self.node("Gemm", [x, self.weight(f"{y}_w", w), self.weight(f"{y}_b", b)], y)

    def hidden(self, x: str, y: str, w: Array, b: Array) -> str:
        """y = relu(x @ w + b)."""
        return self.node("Relu", [self.linear(x, f"{y}_z", w, b)], y)

    def norm(self, x: str, y: str, width: int, scale: str = "ones") -> str:
        """Layer norm without parameters of its own."""
        ones = self.weight(scale, np.ones(width))
        return self.node("LayerNormalization", [x, ones], y, axis=-1, epsilon=EPSILON)

    def decode(self, z: str, y: str, limit: float, bins: int) -> str:
        """Expectation [rows, 1] of categorical logits."""
        p = self.node("Softmax", [z], f"{y}_p", axis=-1)
        return self.node("MatMul", [p, self.weight(f"{y}_support", support(limit, bins)[:, None])], y)

    def split(self, x: str, widths: dict[str, int]) -> None:
        """Cut the columns of x into parts of these names and widths."""
        sizes = self.weight(f"{x}_widths", list(widths.values()), np.int64)
        self.node("Split", [x, sizes], list(widths), axis=-1)

    def join(self, parts: list[str], y: str) -> str:
        """Put columns side by side; a part of width 0 is not given."""
        if len(parts) == 1:
            return parts[0]
        return self.node("Concat", parts, y, axis=-1)

    def serialise(self, width_in: int, width_out: int) -> bytes:
        """The bytes of the model."""
        info = helper.make_tensor_value_info
        constants = [numpy_helper.from_array(array, name) for name, array in self._weights.items()]
        graph = helper.make_graph(
            self._nodes,
            "swt",
            [info("x", TensorProto.FLOAT, ["rows", width_in])],
            [info("y", TensorProto.FLOAT, ["rows", width_out])],
            constants,
        )
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="swt")
        return bytes(model.SerializeToString(deterministic=True))


def export(flat: Array, shape: Shape, slots: int, sides: Array | None = None) -> dict[str, bytes]:
    """The graphs of the parameters `flat` [N] by name; `market` judges `slots` positions: `sides` [S, P], if given."""
    p = views(flat, shape)
    graphs = {"root": _root(p, shape), "afterstate": _afterstate(p, shape), "dynamics": _dynamics(p, shape)}
    return graphs | ({"market": _market(p, shape, slots, sides)} if slots else {})


def _predict(g: Graph, latent_and_position: str, p: Params, s: Shape) -> list[str]:
    """Names of policy logits, with what the sizes are drawn from, and value."""
    hidden = g.hidden(latent_and_position, "predict", p.predict_w, p.predict_b)
    # in one product: a narrow one alone costs as much as sixteen columns
    w = np.concatenate([p.policy_w, p.size_w, p.value_w], axis=1)
    b = np.concatenate([p.policy_b, p.size_b, p.value_b])
    g.linear(hidden, "heads", w, b)
    g.split("heads", {"policy": s.actions + s.sizes, "bins": s.value_bins})
    return ["policy", g.decode("bins", "value", s.value_limit, s.value_bins)]


def _root(p: Params, s: Shape) -> bytes:
    g = Graph()
    g.split("x", {"features": s.features, "position": s.position})
    hidden = g.hidden("features", "represent", p.represent_w, p.represent_b)
    latent = g.norm(g.linear(hidden, "before", p.latent_w, p.latent_b), "latent", s.latent)
    codes = g.linear(g.hidden(latent, "chance", p.chance_w, p.chance_b), "codes", p.code_w, p.code_b)
    heads = _predict(g, g.join([latent, *(["position"] if s.position else [])], "predict_in"), p, s)
    state = latent
    if s.prefix:
        state = g.node(
            "MatMul", [latent, g.weight("nothing_yet", np.eye(s.latent, s.latent + memory(s)))], "state"
        )
    g.join([state, *heads, codes], "y")
    return g.serialise(s.features + s.position, s.latent + memory(s) + s.codes + s.actions + s.sizes + 1)


def _afterstate(p: Params, s: Shape) -> bytes:
    g = Graph()
    g.split("x", {"latent": s.latent, **_memory(s), "rest": s.actions + s.position})
    codes = g.linear(g.hidden("latent", "chance", p.chance_w, p.chance_b), "codes", p.code_w, p.code_b)
    after = g.hidden("x", "after", _past_memory(p.after_w, s), p.after_b)
    bins = g.linear(after, "bins", p.after_value_w, p.after_value_b)
    g.join(["latent", *_memory(s), codes, g.decode(bins, "value", s.value_limit, s.value_bins)], "y")
    state = s.latent + memory(s)
    return g.serialise(state + s.actions + s.position, state + s.codes + 1)


def _memory(s: Shape) -> dict[str, int]:
    """Names and widths of what a node remembers behind its latent."""
    return {"h": s.prefix, "c": s.prefix, "prefix": 1, "steps": 1} if s.prefix else {}


def _past_memory(w: Array, s: Shape) -> Array:
    """Weights of [latent | ...] for inputs of [latent | memory | ...]."""
    return np.concatenate([w[: s.latent], np.zeros((memory(s), w.shape[1]), w.dtype), w[s.latent :]])


def _dynamics(p: Params, s: Shape) -> bytes:
    g = Graph()
    told = {"code": s.codes, "after": s.position, "next_position": s.position}
    g.split("x", {"latent": s.latent, **_memory(s), **told})
    # [latent | code] are the first columns of x: zero rows below their weights spare a copy of them
    move_w = np.concatenate([p.move_w, np.zeros((2 * s.position, s.hidden), p.move_w.dtype)])
    step = g.linear(g.hidden("x", "move", _past_memory(move_w, s), p.move_b), "step", p.next_w, p.next_b)
    latent = g.norm(g.node("Add", ["latent", step], "before"), "next", s.latent)
    gain = g.hidden("x", "gain", _past_memory(p.gain_w, s), p.gain_b)
    if s.prefix:
        reward, *kept = _prefix(g, gain, p, s)
    else:
        bins, kept = g.linear(gain, "reward_bins", p.reward_w, p.reward_b), list[str]()
        reward = g.decode(bins, "reward", s.reward_limit, s.reward_bins)
    heads = _predict(g, g.join([latent, *(["next_position"] if s.position else [])], "predict_in"), p, s)
    g.join([latent, *kept, reward, *heads], "y")
    state = s.latent + memory(s)
    return g.serialise(state + s.codes + 2 * s.position, state + 1 + s.actions + s.sizes + 1)


def _prefix(g: Graph, gain: str, p: Params, s: Shape) -> list[str]:
    """Names of the reward and of the memory of the next node; every RESET steps the memory starts anew."""
    left = g.node("Sub", [g.weight("reset", [RESET]), "steps"], "steps_left")
    goes_on = g.node("Clip", [left, g.weight("zero", 0.0), g.weight("one", 1.0)], "goes_on")
    h, c, before, steps = (g.node("Mul", [name, goes_on], f"{name}_kept") for name in _memory(s))
    fed = g.linear(gain, "fed", p.prefix_w[: s.hidden], p.prefix_b)
    back = g.node("MatMul", [h, g.weight("back_w", p.prefix_w[s.hidden :])], "back")
    g.split(g.node("Add", [fed, back], "gates"), {"sigmoid_z": 3 * s.prefix, "tanh_z": s.prefix})
    g.split(g.node("Sigmoid", ["sigmoid_z"], "opened"), dict.fromkeys(("in", "forget", "out"), s.prefix))
    new = g.node("Mul", ["in", g.node("Tanh", ["tanh_z"], "fresh")], "new")
    c = g.node("Add", [g.node("Mul", ["forget", c], "old"), new], "next_c")
    h = g.node("Mul", ["out", g.node("Tanh", [c], "squashed")], "next_h")
    bins = g.linear(g.norm(h, "normed", s.prefix, "normed_scale"), "reward_bins", p.reward_w, p.reward_b)
    total = g.decode(bins, "next_prefix", s.reward_limit, s.reward_bins)
    reward = g.node("Sub", [total, before], "reward")
    return [reward, h, c, total, g.node("Add", [steps, "one"], "next_steps")]


def _market(p: Params, s: Shape, slots: int, sides: Array | None) -> bytes:
    g = Graph()
    D, P, H, S = s.latent, s.position, s.hidden, slots
    if sides is None:
        g.split("x", {"market": D + s.codes, "positions": S * P})
        each = g.node("Reshape", ["positions", g.weight("each", [-1, P], np.int64)], "each_position")
        told = g.node("MatMul", [each, g.weight("position_w", p.predict_w[D:])], "told_flat")
        told = g.node("Reshape", [told, g.weight("apart", [-1, S, H], np.int64)], "told")
    else:
        told = g.weight("told", (sides @ p.predict_w[D:])[None])
    moved = g.hidden("x" if sides is not None else "market", "move", p.move_w, p.move_b)
    step = g.linear(moved, "step", p.next_w, p.next_b)
    cut = [g.weight(name, [at], np.int64) for name, at in (("from", 0), ("to", D), ("axis", 1))]
    before = g.node("Slice", ["x", *cut], "latent_in")
    latent = g.norm(g.node("Add", [before, step], "before"), "next", D)
    codes = g.linear(g.hidden(latent, "chance", p.chance_w, p.chance_b), "codes", p.code_w, p.code_b)
    shared = g.linear(latent, "shared_flat", p.predict_w[:D], p.predict_b)
    shared = g.node("Reshape", [shared, g.weight("once", [-1, 1, H], np.int64)], "shared")
    hidden = g.node("Relu", [g.node("Add", [shared, told], "predict_z")], "predict")
    hidden = g.node("Reshape", [hidden, g.weight("rows", [-1, H], np.int64)], "predict_rows")
    bins = g.linear(hidden, "bins", p.value_w, p.value_b)
    values = g.decode(bins, "values_flat", s.value_limit, s.value_bins)
    values = g.node("Reshape", [values, g.weight("slots", [-1, S], np.int64)], "values")
    g.join([latent, codes, values], "y")
    return g.serialise(D + s.codes + (S * P if sides is None else 0), D + s.codes + S)
