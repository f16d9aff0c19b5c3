"""Words of the command line: names and paths as they are written, lists, numbers, interpolations; what is refused."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.types import QuotedString
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st

from nystra_bench import cli
from nystra_bench.arguments import parse, read, read_parameters
from nystra_bench.cli import compose_config
from nystra_bench.configuration import Catalogue, configs_folder
from nystra_bench.errors import UserError

ODD = ["ä", "~x", "epoch=99.ckpt", "#", "()", "a (b)", "a[1]", "it's", 'say "x"', "a:b", "$HOME", "100%", "{x}"]
ODD += ["é 日本", "1.10", "2024_11", "1e3", "true", "TRUE", "off", "nan", "inf", "0x10", "007", "-1", "1_000.0", "*"]
ODD += ["?", "a=b=c", "\\", "a\\", "\\'"]


def composed(*words):
    config, _ = compose_config(parse(["+sweep=denoise", *words]))
    return config


def setting(word):
    """What Hydra makes of the word that it is given for a setting."""
    (for_hydra,) = parse([word]).settings
    value = read(for_hydra).value()
    return value.text if isinstance(value, QuotedString) else value


def parameter(word):
    arguments = parse([word])
    read_parameters(arguments, Catalogue([configs_folder()]))
    ((read,),) = [values.values() for values in arguments.overrides.parameters.values()]
    return read


@pytest.mark.parametrize("text", [*ODD, "a,b", "a, b"])
def test_settings_that_are_text_keep_their_text(text):
    assert setting(f"results={text}") == setting(f"name={text}") == text


def test_settings_that_are_text_come_through_hydra():
    config = composed("results=it's {a}, \\'b' #1", "name=1.10")
    assert (config["results"], config["name"]) == ("it's {a}, \\'b' #1", "1.10")
    assert composed("name=null")["name"] is None


@settings_of_hypothesis(deadline=None, max_examples=50)
@given(st.text(st.characters(exclude_characters="\0\n\r$/", exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_any_name_of_a_folder_can_be_given(text):
    text = text.strip()
    if text and text != "null" and not text.startswith(("[", "'", '"')):
        assert setting(f"name={text}") == text


@pytest.mark.parametrize("option", ["task.images", "task.root", "model.weights", "task.degraded_name"])
@pytest.mark.parametrize("text", ODD)
def test_parameters_that_are_text_keep_their_text(option, text):
    (read,) = parameter(f"{option}={text}")
    assert str(read) == text
    assert read == text or (option, text) == ("task.root", "-1")  # null in the files, and a number: nothing is imported


def test_a_home_folder_is_put_in():
    home = str(Path.home())
    assert parameter("task.images=~/pics") == [f"{home}/pics"]
    assert parameter("task.images=[~/a,'~/b',c]") == [f"{home}/a", f"{home}/b", "c"]
    assert parse(["plugins=~/mine"]).search == [Path.home() / "mine"]


@pytest.mark.parametrize("option", ["task.images", "model.weights", "task.root"])
def test_a_variable_is_put_in_everywhere(option, monkeypatch):
    monkeypatch.setenv("PICTURES", "/data/p 1")
    assert parameter(f"{option}=${{oc.env:PICTURES}}/x") == ["/data/p 1/x"]
    assert parameter(f"{option}=[${{oc.env:PICTURES}},y]") == ["/data/p 1", "y"]
    assert composed("results=${oc.env:PICTURES}/r")["results"] == "/data/p 1/r"
    monkeypatch.setenv("MARKS", "8")
    assert parameter("attention.landmarks=[${oc.env:MARKS},16]")[1] == 16
    with pytest.raises(UserError, match=r"task.images=\$\{oc.env:NOWHERE\}.*cannot be resolved"):
        parameter("task.images=${oc.env:NOWHERE}")


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("task.images=[a,b]", ["a", "b"]),
        ("task.images='a,b'", ["a,b"]),
        ('task.images="a,b"', ["a,b"]),
        ("task.images=['a, b',c d]", ["a, b", "c d"]),
        ("task.images='it\\'s'", ["it's"]),
        ("task.images='[a]'", ["[a]"]),
        ("task.root=null", [None]),
        ("task.root='null'", ["null"]),
        ("task.limit=null", [None]),
        ("task.limit=10", [10]),
        ("attention.landmarks=[8,16]", [8, 16]),
        ("attention.landmarks=8,16", [8, 16]),
        ("attention.landmarks=range(1,4)", [1, 2, 3]),
        ("attention.guard=1e1", [10.0]),
        ("attention.guard=inf", [float("inf")]),
        ("attention.init=[global,matrix]", ["global", "matrix"]),
        ("attention.exact_diagonal=[true,false]", [True, False]),
        ("attention.target_deviation=[45,null]", [45, None]),
        ("model.expect={dim: 180}", [{"dim": 180}]),
    ],
)
def test_values_of_parameters(word, values):
    assert parameter(word) == values


@pytest.mark.parametrize(
    ("word", "axis", "values"),
    [
        ("attention=exact,nystra", "attention", ["exact", "nystra"]),
        ("attention=[exact, nystra]", "attention", ["exact", "nystra"]),
        ("attention=1.10", "attention", ["1.10"]),
        ("attention={name: nystra, landmarks: [8,16]}", "attention", [{"name": "nystra", "landmarks": [8, 16]}]),
        ("window_size=[native,32]", "window_size", ["native", 32]),
        ("dtype=float32", "dtype", ["float32"]),
    ],
)
def test_values_of_axes(word, axis, values):
    assert parse([word]).overrides.axes == {axis: values}


def test_lists_of_names_need_no_brackets():
    assert composed("metrics=psnr,ssim")["metrics"] == composed("metrics=[psnr,ssim]")["metrics"] == ["psnr", "ssim"]
    assert composed("metrics=psnr")["metrics"] == ["psnr"]
    assert composed("metrics=all")["metrics"] == "all"
    assert composed("figures=[]")["figures"] == []


REFUSED = [
    ("task.images=a,b", ["task.images=a,b", "comma", "task.images=[a,b]", "\"task.images='a,b'\""]),
    ("model.weights=a.pth,b.pth", ["model.weights=[a.pth,b.pth]", "two kinds of quotes"]),
    ("plugins=a,b", ["plugins=a,b", "plugins=[a,b]"]),
    ("results=[a]", ["results=[a]", "list"]),
    ("name=[]", ["name=[]", "list"]),
    ("task.images=[]", ["task.images=[]", "no value"]),
    ("+sweep=denoise,deblur", ["+sweep=denoise,deblur", "2 sweeps", "include"]),
    ("sweep=[denoise,deblur]", ["sweep=[denoise,deblur]", "2 sweeps"]),
    ("+sweep=", ["+sweep=", "0 sweeps"]),
    ("seed=1,2", ["seed=1,2", "several values", "attention=[exact,nystra]"]),
    ("mode=run,plan", ["mode=run,plan", "several values"]),
    ("tile=range(1,3)", ["tile=range(1,3)", "several values"]),
    ("timing.rounds=3,4", ["timing.rounds=3,4", "several values"]),
    ("attention=[exact", ["attention=[exact", "option=value"]),
    ("window_size=[8", ["window_size=[8", "two kinds of quotes"]),
    ("tile=)", ["tile=)", "option=value"]),
    ("denoise", ["denoise", "option=value"]),
    ("=5", ["=5", "option=value"]),
    ("~mode", ["~mode", "option=value"]),
    ("mode@here=plan", ["mode@here=plan", "option=value"]),
    ("", ["option=value"]),
]


@pytest.mark.parametrize(("word", "parts"), REFUSED)
def test_what_is_refused_is_told_with_the_form_that_works(word, parts):
    with pytest.raises(UserError) as caught:
        parameter(word) if "." in word.partition("=")[0] else parse([word])
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 3000, "1" * 400])
def test_values_beyond_all_measure(value):
    with pytest.raises(UserError):
        composed(f"seed={value}")


LIMITS = {
    "timing.rounds": 10_000,
    "timing.min_rounds": 10_000,
    "timing.budget_s": 604_800,
    "timing.warmup_s": 3_600,
    "timing.min_sample_ms": 60_000,
    "tile": 65_536,
    "timeout_s": 1_000_000,
    "seed": 2**32 - 1,
}


@pytest.fixture(scope="module")
def settings():
    return composed()


@pytest.mark.parametrize("option", LIMITS)
def test_numbers_have_an_upper_limit(option, settings):
    group, _, name = option.rpartition(".")
    changed = copy.deepcopy(settings)
    place = changed[group] if group else changed
    place[name] = LIMITS[option]
    cli._check_values(changed)
    for value in (LIMITS[option] + 1, 10**12, 10**400, 1e300, float("inf"), float("nan"), True, -1, "x", [], None, ""):
        if option == "tile" and value is None:
            continue
        place[name] = value
        with pytest.raises(UserError) as caught:
            cli._check_values(changed)
        assert f"{option}=" in str(caught.value), value
        assert "accepted are" in str(caught.value) and "up to" in str(caught.value), value


def test_a_number_beyond_its_limit_as_a_user_sees_it():
    with pytest.raises(UserError, match="timing.min_rounds=1000000000 is out of range: .* from 1 on, up to 10000"):
        composed("timing.min_rounds=1000000000")
    with pytest.raises(UserError, match=r"timing.min_sample_ms=1e\+300 is out of range"):
        composed("timing.min_sample_ms=1e300")


@pytest.mark.parametrize("option", ["results", "name"])
def test_names_that_no_file_system_takes(option):
    with pytest.raises(UserError) as caught:
        composed(f"{option}={'ä' * 150}")
    assert f"{option}=ä" in str(caught.value) and "300 bytes" in str(caught.value) and "255" in str(caught.value)
    assert composed(f"{option}={'a' * 255}")[option] == "a" * 255


# ------------------------------------------------------------------ flags


@pytest.fixture
def answered(capsys):
    def run(*words):
        code = cli.main(list(words))
        return code, *capsys.readouterr()

    return run


def test_cfg_prints_what_a_run_would_have(answered, tmp_path):
    for words in (("--cfg", "job", "seed=7"), ("seed=7", "-c", "job"), ("seed=7", "--cfg=job")):
        code, out, err = answered("+sweep=denoise", "name=1.10", "attention.landmarks=[8,16]", *words)
        assert (code, err) == (0, "")
        shown = yaml.safe_load(out)
        assert shown["seed"] == 7 and shown["name"] == "1.10" and shown["timing"]["rounds"] == 20
        assert shown["given"]["parameters"] == {"attention": {"landmarks": [8, 16]}}
        assert shown["sweep"]["blocks"]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--multirun"], ["--multirun", "lists", "attention=[exact,nystra]"]),
        (["-m"], ["-m is", "lists"]),
        (["--cfg"], ["--cfg", "--cfg job"]),
        (["--cfg", "hydra"], ["--cfg hydra", "--cfg job"]),
        (["--cfg=all"], ["--cfg all", "--cfg job"]),
        (["--config-dir", "mine"], ["--config-dir", "plugins=[DIR]"]),
        (["--config-name=x"], ["--config-name", "option=value"]),
        (["--info"], ["--info", "--help"]),
        (["--resolve"], ["--resolve", "--cfg job"]),
        (["--hydra-help"], ["--hydra-help", "--help"]),
        (["-p", "x"], ["-p is", "option=value"]),
        (["--sweep=denoise"], ["--sweep", "option=value"]),
        (["-5"], ["-5", "option=value"]),
        (["--"], ["-- is", "option=value"]),
    ],
)
def test_hydras_other_flags_are_answered_in_a_sentence(answered, words, parts):
    code, out, err = answered("+sweep=denoise", "mode=plan", *words)
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    for part in parts:
        assert part in err


def test_help_and_version(answered):
    code, out, err = answered("+sweep=denoise", "--help")
    assert (code, err) == (0, "") and "--cfg job" in out and "+sweep=NAME" in out
    assert answered("-h")[:2] == (0, out)
    assert answered("--version") == (0, f"nystra_bench {cli.__version__}\n", "")


# ------------------------------------------------------------------ Windows


def test_windows_is_refused_in_a_sentence(answered, monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    code, out, err = answered("+sweep=denoise", "mode=plan")
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert "Windows is not supported" in err and "WSL" in err
    assert answered("--help")[0] == 0


POSIX_ONLY = ("fcntl", "resource", "termios", "pwd", "grp", "pty", "syslog", "readline")


def test_nothing_is_imported_that_windows_lacks():
    """All modules but kernels in Triton, in a process where those are as absent as there."""
    code = f"""\
import os, pkgutil, sys
for name in {POSIX_ONLY}:
    sys.modules[name] = None
for name in ("sched_getaffinity", "pidfd_open", "set_blocking", "fork"):
    hasattr(os, name) and delattr(os, name)
import numpy, scipy, torch  # whose own business it is what they do without them
import nystra_bench
ours = [m.name for m in pkgutil.walk_packages(nystra_bench.__path__, "nystra_bench.") if "conformance" not in m.name]
ours = [name for name in ours if not name.endswith("__main__") and not name.startswith("nystra_bench.kernels.gpu.")]
for name in ours:
    __import__(name)
print(len(ours))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100
