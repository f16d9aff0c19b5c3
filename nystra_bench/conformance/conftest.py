"""Which options are tested, and what is told of them at the end."""

from __future__ import annotations

import sys
from collections import defaultdict
from dataclasses import fields
from pathlib import Path

import pandas as pd
import pytest

from nystra_bench.configuration import configs_folder
from nystra_bench.conformance.subjects import CHOICES, OptionFolder, Subject
from nystra_bench.conformance.synthetic import CASES, SyntheticStore
from nystra_bench.report.frame import ReportData
from nystra_bench.report.reading import load

TESTED = pytest.StashKey[OptionFolder]()
OUTCOMES = {"passed": "passed", "failed": "failed", "error": "failed", "skipped": "skipped"}
"""What pytest calls an outcome, and what is told."""


def pytest_addoption(parser):
    parser.addoption("--options", metavar="DIR", help="the folder of options to test; default: the project's own")


def pytest_configure(config):
    config.addinivalue_line("markers", "absent_too: runs on options, too, whose images or weights are not here")
    config.addinivalue_line("markers", "choices(*names): the choices whose options the test runs on")
    given = config.getoption("options", None)
    config.stash[TESTED] = OptionFolder(Path(given).resolve() if given else configs_folder())
    sys.path[:0] = map(str, config.stash[TESTED].plugins)


@pytest.fixture(scope="session")
def tested(pytestconfig) -> OptionFolder:
    """The folder under test."""
    return pytestconfig.stash[TESTED]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tensors this small gain nothing from more threads, and lose much where the cores are busy."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", params=CASES)
def data(request, tmp_path_factory) -> ReportData:
    """What tables and figures have to bear."""
    store = SyntheticStore(tmp_path_factory.mktemp("results"))
    CASES[request.param](store)
    return load(store.write(), store.sweep)


@pytest.fixture
def unchanged(data):
    """The data are the same after the test."""
    frames = [f.name for f in fields(data) if isinstance(getattr(data, f.name), pd.DataFrame)]
    before = {name: getattr(data, name).copy(deep=True) for name in frames}
    yield
    for name in frames:
        pd.testing.assert_frame_equal(getattr(data, name), before[name])


def pytest_generate_tests(metafunc):
    """``subject`` is each option of the module's choice; in test_options each of all, or of the choices it marks."""
    if "subject" not in metafunc.fixturenames:
        return
    choice = metafunc.module.__name__.rpartition("test_")[2]
    marked = metafunc.definition.get_closest_marker("choices")
    chosen = marked.args if marked else CHOICES if choice == "options" else (choice,)
    subjects = [subject for name in chosen for subject in metafunc.config.stash[TESTED].subjects(name)]
    ids = [str(subject) if len(chosen) > 1 else subject.name for subject in subjects]
    metafunc.parametrize("subject", subjects, ids=ids, scope="module")


def pytest_runtest_setup(item):
    subject = _subject(item)
    if subject is None:
        return
    item.user_properties.append(("option", str(subject)))
    if item.path.stem == "test_options":  # these tell faults as their own
        return
    subject.require()
    if subject.absent and not item.get_closest_marker("absent_too"):
        pytest.skip(subject.absent)


def _subject(item: pytest.Item) -> Subject | None:
    return item.callspec.params.get("subject") if hasattr(item, "callspec") else None


def pytest_terminal_summary(terminalreporter, config):
    """Of a user's folder, option by option: how many tests ended how, which ones failed, and why some did not run."""
    if not config.stash[TESTED].plugins:
        return
    found: dict[str, dict[str, list]] = defaultdict(lambda: defaultdict(list))
    for outcome, said in OUTCOMES.items():
        for report in terminalreporter.stats.get(outcome, ()):
            for option in (value for name, value in report.user_properties if name == "option"):
                found[option][said].append(report)
    terminalreporter.section("options")
    for option, reports in sorted(found.items()):
        counts = ", ".join(f"{len(reports[said])} {said}" for said in dict.fromkeys(OUTCOMES.values()) if reports[said])
        terminalreporter.write_line(f"{option}: {counts}")
        for line in dict.fromkeys([*map(_failure, reports["failed"]), *map(_reason, reports["skipped"])]):
            terminalreporter.write_line(f"    {line}")


def _failure(report: pytest.TestReport) -> str:
    """The test that failed, without the numbers of its case."""
    return f"failed: {report.location[2].partition('[')[0]}"


def _reason(report: pytest.TestReport) -> str:
    assert isinstance(report.longrepr, tuple)  # as of every test that was skipped
    _, _, reason = report.longrepr
    return f"skipped: {reason.removeprefix('Skipped: ')}"
