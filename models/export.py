"""The networks as ONNX graphs, each from one input `x` to one output `y`.

root        [context features C F | position P]                     -> [state | logits A | value 1 | code logits C]
afterstate  [state | action A | position after P]                   -> [state | code logits C | value 1]
dynamics    [window of states | code C | position after P | next P] -> [state | reward 1 | policy logits A | value 1]
market      [window of states | code C | next positions S P]        -> [state | code logits C | values S]
A state is the latent D, and with a transformer more (models/token_graph.py).  Where the positions of `market` are
always the same, they are constants of the graph and not part of its input.
"""

from __future__ import annotations

import numpy as np

from models.graph import Graph
from models.net import Array, Params, Shape, views
from models.token_graph import bar_token, code_token, newest_latent, state_parts


def export(flat: Array, shape: Shape, slots: int, sides: Array | None = None) -> dict[str, bytes]:
    """The graphs of the parameters `flat` [N] by name; `market` judges `slots` positions: `sides` [S, P], if given."""
    p = views(flat, shape)
    graphs = {"root": _root(p, shape), "afterstate": _afterstate(p, shape), "dynamics": _dynamics(p, shape)}
    return graphs | ({"market": _market(p, shape, slots, sides)} if slots else {})


def _predict(g: Graph, latent_and_position: str, p: Params, s: Shape) -> list[str]:
    """Names of policy logits and value."""
    hidden = g.hidden(latent_and_position, "predict", p.predict_w, p.predict_b)
    # in one product: a narrow one alone costs as much as sixteen columns
    w, b = np.concatenate([p.policy_w, p.value_w], axis=1), np.concatenate([p.policy_b, p.value_b])
    g.linear(hidden, "heads", w, b)
    g.split("heads", {"policy": s.actions, "bins": s.value_bins})
    return ["policy", g.decode("bins", "value", s.value_limit, s.value_bins)]


def _told(name: str, s: Shape) -> list[str]:
    """The part of a row that tells a position, where there are any."""
    return [name] if s.position else []


def _root(p: Params, s: Shape) -> bytes:
    g = Graph()
    F = s.context * s.features
    g.split("x", {"features": F, "position": s.position})
    if s.layers:
        state = bar_token(g, "features", p, s)
        latent = state[1]
    else:
        hidden = g.hidden("features", "represent", p.represent_w, p.represent_b)
        latent = g.norm(g.linear(hidden, "before", p.latent_w, p.latent_b), "latent", s.latent)
        state = [latent]
    codes = g.linear(g.hidden(latent, "chance", p.chance_w, p.chance_b), "codes", p.code_w, p.code_b)
    heads = _predict(g, g.join([latent, *_told("position", s)], "predict_in"), p, s)
    g.join([*state, *heads, codes], "y")
    return g.serialise(F + s.position, s.state + s.codes + s.actions + 1)


def _afterstate(p: Params, s: Shape) -> bytes:
    g = Graph()
    state = list(state_parts(s))
    g.split("x", state_parts(s) | {"rest": s.actions + s.position})
    after_in = g.join(["latent", "rest"], "after_in") if s.layers else "x"
    codes = g.linear(g.hidden("latent", "chance", p.chance_w, p.chance_b), "codes", p.code_w, p.code_b)
    bins = g.linear(
        g.hidden(after_in, "after", p.after_w, p.after_b), "bins", p.after_value_w, p.after_value_b
    )
    g.join([*state, codes, g.decode(bins, "value", s.value_limit, s.value_bins)], "y")
    return g.serialise(s.state + s.actions + s.position, s.state + s.codes + 1)


def _dynamics(p: Params, s: Shape) -> bytes:
    g = Graph()
    before = {"states": s.window * s.state} if s.layers else {"latent": s.latent}
    g.split("x", before | {"code": s.codes, "after": s.position, "next_position": s.position})
    if s.layers:
        told = [newest_latent(g, "states", s), "code", *_told("after", s), *_told("next_position", s)]
        latent, gain_in, state = "latent", g.join(told, "gain_in"), code_token(g, "states", "code", p, s)
    else:
        # [latent | code] are the first columns of x: zero rows below their weights spare a copy of them
        move_w = np.concatenate([p.move_w, np.zeros((2 * s.position, s.hidden), p.move_w.dtype)])
        step = g.linear(g.hidden("x", "move", move_w, p.move_b), "step", p.next_w, p.next_b)
        latent, gain_in = g.norm(g.node("Add", ["latent", step], "before"), "next", s.latent), "x"
        state = [latent]
    gain = g.linear(g.hidden(gain_in, "gain", p.gain_w, p.gain_b), "reward_bins", p.reward_w, p.reward_b)
    reward = g.decode(gain, "reward", s.reward_limit, s.reward_bins)
    heads = _predict(g, g.join([latent, *_told("next_position", s)], "predict_in"), p, s)
    g.join([*state, reward, *heads], "y")
    return g.serialise(sum(before.values()) + s.codes + 2 * s.position, s.state + 1 + s.actions + 1)


def _positions(g: Graph, latent: str, p: Params, s: Shape, slots: int, sides: Array | None) -> str:
    """The hidden rows [rows S, H] of the heads: every market with every position."""
    D, P, H, S = s.latent, s.position, s.hidden, slots
    if sides is not None:  # the positions are biases: one product serves them all
        w, b = np.tile(p.predict_w[:D], S), p.predict_b + sides @ p.predict_w[D:]
        hidden = g.hidden(latent, "predict", w, b.ravel())
    else:
        each = g.node("Reshape", ["positions", g.weight("each", [-1, P], np.int64)], "each_position")
        told = g.node("MatMul", [each, g.weight("position_w", p.predict_w[D:])], "told_flat")
        told = g.node("Reshape", [told, g.weight("apart", [-1, S, H], np.int64)], "told")
        shared = g.linear(latent, "shared_flat", p.predict_w[:D], p.predict_b)
        shared = g.node("Reshape", [shared, g.weight("once", [-1, 1, H], np.int64)], "shared")
        hidden = g.node("Relu", [g.node("Add", [shared, told], "predict_z")], "predict")
    return g.node("Reshape", [hidden, g.weight("rows", [-1, H], np.int64)], "predict_rows")


def _market(p: Params, s: Shape, slots: int, sides: Array | None) -> bytes:
    g = Graph()
    D, P, S, states = s.latent, s.position, slots, s.window * s.state if s.layers else s.latent
    shown = {"positions": S * P} if sides is None else {}
    if s.layers:
        g.split("x", {"states": states, "code": s.codes} | shown)
    elif sides is None:
        g.split("x", {"market": D + s.codes} | shown)
    if s.layers:
        latent, state = "latent", code_token(g, "states", "code", p, s)
    else:
        moved = g.hidden("x" if sides is not None else "market", "move", p.move_w, p.move_b)
        step = g.linear(moved, "step", p.next_w, p.next_b)
        cut = [g.weight(name, [at], np.int64) for name, at in (("from", 0), ("to", D), ("axis", 1))]
        latent = g.node("Add", [g.node("Slice", ["x", *cut], "latent_in"), step], "before")
        latent = g.norm(latent, "next", D)
        state = [latent]
    codes = g.linear(g.hidden(latent, "chance", p.chance_w, p.chance_b), "codes", p.code_w, p.code_b)
    hidden = _positions(g, latent, p, s, S, sides)
    bins = g.linear(hidden, "bins", p.value_w, p.value_b)
    values = g.decode(bins, "values_flat", s.value_limit, s.value_bins)
    values = g.node("Reshape", [values, g.weight("slots", [-1, S], np.int64)], "values")
    g.join([*state, codes, values], "y")
    return g.serialise(states + s.codes + (S * P if sides is None else 0), s.state + s.codes + S)
