"""Checkpoints of any architecture that is known here: our own models, and those that spandrel loads and adapters reach.

``model=file model.weights=PATH`` recognises the architecture by the state dict.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping

from torch import Tensor, nn

from nystra_bench.configuration import Catalogue, configs_folder, instantiate
from nystra_bench.errors import UserError, unknown
from nystra_bench.models.checkpoints import read_state_dict, resolve
from nystra_bench.models.sites import adapt, adapter_for, adapters, kept_as_they_are
from nystra_bench.models.windows import WindowedModel, attention_sites, reflect_pad
from nystra_bench.sizes import Size, plain, sides, size_text


class ForeignModel(WindowedModel):
    """A model of spandrel on images (B, channels, height, width) in [0, 1], of any size from 1 x 1 on.

    Returns (B, channels, scale * height, scale * width), not clamped. Images that are smaller than the architecture
    takes, or no multiple of what it takes, are padded by reflection. Its windows are those that it was trained in.
    """

    resizable = False

    def __init__(self, descriptor):
        """``descriptor``: a ``spandrel.ImageModelDescriptor``."""
        super().__init__()
        self.model = adapt(descriptor.model)
        self.architecture = type(self.model).__name__
        self.version = f"1/{adapter_for(self.model).version}"
        self.scale, self.channels = descriptor.scale, descriptor.input_channels
        self.requires = descriptor.size_requirements
        self.sizes = sorted({plain(site.size) for site in attention_sites(self) if site.size}, key=sides)
        square = len(self.sizes) == 1 and isinstance(self.sizes[0], int)
        self.window_size = self.sizes[0] if square else ", ".join(map(size_text, self.sizes))

    def windows(self, window_size: int | str, height: int, width: int) -> list[Size]:
        return self.sizes

    def kept(self) -> dict[str, int]:
        """What attention is not replaced: class of the module and why -> how many there are."""
        kept = kept_as_they_are(self.model)
        names = {name: type(module).__name__ for name, module in self.model.named_modules()}
        return dict(Counter(f"{names[name]} ({why})" for name, why in kept.items()))

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        tall, wide = (self._padded(side) for side in (height, width))
        if self.requires.square:
            tall = wide = max(tall, wide)
        out = self.model(reflect_pad(x, tall - height, wide - width))
        return out[..., : self.scale * height, : self.scale * width]

    def _padded(self, side: int) -> int:
        multiple = self.requires.multiple_of
        return -(-max(side, self.requires.minimum) // multiple) * multiple


def load_file(weights: str, expect: Mapping[str, object] | None = None) -> nn.Module:
    """A model of whatever architecture the weights are of.

    Args:
        weights: a ``.pth`` or ``.safetensors`` file, or the name of bundled or fetched weights.
        expect: ``architecture``, ``scale`` or ``channels`` that it must have; None takes any.

    Raises:
        UserError: the file is absent or damaged, or of an architecture that is not known here or has no adapter.
    """
    path = resolve(weights)
    state = read_state_dict(path)
    model = _own(weights) or _foreign(state, str(path))
    for name, wanted in (expect or {}).items():
        if name not in ("architecture", "scale", "channels"):
            raise unknown("model.expect", name, ["architecture", "scale", "channels"])
        found = getattr(model, name, type(model).__name__)
        if found != wanted:
            raise UserError(
                f"model.weights={path} has {name}={found}, but model.expect says {name}={wanted}: accepted are such "
                "weights, or another model="
            )
    return model


def _own(weights: str) -> nn.Module | None:
    """The model of the first of our own architectures that the weights are of: those whose files name no weights."""
    catalogue = Catalogue([configs_folder()])
    for name in catalogue.names("model"):
        config = catalogue.option("model", name)
        if config.get("weights") is not None or config["_target_"] == f"{__name__}.load_file":
            continue
        try:
            return instantiate({**config, "weights": weights})
        except UserError:
            continue
    return None


def _foreign(state: Mapping[str, Tensor], path: str) -> nn.Module:
    descriptor = _described(state, path)
    return ForeignModel(descriptor).eval().requires_grad_(False)


def _described(state: Mapping[str, Tensor], path: str):
    import nystra_bench.torchvision_guard  # noqa: F401  before spandrel, which imports torchvision

    logging.getLogger("spandrel").setLevel(logging.ERROR)
    import spandrel

    try:
        descriptor = spandrel.ModelLoader().load_from_state_dict(dict(state))
    except spandrel.UnsupportedModelError as error:
        raise UserError(
            f"model.weights={path} is of no architecture that is known here: accepted are "
            f"{', '.join(sorted(adapters()))}, Uformer, DehazeFormer and FIWHN"
        ) from error
    except Exception as error:  # whatever spandrel's guesses at a shape run into
        why = f"cannot be loaded ({_first(error)})"
        raise UserError(f"model.weights={path} {why}: accepted is a whole checkpoint") from error
    if not isinstance(descriptor, spandrel.ImageModelDescriptor):
        raise UserError(f"model.weights={path} wants a mask beside the image: accepted are models of images alone")
    return descriptor


def _first(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
