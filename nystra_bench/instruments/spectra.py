"""Spectra of attention matrices: how fast singular values decay, how many tokens a row holds, how near a method is.

Energy is the sum of squared singular values, so the energy of all is the squared Frobenius norm, which needs no
decomposition; the share of the first k is what the best approximation of rank k keeps of it (Eckart and Young).

Everything is computed on the CPU, in the precision of the model but at least in float32, as the methods themselves
run: singular values below 1e-6 of the largest are rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from scipy.sparse.linalg import svds
from torch import Tensor, nn

from nystra_bench.attention.base import Attention, Window, add_bias_and_mask
from nystra_bench.attention.parameters import check_whole_numbers
from nystra_bench.instruments.probes import (
    check_memory,
    choose_windows,
    few_windows,
    look_at_layers,
    sites_of,
    window_matrices,
)
from nystra_bench.words import ORIGINAL

LARGE = 2048
"""Tokens from which on the leading singular values alone are computed, by a randomized method."""

ITERATIVE = 512
"""Tokens from which on a spectral norm is computed by Lanczos' iteration, and the randomized method is tried first."""

POWER_ITERATIONS = 5
"""Of the randomized method, which takes twice as many vectors as singular values are asked for."""

ENOUGH = 0.995
"""Share of energy that leading singular values have to hold so that the others need not be known."""

ENERGIES = (5, 10, 20)
RANKS = (90, 95, 99)
"""The shares of energy are of so many values; the effective ranks are for so many percent of it."""

NEGATIVE = -1e-6
"""A weight below it is no probability, and the row has no entropy."""

Numbers = dict[str, Tensor]
"""Numbers of a window: name -> (H,), and ``singular_values`` (H, n)."""


def attention_spectra(
    model: nn.Module,
    x: Tensor,
    attentions: Mapping[str, Attention],
    windows: int = 2,
    values: int = 50,
    seed: int = 0,
    alive: Callable[[int, int], None] | None = None,
    failed: Callable[[str, Exception], None] | None = None,
) -> list[dict]:
    """Spectra of the attention matrices in every layer and head, of exact attention and of methods in its place.

    The model runs with exact attention, and all methods are given the queries and keys that it has. Matrices of one
    window of one layer are in memory at a time.

    Args:
        model: with windowed attentions; it has them back afterwards.
        x: (B, C, height, width).
        attentions: methods by the names that their records get; ``exact`` is there in any case, and first.
        windows: so many of each layer are looked at, a seeded choice.
        values: so many singular values are recorded.
        alive: is told after each layer how many are done, and of how many.
        failed: is told the name of a method that raises, and the error; the others go on. By default it is raised.

    Returns:
        A record for each attention, layer and head, means over the chosen windows:

        - ``attention``, ``layer``, ``head``, ``tokens`` (N);
        - ``singular_values``: the largest, in falling order, at most ``values``;
        - ``energy_5``, ``energy_10``, ``energy_20``: the share of energy (squared singular values) in so many;
        - ``rank_90``, ``rank_95``, ``rank_99``: how many hold so many percent of the energy; from 2048 tokens on
          ``inf`` where it is more than ``values``;
        - ``effective_tokens``: exp of the entropy of a row, mean over the rows; None where a weight is negative;
        - ``self_mass``: the weight that a token gives to itself, mean over the tokens;
        - ``logit_min``, ``logit_max`` (over the windows), ``logit_std``: of QK^T + B where no mask is, of ``exact``
          alone, None elsewhere;
        - ``matrix_mse``: mean squared difference to the entries of the exact matrix (PnP-Nystra's measure), and
          ``spectral_error``: ``||P - P'||_2 / ||P||_2``.

    Raises:
        UserError: the model has no attention, or a method refuses its windows.
        FloatingPointError: a method's matrices are not finite.
        MemoryError: the matrices of a window do not fit.
        ValueError: ``windows`` or ``values`` is no whole number from 1 on.
    """
    check_whole_numbers(windows=(windows, 1), values=(values, 1))
    layers = list(sites_of(model))
    spectra = Spectra({n: a for n, a in attentions.items() if n != ORIGINAL}, windows, values, failed)
    done: list[str] = []

    def look(name: str, number: int) -> Callable[[Tensor, Tensor, Window], bool]:
        def look_here(q: Tensor, k: Tensor, window: Window) -> bool:
            spectra.add(name, q, k, window, seed + number)
            done.append(name)
            if alive is not None:
                alive(len(done), len(layers))
            return True

        return look_here

    look_at_layers(model, x, {name: look(name, number) for number, name in enumerate(layers)})
    return [record for records in spectra.records.values() for record in records]


class Spectra:
    """Collects the records of some attentions, layer by layer (see :func:`attention_spectra`).

    Attributes:
        records: by the attention's name; of one that failed there are none.
    """

    def __init__(
        self,
        attentions: Mapping[str, Attention],
        windows: int,
        values: int,
        failed: Callable[[str, Exception], None] | None,
    ):
        self.attentions = dict(attentions)
        self.windows, self.values, self.failed = windows, values, failed
        self.records: dict[str, list[dict]] = {name: [] for name in (ORIGINAL, *attentions)}

    def add(self, layer: str, q: Tensor, k: Tensor, window: Window, seed: int) -> None:
        """Look at a layer's queries and keys, (B * nW, H, N, d)."""
        dtype = torch.promote_types(q.dtype, torch.float32)
        q, k = q.to("cpu", dtype), k.to("cpu", dtype)
        check_memory(window, q.shape[1], dtype)
        chosen = choose_windows(len(q), self.windows, seed)
        found: dict[str, list[Numbers]] = {name: [] for name in self.records}
        methods = {n: self._matrices(a, layer, q, k, window, chosen) for n, a in self.attentions.items()}
        for number in chosen:
            few = few_windows(window, [number], len(q), dtype)
            exact, logits = exact_matrix(q[[number]], k[[number]], few)
            numbers = self._spectrum(exact)
            nothing = torch.zeros(len(exact))
            found[ORIGINAL].append(numbers | logits | {"matrix_mse": nothing, "spectral_error": nothing})
            for name in list(self.attentions):
                try:
                    matrix = next(methods[name])
                    if not matrix.isfinite().all():
                        raise FloatingPointError(f"the attention matrices hold NaN or infinite numbers in {layer}")
                    found[name].append(self._spectrum(matrix) | _errors(exact, numbers, matrix))
                except Exception as error:
                    self._give_up(name, error)
        for name in self.records:
            self.records[name] += _records(name, layer, window.tokens, found[name])

    @staticmethod
    def _matrices(attention: Attention, layer: str, *call) -> Iterator[Tensor]:
        """Of one window after the other; whatever is wrong with the method is raised when the first is asked for."""
        yield from window_matrices(attention.at_layer(layer), *call)

    def _spectrum(self, matrix: Tensor) -> Numbers:
        values = leading_singular_values(matrix, self.values)
        return (
            spectrum_numbers(values, matrix.double().square().sum((-2, -1)))
            | {"singular_values": values[:, : self.values]}
            | {"effective_tokens": effective_tokens(matrix), "self_mass": matrix.diagonal(dim1=-2, dim2=-1).mean(-1)}
        )

    def _give_up(self, name: str, error: Exception) -> None:
        if self.failed is None:
            raise error
        self.failed(name, error)
        del self.attentions[name], self.records[name]


def exact_matrix(q: Tensor, k: Tensor, window: Window) -> tuple[Tensor, Numbers]:
    """softmax(QK^T + B + M), (H, N, N), of one window, and range and deviation of its logits where no mask is, (H,).

    Args:
        q, k: (1, H, N, d).
    """
    logits = add_bias_and_mask(q @ k.mT, window.bias(), None)[0]
    mask = window.mask()
    if mask is None:
        allowed = logits.flatten(1)
        return logits.softmax(-1), _logit_numbers(allowed)
    allowed = logits[:, mask[0] == 0]
    return (logits + mask[0].to(logits.dtype)).softmax(-1), _logit_numbers(allowed)


def _logit_numbers(logits: Tensor) -> Numbers:
    return {
        "logit_min": logits.amin(-1),
        "logit_max": logits.amax(-1),
        "logit_std": logits.double().std(-1, correction=0),
    }


def leading_singular_values(matrix: Tensor, count: int) -> Tensor:
    """The singular values of matrices (H, N, N) in falling order: (H, N), or the first ``count``.

    These alone where N is large, and where they hold nearly all energy of each matrix and N is not small.
    """
    tokens = matrix.shape[-1]
    if tokens < ITERATIVE:
        return torch.linalg.svdvals(matrix)
    values = _randomized(matrix, min(count, tokens))
    held = values.double().square().sum(-1) >= ENOUGH * matrix.double().square().sum((-2, -1))
    return values if tokens >= LARGE or held.all() else torch.linalg.svdvals(matrix)


def _randomized(matrix: Tensor, count: int) -> Tensor:
    """The first singular values (H, count) by subspace iteration (Halko et al., arXiv 0909.4061)."""
    vectors = min(2 * count + 10, matrix.shape[-1])
    with torch.random.fork_rng(devices=[]):  # the random directions are always the same
        torch.manual_seed(0)
        return torch.stack([torch.svd_lowrank(m, vectors, niter=POWER_ITERATIONS)[1][:count] for m in matrix])


def spectral_norms(matrix: Tensor) -> Tensor:
    """The largest singular values (H,) of matrices (H, N, N)."""
    if matrix.shape[-1] < ITERATIVE:
        return torch.linalg.matrix_norm(matrix, 2)
    start = np.random.default_rng(0).standard_normal(matrix.shape[-1]).astype(matrix.numpy().dtype)
    norms = [
        svds(m, k=1, tol=1e-5, v0=start, return_singular_vectors=False)[0] if m.any() else 0.0 for m in matrix.numpy()
    ]
    return torch.tensor(norms, dtype=matrix.dtype)


def spectrum_numbers(values: Tensor, energy: Tensor) -> Numbers:
    """Shares of energy and effective ranks, (H,), from leading singular values (H, n) and the energy of all (H,)."""
    shares = (values.double().square().cumsum(-1) / energy[:, None]).clamp(max=1)
    found = {f"energy_{count}": shares[:, min(count, shares.shape[1]) - 1] for count in ENERGIES}
    for percent in RANKS:
        short = shares < percent / 100
        rank = (short.sum(-1) + 1).double()
        found[f"rank_{percent}"] = rank.masked_fill(short[:, -1], torch.inf)
    return found


def effective_tokens(matrix: Tensor) -> Tensor:
    """exp of the entropy of each row of (H, N, N), mean over the rows: (H,); NaN where a weight is negative."""
    weights = matrix.clamp(min=0)
    entropy = -torch.xlogy(weights, weights).sum(-1)
    return entropy.exp().mean(-1).masked_fill((matrix < NEGATIVE).flatten(1).any(-1), torch.nan)


def _errors(exact: Tensor, numbers: Numbers, matrix: Tensor) -> Numbers:
    difference = exact - matrix
    return {
        "matrix_mse": difference.double().square().mean((-2, -1)),
        "spectral_error": spectral_norms(difference) / numbers["singular_values"][:, 0],
    }


def _records(name: str, layer: str, tokens: int, found: list[Numbers]) -> list[dict]:
    """One record a head: means over the windows, of the logits' range the extremes."""
    extremes = {"logit_min": torch.amin, "logit_max": torch.amax}
    together = {key: torch.stack([numbers[key].double() for numbers in found]) for key in found[0]}
    of_layer = {key: extremes.get(key, torch.mean)(stacked, 0) for key, stacked in together.items()}
    return [
        {"attention": name, "layer": layer, "head": head, "tokens": tokens}
        | {key: _plain(of_layer[key][head]) if key in of_layer else None for key in RECORDED}
        for head in range(len(of_layer["self_mass"]))
    ]


RECORDED = (
    "singular_values",
    *(f"energy_{count}" for count in ENERGIES),
    *(f"rank_{percent}" for percent in RANKS),
    *("effective_tokens", "self_mass", "logit_min", "logit_max", "logit_std", "matrix_mse", "spectral_error"),
)
"""The numbers of a record, in their order."""


def _plain(number: Tensor) -> float | list[float] | None:
    """Numbers of six significant digits; None for NaN."""
    if number.dim():
        return [float(f"{value:.6g}") for value in number.tolist()]
    value = number.item()
    return None if value != value else float(f"{value:.6g}")
