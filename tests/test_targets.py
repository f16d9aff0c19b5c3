"""A configuration names what options stand for; whatever else Python can import is not called."""

import pytest

from nystra_bench.configuration import instantiate, locate
from nystra_bench.errors import UserError
from nystra_bench.models.untrained import load_untrained
from nystra_bench.targets import check_target

PLUGIN = """
from shutil import rmtree
from torch import nn

def load(path, **others):
    return nn.Identity()

class Net(nn.Module):
    pass

class Nothing:
    pass
"""


@pytest.fixture
def precious(tmp_path):
    folder = tmp_path / "precious"
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("target", "argument"),
    [
        ("os.rmdir", "path"),
        ("shutil.rmtree", "path"),
        ("nystra_bench.sweep.files.remove", "path"),
        ("torch.hub.load", "repo_or_dir"),
        ("builtins.open", "file"),
        ("subprocess.Popen", "args"),
        ("functools.partial", "func"),
    ],
)
def test_other_callables_are_refused_and_not_called(precious, target, argument):
    with pytest.raises(UserError, match="nothing that an option may stand for: accepted are subclasses of") as caught:
        instantiate({"_target_": target, argument: str(precious)})
    assert f"_target_={target}" in str(caught.value) and "\n" not in str(caught.value)
    assert precious.is_dir()


def test_what_a_plug_in_defines_is_told_from_what_it_imports(precious, tmp_path, monkeypatch):
    (tmp_path / "plugin_of_targets.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    assert instantiate({"_target_": "plugin_of_targets.load", "path": "x"}) is not None
    check_target("Net", locate("plugin_of_targets.Net"))
    for name in ("rmtree", "Nothing"):
        with pytest.raises(UserError, match=f"_target_=plugin_of_targets.{name} is nothing"):
            instantiate({"_target_": f"plugin_of_targets.{name}", "path": str(precious)})
    assert precious.is_dir()


def test_an_architecture_is_a_class_of_modules():
    with pytest.raises(UserError, match="model.architecture=pathlib.Path is no class of PyTorch modules"):
        load_untrained("pathlib.Path", {})
