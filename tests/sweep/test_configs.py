"""The project's own configuration files, beyond what the conformance tests hold each of them to."""

from nystra_bench.cli import Arguments, compose_config
from nystra_bench.configuration import Catalogue, configs_folder
from nystra_bench.conformance.command import HERE
from nystra_bench.conformance.subjects import CHOICES, OptionFolder
from nystra_bench.sweep.grid import DEFAULTS, Overrides, expand

OWN = OptionFolder(configs_folder())


def test_every_file_is_an_option_of_a_known_choice():
    files = list(configs_folder().glob("*/**/*.yaml"))
    assert {file.relative_to(configs_folder()).parts[0] for file in files} <= set(CHOICES)
    assert len(files) == sum(len(OWN.subjects(choice)) for choice in CHOICES)
    assert all(file.stem == file.stem.lower() for file in files)


def test_the_conformance_tests_find_the_options_that_everything_else_stands_on():
    assert {"exact", "sdpa", "identity", "nystra"} <= {subject.name for subject in OWN.subjects("attention")}
    for choice in ("attention", "device", "figure", "measure", "metric", "model", "sweep", "table", "task"):
        assert OWN.subjects(choice) and (HERE / f"test_{choice}.py").is_file()


def test_sweeps_measure_what_is_usual_or_one_thing_and_what_it_costs():
    """Those of the paper's tables apart, which have timings and quality on different models."""
    for subject in (subject for subject in OWN.subjects("sweep") if not subject.name.startswith("paper/")):
        config, catalogue = compose_config(Arguments(sweep=subject.name))
        combinations = expand(config["sweep"]["blocks"], Overrides(), catalogue)
        measures = {c.measure.name for c in combinations}
        assert measures == set(DEFAULTS["measure"]) or len(measures - {"memory"}) == 1


def test_a_file_is_read_anew_once_it_is_changed_and_what_is_done_to_its_content_stays_there(tmp_path):
    (tmp_path / "attention").mkdir()
    file = tmp_path / "attention" / "mine.yaml"
    file.write_text("_target_: mine.Mine\nsizes: [1, 2]\n")
    Catalogue([tmp_path]).option("attention", "mine")["sizes"].append(3)
    assert Catalogue([tmp_path]).option("attention", "mine")["sizes"] == [1, 2]
    file.write_text("_target_: mine.Mine\nsizes: [1, 2, 4]\n")
    assert Catalogue([tmp_path]).option("attention", "mine")["sizes"] == [1, 2, 4]
