"""Reading and writing checkpoints: ``.safetensors``, and ``.pth`` by safe loading only."""

from __future__ import annotations

import contextlib
import hashlib
import pickle
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor, nn

from nystra_bench.errors import Absent, UserError, unknown

BUNDLED = Path(__file__).parent.parent / "weights"
_WRAPPERS = ("params_ema", "params", "state_dict", "model_state_dict", "model")
"""Keys under which published checkpoints hold their state dict, the preferred first."""


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
    accepted = "accepted is a .safetensors file or a .pth file of tensors"
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"model.weights={path} is damaged or holds more than tensors, which could execute code: {accepted}"
        ) from error
    except Exception as error:
        raise UserError(f"model.weights={path} cannot be read ({_first_line(error)}): {accepted}") from error
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"model.weights={path} holds no state dict: {accepted}")
    state = {str(key).removeprefix("module."): value for key, value in content.items()}
    if not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"model.weights={path} holds values that are no tensors: {accepted}")
    return state


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def build(
    path: Path,
    name: str,
    infer_spec: Callable,
    build_model: Callable[..., nn.Module],
    expect: Mapping[str, object] | None = None,
) -> nn.Module:
    """A model in evaluation mode with the weights of a file, its shape read off them, loaded strictly.

    Args:
        expect: entries of the architecture's spec that the weights must have, as ``{"dim": 180, "scale": 2}``.

    Raises:
        UserError: the checkpoint is of another architecture, or of another size than expected.
    """
    state = read_state_dict(path)
    try:
        spec = infer_spec(state)
        _check_size(path, spec, expect or {})
        model = build_model(spec)
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise UserError(
            f"model.weights={path} is not of the architecture {name} ({_first_line(error)} is not as there): "
            f"accepted is a {name} checkpoint, or another model="
        ) from error
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        difference = "; ".join(line.strip() for line in str(error).splitlines()[1:3])
        raise UserError(
            f"model.weights={path} is not of the architecture {name}: accepted is a {name} checkpoint ({difference})"
        ) from error
    return model.eval().requires_grad_(False)


def _check_size(path: Path, spec: object, expect: Mapping[str, object]) -> None:
    for name, wanted in expect.items():
        if not hasattr(spec, name):
            raise unknown("model.expect", name, [field.name for field in fields(spec)])
        found = getattr(spec, name)
        if found != (tuple(wanted) if isinstance(wanted, list) else wanted):
            raise UserError(
                f"model.weights={path} has {name}={found}, but model.expect says {name}={wanted}: accepted are weights "
                "of that size, or another model="
            )
