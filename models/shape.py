"""The sizes of the networks, and the parameters that every model has.

The latent of a bar is computed from bar features alone.  The position enters the heads only, so a chance prior and the
next latent cannot know it.
"""

from typing import Any, NamedTuple

from numpy.typing import NDArray

Array = NDArray[Any]


class News(NamedTuple):
    """A column of the features that tells of a bar what was not known before it."""

    column: int
    factor: float = 1.0
    is_change: bool = False  # from the bar before


class ModelShape(NamedTuple):
    """Sizes of the networks; a width of 0 turns an extension off."""

    features: int
    position: int = 9
    latent: int = 32
    hidden: int = 64
    actions: int = 4
    codes: int = 8
    reward_bins: int = 41
    value_bins: int = 41
    reward_limit: float = 10.0  # the reward's bins span [-limit, limit] mean bar ranges
    value_limit: float = 20.0  # mean bar ranges
    projector_width: int = 0  # of the projector and the predictor of the consistency loss
    chance_encoder_width: int = 0  # hidden units of the chance encoder; without it codes are quantiles
    kinds: int = 1  # codes of each bin of the move, among which the chance encoder picks
    news: tuple[News, ...] = ()  # what the chance encoder reads
    num_beta_params: int = 0  # parameters of the Beta distributions of entry sizes; without them entries are actions
    value_prefix_width: int = 0  # of the LSTM of the value prefix
    num_layers: int = 0  # blocks of the transformer that replaces the dynamics
    afterstate_width: int = 0  # hidden units of the steps to an afterstate and on; without it no action moves a latent
    num_heads: int = 4  # attention heads of a block
    attention_window: int = 4  # earlier tokens that an imagined token attends to
    context: int = 1  # bars that the root reads, the present one included

    @property
    def state(self) -> int:
        """Width S of a node's state: the sum of `models.registry.state_parts`."""
        memory = 2 * self.value_prefix_width + 2 if self.value_prefix_width else 0
        return self.latent + memory + (1 + 2 * self.num_layers * self.latent if self.num_layers else 0)


class CoreParams:
    """Weights [in, out] and biases [out] of the networks that every model has; a gradient has the same type.

    An extension with parameters derives a class that names its own; `models.registry.Params` has them all.
    """

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
    dynamics_hidden_w: Array  # [D + C, H], or empty if an extension replaces the dynamics
    dynamics_hidden_b: Array
    dynamics_out_w: Array  # [H, D]
    dynamics_out_b: Array
    reward_hidden_w: Array  # [D + C + 2P, H]
    reward_hidden_b: Array
    reward_w: Array  # [H, V], or [width of the value prefix, V]
    reward_b: Array

    def __init__(self, **arrays: Array) -> None:
        vars(self).update(arrays)
