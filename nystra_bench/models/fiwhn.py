"""FIWHN (Li et al., arXiv 2212.14181): convolutional feature extraction with two attentions over large strips.

Names and shapes of modules follow the released checkpoints, so that these load with ``strict=True``. The published code
states no licence; this is written from its state dict, the paper and measured facts.

An attention cuts all pixels, in raster order, into four strips of N = floor(H W / 4) tokens, a quarter of the image.
Where 4 divides H a strip is a rectangle of H/4 rows, otherwise a flat one. The 0 to 3 pixels that are left over attend
to one another; they are no window worth a replacement, and stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nystra_bench.models.checkpoints import build, resolve
from nystra_bench.models.windows import WindowAttention, WindowedModel, merge_heads, split_heads
from nystra_bench.sizes import Size, plain

RGB_MEAN = (0.4488, 0.4371, 0.4040)
PATCH = 3
"""Side of the overlapping patches, stride 1, that are the tokens of an attention."""

STRIPS = 4


@dataclass(frozen=True)
class FIWHNSpec:
    """Everything that decides the shape of a FIWHN."""

    features: int = 32
    scale: int = 4
    heads: int = 9

    def __post_init__(self):
        if self.features % 32 or self.scale < 1:
            raise ValueError(f"features={self.features}, scale={self.scale}")

    def as_dict(self) -> dict:
        return asdict(self)


class Scale(nn.Module):
    """A learned factor."""

    def __init__(self, value: float = 1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([value]))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class ShuffleAttention(nn.Module):
    """Channel weights for one half of each group of channels, spatial weights for the other, then a channel shuffle."""

    GROUPS = 4

    cweight: nn.Parameter
    cbias: nn.Parameter
    sweight: nn.Parameter
    sbias: nn.Parameter

    def __init__(self, dim: int):
        super().__init__()
        half = dim // (2 * self.GROUPS)
        for name, value in (("cweight", 0.0), ("cbias", 1.0), ("sweight", 0.0), ("sbias", 1.0)):
            self.register_parameter(name, nn.Parameter(torch.full((1, half, 1, 1), value)))
        self.gn = nn.GroupNorm(half, half)

    def forward(self, x: Tensor) -> Tensor:
        by_channel, by_place = x.unflatten(1, (self.GROUPS, -1)).flatten(0, 1).chunk(2, 1)
        mean = by_channel.mean((2, 3), keepdim=True)
        by_channel = by_channel * (self.cweight * mean + self.cbias).sigmoid()
        by_place = by_place * (self.sweight * self.gn(by_place) + self.sbias).sigmoid()
        out = torch.cat([by_channel, by_place], 1).unflatten(0, (-1, self.GROUPS)).flatten(1, 2)
        return shuffle(out, 2)


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave the channels of ``groups`` groups."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


class WideBlock(nn.Module):
    """Residual block: 1x1 convolutions to twice and to half the width, a 3x3 convolution, shuffle attention.

    Args:
        out: channels of the output; where it is not ``dim``, the skip connection is a 3x3 convolution.
    """

    def __init__(self, dim: int, out: int):
        super().__init__()
        self.res_scale, self.x_scale = Scale(), Scale()
        self.body = nn.Sequential(
            nn.Conv2d(dim, 2 * dim, 1), nn.ReLU(), nn.Conv2d(2 * dim, dim // 2, 1), nn.Conv2d(dim // 2, out, 3, 1, 1)
        )
        self.SAlayer = ShuffleAttention(out)
        self.conv = None if out == dim else nn.Conv2d(dim, out, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = x if self.conv is None else self.conv(x)
        return self.res_scale(self.SAlayer(self.body(x))) + self.x_scale(skip)


class Coefficients(nn.Module):
    """Weights (B, C, 1, 1) for the channels of a map, from their means and standard deviations."""

    def __init__(self, dim: int):
        super().__init__()
        self.upper_branch = nn.Sequential(nn.AdaptiveAvgPool2d(1), *self._branch(dim))
        self.lower_branch = nn.Sequential(*self._branch(dim))

    @staticmethod
    def _branch(dim: int) -> list[nn.Module]:
        return [nn.Conv2d(dim, dim // 8, 1), nn.ReLU(), nn.Conv2d(dim // 8, dim, 1), nn.ReLU(), nn.Sigmoid()]

    def forward(self, x: Tensor) -> Tensor:
        deviation = x.var((2, 3), correction=0, keepdim=True).sqrt()
        return (self.upper_branch(x) + self.lower_branch(deviation)) / 2


class InteractionBlock(nn.Module):
    """Two chains of wide blocks, a and b, that weight and add to one another."""

    srb1: WideBlock
    srb2: WideBlock
    srb3: WideBlock
    srb4: WideBlock
    rb1: WideBlock
    rb2: WideBlock
    A1_coffconv: Coefficients
    B1_coffconv: Coefficients
    A2_coffconv: Coefficients
    B2_coffconv: Coefficients

    def __init__(self, dim: int):
        super().__init__()
        for name in ("srb1", "srb2", "srb3", "srb4", "rb1", "rb2"):
            self.add_module(name, WideBlock(dim, dim))
        for name in ("A1", "B1", "A2", "B2"):
            self.add_module(f"{name}_coffconv", Coefficients(dim))
        self.conv_distilled1 = nn.Conv2d(dim, dim, 1, bias=False)
        self.conv_distilled2 = nn.Conv2d(dim, dim, 1, bias=False)
        self.scale_x1, self.scale_x2 = Scale(), Scale()
        self.fuse1 = WideBlock(2 * dim, dim)
        self.fuse2 = nn.Conv2d(2 * dim, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        first_a = _leaky(self.srb1(x))
        a = self.rb1(first_a)
        first_b = _leaky(self.srb2(self.A1_coffconv(a) * a + x))
        a = self.B1_coffconv(x) * x + a
        b = self.rb2(first_b)
        crossed_b = self.A2_coffconv(a) * a + b
        crossed_a = self.B2_coffconv(b) * b + a
        a = self.srb3(crossed_a * self.conv_distilled2(first_a).sigmoid())
        b = self.srb4(crossed_b * self.conv_distilled1(first_b).sigmoid())
        both = torch.cat([self.scale_x1(a), self.scale_x2(b)], 1)
        return self.fuse1(both) + self.fuse2(both).sigmoid() * b


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.05)


class StripAttention(WindowAttention):
    """Multi-head attention within strips of the raster order, without position bias or mask."""

    has_bias = False

    def __init__(self, dim: int, heads: int):
        super().__init__(None)  # the strips follow the image
        self.heads = heads
        self.scale = (dim // heads) ** -0.5  # of the width before it is reduced
        self.reduce = nn.Linear(dim, dim // 2, bias=False)
        self.qkv = nn.Linear(dim // 2, 3 * (dim // 2), bias=False)
        self.proj = nn.Linear(dim // 2, dim)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """(B, height * width, dim) -> the same."""
        q, k, v = split_heads(self.qkv(self.reduce(x)), 3, self.heads)
        size = strip(height, width)
        cut = STRIPS * math.prod(size)
        out = []
        if cut:
            out.append(self._within_strips(q[:, :, :cut], k[:, :, :cut], v[:, :, :cut], size))
        if cut < height * width:
            q, k, v = (t[:, :, cut:] for t in (q, k, v))
            out.append((q * self.scale @ k.mT).softmax(-1) @ v)
        return self.proj(merge_heads(torch.cat(out, 2) if len(out) > 1 else out[0]))

    def _within_strips(self, q: Tensor, k: Tensor, v: Tensor, size: Size) -> Tensor:
        """(B, H, STRIPS * N, d) -> the same."""
        if self.reads_maps(q, None, size):
            places = torch.arange(q.shape[2], dtype=torch.int32).view(STRIPS, -1)
            return self.attend_maps(q, k, v, places, self.scale, None, size)
        queries, keys, values = (_cut(t) for t in (q * self.scale, k, v))
        return _join(self.attend(queries, keys, values, None, size))


def strip(height: int, width: int) -> tuple[int, int]:
    """Height and width of each of the four strips of an image; (1, 0) where it has no four pixels."""
    return (height // STRIPS, width) if height % STRIPS == 0 else (1, height * width // STRIPS)


def _cut(x: Tensor) -> Tensor:
    """(B, H, STRIPS * N, d) -> (B * STRIPS, H, N, d)."""
    return x.unflatten(2, (STRIPS, -1)).transpose(1, 2).flatten(0, 1)


def _join(x: Tensor) -> Tensor:
    """The inverse of ``_cut``."""
    return x.unflatten(0, (-1, STRIPS)).transpose(1, 2).flatten(2, 3)


class PatchMlp(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, dim // 4), nn.Linear(dim // 4, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(x)))


class PatchTransformer(nn.Module):
    """A transformer block on the overlapping patches of a map (B, C, height, width), which are added up again."""

    def __init__(self, features: int, heads: int):
        super().__init__()
        dim = features * PATCH**2
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.atten = StripAttention(dim, heads)
        self.mlp = PatchMlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        x = F.unfold(x, PATCH, padding=PATCH // 2).transpose(1, 2)
        x = x + self.atten(self.norm1(x), height, width)
        x = x + self.mlp(self.norm2(x))
        return F.fold(x.transpose(1, 2), (height, width), PATCH, padding=PATCH // 2)


class MeanShift(nn.Conv2d):
    """Takes off (or adds) the mean of DIV2K, as a 1x1 convolution with the released weights."""

    def __init__(self, sign: int):
        super().__init__(3, 3, 1)
        self.weight.data = torch.eye(3).view(3, 3, 1, 1)
        self.bias = nn.Parameter(sign * 255 * torch.tensor(RGB_MEAN))


class FIWHN(WindowedModel):
    """FIWHN on RGB images (B, 3, height, width) in [0, 1], of any size from 1 x 1 on.

    Returns (B, 3, scale * height, scale * width), not clamped. Its windows follow the image (:func:`strip`), so they
    cannot be resized.
    """

    version = "1"
    """Raised whenever the numbers that the model gives for the same weights change."""

    channels = 3
    resizable = False

    def __init__(self, spec: FIWHNSpec):
        super().__init__()
        self.spec = spec
        self.scale = spec.scale
        self.window_size = f"H/{STRIPS}×W"
        dim = spec.features
        self.Sub_mean, self.Add_mean = MeanShift(-1), MeanShift(1)
        self.head = nn.Conv2d(3, dim, 3, 1, 1)
        self.MY1, self.MY2, self.MY3 = (InteractionBlock(dim) for _ in range(3))
        self.conv_concat1 = nn.Conv2d(2 * dim, dim, 3, 1, 1, groups=4, bias=False)
        self.conv_concat2 = nn.Conv2d(2 * dim, dim, 3, 1, 1, groups=4, bias=False)
        self.attention1, self.attention2 = (PatchTransformer(dim, spec.heads) for _ in range(2))
        self.conv = nn.Conv2d(2 * dim, dim, 1, bias=False)
        self.scale_x, self.scale_res = Scale(0.5), Scale(0.5)
        self.conv_down, self.conv_up, self.conv1 = (nn.Conv2d(dim, dim, 3, 1, 1, bias=False) for _ in range(3))
        self.conv2 = nn.Conv2d(3, dim, 3, 1, 1)
        self.UP1, self.UP2 = (
            nn.Sequential(nn.Conv2d(dim, 3 * spec.scale**2, 3, 1, 1), nn.PixelShuffle(spec.scale)) for _ in range(2)
        )

    def windows(self, window_size: str, height: int, width: int) -> list[Size]:
        size = strip(height, width)
        return [plain(size)] if math.prod(size) else []

    def forward(self, x: Tensor) -> Tensor:
        x = self.Sub_mean(255 * x)
        features = self.head(x)
        first = self.MY1(features)
        second = self.MY2(first)
        local = self._gathered(features, first, second, self.MY3(second))
        attended = self.attention2(self.attention1(self.conv_down(second) + features))
        # The same blocks a second time, with what the attentions found.
        first = self.MY1(local)
        second = self.MY2(first + self.conv_up(attended))
        local = self._gathered(local, first, second, self.MY3(second))
        deep = self.conv1(self.conv(torch.cat([local, attended], 1)))
        return self.Add_mean(self.UP1(deep) + self.UP2(self.conv2(x))) / 255

    def _gathered(self, skip: Tensor, first: Tensor, second: Tensor, third: Tensor) -> Tensor:
        """What three blocks in a row found, and what went into the first."""
        both = shuffle(self.conv_concat1(torch.cat([first, second], 1)), 4)
        both = shuffle(self.conv_concat2(torch.cat([both, third], 1)), 4)
        return self.scale_x(both + third) + self.scale_res(skip)


# --------------------------------------------------------------------------- reading a checkpoint


def infer_spec(state: Mapping[str, Tensor]) -> FIWHNSpec:
    """Read the hyper-parameters off a state dict; the number of heads is the published one, which no shape tells.

    Raises:
        KeyError: a tensor that every FIWHN has is absent.
    """
    return FIWHNSpec(
        features=state["MY1.conv_distilled1.weight"].shape[0], scale=math.isqrt(state["UP1.0.weight"].shape[0] // 3)
    )


def load_fiwhn(weights: str, expect: Mapping[str, object] | None = None) -> FIWHN:
    """A FIWHN with the weights of a file, its shape read off them.

    Args:
        expect: entries of the spec that the weights must have; None takes any size.

    Raises:
        UserError: the file is absent, damaged, of another architecture, or of another size than expected.
    """
    return build(resolve(weights), "FIWHN", infer_spec, FIWHN, expect)
