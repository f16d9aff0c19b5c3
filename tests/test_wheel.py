"""What is installed from a wheel works without the checkout: configurations and bundled weights travel with it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import nystra_bench

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the package as its wheel installs it."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(build, check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel)], check=True)
    return folder / "site"


def run(site, folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def test_the_wheel_plans_the_default_sweep(site, tmp_path):
    where = run(site, tmp_path, "-c", "import nystra_bench; print(nystra_bench.__file__)").stdout.strip()
    assert Path(where).is_relative_to(site)
    plan = run(site, tmp_path, "-m", "nystra_bench", "+sweep=denoise", "mode=plan")
    assert plan.returncode == 0, plan.stderr
    assert "nystra(" in plan.stdout
    assert plan.stdout.splitlines()[-1].startswith("denoise: ")


def test_the_wheel_holds_the_baselines(site, tmp_path):
    make = (
        "import sys; from nystra_bench.configuration import Catalogue, configs_folder, instantiate;"
        "attention = instantiate(Catalogue([configs_folder()]).option('attention', 'performer'));"
        "print(sys.modules[type(attention).__module__].__file__, type(attention).__module__)"
    )
    made = run(site, tmp_path, "-c", make)
    assert made.returncode == 0, made.stderr
    file, module = made.stdout.split()
    assert Path(file).is_relative_to(site) and module == "nystra_bench.baselines.performer"
    assert not (site / "baselines").exists()


@pytest.mark.parametrize("name", ["baselines", "configs", "tests"])
def test_folders_of_the_users_own_that_are_called_like_ours(site, tmp_path, name):
    """In the folder that the command is started in, which Python looks into first."""
    (tmp_path / name).mkdir()
    for file in ("__init__.py", "performer.py", "common.py"):
        (tmp_path / name / file).write_text("raise RuntimeError('the wrong one')\n")
    words = ["attention=[exact,performer]", "attention.features=8", "measure=quality", "mode=plan"]
    plan = run(site, tmp_path, "-m", "nystra_bench", "+sweep=denoise", *words)
    assert plan.returncode == 0, plan.stderr
    assert "performer(" in plan.stdout


def test_the_wheel_has_the_packages_version_and_types(site):
    (metadata,) = site.glob("nystra_bench-*.dist-info/METADATA")
    assert f"\nVersion: {nystra_bench.__version__}\n" in metadata.read_text()
    assert (site / "nystra_bench" / "py.typed").is_file()


def test_the_wheel_holds_what_the_report_draws_with(site):
    assert list((site / "nystra_bench" / "report" / "html").glob("*.j2"))
    assert list((site / "nystra_bench" / "weights").glob("*.safetensors"))
    assert (site / "nystra_bench" / "py.typed").is_file()
    choices = {folder.name for folder in (site / "nystra_bench" / "configs").iterdir()}
    assert {"attention", "model", "sweep", "task", "metric"} <= choices


def test_the_wheel_tests_plugins(site, tmp_path):
    (tmp_path / "mine" / "metric").mkdir(parents=True)
    (tmp_path / "mine" / "metric" / "psnr_y.yaml").write_text("_target_: nystra_bench.metrics.psnr.Psnr\n")
    tested = run(site, tmp_path, "-m", "nystra_bench.conformance", "mine")
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert "metric/psnr_y: 9 passed" in tested.stdout
