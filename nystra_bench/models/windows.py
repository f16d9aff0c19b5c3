"""What all windowed models share: padding, shift regions, position bias, and the attention's place.

How maps are cut is in ``cutting.py``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nystra_bench.attention.base import Attention, Window
from nystra_bench.attention.cache import Caches
from nystra_bench.attention.exact import ExactAttention
from nystra_bench.errors import UserError
from nystra_bench.models.cutting import Cut as Cut
from nystra_bench.models.cutting import half, in_windows, shift_regions, window_places
from nystra_bench.models.cutting import merge as merge
from nystra_bench.models.cutting import partition as partition
from nystra_bench.sizes import Size, plain, sides


def split_heads(x: Tensor, parts: int, heads: int) -> Tensor:
    """(b, N, parts * C) -> (parts, b, heads, N, C / heads): queries, keys and values side by side, say."""
    b, n, c = x.shape
    return x.view(b, n, parts, heads, c // parts // heads).permute(2, 0, 3, 1, 4)


def merge_heads(x: Tensor) -> Tensor:
    """(b, H, N, d) -> (b, N, H * d)."""
    return x.transpose(1, 2).flatten(2)


Model = TypeVar("Model", bound=nn.Module)


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them, named as in the released state dicts of Swin's successors."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


def reflect_pad(x: Tensor, bottom: int, right: int, top: int = 0, left: int = 0) -> Tensor:
    """Pad (B, C, height, width) by reflection, however small the image is.

    torch's own reflection needs the padding to be smaller than the image; where it is not, the image is
    reflected back and forth as numpy's ``pad(mode="reflect")`` does.
    """
    height, width = x.shape[-2:]
    if not (top or bottom or left or right):
        return x
    if max(top, bottom) < height and max(left, right) < width:
        return F.pad(x, (left, right, top, bottom), "reflect")
    rows = _reflected(height, -top, height + bottom, x.device)
    columns = _reflected(width, -left, width + right, x.device)
    return x[..., rows, :][..., columns]


def _reflected(size: int, start: int, end: int, device) -> Tensor:
    """Indices …, 1, 0, 1, …, size-1, size-2, … for the positions from start to end."""
    period = max(2 * size - 2, 1)
    position = torch.arange(start, end, device=device) % period
    return torch.minimum(position, period - position) if size > 1 else torch.zeros_like(position)


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Reflect-pad (B, C, height, width) at the bottom and right to multiples of ``multiple``."""
    height, width = x.shape[-2:]
    return reflect_pad(x, -height % multiple, -width % multiple)


class ShiftRegions:
    """The shift regions of all maps of one size, and what attentions make of them once for all layers.

    The windows are shifted by half their sides. A call makes the regions (nW, N) anew.
    """

    def __init__(self, height: int, width: int, size: Size, device: torch.device):
        self._arguments = (height, width, size, half(size), device)
        self.caches = Caches()

    def __call__(self) -> Tensor:
        return shift_regions(*self._arguments)


class ShiftedMaps(nn.Module):
    """The shift regions of a model, kept from one forward pass to the next for the sizes of maps that it saw last.

    Args:
        kept: how many sizes are kept; a mask of all windows has as many entries as the logits of one head.
    """

    def __init__(self, kept: int = 2):
        super().__init__()
        self._kept = kept
        self._maps: OrderedDict[tuple, ShiftRegions] = OrderedDict()

    def forward(self, height: int, width: int, size: Size, device: torch.device) -> ShiftRegions:
        """The regions of maps of (height, width) tokens in windows of this size."""
        key = height, width, plain(size), device
        if key not in self._maps:
            self._maps[key] = ShiftRegions(*key)
        self._maps.move_to_end(key)
        while len(self._maps) > self._kept:
            self._maps.popitem(last=False)
        return self._maps[key]

    def setup_seconds(self, attention: Attention) -> float:
        return sum(regions.caches.setup_seconds(attention) for regions in self._maps.values())

    def clear(self) -> None:
        self._maps.clear()


def convolve(convolution: nn.Module, x: Tensor) -> Tensor:
    """Apply a convolution to a channels-last map."""
    return convolution(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def relative_position_index(size: Size) -> Tensor:
    """Row of the bias table for each pair of tokens, (N, N) int64, as the released state dicts hold it."""
    rows, columns = sides(size)
    index = _offsets(rows)[:, None, :, None] * (2 * columns - 1) + _offsets(columns)[None, :, None, :]
    return index.reshape(rows * columns, rows * columns)


def _offsets(side: int) -> Tensor:
    position = torch.arange(side)
    return position[:, None] - position[None, :] + side - 1


def bias_from_table(table: Tensor, size: Size) -> Tensor:
    """Position bias (H, N, N) from a table ((2*height-1) * (2*width-1), H) of relative offsets.

    The bias is Toeplitz in rows and in columns, so it is a strided view of the table: no index of N^2
    entries is needed.
    """
    heads = table.shape[1]
    rows, columns = sides(size)
    grid = table.t().reshape(heads, 2 * rows - 1, 2 * columns - 1)
    # unfold gives (H, y1, x1, a, b) = grid[y1 + a, x1 + b]; the entry for a key (y2, x2) is at a = rows-1-y2.
    windows = grid.unfold(1, rows, 1).unfold(2, columns, 1).flip(3, 4)
    return windows.reshape(heads, rows * columns, rows * columns)


def resize_bias_table(table: Tensor, size: Size, new_size: Size) -> Tensor:
    """Stretch a table ((2*height-1) * (2*width-1), H) to another window, bicubic, as Swin does before fine-tuning."""
    if sides(size) == sides(new_size):
        return table
    old, new = ([2 * side - 1 for side in sides(s)] for s in (size, new_size))
    heads = table.shape[1]
    grid = F.interpolate(table.t().reshape(1, heads, *old), size=new, mode="bicubic", align_corners=False)
    return grid.reshape(heads, -1).t().contiguous()


class WindowAttention(nn.Module):
    """The place of an attention in a model: holds the replaceable ``.attention`` and tells it its window.

    Subclasses own the position bias. They write ``project`` and ``finish`` and call :meth:`over_map`; or, where windows
    are cut out elsewhere, project q, k and v and call :meth:`attend`.
    """

    has_bias: ClassVar[bool] = True
    """False where the layer has no position bias at all."""

    token_by_token: bool = True
    """False where ``project`` sees more than one token at a time."""

    size: Any
    """``Size`` of the windows: an int in models of square windows, None where they follow the image."""

    has_position_bias = True
    """False where bias and shift mask are left out (position_bias=drop)."""

    def __init__(self, size: Size | None):
        super().__init__()
        self._prepare(size)

    def _prepare(self, size: Size | None) -> None:
        """Become a place of an attention, with windows of this size; None where they follow the image."""
        self.size: Any = size  # models of squares alone count with the number
        self.attention: Attention = ExactAttention()
        # What attentions computed once for this layer, by window size; it goes with the layer's weights.
        self.caches = Caches()
        self._seen: list = []

    def position_bias(self, size: Any) -> Tensor:
        """(H, N, N) for windows of this size."""
        raise NotImplementedError

    def bias_weights(self) -> Iterable[Tensor]:
        """The parameters that the position bias is made of: where one is written to, what was kept is out of date."""
        return ()

    def resize(self, size: Any, position_bias: str) -> None:
        """Work on windows of another size from now on, with bias and mask unless ``position_bias`` is ``drop``."""
        self.has_position_bias = position_bias != "drop"
        self.size = size
        self.caches.clear()

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
        """Queries, keys and values (b, H, n, d) of tokens (b, n, C), and the factor that queries still lack."""
        raise NotImplementedError

    def finish(self, x: Tensor) -> Tensor:
        """What becomes of attended tokens (b, n, H * d), of each by itself: (b, n, C')."""
        return x

    def over_map(self, x: Tensor, shift: Size, regions: ShiftRegions | None, size: Size | None = None) -> Tensor:
        """Attention within the windows of maps (B, height, width, C) that are rolled by ``-shift`` before they are cut.

        An attention that reads maps is given all tokens where they lie; for others windows are cut out and put back.

        Returns:
            (B, height, width, C').
        """
        size, (height, width) = plain(size or self.size), x.shape[1:3]
        if not self.token_by_token or not self.reads_maps(x, regions, size):
            return in_windows(x, size, shift, partial(self._within, regions=regions, size=size))
        q, k, v, scale = self.project(x.flatten(1, 2))
        places = window_places(height, width, sides(size), sides(shift))
        out = self.attend_maps(q, k, v, places, scale, regions, size)
        return self.finish(merge_heads(out)).unflatten(1, (height, width))

    def _within(self, x: Tensor, regions: ShiftRegions | None, size: Size) -> Tensor:
        """(B * nW, N, C) -> (B * nW, N, C')."""
        q, k, v, scale = self.project(x)
        return self.finish(merge_heads(self.attend(q if scale == 1 else q * scale, k, v, regions, size)))

    def reads_maps(self, x: Tensor, regions: ShiftRegions | None, size: Size) -> bool:
        """Whether the attention finds the windows of a map like x by itself, so that ``attend_maps`` can be called."""
        return self.attention.reads_maps(x, self._window(regions, size))

    def attend_maps(
        self, q: Tensor, k: Tensor, v: Tensor, places: Tensor, scale: float, regions: ShiftRegions | None, size: Size
    ) -> Tensor:
        """Attention on maps (B, H, L, d) by ``Attention.forward_map``."""
        return self._checked(self.attention.forward_map(q, k, v, self._window(regions, size), places, scale), v)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, regions: ShiftRegions | None, size: Size | None = None) -> Tensor:
        """Attention on (B * nW, H, N, d).

        Args:
            regions: of the map that the windows are cut from; None where it is not shifted.
            size: of these windows, where the feature map makes them other than ``self.size``.
        """
        return self._checked(self.attention(q, k, v, self._window(regions, plain(size or self.size))), v)

    def _checked(self, out: Tensor, v: Tensor) -> Tensor:
        if out.shape != v.shape:  # one of the same size would be taken for the right one
            given, wanted = tuple(out.shape), tuple(v.shape)
            raise ValueError(f"{type(self.attention).__name__} gives the shape {given}, not {wanted}")
        return out

    def _window(self, regions: ShiftRegions | None, size: Size) -> Window:
        """What the attention is told of windows of this size."""
        versions = [None if w.is_inference() else w._version for w in self.bias_weights()]  # writing raises them
        if versions != self._seen:
            self.caches.clear()
            self._seen = versions
        cache = self.caches.of(self.attention, size)
        height, width = sides(size)
        if not self.has_position_bias:
            return Window(height, width, cache=cache)
        shared = None if regions is None else regions.caches.of(self.attention)
        bias = partial(self.position_bias, size) if self.has_bias else None
        return Window(height, width, bias, regions, cache, shared)

    def train(self, mode: bool = True) -> Self:
        self.caches.clear()  # an optimiser changes weights in place
        return super().train(mode)

    def _apply(self, *args, **kwargs):
        self.caches.clear()
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args, **kwargs):
        self.caches.clear()
        return super()._load_from_state_dict(*args, **kwargs)


class WindowedModel(nn.Module):
    """A model with windowed attentions, which can work on windows of another size than it was trained in."""

    window_size: Any
    """Side of the windows in tokens; in words where the model's own are no squares or follow the image (``8×32``)."""
    scale: int
    channels: int
    version: str

    settings: Mapping[str, object] = MappingProxyType({})
    """What decides the numbers besides weights, window and bias mode, as plain JSON; a result's identity holds it."""

    resizable: ClassVar[bool] = True
    """False where the model works in its own windows alone; ``drop`` is possible all the same."""

    def resize_windows(self, window_size: Any, position_bias: str) -> Self:
        """Work on other windows, in place; bias and shift mask are fitted to them, or left out (``drop``).

        Raises:
            UserError: the model is not ``resizable``, and these are not its own windows.
        """
        if not self.resizable and window_size != self.window_size:
            raise UserError(
                f"window_size={window_size} does not fit: the model works in its own windows alone, accepted is native"
            )
        for site in attention_sites(self):
            site.resize(window_size if self.resizable else site.size, position_bias)
        self.window_size = window_size
        return self

    def windows(self, window_size: Any, height: int, width: int) -> list[Size]:
        """The distinct sizes of windows that a model of this window size has on an image of this size."""
        return [window_size]

    def cuts(self, height: int, width: int) -> dict[str, Cut]:
        """How the windows of each attention lie on an image of this size (of the input), by the layers' names.

        Only what puts attention back on the image needs it; a model may leave it out.
        """
        raise NotImplementedError(f"{type(self).__name__} does not tell where its windows lie on the image")


def attention_sites(model: nn.Module) -> list[WindowAttention]:
    """All places of a model whose attention can be replaced, in the order of the forward pass."""
    return list(named_attention_sites(model).values())


def named_attention_sites(model: nn.Module) -> dict[str, WindowAttention]:
    """All places of a model whose attention can be replaced, by their layers' names, in the order of definition."""
    return {name: module for name, module in model.named_modules() if isinstance(module, WindowAttention)}


def setup_seconds(model: nn.Module) -> float:
    """What the attentions that are plugged in now spent on what they keep, so far.

    That is what they make once a layer and window size, and once for all layers of the maps of one size.
    """
    sites = attention_sites(model)
    of_layers = sum(site.caches.setup_seconds(site.attention) for site in sites)
    return of_layers + sum(maps.setup_seconds(a) for maps in _shifted_maps(model) for a in {s.attention for s in sites})


def forget(model: nn.Module) -> None:
    """Drop everything that attentions keep in this model."""
    for site in attention_sites(model):
        site.caches.clear()
    for maps in _shifted_maps(model):
        maps.clear()


def _shifted_maps(model: nn.Module) -> list[ShiftedMaps]:
    return [module for module in model.modules() if isinstance(module, ShiftedMaps)]


def plug(model: Model, attention: Attention) -> Model:
    """Replace every attention of the model, in place, by this one; returns the model.

    Raises:
        ValueError: the model has no windowed attention, or the attention refuses its windows or has not been
            calibrated. Nothing is replaced then.
    """
    sites = named_attention_sites(model)
    if not sites:
        raise ValueError(f"{type(model).__name__} has no windowed attention to replace")
    device = next(model.parameters()).device
    placed = {name: attention.at_layer(name).to(device).train(model.training) for name in sites}
    for name, site in sites.items():
        reason = placed[name].refuses(*sides(site.size)) if site.size else None  # None follows the image
        if reason:
            raise ValueError(f"{type(attention).__name__} cannot work here: {reason}")
    for name, site in sites.items():
        site.attention = placed[name]
    return model


def calibrate(model: nn.Module, attention: Attention, images: list[Tensor], restore=None) -> dict:
    """Fit an attention to a model on some of its inputs, before it is plugged in; returns what is recorded.

    ``restore`` is what maps an input to its output where that is not the model itself.
    """
    return attention.calibrate(named_attention_sites(model), restore or model, images)


def unplug(model: Model) -> Model:
    """Give the model its exact attention back, in place; returns the model."""
    return plug(model, ExactAttention())
