"""Every configuration file of the project can be used."""

import inspect
from pathlib import Path

import pytest

from nystra_bench.cli import compose_config, parse
from nystra_bench.configuration import Catalogue, configs_folder, instantiate, locate
from nystra_bench.models import checkpoints
from nystra_bench.sweep.cell import USUAL_MEASURES
from nystra_bench.sweep.grid import Overrides, expand
from nystra_bench.sweep.inspection import answer
from nystra_bench.sweep.plan import request_of

CATALOGUE = Catalogue([configs_folder()])
FILES = sorted(configs_folder().glob("*/*.yaml"))
OPTIONS = {f"{file.parent.name}/{file.stem}": (file.parent.name, file.stem) for file in FILES}
WITH_TARGET = [name for name, (choice, _) in OPTIONS.items() if choice not in ("sweep", "device")]


def accepted_by(target):
    """Names of the arguments of a class or function, those of the base classes that take the rest included."""
    return set(inspect.signature(target).parameters) - {"kwargs", "args"}


@pytest.mark.parametrize("name", WITH_TARGET)
def test_entries_are_the_constructors_arguments(name):
    choice, option = OPTIONS[name]
    arguments = accepted_by(locate(CATALOGUE.option(choice, option)["_target_"]))
    given = set(CATALOGUE.parameters(choice, option))
    assert given <= arguments
    if choice in ("attention", "task", "metric", "model"):  # what sweeps vary stands in the file
        assert given == arguments or choice == "metric"


@pytest.mark.parametrize("name", WITH_TARGET)
def test_options_can_be_made(name):
    choice, option = OPTIONS[name]
    config = CATALOGUE.option(choice, option)
    if choice == "model":
        weights = config["weights"]
        if not weights or not (checkpoints.BUNDLED / f"{weights}.safetensors").exists():
            pytest.skip("its weights are not bundled")
    assert instantiate(config) is not None


@pytest.mark.parametrize("name", [name for name, (choice, _) in OPTIONS.items() if choice == "device"])
def test_devices_are_looked_at(name):
    config = CATALOGUE.option("device", OPTIONS[name][1])
    request = {"sys_path": [], "models": {}, "tasks": {}, "attentions": {}, "metrics": {}, "uses": [], "tiling": None}
    facts = answer({**request, "devices": {"it": config}})["devices"]["it"]
    assert facts["refusal"] or (facts["hardware"] and facts["threads"] >= 1)


@pytest.mark.parametrize("name", [name for name, (choice, _) in OPTIONS.items() if choice == "sweep"])
def test_sweeps_expand_to_cells_that_can_be_asked_about(name):
    config, catalogue = compose_config(parse([f"+sweep={OPTIONS[name][1]}"]))
    choices = expand(config["sweep"]["blocks"], Overrides(), catalogue)
    assert choices
    request = request_of(choices, {}, catalogue, [])
    assert request["models"] and request["tasks"] and request["attentions"]
    assert {choice.measure for choice in choices} in (set(USUAL_MEASURES), {"bound"})


def test_all_choices_are_covered():
    assert {choice for choice, _ in OPTIONS.values()} >= {"attention", "device", "metric", "model", "sweep", "task"}
    assert all(isinstance(file, Path) and file.stem == file.stem.lower() for file in FILES)
