"""A process that is killed while it puts a result in place loses neither the old nor the new one."""

import os

import pytest

from nystra_bench.sweep.cell import Cell
from nystra_bench.sweep.store import Store

CELL = Cell.of({"measure": "quality", "attention": {"name": "exact"}})
CALLS = ("fsync", "mkdir", "open", "remove", "rename", "replace", "rmdir", "unlink")


class Killed(BaseException):
    pass


@pytest.fixture
def killed_at(monkeypatch):
    """Runs a call so that the process seems to be killed at its n-th change of the disk: no change comes after it.

    Returns whether it was.
    """

    def run(n, call):
        made = 0

        def dying(original):
            def changing(*arguments, **more):
                nonlocal made
                made += 1
                if made >= n:
                    raise Killed
                return original(*arguments, **more)

            return changing

        with monkeypatch.context() as patch:
            for name in CALLS:
                patch.setattr(os, name, dying(getattr(os, name)))
            try:
                call()
            except Killed:
                return True
        return False

    return run


def attach(content):
    return lambda folder: (folder / "output.npz").write_bytes(content)


def save_old(store):
    store.save(CELL, {"n": "old"}, attach=attach(b"old"), status="unstable", reason="spread")
    store.fail(CELL, "crashed", "between")
    (store.folder / CELL.key / "of_an_old_version").mkdir()
    (store.folder / CELL.key / "of_an_old_version" / "file").touch()
    store.journal(CELL).append({"image": 1})


def save_new(store):
    store.save(CELL, {"n": "new"}, attach=attach(b"new"), status="done", reason=None)


def found(store):
    result = Store(store.folder).result(CELL.key)
    return result and result["value"]["n"]


def files(store):
    return sorted(path.name for path in (store.folder / CELL.key).iterdir())


def test_an_unstable_result_is_there_until_the_new_one_is(tmp_path, killed_at):
    seen, n = [], 0
    while True:
        n += 1
        store = Store(tmp_path / str(n) / "store")
        save_old(store)
        killed = killed_at(n, lambda: save_new(store))  # noqa: B023
        seen.append(found(store))
        with Store(store.folder).lock():
            assert found(store) == seen[-1]
        assert not list(store.folder.rglob(".new-*"))
        if not killed:
            break
        save_new(store)  # as the run that tries again
        if seen[-1] == "old":
            assert files(store) == ["output.npz", "result.json"]
            assert (store.folder / CELL.key / "output.npz").read_bytes() == b"new"
        assert found(store) == "new"
    assert files(store) == ["output.npz", "result.json"]
    assert set(seen) == {"old", "new"}
    assert seen == sorted(seen, reverse=True)  # first the old one, then the new one
    assert seen.count("old") > 5


@pytest.mark.parametrize("before", ["nothing", "failure", "journal"])
def test_a_first_result_is_whole_or_not_there(tmp_path, killed_at, before):
    seen, n = [], 0
    while True:
        n += 1
        store = Store(tmp_path / str(n) / "store")
        if before == "failure":
            store.fail(CELL, "oom", "too large")
        elif before == "journal":
            store.journal(CELL).append({"image": 1})
        killed = killed_at(n, lambda: save_new(store))  # noqa: B023
        with Store(store.folder).lock():
            seen.append(found(store))
        assert not list(store.folder.rglob(".new-*"))
        if seen[-1] is None:
            expected = ("oom", "too large") if before == "failure" else ("missing", None)
            assert Store(store.folder).status(CELL.key) == expected
            if before == "journal":
                assert Store(store.folder).journal(CELL).records() == [{"image": 1}]
        else:
            assert (store.folder / CELL.key / "output.npz").read_bytes() == b"new"
        if not killed:
            break
    assert files(store) == ["output.npz", "result.json"]
    assert seen[0] is None and seen[-1] == "new"
