"""The networks of `bench search` in JAX with the same weights, searched by mctx.

Imported only in the process that measures mctx, where that package is installed.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import mctx
import numpy as np

from models.layers import LAYERNORM_EPSILON, bin_centres
from models.params import ModelShape, as_views, new_params

DISCOUNT = 0.99
MAX_NUM_CONSIDERED_ACTIONS = 4


def relu_linear(p: Any, x: Any, name: str) -> Any:
    """A linear layer with a ReLU."""
    return jax.nn.relu(linear(p, x, name))


def linear(p: Any, x: Any, name: str) -> Any:
    """A linear layer."""
    return x @ p[f"{name}_w"] + p[f"{name}_b"]


def layer_norm(x: Any) -> Any:
    """Layer norm without parameters."""
    return jax.nn.standardize(x, epsilon=LAYERNORM_EPSILON)


def decode(z: Any, limit: float) -> Any:
    """Expectation of categorical logits."""
    return jax.nn.softmax(z) @ jnp.asarray(bin_centres(limit, z.shape[-1]), jnp.float32)


def predict(p: Any, s: ModelShape, m: Any) -> Any:
    """Policy logits and value."""
    h = relu_linear(p, m, "prediction_hidden")
    return linear(p, h, "policy"), decode(linear(p, h, "value"), s.value_limit)


def dynamics(s: ModelShape, p: Any, key: Any, edge: Any, m: Any) -> Any:
    """Next latent, reward, policy logits and value."""
    x = jnp.concatenate([m, jax.nn.one_hot(edge, s.codes)], axis=1)
    reward = decode(linear(p, relu_linear(p, x, "reward_hidden"), "reward"), s.reward_limit)
    m = layer_norm(m + linear(p, relu_linear(p, x, "dynamics_hidden"), "dynamics_out"))
    return m, reward, *predict(p, s, m)


def recurrent_fn(s: ModelShape, p: Any, key: Any, action: Any, m: Any) -> Any:
    """A step of a deterministic search."""
    m, reward, logits, value = dynamics(s, p, key, action, m)
    discount = jnp.full_like(reward, DISCOUNT)
    return mctx.RecurrentFnOutput(reward=reward, discount=discount, prior_logits=logits, value=value), m


def decision_recurrent_fn(s: ModelShape, p: Any, key: Any, action: Any, m: Any) -> Any:
    """The first half of a stochastic step."""
    x = jnp.concatenate([m, jax.nn.one_hot(action, s.actions)], axis=1)
    value = decode(linear(p, relu_linear(p, x, "afterstate_hidden"), "afterstate_value"), s.value_limit)
    logits = linear(p, relu_linear(p, m, "chance_hidden"), "chance_logits")
    return mctx.DecisionRecurrentFnOutput(chance_logits=logits, afterstate_value=value), m


def chance_recurrent_fn(s: ModelShape, p: Any, key: Any, code: Any, m: Any) -> Any:
    """The second half of a stochastic step."""
    m, reward, logits, value = dynamics(s, p, key, code, m)
    discount = jnp.full_like(reward, DISCOUNT)
    out = mctx.ChanceRecurrentFnOutput(action_logits=logits, value=value, reward=reward, discount=discount)
    return out, m


def run_search(s: ModelShape, kind: str, n: int, p: Any, key: Any, x: Any) -> Any:
    """(action, policy) of every root."""
    m = layer_norm(linear(p, relu_linear(p, x, "representation_hidden"), "representation_out"))
    logits, value = predict(p, s, m)
    root = mctx.RootFnOutput(prior_logits=logits, value=value, embedding=m)
    if kind == "gumbel":
        step = partial(recurrent_fn, s)
        output = mctx.gumbel_muzero_policy(p, key, root, step, n, max_num_considered_actions=MAX_NUM_CONSIDERED_ACTIONS)
    else:
        steps = partial(decision_recurrent_fn, s), partial(chance_recurrent_fn, s)
        output = mctx.stochastic_muzero_policy(p, key, root, *steps, n)
    return output.action, output.action_weights


def compile_search(shape: ModelShape, kind: str, n: int) -> Callable[[Any], Any]:
    """A compiled search of n simulations over roots x [B, F]: (action, policy)."""
    p = {name: jnp.asarray(array) for name, array in vars(as_views(new_params(shape, 0), shape)).items()}
    compiled = jax.jit(partial(run_search, shape, kind, n))
    return lambda x: compiled(p, jax.random.PRNGKey(0), x)


def new_mctx_search(shape: ModelShape, kind: str, B: int, n: int) -> Callable[[], Any]:
    """A search over B random roots, run and awaited by a call."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((B, shape.features)), jnp.float32)
    search = compile_search(shape, kind, n)
    return lambda: jax.block_until_ready(search(x))
