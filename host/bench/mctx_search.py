"""The networks of `bench search` in JAX with the same weights, searched by mctx: the neighbour to measure against.

Imported only in the process that measures mctx, where that package is installed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import mctx
import numpy as np

from models.layers import EPSILON, support
from models.params import Shape, new_params, views

DISCOUNT = 0.99
MAX_CONSIDERED = 4


def hidden(p: Any, x: Any, name: str) -> Any:
    """A rectified layer."""
    return jax.nn.relu(head(p, x, name))


def head(p: Any, x: Any, name: str) -> Any:
    """A linear layer."""
    return x @ p[f"{name}_w"] + p[f"{name}_b"]


def norm(x: Any) -> Any:
    """Layer norm without parameters."""
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + EPSILON)


def decode(z: Any, limit: float) -> Any:
    """Expectation of categorical logits."""
    return jax.nn.softmax(z) @ jnp.asarray(support(limit, z.shape[-1]), jnp.float32)


def predict(p: Any, s: Shape, m: Any) -> Any:
    """Policy logits and value."""
    h = hidden(p, m, "predict")
    return head(p, h, "policy"), decode(head(p, h, "value"), s.value_limit)


def dynamics(s: Shape, p: Any, key: Any, edge: Any, m: Any) -> Any:
    """Next latent, reward, policy logits and value."""
    x = jnp.concatenate([m, jax.nn.one_hot(edge, s.codes)], axis=1)
    reward = decode(head(p, hidden(p, x, "gain"), "reward"), s.reward_limit)
    m = norm(m + head(p, hidden(p, x, "move"), "next"))
    return m, reward, *predict(p, s, m)


def act(s: Shape, p: Any, key: Any, action: Any, m: Any) -> Any:
    """A step of a deterministic search."""
    m, reward, logits, value = dynamics(s, p, key, action, m)
    discount = jnp.full_like(reward, DISCOUNT)
    return mctx.RecurrentFnOutput(reward=reward, discount=discount, prior_logits=logits, value=value), m


def decide(s: Shape, p: Any, key: Any, action: Any, m: Any) -> Any:
    """The first half of a stochastic step."""
    x = jnp.concatenate([m, jax.nn.one_hot(action, s.actions)], axis=1)
    value = decode(head(p, hidden(p, x, "after"), "after_value"), s.value_limit)
    logits = head(p, hidden(p, m, "chance"), "code")
    return mctx.DecisionRecurrentFnOutput(chance_logits=logits, afterstate_value=value), m


def chance(s: Shape, p: Any, key: Any, code: Any, m: Any) -> Any:
    """The second half."""
    m, reward, logits, value = dynamics(s, p, key, code, m)
    discount = jnp.full_like(reward, DISCOUNT)
    out = mctx.ChanceRecurrentFnOutput(action_logits=logits, value=value, reward=reward, discount=discount)
    return out, m


def search(s: Shape, kind: str, n: int, p: Any, key: Any, x: Any) -> Any:
    """Action and policy of every root."""
    m = norm(head(p, hidden(p, x, "represent"), "latent"))
    logits, value = predict(p, s, m)
    root = mctx.RootFnOutput(prior_logits=logits, value=value, embedding=m)
    if kind == "gumbel":
        considered = {"max_num_considered_actions": MAX_CONSIDERED}
        found = mctx.gumbel_muzero_policy(p, key, root, partial(act, s), n, **considered)
    else:
        found = mctx.stochastic_muzero_policy(p, key, root, partial(decide, s), partial(chance, s), n)
    return found.action, found.action_weights


def new_search(shape: Shape, kind: str, B: int, n: int) -> Callable[[], Any]:
    """A compiled search over B random roots, run and awaited by a call."""
    p = {name: jnp.asarray(array) for name, array in views(new_params(shape, 0), shape)._asdict().items()}
    x = jnp.asarray(np.random.default_rng(0).standard_normal((B, shape.features)), jnp.float32)
    compiled = jax.jit(partial(search, shape, kind, n))
    return lambda: jax.block_until_ready(compiled(p, jax.random.PRNGKey(0), x))
