"""Unpacking: what the archive holds, below the folder, or nothing."""

from __future__ import annotations

import random
import stat
import tarfile
import zipfile

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


# --------------------------------------------------------------------------- hostile and broken archives


ODD = {
    "a file and a member below it": ({"a": b"file", "a/b": b"below"}, "'a/b' lies below another one that is a file"),
    "a folder and a file of its name": ({"a/b": b"first", "a": b"file"}, "'a' lies below .* the name of a folder"),
    "a name of 300 letters": ({"n" * 300: b""}, "'n+…' has a name that no file can have"),
    "a folder of 300 letters": ({"d" * 300 + "/a": b""}, "'d+…' has a name that no file can have"),
    "no name": ({"": b"nameless"}, "'' has no name"),
    "a dot": ({".": b"dot"}, "'.' has no name"),
    "dots": ({"./.": b"dots"}, "'./.' has no name"),
}


@pytest.mark.parametrize("form", [tar, zipped])
@pytest.mark.parametrize("members, why", ODD.values(), ids=ODD)
def test_an_odd_member_is_named(tmp_path, form, members, why):
    if form is zipped and "" in members:  # Python writes none
        archive = form(tmp_path / "archive", {"QQQ": b"nameless"})
        archive.write_bytes(archive.read_bytes().replace(b"QQQ", bytes(3)))
    else:
        archive = form(tmp_path / "archive", members)
    with pytest.raises(UserError, match=f"archive is not unpacked: its member {why}.*; accepted are archives") as error:
        unpack(archive, tmp_path / "folder")
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def with_links(path, members, links):
    """A zip whose links are marked as Unix does it."""
    zipped(path, members)
    with zipfile.ZipFile(path, "a") as bundle:
        for name, target in links.items():
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
            bundle.writestr(info, target)
    return path


@pytest.mark.parametrize("form", [with_links, lambda path, members, links: tar(path, members, "w", links)])
def test_links_are_left_out_and_what_stands_below_their_names_is_a_file(tmp_path, form):
    (tmp_path / "outside").mkdir()
    links = {"link": str(tmp_path / "outside"), "other": "/etc/passwd"}
    unpack(form(tmp_path / "archive", {"link/a": b"a", "b": b"b"}, links), tmp_path / "folder")
    assert contents(tmp_path / "folder") == {"link/a": b"a", "b": b"b"}
    assert not any(path.is_symlink() for path in (tmp_path / "folder").rglob("*"))
    assert not list((tmp_path / "outside").iterdir())


def test_an_archive_of_links_alone_holds_no_files(tmp_path):
    for form in (with_links, lambda path, members, links: tar(path, members, "w", links)):
        with pytest.raises(UserError, match="holds no files"):
            unpack(form(tmp_path / "archive", {}, {"a": "b"}), tmp_path / form.__name__)


def test_pipes_and_devices_of_a_tar_are_left_out(tmp_path):
    with tarfile.open(tmp_path / "archive", "w") as bundle:
        for name, kind in (("pipe", tarfile.FIFOTYPE), ("device", tarfile.CHRTYPE), ("hard", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            bundle.addfile(info)
        bundle.addfile(tarfile.TarInfo("a"))
    unpack(tmp_path / "archive", tmp_path / "folder")
    assert contents(tmp_path / "folder") == {"a": b""}


def test_a_wanted_member_that_is_a_file_is_no_folder_of_files(tmp_path):
    archive = zipped(tmp_path / "archive", {"top": b"file"})
    with pytest.raises(UserError, match="holds no files in top"):
        unpack(archive, tmp_path / "folder", "top")


def test_a_null_in_a_name_is_refused(tmp_path):
    with tarfile.open(tmp_path / "archive", "w", format=tarfile.PAX_FORMAT) as bundle:
        info = tarfile.TarInfo("a")
        info.pax_headers = {"path": "b\0c"}
        bundle.addfile(info)
    with pytest.raises(UserError, match="archive"):
        unpack(tmp_path / "archive", tmp_path / "folder")
