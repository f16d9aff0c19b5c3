"""Uformer (Wang et al., arXiv 2106.03106): all released variants, with their state-dict keys.

The shapes and names of modules follow the released checkpoints (among them ``dowsample_0``, as it is spelt there), so
that these load with ``strict=True``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nystra_bench.models.checkpoints import build, resolve
from nystra_bench.models.cutting import Cut, add_to_windows
from nystra_bench.models.windows import (
    FeedForward,
    ShiftedMaps,
    ShiftRegions,
    WindowAttention,
    WindowedModel,
    bias_from_table,
    convolve,
    relative_position_index,
    resize_bias_table,
    split_heads,
)
from nystra_bench.sizes import Size

SCALES = 4
"""Halvings of the feature map between the image and the bottleneck."""

ENCODER = tuple(f"encoderlayer_{i}" for i in range(SCALES))
DECODER = tuple(f"decoderlayer_{i}" for i in range(SCALES))
LAYERS = (*ENCODER, "conv", *DECODER)
"""Names of the layers in the order of ``depths`` and ``heads``; ``conv`` is the bottleneck."""

PROJECTIONS = ("linear", "conv")
MLPS = ("leff", "fastleff", "ffn")


@dataclass(frozen=True)
class UformerSpec:
    """Everything that decides the shape of a Uformer. The defaults are Uformer-S."""

    channels: int = 3
    out_channels: int = 3
    embed_dim: int = 32
    depths: tuple[int, ...] = (2,) * len(LAYERS)
    heads: tuple[int, ...] = (1, 2, 4, 8, 16, 16, 8, 4, 2)
    window: int = 8
    mlp_ratio: float = 4.0
    projection: str = "linear"
    """How q, k and v are made: ``linear``, or ``conv`` (separable convolutions within the window)."""
    qkv_bias: bool = True
    """Whether linear projections have a bias; convolutions always do."""
    mlp: str = "leff"
    """``leff`` has a depthwise convolution between its linear layers, ``fastleff`` a full one, ``ffn`` none."""
    modulator: bool = True
    """Whether the decoder adds a learned vector to each token of a window."""
    shifted_bottleneck: bool = False
    """Whether every other block of the bottleneck shifts its windows. The released code decides it by the side of the
    images that the model is built for: its test scripts say 128, where one window covers the bottleneck, so no."""

    def __post_init__(self):
        for name in ("depths", "heads"):
            values = getattr(self, name)
            if len(values) != len(LAYERS) or min(values) < 1:
                raise ValueError(f"{name}={tuple(values)} does not fit: accepted are {len(LAYERS)} numbers from 1 on")
        for name, accepted in (("projection", PROJECTIONS), ("mlp", MLPS)):
            if getattr(self, name) not in accepted:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown: accepted are {', '.join(accepted)}")
        for dim, heads in zip(self.dims, self.heads, strict=True):
            if dim % heads:
                raise ValueError(
                    f"embed_dim={self.embed_dim} does not fit: {dim} channels are no multiple of heads={heads}"
                )

    @property
    def dims(self) -> tuple[int, ...]:
        """Width of each layer; the decoder's is doubled by what the encoder hands over."""
        encoder = [self.embed_dim << level for level in range(SCALES)]
        return (*encoder, self.embed_dim << SCALES, *(2 * dim for dim in reversed(encoder)))

    def as_dict(self) -> dict:
        return asdict(self)


class LinearProjection(nn.Module):
    """q, k, v (b, H, N, d) from the tokens (b, N, C) of windows."""

    def __init__(self, dim: int, heads: int, bias: bool):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias)
        self.to_kv = nn.Linear(dim, 2 * dim, bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (q,), (k, v) = split_heads(self.to_q(x), 1, self.heads), split_heads(self.to_kv(x), 2, self.heads)
        return q, k, v


class SeparableConvolution(nn.Module):
    """Depthwise convolution, ReLU and pointwise convolution of a channels-last map."""

    def __init__(self, dim: int):
        super().__init__()
        self.depthwise = nn.Conv2d(dim, dim, 3, 1, 1, groups=dim)
        self.pointwise = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return convolve(self.pointwise, F.relu(convolve(self.depthwise, x)))


class ConvProjection(nn.Module):
    """The same by separable convolutions that see nothing outside of the window."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q = SeparableConvolution(dim)
        self.to_k = SeparableConvolution(dim)
        self.to_v = SeparableConvolution(dim)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        side = math.isqrt(x.shape[1])
        maps = (project(x.unflatten(1, (side, side))) for project in (self.to_q, self.to_k, self.to_v))
        return tuple(split_heads(projected.flatten(1, 2), 1, self.heads)[0] for projected in maps)


class LeWinAttention(WindowAttention):
    """Multi-head attention with a table of relative position biases.

    The table stays the released one; for other windows it is stretched whenever an attention asks for the bias.
    """

    def __init__(self, dim: int, heads: int, spec: UformerSpec):
        super().__init__(spec.window)
        self.native = spec.window
        self.scale = (dim // heads) ** -0.5
        self.token_by_token = linear = spec.projection == "linear"
        self.qkv = LinearProjection(dim, heads, spec.qkv_bias) if linear else ConvProjection(dim, heads)
        self.proj = nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * self.native - 1) ** 2, heads))
        # Only there for the released state dicts: it is the native window's, whatever the window in use.
        self.register_buffer("relative_position_index", relative_position_index(self.native))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def bias_weights(self) -> tuple[Tensor, ...]:
        return (self.relative_position_bias_table,)

    def position_bias(self, size: int) -> Tensor:
        return bias_from_table(resize_bias_table(self.relative_position_bias_table, self.native, size), size)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
        q, k, v = self.qkv(x)
        return q, k, v, self.scale

    def finish(self, x: Tensor) -> Tensor:
        return self.proj(x)

    def forward(self, x: Tensor, shift: int, regions: ShiftRegions | None, size: int) -> Tensor:
        """(B, height, width, C) -> the same."""
        return self.over_map(x, shift, regions, size)


class LocallyEnhancedFeedForward(nn.Module):
    """LeFF: two linear layers with a 3x3 convolution of the (B, height, width, C) map between them."""

    def __init__(self, dim: int, hidden: int, groups: int):
        super().__init__()
        self.linear1 = nn.Sequential(nn.Linear(dim, hidden), nn.GELU())
        self.dwconv = nn.Sequential(nn.Conv2d(hidden, hidden, 3, 1, 1, groups=groups), nn.GELU())
        self.linear2 = nn.Sequential(nn.Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(convolve(self.dwconv, self.linear1(x)))


def _mlp(dim: int, spec: UformerSpec) -> nn.Module:
    hidden = round(spec.embed_dim * spec.mlp_ratio) * (dim // spec.embed_dim)
    if spec.mlp == "ffn":
        return FeedForward(dim, hidden)
    return LocallyEnhancedFeedForward(dim, hidden, groups=hidden if spec.mlp == "leff" else 1)


class Level:
    """What the layers of one resolution share in a forward pass: side of the map, its windows, their regions."""

    def __init__(self, side: int, window: int, device: torch.device, maps: ShiftedMaps):
        self.side = side
        self.size = fitting_window(side, window)
        self.regions = maps(side, side, self.size, device)


def fitting_window(side: int, window: int) -> int:
    """The largest divisor of a map's side that is not above the window asked for."""
    return next(size for size in range(min(side, window), 0, -1) if side % size == 0)


class LeWinBlock(nn.Module):
    """One (shifted) window attention and one MLP, on (B, height, width, C)."""

    def __init__(self, dim: int, heads: int, shifted: bool, modulated: bool, spec: UformerSpec):
        super().__init__()
        self.shifted = shifted
        self.modulator = nn.Embedding(spec.window**2, dim) if modulated else None
        self.norm1 = nn.LayerNorm(dim)
        self.attn = LeWinAttention(dim, heads, spec)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = _mlp(dim, spec)

    def modulation(self, size: int) -> Tensor:
        """The modulator (size * size, C), stretched to the window as the bias table is."""
        assert self.modulator is not None, "asked for where there is one"
        native, weight = self.attn.native, self.modulator.weight
        if size == native:
            return weight
        grid = weight.t().reshape(1, -1, native, native)
        return F.interpolate(grid, size=(size, size), mode="bicubic", align_corners=False).flatten(2)[0].t()

    def shift(self, side: int, size: int) -> int:
        """Tokens by which a map of this side is rolled before it is cut into windows of this size."""
        # An enlarged window that covers the map has nothing to gain from a shift. In the native window the released
        # code decides at construction, never by the image.
        useful = size < side or size == self.attn.native
        return size // 2 if self.shifted and useful else 0

    def forward(self, x: Tensor, level: Level) -> Tensor:
        shift, tokens = self.shift(level.side, level.size), self.norm1(x)
        if self.modulator is not None:
            tokens = add_to_windows(tokens, self.modulation(level.size), level.size, shift)
        x = x + self.attn(tokens, shift, level.regions if shift else None, level.size)
        return x + self.mlp(self.norm2(x))


class LeWinLayer(nn.Module):
    """The blocks of one resolution, on (B, height, width, C)."""

    def __init__(self, dim: int, heads: int, depth: int, shifts: bool, modulated: bool, spec: UformerSpec):
        super().__init__()
        self.blocks = nn.ModuleList(
            LeWinBlock(dim, heads, shifts and i % 2 == 1, modulated, spec) for i in range(depth)
        )

    def forward(self, x: Tensor, level: Level) -> Tensor:
        for block in self.blocks:
            x = block(x, level)
        return x


class _Resampling(nn.Module):
    """A convolution of a channels-last map, under the name that it has in the released state dicts."""

    def __init__(self, name: str, *modules: nn.Module):
        super().__init__()
        self.add_module(name, nn.Sequential(*modules))
        self._name = name

    def forward(self, x: Tensor) -> Tensor:
        return convolve(self.get_submodule(self._name), x)


class Uformer(WindowedModel):
    """Uformer on images (B, channels, height, width) in [0, 1], of any size from 1 x 1 on.

    As the released test scripts do, the image is put in the centre of a black square whose side is a multiple of
    16 windows (128), and cut out of the output. Returns (B, out_channels, height, width), not clamped.

    In other windows bias and modulators are stretched, or bias and shift mask dropped; the parameters stay those of the
    native window. A map whose side is no multiple of the window gets the largest window below that fits: see
    :meth:`windows`.
    """

    version = "1"
    """Raised whenever the numbers that the model gives for the same weights change."""

    scale = 1

    def __init__(self, spec: UformerSpec):
        super().__init__()
        self.spec = spec
        self.window_size = spec.window
        self.channels = spec.channels
        self.maps = ShiftedMaps(kept=2 * (SCALES + 1))  # of two sizes of images
        dim = spec.embed_dim
        self.input_proj = _Resampling("proj", nn.Conv2d(spec.channels, dim, 3, 1, 1), nn.LeakyReLU(0.01))
        self.output_proj = _Resampling("proj", nn.Conv2d(2 * dim, spec.out_channels, 3, 1, 1))
        for name, width, heads, depth in zip(LAYERS, spec.dims, spec.heads, spec.depths, strict=True):
            shifts = name != "conv" or spec.shifted_bottleneck
            modulated = spec.modulator and name in DECODER
            self.add_module(name, LeWinLayer(width, heads, depth, shifts, modulated, spec))
        for i in range(SCALES):
            finer, coarser = dim << i, dim << (i + 1)
            self.add_module(f"dowsample_{i}", _Resampling("conv", nn.Conv2d(finer, coarser, 4, 2, 1)))
            # The map that comes up from the decoder is twice as wide as the encoder's; the bottleneck's is not.
            below, above = (16 * dim >> max(i - 1, 0)), (8 * dim >> i)
            self.add_module(f"upsample_{i}", _Resampling("deconv", nn.ConvTranspose2d(below, above, 2, 2)))
        self.apply(_initialise)

    def windows(self, window_size: int, height: int, width: int) -> list[Size]:
        side = self._padded_side(height, width)
        return list(dict.fromkeys(fitting_window(side >> level, window_size) for level in range(SCALES + 1)))

    def cuts(self, height: int, width: int) -> dict[str, Cut]:
        square = self._padded_side(height, width)
        top, left = (square - height) // 2, (square - width) // 2
        found = {}
        for level, name in (*enumerate((*ENCODER, "conv")), *zip(reversed(range(SCALES)), DECODER, strict=True)):
            side = square >> level
            size = fitting_window(side, self.window_size)
            layer = self.get_submodule(name)
            assert isinstance(layer, LeWinLayer)
            for i, block in enumerate(layer.blocks):
                assert isinstance(block, LeWinBlock)
                cut = Cut(side, side, size, block.shift(side, size), 1 << level, -top, -left)
                found[f"{name}.blocks.{i}.attn"] = cut
        return found

    def _padded_side(self, height: int, width: int) -> int:
        multiple = self.spec.window << SCALES
        return -(-max(height, width) // multiple) * multiple

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        side = self._padded_side(height, width)
        top, left = (side - height) // 2, (side - width) // 2
        square = F.pad(x, (left, side - width - left, top, side - height - top))
        out = self._restore(square)[..., top : top + height, left : left + width]
        return x + out if self.channels == 3 else out

    def _restore(self, square: Tensor) -> Tensor:
        """The network without its global skip connection, on (B, channels, side, side)."""
        sides = (square.shape[-1] >> i for i in range(SCALES + 1))
        levels = [Level(side, self.window_size, square.device, self.maps) for side in sides]
        skips = []
        x = self.input_proj(square.permute(0, 2, 3, 1).contiguous())
        for i, name in enumerate(ENCODER):
            x = self.get_submodule(name)(x, levels[i])
            skips.append(x)
            x = self.get_submodule(f"dowsample_{i}")(x)
        x = self.get_submodule("conv")(x, levels[SCALES])
        for i, name in enumerate(DECODER):
            x = self.get_submodule(f"upsample_{i}")(x)
            x = self.get_submodule(name)(torch.cat((x, skips.pop()), -1), levels[SCALES - 1 - i])
        return self.output_proj(x).permute(0, 3, 1, 2)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        # The released code leaves the modulators at unit variance, which needs its long training to be put to use.
        nn.init.trunc_normal_(module.weight, std=0.02)


# --------------------------------------------------------------------------- reading a checkpoint


def infer_spec(state: Mapping[str, Tensor]) -> UformerSpec:
    """Read the hyper-parameters off a state dict.

    Raises:
        KeyError: a tensor that every Uformer has is absent.
    """
    embed_dim, channels = state["input_proj.proj.0.weight"].shape[:2]
    tables = [state[f"{name}.blocks.0.attn.relative_position_bias_table"] for name in LAYERS]
    conv = f"{LAYERS[0]}.blocks.0.attn.qkv.to_q.depthwise.weight" in state
    mlp, hidden = _infer_mlp(state)
    return UformerSpec(
        channels=channels,
        out_channels=state["output_proj.proj.0.weight"].shape[0],
        embed_dim=embed_dim,
        depths=tuple(_depth(state, name) for name in LAYERS),
        heads=tuple(table.shape[1] for table in tables),
        window=(math.isqrt(tables[0].shape[0]) + 1) // 2,
        mlp_ratio=hidden / embed_dim,
        projection="conv" if conv else "linear",
        qkv_bias=conv or f"{LAYERS[0]}.blocks.0.attn.qkv.to_q.bias" in state,
        mlp=mlp,
        modulator=f"{DECODER[0]}.blocks.0.modulator.weight" in state,
    )


def _depth(state: Mapping[str, Tensor], layer: str) -> int:
    prefix = f"{layer}.blocks."
    return len({key[len(prefix) :].split(".")[0] for key in state if key.startswith(prefix)})


def _infer_mlp(state: Mapping[str, Tensor]) -> tuple[str, int]:
    """Kind of the MLPs and hidden width of the first."""
    prefix = f"{LAYERS[0]}.blocks.0.mlp."
    if f"{prefix}fc1.weight" in state:
        return "ffn", state[f"{prefix}fc1.weight"].shape[0]
    hidden, inputs = state[f"{prefix}dwconv.0.weight"].shape[:2]
    return "leff" if inputs == 1 else "fastleff", hidden


def load_uformer(weights: str, expect: Mapping[str, object] | None = None) -> Uformer:
    """A Uformer with the weights of a file (or bundled weights by name), its shape read off them.

    Args:
        expect: entries of the spec that the weights must have; None takes any size.

    Raises:
        UserError: the file is absent, damaged, of another architecture, or of another size than expected.
    """
    return build(resolve(weights), "Uformer", infer_spec, Uformer, expect)
