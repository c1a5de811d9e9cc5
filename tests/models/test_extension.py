"""The contract of an extension: a seventh one is a class and its name in the registry, and nothing else."""

import numpy as np
import pytest

from models import loss as unroll
from models import params as net
from models import registry
from models.export import export
from models.extension import Extension, LossTerm, LossWeights, Pass, WorkSize
from models.learner import Learner
from models.registry import EXTENSIONS, active_extensions, state_parts
from tests.fixtures.windows import SHAPE, K, evaluate_shape, lively, random_batch

FACTOR = 0.3


class Anchor(Extension):
    """Predicts the square of its own output from the hidden layer of the policy, and pulls latents to a point."""

    switch = "features"
    small_init = ("anchor_w",)
    needs = ("target",)

    @staticmethod
    def layers(shape: net.ModelShape) -> dict[str, tuple[int, ...]]:
        return {"anchor": (shape.hidden, 2), "point": (1, shape.latent)}

    def __init__(self, size: WorkSize) -> None:
        self.size = size

    def output_losses(self, step: Pass, hidden_layer: str) -> list[LossTerm]:
        def loss(z: np.ndarray, db: np.ndarray, b: np.ndarray) -> float:
            y = z + b
            z[:] = 2 * FACTOR * y
            db[:] = z.sum(axis=0)
            return float((y**2).sum())

        return [LossTerm("anchor", "anchor", loss)] if hidden_layer == "prediction_hidden" else []

    def after_heads(self, step: Pass) -> dict[str, float]:
        gap = step.work.latent - step.p.point_w
        step.work.d_latent[...] += 2 * FACTOR * gap
        step.d.point_w[...] = -2 * FACTOR * gap.sum(axis=(0, 1))
        step.d.point_b[...] = 0
        return {"point": float((gap**2).sum())}


@pytest.fixture
def seventh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "EXTENSIONS", (*EXTENSIONS, Anchor))


@pytest.mark.usefixtures("seventh")
def test_its_parameters_follow_those_of_the_others_and_start_small() -> None:
    names = list(net.param_shapes(SHAPE))
    assert names[-4:] == ["anchor_w", "anchor_b", "point_w", "point_b"]
    p = vars(net.as_views(net.new_params(SHAPE, 0), SHAPE))
    assert [bool(np.std(p[name]) > 0.05) for name in ("anchor_w", "point_w", "policy_w")] == [False, True, False]


@pytest.mark.usefixtures("seventh")
def test_its_losses_have_names_and_their_gradient_is_the_slope() -> None:
    flat, batch = lively(), random_batch(2, SHAPE, K)
    losses, gradient, _ = evaluate_shape(flat, SHAPE, batch, K)
    assert list(losses) == [*unroll.LOSSES, "anchor", "point"]

    def weighted(flat: np.ndarray) -> float:
        losses = evaluate_shape(flat, SHAPE, batch, K)[0]
        weights = dict(zip(LossWeights._fields, unroll.DEFAULT_LOSS_WEIGHTS, strict=True))
        return sum(losses[name] * weights.get(name, FACTOR) for name in losses)

    for i in [*np.random.default_rng(3).choice(len(flat), 30, replace=False), *range(len(flat) - 30, len(flat))]:
        h = np.zeros_like(flat)
        h[i] = 1e-6
        expected = (weighted(flat + h) - weighted(flat - h)) / 2e-6
        assert gradient[i] == pytest.approx(expected, rel=5e-6, abs=1e-7), i


@pytest.mark.usefixtures("seventh")
def test_the_learner_names_what_is_missing_and_graphs_need_no_change() -> None:
    learner = Learner(SHAPE, 32, K, 5, 1e-2, 0.0, 10, 1)
    with pytest.raises(ValueError, match="needs target"):
        learner.learn(random_batch(32, SHAPE, K))
    assert {"root", "dynamics", "afterstate"} <= set(export(learner.params, SHAPE, 0))


def test_without_extensions_the_losses_are_those_of_the_core() -> None:
    losses = evaluate_shape(lively(), SHAPE, random_batch(2, SHAPE, K), K)[0]
    assert tuple(losses) == unroll.LOSSES == LossWeights._fields[: len(unroll.LOSSES)]


@pytest.mark.parametrize("changes", [{}, {"value_prefix_width": 5}, {"num_layers": 2, "num_heads": 2}], ids=str)
def test_the_parts_of_a_state_are_its_width(changes: dict[str, int]) -> None:
    shape = SHAPE._replace(**changes)
    assert sum(state_parts(shape).values()) == shape.state
    assert {e.__name__ for e in active_extensions(shape)} <= {"ValuePrefix", "Transformer"}


def test_every_hook_of_an_extension_is_one_of_the_contract() -> None:
    for extension in EXTENSIONS:
        own = {name for name in vars(extension) if not name.startswith("_")}
        assert own <= set(dir(Extension)), extension
        assert extension.__doc__ != Extension.__doc__
