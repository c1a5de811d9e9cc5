"""Parameters as one flat vector [N], seen through named views; those of extensions follow those of the core."""

import math
from itertools import groupby
from typing import Any

import numpy as np

from models import registry
from models.registry import Params as Params
from models.shape import Array
from models.shape import ModelShape as ModelShape

CHANCE_PRIOR = ("chance_hidden_w", "chance_logits_w")
CHANCE_DECAY = 4.0  # a bar shows little of what moves the next one: the prior fits noise before all else
# Layers whose targets, values and policies of searches, contain no noise of the market.
HEADS = ("prediction_hidden", "policy", "value", "afterstate_hidden", "afterstate_value")
SMALL_INIT = ("policy_w", "value_w", "chance_logits_w", "afterstate_value_w", "reward_w", "dynamics_out_w")


def small_init() -> set[str]:
    """Weights that start at a hundredth of the usual scale, so that outputs start near 0."""
    return {*SMALL_INIT, *(name for extension in registry.EXTENSIONS for name in extension.small_init)}


def param_shapes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter, in the order of the flat vector."""
    s, wrapper = shape, registry.reward_extension(shape)
    has_dynamics = registry.dynamics_extension(s) is None
    layers: dict[str, tuple[int, ...]] = {
        "representation_hidden": (s.features, s.hidden),
        "representation_out": (s.hidden, s.latent),
        "prediction_hidden": (s.latent + s.position, s.hidden),
        "policy": (s.hidden, s.actions),
        "value": (s.hidden, s.value_bins),
        "chance_hidden": (s.latent, s.hidden),
        "chance_logits": (s.hidden, s.codes),
        "afterstate_hidden": (s.latent + s.actions + s.position, s.hidden),
        "afterstate_value": (s.hidden, s.value_bins),
        "dynamics_hidden": (s.latent + s.codes, s.hidden) if has_dynamics else (0, 0),
        "dynamics_out": (s.hidden, s.latent) if has_dynamics else (0, 0),
        "reward_hidden": (s.latent + s.codes + 2 * s.position, s.hidden),
        "reward": (wrapper.reward_width(s) if wrapper else s.hidden, s.reward_bins),
    }
    shapes: dict[str, tuple[int, ...]] = {}
    for extension in registry.EXTENSIONS:
        layers |= extension.layers(s)
    for name, size in layers.items():
        shapes[f"{name}_w"], shapes[f"{name}_b"] = size, (*size[:-2], size[-1])
    return shapes


def num_params(shape: ModelShape) -> int:
    """Number N of parameters."""
    return sum(math.prod(size) for size in param_shapes(shape).values())


def as_views(flat: Array, shape: ModelShape) -> Params:
    """The flat vector [N] as named arrays; writing to them writes to it."""
    views, first = dict[str, Array](), 0
    for name, size in param_shapes(shape).items():
        views[name] = flat[first : first + math.prod(size)].reshape(size)
        first += math.prod(size)
    return Params(**views)


def new_params(shape: ModelShape, seed: int, dtype: Any = np.float32) -> Array:
    """Parameters [N] from a seed: He-initialised weights, at a hundredth of that in `small_init`; biases 0."""
    rng, small = np.random.Generator(np.random.Philox(key=seed)), small_init()
    flat = np.zeros(num_params(shape), dtype)
    for name, view in vars(as_views(flat, shape)).items():
        if name.endswith("_w"):
            scale = math.sqrt(2.0 / max(view.shape[-2], 1)) * (0.01 if name in small else 1.0)
            view[:] = rng.standard_normal(view.shape) * scale
    return flat


def not_finite(flat: Array, shape: ModelShape) -> list[str]:
    """The parameters whose part of the flat vector [N] has a number that is not finite."""
    if np.isfinite(flat).all():
        return []
    return [name for name, view in vars(as_views(flat, shape)).items() if not np.isfinite(view).all()]


def param_slices(shape: ModelShape) -> list[tuple[slice, bool]]:
    """The flat vector in slices, each with whether it holds parameters of HEADS."""
    slices, first = list[tuple[slice, bool]](), 0
    for is_head, group in groupby(param_shapes(shape).items(), lambda item: item[0][:-2] in HEADS):
        stop = first + sum(math.prod(size) for _, size in group)
        slices.append((slice(first, stop), is_head))
        first = stop
    return slices


def weight_decays(shape: ModelShape, decay: float, dtype: Any = np.float32) -> Array:
    """Weight decay [N]: `decay` of weights, CHANCE_DECAY times that in the chance prior, 0 of biases."""
    flat = np.zeros(num_params(shape), dtype)
    for name, view in vars(as_views(flat, shape)).items():
        factor = CHANCE_DECAY if name in CHANCE_PRIOR else 1.0
        view[:] = decay * factor if name.endswith("_w") else 0.0
    return flat
