"""The transformer as an extension: it takes the place of the dynamics."""

from models.activations import one_hot_codes
from models.extension import CodeReader, Extension, Pass, WorkSize
from models.extensions import transformer_onnx
from models.extensions.transformer import (
    new_transformer_activations,
    transformer_backward,
    transformer_forward,
)
from models.shape import ModelShape


class Transformer(Extension):
    """A transformer over the tokens of a window, instead of the dynamics."""

    switch = "num_layers"
    replaces_dynamics = True
    reports_reward_errors = True
    state_parts = staticmethod(transformer_onnx.state_parts)
    observed_token = staticmethod(transformer_onnx.observed_token)
    imagined_token = staticmethod(transformer_onnx.imagined_token)
    newest_latent = staticmethod(transformer_onnx.newest_latent)

    @staticmethod
    def layers(shape: ModelShape) -> dict[str, tuple[int, ...]]:
        count, D, H = shape.num_layers, shape.latent, shape.hidden
        embedding = (shape.codes, D) if count else (0, 0)
        blocks = {"qkv": (D, 3 * D), "attproj": (D, D), "fc": (D, H), "fcproj": (H, D)}
        return {"code_embedding": embedding} | {name: (count, *size) for name, size in blocks.items()}

    def __init__(self, size: WorkSize) -> None:
        self.work = new_transformer_activations(size.shape, size.windows, size.steps, size.seen_bars, size.dtype)

    def latents_forward(self, step: Pass) -> None:
        codes = one_hot_codes(step.work, len(step.p.code_embedding_w))
        transformer_forward(step.work.latent, self.work, step.p, step.x, codes)

    def latents_backward(self, step: Pass) -> CodeReader:
        work, embedding = step.work, step.p.code_embedding_w
        codes = one_hot_codes(work, len(embedding))
        transformer_backward(step.d, self.work, step.p, step.x, codes, work.latent, work.d_latent)
        return CodeReader(self.work.dx[len(self.work.representation.z) :], embedding)
