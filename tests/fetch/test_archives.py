"""Unpacking: what the archive holds, below the folder, or nothing."""

from __future__ import annotations

import random

import pytest
from fetch_archives import contents, tar, zipped

from nystra_bench.errors import UserError
from nystra_bench.fetch.archives import unpack

FORMS = {
    "tar.gz": tar,
    "tar": lambda path, members: tar(path, members, "w"),
    "tar.xz": lambda path, members: tar(path, members, "w:xz"),
    "zip": zipped,
}
MEMBERS = {"top/a.png": b"a" * 5000, "top/inner/b.png": b"b", "read me.txt": b"c", "topping/d": b"d"}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_everything_or_one_member_is_unpacked(tmp_path, form):
    archive = form(tmp_path / "archive", MEMBERS)
    unpack(archive, tmp_path / "all")
    assert contents(tmp_path / "all") == MEMBERS
    unpack(archive, tmp_path / "one", "top")
    assert contents(tmp_path / "one") == {"a.png": b"a" * 5000, "inner/b.png": b"b"}
    with pytest.raises(UserError, match="no files in absent"):
        unpack(archive, tmp_path / "none", "absent")


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/tmp/evil", "..\\evil", "C:/evil"])
@pytest.mark.parametrize("form", [tar, zipped])
def test_a_member_outside_the_folder_is_refused(tmp_path, form, name):
    archive = form(tmp_path / "archive", {name: b"evil"})
    with pytest.raises(UserError, match="outside"):
        unpack(archive, tmp_path / "inside" / "folder")
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path != archive]


def test_a_link_is_not_followed_out_of_the_folder(tmp_path):
    (tmp_path / "outside").mkdir()
    links = {"link": str(tmp_path / "outside"), "file": "/etc/passwd"}
    archive = tar(tmp_path / "archive", {"link/evil": b"evil"}, links=links)
    unpack(archive, tmp_path / "folder")
    assert not list((tmp_path / "outside").iterdir())
    assert contents(tmp_path / "folder") == {"link/evil": b"evil"}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("damage", [lambda whole: b"<html>", lambda whole: b"", lambda whole: whole[: len(whole) // 2]])
def test_a_damaged_archive_is_named(tmp_path, form, damage):
    noise = random.Random(0).randbytes(50_000)  # what cannot be compressed, so that half the archive lacks it
    archive = form(tmp_path / "archive", {"a": noise})
    archive.write_bytes(damage(archive.read_bytes()))
    with pytest.raises(UserError, match="archive"):
        unpack(archive, tmp_path / "folder")
