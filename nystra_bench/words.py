"""The words that all parts of the project share: what stands beside the methods in a session, and in a table."""

ORIGINAL, FUSED, FLOOR, RELEASED = "exact", "sdpa", "identity", "native"
"""Exact attention in separate operations, PyTorch's fused form of it, no attention at all, the model as released."""

REFERENCES = (ORIGINAL, FUSED, FLOOR)
"""Those that are attentions, and so are chosen by ``references.<word>=`` of the configuration."""

IDENTITY = [
    *["model", "window", "bias", "task", "dataset", "attention", "landmarks", "iterations", "parameters"],
    *["bias_use", "mask_use", "kernel", "device", "dtype"],
]
"""The columns of table.csv that say what was measured; those of the measurements follow them."""

MACHINE = "hardware"
"""The column that says which processor or GPU a row's costs are of; it is there where a table has several."""

OUTCOME = ["status", "reason"]
"""Those after the measurements' columns."""

LAST = ["measure_parameters", "task_parameters"]
"""The columns at its end, after metrics without a place of their own."""


def count(n: int, what: str) -> str:
    """``1 cell``, ``2 cells``."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
