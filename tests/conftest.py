"""What several test files share."""

import os
import sys
from collections.abc import Iterator

import pytest

from tests.fixtures.clusters import RAY_ENV, RayNodes, ray_nodes
from tests.fixtures.trained import Trained, train


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[RayNodes]:
    """Three nodes of Ray with 1, 2 and 3 CPUs; tests may add others and kill those."""
    os.environ.update(RAY_ENV)
    pytest.importorskip("ray", reason="ray is not installed: pip install '.[ray]'")
    if sys.platform != "linux":
        pytest.skip("several nodes of Ray on one machine need Linux")
    with ray_nodes(1, 2, 3) as nodes:
        yield nodes
