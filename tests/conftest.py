"""What all tests share: they time on devices without heeding other runs on the machine, or disturbing them."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def locks_of_its_own(tmp_path_factory):
    """The folder of the devices' locks."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("locks")
        patch.setenv("NYSTRA_BENCH_LOCKS", str(folder))
        yield folder
