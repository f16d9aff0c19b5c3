"""Every file of ``configs/download`` is a download that can be used."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from nystra_bench.configuration import Catalogue, configs_folder
from nystra_bench.fetch import Download, cache_folder, find, names
from nystra_bench.models.checkpoints import sha256

SHARED = Path(__file__).resolve().parents[3] / "shared"
NAMES = names()
COMMON = {"kind": "data", "what": "a set", "page": "https://example.org", "licence": "none"}


@pytest.mark.parametrize("name", NAMES)
def test_entries_are_well_formed(name):
    download = find(name)
    assert download.name == name and re.fullmatch(r"[a-z0-9-]+", name)
    for entry in (download.what, download.licence, download.paper):
        assert entry and entry.strip() == entry and "\n" not in entry
    assert download.page.startswith("https://")
    for item in download.items():
        assert item.url is None or re.fullmatch(r"(https://|pip:[a-z-]+==[0-9.]+/)[^\s?#]+", item.url)
        assert item.size is None or item.size > 0
        if item.url and download.files is None and not download.unpack:
            assert item.url.endswith(f"/{item.file}")
        if download.kind == "backbone":  # PyTorch checks the digits in the file's name in the same way
            assert item.file.endswith(f"-{item.sha256_prefix}.pth")


def test_no_two_downloads_share_a_target_or_an_address(monkeypatch, tmp_path):
    monkeypatch.setenv("NYSTRA_BENCH_CACHE", str(tmp_path))
    for values in (
        [find(name).target for name in NAMES],
        [item.url for name in NAMES for item in find(name).items() if item.url],
        [item.sha256 for name in NAMES for item in find(name).items() if item.sha256],
    ):
        assert max(Counter(values).values()) == 1


def test_all_kinds_and_the_official_swinir_releases_are_there():
    assert {find(name).kind for name in NAMES} == {"weights", "data", "backbone"}
    assert sum("JingyunLiang/SwinIR/releases" in (find(name).url or "") for name in NAMES) >= 31
    assert {"swinir-m-x2", "swinir-s-x4", "swinir-m-denoise25", "uformer-b-sidd", "dehazeformer-t-outdoor"} <= {*NAMES}


def test_models_name_downloads_that_are_there():
    catalogue = Catalogue([configs_folder()])
    weights = [catalogue.option("model", name)["weights"] for name in catalogue.names("model")]
    assert {"swinir-m-x2", "swinir-m-x4", "swinir-s-x2", "swinir-s-x4", "swinir-m-denoise25"} <= {*weights}
    assert all(find(name).kind == "weights" for name in weights if name in NAMES)


@pytest.mark.parametrize(
    "name, files",
    [
        ("set5", {f"Set5/{file}": file for file in find("set5").files}),
        ("cbsd68", {f"CBSD68/gt/{file}": file for file in find("cbsd68").files}),
    ],
)
def test_checksums_are_those_of_the_files_at_hand(name, files):
    folder = SHARED / "data" / "testsets"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    assert {file: sha256(folder / path) for path, file in files.items()} == find(name).files


def test_the_checksum_of_the_dehazer_is_that_of_the_file_at_hand():
    path = SHARED / "weights" / "dehazeformer_outdoor" / "dehazeformer-t.pth"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    download = find("dehazeformer-t-outdoor")
    assert (download.sha256, download.size) == (sha256(path), path.stat().st_size)


def test_the_cache_is_where_the_user_wants_it(monkeypatch, tmp_path):
    monkeypatch.setenv("NYSTRA_BENCH_CACHE", str(tmp_path))
    assert find("swinir-m-x2").target == tmp_path / "weights" / find("swinir-m-x2").file
    assert find("set5").target == tmp_path / "data" / "set5"
    monkeypatch.delenv("NYSTRA_BENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder().name == "nystra_bench"


@pytest.mark.parametrize(
    "entries, told",
    [
        ({"kind": "wights", "file": "a"}, "kind=wights"),
        ({}, "either file or files"),
        ({"file": "a", "files": {"a": None}}, "either file or files"),
        ({"files": {"a": None}, "url": "https://example.org"}, "slash"),
        ({"files": {"a": None}, "unpack": True}, "files is for"),
        ({"kind": "weights", "file": "a", "unpack": True}, "unpack is for"),
        ({"file": "../a"}, "relative path"),
        ({"files": {"/etc/a": None}}, "relative path"),
        ({"file": "a", "sha256": "AB" * 32}, "sha256="),
        ({"file": "a", "sha256_prefix": "12"}, "sha256_prefix="),
    ],
)
def test_a_malformed_entry_is_named(entries, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        Download(**COMMON | entries)
