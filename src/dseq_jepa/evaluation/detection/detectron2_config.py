"""The detector of engine detectron2 as a lazy configuration: its own ViTDet model, sized for our encoder.

    config = model_config(card, settings, classes=80)
    model = detectron2.config.instantiate(config)
    model.backbone.net.load_state_dict(backbone_weights(encoder), strict=False)

At ViT-B/16 and 1,024 px nothing but the drop path, the score threshold and the pixel statistics of the card can differ
from `common/models/mask_rcnn_vitdet.py`. detectron2 is imported here only; see workflow/envs/detectron2.yml.
"""

import functools
import math
from typing import Any

import torch
from detectron2 import model_zoo
from detectron2.config import LazyCall
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate
from torch import Tensor, nn

from dseq_jepa.evaluation.detection.backbone import global_blocks
from dseq_jepa.evaluation.detection.heads import ANCHOR_STRIDES, CANONICAL_PATCHES, REGION_LEVELS, strides_of
from dseq_jepa.evaluation.settings import DetectionSettings, DetectorSettings
from dseq_jepa.models.vit import VisionTransformer
from dseq_jepa.models.weights import EncoderCard


class CoarsestPool(LastLevelMaxPool):  # type: ignore[misc]  # detectron2 is untyped
    """detectron2's fifth level, which it takes from a map called p5; other patches name their maps otherwise."""

    def __init__(self, level: str) -> None:
        super().__init__()
        self.in_feature = level


def model_config(card: EncoderCard, settings: DetectionSettings, classes: int) -> Any:
    """detectron2's Mask R-CNN on its ViT with our sizes.

    Args:
        card: of the encoder.
        settings: of the evaluation.
        classes: K, without the background.

    """
    detector, strides = settings.detector, strides_of(card.patch_size)
    levels = [f"p{int(math.log2(stride))}" for stride in strides]
    model = model_zoo.get_config("common/models/mask_rcnn_vitdet.py").model
    model.pixel_mean, model.pixel_std = ([255 * value for value in values] for values in (card.mean, card.std))
    _size_backbone(model.backbone, card, settings, levels)
    proposals = model.proposal_generator
    proposals.in_features, proposals.head.in_channels = levels, detector.width
    proposals.anchor_generator.sizes = [[ANCHOR_STRIDES * stride] for stride in strides]
    proposals.anchor_generator.strides = strides
    proposals.batch_size_per_image = detector.anchors_per_image
    proposals.pre_nms_topk = detector.proposals_before
    proposals.post_nms_topk = (detector.proposals_after, detector.proposals_after)
    _size_heads(model.roi_heads, card, detector, levels[:REGION_LEVELS], strides[:REGION_LEVELS])
    model.roi_heads.num_classes = classes
    return model


def _size_backbone(backbone: Any, card: EncoderCard, settings: DetectionSettings, levels: list[str]) -> None:
    architecture, detector = card.architecture, settings.detector
    everywhere = global_blocks(architecture.depth, detector.window)
    net = backbone.net
    net.img_size, net.patch_size = settings.image_size, card.patch_size
    net.embed_dim, net.depth, net.num_heads = architecture.width, architecture.depth, architecture.heads
    net.drop_path_rate = settings.drop_path
    net.window_size = detector.window or 0
    net.window_block_indexes = [index for index in range(architecture.depth) if index not in everywhere]
    net.use_rel_pos = detector.relative_position
    net.pretrain_img_size, net.pretrain_use_cls_token = card.image_size, False
    backbone.out_channels, backbone.square_pad = detector.width, settings.image_size
    backbone.top_block = LazyCall(CoarsestPool)(level=levels[REGION_LEVELS - 1])


def _size_heads(
    heads: Any, card: EncoderCard, detector: DetectorSettings, levels: list[str], strides: list[int]
) -> None:
    heads.batch_size_per_image = detector.regions_per_image
    heads.box_in_features = heads.mask_in_features = levels
    for pooler in (heads.box_pooler, heads.mask_pooler):
        pooler.scales = [1 / stride for stride in strides]
        pooler.canonical_box_size = CANONICAL_PATCHES * card.patch_size
        pooler.canonical_level = int(math.log2(card.patch_size))
    heads.box_head.input_shape = ShapeSpec(channels=detector.width, height=7, width=7)
    heads.box_head.conv_dims, heads.box_head.fc_dims = [detector.width] * 4, [detector.hidden]
    heads.box_predictor.input_shape = ShapeSpec(channels=detector.hidden)
    heads.box_predictor.test_score_thresh = detector.score_threshold
    heads.box_predictor.test_topk_per_image = detector.detections_per_image
    heads.mask_head.input_shape = ShapeSpec(channels=detector.width, height=14, width=14)
    heads.mask_head.conv_dims = [detector.width] * 5


def optimizer_config(settings: DetectionSettings, depth: int, model: nn.Module) -> Any:
    """AdamW as ViTDet's configurations have it: rates fall from block to block, no decay on norms and positions."""
    optimizer = model_zoo.get_config("common/optim.py").AdamW
    optimizer.lr, optimizer.weight_decay = settings.learning_rate, settings.weight_decay
    optimizer.betas = settings.betas
    optimizer.params.model = model
    optimizer.params.lr_factor_func = functools.partial(
        get_vit_lr_decay_rate, num_layers=depth, lr_decay_rate=settings.layer_decay
    )
    optimizer.params.overrides = {"pos_embed": {"weight_decay": 0.0}}
    return optimizer


def backbone_weights(encoder: VisionTransformer) -> dict[str, Tensor]:
    """Our encoder under the names of detectron2's ViT: without class token and final norm, with its positions."""
    left_out = ("cls_token", "norm.", "pos_embed")
    tensors = {key: value for key, value in encoder.state_dict().items() if not key.startswith(left_out)}
    return {**tensors, "pos_embed": encoder.pos_embed.detach().clone()}


def load_backbone(net: nn.Module, encoder: VisionTransformer) -> None:
    """Copy an encoder into detectron2's ViT; only its relative positions start from zero.

    Raises:
        RuntimeError: any other weight is left without a source, or has no place.

    """
    with torch.no_grad():
        missing, unexpected = net.load_state_dict(backbone_weights(encoder), strict=False)
    left = [key for key in missing if ".attn.rel_pos_" not in key] + list(unexpected)
    if left:
        raise RuntimeError(f"detectron2's ViT and this encoder do not fit: {', '.join(left)}")
