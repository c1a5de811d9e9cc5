"""The networks of a model as ONNX graphs, with the rows that `kernels.search.networks.NETWORKS` describes.

A state is the latent; an extension may put more behind or around it.  The latent of a graph is the trainer's plus the
bias `dynamics_out_b` of the next step, but for a transformer's: see `_fold_dynamics_bias`.
"""

from __future__ import annotations

import numpy as np

from kernels.ort import OutputHead
from kernels.search.networks import NetworkShape, column_widths, row_widths
from models.onnx_builder import GraphBuilder
from models.params import Params, as_views
from models.registry import EXTENSIONS, dynamics_extension, reward_extension, state_parts
from models.shape import Array, ModelShape


def export(
    flat: Array, shape: ModelShape, num_hypotheses: int, hypotheses: Array | None = None, afterstates: bool = True
) -> dict[str, bytes]:
    """The graphs of the parameters `flat` [N] by name.

    `market` evaluates `num_hypotheses` positions M, which are constants of the graph if `hypotheses` [M, P] are given.
    Without `afterstates`, for a deterministic search, `dynamics` reads an action instead of a code and shares nothing.
    """
    p = _fold_dynamics_bias(as_views(flat, shape), shape)
    share = afterstates and shape.state == shape.latent and not shape.afterstate_width
    graphs = {
        "root": _root_graph(p, shape),
        "dynamics": (_prefilled_dynamics_graph if share else _dynamics_graph)(p, shape),
    }
    if afterstates:
        graphs["afterstate"] = _afterstate_graph(p, shape, share)
    # progressive widening asks for all of an afterstate, and so does a tree whose actions move the latent
    if afterstates and not shape.num_beta_params and not shape.afterstate_width:
        graphs["afterstate_value"] = _afterstate_value_graph(p, shape)
    if share:
        graphs["code"] = _code_graph(p, shape)
    return graphs | ({"market": _market_graph(p, shape, num_hypotheses, hypotheses)} if num_hypotheses else {})


def _row_widths(
    s: ModelShape, preactivation: int = 0, hypotheses: int = 0, memoryless: bool = True
) -> dict[str, tuple[int, int]]:
    """Widths of x and of y of every graph, as a search reads them."""
    window = s.attention_window if s.num_layers else 1
    shape = NetworkShape(s.features, s.position, s.state, s.actions, s.codes, window, s.context)
    policy = s.actions + s.num_beta_params
    return row_widths(column_widths(shape, policy, s.codes, preactivation, hypotheses, memoryless))


def _serialise(g: GraphBuilder, widths: tuple[int, int], outputs: list[OutputHead], passthrough: int = 0) -> bytes:
    """The bytes of a graph from rows x to rows y of these widths; ValueError where its outputs do not make such a y."""
    width = passthrough + sum(output.raw + output.categorical for output in outputs)
    if width != widths[1]:
        raise ValueError(f"a graph writes {width} columns, a search reads {widths[1]}")
    return g.serialise(widths[0], outputs, passthrough)


def _fold_dynamics_bias(p: Params, s: ModelShape) -> Params:
    """Parameters for latents that contain the bias of the next step; so latent and step are one product.

    The layers that read a latent subtract that bias again.
    """
    if dynamics_extension(s):
        return p
    readers = {
        name: getattr(p, f"{name}_w")[: s.latent]
        for name in ("prediction_hidden", "chance_hidden", "afterstate_hidden", "dynamics_hidden", "reward_hidden")
    }
    biases = {f"{name}_b": getattr(p, f"{name}_b") - p.dynamics_out_b @ w for name, w in readers.items()}
    return Params(**vars(p) | biases)


def _dynamics_step(g: GraphBuilder, latent: str, dynamics_hidden: str, p: Params, s: ModelShape) -> str:
    """The latent one bar after `latent`, from the hidden layer of the dynamics."""
    before = g.node("Gemm", [dynamics_hidden, g.weight("next_w", p.dynamics_out_w), latent], "before")
    return g.layernorm(before, "next", s.latent, shift=p.dynamics_out_b)


def _prediction_heads(g: GraphBuilder, latent_and_position: str, p: Params, s: ModelShape) -> OutputHead:
    """Policy logits, followed by the outputs of extensions beside them, and the value."""
    hidden = g.linear_relu(latent_and_position, "predict", p.prediction_hidden_w, p.prediction_hidden_b)
    # in one product: a narrow one alone costs as much as sixteen columns
    layers = ["policy", *(name for extension in EXTENSIONS for name in extension.policy_layers), "value"]
    w = np.concatenate([getattr(p, f"{name}_w") for name in layers], axis=1)
    g.linear(hidden, "heads", w, np.concatenate([getattr(p, f"{name}_b") for name in layers]))
    return OutputHead("heads", w.shape[1] - s.value_bins, 1, s.value_bins, s.value_limit)


def _chance_logits(g: GraphBuilder, latent: str, p: Params, s: ModelShape) -> OutputHead:
    """Logits of the chance code that follows a latent."""
    hidden = g.linear_relu(latent, "chance", p.chance_hidden_w, p.chance_hidden_b)
    return OutputHead(g.linear(hidden, "codes", p.chance_logits_w, p.chance_logits_b), s.codes)


def _root_graph(p: Params, s: ModelShape) -> bytes:
    g, dynamics = GraphBuilder(), dynamics_extension(s)
    F = s.context * s.features
    position = [g.input_slice("position", F, s.position)] if s.position else []
    if dynamics:
        g.split("x", {"features": F, "told": s.position})
        state = dynamics.observed_token(g, "features", p, s)
        latent = state[[*state_parts(s)].index("latent")]
    else:
        # the features are the first columns: zero rows below their weights spare a copy of them
        w = _pad_rows(p.representation_hidden_w, s.position)
        hidden = g.linear_relu("x", "represent", w, p.representation_hidden_b)
        before = g.linear(hidden, "before", p.representation_out_w, p.representation_out_b)
        latent = g.layernorm(before, "latent", s.latent, shift=p.dynamics_out_b)
        state = [latent]
    codes = _chance_logits(g, latent, p, s)
    heads = _prediction_heads(g, g.concat([latent, *position], "predict_in"), p, s)
    if not dynamics and s.state > s.latent:  # the parts behind the latent start at 0
        state = [g.node("MatMul", [latent, g.weight("nothing_yet", np.eye(s.latent, s.state))], "state")]
    return _serialise(g, _row_widths(s)["root"], [OutputHead(g.concat(state, "state"), s.state), heads, codes])


def _pad_rows(w: Array, rows: int) -> Array:
    """Weights with zeros for `rows` more inputs."""
    return np.concatenate([w, np.zeros((rows, w.shape[1]), w.dtype)])


def _afterstate_graph(p: Params, s: ModelShape, share: bool) -> bytes:
    g, dynamics = GraphBuilder(), dynamics_extension(s)
    if dynamics and dynamics.has_afterstates:
        g.split("x", {"state": s.state, "action": s.actions})
        latent = dynamics.afterstate(g, "state", "action", p, s)
        hidden = g.linear_relu(
            g.concat([latent, "action"], "after_in"), "after", p.afterstate_hidden_w, p.afterstate_hidden_b
        )
        bins = g.linear(hidden, "bins", p.afterstate_value_w, p.afterstate_value_b)
        value = OutputHead(bins, 0, 1, s.value_bins, s.value_limit)
        return _serialise(
            g, _row_widths(s)["afterstate"], [OutputHead(latent, s.state), _chance_logits(g, latent, p, s), value]
        )
    latent = _state_latent(g, s)
    outputs = [_chance_logits(g, latent, p, s), _afterstate_value(g, latent, p, s)]
    if share:
        w, b = _preactivation_layers(p, s)
        outputs.insert(0, OutputHead(g.linear(latent, "shared", w[: s.latent], b), len(b)))
    return _serialise(g, _row_widths(s, 2 * s.hidden if share else 0)["afterstate"], outputs, s.state)


def _afterstate_value_graph(p: Params, s: ModelShape) -> bytes:
    g = GraphBuilder()
    latent = _state_latent(g, s) if s.state > s.latent else "x"
    value = _afterstate_value(g, latent, p, s)
    return _serialise(g, _row_widths(s)["afterstate_value"], [value], s.state)


def _state_latent(g: GraphBuilder, s: ModelShape) -> str:
    """The latent among the parts of a state."""
    parts = state_parts(s)
    return g.input_slice("latent", sum(list(parts.values())[: list(parts).index("latent")]), s.latent)


def _afterstate_value(g: GraphBuilder, latent: str, p: Params, s: ModelShape) -> OutputHead:
    """Value of the afterstate in the row `x`."""
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
    preactivation = g.node("MatMul", ["x", g.weight("codes", w[s.latent :])], "told")
    return _serialise(g, _row_widths(s, len(b))["code"], [OutputHead(preactivation, len(b))])


def _preactivation_layers(p: Params, s: ModelShape) -> tuple[Array, Array]:
    """Weights [D + C, preactivation] and biases of the first layers of `dynamics`, but for those of the positions."""
    w = np.concatenate([p.dynamics_hidden_w, p.reward_hidden_w[: s.latent + s.codes]], axis=1)
    return w, np.concatenate([p.dynamics_hidden_b, p.reward_hidden_b])


def _prefilled_dynamics_graph(p: Params, s: ModelShape) -> bytes:
    """`dynamics` of rows [latent | preactivation | position after P | next P]."""
    g = GraphBuilder()
    D, H, P = s.latent, s.hidden, s.position
    # the preactivation comes first: see `kernels.ort.write_preactivation`
    moved, gain = g.input_slice("moved", D, H, relu=True), g.input_slice("gain", D + H, H, relu=P == 0)
    latent, position = g.input_slice("latent", 0, D), list[str]()
    if P:
        positions = g.input_slice("positions", D + 2 * H, 2 * P)
        w = g.weight("gain_w", p.reward_hidden_w[D + s.codes :])
        gain = g.node("Relu", [g.node("Gemm", [positions, w, gain], "gain_z")], "gain_h")
        position = [g.input_slice("next_position", D + 2 * H + P, P)]
    latent = _dynamics_step(g, latent, moved, p, s)
    heads = _prediction_heads(g, g.concat([latent, *position], "predict_in"), p, s)
    outputs = [OutputHead(latent, s.state), _reward_head(g, gain, p, s), heads]
    return _serialise(g, _row_widths(s, 2 * H)["dynamics"], outputs)


def _reward_head(g: GraphBuilder, reward_hidden: str, p: Params, s: ModelShape) -> OutputHead:
    """The reward from the hidden layer of its head."""
    bins = g.linear(reward_hidden, "reward_bins", p.reward_w, p.reward_b)
    return OutputHead(bins, 0, 1, s.reward_bins, s.reward_limit)


def _dynamics_graph(p: Params, s: ModelShape) -> bytes:
    """`dynamics` of rows [states | code C | position after P | next P]."""
    g, dynamics, wrapper = GraphBuilder(), dynamics_extension(s), reward_extension(s)
    window = s.attention_window if s.num_layers else 1
    states = {"states": window * s.state} if dynamics else state_parts(s)
    width = sum(states.values()) + s.codes + 2 * s.position
    position = [g.input_slice("next_position", width - s.position, s.position)] if s.position else []
    if dynamics or s.state > s.latent:
        g.split("x", states | {"code": s.codes, "after": s.position, "then": s.position})
    beside = ["code", *(["after", "then"] if s.position else [])]
    if dynamics:
        gain_in = g.concat([dynamics.newest_latent(g, "states", s), *beside], "gain_in")
        latent, state = "latent", dynamics.imagined_token(g, "states", "code", p, s)
    else:
        gain_in = g.concat(["latent", *beside], "gain_in") if s.state > s.latent else "x"
        moved = g.linear_relu(gain_in, "move", _pad_rows(p.dynamics_hidden_w, 2 * s.position), p.dynamics_hidden_b)
        latent = "latent" if s.state > s.latent else g.input_slice("latent", 0, s.latent)
        latent = _dynamics_step(g, latent, moved, p, s)
        state = [latent]
    gain = g.linear_relu(gain_in, "gain", p.reward_hidden_w, p.reward_hidden_b)
    reward, memory = wrapper.reward_step(g, gain, p, s) if wrapper else (_reward_head(g, gain, p, s), [])
    heads = _prediction_heads(g, g.concat([latent, *position], "predict_in"), p, s)
    outputs = [OutputHead(g.concat([*state, *memory], "state"), s.state), reward, heads]
    return _serialise(g, _row_widths(s)["dynamics"], outputs)


def _hypotheses_hidden(
    g: GraphBuilder, latent: str, p: Params, s: ModelShape, num_hypotheses: int, hypotheses: Array | None
) -> str:
    """The hidden rows [rows M, H] of the value head: every latent, multiplied once, beside every position."""
    D, P, H = s.latent, s.position, s.hidden
    if hypotheses is not None:
        positions = g.weight("told", hypotheses @ p.prediction_hidden_w[D:])
    else:
        each = g.reshape("positions", "each_position", -1, P)
        flat = g.node("MatMul", [each, g.weight("position_w", p.prediction_hidden_w[D:])], "told_flat")
        positions = g.reshape(flat, "told", -1, num_hypotheses, H)
    product = g.linear(latent, "shared_flat", p.prediction_hidden_w[:D], p.prediction_hidden_b)
    shared = g.reshape(product, "shared", -1, 1, H)
    hidden = g.node("Relu", [g.node("Add", [shared, positions], "predict_z")], "predict")
    return g.reshape(hidden, "predict_rows", -1, H)


def _market_graph(p: Params, s: ModelShape, num_hypotheses: int, hypotheses: Array | None) -> bytes:
    g, dynamics = GraphBuilder(), dynamics_extension(s)
    D, P, M = s.latent, s.position, num_hypotheses
    states = s.attention_window * s.state if dynamics else D
    positions = {"positions": M * P} if hypotheses is None else {}
    if dynamics:
        g.split("x", {"states": states, "code": s.codes} | positions)
        latent, state = "latent", dynamics.imagined_token(g, "states", "code", p, s)
    else:
        if positions:
            g.split("x", {"market": D + s.codes} | positions)
        moved = g.linear_relu("market" if positions else "x", "move", p.dynamics_hidden_w, p.dynamics_hidden_b)
        latent = _dynamics_step(g, g.input_slice("latent", 0, D), moved, p, s)
        state = [latent]
    codes = _chance_logits(g, latent, p, s)
    values = g.linear(_hypotheses_hidden(g, latent, p, s, M, hypotheses), "values", p.value_w, p.value_b)
    outputs = [
        OutputHead(g.concat(state, "state"), s.state),
        codes,
        OutputHead(values, 0, M, s.value_bins, s.value_limit),
    ]
    return _serialise(g, _row_widths(s, 0, num_hypotheses, hypotheses is not None)["market"], outputs)
