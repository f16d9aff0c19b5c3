"""What every attention keeps to, of version 5 by clusters in windows that it attends exactly by itself."""

from __future__ import annotations

import pytest

from nystra_bench.configuration import configs_folder
from nystra_bench.conformance.subjects import OptionFolder
from nystra_bench.conformance.test_attention import *  # noqa: F403


class ByClusters:
    """``nystra_plus_v5`` with other parameters, as the subject of the conformance tests."""

    def __init__(self, **given):
        subjects = OptionFolder(configs_folder()).subjects("attention")
        self.option = next(subject for subject in subjects if subject.name == "nystra_plus_v5")
        self.given = given
        self.parameters = self.option.parameters | given

    def make(self, **changes):
        return self.option.make(**(self.given | changes))


@pytest.fixture(
    scope="module",
    params=[
        {"exact_up_to": 0, "bias_rank": 8},
        {"landmarks": 9, "exact_keys": 30, "bias_rank": 8, "clustering": 2, "residual": False},
    ],
    ids=["default", "few"],
)
def subject(request):
    return ByClusters(**request.param)
