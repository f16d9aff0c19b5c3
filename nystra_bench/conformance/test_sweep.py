"""Every sweep expands to combinations whose weights, images and devices can be asked about."""

from nystra_bench.cli import Arguments, compose_config
from nystra_bench.sweep.grid import Overrides, expand
from nystra_bench.sweep.plan import Run, request_of


def test_it_expands_to_combinations_that_can_be_asked_about(subject, tested):
    config, catalogue = compose_config(Arguments(sweep=subject.name, search=tested.plugins))
    combinations = expand(config["sweep"]["blocks"], Overrides(), catalogue)
    assert combinations
    request = request_of(combinations, Run(metrics={}, references={}, timing={}))
    for axis in ("model", "task", "attention"):
        needed = any(axis in combination.measurement.needs for combination in combinations)
        assert bool(request[f"{axis}s"]) == needed
