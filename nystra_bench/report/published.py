"""The numbers that the PnP-Nystra paper prints (arXiv 2506.08520v1, tables II to VII), and what stands for its methods.

``results/paper/published.csv`` has one line a number: the table, what was measured, the value and its unit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pandas as pd

from nystra_bench.words import ORIGINAL

METRICS = {
    "latency": ("latency", "latency_ms"),
    "psnr": ("quality", "psnr_rgb"),
    "ssim": ("quality", "ssim_rgb"),
    "psnr_drop": ("quality", "psnr_lost"),
    "ssim_drop": ("quality", "ssim_lost"),
    "attention_mse": ("spectrum", "matrix_mse"),
}
"""A published metric -> the measurement and the column that stand for it here. The paper's PSNR and SSIM are of RGB."""

COMPARED_BY_RATIO = ("latency", "attention_mse")
"""Metrics of which a ratio tells more than a difference does."""

DEVICES = {"cpu": "cpu", "gpu": "cuda"}

PUBLISHED_NYSTRA = {"init": "global"}
"""The norms of the paper's code: maxima over the whole batch."""


@cache
def published() -> pd.DataFrame:
    """All published numbers; texts are empty where the paper says nothing, ``value`` is a float."""
    package = Path(__file__).resolve().parents[1]
    packaged, checkout = package / "published.csv", package.parent / "results" / "paper" / "published.csv"
    frame = pd.read_csv(packaged if packaged.is_file() else checkout, dtype=str, keep_default_na=False)
    return frame.assign(value=frame["value"].astype(float))


def select(where: Mapping[str, object]) -> pd.DataFrame:
    """The published numbers that agree with all entries, in the paper's order, each once.

    Raises:
        ValueError: none does, or an entry is no column.
    """
    found = published().drop_duplicates()
    for column, value in where.items():
        if column not in found:
            raise ValueError(f"{column} is no column of published.csv: accepted are {', '.join(found)}")
        found = found[found[column] == str(value)]
    if found.empty:
        raise ValueError(f"published.csv holds nothing of {dict(where)}")
    return found


def stands_for(method: str, nystra: Mapping[str, object]) -> tuple[str, dict]:
    """The attention that a published method is here, with the parameters that it must have.

    ``original`` is exact attention without bias and mask, ``pnp_nystra`` is ``nystra`` with the table's parameters;
    those in brackets go before, as in ``pnp_nystra[landmarks=8,iterations=6]``.
    """
    if method == "original":
        return ORIGINAL, {}
    own = {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", method)}
    return "nystra", {**PUBLISHED_NYSTRA, **nystra, **own}


def with_losses(frame: pd.DataFrame, group: list[str]) -> pd.DataFrame:
    """The frame with ``psnr_lost`` and ``ssim_lost``: those of exact attention in the same group less the row's own."""
    lost = {"psnr_lost": "psnr_rgb", "ssim_lost": "ssim_rgb"}
    added = pd.DataFrame(index=frame.index, columns=list(lost), dtype=float)
    for _, rows in frame.groupby(group, sort=False, dropna=False):
        original = rows[rows["attention"] == ORIGINAL]
        for name, metric in lost.items() if len(original) else ():
            if metric in rows:
                added.loc[rows.index, name] = original[metric].astype(float).iloc[0] - rows[metric].astype(float)
    return frame.assign(**{name: added[name] for name in lost})
