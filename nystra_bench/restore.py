"""Restoring images of one's own: ``python -m nystra_bench.restore IMAGES --model NAME_OR_FILE --out DIR``.

Images are read as in the tasks (8 bits, upright as EXIF says, grey as RGB; transparency is refused) and written as PNG.
With ``--compare`` exact attention restores them, too, and ``compare.html`` shows both beside each other.
"""

from __future__ import annotations

import base64
import html
import io
import os
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nystra_bench.errors import UserError
from nystra_bench.fetch.command import Parser, guarded
from nystra_bench.tasks.image_files import existing_folder, image_files, read_image

PROGRAM = "python -m nystra_bench.restore"
WHOLE = 1024 * 1024
"""Pixels up to which an image is restored whole where ``--tile`` is not given."""

TILE, OVERLAP = 512, 32
GAIN = 10
"""By which the error map is brightened."""


@dataclass(frozen=True)
class Restored:
    """An image's output (height, width, 3) uint8, and the seconds of the one call that made it.

    ``once`` are the seconds of what that call made for all images of its size: factors of the position bias, masks.
    """

    pixels: np.ndarray
    seconds: float
    once: float


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 when every image is restored, 1 otherwise."""
    return guarded(lambda: _run(sys.argv[1:] if argv is None else argv))


def _run(argv: list[str]) -> int:
    parser = Parser(prog=PROGRAM, description="Restore images by a model with another attention; writes PNGs.")
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="image files, or folders of them")
    parser.add_argument("--model", required=True, help="a name of configs/model, or a checkpoint's file")
    parser.add_argument("--attention", default="nystra_plus", help="as in nystra_plus(landmarks=32)")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="where the images go")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--tile", type=int, metavar="N", help=f"side of tiles, 0: none; default: {TILE} where large")
    parser.add_argument("--compare", action="store_true", help="by exact attention, too, and a page of both")
    options = parser.parse_args(argv)
    if options.tile is not None and options.tile != 0 and options.tile <= 2 * OVERLAP:
        raise UserError(f"--tile={options.tile} does not fit: accepted are 0, and whole numbers above {2 * OVERLAP}")
    sources = _sources(options.images)
    targets = _targets(sources, options.out)
    restorer = Restorer(options.model, options.attention, options.device, options.tile)
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (source, target) in enumerate(zip(sources, targets, strict=True), 1):
        image = read_image(source, "IMAGES")
        restored = restorer(image)
        _write(target, _png(restored.pixels))
        print(f"[{number}/{len(sources)}] {source} -> {target} in {restored.seconds + restored.once:.1f} s", flush=True)
        if options.compare:
            rows.append(_row(source.name, image, restored, restorer(image, exact=True), options.attention))
    if options.compare:
        _write(options.out / "compare.html", _page(options, rows).encode())
        print(options.out / "compare.html")
    return 0


def _sources(given: list[str]) -> list[Path]:
    """The files named, and those of the folders named."""
    found: list[Path] = []
    for text in given:
        path = Path(text).expanduser()
        folder = existing_folder(text)
        found += image_files(folder) if folder else [path]
        if not folder and not path.is_file():
            raise UserError(f"IMAGES={text} is not there: accepted are image files, and folders of them")
    if not found:
        raise UserError(f"IMAGES={' '.join(given)} hold no image: accepted are image files, and folders of them")
    return found


def _targets(sources: list[Path], out: Path) -> list[Path]:
    """A PNG for each image, by its name; with the ending, too, where two would share one.

    Raises:
        UserError: two images would share one all the same, or an image would be written over.
    """
    stems = Counter(source.stem for source in sources)
    targets = [out / f"{s.stem if stems[s.stem] == 1 else s.name}.png" for s in sources]
    if len(set(targets)) < len(targets):
        twice = next(target for target, count in Counter(targets).items() if count > 1)
        raise UserError(f"--out={out}: two images would become {twice.name}: accepted are images of different names")
    read = {source.resolve() for source in sources}
    for target in targets:
        if target.resolve() in read:
            raise UserError(f"--out={out} would write over {target}: accepted is another folder")
    return targets


class Restorer:
    """A model with an attention, which restores images.

    Raises:
        UserError: the model or the attention is unknown or does not fit, or the model is of grey images.
    """

    def __init__(self, model: str, attention: str, device: str, tile: int | None):
        import torch

        from nystra_bench.api import load_attention, load_model
        from nystra_bench.api.options import catalogue

        if device == "cuda" and not torch.cuda.is_available():
            raise UserError("--device=cuda: PyTorch finds no CUDA GPU on this machine: accepted is cpu")
        known = model in catalogue().names("model")
        self.model = (load_model(model) if known else load_model("file", weights=model)).to(device)
        if self.model.channels != 3:
            raise UserError(f"--model={model} is of images of {self.model.channels} channels: accepted are models of 3")
        self.attention, self.exact = load_attention(attention), load_attention("exact")
        self.device, self.tile = device, tile

    def __call__(self, image: np.ndarray, exact: bool = False) -> Restored:
        """The output for an image (height, width, 3) uint8."""
        import torch

        from nystra_bench.api import plug
        from nystra_bench.models import setup_seconds

        plug(self.model, self.exact if exact else self.attention)
        x = torch.from_numpy(image.astype(np.float32) / 255).permute(2, 0, 1)[None].to(self.device)
        before, started = setup_seconds(self.model), time.perf_counter()
        with torch.inference_mode():
            out = self._whole_or_tiled(x)[0].permute(1, 2, 0).float().cpu().numpy()
        seconds, once = time.perf_counter() - started, setup_seconds(self.model) - before
        return Restored(np.round(out.clip(0, 1) * 255).astype(np.uint8), seconds - once, once)

    def _whole_or_tiled(self, x):
        from nystra_bench.models.tiling import restore_in_tiles

        tile = self.tile
        if tile is None and x.shape[-2] * x.shape[-1] > WHOLE:
            tile = TILE
        return restore_in_tiles(self.model, x, tile, OVERLAP, self.model.scale) if tile else self.model(x)


# --------------------------------------------------------------------------- files and page


def _png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _write(path: Path, content: bytes) -> None:
    """Whole, or not at all."""
    new = path.with_name(f".new-{path.name}")
    new.write_bytes(content)
    os.replace(new, path)


def _row(name: str, image: np.ndarray, ours: Restored, exact: Restored, attention: str) -> str:
    """An image of the page: input, both outputs, and how they differ."""
    difference = np.abs(ours.pixels.astype(np.float64) - exact.pixels)
    squared = np.square(difference).mean()
    deviation = f"{10 * np.log10(255**2 / squared):.1f} dB" if squared else "no difference in 8 bits"
    error = (GAIN * difference.mean(-1, keepdims=True)).clip(0, 255).astype(np.uint8).repeat(3, -1)
    pictures = [
        ("input", image),
        (f"exact, {_times(exact)}", exact.pixels),
        (f"{attention}, {_times(ours)}", ours.pixels),
        (f"difference × {GAIN}, {deviation}", error),
    ]
    figures = "".join(
        f'<figure><img src="data:image/png;base64,{base64.b64encode(_png(pixels)).decode()}" alt="">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for caption, pixels in pictures
    )
    return f"<h2>{html.escape(name)}</h2><div>{figures}</div>"


def _times(restored: Restored) -> str:
    once = f", and {restored.once:.1f} s for what is made once" if restored.once >= 0.05 else ""
    return f"{restored.seconds:.1f} s{once}"


def _page(options, rows: list[str]) -> str:
    title = f"{options.attention} against exact attention, {options.model}"
    style = (
        "body{font-family:sans-serif;margin:2em}figure{margin:0}img{width:100%;image-rendering:auto}"
        "div{display:grid;gap:1em;grid-template-columns:repeat(auto-fit,minmax(24em,1fr))}"
    )
    note = (
        "Seconds are of one call each; python -m nystra_bench measures well. What is made once for images of a size, "
        "as factors of the position bias are, stands apart. The difference is the PSNR of the two outputs in 8 bits."
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{style}</style>"
        f"<h1>{html.escape(title)}</h1><p>{html.escape(note)}</p>{''.join(rows)}</html>"
    )


if __name__ == "__main__":
    sys.exit(main())
