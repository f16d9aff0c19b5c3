"""DehazeFormer (Song et al., arXiv 2204.03883): all released variants, with their state-dict keys.

The names and shapes of modules follow the released checkpoints, so that these load with ``strict=True``. Its windows
are shifted by padding with reflection instead of a cyclic shift, so there is no mask; its position bias is a small
network of the log-distance, which gives a bias for windows of any size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from nystra_bench.models.checkpoints import build, resolve
from nystra_bench.models.windows import (
    Cut,
    WindowAttention,
    WindowedModel,
    bias_from_table,
    pad_to_multiple,
    reflect_pad,
    split_heads,
)

CONVOLUTIONS = ("DWConv", "Conv", "")
"""Beside the attention: a depthwise convolution of the values, two full ones, or none."""

STRIDES = {"layer1": 1, "layer2": 2, "layer3": 4, "layer4": 2, "layer5": 1}
"""Side of a token in pixels, in each stage."""

COARSEST = max(STRIDES.values())

BIAS_HIDDEN = 256
"""Hidden width of the network that gives the position bias."""


@dataclass(frozen=True)
class DehazeFormerSpec:
    """Everything that decides the shape of a DehazeFormer; one entry for each of its five stages."""

    channels: int = 3
    dims: tuple[int, ...] = (24, 48, 96, 48, 24)
    depths: tuple[int, ...] = (4, 4, 4, 2, 2)
    heads: tuple[int, ...] = (2, 4, 6, 1, 1)
    attended: tuple[int, ...] = (0, 2, 4, 0, 0)
    """How many blocks, the last of each stage, have attention; the others have the convolution alone."""
    mlp_ratios: tuple[float, ...] = (2.0, 4.0, 4.0, 2.0, 2.0)
    convolutions: tuple[str, ...] = ("DWConv",) * 5
    mlp_norm: bool = False
    window: int = 8

    def __post_init__(self):
        for dim, heads in zip(self.dims, self.heads, strict=True):
            if dim % heads:
                raise ValueError(f"dims={dim} is no multiple of heads={heads}")
        if self.dims[0] != self.dims[4] or self.dims[1] != self.dims[3]:
            raise ValueError(f"dims={self.dims} is not symmetric")
        for convolution in self.convolutions:
            if convolution not in CONVOLUTIONS:
                accepted = ", ".join(map(repr, CONVOLUTIONS))
                raise ValueError(f"convolutions={convolution!r} is unknown: accepted are {accepted}")

    def as_dict(self) -> dict:
        return asdict(self)


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None, "all convolutions here have one"
    return layer.bias


class RescaleNorm(nn.Module):
    """Norm over a whole image; what it took away is given back as scale and offset."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, dim, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, dim, 1, 1))
        self.meta1 = nn.Conv2d(1, dim, 1)
        self.meta2 = nn.Conv2d(1, dim, 1)
        for layer, offset in ((self.meta1, 1.0), (self.meta2, 0.0)):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.constant_(_bias(layer), offset)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised (B, C, height, width), and scale and offset (B, C, 1, 1) for what is made of it."""
        mean = x.mean((1, 2, 3), keepdim=True)
        deviation = ((x - mean).square().mean((1, 2, 3), keepdim=True) + 1e-5).sqrt()
        normalised = (x - mean) / deviation
        return normalised * self.weight + self.bias, self.meta1(deviation), self.meta2(mean)


class LogDistanceAttention(WindowAttention):
    """Attention within windows; a small network gives the bias of each offset, from its logarithm."""

    def __init__(self, dim: int, heads: int, size: int):
        super().__init__(size)
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.register_buffer("relative_positions", _relative_positions(size))
        self.meta = nn.Sequential(nn.Linear(2, BIAS_HIDDEN), nn.ReLU(), nn.Linear(BIAS_HIDDEN, heads))

    def bias_weights(self) -> Iterable[Tensor]:
        return self.meta.parameters()

    def position_bias(self, size: int) -> Tensor:
        # Only (2 size - 1)^2 offsets differ; the network sees each once.
        like = next(self.meta.parameters())
        logarithm = _log_distance(torch.arange(1 - size, size, device=like.device)).to(like.dtype)
        grid = torch.stack(torch.meshgrid(logarithm, logarithm, indexing="ij"), -1)
        return bias_from_table(self.meta(grid.flatten(0, 1)), size)

    def resize(self, size: int, position_bias: str) -> None:
        """The bias is the network's for that window, nothing is stretched."""
        if size != self.size:
            # It is only there for the released state dicts; at window 64 it would take 134 MB a layer.
            self._buffers.pop("relative_positions", None)
        super().resize(size, position_bias)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
        q, k, v = split_heads(x, 3, self.heads)
        return q, k, v, self.scale

    def forward(self, x: Tensor) -> Tensor:
        """(B, height, width, 3 C), the queries, keys and values, -> (B, height, width, C)."""
        return self.over_map(x, 0, None)  # what shift there is is in the padding


def _log_distance(offset: Tensor) -> Tensor:
    return offset.sign() * (1 + offset.abs().float()).log()


def _relative_positions(size: int) -> Tensor:
    """Signed logarithms of the offsets of each pair of tokens, (N, N, 2), as the released state dicts hold them."""
    y, x = (side.flatten() for side in torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij"))
    offsets = torch.stack([side[:, None] - side[None, :] for side in (y, x)], -1)
    return _log_distance(offsets)


class Mixer(nn.Module):
    """The spatial part of a block, on (B, C, height, width): windowed attention, a convolution beside it, or both."""

    def __init__(self, spec: DehazeFormerSpec, stage: int, attended: bool, shifted: bool):
        super().__init__()
        dim, self.convolution = spec.dims[stage], spec.convolutions[stage]
        self.attended, self.shifted = attended, shifted
        self.conv: nn.Module
        if self.convolution == "Conv":
            self.conv = nn.Sequential(_same(dim, 3), nn.ReLU(), _same(dim, 3))
        elif self.convolution == "DWConv":
            self.conv = _same(dim, 5, groups=dim)
        if attended or self.convolution == "DWConv":
            self.V = nn.Conv2d(dim, dim, 1)
            self.proj = nn.Conv2d(dim, dim, 1)
        if attended:
            self.QK = nn.Conv2d(dim, 2 * dim, 1)
            self.attn = LogDistanceAttention(dim, spec.heads[stage], spec.window)

    def forward(self, x: Tensor) -> Tensor:
        if not self.attended:
            return self.conv(x) if self.convolution == "Conv" else self.proj(self.conv(self.V(x)))
        v = self.V(x)
        out = self._attend(torch.cat([self.QK(x), v], 1))
        return self.proj(out + self.conv(v) if self.convolution else out)

    def _attend(self, qkv: Tensor) -> Tensor:
        """(B, 3 C, height, width) -> (B, C, height, width)."""
        height, width = qkv.shape[-2:]
        shift, bottom, right = self._padding(height, width)
        padded = reflect_pad(qkv, bottom, right, top=shift, left=shift).permute(0, 2, 3, 1)
        out = self.attn(padded)
        return out[:, shift : shift + height, shift : shift + width].permute(0, 3, 1, 2)

    def _padding(self, height: int, width: int) -> tuple[int, int, int]:
        """Tokens that are added at the top and at the left, at the bottom, and at the right."""
        size = self.attn.size
        shift = size // 2 if self.shifted else 0
        return shift, (-height - shift) % size, (-width - shift) % size

    def cut(self, height: int, width: int, stride: int) -> Cut:
        """How the windows lie on the image, for a map (height, width) of tokens of ``stride`` pixels."""
        shift, bottom, right = self._padding(height, width)
        start = -shift * stride
        return Cut(shift + height + bottom, shift + width + right, self.attn.size, 0, stride, start, start)


class ReflectConv2d(nn.Conv2d):
    """A convolution that keeps the map's size by reflection, also where the map is smaller than the padding."""

    def forward(self, x: Tensor) -> Tensor:
        padding = (self.kernel_size[0] - self.stride[0] + 1) // 2
        return super().forward(reflect_pad(x, padding, padding, padding, padding))


def _same(dim: int, kernel: int, groups: int = 1) -> nn.Conv2d:
    return ReflectConv2d(dim, dim, kernel, groups=groups)


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Conv2d(dim, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)


class Block(nn.Module):
    """One mixer and one MLP; only what stands beside an attention is normalised."""

    def __init__(self, spec: DehazeFormerSpec, stage: int, attended: bool, shifted: bool):
        super().__init__()
        dim = spec.dims[stage]
        self.norm1 = RescaleNorm(dim) if attended else nn.Identity()
        self.attn = Mixer(spec, stage, attended, shifted)
        self.norm2 = RescaleNorm(dim) if attended and spec.mlp_norm else nn.Identity()
        self.mlp = Mlp(dim, int(dim * spec.mlp_ratios[stage]))

    def forward(self, x: Tensor) -> Tensor:
        x = x + _normalised(self.norm1, self.attn, x)
        return x + _normalised(self.norm2, self.mlp, x)


def _normalised(norm: nn.Module, layer: nn.Module, x: Tensor) -> Tensor:
    if not isinstance(norm, RescaleNorm):
        return layer(x)
    x, scale, offset = norm(x)
    return layer(x) * scale + offset


class Stage(nn.Module):
    def __init__(self, spec: DehazeFormerSpec, stage: int):
        super().__init__()
        depth, attended = spec.depths[stage], spec.attended[stage]
        self.blocks = nn.Sequential(
            *(Block(spec, stage, i >= depth - attended, shifted=i % 2 == 1) for i in range(depth))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class PatchEmbed(nn.Module):
    """A strided convolution: the image's first features, or a halving of the map."""

    def __init__(self, channels: int, dim: int, kernel: int, stride: int):
        super().__init__()
        self.proj = ReflectConv2d(channels, dim, kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class PatchUnEmbed(nn.Module):
    """A convolution and a pixel shuffle: a doubling of the map, or the last features."""

    def __init__(self, dim: int, channels: int, kernel: int, factor: int):
        super().__init__()
        self.proj = nn.Sequential(ReflectConv2d(dim, channels * factor**2, kernel), nn.PixelShuffle(factor))

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class SKFusion(nn.Module):
    """Adds two maps with channel weights that sum to one (selective kernels, arXiv 1903.06586)."""

    def __init__(self, dim: int):
        super().__init__()
        hidden = max(dim // 8, 4)
        self.mlp = nn.Sequential(
            nn.Conv2d(dim, hidden, 1, bias=False), nn.ReLU(), nn.Conv2d(hidden, 2 * dim, 1, bias=False)
        )

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        weights = self.mlp((a + b).mean((2, 3), keepdim=True)).unflatten(1, (2, -1)).softmax(1)
        return a * weights[:, 0] + b * weights[:, 1]


class DehazeFormer(WindowedModel):
    """DehazeFormer on images (B, 3, height, width) in [0, 1], of any size from 1 x 1 on.

    Returns images of the same size, not clipped. Sizes that are no multiples of 4 are padded by reflection, and every
    attention pads its feature map to whole windows, as released.
    """

    version = "1"
    scale = 1

    def __init__(self, spec: DehazeFormerSpec):
        super().__init__()
        self.spec = spec
        self.channels = spec.channels
        self.window_size = spec.window
        dims = spec.dims
        self.patch_embed = PatchEmbed(spec.channels, dims[0], kernel=3, stride=1)
        self.layer1 = Stage(spec, 0)
        self.patch_merge1 = PatchEmbed(dims[0], dims[1], kernel=2, stride=2)
        self.skip1 = nn.Conv2d(dims[0], dims[0], 1)
        self.layer2 = Stage(spec, 1)
        self.patch_merge2 = PatchEmbed(dims[1], dims[2], kernel=2, stride=2)
        self.skip2 = nn.Conv2d(dims[1], dims[1], 1)
        self.layer3 = Stage(spec, 2)
        self.patch_split1 = PatchUnEmbed(dims[2], dims[3], kernel=1, factor=2)
        self.fusion1 = SKFusion(dims[3])
        self.layer4 = Stage(spec, 3)
        self.patch_split2 = PatchUnEmbed(dims[3], dims[4], kernel=1, factor=2)
        self.fusion2 = SKFusion(dims[4])
        self.layer5 = Stage(spec, 4)
        self.patch_unembed = PatchUnEmbed(dims[4], spec.channels + 1, kernel=3, factor=1)
        self._initialise()

    def _initialise(self) -> None:
        """Xavier-like, shrunk with the network's depth, except for queries and keys, as released."""
        shrink = (8 * sum(self.spec.depths)) ** -0.25
        for module in self.modules():
            if not isinstance(module, (Mixer, Mlp)):
                continue
            for name, layer in module.named_modules():
                if isinstance(layer, nn.Conv2d):
                    gain = 1.0 if name == "QK" else shrink
                    fans = sum(nn.init._calculate_fan_in_and_fan_out(layer.weight))
                    nn.init.trunc_normal_(layer.weight, std=gain * math.sqrt(2 / fans))
                    nn.init.zeros_(_bias(layer))

    def cuts(self, height: int, width: int) -> dict[str, Cut]:
        height, width = (-(-side // COARSEST) * COARSEST for side in (height, width))
        found = {}
        for layer, stride in STRIDES.items():
            for name, mixer in self.get_submodule(layer).named_modules(prefix=layer):
                if isinstance(mixer, Mixer) and mixer.attended:
                    found[f"{name}.attn"] = mixer.cut(height // stride, width // stride, stride)
        return found

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        x = pad_to_multiple(x, COARSEST) * 2 - 1
        features = self._features(x)
        # Soft reconstruction: K x - B + x, with one K for all channels.
        out = features[:, :1] * x - features[:, 1:] + x
        return (out[..., :height, :width] + 1) / 2

    def _features(self, x: Tensor) -> Tensor:
        first = self.layer1(self.patch_embed(x))
        second = self.layer2(self.patch_merge1(first))
        x = self.patch_split1(self.layer3(self.patch_merge2(second)))
        x = self.patch_split2(self.layer4(self.fusion1(x, self.skip2(second)) + x))
        return self.patch_unembed(self.layer5(self.fusion2(x, self.skip1(first)) + x))


# --------------------------------------------------------------------------- reading a checkpoint


def infer_spec(state: Mapping[str, Tensor]) -> DehazeFormerSpec:
    """Read the hyper-parameters off a state dict.

    Raises:
        KeyError: a tensor that every DehazeFormer has is absent.
        ValueError: a stage has attention elsewhere than in its last blocks.
    """
    stages = [_Stage(state, f"layer{i}.blocks.") for i in range(1, 6)]
    window = {math.isqrt(t.shape[0]) for key, t in state.items() if key.endswith("attn.attn.relative_positions")}
    return DehazeFormerSpec(
        channels=state["patch_embed.proj.weight"].shape[1],
        dims=tuple(stage.dim for stage in stages),
        depths=tuple(stage.depth for stage in stages),
        heads=tuple(stage.heads for stage in stages),
        attended=tuple(stage.attended for stage in stages),
        mlp_ratios=tuple(stage.mlp_ratio for stage in stages),
        convolutions=tuple(stage.convolution for stage in stages),
        mlp_norm=any(".norm2.weight" in key for key in state),
        window=window.pop() if window else 8,
    )


class _Stage:
    """What the keys of one stage tell."""

    def __init__(self, state: Mapping[str, Tensor], prefix: str):
        blocks = {int(key.removeprefix(prefix).split(".")[0]) for key in state if key.startswith(prefix)}
        self.depth = len(blocks)
        hidden = state[f"{prefix}0.mlp.mlp.0.weight"]
        self.dim, self.mlp_ratio = hidden.shape[1], hidden.shape[0] / hidden.shape[1]
        with_attention = [i for i in sorted(blocks) if f"{prefix}{i}.attn.QK.weight" in state]
        self.attended = len(with_attention)
        if with_attention != sorted(blocks)[self.depth - self.attended :]:
            raise ValueError(f"attention in the blocks {with_attention} of {prefix.removesuffix('.blocks.')}")
        last = f"{prefix}{self.depth - 1}.attn."
        self.heads = state[f"{last}attn.meta.2.weight"].shape[0] if with_attention else 1
        if f"{last}conv.0.weight" in state:
            self.convolution = "Conv"
        else:
            self.convolution = "DWConv" if f"{last}conv.weight" in state else ""


def load_dehazeformer(weights: str, expect: Mapping[str, object] | None = None) -> DehazeFormer:
    """A DehazeFormer with the weights of a file (or bundled weights by name), its shape read off them.

    Args:
        expect: entries of the spec that the weights must have; None takes any size.

    Raises:
        UserError: the file is absent, damaged, of another architecture, or of another size than expected.
    """
    return build(resolve(weights), "DehazeFormer", infer_spec, DehazeFormer, expect)
