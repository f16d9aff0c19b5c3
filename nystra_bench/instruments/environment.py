"""What machine and software a number was measured on."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from nystra_bench import baselines
from nystra_bench.instruments.sources import COMPILED

PACKAGES = ("torch", "torchvision", "numpy", "scikit-image", "hydra-core", "pandas", "nystra-bench")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "MKL_NUM_THREADS", "KMP_BLOCKTIME")
KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(256 << 20),
    "THP_MEM_ALLOC_ENABLE": "1",
}
"""Environment of a worker in which glibc keeps freed memory, and PyTorch takes it in large pages.

Without it every temporary of an N x N attention is fetched from the kernel page by page, at every call: exact attention
at window 32 then took 6.7 s instead of 2.3 s, two thirds of it in the kernel, which flatters every replacement.
"""

_MALLOPT = {"trim_threshold": -1, "top_pad": -2, "mmap_max": -4}
_KEEPING = {"mmap_max": 0, "trim_threshold": (1 << 31) - 1, "top_pad": 256 << 20}
_USUAL = {"mmap_max": 65536, "trim_threshold": 128 << 10, "top_pad": 128 << 10}

ROOT = Path(__file__).resolve().parent.parent


@contextlib.contextmanager
def kept_memory() -> Iterator[bool]:
    """Let glibc keep freed memory, as ``KEEP_MEMORY`` does, in a process that is running already: a notebook's, say.

    Yields whether it does: another libc than GNU's takes no such settings. Afterwards glibc's own defaults hold, and
    what was kept is given back.
    """
    try:
        libc = ctypes.CDLL(None)
        set_option, trim = libc.mallopt, libc.malloc_trim
    except (OSError, AttributeError, TypeError):  # TypeError: Windows
        yield False
        return
    try:
        yield all([set_option(_MALLOPT[name], value) for name, value in _KEEPING.items()])
    finally:
        for name, value in _USUAL.items():
            set_option(_MALLOPT[name], value)
        trim(0)


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def usable_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hardware(device: str) -> str:
    """Name of the processor or GPU behind a device, ``cpu`` or ``cuda``."""
    if device == "cpu":
        return cpu_name()
    import torch

    return torch.cuda.get_device_name(0)


def source_digest(plugins: Iterable[str] = ()) -> str:
    """SHA-256 over the sources of the package, of its baselines and of plug-ins: which code measured.

    Also where there is no git.

    Args:
        plugins: folders; all sources below them count, in Python and in what it compiles.
    """
    outside = (path for path in map(Path, baselines.__path__) if not path.is_relative_to(ROOT))
    total = hashlib.sha256()
    for folder in (ROOT, *outside, *map(Path, plugins)):
        for file in sorted(path for ending in (".py", *COMPILED) for path in folder.rglob(f"*{ending}")):
            total.update(f"{file.relative_to(folder.parent)}\n".encode() + file.read_bytes())
    return total.hexdigest()


def git_commit() -> str | None:
    """Commit of the checkout, with ``+changes`` where files differ from it; None outside of a checkout.

    An installed package may lie inside some other project's checkout, whose commit says nothing of it.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT.parent), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    if not (ROOT.parent / ".git").exists():
        return None
    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@lru_cache(maxsize=1)
def environment(plugins: tuple[str, ...] = ()) -> dict:
    """Machine, software and source of this process, folders of plug-ins included."""
    return {
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "variables": {name: os.environ[name] for name in (*KEEP_MEMORY, *THREAD_VARIABLES) if name in os.environ},
        "git_commit": git_commit(),
        "source": source_digest(plugins),
    }
