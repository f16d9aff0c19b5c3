"""spandrel's Uformer of the same shape as ours: the oracle of the model tests."""

from spandrel.architectures.Uformer import Uformer as OfficialUformer

import nystra_bench.torchvision_guard  # noqa: F401  before spandrel, which imports torchvision
from nystra_bench.models.uformer import UformerSpec


def official(spec: UformerSpec) -> OfficialUformer:
    """The side of the images that it is built for decides whether one window covers the bottleneck."""
    return OfficialUformer(
        img_size=(32 if spec.shifted_bottleneck else 16) * spec.window,
        in_chans=spec.out_channels,
        dd_in=spec.channels,
        embed_dim=spec.embed_dim,
        depths=list(spec.depths),
        num_heads=list(spec.heads),
        win_size=spec.window,
        mlp_ratio=spec.mlp_ratio,
        qkv_bias=int(spec.qkv_bias),  # the convolutions take it for their dilation, which has to be a whole number
        token_projection=spec.projection,
        token_mlp=spec.mlp,
        modulator=spec.modulator,
    )
