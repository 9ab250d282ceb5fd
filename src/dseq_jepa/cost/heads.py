"""Multiply-adds of the networks that evaluations train: encoder and heads, forward, for one training picture.

    segmenter_multiply_adds(architecture, settings, class_token=True, classes=150)

Counted on the meta device with the modules that are trained. At 512 px UPerNet's heads take four times what ViT-B does,
so that an encoder alone says little about a dense evaluation's time.
"""

from functools import cache

import torch

from dseq_jepa.cost.count import multiply_adds
from dseq_jepa.evaluation.backbone import Backbone
from dseq_jepa.evaluation.detection.heads import BOX_POOL, MASK_POOL
from dseq_jepa.evaluation.detection.network import MaskRCNN
from dseq_jepa.evaluation.settings import DetectionSettings, SegmentationSettings
from dseq_jepa.evaluation.upernet import Segmenter
from dseq_jepa.models.settings import ArchitectureSettings
from dseq_jepa.models.vit import VisionTransformer
from dseq_jepa.models.weights import IMAGENET_MEAN, IMAGENET_STD


@cache
def segmenter_multiply_adds(
    architecture: ArchitectureSettings, settings: SegmentationSettings, *, class_token: bool, classes: int
) -> int:
    """Of one crop through the encoder, UPerNet's decoder and the auxiliary head."""
    size = settings.crop_size
    with torch.device("meta"), torch.no_grad():
        backbone = Backbone(_encoder(architecture, size, class_token), mean=IMAGENET_MEAN, std=IMAGENET_STD)
        network = Segmenter(backbone, settings, classes).eval()
        return multiply_adds(lambda: network(torch.empty(1, 3, size, size)))


@cache
def detector_multiply_adds(
    architecture: ArchitectureSettings, settings: DetectionSettings, *, class_token: bool, classes: int
) -> int:
    """Of one padded square through the encoder, the pyramid and Mask R-CNN's heads.

    The box head sees all sampled regions and the mask head as many as may be positive. Relative positions, which engine
    detectron2 has, are left out.
    """
    size, width, regions = settings.image_size, settings.detector.width, settings.detector.regions_per_image
    with torch.device("meta"), torch.no_grad():
        network = MaskRCNN(_encoder(architecture, size, class_token), settings, classes).eval()
        heads = network.heads
        positive = int(regions * heads.fg_bg_sampler.positive_fraction)

        def work() -> None:
            network.proposals.head(network.pyramid(network.backbone(torch.empty(1, 3, size, size))))
            heads.box_predictor(heads.box_head(torch.empty(regions, width, BOX_POOL, BOX_POOL)))
            heads.mask_predictor(heads.mask_head(torch.empty(positive, width, MASK_POOL, MASK_POOL)))

        return multiply_adds(work)


def _encoder(architecture: ArchitectureSettings, size: int, class_token: bool) -> VisionTransformer:
    return VisionTransformer(architecture.model_copy(update={"image_size": size}), class_token).to("meta")
