"""Fixtures that all tests share."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

GOLDEN = Path(__file__).parent / "golden"
SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """The same sums in the same order on every machine, and no threads that fight over few cores."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def log_switched_off() -> None:
    """The command line switches the log on, in another test or in a fixture of several tests; each test finds it off."""
    logger = logging.getLogger("caffe_compat")
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of recorded numbers."""
    return GOLDEN


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data and models that are too large to keep here; tests that need them skip where they are not."""
    return SHARED


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device the test runs on."""
    return torch.device(request.param)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
