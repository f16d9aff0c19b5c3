"""Reading and writing checkpoints: ``.safetensors``, and ``.pth`` by safe loading only."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from nystra_bench.errors import Absent, UserError, unknown
from nystra_bench.models.checkpoint_files import first_line, state_dict, variants

UNLIKE = (KeyError, ValueError, IndexError, ZeroDivisionError)
"""What is raised where tensors of another architecture are taken for those of the wanted one."""

BUNDLED = Path(__file__).parent.parent / "weights"


def resolve(weights: str | Path) -> Path:
    """The file of bundled or fetched weights given by name, or of any weights given by path.

    Raises:
        Absent: it is official weights that were not fetched yet.
        UserError: there is no such file.
    """
    from nystra_bench import fetch  # it imports this module

    with contextlib.suppress(RuntimeError, OSError):  # no such home, or a name too long: no file either
        path = Path(weights).expanduser()
        if path.is_file():
            return path.resolve()
        bundled = BUNDLED / f"{str(weights).removesuffix('.safetensors')}.safetensors"
        if path.name == str(weights) and bundled.is_file():
            return bundled
        if str(weights) in fetch.names() and fetch.find(str(weights)).kind == "weights":
            if (fetched := fetch.cached(str(weights))) is not None:
                return fetched
            raise Absent(f"model.weights={weights} is not on this machine: {fetch.find(str(weights)).remedy}")
    names = ", ".join(sorted(file.stem for file in BUNDLED.glob("*.safetensors"))) or "none"
    raise UserError(
        f"model.weights={weights} is no file: accepted are the path of a .pth or .safetensors file, "
        f"or the name of bundled weights ({names}) or of official ones (python -m nystra_bench.fetch lists them)"
    )


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, on the CPU; wrappers (``params``, ``state_dict``) and ``module.`` removed.

    A ``.pth`` file is read with ``weights_only=True``: one that would execute code is refused.

    Raises:
        UserError: the file is no checkpoint, damaged, or would execute code.
    """
    return state_dict(path)


Model = TypeVar("Model", bound=nn.Module)


def build(
    path: Path,
    name: str,
    infer_spec: Callable,
    build_model: Callable[..., Model],
    expect: Mapping[str, object] | None = None,
) -> Model:
    """A model in evaluation mode with the weights of a file, its shape read off them, loaded strictly.

    Args:
        expect: entries of the architecture's spec that the weights must have, as ``{"dim": 180, "scale": 2}``.

    Raises:
        UserError: the checkpoint is of another architecture, or of another size than expected.
    """
    whole = read_state_dict(path)
    try:
        spec, state = _recognised(whole, infer_spec)
        _check_size(path, spec, expect)
        model = build_model(spec)
    except UNLIKE as error:
        held = ", ".join(list(whole)[:3])
        raise UserError(
            f"model.weights={path} is not of the architecture {name} ({first_line(error)} is not as there; it holds "
            f"{held}{', …' if len(whole) > 3 else ''}): accepted is a {name} checkpoint, or another model="
        ) from error
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        difference = "; ".join(line.strip() for line in str(error).splitlines()[1:3])
        raise UserError(
            f"model.weights={path} is not of the architecture {name}: accepted is a {name} checkpoint ({difference})"
        ) from error
    return model.eval().requires_grad_(False)


def _recognised(whole: Mapping[str, Tensor], infer_spec: Callable) -> tuple[object, Mapping[str, Tensor]]:
    """The spec, and the state dict without what wrappers put in front of its names.

    Raises:
        KeyError, ValueError, …: what ``infer_spec`` raised on the whole, where no part of it fits either.
    """
    errors: list[Exception] = []
    for state in variants(whole):
        try:
            return infer_spec(state), state
        except UNLIKE as error:
            errors.append(error)
    raise errors[0]


def _check_size(path: Path, spec: Any, expect: Mapping[str, object] | None) -> None:
    if not isinstance(expect, Mapping | None):
        known = ", ".join(field.name for field in fields(spec))
        raise UserError(f"model.expect={expect} does not fit: accepted are null and {{NAME: value}}, of {known}")
    for name, wanted in (expect or {}).items():
        if not hasattr(spec, name):
            raise unknown("model.expect", name, [field.name for field in fields(spec)])
        found = getattr(spec, name)
        if found != (tuple(wanted) if isinstance(wanted, list) else wanted):
            raise UserError(
                f"model.weights={path} has {name}={found}, but model.expect says {name}={wanted}: accepted are weights "
                "of that size, or another model="
            )
