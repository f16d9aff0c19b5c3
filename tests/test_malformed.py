"""Every mistake has its answer: one sentence that names what is wrong, and what would be accepted."""

import re

import pytest
from malformed import INPUTS

from nystra_bench.configuration import Catalogue, configs_folder
from nystra_bench.errors import UserError
from nystra_bench.models.checkpoints import BUNDLED as WEIGHTS
from nystra_bench.tasks.datasets import BUNDLED as PICTURES

CATALOGUE = Catalogue([configs_folder()])
LISTS = {
    "sweeps": CATALOGUE.names("sweep"),
    "metrics": CATALOGUE.names("metric"),
    "executors": CATALOGUE.names("executor"),
    "weights": sorted(file.stem for file in WEIGHTS.glob("*.safetensors")),
    "pictures": list(PICTURES),
}
"""What grows as the project does; a sentence names all of it."""


def written(sentence, folder):
    """What stands for folders, lists and modules in an expected sentence put in."""
    names = sorted([*LISTS["sweeps"], "mine"]) if "=mine" in sentence else LISTS["sweeps"]
    lists = {name: ", ".join(those) for name, those in (LISTS | {"sweeps": names}).items()}
    return re.sub(r"<(\w+)>", lambda found: ({"folder": str(folder)} | lists)[found[1]], sentence)


@pytest.mark.parametrize("malformed", INPUTS, ids=lambda malformed: malformed.what)
def test_a_mistake_is_answered_in_one_sentence(malformed, tmp_path):
    with pytest.raises(UserError) as caught:
        malformed.given(tmp_path)
    assert str(caught.value) == written(malformed.told, tmp_path)
    assert "\n" not in str(caught.value)


def test_there_are_enough_of_them_each_another():
    assert len({malformed.what for malformed in INPUTS}) == len(INPUTS) >= 40


def test_every_sentence_says_what_to_do():
    silent = [m.what for m in INPUTS if not re.search("accepted|see |shows all|mend|again|is wanted", m.told)]
    assert silent == []
