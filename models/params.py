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


class ModelShape(NamedTuple):
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
    projector_width: int = 0  # width of the projector and predictor of the consistency loss; 0 = without
    chance_encoder_width: int = 0  # hidden layer of the encoder of learned codes; 0 = without: then codes are quantiles
    num_beta_params: int = 0  # Z, parameters of the sizes of entries; 0 = entries are actions
    value_prefix_width: int = 0  # width of the LSTM of the value prefix; 0 = without
    num_layers: int = 0  # L: blocks of a transformer, which takes the place of the dynamics; 0 = without
    num_heads: int = 4  # of its attention
    attention_window: int = 4  # earlier tokens that an imagined one sees
    context: int = 1  # bars that the root is given, the last one included

    @property
    def state(self) -> int:
        """Width of what a search keeps of a node: the latent, or [1 | latent | key and value of each block].

        With a value prefix the latent is followed by [h | c | prefix | steps] of its LSTM.
        """
        memory = 2 * self.value_prefix_width + 2 if self.value_prefix_width else 0
        return self.latent + memory + (1 + 2 * self.num_layers * self.latent if self.num_layers else 0)


class Params(NamedTuple):
    """Weights [in, out] and biases; a gradient has the same type."""

    representation_hidden_w: Array  # [F, H]
    representation_hidden_b: Array
    representation_out_w: Array  # [H, D]
    representation_out_b: Array
    prediction_hidden_w: Array  # [D + P, H]
    prediction_hidden_b: Array
    policy_w: Array  # [H, A]
    policy_b: Array
    value_w: Array  # [H, V]
    value_b: Array
    chance_hidden_w: Array  # [D, H]
    chance_hidden_b: Array
    chance_logits_w: Array  # [H, C]
    chance_logits_b: Array
    afterstate_hidden_w: Array  # [D + A + P, H]
    afterstate_hidden_b: Array
    afterstate_value_w: Array  # [H, V]
    afterstate_value_b: Array
    dynamics_hidden_w: Array  # [D + C, H] of the dynamics, which a transformer does not have
    dynamics_hidden_b: Array
    dynamics_out_w: Array  # [H, D]
    dynamics_out_b: Array
    reward_hidden_w: Array  # [D + C + 2P, H]
    reward_hidden_b: Array
    reward_w: Array  # [H, Vr]
    reward_b: Array
    projector_1_w: Array  # [D, W] of the consistency loss, as are the next three
    projector_1_b: Array
    projector_2_w: Array  # [W, W]
    projector_2_b: Array
    predictor_1_w: Array  # [W, W]
    predictor_1_b: Array
    predictor_2_w: Array  # [W, W]
    predictor_2_b: Array
    chance_encoder_hidden_w: Array  # [F, E] of the encoder of learned codes, as are the next five
    chance_encoder_hidden_b: Array
    chance_encoder_out_w: Array  # [E, C]
    chance_encoder_out_b: Array
    code_move_w: Array  # [C, 1] move that a code tells of
    code_move_b: Array
    beta_head_w: Array  # [H, Z] of the policy head, beside its logits: models.beta
    beta_head_b: Array
    lstm_w: Array  # [H + L, 4 L] of the value prefix, behind the layer `gain`: models.prefix
    lstm_b: Array
    code_embedding_w: Array  # [C, D] of a transformer, as is the rest
    code_embedding_b: Array
    qkv_w: Array  # [L, D, 3 D] queries, keys and values
    qkv_b: Array  # [L, 3 D]
    attproj_w: Array  # [L, D, D]
    attproj_b: Array
    fc_w: Array  # [L, D, H]
    fc_b: Array
    fcproj_w: Array  # [L, H, D]
    fcproj_b: Array


# start near zero: heads, and the encoder, whose random beginnings would else be all it ever says
SMALL_INIT = (
    "policy_w",
    "value_w",
    "chance_logits_w",
    "afterstate_value_w",
    "reward_w",
    "dynamics_out_w",
    "chance_encoder_out_w",
    "beta_head_w",
)


def param_shapes(s: ModelShape) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter, in the order of `Params`."""
    layers = {
        "representation_hidden": (s.features, s.hidden),
        "representation_out": (s.hidden, s.latent),
        "prediction_hidden": (s.latent + s.position, s.hidden),
        "policy": (s.hidden, s.actions),
        "value": (s.hidden, s.value_bins),
        "chance_hidden": (s.latent, s.hidden),
        "chance_logits": (s.hidden, s.codes),
        "afterstate_hidden": (s.latent + s.actions + s.position, s.hidden),
        "afterstate_value": (s.hidden, s.value_bins),
        "dynamics_hidden": (0, 0) if s.num_layers else (s.latent + s.codes, s.hidden),
        "dynamics_out": (0, 0) if s.num_layers else (s.hidden, s.latent),
        "reward_hidden": (s.latent + s.codes + 2 * s.position, s.hidden),
        "reward": (s.value_prefix_width or s.hidden, s.reward_bins),
        "projector_1": (s.latent, s.projector_width),
        "projector_2": (s.projector_width, s.projector_width),
        "predictor_1": (s.projector_width, s.projector_width),
        "predictor_2": (s.projector_width, s.projector_width),
        "chance_encoder_hidden": (s.features, s.chance_encoder_width),
        "chance_encoder_out": (s.chance_encoder_width, s.codes if s.chance_encoder_width else 0),
        "code_move": (s.codes, 1) if s.chance_encoder_width else (0, 0),
        "beta_head": (s.hidden, s.num_beta_params),
        "lstm": (s.hidden + s.value_prefix_width if s.value_prefix_width else 0, 4 * s.value_prefix_width),
        "code_embedding": (s.codes, s.latent) if s.num_layers else (0, 0),
    }
    blocks = {
        "qkv": (s.latent, 3 * s.latent),
        "attproj": (s.latent, s.latent),
        "fc": (s.latent, s.hidden),
        "fcproj": (s.hidden, s.latent),
    }
    found: dict[str, tuple[int, ...]] = {}
    for name, (rows, columns) in layers.items():
        found[f"{name}_w"], found[f"{name}_b"] = (rows, columns), (columns,)
    for name, (rows, columns) in blocks.items():
        found[f"{name}_w"], found[f"{name}_b"] = (s.num_layers, rows, columns), (s.num_layers, columns)
    return found


def num_params(shape: ModelShape) -> int:
    """Number of parameters."""
    return sum(math.prod(size) for size in param_shapes(shape).values())


def as_views(flat: Array, shape: ModelShape) -> Params:
    """The flat vector as named arrays; writing to them writes to it."""
    found, at = [], 0
    for size in param_shapes(shape).values():
        found.append(flat[at : at + math.prod(size)].reshape(size))
        at += math.prod(size)
    return Params(*found)


def new_params(shape: ModelShape, seed: int, dtype: Any = np.float32) -> Array:
    """He-initialised weights [N] from a seed; heads start at a hundredth of that, biases at 0."""
    rng = np.random.Generator(np.random.Philox(key=seed))
    flat = np.zeros(num_params(shape), dtype)
    for name, view in as_views(flat, shape)._asdict().items():
        if name.endswith("_w"):
            scale = math.sqrt(2.0 / max(view.shape[-2], 1)) * (0.01 if name in SMALL_INIT else 1.0)
            view[:] = rng.standard_normal(view.shape) * scale
    return flat


def weight_decays(shape: ModelShape, decay: float, dtype: Any = np.float32) -> Array:
    """[N] weight decay: of weights, not of biases."""
    flat = np.zeros(num_params(shape), dtype)
    for name, view in as_views(flat, shape)._asdict().items():
        view[:] = decay if name.endswith("_w") else 0.0
    return flat
