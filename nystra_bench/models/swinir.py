"""SwinIR (Liang et al., arXiv 2108.10257): all released variants, with their state-dict keys.

The shapes and names of modules follow the released checkpoints, so that these load with ``strict=True``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nystra_bench.attention.base import region_mask
from nystra_bench.errors import UserError
from nystra_bench.models.checkpoints import build, resolve
from nystra_bench.models.windows import (
    Cut,
    FeedForward,
    ShiftedMaps,
    ShiftRegions,
    WindowAttention,
    WindowedModel,
    bias_from_table,
    convolve,
    pad_to_multiple,
    relative_position_index,
    resize_bias_table,
    shift_regions,
    split_heads,
)

RGB_MEAN = (0.4488, 0.4371, 0.4040)
"""Mean of DIV2K, taken off colour images by the released models."""

UPSAMPLERS = ("", "pixelshuffle", "pixelshuffledirect", "nearest+conv")


@dataclass(frozen=True)
class SwinIRSpec:
    """Everything that decides the shape of a SwinIR."""

    channels: int = 3
    out_channels: int = 3
    dim: int = 180
    depths: tuple[int, ...] = (6, 6, 6, 6, 6, 6)
    heads: tuple[int, ...] = (6, 6, 6, 6, 6, 6)
    window: int = 8
    mlp_ratio: float = 2.0
    scale: int = 1
    upsampler: str = ""
    features: int = 64
    """Width of the upsampler."""
    convolutions: int = 1
    """Convolutions at the end of a residual group: 1, or 3 (a bottleneck) in the large model."""
    image_range: float = 1.0
    """Factor on the image at the input; 255 in the JPEG models, whose window is 7."""
    mask_size: int | None = None
    """Side of the training images whose shift mask the checkpoint carries; None where it carries none."""

    def __post_init__(self):
        if self.upsampler not in UPSAMPLERS:
            accepted = ", ".join(map(repr, UPSAMPLERS))
            raise ValueError(f"upsampler={self.upsampler!r} is unknown: accepted are {accepted}")
        for heads in self.heads:
            if self.dim % heads:
                raise ValueError(f"dim={self.dim} is no multiple of heads={heads}")

    def as_dict(self) -> dict:
        return asdict(self)


class ShiftWindowAttention(WindowAttention):
    """Multi-head attention of Swin with a table of relative position biases."""

    def __init__(self, dim: int, heads: int, size: int):
        super().__init__(size)
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * size - 1) ** 2, heads))
        self.register_buffer("relative_position_index", relative_position_index(size))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def bias_weights(self) -> tuple[Tensor, ...]:
        return (self.relative_position_bias_table,)

    def position_bias(self, size: int) -> Tensor:
        return bias_from_table(self.relative_position_bias_table, size)

    def resize(self, size: int, position_bias: str) -> None:
        if size != self.size:
            old = self.relative_position_bias_table
            table = resize_bias_table(old.data, self.size, size)
            self.relative_position_bias_table = nn.Parameter(table, requires_grad=old.requires_grad)
            # The index is only there for the released state dicts; at window 64 it would take 134 MB a layer.
            self._buffers.pop("relative_position_index", None)
        super().resize(size, position_bias)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
        q, k, v = split_heads(self.qkv(x), 3, self.heads)
        return q, k, v, self.scale

    def finish(self, x: Tensor) -> Tensor:
        return self.proj(x)

    def forward(self, x: Tensor, shift: int, regions: ShiftRegions | None) -> Tensor:
        """(B, height, width, C) -> the same."""
        return self.over_map(x, shift, regions)


class SwinBlock(nn.Module):
    """One (shifted) window attention and one MLP, on (B, height, width, C)."""

    def __init__(self, dim: int, heads: int, size: int, shifted: bool, mlp_ratio: float, mask_size: int | None):
        super().__init__()
        self.shifted = shifted
        self.norm1 = nn.LayerNorm(dim)
        self.attn = ShiftWindowAttention(dim, heads, size)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = FeedForward(dim, round(dim * mlp_ratio))
        if shifted and mask_size is not None:
            # Kept for the released state dicts alone; the mask in use is made from the image's own size.
            mask = region_mask(shift_regions(mask_size, mask_size, size, size // 2))
            self.register_buffer("attn_mask", mask)

    @property
    def shift(self) -> int:
        """Tokens by which the map is rolled before it is cut into windows."""
        return self.attn.size // 2 if self.shifted else 0

    def forward(self, x: Tensor, regions: ShiftRegions) -> Tensor:
        shift = self.shift
        x = x + self.attn(self.norm1(x), shift, regions if shift else None)
        return x + self.mlp(self.norm2(x))


class ResidualGroup(nn.Module):
    def __init__(self, blocks: list[SwinBlock]):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, regions: ShiftRegions) -> Tensor:
        for block in self.blocks:
            x = block(x, regions)
        return x


def _group_convolution(dim: int, convolutions: int) -> nn.Module:
    if convolutions == 1:
        return nn.Conv2d(dim, dim, 3, 1, 1)
    return nn.Sequential(
        nn.Conv2d(dim, dim // 4, 3, 1, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(dim // 4, dim // 4, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(dim // 4, dim, 3, 1, 1),
    )


class ResidualSwinGroup(nn.Module):
    """RSTB: Swin blocks, a convolution, and a skip connection."""

    def __init__(self, blocks: list[SwinBlock], dim: int, convolutions: int):
        super().__init__()
        self.residual_group = ResidualGroup(blocks)
        self.conv = _group_convolution(dim, convolutions)

    def forward(self, x: Tensor, regions: ShiftRegions) -> Tensor:
        return x + convolve(self.conv, self.residual_group(x, regions))


class PatchNorm(nn.Module):
    """Holds the norm of the (1x1) patch embedding under its released name."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


def _pixel_shuffles(scale: int, features: int) -> nn.Sequential:
    """Convolution and pixel shuffle, once for scale 3, once for each factor of 2 otherwise."""
    factors = [3] if scale == 3 else [2] * int(math.log2(scale))
    if math.prod(factors) != scale:
        raise ValueError(f"scale={scale} is unknown: pixelshuffle takes 3 or a power of 2")
    steps = [
        step for f in factors for step in (nn.Conv2d(features, f * f * features, 3, 1, 1), nn.PixelShuffle(f))
    ]
    return nn.Sequential(*steps)


class SwinIR(WindowedModel):
    """SwinIR on images (B, channels, height, width) in [0, 1], of any size from 1 x 1 on.

    Returns (B, out_channels, scale * height, scale * width), not clamped.
    """

    mean: Tensor
    version = "1"
    """Raised whenever the numbers that the model gives for the same weights change."""

    def __init__(self, spec: SwinIRSpec):
        super().__init__()
        self.spec = spec
        self.window_size = spec.window
        self.scale = spec.scale
        self.channels = spec.channels
        mean = torch.tensor(RGB_MEAN if spec.channels == 3 else (0.0,)).view(1, -1, 1, 1)
        self.register_buffer("mean", mean, persistent=False)
        self.conv_first = nn.Conv2d(spec.channels, spec.dim, 3, 1, 1)
        self.patch_embed = PatchNorm(spec.dim)
        self.layers = nn.ModuleList(self._group(d, h) for d, h in zip(spec.depths, spec.heads, strict=True))
        self.maps = ShiftedMaps()
        self.norm = nn.LayerNorm(spec.dim)
        self.conv_after_body = _group_convolution(spec.dim, spec.convolutions)
        self._build_upsampler()
        self.apply(_initialise)

    def _group(self, depth: int, heads: int) -> ResidualSwinGroup:
        spec = self.spec
        blocks = [
            SwinBlock(spec.dim, heads, spec.window, i % 2 == 1, spec.mlp_ratio, spec.mask_size) for i in range(depth)
        ]
        return ResidualSwinGroup(blocks, spec.dim, spec.convolutions)

    def _build_upsampler(self) -> None:
        spec = self.spec
        if spec.upsampler == "pixelshuffledirect":
            self.upsample = nn.Sequential(
                nn.Conv2d(spec.dim, spec.scale**2 * spec.out_channels, 3, 1, 1), nn.PixelShuffle(spec.scale)
            )
            return
        if spec.upsampler:
            self.conv_before_upsample = nn.Sequential(nn.Conv2d(spec.dim, spec.features, 3, 1, 1), nn.LeakyReLU(0.01))
        if spec.upsampler == "pixelshuffle":
            self.upsample = _pixel_shuffles(spec.scale, spec.features)
        elif spec.upsampler == "nearest+conv":
            for i in range(1, int(math.log2(spec.scale)) + 1):
                setattr(self, f"conv_up{i}", nn.Conv2d(spec.features, spec.features, 3, 1, 1))
            self.conv_hr = nn.Conv2d(spec.features, spec.features, 3, 1, 1)
        self.conv_last = nn.Conv2d(spec.features if spec.upsampler else spec.dim, spec.out_channels, 3, 1, 1)

    def resize_windows(self, window_size: int, position_bias: str) -> SwinIR:
        """Work on other windows, in place: the bias table is interpolated, or bias and shift mask dropped."""
        for block in self.modules():
            if isinstance(block, SwinBlock):
                block._buffers.pop("attn_mask", None)
        return super().resize_windows(window_size, position_bias)

    def cuts(self, height: int, width: int) -> dict[str, Cut]:
        size = self.window_size
        height, width = (-(-side // size) * size for side in (height, width))
        blocks = {name: block for name, block in self.named_modules() if isinstance(block, SwinBlock)}
        return {f"{name}.attn": Cut(height, width, size, block.shift) for name, block in blocks.items()}

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        x = (pad_to_multiple(x, self.window_size) - self.mean) * self.spec.image_range
        shallow = self.conv_first(x)
        deep = self.conv_after_body(self._body(shallow)) + shallow
        out = self._reconstruct(x, deep) / self.spec.image_range + self.mean
        return out[..., : height * self.scale, : width * self.scale]

    def _body(self, x: Tensor) -> Tensor:
        """The residual groups, on (B, dim, height, width)."""
        regions = self.maps(x.shape[2], x.shape[3], self.window_size, x.device)
        x = self.patch_embed(x.permute(0, 2, 3, 1))
        for layer in self.layers:
            x = layer(x, regions)
        return self.norm(x).permute(0, 3, 1, 2)

    def _reconstruct(self, x: Tensor, deep: Tensor) -> Tensor:
        upsampler = self.spec.upsampler
        if upsampler == "":
            return x + self.conv_last(deep)
        if upsampler == "pixelshuffledirect":
            return self.upsample(deep)
        deep = self.conv_before_upsample(deep)
        if upsampler == "pixelshuffle":
            return self.conv_last(self.upsample(deep))
        for i in range(1, int(math.log2(self.scale)) + 1):
            deep = F.interpolate(deep, scale_factor=2, mode="nearest")
            deep = F.leaky_relu(getattr(self, f"conv_up{i}")(deep), 0.2)
        return self.conv_last(F.leaky_relu(self.conv_hr(deep), 0.2))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


# --------------------------------------------------------------------------- reading a checkpoint

_BLOCK = "layers.{}.residual_group.blocks.{}."


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    n = 0
    while any(key.startswith(pattern.format(n)) for key in state):
        n += 1
    return n


def infer_spec(state: Mapping[str, Tensor]) -> SwinIRSpec:
    """Read the hyper-parameters off a state dict.

    Raises:
        KeyError: a tensor that every SwinIR has is absent.
    """
    first = state["conv_first.weight"]
    dim, channels = first.shape[:2]
    groups = _count(state, "layers.{}.")
    table = state[_BLOCK.format(0, 0) + "attn.relative_position_bias_table"]
    window = (math.isqrt(table.shape[0]) + 1) // 2
    mask = state.get(_BLOCK.format(0, 1) + "attn_mask")
    return SwinIRSpec(
        channels=channels,
        dim=dim,
        depths=tuple(_count(state, f"layers.{i}.residual_group.blocks.{{}}.") for i in range(groups)),
        heads=tuple(
            state[_BLOCK.format(i, 0) + "attn.relative_position_bias_table"].shape[1] for i in range(groups)
        ),
        window=window,
        mlp_ratio=state[_BLOCK.format(0, 0) + "mlp.fc1.weight"].shape[0] / dim,
        convolutions=1 if "conv_after_body.weight" in state else 3,
        image_range=released_range(window),
        mask_size=None if mask is None else math.isqrt(mask.shape[0]) * window,
        **_infer_upsampler(state, channels),
    )


def released_range(window: int) -> float:
    """The factor on images in [0, 1] of the released models of this window: no checkpoint tells it."""
    return 255.0 if window == 7 else 1.0


def _infer_upsampler(state: Mapping[str, Tensor], channels: int) -> dict:
    if "conv_before_upsample.0.weight" not in state:
        if "upsample.0.weight" in state:
            scale = math.isqrt(state["upsample.0.weight"].shape[0] // channels)
            return {"upsampler": "pixelshuffledirect", "scale": scale, "out_channels": channels}
        return {"upsampler": "", "out_channels": state["conv_last.weight"].shape[0]}
    features, out_channels = state["conv_before_upsample.0.weight"].shape[0], state["conv_last.weight"].shape[0]
    found = {"features": features, "out_channels": out_channels}
    if "conv_up1.weight" in state:
        doublings = sum(f"conv_up{i}.weight" in state for i in range(1, 8))
        return {"upsampler": "nearest+conv", "scale": 2**doublings, **found}
    convolutions = [t for key, t in state.items() if key.startswith("upsample.") and key.endswith(".weight")]
    scale = math.prod(math.isqrt(t.shape[0] // features) for t in convolutions)
    return {"upsampler": "pixelshuffle", "scale": scale, **found}


def load_swinir(weights: str, expect: Mapping[str, object] | None = None, image_range: float | None = None) -> SwinIR:
    """A SwinIR with the weights of a file (or bundled weights by name), its shape read off them.

    Args:
        expect: entries of the spec that the weights must have; None takes any size.
        image_range: the factor on images in [0, 1] that the weights were trained with, which stands in no checkpoint;
            None takes that of the released ones: 255 where the window is 7 (JPEG), 1 elsewhere.

    Raises:
        UserError: the file is absent, damaged, of another architecture, or of another size than expected; the range is
            no number above 0.
    """
    if image_range is None:
        return build(resolve(weights), "SwinIR", infer_spec, SwinIR, expect)
    if not 0 < image_range < math.inf:
        raise UserError(f"model.image_range={image_range} is out of range: accepted are numbers above 0, or null")

    def given(state: Mapping[str, Tensor]) -> SwinIRSpec:
        return replace(infer_spec(state), image_range=float(image_range))

    model = build(resolve(weights), "SwinIR", given, SwinIR, expect)
    if image_range != released_range(model.spec.window):
        model.settings = {"image_range": float(image_range)}
    return model
