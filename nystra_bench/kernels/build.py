"""Building the library of C++ kernels at first use, and keeping it.

One call of the compiler makes it: neither ninja nor setuptools nor Python's headers are needed. The file's name holds a
digest of all that it is made of, so that one of another version, of another PyTorch or for another processor is never
loaded, and it appears under that name only when it is whole.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from filelock import FileLock, Timeout

SOURCES = Path(__file__).resolve().parent / "source"

COMPILERS = ("c++", "g++")
"""Looked for in this order, where the environment variable ``CXX`` names none."""

BUILD_S = 600
"""Seconds after which a compiler, or another process that builds, is not waited for any longer."""

X86 = {
    "AVX2": ["-mavx2", "-mfma", "-mf16c"],
    "AVX512": ["-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mavx2", "-mfma", "-mf16c"],
}
"""Flags for what PyTorch finds the processor capable of."""


class Unbuildable(Exception):
    """There can be no kernels on this machine; the message says why, as one clause."""


def refusal() -> str | None:
    """Why there can be no kernels on this machine, as one clause; None where nothing speaks against it.

    Nothing is built: that the compiler fails is found out by :func:`library` only.
    """
    try:
        if not library_file().exists():
            compiler()
            _writable(folder())
    except Unbuildable as error:
        return str(error)
    return None


def library() -> Path:
    """The library of kernels, which is built now where this machine has none of this version yet.

    Raises:
        Unbuildable: there is no compiler, it fails, the processor is unknown, or the folder cannot be written to.
    """
    file = library_file()
    if file.exists():
        return file
    command = [*compiler(), *flags()]
    _writable(file.parent)
    try:
        with FileLock(file.with_suffix(".lock"), timeout=BUILD_S):
            if not file.exists():  # another process may have built it meanwhile
                _build(command, file)
    except Timeout as error:
        raise Unbuildable(f"another process has been building {file} for more than {BUILD_S} s") from error
    except OSError as error:
        raise _unwritable(file.parent, error) from error
    return file


def folder() -> Path:
    """Where libraries are kept: ``kernels`` below ``NYSTRA_BENCH_CACHE``, or below the user's cache folder."""
    from nystra_bench.fetch.catalogue import cache_folder

    return cache_folder() / "kernels"


def library_file() -> Path:
    """The name of the library of this version, for this PyTorch and this processor."""
    digest = hashlib.sha256()
    for part in (torch.__version__, platform.system(), platform.machine(), *_flags_of_machine()):
        digest.update(f"{part}\n".encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(f"{source.name}\n".encode() + source.read_bytes())
    return folder() / f"kernels-{digest.hexdigest()[:16]}.so"


def compiler() -> list[str]:
    """The command of the C++ compiler.

    Raises:
        Unbuildable: there is none.
    """
    given = os.environ.get("CXX")
    for command in [shlex.split(given)] if given else [[name] for name in COMPILERS]:
        if command and shutil.which(command[0]):
            return command
    looked_for = f"CXX={given}" if given else ", ".join(COMPILERS)
    raise Unbuildable(f"there is no C++ compiler ({looked_for})")


def flags() -> list[str]:
    """All arguments of the compiler but the output."""
    torch_folder = Path(torch.__file__).resolve().parent
    include, lib = torch_folder / "include", torch_folder / "lib"
    # PyTorch's own OpenMP library: a second one beside it would have threads of its own, on the same cores.
    openmp = [str(file) for file in sorted(lib.glob("libgomp*"))[:1]] or ["-lgomp"]
    return [
        *_flags_of_machine(),
        *(f"-I{path}" for path in (include, include / "torch" / "csrc" / "api" / "include")),
        str(SOURCES / "operators.cpp"),
        *(f"-L{lib}", f"-Wl,-rpath,{lib}", "-ltorch_cpu", "-lc10", *openmp),
    ]


def _flags_of_machine() -> list[str]:
    """Those that do not hold a path.

    Raises:
        Unbuildable: the system or the processor is unknown.
    """
    capability, machine = torch.backends.cpu.get_cpu_capability(), platform.machine().lower()
    if sys.platform != "linux":
        raise Unbuildable(f"kernels are built on Linux alone, and this is {platform.system()}")
    if machine in ("x86_64", "amd64") and capability in X86:
        of_processor = [f"-DCPU_CAPABILITY={capability}", f"-DCPU_CAPABILITY_{capability}", *X86[capability]]
    elif machine in ("aarch64", "arm64"):
        of_processor = ["-DCPU_CAPABILITY=DEFAULT", "-DCPU_CAPABILITY_DEFAULT"]  # NEON, which all of them have
    else:
        raise Unbuildable(f"the processor ({machine}, {capability}) has none of AVX2, AVX512 and NEON")
    abi = int(torch.compiled_with_cxx11_abi())
    usual = ["-shared", "-fPIC", "-O3", "-std=c++20", "-DNDEBUG", "-fno-math-errno", "-fopenmp", "-w"]
    return [*usual, f"-D_GLIBCXX_USE_CXX11_ABI={abi}", *of_processor]


def _build(command: list[str], file: Path) -> None:
    """Compile into a file of its own, which then takes the library's name."""
    unfinished = file.with_suffix(f".{os.getpid()}.new")
    try:
        done = subprocess.run(
            [*command, "-o", str(unfinished)], capture_output=True, text=True, errors="replace", timeout=BUILD_S
        )
        if done.returncode:
            raise Unbuildable(f"{command[0]} failed with {_first_error(done.stderr) or f'status {done.returncode}'}")
        unfinished.replace(file)
    except subprocess.TimeoutExpired as error:
        raise Unbuildable(f"{command[0]} was not done after {BUILD_S} s") from error
    finally:
        unfinished.unlink(missing_ok=True)


def _first_error(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line), lines[-1] if lines else "")[:200]


def _writable(place: Path) -> None:
    """Make a folder.

    Raises:
        Unbuildable: nothing can be written there.
    """
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(place, error) from error
    if not os.access(place, os.W_OK | os.X_OK):
        raise Unbuildable(f"{place} cannot be written to")


def _unwritable(place: Path, error: OSError) -> Unbuildable:
    return Unbuildable(f"{place} cannot be written to ({error.strerror or type(error).__name__})")
