"""Theory against measurement: attention matrices and their Nyström approximations in the spectral norm.

A Nyström approximation of a kernel matrix G (N, N) from m landmarks is ``L A^+ U``, with A (m, m) the kernel among
landmarks, L (N, m) that of tokens and landmarks and U (m, N) that of landmarks and tokens. All four are blocks of the
extended kernel ``E = [[A, U], [L, G]]``, (m + N, m + N). Where A is nonsingular, ``G - L A^-1 U`` is the Schur
complement of A in E, and

    sigma_{m+1}(E)  <=  ||G - L A^-1 U||  <=  ||[A; L] A^-1|| ||(I - Pi) E||  <=  C sigma_{m+1}(E) / sigma_m(A)

with Pi the orthogonal projection onto the columns [A; L] and ``C = sqrt(2) sigma_1(E)^2 / sigma_m(A)``: Lemma 2.1 of
PnP-Nystra (arXiv 2506.08520), its constant derived here as follows. With P the selection of the first m of the m + N
coordinates and C_m = E P = [A; L],

1. ``E - C_m A^-1 P^T E`` is zero but for the block ``S = G - L A^-1 U``. What is subtracted has rank m, whence the
   lower bound. The oblique projection ``T = C_m A^-1 P^T`` fixes the columns of C_m, so
   ``(I - T) E = (I - T)(I - Pi) E``, and ``||I - T|| = ||T|| = ||C_m A^-1|| <= sigma_1(E) / sigma_m(A)``: the middle
   bound.
2. With V the first m right singular vectors of E and s the least singular value of V^T P, replacing columns by
   ``E (I - P (V^T P)^-1 V^T)``, which Pi does not change, gives ``||(I - Pi) E|| <= sigma_{m+1}(E) / s``; and a unit
   vector x with ||V^T P x|| = s has ``sigma_m(A)^2 <= ||E P x||^2 <= s^2 sigma_1(E)^2 + sigma_{m+1}(E)^2``.
3. Where ``sigma_m(A)^2 >= 2 sigma_{m+1}(E)^2``, so ``1/s <= sqrt(2) sigma_1(E) / sigma_m(A)``; elsewhere
   ``||(I - Pi) E|| <= sigma_1(E) <= sqrt(2) sigma_1(E) sigma_{m+1}(E) / sigma_m(A)``. The bound holds in both cases.

C has to hold a 1/sigma_m(A) besides the square: ``E = [[e, 0, 1], [0, e, 0], [1, 0, 0]]`` with m = 2 has the error 1/e,
while ``sigma_1`` stays near 1 and ``sigma_3(E) / sigma_2(A)`` is 1, so no function of sigma_1(E) alone will do.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nystra_bench.attention.base import Attention, Window
from nystra_bench.attention.exact import ExactAttention
from nystra_bench.attention.landmarks import pooled_landmarks
from nystra_bench.attention.nystra import NystraAttention
from nystra_bench.instruments.probes import Probe, choose_windows, few_windows, published_inverse

WINDOWS = 2
"""Windows of a layer that are looked at."""


def singular_values(matrix: Tensor) -> Tensor:
    """Of a matrix (..., N, M), float64, in falling order: (..., min(N, M)). Relative to the first: spectral decay."""
    return torch.linalg.svdvals(matrix.double())


def spectral_norm(matrix: Tensor) -> Tensor:
    """The largest singular value of a matrix (..., N, M): (...)."""
    return singular_values(matrix)[..., 0]


def kernel_blocks(attention: NystraAttention, q: Tensor, k: Tensor, window: Window) -> tuple[Tensor, ...]:
    """G (..., N, N), L (..., N, m), A (..., m, m) and U (..., m, N) of the method's kernel, its guard included.

    Position bias and mask are no part of it, as published.

    Args:
        q, k: (..., N, d).
    """
    size = window.height, window.width, attention.landmarks
    q_marks, k_marks = pooled_landmarks(q, *size), pooled_landmarks(k, *size)
    pairs = (q, k), (q, k_marks), (q_marks, k_marks), (q_marks, k)
    return tuple(attention.kernel(left @ right.transpose(-2, -1)) for left, right in pairs)


def nystrom_bounds(g: Tensor, left: Tensor, middle: Tensor, right: Tensor) -> dict[str, Tensor]:
    """The error of ``L A^+ U`` and what bounds it (see the module), absolute: tensors of the batch's shape, float64.

    Args:
        g, left, middle, right: G, L, A and U, (..., N, N), (..., N, m), (..., m, m) and (..., m, N).

    Returns:
        ``error``, ``floor`` (sigma_{m+1}(E)), ``projection`` (the middle bound), ``bound`` (the lemma's), ``gap``
        (sigma_{m+1}(E) / sigma_m(A)), and ``rounding``, the order of magnitude of what float64 adds to the error. Both
        bounds are infinite where A is singular to working precision: then the lemma says nothing.
    """
    g, left, middle, right = (block.double() for block in (g, left, middle, right))
    marks, columns = middle.shape[-1], torch.cat([middle, left], -2)
    extended = torch.cat([columns, torch.cat([right, g], -2)], -1)
    inverse = torch.linalg.pinv(middle)
    basis, _ = torch.linalg.qr(columns)
    outside = extended - basis @ (basis.transpose(-2, -1) @ extended)
    values, of_marks = singular_values(extended), singular_values(middle)
    largest, following, smallest = values[..., 0], values[..., marks], of_marks[..., -1]
    precision = torch.finfo(torch.float64).eps
    singular = smallest <= marks * precision * of_marks[..., 0]
    return {
        "error": spectral_norm(g - left @ inverse @ right),
        "floor": following,
        "projection": (spectral_norm(columns @ inverse) * spectral_norm(outside)).masked_fill(singular, math.inf),
        "bound": (math.sqrt(2) * largest**2 * following / smallest**2).masked_fill(singular, math.inf),
        "gap": following / smallest,
        "rounding": precision * largest**2 / smallest,
    }


def kernel_spectrum(attention: NystraAttention, q: Tensor, k: Tensor, window: Window, chosen: list[int]) -> dict:
    """How near the method comes to its own kernel in some windows, in units of that kernel's spectral norm.

    Args:
        q, k: (B * nW, H, N, d), float64: all windows, since ``init="global"`` starts the iteration from all of them.
        chosen: the numbers of the windows that are looked at.

    Returns:
        Tensors (chosen, H): ``kernel_error`` with the method's own iteration, ``kernel_error_pinv`` with the true
        pseudo-inverse, ``kernel_floor``, ``kernel_projection`` and ``kernel_bound`` (see the module) and ``gap``, which
        has no unit of its own; and ``approximation``, (chosen, H, N, N).
    """
    inverse = published_inverse(attention, q, k, window)[chosen]
    g, left, middle, right = kernel_blocks(attention, q[chosen], k[chosen], window)
    approximation, norm = left @ inverse @ right, spectral_norm(g)
    found = nystrom_bounds(g, left, middle, right)
    relative = {f"kernel_{name}": found[name] / norm for name in ("floor", "projection", "bound")}
    return relative | {
        "kernel_error": spectral_norm(g - approximation) / norm,
        "kernel_error_pinv": found["error"] / norm,
        "gap": found["gap"],
        "approximation": approximation,
    }


def layer_spectrum(attention: Attention, q: Tensor, k: Tensor, window: Window, chosen: list[int]) -> dict[str, Tensor]:
    """The errors of an attention in some windows of a layer, computed in float64 on the CPU: tensors (chosen, H).

    ``matrix_error`` is ``||P - P'|| / ||P||`` in the spectral norm, with ``P = softmax(QK^T + B + M)`` the exact
    attention matrix, bias and mask included, and P' the method's. A method of the published kind adds what
    :func:`kernel_spectrum` tells.

    Args:
        q, k: (B * nW, H, N, d); q is already scaled. Other methods than the published are given the chosen windows
            alone.
    """
    q, k = q.double().cpu(), k.double().cpu()
    few = few_windows(window, chosen, q.shape[0])
    exact = ExactAttention().matrix(q[chosen], k[chosen], few)
    found: dict[str, Tensor] = {}
    if isinstance(attention, NystraAttention):
        found = kernel_spectrum(attention, q, k, window, chosen)
        kernel = found.pop("approximation")
        matrix = kernel / (kernel.sum(-1, keepdim=True) + 1e-12)
    else:
        matrix = attention.matrix(q[chosen], k[chosen], few)
    return found | {"matrix_error": spectral_norm(exact - matrix) / spectral_norm(exact)}


class SpectrumProbe(Probe):
    """Exact attention that looks at another one: at its first call it keeps what ``layer_spectrum`` finds.

    Args:
        attention: the one that is looked at.
        seed: of the choice of windows.

    Attributes:
        chosen: the numbers of the windows that were looked at.
        found: name -> (chosen, H).
    """

    def __init__(self, attention: Attention, seed: int):
        super().__init__(self._look)
        self.attention, self.seed = attention, seed
        self.chosen: list[int] = []

    def _look(self, q: Tensor, k: Tensor, window: Window) -> dict[str, Tensor]:
        self.chosen = choose_windows(q.shape[0], WINDOWS, self.seed)
        return layer_spectrum(self.attention.cpu(), q, k, window, self.chosen)

    def by_head(self) -> dict[str, list[list[float]]]:
        """What was found as plain lists: name -> for each head, one number for each chosen window."""
        return {name: values.transpose(0, 1).tolist() for name, values in self.found.items()}
