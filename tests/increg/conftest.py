"""Fixtures that the pruning tests share."""

from __future__ import annotations

import pytest
from digits import Digits


@pytest.fixture(scope="session")
def residual_digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    """A trained residual net on scikit-learn's digits."""
    return Digits(tmp_path_factory.mktemp("residual_digits"))
