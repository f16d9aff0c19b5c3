"""spandrel's SwinIR of the same shape as ours: the oracle of the model tests."""

from spandrel.architectures.SwinIR import SwinIR as OfficialSwinIR

import nystra_bench.torchvision_guard  # noqa: F401  before spandrel, which imports torchvision
from nystra_bench.models.swinir import SwinIRSpec


def official(spec: SwinIRSpec) -> OfficialSwinIR:
    return OfficialSwinIR(
        img_size=spec.mask_size,
        in_chans=spec.channels,
        embed_dim=spec.dim,
        depths=list(spec.depths),
        num_heads=list(spec.heads),
        window_size=spec.window,
        mlp_ratio=spec.mlp_ratio,
        upscale=spec.scale,
        img_range=spec.image_range,
        upsampler=spec.upsampler,
        resi_connection="3conv" if spec.convolutions == 3 else "1conv",
    )
