"""DRCT (Hsu et al., arXiv 2404.00722): Swin blocks with dense connections."""

from nystra_bench.models.adapters.swin_family import SwinBlock, SwinSite
from nystra_bench.models.sites import Adapter


class DRCT(Adapter):
    architecture = "DRCT"
    mixins = {"WindowAttention": SwinSite, "SwinTransformerBlock": SwinBlock}
