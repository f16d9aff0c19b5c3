"""A catalogue of downloads that points to a local server."""

from __future__ import annotations

import io
import threading

import pytest
import torch
import yaml
from fetch_server import Server

from nystra_bench.fetch import catalogue, transfer


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Folders of this test alone, short waits, small pieces, and no proxy between the tests and their server."""
    monkeypatch.setenv("NYSTRA_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(transfer, "BACKOFF", 0.0)
    monkeypatch.setattr(transfer, "TIMEOUT", (1.0, 0.2))
    monkeypatch.setattr(transfer, "_PIECE", 100)
    return tmp_path / "cache"


@pytest.fixture
def offer(tmp_path, cache, monkeypatch):
    """Adds a download to a catalogue that holds these alone."""
    folder = tmp_path / "configs" / "download"
    folder.mkdir(parents=True)
    monkeypatch.setattr(catalogue, "configs_folder", lambda: folder.parent)
    common = {"kind": "weights", "what": "a thing", "page": "https://example.org/page", "licence": "none"}

    def offer(name: str, **entries: object) -> None:
        content = {"_target_": "nystra_bench.fetch.Download", **common, **entries}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))

    return offer


@pytest.fixture
def checkpoint() -> bytes:
    """A small .pth file."""
    buffer = io.BytesIO()
    torch.save({"params": {"a": torch.arange(2000.0)}}, buffer)
    return buffer.getvalue()
