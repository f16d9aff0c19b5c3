"""RGT (Chen et al., arXiv 2303.06373): the rectangular windows of DAT, and attention to a summary of the image."""

from nystra_bench.models.adapters.dat import RectangleSite, WithoutMasks
from nystra_bench.models.sites import Adapter


class RGT(Adapter):
    architecture = "RGT"
    mixins = {"WindowAttention": RectangleSite, "L_SA": WithoutMasks}
    kept = {"RG_SA": "its keys and values are few already: a summary of the whole image"}
