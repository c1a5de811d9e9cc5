"""The transformer as an extension: it takes the place of the dynamics."""

from models.activations import one_hot_codes
from models.extension import CodeReader, Extension, LossWeights, Pass, WorkSize
from models.extensions import transformer_onnx
from models.extensions.transformer import (
    TransformerParams,
    new_transformer_activations,
    transformer_backward,
    transformer_forward,
)
from models.onnx_builder import GraphBuilder
from models.shape import ModelShape


class Transformer(Extension):
    """A transformer over the tokens of a window, instead of the dynamics."""

    replaces_dynamics = True
    reports_reward_errors = True

    @staticmethod
    def is_on(shape: ModelShape, weights: LossWeights) -> bool:
        """With blocks."""
        return shape.num_layers > 0

    @staticmethod
    def layers(shape: ModelShape) -> dict[str, tuple[int, ...]]:
        """The embedding of the codes, and the layers of all blocks."""
        count, D, H = shape.num_layers, shape.latent, shape.hidden
        return {
            "code_embedding": (shape.codes, D) if count else (0, 0),
            "qkv": (count, D, 3 * D),
            "attproj": (count, D, D),
            "fc": (count, D, H),
            "fcproj": (count, H, D),
        }

    @staticmethod
    def state_parts(shape: ModelShape) -> dict[str, int]:
        """[1 | latent | key and value of each block]."""
        return transformer_onnx.state_parts(shape)

    def __init__(self, size: WorkSize) -> None:
        self.work = new_transformer_activations(size.shape, size.windows, size.steps, size.seen_bars, size.dtype)

    def latents_forward(self, step: Pass) -> None:
        """The latents of all tokens that heads read."""
        codes = one_hot_codes(step.work, len(step.p.code_embedding_w))
        transformer_forward(step.work.latent, self.work, step.p, step.x, codes)

    def latents_backward(self, step: Pass) -> CodeReader:
        """Gradients of representation, embedding and blocks; the embedding reads the codes."""
        work, embedding = step.work, step.p.code_embedding_w
        codes = one_hot_codes(work, len(embedding))
        transformer_backward(step.d, self.work, step.p, step.x, codes, work.latent, work.d_latent)
        return CodeReader(self.work.dx[len(self.work.representation.z) :], embedding)

    @staticmethod
    def observed_token(g: GraphBuilder, features: str, p: TransformerParams, shape: ModelShape) -> list[str]:
        """The state of the last bar of the context."""
        return transformer_onnx.observed_token(g, features, p, shape)

    @staticmethod
    def imagined_token(g: GraphBuilder, states: str, code: str, p: TransformerParams, shape: ModelShape) -> list[str]:
        """The state after a chance code."""
        return transformer_onnx.imagined_token(g, states, code, p, shape)

    @staticmethod
    def newest_latent(g: GraphBuilder, states: str, shape: ModelShape) -> str:
        """The latent of the first state of a window, which is the newest."""
        return transformer_onnx.newest_latent(g, states, shape)
