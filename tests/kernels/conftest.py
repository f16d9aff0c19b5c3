"""What the tests of kernels share."""

from __future__ import annotations

import pytest
import torch

from nystra_bench import kernels


@pytest.fixture(scope="session")
def kernels_here():
    """They are built once for all test processes, and kept for later runs."""
    if reason := kernels.unusable():
        pytest.skip(f"there are no kernels here: {reason}")


@pytest.fixture
def without_gradients():
    with torch.inference_mode():
        yield
