"""What a checkpoint file holds: read without executing code, its state dict found in what others wrap around it."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nystra_bench.errors import UserError

ACCEPTED = "accepted is a .safetensors file or a .pth file of tensors"

_AVERAGED = ("params_ema", "ema", "model_ema", "state_dict_ema", "ema_state_dict", "net_g_ema", "generator_ema")
_TRAINED = ("params", "state_dict", "model_state_dict", "model", "net", "network", "net_g", "netG", "generator")
WRAPPERS = (*_AVERAGED, *_TRAINED, "weights", "model_weights", "module")
"""Keys under which published checkpoints hold their state dict, the preferred first: averaged weights before others."""

PREFIXES = ("module", "_orig_mod", "model", "net_g", "netG", "net", "network", "generator", "ema_model")
"""What wrappers of models (DataParallel, torch.compile, Lightning, GANs) put in front of the names of tensors."""

_NUMPY = ("numpy._core.multiarray", "numpy.core.multiarray")
_NUMBERS = "?bhilqBHILQefdgFDGUS"

_FOREIGN = (
    (b"version https://git-lfs", "is a Git-LFS pointer, which git lfs pull replaces by the file"),
    (b"<!doctype", "is a web page, not the file that it links to"),
    (b"<html", "is a web page, not the file that it links to"),
    (b"<?xml", "is XML, as servers answer with an error"),
    (b"\x89hdf", "is an HDF5 file, of Keras or MATLAB"),
    (b"gguf", "is a GGUF file"),
)


# --------------------------------------------------------------------------- reading


def read(path: Path) -> object:
    """What a ``.safetensors`` file holds, or any other that ``torch.load`` reads with ``weights_only=True``.

    A file of the first form is known by its content, whatever its name.

    Raises:
        UserError: it is no checkpoint, damaged, or would execute code.
    """
    try:
        if foreign := _foreign(path):
            raise UserError(f"model.weights={path} {foreign}: {ACCEPTED}")
        if path.suffix.lower() == ".safetensors" or _is_safetensors(path):
            from safetensors.torch import load_file

            return load_file(path)
        with torch.serialization.safe_globals(_harmless()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of TorchScript, which is refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"model.weights={path} {_refused(error)}: {ACCEPTED}") from error
    except UserError:
        raise
    except Exception as error:
        if "TorchScript" in str(error):
            raise UserError(f"model.weights={path} is a TorchScript archive: {ACCEPTED}") from error
        raise UserError(f"model.weights={path} cannot be read ({first_line(error)}): {ACCEPTED}") from error


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _foreign(path: Path) -> str | None:
    """What a file is that is no checkpoint at all, as a clause."""
    with path.open("rb") as file:
        start = file.read(1024)
    if not start.strip(b"\0"):
        return "holds zeros alone, as a broken download" if start else "is empty"
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return next((said for begin, said in _FOREIGN if text.startswith(begin)), None)


def _is_safetensors(path: Path) -> bool:
    """Whether it begins with the length of a JSON header, and the header's brace."""
    with path.open("rb") as file:
        start = file.read(9)
    length = int.from_bytes(start[:8], "little")
    return len(start) == 9 and start[8:] == b"{" and 8 + length <= path.stat().st_size


def _harmless() -> list:
    """NumPy's scalars and arrays of numbers and text, which training scripts leave beside the weights."""
    import numpy._core.multiarray as multiarray

    kinds = {type(np.dtype(code)) for code in _NUMBERS}
    functions = [(getattr(multiarray, name), f"{m}.{name}") for m in _NUMPY for name in ("scalar", "_reconstruct")]
    return [np.ndarray, np.dtype, *kinds, *functions]


def _refused(error: pickle.UnpicklingError) -> str:
    """Why a pickle was not loaded, as a clause."""
    found = re.search(r"GLOBAL (\S+)", str(error))
    if found is None:
        return "is damaged, or no checkpoint of PyTorch"
    return (
        f"holds {found[1]} beside tensors, as a whole model or a training's objects that were saved, and could execute "
        "code: its state dict alone is wanted, as torch.save(model.state_dict(), FILE) writes it"
    )


# --------------------------------------------------------------------------- finding the state dict


def state_dict(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, out of all wrappers; prefixes that all its names share are removed.

    Raises:
        UserError: the file cannot be read, or holds no state dict.
    """
    content = read(path)
    found = _within(content)
    if found is None:
        raise UserError(f"model.weights={path} {_lacking(content)}")
    state = {str(key): value for key, value in found.items()}
    while len(heads := _heads(state)) == 1 and heads[0] in PREFIXES:
        state = _below(state, heads[0])
    return state


def variants(state: Mapping[str, Tensor]) -> Iterator[Mapping[str, Tensor]]:
    """A state dict as it is, and what may be meant: the tensors below a known prefix, or below one that all share."""
    yield state
    heads = _heads(state)
    for head in heads:
        if head in PREFIXES or len(heads) == 1:
            yield from variants(_below(state, head))


def _within(content: object) -> Mapping | None:
    """The state dict in what a file holds; None where there is none."""
    if not isinstance(content, Mapping):
        return None
    for wrapper in WRAPPERS:
        if (found := _within(content.get(wrapper))) is not None:
            return found
    return content if content and all(isinstance(value, Tensor) for value in content.values()) else None


def _lacking(content: object) -> str:
    """Why there is no state dict, with what is accepted."""
    if not isinstance(content, Mapping):
        return f"holds no state dict, but one {type(content).__name__}: {ACCEPTED}"
    if not content:
        return f"holds nothing: {ACCEPTED}"
    odd = [f"{key} is a {type(value).__name__}" for key, value in content.items() if not isinstance(value, Tensor)]
    if len(odd) < len(content):
        return f"holds values that are no tensors ({_few(odd)}): {ACCEPTED}"
    keys = _few([str(key) for key in content])
    if {"param_groups", "state"} <= {*content}:
        return f"holds the state of an optimizer ({keys}) and no weights: accepted is the file of the model beside it"
    if {"optimizers", "schedulers", "optimizer"} & {*content}:
        return f"holds the state of a training ({keys}) and no weights: accepted is the file of the model beside it"
    return f"holds no state dict under its keys {keys}: accepted are tensors alone or under {', '.join(WRAPPERS)}"


def _few(texts: list[str], count: int = 6) -> str:
    return ", ".join(texts[:count]) + (", …" if len(texts) > count else "")


def _heads(state: Mapping[str, Tensor]) -> list[str]:
    """The first parts of dotted names, each once."""
    return list(dict.fromkeys(name.partition(".")[0] for name in state))


def _below(state: Mapping[str, Tensor], head: str) -> dict[str, Tensor]:
    return {name.partition(".")[2]: value for name, value in state.items() if name.startswith(f"{head}.")}
