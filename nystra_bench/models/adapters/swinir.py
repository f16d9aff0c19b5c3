"""SwinIR (Liang et al., arXiv 2108.10257) as spandrel loads it; our own is ``model=swinir``."""

from nystra_bench.models.adapters.swin_family import SwinBlock, SwinSite
from nystra_bench.models.sites import Adapter


class SwinIR(Adapter):
    architecture = "SwinIR"
    mixins = {"WindowAttention": SwinSite, "SwinTransformerBlock": SwinBlock}
