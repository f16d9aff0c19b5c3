"""How much of the attention version 5 computes exactly: ``python scripts/exact_share.py MODEL [WINDOW]``.

For each layer of a model on the middle of a bundled picture: the share of all pairs of query and key that a block
attends to one by one, and the share of exact attention's weights that these pairs hold, over all windows, heads and
queries: its mean, and the tenth of the queries that have least. With the position bias and the mask as the method sees
them, that is with the bias's features. With WINDOW, the model is enlarged to it, its bias stretched.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from contextlib import contextmanager
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from nystra_bench import load_model
from nystra_bench.attention.blocks import Attended
from nystra_bench.attention.nystra_plus_v5 import NystraPlusV5Attention
from nystra_bench.models import named_attention_sites, plug
from nystra_bench.models.images import as_input
from nystra_bench.tasks.denoise import GaussianDenoise

AT_ONCE = 64
"""Blocks of queries whose logits are held at a time."""


def exact_weights(attended: Attended, queries: Tensor, tokens: int, one_by_one: int) -> Tensor:
    """The weights (n, T, b) of exact attention that each query gives to what its block attends to one by one.

    Args:
        queries: (n, T, b, D), in the order of the clusters.
        tokens: N; the first rows of each window in the table.
        one_by_one: the first so many rows of each block are tokens.
    """
    n, blocks, _, width = queries.shape
    keys = attended.table.view(n, -1, attended.table.shape[-1])[:, :tokens, :width]
    numbers = attended.numbers[..., :one_by_one]
    there = attended.log_sizes[..., :one_by_one] == 0
    found = []
    for window in range(n):
        logits = queries[window] @ keys[window].mT  # (T, b, N)
        offset = window * (attended.table.shape[0] // n)
        for first in range(0, blocks, AT_ONCE):
            part = slice(first, first + AT_ONCE)
            weights = logits[part].softmax(-1)
            places = (numbers[window, part] - offset).clamp(0, tokens - 1)[:, None].expand(-1, weights.shape[1], -1)
            found.append((weights.gather(-1, places) * there[window, part, None]).sum(-1))
    return torch.cat(found).view(n, blocks, -1)


@contextmanager
def watched(attention: NystraPlusV5Attention, into: list[tuple[int, Tensor]]):
    """Adds N and the weights of exact attention of each call, its mean queries left out, while it lasts."""
    attend = Attended.by

    def by(attended: Attended, queries: Tensor, d_v: int) -> Tensor:
        tokens = attention.tokens
        sizes = attention.sizes(tokens)
        into.append((tokens, exact_weights(attended, queries[:, :, : sizes.block], tokens, sizes.block + sizes.keys)))
        return attend(attended, queries, d_v)

    with mock.patch.object(Attended, "by", by):
        yield


class Watched(NystraPlusV5Attention):
    """Version 5, which says of how many tokens the windows of its call are."""

    tokens = 0

    def forward(self, q, k, v, window):
        self.tokens = window.tokens
        return super().forward(q, k, v, window)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("window", type=int, nargs="?", help="that the model is enlarged to")
    parser.add_argument("--side", type=int, default=128, help="of the picture in pixels")
    chosen = parser.parse_args()
    model = load_model(
        chosen.model, window_size=chosen.window, position_bias="interpolate" if chosen.window else "native"
    )
    sample = next(iter(GaussianDenoise(sigma=25.0, limit=1, crop=chosen.side).samples()))
    image = as_input(sample.degraded if model.scale == 1 else sample.clean, "cpu", torch.float32)
    attention, by_layer = Watched(exact_up_to=0), defaultdict(list)
    plug(model, attention)
    for name, site in named_attention_sites(model).items():
        site.register_forward_pre_hook(lambda *_: found.clear())
        site.register_forward_hook(lambda *_, name=name: by_layer[name].extend(found))
    found: list[tuple[int, Tensor]] = []
    with watched(attention, found):
        model(image[:, : model.channels])
    print("| layer | N | exact pairs | of the weights | least tenth of queries |\n|---|---|---|---|---|")
    for name, calls in by_layer.items():
        tokens = calls[0][0]
        sizes, weights = attention.sizes(tokens), torch.cat([w.flatten() for _, w in calls])
        pairs = min(1.0, (sizes.block + sizes.keys) / tokens)
        least = np.quantile(weights.numpy(), 0.1)  # PyTorch's takes 16 million numbers at most
        print(f"| {name} | {tokens:,} | {pairs:.1%} | {weights.mean():.1%} | {least:.1%} |")


if __name__ == "__main__":
    main()
