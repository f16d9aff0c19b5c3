"""Data sets, backbones, files that the user has downloaded, and the command line around them."""

from __future__ import annotations

import hashlib
import importlib.util
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fetch_archives import contents, tar, zipped
from fetch_server import cut, ranged, status

from nystra_bench import fetch
from nystra_bench.errors import UserError
from nystra_bench.fetch.command import main
from nystra_bench.models import checkpoints

IMAGES = {"HR/baby.png": b"baby" * 500, "HR/bird.png": b"bird", "LR/X2/babyx2.png": b"small"}


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def sentence(captured) -> str:
    assert captured.err.startswith("nystra_bench: ") and captured.err.count("\n") == 1
    return captured.err


# --------------------------------------------------------------------------- data sets of several files


@pytest.fixture
def several(server, offer):
    def several(**answers):
        for file, body in IMAGES.items():
            url = server.serve(f"/set/{file}", body, *answers.get(Path(file).stem, [ranged()]))
        base = url.removesuffix("LR/X2/babyx2.png")
        offer("five", kind="data", url=base, files={file: digest(body) for file, body in IMAGES.items()})

    return several


def test_several_files_become_a_folder(server, several, cache, capsys):
    several()
    assert main(["five"]) == 0
    assert contents(cache / "data" / "five") == IMAGES
    assert fetch.cached("five") == cache / "data" / "five"
    assert {path.name for path in (cache / "data").iterdir()} == {"five", "five.lock.json"}
    assert main(["five"]) == 0
    assert "already" in capsys.readouterr().out
    assert len(server.seen) == 3


def test_of_several_files_those_that_came_are_kept_for_the_next_try(server, several, cache):
    several(bird=[cut(2), status(500), status(500), ranged()])
    assert main(["five"]) == 1
    assert not (cache / "data" / "five").exists() and fetch.cached("five") is None
    assert main(["five"]) == 0
    assert contents(cache / "data" / "five") == IMAGES
    assert [path for path, _ in server.seen].count("/set/HR/baby.png") == 1


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"other")])
def test_a_damaged_folder_is_only_replaced_by_force(several, cache, capsys, damage):
    several()
    assert main(["five"]) == 0
    damage(cache / "data" / "five" / "HR" / "bird.png")
    before = contents(cache / "data" / "five")
    capsys.readouterr()
    assert main(["five"]) == 1
    assert "HR/bird.png" in sentence(capsys.readouterr())
    assert contents(cache / "data" / "five") == before
    assert main(["five", "--force"]) == 0
    assert contents(cache / "data" / "five") == IMAGES
    assert {path.name for path in (cache / "data").iterdir()} == {"five", "five.lock.json"}


# --------------------------------------------------------------------------- archives


@pytest.mark.parametrize("form", [tar, zipped])
def test_an_archive_is_unpacked_into_the_folder(server, offer, cache, tmp_path, capsys, form):
    archive = form(tmp_path / "archive", {f"set-main/images/{file}": body for file, body in IMAGES.items()})
    url = server.serve("/archive", archive.read_bytes(), cut(50), ranged())
    offer("set", kind="data", file="archive", url=url, unpack=True, member="set-main/images")
    assert main(["set"]) == 0
    assert digest(archive.read_bytes()) in capsys.readouterr().out
    assert contents(cache / "data" / "set") == IMAGES
    assert {path.name for path in (cache / "data").iterdir()} == {"set", "set.lock.json"}
    assert main(["set"]) == 0
    (cache / "data" / "set" / "HR" / "baby.png").write_bytes(b"other")
    assert main(["set"]) == 1
    assert main(["set", "--force"]) == 0
    assert contents(cache / "data" / "set") == IMAGES


def test_an_archive_that_cannot_be_unpacked_leaves_nothing(server, offer, cache, tmp_path, capsys):
    archive = zipped(tmp_path / "archive.zip", {"../evil": b"evil"})
    offer("set", kind="data", file="a.zip", url=server.serve("/a.zip", archive.read_bytes()), unpack=True)
    assert main(["set"]) == 1
    assert "outside" in sentence(capsys.readouterr())
    assert not contents(cache / "data")


def test_a_folder_of_unknown_origin_is_not_touched(server, offer, cache, tmp_path, capsys):
    archive = zipped(tmp_path / "archive.zip", {"a": b"a"})
    offer("set", kind="data", file="a.zip", url=server.serve("/a.zip", archive.read_bytes()), unpack=True)
    (cache / "data" / "set").mkdir(parents=True)
    (cache / "data" / "set" / "mine").write_bytes(b"mine")
    assert main(["set"]) == 1
    assert "--force" in sentence(capsys.readouterr())
    assert contents(cache / "data" / "set") == {"mine": b"mine"}


# --------------------------------------------------------------------------- backbones


def test_a_backbone_goes_where_torch_looks_for_it(server, offer, checkpoint, tmp_path):
    file = f"net-{digest(checkpoint)[:8]}.pth"
    url = server.serve(f"/{file}", checkpoint)
    offer("net", kind="backbone", file=file, url=url, sha256_prefix=digest(checkpoint)[:8])
    assert main(["net"]) == 0
    loaded = torch.hub.load_state_dict_from_url(url, check_hash=True, progress=False, weights_only=True)
    assert torch.equal(loaded["params"]["a"], torch.arange(2000.0))
    assert len(server.seen) == 1


def test_a_backbone_is_held_to_the_beginning_of_its_checksum(server, offer, checkpoint, capsys):
    url = server.serve("/net.pth", checkpoint)
    offer("net", kind="backbone", file="net.pth", url=url, sha256_prefix="00000000")
    assert main(["net"]) == 1
    assert "begins with 00000000" in sentence(capsys.readouterr())
    assert fetch.cached("net") is None


# --------------------------------------------------------------------------- files that the user has downloaded


def test_what_has_no_address_names_the_page(offer, capsys):
    offer("manual", file="right.pth", what="the model")
    assert main(["manual"]) == 1
    told = sentence(capsys.readouterr())
    assert "the model from https://example.org/page" in told and "fetch manual --from PATH" in told


@pytest.mark.parametrize("known", [True, False])
def test_a_downloaded_file_is_taken_under_the_right_name(offer, cache, checkpoint, tmp_path, capsys, known):
    offer("manual", file="right.pth", sha256=digest(checkpoint) if known else None)
    own = tmp_path / "Uformer_B (1).pth"
    own.write_bytes(checkpoint)
    assert main(["manual", "--from", str(own)]) == 0
    assert (digest(checkpoint) in capsys.readouterr().out) != known
    assert (cache / "weights" / "right.pth").read_bytes() == own.read_bytes() == checkpoint
    assert main(["manual"]) == 0
    assert checkpoints.resolve("manual") == cache / "weights" / "right.pth"


class Executes:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize("content", [b"<html>", b"", pickle.dumps(Executes(), protocol=2)])
def test_a_downloaded_file_that_is_no_safe_checkpoint_is_refused(offer, cache, tmp_path, capsys, content):
    offer("manual", file="right.pth")
    own = tmp_path / "own.pth"
    own.write_bytes(content)
    assert main(["manual", "--from", str(own)]) == 1
    captured = capsys.readouterr()
    assert str(own) in sentence(captured) and "executed" not in captured.out
    assert not list((cache / "weights").iterdir())
    assert own.read_bytes() == content


def test_a_downloaded_file_with_another_checksum_is_refused(offer, cache, checkpoint, tmp_path, capsys):
    offer("manual", file="right.pth", sha256="0" * 64)
    own = tmp_path / "own.pth"
    own.write_bytes(checkpoint)
    assert main(["manual", "--from", str(own)]) == 1
    assert digest(checkpoint) in sentence(capsys.readouterr())
    assert fetch.cached("manual") is None


@pytest.mark.parametrize("name", ["absent.pth", ""])
def test_from_takes_files_that_are_there(offer, cache, tmp_path, capsys, name):
    offer("manual", file="right.pth")
    assert main(["manual", "--from", str(tmp_path / name)]) == 1
    assert "--from=" in sentence(capsys.readouterr())


def test_several_downloaded_files_are_taken_from_their_folder(offer, cache, tmp_path, capsys):
    offer("manual", kind="data", files={"noisy.mat": None, "clean.mat": None})
    own = tmp_path / "own"
    own.mkdir()
    (own / "noisy.mat").write_bytes(b"noisy")
    assert main(["manual", "--from", str(own)]) == 1
    assert "clean.mat" in sentence(capsys.readouterr())
    (own / "clean.mat").write_bytes(b"clean")
    assert main(["manual", "--from", str(own)]) == 0
    assert contents(cache / "data" / "manual") == {"noisy.mat": b"noisy", "clean.mat": b"clean"}


def test_a_file_that_the_user_put_in_place_is_looked_at_and_recorded(offer, cache, checkpoint, capsys):
    offer("manual", file="right.pth")
    (cache / "weights").mkdir(parents=True)
    (cache / "weights" / "right.pth").write_bytes(checkpoint)
    assert main(["manual"]) == 0
    assert digest(checkpoint) in capsys.readouterr().out
    (cache / "weights" / "right.pth").write_bytes(b"other")
    assert main(["manual"]) == 1


# --------------------------------------------------------------------------- the command line


def test_the_list_says_what_is_there(server, offer, checkpoint, capsys):
    offer("here", file="here.pth", url=server.serve("/here.pth", checkpoint), size=len(checkpoint))
    offer("manual", kind="data", file="far.zip", unpack=True)
    assert main(["here"]) == 0
    capsys.readouterr()
    for words in ([], ["--list"], ["manual", "--list"]):
        assert main(words) == 0
        here, manual = capsys.readouterr().out.splitlines()
        assert here.split()[:5] == ["here", "weights", "0.0", "MB", "fetched"]
        assert "by hand" in manual and "size unknown" in manual


@pytest.mark.parametrize(
    "words, told",
    [
        (["manuel"], "did you mean manual?"),
        (["--frm", "x"], "--frm"),
        (["manual", "manual", "--from", "x"], "--from=x"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence(offer, capsys, words, told):
    offer("manual", file="right.pth")
    assert main(words) == 1
    assert told in sentence(capsys.readouterr())


def test_a_cache_that_cannot_be_written_is_one_sentence(offer, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("NYSTRA_BENCH_CACHE", str(tmp_path / "file"))
    offer("manual", file="right.pth")
    assert main(["manual"]) == 1
    assert str(tmp_path / "file") in sentence(capsys.readouterr())


def test_the_script_fetches_a_kind_and_passes_over_what_cannot_be(server, offer, cache, checkpoint, capsys):
    file = Path(__file__).resolve().parents[2] / "scripts" / "fetch.py"
    spec = importlib.util.spec_from_file_location("fetch_script", file)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    offer("absent", file="absent.pth", url=server.serve("/absent.pth", b"", status(404)))
    offer("data", kind="data", file="far.zip", unpack=True)
    offer("here", file="here.pth", url=server.serve("/here.pth", checkpoint))
    offer("manual", file="right.pth")
    assert script.run(["weights"]) == 1
    captured = capsys.readouterr()
    assert "absent.pth" in captured.err and "HTTP 404" in captured.err
    assert "manual is to be got by hand: https://example.org/page" in captured.out
    assert (cache / "weights" / "here.pth").is_file() and "far" not in captured.out
    server.serve("/absent.pth", checkpoint)
    assert script.run(["all"]) == 0
    with pytest.raises(UserError, match="weights, data, backbone, all"):
        script.run(["wights"])


# --------------------------------------------------------------------------- weights by name


def test_fetched_weights_are_resolved_by_name(server, offer, cache, checkpoint):
    offer("thing-x2", file="thing.pth", url=server.serve("/thing.pth", checkpoint))
    with pytest.raises(UserError) as error:
        checkpoints.resolve("thing-x2")
    assert str(error.value) == (
        "model.weights=thing-x2 is not on this machine: run python -m nystra_bench.fetch thing-x2"
    )
    assert not server.seen
    assert main(["thing-x2"]) == 0
    assert checkpoints.resolve("thing-x2") == cache / "weights" / "thing.pth"
    assert list(checkpoints.read_state_dict(checkpoints.resolve("thing-x2"))) == ["a"]


def test_a_data_set_is_no_weights(offer):
    offer("set", kind="data", file="set.zip", unpack=True)
    with pytest.raises(UserError, match="is no file"):
        checkpoints.resolve("set")


def test_cached_of_an_unknown_name_is_none(offer):
    offer("thing", file="thing.pth")
    assert fetch.cached("other") is None and fetch.cached("thing") is None


def test_the_catalogue_is_read_without_the_means_of_fetching():
    heavy = {"requests", "pooch", "torch"}
    code = f"import sys, nystra_bench.fetch as f; f.cached('swinir-m-x2'); print({heavy} & {{*sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
