"""Peak memory of a call, above what was taken before it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

_MEMINFO, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def tells_residence(device: str) -> bool:
    """Whether ``peak_taken`` can be read here."""
    if device == "cuda":
        return True
    try:
        _RESET.write_text("5")
    except OSError:
        return False
    return True


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

    It is the second call's peak: what the first leaves for later calls counts, what making that took does not. On a CPU
    as on a GPU it is what PyTorch has allocated, which repeats to the byte. What a process has resident would depend on
    what ran in it before: on the holes in its heap (up to half as much again was seen), and on the size of pages.
    What libraries take for themselves, past PyTorch's allocator, is in neither.
    """
    gc.collect()
    found = _peak_cuda(call) if device == "cuda" else _peak_cpu(call)
    return found / 1e6, "peak allocated by PyTorch above the loaded model"


def _peak_cuda(call: Callable[[], object]) -> float:
    torch.cuda.empty_cache()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return float(torch.cuda.max_memory_allocated() - before)


def _peak_cpu(call: Callable[[], object]) -> float:
    kept = sum(_allocations(call))
    return float(kept + max(accumulate(_allocations(call), initial=0)))


def _allocations(call: Callable[[], object]) -> list[int]:
    """Bytes that PyTorch allocates in a call, and with a minus those that it frees, in their order."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        call()
    results = profiler.profiler.kineto_results
    events = (event for event in results.events() if event.name() == "[memory]")
    return [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]


def peak_taken(call: Callable[[], object], device: str) -> float:
    """Bytes that the process takes from the device in a repeated call: what decides whether the memory suffices.

    More than ``peak_memory`` by what allocators lose between what they hand out. On a CPU the kernel's high-water mark
    of resident memory, where the system tells it (``tells_residence``).
    """
    gc.collect()
    if device == "cuda":
        return _peak_cuda(call)
    _give_back_free_memory()
    before = _resident("VmRSS")
    call()
    _give_back_free_memory()
    _RESET.write_text("5")  # the kernel starts its high-water mark anew
    call()
    return float(_resident("VmHWM") - before)


def _resident(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def _give_back_free_memory() -> None:
    """Return what malloc keeps of freed memory to the system, so that it does not hide what the call takes."""
    with contextlib.suppress(OSError, AttributeError):  # another libc than GNU's keeps less
        ctypes.CDLL(None).malloc_trim(0)
