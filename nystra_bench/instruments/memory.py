"""Peak memory of a call, above what was taken before it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

import torch

_MEMINFO, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def available(device: str) -> str | None:
    """Why peak memory cannot be measured here; None where it can."""
    if device == "cuda":
        return None
    try:
        _RESET.write_text("5")
    except OSError:
        return "peak memory on the CPU is read from /proc/self, which this system does not offer"
    return None


def free_memory(device: str) -> float | None:
    """Bytes that this process may still take: of the GPU, or of the machine within its control group's limit.

    What it has freed and its allocator keeps (``environment.KEEP_MEMORY``) is counted, too: it is taken again first.
    None where the system does not tell.
    """
    if device == "cuda":
        return float(torch.cuda.mem_get_info()[0])
    found = [_meminfo("MemAvailable"), _control_group_rest()]
    left = min((value for value in found if value is not None), default=None)
    return None if left is None else left + kept_memory()


def kept_memory() -> float:
    """Bytes that this process has freed and glibc keeps for it, by ``mallinfo2``; 0 where there is no such call."""
    try:
        tell = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError):
        return 0.0
    tell.restype = _MallocInfo
    return float(tell().fordblks)


class _MallocInfo(ctypes.Structure):
    """``struct mallinfo2`` of malloc.h; ``fordblks`` is the free space of all arenas."""

    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
    )]  # fmt: skip


def _meminfo(field: str) -> float | None:
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return None
    return next((float(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":")), None)


def _control_group_rest() -> float | None:
    """What a container's limit leaves, file caches counted as free; None where there is no limit."""
    try:
        limit, used = ((_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        cached = next(line for line in (_CGROUP / "memory.stat").read_text().splitlines() if line.startswith("file "))
    except (OSError, StopIteration):
        return None
    return None if limit == "max" else float(limit) - float(used) + float(cached.split()[1])


def peak_memory(call: Callable[[], object], device: str) -> tuple[float, str]:
    """Peak memory of a repeated call in MB (10^6 bytes) above the state before the first, and how it was read.

    It is the second call's peak: what the first leaves for later calls counts, what making that took does not.
    """
    gc.collect()
    return _peak_cuda(call) if device == "cuda" else _peak_cpu(call)


def _peak_cuda(call: Callable[[], object]) -> tuple[float, str]:
    torch.cuda.empty_cache()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6, "peak allocated by PyTorch above the loaded model"


def _peak_cpu(call: Callable[[], object]) -> tuple[float, str]:
    _give_back_free_memory()
    before = _resident("VmRSS")
    call()
    _give_back_free_memory()
    _RESET.write_text("5")  # the kernel starts its high-water mark anew
    call()
    return (_resident("VmHWM") - before) / 1e6, "peak resident set size above the loaded model"


def _resident(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def _give_back_free_memory() -> None:
    """Return what malloc keeps of freed memory to the system, so that it does not hide what the call takes."""
    with contextlib.suppress(OSError, AttributeError):  # another libc than GNU's keeps less
        ctypes.CDLL(None).malloc_trim(0)
