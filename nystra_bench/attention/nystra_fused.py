"""PnP-Nystra as published, in one pass over each window and head, by a kernel in C++."""

from __future__ import annotations

from torch import Tensor

from nystra_bench.attention.base import Window
from nystra_bench.attention.implementation import DEFAULT, Implementation, Kernel, rows_together, windows_of
from nystra_bench.attention.landmarks import landmark_grid
from nystra_bench.attention.nystra import NystraAttention


class FusedNystraAttention(NystraAttention):
    """``nystra``, with a kernel that keeps all that it makes of a window and head in the processor's caches.

    It gives what the eager form gives, but for rounding; ``A^+ (k(Q'K^T) V)`` is formed first, where the published code
    forms ``k(QK'^T) A^+`` first.

    Args:
        implementation: ``fused`` is the kernel, ``eager`` the form of ``nystra``, ``auto`` the kernel where it can run.
            Its library is built at first use, which ``setup_ms`` counts.

    All others are those of ``nystra``.

    Raises:
        ValueError: a parameter is out of its range.
        UserError: ``implementation=fused`` where there can be no kernel.
    """

    def __init__(
        self,
        landmarks: int = 16,
        iterations: int = 2,
        init: str = "global",
        guard: float = 5.0,
        implementation: str = DEFAULT,
    ):
        super().__init__(landmarks, iterations, init, guard)
        self.implementation = implementation
        self._form = Implementation(implementation, "nystra", {"cpu": _flops})

    def about(self) -> dict[str, str]:
        return self._form.about()

    def forward(self, q: Tensor, k: Tensor, v: Tensor, window: Window) -> Tensor:
        kernel = self._form.operator(q, k, v, window)
        if kernel is None:
            return super().forward(q, k, v, window)
        return self._on_cpu(kernel, q, k, v, window, None, 1.0)

    def reads_maps(self, x: Tensor, window: Window) -> bool:
        return self._form.reads_maps(x, window)

    def forward_map(self, q: Tensor, k: Tensor, v: Tensor, window: Window, places: Tensor, scale: float) -> Tensor:
        kernel = self._form.operator(q, k, v, window)
        assert kernel is not None, "reads_maps has said so"
        return self._on_cpu(kernel, q, k, v, window, places, scale)

    def _on_cpu(self, kernel: Kernel, q, k, v, window: Window, places: Tensor | None, scale: float) -> Tensor:
        size = window.height, window.width
        grid, is_global = landmark_grid(self.landmarks, *size), self.init == "global"
        settings = self.iterations, self.guard, is_global, places, scale
        return kernel(*rows_together(q, k, v), *size, *grid, *settings)


def _flops(q, k, v, height, width, rows, columns, iterations, guard, is_global, places, scale, **_) -> int:
    """Those of the eager form's matrix products, from shapes."""
    windows, heads, tokens, dim = windows_of(q, places)
    return NystraAttention(rows * columns, iterations).flops(windows, heads, tokens, dim, v[3])
