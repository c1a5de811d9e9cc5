"""The networks as ONNX graphs, each from rows `x` to rows `y`.

root        [context features C F | position P]                     -> [state | logits A Z | value 1 | code logits C]
afterstate  [state | action A | position after P]                   -> [state | shared T | code logits C | value 1]
sibling     the same                                                -> [state | value 1]
code        [code C]                                                -> [T]
dynamics    [window of states | T | position after P | next P]      -> [state | reward 1 | policy logits A Z | value 1]
market      [window of states | code C | next positions S P]        -> [state | code logits C | values S]
A state is the latent D; with a transformer (models/extensions/transformer_onnx.py) or a value prefix it is more.
But for a transformer's, the latent is the trainer's and the bias `next_b` that the next step will add.
Z are the parameters of the Beta head, if there is one.  Where the positions of `market` are always the same, they are
constants of the graph and not part of its input.

The first layers of `dynamics` are linear in the latent and in the code, so what the latent gives them is found once for
all the codes behind it: T columns, to which `code` says what to add.  Afterstates of one decision have the latent in
common and differ in their value only: of all but one `sibling` suffices.  Of a transformer or a value prefix nothing
is shared, T is the code itself and there is no graph `code`.
"""

from __future__ import annotations

import numpy as np

from kernels.ort import Output
from models.extensions.transformer_onnx import bar_token, code_token, newest_latent, state_parts
from models.extensions.value_prefix import RESET
from models.onnx_builder import Graph
from models.params import Array, Params, Shape, views


def export(
    flat: Array, shape: Shape, slots: int, sides: Array | None = None, afterstates: bool = True
) -> dict[str, bytes]:
    """The graphs of the parameters `flat` [N] by name; `market` judges `slots` positions: `sides` [S, P], if given.

    Without `afterstates`, for a deterministic search, there is nothing to share: `dynamics` is told of an action.
    """
    p = _shifted(views(flat, shape), shape)
    share = afterstates and not (shape.layers or shape.prefix)
    graphs = {"root": _root(p, shape), "dynamics": (_dynamics_behind if share else _dynamics)(p, shape)}
    if afterstates:
        graphs["afterstate"] = _afterstate(p, shape, share)
    if afterstates and not shape.sizes:  # progressive widening asks for all of an afterstate
        graphs["sibling"] = _sibling(p, shape)
    if share:
        graphs["code"] = _code(p, shape)
    return graphs | ({"market": _market(p, shape, slots, sides)} if slots else {})


def _shifted(p: Params, s: Shape) -> Params:
    """The parameters that read latents with the bias of a step in them: then latent and step are one product."""
    if s.layers:
        return p
    readers = {
        name: getattr(p, f"{name}_w")[: s.latent] for name in ("predict", "chance", "after", "move", "gain")
    }
    return p._replace(**{f"{name}_b": getattr(p, f"{name}_b") - p.next_b @ w for name, w in readers.items()})


def _step(g: Graph, latent: str, moved: str, p: Params, s: Shape) -> str:
    """The latent one bar after `latent`."""
    before = g.node("Gemm", [moved, g.weight("next_w", p.next_w), latent], "before")
    return g.norm(before, "next", s.latent, shift=p.next_b)


def _predict(g: Graph, latent_and_position: str, p: Params, s: Shape) -> Output:
    """Policy logits, with what the sizes are drawn from, and value."""
    hidden = g.hidden(latent_and_position, "predict", p.predict_w, p.predict_b)
    # in one product: a narrow one alone costs as much as sixteen columns
    w = np.concatenate([p.policy_w, p.size_w, p.value_w], axis=1)
    b = np.concatenate([p.policy_b, p.size_b, p.value_b])
    g.linear(hidden, "heads", w, b)
    return Output("heads", s.actions + s.sizes, 1, s.value_bins, s.value_limit)


def _codes(g: Graph, latent: str, p: Params, s: Shape) -> Output:
    """Logits of the next chance code."""
    codes = g.linear(g.hidden(latent, "chance", p.chance_w, p.chance_b), "codes", p.code_w, p.code_b)
    return Output(codes, s.codes)


def _root(p: Params, s: Shape) -> bytes:
    g = Graph()
    F = s.context * s.features
    position = [g.cut("position", F, s.position)] if s.position else []
    if s.layers:
        g.split("x", {"features": F, "told": s.position})
        state = bar_token(g, "features", p, s)
        latent = state[1]
    else:
        # the features are the first columns: zero rows below their weights spare a copy of them
        hidden = g.hidden("x", "represent", _below(p.represent_w, s.position), p.represent_b)
        before = g.linear(hidden, "before", p.latent_w, p.latent_b)
        latent = g.norm(before, "latent", s.latent, shift=p.next_b)
        state = [latent]
    codes = _codes(g, latent, p, s)
    heads = _predict(g, g.join([latent, *position], "predict_in"), p, s)
    if s.prefix:
        state = [g.node("MatMul", [latent, g.weight("nothing_yet", np.eye(s.latent, s.state))], "state")]
    return g.serialise(F + s.position, [Output(g.join(state, "state"), s.state), heads, codes])


def _below(w: Array, rows: int) -> Array:
    """Weights that take no notice of `rows` more columns."""
    return np.concatenate([w, np.zeros((rows, w.shape[1]), w.dtype)])


def _afterstate(p: Params, s: Shape, share: bool) -> bytes:
    g = Graph()
    latent = _latent_of(g, s)
    outputs = [_codes(g, latent, p, s), _after_value(g, latent, p, s)]
    if share:
        w, b = _first_layers(p, s)
        outputs.insert(0, Output(g.linear(latent, "shared", w[: s.latent], b), len(b)))
    return g.serialise(s.state + s.actions + s.position, outputs, carried=s.state)


def _sibling(p: Params, s: Shape) -> bytes:
    g = Graph()
    latent = _latent_of(g, s) if s.state > s.latent else "x"
    value = _after_value(g, latent, p, s)
    return g.serialise(s.state + s.actions + s.position, [value], carried=s.state)


def _latent_of(g: Graph, s: Shape) -> str:
    """The latent of the state of a row."""
    return g.cut("latent", 1 if s.layers else 0, s.latent)


def _after_value(g: Graph, latent: str, p: Params, s: Shape) -> Output:
    """Value of an afterstate."""
    after_in = "x"
    if s.state > s.latent:
        g.split("x", {"state": s.state, "rest": s.actions + s.position})
        after_in = g.join([latent, "rest"], "after_in")
    hidden = g.hidden(after_in, "after", p.after_w, p.after_b)
    bins = g.linear(hidden, "bins", p.after_value_w, p.after_value_b)
    return Output(bins, 0, 1, s.value_bins, s.value_limit)


def _code(p: Params, s: Shape) -> bytes:
    g = Graph()
    w, b = _first_layers(p, s)
    told = g.node("MatMul", ["x", g.weight("codes", w[s.latent :])], "told")
    return g.serialise(s.codes, [Output(told, len(b))])


def _first_layers(p: Params, s: Shape) -> tuple[Array, Array]:
    """Weights [D + C, T] and biases [T] of what `dynamics` makes of latent and code before it knows the positions."""
    w = np.concatenate([p.move_w, p.gain_w[: s.latent + s.codes]], axis=1)
    return w, np.concatenate([p.move_b, p.gain_b])


def _dynamics_behind(p: Params, s: Shape) -> bytes:
    """`dynamics` behind an afterstate, of which it gets its first layers before they are rectified."""
    g = Graph()
    D, H, P = s.latent, s.hidden, s.position
    # what is shared comes first: `kernels.ort.tell`
    moved, gain = g.cut("moved", D, H, rectified=True), g.cut("gain", D + H, H, rectified=P == 0)
    latent, position = g.cut("latent", 0, D), list[str]()
    if P:
        positions = g.cut("positions", D + 2 * H, 2 * P)
        seen = g.node("Gemm", [positions, g.weight("gain_w", p.gain_w[D + s.codes :]), gain], "gain_z")
        gain, position = g.node("Relu", [seen], "gain_h"), [g.cut("next_position", D + 2 * H + P, P)]
    latent = _step(g, latent, moved, p, s)
    heads = _predict(g, g.join([latent, *position], "predict_in"), p, s)
    outputs = [Output(latent, s.state), _reward(g, gain, p, s), heads]
    return g.serialise(D + 2 * H + 2 * P, outputs)


def _reward(g: Graph, gain: str, p: Params, s: Shape) -> Output:
    """Reward, from the hidden layer `gain`."""
    bins = g.linear(gain, "reward_bins", p.reward_w, p.reward_b)
    return Output(bins, 0, 1, s.reward_bins, s.reward_limit)


def _dynamics(p: Params, s: Shape) -> bytes:
    g = Graph()
    before = {"states": s.window * s.state} if s.layers else state_parts(s)
    width = sum(before.values()) + s.codes + 2 * s.position
    position = [g.cut("next_position", width - s.position, s.position)] if s.position else []
    if s.layers or s.prefix:
        g.split("x", before | {"code": s.codes, "after": s.position, "then": s.position})
    told = ["code", *(["after", "then"] if s.position else [])]
    if s.layers:
        gain_in = g.join([newest_latent(g, "states", s), *told], "gain_in")
        latent, state = "latent", code_token(g, "states", "code", p, s)
    else:
        gain_in = g.join(["latent", *told], "gain_in") if s.prefix else "x"
        moved = g.hidden(gain_in, "move", _below(p.move_w, 2 * s.position), p.move_b)
        latent = _step(g, "latent" if s.prefix else g.cut("latent", 0, s.latent), moved, p, s)
        state = [latent]
    gain = g.hidden(gain_in, "gain", p.gain_w, p.gain_b)
    if s.prefix:
        paid, *memory = _prefix(g, gain, p, s)
        reward = Output(paid, 1)
        state += memory
    else:
        reward = _reward(g, gain, p, s)
    heads = _predict(g, g.join([latent, *position], "predict_in"), p, s)
    return g.serialise(width, [Output(g.join(state, "state"), s.state), reward, heads])


def _prefix(g: Graph, gain: str, p: Params, s: Shape) -> list[str]:
    """Names of the reward and of what the next node remembers; every RESET steps the LSTM starts anew."""
    left = g.node("Sub", [g.weight("reset", [RESET]), "steps"], "steps_left")
    goes_on = g.node("Clip", [left, g.weight("zero", 0.0), g.weight("one", 1.0)], "goes_on")
    h, c, before, steps = (
        g.node("Mul", [name, goes_on], f"{name}_kept") for name in ("h", "c", "prefix", "steps")
    )
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


def _positions(g: Graph, latent: str, p: Params, s: Shape, slots: int, sides: Array | None) -> str:
    """The hidden rows [rows S, H] of the heads: every market, of one product, with every position."""
    D, P, H = s.latent, s.position, s.hidden
    if sides is not None:
        told = g.weight("told", sides @ p.predict_w[D:])
    else:
        each = g.reshape("positions", "each_position", -1, P)
        flat = g.node("MatMul", [each, g.weight("position_w", p.predict_w[D:])], "told_flat")
        told = g.reshape(flat, "told", -1, slots, H)
    shared = g.reshape(g.linear(latent, "shared_flat", p.predict_w[:D], p.predict_b), "shared", -1, 1, H)
    hidden = g.node("Relu", [g.node("Add", [shared, told], "predict_z")], "predict")
    return g.reshape(hidden, "predict_rows", -1, H)


def _market(p: Params, s: Shape, slots: int, sides: Array | None) -> bytes:
    g = Graph()
    D, P, S, states = s.latent, s.position, slots, s.window * s.state if s.layers else s.latent
    shown = {"positions": S * P} if sides is None else {}
    if s.layers:
        g.split("x", {"states": states, "code": s.codes} | shown)
        latent, state = "latent", code_token(g, "states", "code", p, s)
    else:
        if shown:
            g.split("x", {"market": D + s.codes} | shown)
        moved = g.hidden("market" if shown else "x", "move", p.move_w, p.move_b)
        latent = _step(g, g.cut("latent", 0, D), moved, p, s)
        state = [latent]
    codes = _codes(g, latent, p, s)
    values = g.linear(_positions(g, latent, p, s, S, sides), "values", p.value_w, p.value_b)
    outputs = [
        Output(g.join(state, "state"), s.state),
        codes,
        Output(values, 0, S, s.value_bins, s.value_limit),
    ]
    return g.serialise(states + s.codes + sum(shown.values()), outputs)
