"""Distances between the distributions of two sets of images in the features of Inception v3: FID and KID."""

from __future__ import annotations

import hashlib
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from nystra_bench.errors import UserError
from nystra_bench.metrics.backbones import Backbone
from nystra_bench.metrics.base import SetMetric
from nystra_bench.metrics.conventions import FEATURES8, Convention

LAYER = "2048"
"""The features: the last average pooling, 2048 numbers, as in all published FID and KID."""

BATCH = 16
KEPT_PATCHES = 2**15
"""Features of so many patches, a quarter of a GB, are kept for the other metrics and cells of a session."""

KID_SUBSET, KID_SUBSETS = 1000, 100
SMALLEST_PATCH = 8


class _InceptionMetric(SetMetric):
    """What FID and KID have in common: patches, and their features by torch-fidelity's Inception v3 (of 2015-12-05).

    Image-restoration sets are small, so both count patches, not images: squares side by side from the top left corner,
    the rest at the right and at the bottom left out, each enlarged to 299x299 by the network's own resampling. The
    numbers compare with others of the same data and patch size alone. Computed on the CPU in float32.

    Args:
        patch: side of the patches in pixels.
        inception: the weights file; null takes what ``python -m nystra_bench.fetch fid-inception`` has fetched.
        against: as in :class:`Metric`.

    Raises:
        ValueError: the patch is too small.
    """

    higher_is_better = False

    def __init__(self, patch: int = 64, inception: str | None = None, against: str = "truth"):
        super().__init__(against)
        if patch < SMALLEST_PATCH:
            raise ValueError(f"patch={patch} is out of range: accepted are whole numbers from {SMALLEST_PATCH} on")
        self.patch = self.smallest = patch
        self._backbone = Backbone("fid-inception", inception)

    def available(self) -> str | None:
        return self._backbone.absent()

    def convention(self, of_task: Convention) -> Convention:
        return FEATURES8

    def describe(self, of_task: Convention) -> dict:
        described = super().describe(of_task)
        patches = f"one number for the set, over patches of {self.patch}x{self.patch} pixels"
        return described | {"convention": f"{described['convention']}; {patches}"}

    def features(self, image: np.ndarray) -> np.ndarray:
        """(H // patch * W // patch, 2048) float32; ``nan`` where the image is not finite.

        Raises:
            UserError: the image is smaller than a patch.
        """
        height, width = image.shape[:2]
        if min(height, width) < self.patch:
            raise UserError(
                f"metrics=fid and kid with patch={self.patch} need images of that many pixels a side, not "
                f"{width}x{height}: accepted are larger images, or metrics without them"
            )
        if not np.isfinite(image).all():
            return np.full((1, int(LAYER)), np.nan, np.float32)
        return self._inception.features(self._patches(image))

    def _patches(self, image: np.ndarray) -> np.ndarray:
        """(height, width, 1 or 3) in [0, 1] -> (n, 3, patch, patch) uint8."""
        rows, columns = (side // self.patch for side in image.shape[:2])
        whole = np.round(image[: rows * self.patch, : columns * self.patch] * 255).astype(np.uint8)
        tiles = whole.reshape(rows, self.patch, columns, self.patch, -1).transpose(0, 2, 4, 1, 3)
        tiles = tiles.reshape(rows * columns, -1, self.patch, self.patch)
        return np.broadcast_to(tiles, (len(tiles), 3, *tiles.shape[2:])).copy()

    @cached_property
    def _inception(self) -> Inception:
        self._backbone.read()  # torch-fidelity reads the file in a way that would execute code in it
        try:
            return inception(self._backbone.path.resolve())
        except RuntimeError as error:
            raise self._backbone.unfit("does not hold torch-fidelity's Inception v3") from error


class Fid(_InceptionMetric):
    """Fréchet distance between the two sets' features as Gaussians (Heusel et al. 2017, arXiv 1706.08500).

    Biased upwards for few patches: below some thousands only differences between rows of one table mean something.
    """

    def compare(self, outputs: np.ndarray, targets: np.ndarray) -> float:
        """|mu_1 - mu_2|² + tr C_1 + tr C_2 - 2 tr (C_1 C_2)^½, from features (N, 2048) and (M, 2048).

        Raises:
            UserError: a set has fewer than two patches.
        """
        if min(len(outputs), len(targets)) < 2:
            raise UserError("metrics=fid needs two patches or more: accepted are larger or more images")
        mean_difference = outputs.mean(0, dtype=np.float64) - targets.mean(0, dtype=np.float64)
        a, b = _factor(outputs), _factor(targets)
        # With C_1 = AᵀA, C_2 = BᵀB the last trace is the sum of the singular values of A Bᵀ: fast for few patches.
        common = np.linalg.norm(a @ b.T, "nuc")
        return max(0.0, mean_difference @ mean_difference + (a**2).sum() + (b**2).sum() - 2 * common)


class Kid(_InceptionMetric):
    """Squared maximum mean discrepancy of the features, cubic kernel (Bińkowski et al. 2018, arXiv 1801.01401).

    The unbiased estimate, which may be slightly negative; the mean over 100 random subsets of 1000 patches, or of all
    patches where there are no more.
    """

    def compare(self, outputs: np.ndarray, targets: np.ndarray) -> float:
        """From features (N, 2048) and (M, 2048).

        Raises:
            UserError: a set has fewer than two patches.
        """
        import torch
        from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

        fewest = min(len(outputs), len(targets))
        if fewest < 2:
            raise UserError("metrics=kid needs two patches or more: accepted are larger or more images")
        sets = [torch.from_numpy(features.astype(np.float64)) for features in (outputs, targets)]
        subsets = KID_SUBSETS if max(len(outputs), len(targets)) > KID_SUBSET else 1  # of all patches all are the same
        sizes = {"kid_subset_size": min(KID_SUBSET, fewest), "kid_subsets": subsets}
        return kid_features_to_metric(*sets, **sizes, verbose=False)[KEY_METRIC_KID_MEAN]


def _factor(features: np.ndarray) -> np.ndarray:
    """A (at most N, D) whose AᵀA is the covariance of features (N, D)."""
    centred = features - features.mean(0, dtype=np.float64)
    return np.linalg.qr(centred, mode="r") / np.sqrt(len(features) - 1)


class Inception:
    """torch-fidelity's Inception v3, and the features that it has already computed.

    Args:
        path: its weights; the file is trusted.

    Raises:
        RuntimeError: the weights are of another network.
    """

    def __init__(self, path: Path):
        import nystra_bench.torchvision_guard  # noqa: F401  before torch-fidelity, which imports torchvision

        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3  # isort: skip

        self._network = FeatureExtractorInceptionV3("inception", [LAYER], feature_extractor_weights_path=str(path))
        self._known: dict[bytes, np.ndarray] = {}

    def features(self, patches: np.ndarray) -> np.ndarray:
        """(n, 3, side, side) uint8 -> (n, 2048) float32."""
        key = hashlib.sha256(repr(patches.shape).encode() + patches.tobytes()).digest()
        if key in self._known:
            return self._known[key]
        computed = self._compute(patches)
        if sum(map(len, self._known.values())) + len(computed) <= KEPT_PATCHES:
            self._known[key] = computed
        return computed

    def _compute(self, patches: np.ndarray) -> np.ndarray:
        import torch

        batches = torch.from_numpy(patches).split(BATCH)
        with torch.inference_mode():
            return torch.cat([self._network(batch)[0] for batch in batches]).numpy()


@lru_cache(maxsize=1)
def inception(path: Path) -> Inception:
    """One network for all metrics of a session."""
    return Inception(path)
