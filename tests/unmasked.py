"""Models without their shift masks, to see that these matter."""

from nystra_bench.models import attention_sites


def without_masks(model):
    """The model with every attention called as if its map were not shifted."""
    for site in attention_sites(model):

        def attend(q, k, v, regions, size=None, attend=site.attend):
            return attend(q, k, v, None, size)

        site.attend = attend
    return model
