"""Mask R-CNN on an exported encoder: engine `torchvision` of `dseq-jepa detect`.

    network = MaskRCNN(load_encoder(path, drop_path=0.1), settings, classes=80)
    losses = network(images_BCSS, sizes, targets, seeds_B)  # training
    detections = network.detect(images_BCSS, sizes)         # testing

B images, S side of the padded square, N objects or detections of an image.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from dseq_jepa.errors import UserError
from dseq_jepa.evaluation.detection.backbone import DetectionViT, SimpleFeaturePyramid
from dseq_jepa.evaluation.detection.heads import Features, RegionHeads, RegionProposals, Truth, strides_of
from dseq_jepa.evaluation.settings import DetectionSettings
from dseq_jepa.models.vit import VisionTransformer
from dseq_jepa.models.weights import IMAGENET_MEAN, IMAGENET_STD

Sizes = Sequence[tuple[int, int]]


class MaskRCNN(nn.Module):
    """Images to losses or detections.

    Args:
        encoder: exported weights, trained with the rest.
        settings: of the evaluation.
        classes: K, without the background.
        mean: of the encoder's input, on [0, 1].
        std: of the encoder's input.

    Raises:
        UserError: the encoder's patch does not fit the pyramid or the image size.

    """

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(
        self,
        encoder: VisionTransformer,
        settings: DetectionSettings,
        classes: int,
        *,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        patch, detector = encoder.settings.patch_size, settings.detector
        require_fitting(patch, settings.image_size)
        strides = strides_of(patch)
        self.backbone = DetectionViT(encoder, detector.window)
        self.pyramid = SimpleFeaturePyramid(self.backbone.width, detector.width)
        self.proposals = RegionProposals(detector, strides)
        self.heads = RegionHeads(detector, strides, patch, classes)
        for name, values in (("mean_C11", mean), ("std_C11", std)):
            self.register_buffer(name, torch.tensor([255 * v for v in values])[:, None, None], persistent=False)

    def forward(self, images_BCSS: Tensor, sizes: Sizes, targets: Truth, seeds_B: Sequence[int]) -> dict[str, Tensor]:
        """Losses of a batch.

        Args:
            images_BCSS: uint8, padded at the right and at the bottom.
            sizes: height and width of every image without padding.
            targets: `boxes` (N, 4), `labels` (N,) from 1 and `masks` (N, S, S) of every image.
            seeds_B: of the images' sampled anchors and regions.

        """
        self.proposals.fg_bg_sampler.seeds_B = self.heads.fg_bg_sampler.seeds_B = seeds_B
        images, features = self._see(images_BCSS, sizes)
        proposals, losses = self.proposals(images, features, targets)
        return losses | self.heads(features, proposals, images.image_sizes, targets)[1]  # type: ignore[no-any-return]

    @torch.no_grad()
    def detect(self, images_BCSS: Tensor, sizes: Sizes) -> Truth:
        """Per image `boxes` (N, 4), `labels` (N,), `scores` (N,) and `masks` (N, M, M), best first."""
        images, features = self._see(images_BCSS, sizes)
        proposals, _ = self.proposals(images, features)
        return self.heads(features, proposals, images.image_sizes)[0]  # type: ignore[no-any-return]

    def _see(self, images_BCSS: Tensor, sizes: Sizes) -> tuple[ImageList, Features]:
        pixels_BCSS = (images_BCSS.float() - self.mean_C11) / self.std_C11
        for pixels_CSS, (height, width) in zip(pixels_BCSS, sizes, strict=True):
            pixels_CSS[:, height:] = 0  # padding is the mean colour
            pixels_CSS[:, :, width:] = 0
        maps = self.pyramid(self.backbone(pixels_BCSS))
        # Boxes and losses in full precision, as detectron2 does under autocast.
        features = {str(level): values.float() for level, values in enumerate(maps)}
        return ImageList(pixels_BCSS, list(sizes)), features


def require_fitting(patch: int, image_size: int) -> None:
    """Refuse an image size that the pyramid's coarsest map would not divide.

    Raises:
        UserError: with the nearest size that fits.

    """
    if patch % 4:
        raise UserError(f"detection needs a patch that is a multiple of 4 pixels for its pyramid; this one is {patch}")
    if image_size % (2 * patch):
        nearest = max(1, round(image_size / (2 * patch))) * 2 * patch
        raise UserError(
            f"image_size {image_size} is not a multiple of two patches ({2 * patch} px); the nearest is {nearest}"
        )
