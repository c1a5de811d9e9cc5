"""PyTorch's twin of the learning step, where PyTorch is installed: its gradients and optimiser find our losses."""

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from models.learner import Learner
from models.loss import LOSSES
from models.params import ModelShape, new_params
from tests.fixtures.windows import random_batch

pytest.importorskip("torch")


@pytest.mark.parametrize("rate", [1e-4, 1e-3])
def test_losses_of_100_steps_are_pytorchs(rate: float) -> None:
    from host.bench.torch_learner import TorchLearner

    shape, K, windows = ModelShape(features=40, hidden=64), 5, 32
    ours = Learner(shape, windows, K, 0, rate, 1e-2, 3000, 1)
    theirs = TorchLearner(shape, new_params(shape, 0), rate, 1e-2, 3000, 1, compiled=False)
    with threadpool_limits(1, "blas"):
        for step in range(100):
            batch = random_batch(windows, shape, K, seed=step)
            batch.weight[::3, 3:] = 0  # windows that end early
            found, expected = ours.learn(batch), theirs.learn(batch)
            np.testing.assert_allclose([found[name] for name in LOSSES], list(expected.values()), atol=1e-3)
