"""What several test files share: devices, and clustered unit rows."""

from __future__ import annotations

import os

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as train/commands: tests on shared cores, too

import pytest
import torch
from hypothesis import settings
from torch import Tensor

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--random-budget", type=int, metavar="N", help="N new random examples for every property test")


def pytest_configure(config: pytest.Config) -> None:
    """Property tests try the same examples everywhere, unless so many random ones are asked for."""
    budget = config.getoption("--random-budget")
    settings.register_profile("ci", deadline=None, derandomize=True)
    settings.register_profile("random", deadline=None, max_examples=budget or 100, print_blob=True)
    settings.load_profile("random" if budget else "ci")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


def clustered(rows: int, dim: int = 16, clusters: int = 20, spread: float = 0.5, seed: int = 0) -> Tensor:
    """Unit rows around random centres: (rows, dim) float32."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(clusters, dim, generator=generator)
    own = torch.randint(clusters, (rows,), generator=generator)
    noise = torch.randn(rows, dim, generator=generator)
    return torch.nn.functional.normalize(centres[own] + spread * noise, dim=1)


@pytest.fixture(name="steps")
def steps_fixture():
    """The metrics of so many steps of a trainer, each after a look at what is to be refreshed."""

    def steps(trainer, count: int) -> list[dict[str, float]]:
        found = []
        for _ in range(count):
            trainer.refresh()
            found.append(trainer.step())
        return found

    return steps


@pytest.fixture(name="clustered")
def clustered_fixture():
    return clustered
