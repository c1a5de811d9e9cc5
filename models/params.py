"""The networks: parameters as one flat vector seen through views.

The market latent m comes from bar features alone; the position enters the heads only, so a chance prior or a next
market latent cannot know it.  Letters: F features, P position, D latent, H hidden, A actions, C codes, V bins,
W projection, E encoder.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Shape(NamedTuple):
    """Sizes of everything; limits in R."""

    features: int
    position: int = 9
    latent: int = 32
    hidden: int = 64
    actions: int = 4
    codes: int = 8
    reward_bins: int = 41
    value_bins: int = 41
    reward_limit: float = 10.0
    value_limit: float = 20.0
    project: int = 0  # width of the projector and predictor of the consistency loss; 0 = without
    encode: int = 0  # hidden layer of the encoder of learned codes; 0 = without: then codes are quantiles
    sizes: int = 0  # Z, parameters of the sizes of entries; 0 = entries are actions
    prefix: int = 0  # width of the LSTM of the value prefix; 0 = without
    layers: int = 0  # L: blocks of a transformer, which takes the place of the dynamics; 0 = without
    heads: int = 4  # of its attention
    window: int = 4  # earlier tokens that an imagined one sees
    context: int = 1  # bars that the root is given, the last one included

    @property
    def state(self) -> int:
        """Width of what a search keeps of a node: the latent, or [1 | latent | key and value of each block].

        With a value prefix the latent is followed by [h | c | prefix | steps] of its LSTM.
        """
        memory = 2 * self.prefix + 2 if self.prefix else 0
        return self.latent + memory + (1 + 2 * self.layers * self.latent if self.layers else 0)


class Params(NamedTuple):
    """Weights [in, out] and biases; a gradient has the same type."""

    represent_w: Array  # [F, H]
    represent_b: Array
    latent_w: Array  # [H, D]
    latent_b: Array
    predict_w: Array  # [D + P, H]
    predict_b: Array
    policy_w: Array  # [H, A]
    policy_b: Array
    value_w: Array  # [H, V]
    value_b: Array
    chance_w: Array  # [D, H]
    chance_b: Array
    code_w: Array  # [H, C]
    code_b: Array
    after_w: Array  # [D + A + P, H]
    after_b: Array
    after_value_w: Array  # [H, V]
    after_value_b: Array
    move_w: Array  # [D + C, H] of the dynamics, which a transformer does not have
    move_b: Array
    next_w: Array  # [H, D]
    next_b: Array
    gain_w: Array  # [D + C + 2P, H]
    gain_b: Array
    reward_w: Array  # [H, Vr]
    reward_b: Array
    project_w: Array  # [D, W] of the consistency loss, as are the next three
    project_b: Array
    projection_w: Array  # [W, W]
    projection_b: Array
    guess_w: Array  # [W, W]
    guess_b: Array
    guessed_w: Array  # [W, W]
    guessed_b: Array
    encode_w: Array  # [F, E] of the encoder of learned codes, as are the next five
    encode_b: Array
    encoding_w: Array  # [E, C]
    encoding_b: Array
    meaning_w: Array  # [C, 1] move that a code tells of
    meaning_b: Array
    size_w: Array  # [H, Z] of the policy head, beside its logits: models.beta
    size_b: Array
    prefix_w: Array  # [H + L, 4 L] of the value prefix, behind the layer `gain`: models.prefix
    prefix_b: Array
    embed_w: Array  # [C, D] of a transformer, as is the rest
    embed_b: Array
    qkv_w: Array  # [L, D, 3 D] queries, keys and values
    qkv_b: Array  # [L, 3 D]
    mix_w: Array  # [L, D, D]
    mix_b: Array
    up_w: Array  # [L, D, H]
    up_b: Array
    down_w: Array  # [L, H, D]
    down_b: Array


# start near zero: heads, and the encoder, whose random beginnings would else be all it ever says
SMALL = ("policy_w", "value_w", "code_w", "after_value_w", "reward_w", "next_w", "encoding_w", "size_w")


def sizes(s: Shape) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter, in the order of `Params`."""
    layers = {
        "represent": (s.features, s.hidden),
        "latent": (s.hidden, s.latent),
        "predict": (s.latent + s.position, s.hidden),
        "policy": (s.hidden, s.actions),
        "value": (s.hidden, s.value_bins),
        "chance": (s.latent, s.hidden),
        "code": (s.hidden, s.codes),
        "after": (s.latent + s.actions + s.position, s.hidden),
        "after_value": (s.hidden, s.value_bins),
        "move": (0, 0) if s.layers else (s.latent + s.codes, s.hidden),
        "next": (0, 0) if s.layers else (s.hidden, s.latent),
        "gain": (s.latent + s.codes + 2 * s.position, s.hidden),
        "reward": (s.prefix or s.hidden, s.reward_bins),
        "project": (s.latent, s.project),
        "projection": (s.project, s.project),
        "guess": (s.project, s.project),
        "guessed": (s.project, s.project),
        "encode": (s.features, s.encode),
        "encoding": (s.encode, s.codes if s.encode else 0),
        "meaning": (s.codes, 1) if s.encode else (0, 0),
        "size": (s.hidden, s.sizes),
        "prefix": (s.hidden + s.prefix if s.prefix else 0, 4 * s.prefix),
        "embed": (s.codes, s.latent) if s.layers else (0, 0),
    }
    blocks = {
        "qkv": (s.latent, 3 * s.latent),
        "mix": (s.latent, s.latent),
        "up": (s.latent, s.hidden),
        "down": (s.hidden, s.latent),
    }
    found: dict[str, tuple[int, ...]] = {}
    for name, (rows, columns) in layers.items():
        found[f"{name}_w"], found[f"{name}_b"] = (rows, columns), (columns,)
    for name, (rows, columns) in blocks.items():
        found[f"{name}_w"], found[f"{name}_b"] = (s.layers, rows, columns), (s.layers, columns)
    return found


def count(shape: Shape) -> int:
    """Number of parameters."""
    return sum(math.prod(size) for size in sizes(shape).values())


def views(flat: Array, shape: Shape) -> Params:
    """The flat vector as named arrays; writing to them writes to it."""
    found, at = [], 0
    for size in sizes(shape).values():
        found.append(flat[at : at + math.prod(size)].reshape(size))
        at += math.prod(size)
    return Params(*found)


def new_params(shape: Shape, seed: int, dtype: Any = np.float32) -> Array:
    """He-initialised weights [N] from a seed; heads start at a hundredth of that, biases at 0."""
    rng = np.random.Generator(np.random.Philox(key=seed))
    flat = np.zeros(count(shape), dtype)
    for name, view in views(flat, shape)._asdict().items():
        if name.endswith("_w"):
            scale = math.sqrt(2.0 / max(view.shape[-2], 1)) * (0.01 if name in SMALL else 1.0)
            view[:] = rng.standard_normal(view.shape) * scale
    return flat


def decays(shape: Shape, decay: float, dtype: Any = np.float32) -> Array:
    """[N] weight decay: of weights, not of biases."""
    flat = np.zeros(count(shape), dtype)
    for name, view in views(flat, shape)._asdict().items():
        view[:] = decay if name.endswith("_w") else 0.0
    return flat
