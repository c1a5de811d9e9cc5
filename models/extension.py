"""The contract of an extension: what one file of `models/extensions` may add to the networks and to their training.

An extension is a subclass of `Extension` that overrides the hooks it uses.  Its attributes and static methods describe
it for a `ModelShape`; an instance owns the workspace of one thread.  The hooks stand below in the order in which
`models.loss.loss_and_gradient` calls them.  To register an extension, name it in `models.registry`.
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

from kernels.learning.replay_buffer import Batch
from kernels.ort import OutputHead
from models.activations import Activations
from models.onnx_builder import GraphBuilder
from models.shape import Array, ModelShape

LATENT_GRADIENT_SCALE = 0.5  # of the gradient that flows from step k + 1 into the latent of step k (MuZero, appendix G)


class LossWeights(NamedTuple):
    """Weight of each loss by its name; those of extensions that a shape or a weight of 0 turns off have no effect."""

    policy: float = 1.0
    value: float = 0.5
    afterstate_value: float = 0.5
    chance: float = 1.0
    reward: float = 1.0
    consistency: float = 0.0
    unizero: float = 0.0  # of policy and value of the seen bars, and of the latents unrolled to them
    commitment: float = 0.0
    code_entropy: float = 0.0
    beta_head: float = 1.0


DEFAULT_LOSS_WEIGHTS = LossWeights()


class WorkSize(NamedTuple):
    """What the size of a workspace depends on."""

    shape: ModelShape
    windows: int
    steps: int  # K
    seen_bars: int  # later bars of each window that the representation network reads too: K or 0
    dtype: Any
    num_candidates: int  # entries of a decision that progressive widening tried


class Pass(NamedTuple):
    """One forward and backward pass over the windows first .. first + n of a batch, as the hooks read it.

    `d`, `p` and `target` are of `models.registry.Params`; a hook declares them as the class it derives.
    """

    d: Any  # gradients, which are written whole
    p: Any  # parameters
    target: Any  # parameters of the soft target network, or None
    work: Activations
    x: Array  # [bars n, F] features of each window's context, then seen bars, then present bar
    batch: Batch
    first: int
    weights: LossWeights
    latent_gradient_scale: float = LATENT_GRADIENT_SCALE

    @property
    def rows(self) -> slice:
        """The windows of this pass as rows of the batch."""
        return slice(self.first, self.first + self.work.latent.shape[1])


class LossTerm(NamedTuple):
    """One loss of a head: the output layer that it reads, and its function.

    `loss` gets the outputs without bias z [rows, O], db [O] and the bias b [O].  It returns the loss, and turns z and
    db into the gradients of its weighted loss.
    """

    name: str
    layer: str
    loss: Callable[[Array, Array, Array], float]


class CodeReader(NamedTuple):
    """A layer that reads the chance codes; the first C rows of its weights w are those of the codes."""

    gradient: Array  # [K n, O] of its pre-activations
    w: Array  # [C or more, O]


class Extension:
    """An extension that adds nothing: the default of every hook."""

    switch: ClassVar[str] = ""  # the field of ModelShape or of LossWeights that turns it on by being above 0
    small_init: ClassVar[tuple[str, ...]] = ()  # weights that start at a hundredth of the usual scale
    policy_layers: ClassVar[tuple[str, ...]] = ()  # layers whose outputs follow the policy logits in the graphs
    needs: ClassVar[tuple[str, ...]] = ()  # of "target" and "next_features": what `learn` must be given
    replaces_dynamics: ClassVar[bool] = False  # the hooks `latents_*` and `*_token` take the place of the dynamics
    has_afterstates: ClassVar[bool] = False  # an action moves the latent: there is the hook `afterstate`
    wraps_reward: ClassVar[bool] = False  # the hooks `reward_*` stand between hidden and output layer of the reward
    serves_market_search: ClassVar[bool] = True  # whether a graph `market` can be exported
    reports_reward_errors: ClassVar[bool] = False  # whether training logs the reward error by depth

    # ---- what it is

    @staticmethod
    def check(shape: ModelShape, weights: LossWeights) -> None:
        """Raise ValueError for a shape and weights that do not go together; called whether it is on or not."""

    @staticmethod
    def layers(shape: ModelShape) -> dict[str, tuple[int, ...]]:
        """Shape [.., in, out] of the weights of each layer; `NAME_w` and `NAME_b` [.., out] are its parameters."""
        return {}

    @staticmethod
    def reward_width(shape: ModelShape) -> int:
        """Columns that the reward layer reads, if the extension wraps the reward head."""
        raise NotImplementedError

    @staticmethod
    def state_parts(s: ModelShape) -> dict[str, int]:
        """Name and width of the parts of a node's state behind the latent, or of all if it replaces the dynamics."""
        return {}

    @staticmethod
    def seen_bar_weight(weights: LossWeights) -> float:
        """Weight of policy and value of the seen bars; above 0 the K later bars of a window are represented too."""
        return 0.0

    # ---- how it learns

    def __init__(self, size: WorkSize) -> None:
        """Allocate the workspace of one thread."""

    def fill(self, step: Pass) -> None:
        """Write inputs and targets of the batch, behind those of the core."""

    def before_latents(self, step: Pass) -> None:
        """Change the inputs that need a forward pass."""

    def latents_forward(self, step: Pass) -> None:
        """Write the latents of `step.work`."""
        raise NotImplementedError

    def afterstates(self) -> tuple[Array, Array] | None:
        """Latents [K, n, D] that chance, reward and afterstate value read, if not m[k]; and their gradient."""
        return None

    def output_losses(self, step: Pass, hidden_layer: str) -> list[LossTerm]:
        """Further losses on the outputs of a head, which its hidden layer names."""
        return []

    def reward_forward(self, step: Pass, hidden: Array) -> tuple[Array, Array]:
        """What the reward layer reads [K n, O], from the hidden layer [K n, H], and room for its gradient."""
        raise NotImplementedError

    def reward_backward(self, step: Pass, d_hidden: Array, hidden: Array) -> None:
        """Write d_hidden [K n, H] from the gradient in the room that `reward_forward` returned."""
        raise NotImplementedError

    def after_heads(self, step: Pass) -> dict[str, float]:
        """Losses of the latents by name; their gradients are added to `step.work.d_latent`."""
        return {}

    def latents_backward(self, step: Pass) -> CodeReader:
        """Gradients of all parameters in front of the latents; the layer through which the codes enter."""
        raise NotImplementedError

    def after_latents(self, step: Pass, readers: tuple[CodeReader, CodeReader]) -> dict[str, float]:
        """Losses by name, and gradients, that need what the reward head and the dynamics hand back to the codes."""
        return {}

    def rewards(self, outputs: Array) -> Array:
        """Rewards [K, n] from the decoded outputs [K, n] of the reward layer."""
        return outputs

    # ---- its part of the ONNX graphs; each returns names of tensors

    @staticmethod
    def observed_token(g: GraphBuilder, features: str, p: Any, s: ModelShape) -> list[str]:
        """The parts of the root's state from features [n, context F]; the second is the latent."""
        raise NotImplementedError

    @staticmethod
    def imagined_token(g: GraphBuilder, states: str, code: str, p: Any, s: ModelShape) -> list[str]:
        """The parts of the next state behind a window of states; one of them is `latent`."""
        raise NotImplementedError

    @staticmethod
    def newest_latent(g: GraphBuilder, states: str, s: ModelShape) -> str:
        """The latent of the last state of a window."""
        raise NotImplementedError

    @staticmethod
    def afterstate(g: GraphBuilder, state: str, action: str, p: Any, s: ModelShape) -> str:
        """The latent of the afterstate of an action, if the dynamics have afterstates."""
        raise NotImplementedError

    @staticmethod
    def reward_step(g: GraphBuilder, hidden: str, p: Any, s: ModelShape) -> tuple[OutputHead, list[str]]:
        """The reward from the hidden layer of its head, and the parts of the next state behind the latent."""
        raise NotImplementedError
