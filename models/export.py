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

from kernels.ort import OutputHead
from models.extensions.transformer_onnx import imagined_token, newest_latent, observed_token, state_parts
from models.extensions.value_prefix import RESET_INTERVAL
from models.onnx_builder import GraphBuilder
from models.params import Array, ModelShape, Params, as_views


def export(
    flat: Array, shape: ModelShape, num_hypotheses: int, hypotheses: Array | None = None, afterstates: bool = True
) -> dict[str, bytes]:
    """The graphs of the parameters `flat` [N] by name; `market` judges `num_hypotheses` positions: `hypotheses` [S, P], if given.

    Without `afterstates`, for a deterministic search, there is nothing to share: `dynamics` is told of an action.
    """
    p = _fold_dynamics_bias(as_views(flat, shape), shape)
    share = afterstates and not (shape.num_layers or shape.value_prefix_width)
    graphs = {
        "root": _root_graph(p, shape),
        "dynamics": (_prefilled_dynamics_graph if share else _dynamics_graph)(p, shape),
    }
    if afterstates:
        graphs["afterstate"] = _afterstate_graph(p, shape, share)
    if afterstates and not shape.num_beta_params:  # progressive widening asks for all of an afterstate
        graphs["afterstate_value"] = _afterstate_value_graph(p, shape)
    if share:
        graphs["code"] = _code_graph(p, shape)
    return graphs | ({"market": _market_graph(p, shape, num_hypotheses, hypotheses)} if num_hypotheses else {})


def _fold_dynamics_bias(p: Params, s: ModelShape) -> Params:
    """The parameters that read latents with the bias of a step in them: then latent and step are one product."""
    if s.num_layers:
        return p
    readers = {
        name: getattr(p, f"{name}_w")[: s.latent]
        for name in ("prediction_hidden", "chance_hidden", "afterstate_hidden", "dynamics_hidden", "reward_hidden")
    }
    return p._replace(**{f"{name}_b": getattr(p, f"{name}_b") - p.dynamics_out_b @ w for name, w in readers.items()})


def _dynamics_step(g: GraphBuilder, latent: str, dynamics_hidden: str, p: Params, s: ModelShape) -> str:
    """The latent one bar after `latent`."""
    before = g.node("Gemm", [dynamics_hidden, g.weight("next_w", p.dynamics_out_w), latent], "before")
    return g.layernorm(before, "next", s.latent, shift=p.dynamics_out_b)


def _prediction_heads(g: GraphBuilder, latent_and_position: str, p: Params, s: ModelShape) -> OutputHead:
    """Policy logits, with what the sizes are drawn from, and value."""
    hidden = g.linear_relu(latent_and_position, "predict", p.prediction_hidden_w, p.prediction_hidden_b)
    # in one product: a narrow one alone costs as much as sixteen columns
    w = np.concatenate([p.policy_w, p.beta_head_w, p.value_w], axis=1)
    b = np.concatenate([p.policy_b, p.beta_head_b, p.value_b])
    g.linear(hidden, "heads", w, b)
    return OutputHead("heads", s.actions + s.num_beta_params, 1, s.value_bins, s.value_limit)


def _chance_logits(g: GraphBuilder, latent: str, p: Params, s: ModelShape) -> OutputHead:
    """Logits of the next chance code."""
    codes = g.linear(
        g.linear_relu(latent, "chance", p.chance_hidden_w, p.chance_hidden_b),
        "codes",
        p.chance_logits_w,
        p.chance_logits_b,
    )
    return OutputHead(codes, s.codes)


def _root_graph(p: Params, s: ModelShape) -> bytes:
    g = GraphBuilder()
    F = s.context * s.features
    position = [g.input_slice("position", F, s.position)] if s.position else []
    if s.num_layers:
        g.split("x", {"features": F, "told": s.position})
        state = observed_token(g, "features", p, s)
        latent = state[1]
    else:
        # the features are the first columns: zero rows below their weights spare a copy of them
        hidden = g.linear_relu(
            "x", "represent", _pad_rows(p.representation_hidden_w, s.position), p.representation_hidden_b
        )
        before = g.linear(hidden, "before", p.representation_out_w, p.representation_out_b)
        latent = g.layernorm(before, "latent", s.latent, shift=p.dynamics_out_b)
        state = [latent]
    codes = _chance_logits(g, latent, p, s)
    heads = _prediction_heads(g, g.concat([latent, *position], "predict_in"), p, s)
    if s.value_prefix_width:
        state = [g.node("MatMul", [latent, g.weight("nothing_yet", np.eye(s.latent, s.state))], "state")]
    return g.serialise(F + s.position, [OutputHead(g.concat(state, "state"), s.state), heads, codes])


def _pad_rows(w: Array, rows: int) -> Array:
    """Weights that take no notice of `rows` more columns."""
    return np.concatenate([w, np.zeros((rows, w.shape[1]), w.dtype)])


def _afterstate_graph(p: Params, s: ModelShape, share: bool) -> bytes:
    g = GraphBuilder()
    latent = _state_latent(g, s)
    outputs = [_chance_logits(g, latent, p, s), _afterstate_value(g, latent, p, s)]
    if share:
        w, b = _preactivation_layers(p, s)
        outputs.insert(0, OutputHead(g.linear(latent, "shared", w[: s.latent], b), len(b)))
    return g.serialise(s.state + s.actions + s.position, outputs, passthrough=s.state)


def _afterstate_value_graph(p: Params, s: ModelShape) -> bytes:
    g = GraphBuilder()
    latent = _state_latent(g, s) if s.state > s.latent else "x"
    value = _afterstate_value(g, latent, p, s)
    return g.serialise(s.state + s.actions + s.position, [value], passthrough=s.state)


def _state_latent(g: GraphBuilder, s: ModelShape) -> str:
    """The latent of the state of a row."""
    return g.input_slice("latent", 1 if s.num_layers else 0, s.latent)


def _afterstate_value(g: GraphBuilder, latent: str, p: Params, s: ModelShape) -> OutputHead:
    """Value of an afterstate."""
    after_in = "x"
    if s.state > s.latent:
        g.split("x", {"state": s.state, "rest": s.actions + s.position})
        after_in = g.concat([latent, "rest"], "after_in")
    hidden = g.linear_relu(after_in, "after", p.afterstate_hidden_w, p.afterstate_hidden_b)
    bins = g.linear(hidden, "bins", p.afterstate_value_w, p.afterstate_value_b)
    return OutputHead(bins, 0, 1, s.value_bins, s.value_limit)


def _code_graph(p: Params, s: ModelShape) -> bytes:
    g = GraphBuilder()
    w, b = _preactivation_layers(p, s)
    told = g.node("MatMul", ["x", g.weight("codes", w[s.latent :])], "told")
    return g.serialise(s.codes, [OutputHead(told, len(b))])


def _preactivation_layers(p: Params, s: ModelShape) -> tuple[Array, Array]:
    """Weights [D + C, T] and biases [T] of what `dynamics` makes of latent and code before it knows the positions."""
    w = np.concatenate([p.dynamics_hidden_w, p.reward_hidden_w[: s.latent + s.codes]], axis=1)
    return w, np.concatenate([p.dynamics_hidden_b, p.reward_hidden_b])


def _prefilled_dynamics_graph(p: Params, s: ModelShape) -> bytes:
    """`dynamics` behind an afterstate, of which it gets its first layers before they are rectified."""
    g = GraphBuilder()
    D, H, P = s.latent, s.hidden, s.position
    # what is shared comes first: `kernels.ort.write_preactivation`
    moved, gain = g.input_slice("moved", D, H, relu=True), g.input_slice("gain", D + H, H, relu=P == 0)
    latent, position = g.input_slice("latent", 0, D), list[str]()
    if P:
        positions = g.input_slice("positions", D + 2 * H, 2 * P)
        seen = g.node("Gemm", [positions, g.weight("gain_w", p.reward_hidden_w[D + s.codes :]), gain], "gain_z")
        gain, position = g.node("Relu", [seen], "gain_h"), [g.input_slice("next_position", D + 2 * H + P, P)]
    latent = _dynamics_step(g, latent, moved, p, s)
    heads = _prediction_heads(g, g.concat([latent, *position], "predict_in"), p, s)
    outputs = [OutputHead(latent, s.state), _reward_head(g, gain, p, s), heads]
    return g.serialise(D + 2 * H + 2 * P, outputs)


def _reward_head(g: GraphBuilder, reward_hidden: str, p: Params, s: ModelShape) -> OutputHead:
    """Reward, from the hidden layer `reward_hidden`."""
    bins = g.linear(reward_hidden, "reward_bins", p.reward_w, p.reward_b)
    return OutputHead(bins, 0, 1, s.reward_bins, s.reward_limit)


def _dynamics_graph(p: Params, s: ModelShape) -> bytes:
    g = GraphBuilder()
    before = {"states": s.attention_window * s.state} if s.num_layers else state_parts(s)
    width = sum(before.values()) + s.codes + 2 * s.position
    position = [g.input_slice("next_position", width - s.position, s.position)] if s.position else []
    if s.num_layers or s.value_prefix_width:
        g.split("x", before | {"code": s.codes, "after": s.position, "then": s.position})
    told = ["code", *(["after", "then"] if s.position else [])]
    if s.num_layers:
        gain_in = g.concat([newest_latent(g, "states", s), *told], "gain_in")
        latent, state = "latent", imagined_token(g, "states", "code", p, s)
    else:
        gain_in = g.concat(["latent", *told], "gain_in") if s.value_prefix_width else "x"
        moved = g.linear_relu(gain_in, "move", _pad_rows(p.dynamics_hidden_w, 2 * s.position), p.dynamics_hidden_b)
        latent = _dynamics_step(
            g, "latent" if s.value_prefix_width else g.input_slice("latent", 0, s.latent), moved, p, s
        )
        state = [latent]
    gain = g.linear_relu(gain_in, "gain", p.reward_hidden_w, p.reward_hidden_b)
    if s.value_prefix_width:
        paid, *memory = _lstm_step(g, gain, p, s)
        reward = OutputHead(paid, 1)
        state += memory
    else:
        reward = _reward_head(g, gain, p, s)
    heads = _prediction_heads(g, g.concat([latent, *position], "predict_in"), p, s)
    return g.serialise(width, [OutputHead(g.concat(state, "state"), s.state), reward, heads])


def _lstm_step(g: GraphBuilder, reward_hidden: str, p: Params, s: ModelShape) -> list[str]:
    """Names of the reward and of what the next node remembers; every RESET steps the LSTM starts anew."""
    left = g.node("Sub", [g.weight("reset", [RESET_INTERVAL]), "steps"], "steps_left")
    goes_on = g.node("Clip", [left, g.weight("zero", 0.0), g.weight("one", 1.0)], "goes_on")
    h, c, before, steps = (g.node("Mul", [name, goes_on], f"{name}_kept") for name in ("h", "c", "prefix", "steps"))
    fed = g.linear(reward_hidden, "fed", p.lstm_w[: s.hidden], p.lstm_b)
    back = g.node("MatMul", [h, g.weight("back_w", p.lstm_w[s.hidden :])], "back")
    g.split(
        g.node("Add", [fed, back], "gates"), {"sigmoid_z": 3 * s.value_prefix_width, "tanh_z": s.value_prefix_width}
    )
    g.split(g.node("Sigmoid", ["sigmoid_z"], "opened"), dict.fromkeys(("in", "forget", "out"), s.value_prefix_width))
    new = g.node("Mul", ["in", g.node("Tanh", ["tanh_z"], "fresh")], "new")
    c = g.node("Add", [g.node("Mul", ["forget", c], "old"), new], "next_c")
    h = g.node("Mul", ["out", g.node("Tanh", [c], "squashed")], "next_h")
    bins = g.linear(
        g.layernorm(h, "normed", s.value_prefix_width, "normed_scale"), "reward_bins", p.reward_w, p.reward_b
    )
    total = g.decode(bins, "next_prefix", s.reward_limit, s.reward_bins)
    reward = g.node("Sub", [total, before], "reward")
    return [reward, h, c, total, g.node("Add", [steps, "one"], "next_steps")]


def _hypotheses_hidden(
    g: GraphBuilder, latent: str, p: Params, s: ModelShape, num_hypotheses: int, hypotheses: Array | None
) -> str:
    """The hidden rows [rows S, H] of the heads: every market, of one product, with every position."""
    D, P, H = s.latent, s.position, s.hidden
    if hypotheses is not None:
        told = g.weight("told", hypotheses @ p.prediction_hidden_w[D:])
    else:
        each = g.reshape("positions", "each_position", -1, P)
        flat = g.node("MatMul", [each, g.weight("position_w", p.prediction_hidden_w[D:])], "told_flat")
        told = g.reshape(flat, "told", -1, num_hypotheses, H)
    shared = g.reshape(
        g.linear(latent, "shared_flat", p.prediction_hidden_w[:D], p.prediction_hidden_b), "shared", -1, 1, H
    )
    hidden = g.node("Relu", [g.node("Add", [shared, told], "predict_z")], "predict")
    return g.reshape(hidden, "predict_rows", -1, H)


def _market_graph(p: Params, s: ModelShape, num_hypotheses: int, hypotheses: Array | None) -> bytes:
    g = GraphBuilder()
    D, P, S, states = (s.latent, s.position, num_hypotheses, s.attention_window * s.state if s.num_layers else s.latent)
    shown = {"positions": S * P} if hypotheses is None else {}
    if s.num_layers:
        g.split("x", {"states": states, "code": s.codes} | shown)
        latent, state = "latent", imagined_token(g, "states", "code", p, s)
    else:
        if shown:
            g.split("x", {"market": D + s.codes} | shown)
        moved = g.linear_relu("market" if shown else "x", "move", p.dynamics_hidden_w, p.dynamics_hidden_b)
        latent = _dynamics_step(g, g.input_slice("latent", 0, D), moved, p, s)
        state = [latent]
    codes = _chance_logits(g, latent, p, s)
    values = g.linear(_hypotheses_hidden(g, latent, p, s, S, hypotheses), "values", p.value_w, p.value_b)
    outputs = [
        OutputHead(g.concat(state, "state"), s.state),
        codes,
        OutputHead(values, 0, S, s.value_bins, s.value_limit),
    ]
    return g.serialise(states + s.codes + sum(shown.values()), outputs)
