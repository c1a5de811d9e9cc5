"""The dynamics of Stochastic MuZero in an environment: an action leads to an afterstate, a chance code to a state.

a[k] = norm(m[k] + relu([m[k] | action] @ action_hidden_w) @ action_out_w), then
m[k + 1] = norm(a[k] + relu([a[k] | code] @ code_hidden_w) @ code_out_w), biases left out (Antonoglou et al. 2022).
A small trader moves no price, so a market needs no afterstate of its own.  In an environment the heads of chance, of
the reward and of the afterstate's value read a[k] instead of m[k].
"""

from typing import Any, NamedTuple

import numpy as np

from models.activations import num_seen_bars
from models.extension import CodeReader, Extension, Pass, WorkSize
from models.layers import (
    layernorm_backward,
    layernorm_forward,
    linear_backward,
    linear_backward_input,
    linear_relu_forward,
    relu_backward,
    residual_backward,
    residual_forward,
)
from models.onnx_builder import GraphBuilder
from models.representation import new_representation_work, represent, represent_backward
from models.shape import Array, CoreParams, ModelShape


class AfterstateParams(CoreParams):
    """Parameters of the two steps."""

    action_hidden_w: Array  # [D + A, width]
    action_hidden_b: Array
    action_out_w: Array  # [width, D]
    action_out_b: Array
    code_hidden_w: Array  # [D + C, width]
    code_hidden_b: Array
    code_out_w: Array  # [width, D]
    code_out_b: Array


class ResidualStep(NamedTuple):
    """Activations of y = norm(x + relu([x | told] @ w) @ v) over K steps of n windows, and their gradients."""

    hidden: Array  # [K, n, width]
    d_hidden: Array  # [K, n, width]
    pre_norm: Array  # [K, n, D] becomes its gradient
    rstd: Array  # [K, n]
    part: Array  # [n, D]


def new_residual_step(K: int, n: int, width: int, D: int, dtype: Any) -> ResidualStep:
    """Allocate for K steps of n windows."""
    hidden, d_hidden = np.zeros((2, K, n, width), dtype)
    return ResidualStep(hidden, d_hidden, np.zeros((K, n, D), dtype), np.zeros((K, n), dtype), np.zeros((n, D), dtype))


def step_forward(work: ResidualStep, k: int, y: Array, x: Array, layers: tuple[Array, ...]) -> None:
    """Write y [n, D] from x [n, D + ...], whose first columns are the latent, by the layers w, b, v, c of step k."""
    w, b, v, c = layers
    linear_relu_forward(work.hidden[k], x, w, b)
    np.matmul(work.hidden[k], v, out=work.pre_norm[k])
    residual_forward(work.pre_norm[k], x[:, : y.shape[1]], c)
    layernorm_forward(y, work.rstd[k], work.pre_norm[k])


def step_backward(work: ResidualStep, k: int, dx: Array, dy: Array, y: Array, layers: Any, factor: float) -> None:
    """Add `factor` times the gradient of x to dx [n, D], from dy [n, D]."""
    w, _, v, _ = layers
    dz, d_hidden = work.pre_norm[k], work.d_hidden[k]
    layernorm_backward(dz, dy, y, work.rstd[k])
    linear_backward_input(d_hidden, dz, v)
    relu_backward(d_hidden, work.hidden[k])
    linear_backward_input(work.part, d_hidden, w[: dx.shape[1]])
    residual_backward(dx, dz, work.part, factor)


def layers_backward(work: ResidualStep, gradients: tuple[Array, ...], x: Array) -> None:
    """Gradients of the layers from those that `step_backward` left; x [K n, D + ...] are the inputs of all steps."""
    dw, db, dv, dc = gradients
    D, width = work.pre_norm.shape[2], work.hidden.shape[2]
    linear_backward(dv, dc, work.pre_norm.reshape(-1, D), work.hidden.reshape(-1, width))
    linear_backward(dw, db, work.d_hidden.reshape(-1, width), x)


def layers_of(p: Any, name: str) -> tuple[Array, ...]:
    """w, b, v, c of the step `action` or `code`."""
    return tuple(getattr(p, f"{name}_{layer}") for layer in ("hidden_w", "hidden_b", "out_w", "out_b"))


class AfterstateDynamics(Extension):
    """Two residual steps in the place of the dynamics."""

    switch = "afterstate_width"
    small_init = ("action_out_w", "code_out_w")
    replaces_dynamics = True
    has_afterstates = True
    serves_market_search = False

    @staticmethod
    def layers(shape: ModelShape) -> dict[str, tuple[int, ...]]:
        width, D = shape.afterstate_width, shape.latent if shape.afterstate_width else 0
        edges = {"action": shape.actions, "code": shape.codes}
        layers = dict[str, tuple[int, ...]]()
        for name, count in edges.items():
            layers |= {f"{name}_hidden": (D + count if D else 0, width), f"{name}_out": (width, D)}
        return layers

    @staticmethod
    def state_parts(s: ModelShape) -> dict[str, int]:
        return {"latent": s.latent}

    def __init__(self, size: WorkSize) -> None:
        shape, n, K, dtype = size.shape, size.windows, size.steps, size.dtype
        self.representation = new_representation_work(shape, (size.seen_bars + 1) * n, dtype)
        self.latent, self.d_latent = np.zeros((2, K, n, shape.latent), dtype)  # of the afterstates
        self.action_input = np.zeros((K, n, shape.latent + shape.actions), dtype)
        steps = K, n, shape.afterstate_width, shape.latent, dtype
        self.action_step, self.code_step = new_residual_step(*steps), new_residual_step(*steps)

    def latents_forward(self, step: Pass) -> None:
        p: AfterstateParams = step.p
        work, seen = step.work, num_seen_bars(step.work)
        K, n, D = self.latent.shape
        represent(self.representation, step.p, step.x)
        work.latent[: seen + 1] = self.representation.z.reshape(seen + 1, n, D)
        m, x, told = work.latent[seen:], self.action_input, work.reward_input.reshape(K, n, -1)
        x[:, :, D:] = work.afterstate_input.reshape(K, n, -1)[:, :, D : x.shape[2]]
        for k in range(K):
            x[k, :, :D] = m[k]
            step_forward(self.action_step, k, self.latent[k], x[k], layers_of(p, "action"))
            told[k, :, :D] = self.latent[k]
            step_forward(self.code_step, k, m[k + 1], told[k, :, : len(p.code_hidden_w)], layers_of(p, "code"))
        self.d_latent[:] = 0

    def afterstates(self) -> tuple[Array, Array]:
        return self.latent, self.d_latent

    def latents_backward(self, step: Pass) -> CodeReader:
        p: AfterstateParams = step.p
        work, K = step.work, len(self.latent)
        m, dm = work.latent[-K - 1 :], work.d_latent[-K - 1 :]
        for k in range(K - 1, -1, -1):
            da, scale = self.d_latent[k], step.latent_gradient_scale
            step_backward(self.code_step, k, da, dm[k + 1], m[k + 1], layers_of(p, "code"), scale)
            step_backward(self.action_step, k, dm[k], da, self.latent[k], layers_of(p, "action"), 1.0)
        layers_backward(
            self.action_step, layers_of(step.d, "action"), self.action_input.reshape(len(work.step_weight), -1)
        )
        layers_backward(self.code_step, layers_of(step.d, "code"), work.reward_input[:, : len(p.code_hidden_w)])
        dz = work.d_latent[: num_seen_bars(work) + 1].reshape(-1, work.latent.shape[2])
        represent_backward(step.d, dz, self.representation, step.p, step.x)
        width, D = p.code_hidden_w.shape[1], work.latent.shape[2]
        return CodeReader(self.code_step.d_hidden.reshape(-1, width), p.code_hidden_w[D:])

    # ---- its part of the ONNX graphs

    @staticmethod
    def observed_token(g: GraphBuilder, features: str, p: Any, s: ModelShape) -> list[str]:
        hidden = g.linear_relu(features, "represent", p.representation_hidden_w, p.representation_hidden_b)
        before = g.linear(hidden, "before", p.representation_out_w, p.representation_out_b)
        return [g.layernorm(before, "latent", s.latent)]

    @staticmethod
    def imagined_token(g: GraphBuilder, states: str, code: str, p: Any, s: ModelShape) -> list[str]:
        return [_residual_step(g, states, code, "latent", layers_of(p, "code"), s)]

    @staticmethod
    def newest_latent(g: GraphBuilder, states: str, s: ModelShape) -> str:
        return states

    @staticmethod
    def afterstate(g: GraphBuilder, state: str, action: str, p: Any, s: ModelShape) -> str:
        return _residual_step(g, state, action, "afterstate", layers_of(p, "action"), s)


def _residual_step(g: GraphBuilder, x: str, told: str, y: str, layers: tuple[Array, ...], s: ModelShape) -> str:
    """The node `y` = norm(x + relu([x | told] @ w) @ v)."""
    w, b, v, c = layers
    hidden = g.linear_relu(g.concat([x, told], f"{y}_in"), f"{y}_hidden", w, b)
    before = g.node("Add", [g.linear(hidden, f"{y}_step", v, c), x], f"{y}_before")
    return g.layernorm(before, y, s.latent)
