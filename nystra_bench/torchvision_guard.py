"""Makes ``import torchvision`` work beside a CPU-only torch.

PyPI's torchvision is built for CUDA. Beside a CPU build of torch its compiled library does not load, and then the
import itself fails with "operator torchvision::nms does not exist", because two shape functions are registered for
operators that nobody declared. Declaring their schemas first is enough: nothing here calls these operators.
Where torchvision's own library loads, nothing is done. Import this module before torchvision, and before lpips,
torch-fidelity and spandrel, which import it.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_library: torch.library.Library | None = None


def _own_library_loads() -> bool:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True  # no torchvision: nothing to guard
    for file in sorted(Path(spec.origin).parent.glob("_C*.so")) + sorted(Path(spec.origin).parent.glob("_C*.pyd")):
        try:
            torch.ops.load_library(str(file))
        except OSError:
            continue
        return True
    return False


def install() -> bool:
    """Declare the missing operators once; returns whether that was needed."""
    global _library
    if _library is not None:
        return True
    if _own_library_loads():
        return False
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in _SCHEMAS.items():
        if not torch._C._dispatch_has_kernel(f"torchvision::{name}"):
            _library.define(name + schema)
    return True


install()
