"""Execute the notebooks and keep their outputs, small and free of what changes for no reason.

    python scripts/run_notebooks.py              # all of the folder notebooks/
    python scripts/run_notebooks.py quickstart   # these

Each runs in an empty folder of its own, so that it shows what a reader gets. Needs ``pip install -e .[dev]``.
"""

from __future__ import annotations

import argparse
import base64
import io
import re
import tempfile
import time
from pathlib import Path
from queue import Empty

import nbformat
from jupyter_client.asynchronous import AsyncKernelClient
from jupyter_client.channels import AsyncZMQSocketChannel
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
COLOURS = 256
WIDGET = "application/vnd.jupyter.widget-view+json"
SAVED = "(controls: they are here when the notebook runs)"
TIMEOUT_S = 600
LOOK_AGAIN_S = 1.0


def main() -> None:
    known = sorted(file.stem for file in FOLDER.glob("*.ipynb"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[*known, []], help="without any: all")
    for name in parser.parse_args().names or known:
        file = FOLDER / f"{name}.ipynb"
        started = time.perf_counter()
        notebook = nbformat.read(file, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            execute(notebook, Path(folder))
            clean(notebook, folder)
        nbformat.write(notebook, file)
        print(f"{name}: {time.perf_counter() - started:.0f} s, {file.stat().st_size / 1e3:.0f} kB")


class Channel(AsyncZMQSocketChannel):
    """A channel that looks for messages now and then, and does not only wait to be woken.

    Where controls (ipywidgets) make nbclient send something while it waits for a reply, jupyter_client sends it past
    the event loop, which then is not woken for a reply that has just come: the wait lasted as long as the timeout.
    """

    async def get_msg(self, timeout: float | None = None) -> dict:
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            left = LOOK_AGAIN_S if end is None else min(LOOK_AGAIN_S, max(0.0, end - time.monotonic()))
            try:
                return await super().get_msg(left)
            except Empty:
                if end is not None and time.monotonic() >= end:
                    raise


class Client(AsyncKernelClient):
    shell_channel_class = Channel
    iopub_channel_class = Channel


class Manager(AsyncKernelManager):
    client_factory = Client


def execute(notebook: NotebookNode, folder: Path) -> None:
    """Run all cells, in place, with ``folder`` as the working directory; a cell that raises ends it with that error."""
    client = NotebookClient(
        notebook,
        timeout=TIMEOUT_S,
        kernel_name="python3",
        kernel_manager_class=Manager,
        record_timing=False,
        coalesce_streams=True,  # however long a cell takes to print them
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()


def clean(notebook: NotebookNode, folder: str) -> None:
    """Leave out what no reader needs: the folder that it ran in, controls without a kernel, colours of pictures."""
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"], "language_info": {"name": "python"}}
    for cell in notebook.cells:
        cell.metadata = {}
        for output in cell.get("outputs", []):
            if "text" in output:
                output.text = of_no_place(output.text, folder)
            for kind, content in output.get("data", {}).items():
                if kind == "image/png":
                    output.data[kind] = smaller(content)
                elif isinstance(content, str):
                    output.data[kind] = of_no_place(content, folder)
            if output.get("data", {}).pop(WIDGET, None):
                output.data["text/plain"] = SAVED
            output.get("metadata", {}).pop(WIDGET, None)


def of_no_place(text: str, folder: str) -> str:
    """Without the folder, and without addresses in memory."""
    return re.sub(r" at 0x[0-9a-f]+", "", text.replace(folder, "…"))


def smaller(png: str) -> str:
    """A PNG, in base64, with a palette of its own, where that is smaller."""
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    file = io.BytesIO()
    palette = image.quantize(COLOURS, method=Image.Quantize.MEDIANCUT, kmeans=5)  # refined: rare colours count, too
    palette.save(file, "PNG", optimize=True)
    return min(png, base64.b64encode(file.getvalue()).decode(), key=len)


if __name__ == "__main__":
    main()
