"""The registry of the extensions; the order of `EXTENSIONS` is that of their parameters and of their losses."""

from collections.abc import Sequence

from models.extension import DEFAULT_LOSS_WEIGHTS, Extension, LossWeights
from models.extensions.afterstate import AfterstateDynamics, AfterstateParams
from models.extensions.beta_head import BetaHead, BetaHeadParams
from models.extensions.chance_encoder import ChanceEncoder, ChanceEncoderParams
from models.extensions.consistency import Consistency, ConsistencyParams
from models.extensions.transformer import TransformerParams
from models.extensions.transformer_extension import Transformer
from models.extensions.unizero import UniZero
from models.extensions.value_prefix import ValuePrefix, ValuePrefixParams
from models.shape import ModelShape

EXTENSIONS: tuple[type[Extension], ...] = (
    Consistency, UniZero, ChanceEncoder, BetaHead, ValuePrefix, Transformer, AfterstateDynamics,
)  # fmt: skip


class Params(
    ConsistencyParams, ChanceEncoderParams, BetaHeadParams, ValuePrefixParams, TransformerParams, AfterstateParams
):
    """All parameters by name, of extensions that are off too, which have no elements."""


def active_extensions(shape: ModelShape, weights: LossWeights = DEFAULT_LOSS_WEIGHTS) -> list[type[Extension]]:
    """The extensions that are on.  Raises ValueError for a shape and weights that do not go together."""
    for extension in EXTENSIONS:
        extension.check(shape, weights)
    return [extension for extension in EXTENSIONS if _is_on(extension, shape, weights)]


def dynamics_extension(shape: ModelShape) -> type[Extension] | None:
    """The extension that replaces the dynamics of this shape, or None."""
    return next((e for e in _of_shape(shape) if e.replaces_dynamics), None)


def reward_extension(shape: ModelShape) -> type[Extension] | None:
    """The extension that wraps the reward head of this shape, or None."""
    return next((e for e in _of_shape(shape) if e.wraps_reward), None)


def serves_market_search(shape: ModelShape) -> bool:
    """Whether networks of this shape have a graph `market`."""
    return all(e.serves_market_search for e in _of_shape(shape))


def state_parts(shape: ModelShape) -> dict[str, int]:
    """Name and width of the parts of a node's state, in their order."""
    parts = {name: width for e in _of_shape(shape) for name, width in e.state_parts(shape).items()}
    return parts if dynamics_extension(shape) else {"latent": shape.latent} | parts


def needs(extensions: Sequence[type[Extension]]) -> set[str]:
    """What `Learner.learn` must be given for these extensions: `target`, `next_features`, `move`."""
    return {name for e in extensions for name in e.needs}


def _of_shape(shape: ModelShape) -> list[type[Extension]]:
    """The extensions that a shape alone turns on."""
    return [extension for extension in EXTENSIONS if _is_on(extension, shape, DEFAULT_LOSS_WEIGHTS)]


def _is_on(extension: type[Extension], shape: ModelShape, weights: LossWeights) -> bool:
    return bool((getattr(shape, extension.switch, 0) or getattr(weights, extension.switch, 0)) > 0)
