"""Fetching over HTTP from a server that truncates, corrupts, times out, redirects and refuses."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import time

import pytest
import torch
from fetch_server import cut, flipped, misplaced, ranged, redirect, slow, stalled, status, unannounced, whole

from nystra_bench.fetch.command import main
from nystra_bench.fetch.transfer import tqdm

FILE = "thing.pth"


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


@pytest.fixture
def known(server, offer, checkpoint):
    """Offers the checkpoint as ``thing``, its checksum known, with the given answers of the server."""

    def known(*answers, **entries):
        url = server.serve(f"/{FILE}", checkpoint, *answers)
        offer("thing", file=FILE, url=url, **({"sha256": digest(checkpoint), "size": len(checkpoint)} | entries))

    return known


@pytest.fixture
def weights(cache):
    return cache / "weights"


def left(folder) -> set[str]:
    """Names of everything in a folder but the fetched file and its record."""
    return {path.name for path in folder.iterdir()} - {FILE, f"{FILE}.lock.json"} if folder.is_dir() else set()


def assert_one_sentence(captured, *parts: str) -> None:
    assert captured.err.startswith("nystra_bench: ") and captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    for part in parts:
        assert part in captured.err


# --------------------------------------------------------------------------- what ends well


@pytest.mark.parametrize(
    "answers, requests",
    [
        ([ranged()], 1),
        ([whole], 1),
        ([unannounced], 1),
        ([status(500), ranged()], 2),
        ([status(503), status(429), whole], 3),
        ([stalled, ranged()], 2),
        ([stalled, whole], 2),
        ([cut(300), ranged()], 2),
        ([cut(300), whole], 2),
        ([cut(0), ranged()], 2),
        ([cut(300), ranged(most=500), ranged()], 3),
        ([cut(300), misplaced, ranged()], 3),
    ],
)
def test_a_file_arrives_whole_in_three_tries(server, known, weights, checkpoint, capsys, answers, requests):
    known(*answers)
    assert main(["thing"]) == 0
    assert (weights / FILE).read_bytes() == checkpoint
    assert len(server.seen) == requests
    assert not left(weights)
    assert "not known" not in capsys.readouterr().out


def test_a_redirect_is_followed(server, known, weights, checkpoint):
    known(redirect("/elsewhere"))
    server.serve("/elsewhere", checkpoint, cut(500), ranged())
    assert main(["thing"]) == 0
    assert (weights / FILE).read_bytes() == checkpoint
    assert server.ranges() == [None, None, "bytes=500-", "bytes=500-"]


def test_an_interrupted_fetch_goes_on_where_it_stood(server, known, weights, checkpoint, capsys):
    known(cut(300), status(500), status(500), ranged())
    assert main(["thing"]) == 1
    assert_one_sentence(capsys.readouterr(), "3 tries", "kept")
    assert (weights / f"{FILE}.part").read_bytes() == checkpoint[:300]
    assert not (weights / FILE).exists()
    assert main(["thing"]) == 0
    assert (weights / FILE).read_bytes() == checkpoint
    assert server.ranges() == [None, "bytes=300-", "bytes=300-", "bytes=300-"]
    assert not left(weights)


def test_control_c_keeps_the_part(server, known, weights, checkpoint, monkeypatch, capsys):
    known(ranged())

    def interrupt(bar, n):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tqdm, "update", interrupt)
        assert main(["thing"]) == 1
    assert_one_sentence(capsys.readouterr(), "interrupted")
    assert (weights / f"{FILE}.part").read_bytes() == checkpoint[:100]
    assert main(["thing"]) == 0
    assert (weights / FILE).read_bytes() == checkpoint
    assert server.ranges() == [None, "bytes=100-"]


def test_a_part_that_is_already_complete_is_taken(server, known, weights, checkpoint):
    known(ranged())
    weights.mkdir(parents=True)
    (weights / f"{FILE}.part").write_bytes(checkpoint)
    assert main(["thing"]) == 0
    assert (weights / FILE).read_bytes() == checkpoint
    assert server.ranges() == [f"bytes={len(checkpoint)}-"]


def test_a_part_longer_than_the_file_is_begun_anew(server, known, weights, checkpoint):
    known(ranged())
    weights.mkdir(parents=True)
    (weights / f"{FILE}.part").write_bytes(checkpoint + b"more")
    assert main(["thing"]) == 0
    assert (weights / FILE).read_bytes() == checkpoint
    assert server.ranges() == [f"bytes={len(checkpoint) + 4}-", None]


def test_a_part_of_an_older_version_is_not_continued(server, known, weights):
    """Without a checksum nothing else would tell: the server is asked whether the file is the same."""
    known(cut(300, ETag='"old"'), status(500), status(500), sha256=None, size=None)
    assert main(["thing"]) == 1
    newer = io.BytesIO()
    torch.save({"b": torch.ones(500)}, newer)
    server.serve(f"/{FILE}", newer.getvalue(), ranged('"new"'))
    assert main(["thing"]) == 0
    assert (weights / FILE).read_bytes() == newer.getvalue()
    assert (server.seen[-1][1]["Range"], server.seen[-1][1]["If-Range"]) == ("bytes=300-", '"old"')


def test_a_part_that_nobody_vouches_for_is_begun_anew(server, known, weights, checkpoint):
    known(ranged(), sha256=None, size=None)
    weights.mkdir(parents=True)
    (weights / f"{FILE}.part").write_bytes(b"x" * 300)
    assert main(["thing"]) == 0
    assert (weights / FILE).read_bytes() == checkpoint
    assert server.ranges() == [None]


def test_two_processes_at_once_fetch_it_once(server, known, weights, checkpoint):
    known(slow)
    fork = multiprocessing.get_context("fork")
    both = [fork.Process(target=lambda: exit(main(["thing"]))) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(20)
    assert [process.exitcode for process in both] == [0, 0]
    assert (weights / FILE).read_bytes() == checkpoint
    assert len(server.seen) == 1
    assert not left(weights)


# --------------------------------------------------------------------------- what does not


@pytest.mark.parametrize(
    "answers, requests, told",
    [
        ([status(404)], 1, "HTTP 404"),
        ([status(403)], 1, "HTTP 403"),
        ([status(500)], 3, "HTTP 500"),
        ([redirect(f"/{FILE}")], 31, "redirects"),
        ([flipped], 1, "SHA-256"),
        ([lambda handler, body: handler.reply(200, b"<html>sign in</html>")], 1, "bytes"),
    ],
)
def test_a_failure_is_one_sentence_and_leaves_nothing(server, known, weights, capsys, answers, requests, told):
    known(*answers)
    assert main(["thing"]) == 1
    assert_one_sentence(capsys.readouterr(), told)
    assert len(server.seen) == requests
    assert not weights.is_dir() or not list(weights.iterdir())


def test_a_server_that_only_stalls_is_given_up(server, known, weights, capsys):
    known(stalled)
    started = time.monotonic()
    assert main(["thing"]) == 1
    assert time.monotonic() - started < 3
    assert_one_sentence(capsys.readouterr(), "3 tries")
    assert left(weights) == {f"{FILE}.part", f"{FILE}.part.tag"}


def test_no_server_at_all(offer, cache, capsys):
    offer("thing", file=FILE, url="http://127.0.0.1:9/thing.pth")
    assert main(["thing"]) == 1
    assert_one_sentence(capsys.readouterr(), "127.0.0.1:9", "3 tries")


def test_after_a_bad_checksum_the_next_fetch_begins_anew(server, known, weights, checkpoint):
    known(flipped, ranged())
    assert main(["thing"]) == 1
    assert main(["thing"]) == 0
    assert (weights / FILE).read_bytes() == checkpoint
    assert server.ranges() == [None, None]


def test_the_proxy_of_the_environment_is_used(server, offer, cache, checkpoint, monkeypatch):
    url = "http://files.example.org/thing.pth"
    server.serve(url, checkpoint)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_address[1]}")
    offer("thing", file=FILE, url=url, sha256=digest(checkpoint))
    assert main(["thing"]) == 0
    assert [path for path, _ in server.seen] == [url]


# --------------------------------------------------------------------------- what is there already


def test_a_file_that_is_there_and_right_is_left_alone(server, known, weights, capsys):
    known(ranged())
    assert main(["thing"]) == 0
    before = (weights / FILE).stat()
    for words in (["thing"], ["thing", "--force"]):
        assert main(words) == 0
        assert "already" in capsys.readouterr().out
    assert (weights / FILE).stat() == before
    assert len(server.seen) == 1


@pytest.mark.parametrize("checksum", ("known", "recorded"))
@pytest.mark.parametrize("damage", (lambda whole: whole[:50], lambda whole: whole[:-1] + b"!"))
def test_a_damaged_file_is_only_replaced_by_force(server, known, weights, checkpoint, capsys, damage, checksum):
    known(ranged(), **({} if checksum == "known" else {"sha256": None, "size": None}))
    assert main(["thing"]) == 0
    (weights / FILE).write_bytes(damage(checkpoint))
    capsys.readouterr()
    assert main(["thing"]) == 1
    assert_one_sentence(capsys.readouterr(), "wrong", "--force")
    assert (weights / FILE).read_bytes() == damage(checkpoint)
    assert len(server.seen) == 1
    assert main(["thing", "--force"]) == 0
    assert (weights / FILE).read_bytes() == checkpoint
    assert main(["thing"]) == 0


def test_force_keeps_the_damaged_file_where_the_fetch_fails(known, weights, checkpoint):
    known(status(404))
    weights.mkdir(parents=True)
    (weights / FILE).write_bytes(b"damaged")
    assert main(["thing", "--force"]) == 1
    assert (weights / FILE).read_bytes() == b"damaged"


# --------------------------------------------------------------------------- trust on first use


def test_an_unknown_checksum_is_told_recorded_and_held_to(server, known, weights, checkpoint, capsys):
    known(ranged(), sha256=None, size=None)
    assert main(["thing"]) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if "not known to this project" in line]
    assert len(told) == 1 and digest(checkpoint) in told[0]
    record = json.loads((weights / f"{FILE}.lock.json").read_text())
    assert record["files"] == {FILE: digest(checkpoint)}
    assert record["sources"][FILE]["size"] == len(checkpoint)
    (weights / FILE).unlink()
    server.serve(f"/{FILE}", checkpoint[:-1] + b"!")
    assert main(["thing"]) == 1
    assert_one_sentence(capsys.readouterr(), "first fetched")
    assert not (weights / FILE).exists()
    server.serve(f"/{FILE}", checkpoint)
    assert main(["thing"]) == 0
    assert "not known" not in capsys.readouterr().out


def test_force_trusts_anew(server, known, weights, checkpoint, capsys):
    known(ranged(), sha256=None, size=None)
    assert main(["thing"]) == 0
    (weights / FILE).unlink()
    record = weights / f"{FILE}.lock.json"
    record.write_text(record.read_text().replace(digest(checkpoint), "0" * 64))
    assert main(["thing"]) == 1
    assert main(["thing", "--force"]) == 0
    assert json.loads(record.read_text())["files"] == {FILE: digest(checkpoint)}


def test_a_page_in_place_of_unknown_weights_is_refused(server, known, weights, capsys):
    known(lambda handler, body: handler.reply(200, b"<html>sign in</html>"), sha256=None, size=None)
    assert main(["thing"]) == 1
    assert_one_sentence(capsys.readouterr(), "no checkpoint")
    assert not list(weights.iterdir())
