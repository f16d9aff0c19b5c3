"""A bundled model and a small noisy photograph, which the tests of the library share."""

from __future__ import annotations

import pytest

from nystra_bench import load_model, load_task


@pytest.fixture(scope="module")
def model():
    return load_model("swinir_denoise_w8")


@pytest.fixture(scope="module")
def sample():
    return next(load_task("denoise", sigma=25, limit=1, crop=32).samples())


@pytest.fixture
def noisy(sample):
    return sample.degraded
