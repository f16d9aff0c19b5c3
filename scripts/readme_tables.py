"""Prints the README's two tables of results from the reference runs, for whoever has made those anew.

    python scripts/readme_tables.py
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

REFERENCE = Path(__file__).resolve().parents[1] / "results" / "reference"

MODELS = {
    "swinir_denoise_w8": "swinir w8",
    "swinir_denoise_w16": "swinir w16",
    "uformer_denoise": "uformer denoise",
    "swinir_x2": "swinir ×2",
    "swinir_camera": "swinir camera",
    "uformer_deblur": "uformer deblur",
    "dehazeformer_haze": "dehazeformer",
}
METHODS = {
    "**`nystra_plus`**, 6 iterations (ours)": ("nystra_plus", 6),
    "`kv_merging`": ("kv_merging", None),
    "`nystromformer`, 6 iterations": ("nystromformer", 6),
    "`nystra` (PnP-Nystra), 6 iterations": ("nystra", 6),
    "`nystra`, 2 iterations": ("nystra", 2),
    "`identity`: no attention": ("identity", None),
}


def signed(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def speedup(row: pd.Series, against: str) -> str:
    name = f"speedup_vs_{against}"
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    if low == high == 1:
        return "≈1"
    return f"{row[name]:.2f} ({low:.2f}–{high:.2f})"


def denoise() -> str:
    """Cost and quality of the default sweep, at 16 landmarks."""
    table = pd.read_csv(REFERENCE / "denoise.csv")
    lines = [
        "| window, bias | attention | PSNR | deviation PSNR | latency | against exact | against sdpa "
        "| against the released model |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for _, row in table[table.landmarks.isna() | (table.landmarks == 16)].iterrows():
        name = row.attention if pd.isna(row.landmarks) else f"{row.attention} 16/{row.iterations:.0f}"
        deviation = "∞" if row.deviation_psnr == float("inf") else f"{row.deviation_psnr:.1f}"
        ratios = " | ".join(speedup(row, against) for against in ("exact", "sdpa", "native"))
        where = f"{row.window}, {row.bias}"
        lines.append(f"| {where} | {name} | {row.psnr:.2f} | {deviation} | {row.latency_ms:.0f} | {ratios} |")
    return "\n".join(lines)


def baselines() -> str:
    """Deviation PSNR, and in brackets the PSNR lost, of some methods on all models."""
    table = pd.read_csv(REFERENCE / "baselines.csv")
    lines = ["| method | " + " | ".join(MODELS.values()) + " |", "|---|" + "---:|" * len(MODELS)]
    for label, (attention, iterations) in METHODS.items():
        cells = []
        for model in MODELS:
            of_model = table[table.model == model]
            exact = of_model[of_model.attention == "exact"].psnr.item()
            rows = of_model[of_model.attention == attention]
            row = (rows[rows.iterations == iterations] if iterations else rows).iloc[0]
            deviation = f"{row.deviation_psnr:.1f}"
            cells.append(f"{f'**{deviation}**' if label.startswith('**') else deviation} ({signed(exact - row.psnr)})")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    print(denoise(), baselines(), sep="\n\n")


if __name__ == "__main__":
    main()
