"""The detector's parts: pyramid, windows, sampling, losses, masks, and the numbers that detectron2 documents."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dseq_jepa.draws import uniforms
from dseq_jepa.errors import UserError
from dseq_jepa.evaluation.backbone import layer_groups
from dseq_jepa.evaluation.detection.backbone import DetectionViT, SimpleFeaturePyramid, global_blocks
from dseq_jepa.evaluation.detection.heads import (
    AlignedPool,
    ImageSampler,
    RegionHeads,
    RegionProposals,
    box_losses,
    mask_loss,
    paste_masks,
    strides_of,
)
from dseq_jepa.evaluation.detection.network import MaskRCNN, require_fitting
from dseq_jepa.evaluation.settings import DetectorSettings
from dseq_jepa.models.vit import VisionTransformer
from tests.evaluation.shapes import detection
from tests.models.checkpoints import TINY, encoder


def test_the_pyramid_has_five_levels_of_one_width() -> None:
    maps = SimpleFeaturePyramid(24, 16)(torch.zeros(2, 24, 8, 6))
    assert [tuple(level.shape) for level in maps] == [
        (2, 16, 32, 24), (2, 16, 16, 12), (2, 16, 8, 6), (2, 16, 4, 3), (2, 16, 2, 2),
    ]  # fmt: skip


def test_without_windows_the_backbone_is_the_encoder_without_its_final_norm() -> None:
    plain = encoder(class_token=False)
    images = torch.rand(2, 3, 32, 32)
    expected_BTD = plain.read(images, [4])[0].patches_BTD
    backbone = DetectionViT(encoder(class_token=False), None).eval()
    tokens_BTD = backbone(images).flatten(2).transpose(1, 2)
    assert torch.allclose(plain.norm(tokens_BTD), expected_BTD, atol=1e-5)
    assert all(parameter.requires_grad for parameter in backbone.parameters())


def test_positions_are_the_encoders_and_bicubic_on_other_grids() -> None:
    backbone = DetectionViT(encoder(class_token=True), None)
    assert torch.equal(backbone.positions(4, 4).flatten(0, 2), encoder(class_token=True).pos_embed[0])
    own_1DSS = backbone.pos_embed.view(1, 4, 4, 24).permute(0, 3, 1, 2)
    expected = F.interpolate(own_1DSS, (6, 5), mode="bicubic", align_corners=False)
    assert torch.equal(backbone.positions(6, 5), expected.permute(0, 2, 3, 1))


def test_global_blocks_are_the_last_of_every_quarter() -> None:
    assert global_blocks(12, 14) == {2, 5, 8, 11}
    assert global_blocks(24, 14) == {5, 11, 17, 23}
    assert global_blocks(32, 14) == {7, 15, 23, 31}
    assert global_blocks(12, None) == set(range(12))


def test_a_windowed_block_sees_its_window_only() -> None:
    """Attention against a loop over windows, on a grid that the windows do not divide."""
    torch.manual_seed(0)
    backbone = DetectionViT(encoder(class_token=False), window=3)
    block, x_BHWD = backbone.blocks[0], torch.randn(2, 5, 7, 24)
    seen = backbone._attend(block, x_BHWD, everywhere=False)
    padded = F.pad(x_BHWD, (0, 0, 0, 2, 0, 1))
    expected = torch.zeros(2, 6, 9, 24)
    for top in (0, 3):
        for left in (0, 3, 6):
            part = padded[:, top : top + 3, left : left + 3]
            expected[:, top : top + 3, left : left + 3] = block.attn(part.reshape(2, 9, 24)).view(2, 3, 3, 24)
    assert torch.allclose(seen, expected[:, :5, :7], atol=1e-6)
    assert not torch.allclose(seen, backbone._attend(block, x_BHWD, everywhere=True), atol=1e-3)


def test_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(2)
        backbone = DetectionViT(VisionTransformer(TINY, False, checkpointing=checkpointing), window=2)
        backbone(torch.ones(1, 3, 32, 32)).square().sum().backward()
        gradients.append(backbone.blocks[0].attn.qkv.weight.grad)
    assert torch.allclose(*gradients)


def test_numbers_are_those_that_detectron2_documents_for_mask_rcnn_on_a_vit() -> None:
    """Its configs/common/models/mask_rcnn_fpn.py and mask_rcnn_vitdet.py."""
    defaults, strides = DetectorSettings(), strides_of(16)
    assert strides == [4, 8, 16, 32, 64]
    proposals, heads = RegionProposals(defaults, strides), RegionHeads(defaults, strides, 16, classes=80)
    assert proposals.anchor_generator.sizes == ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,))
    assert proposals.anchor_generator.aspect_ratios == ((0.5, 1.0, 2.0),) * 5
    assert (proposals.proposal_matcher.high_threshold, proposals.proposal_matcher.low_threshold) == (0.7, 0.3)
    assert proposals.proposal_matcher.allow_low_quality_matches
    assert (proposals.fg_bg_sampler.batch_size_per_image, proposals.fg_bg_sampler.positive_fraction) == (256, 0.5)
    assert proposals._pre_nms_top_n == {"training": 2000, "testing": 1000}
    assert proposals._post_nms_top_n == {"training": 1000, "testing": 1000}
    assert proposals.nms_thresh == 0.7
    assert proposals.box_coder.weights == (1.0, 1.0, 1.0, 1.0)
    assert len(proposals.head.conv) == 2
    assert (heads.proposal_matcher.high_threshold, heads.proposal_matcher.allow_low_quality_matches) == (0.5, False)
    assert (heads.fg_bg_sampler.batch_size_per_image, heads.fg_bg_sampler.positive_fraction) == (512, 0.25)
    assert heads.box_coder.weights == (10.0, 10.0, 5.0, 5.0)
    assert (heads.score_thresh, heads.nms_thresh, heads.detections_per_img) == (0.05, 0.5, 100)
    for pool, side in ((heads.box_roi_pool, 7), (heads.mask_roi_pool, 14)):
        assert (pool.side, pool.strides, pool.canonical, pool.strides[pool.middle]) == (side, (4, 8, 16, 32), 224, 16)
    shapes = [tuple(m.weight.shape) for m in heads.box_head if isinstance(m, nn.Conv2d | nn.Linear)]
    assert shapes == [(256, 256, 3, 3)] * 4 + [(1024, 256 * 49)]
    masks = [m for m in heads.mask_head if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert [tuple(m.weight.shape) for m in masks] == [(256, 256, 3, 3)] * 4 + [(256, 256, 2, 2)]
    assert heads.mask_predictor.weight.shape[0] == 80
    assert heads.box_predictor.score.weight.shape == (81, 1024)


def test_anchors_have_their_area_and_ratio_unrounded() -> None:
    anchors = RegionProposals(DetectorSettings(), strides_of(16)).anchor_generator.cell_anchors[0]
    width, height = (anchors[:, 2] - anchors[:, 0]), (anchors[:, 3] - anchors[:, 1])
    assert torch.allclose(width * height, torch.full((3,), 1024.0))
    assert torch.allclose(height / width, torch.tensor([0.5, 1.0, 2.0]))
    assert torch.allclose(anchors[:, :2], -anchors[:, 2:])


def test_regions_are_read_from_the_level_of_their_size() -> None:
    pool = AlignedPool(7, strides_of(16), 16)
    sides = torch.tensor([10.0, 111.0, 113.0, 223.0, 225.0, 447.0, 449.0, 3000.0])
    boxes = torch.stack([torch.zeros(8), torch.zeros(8), sides, sides], dim=1)
    assert pool.level_of(boxes).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_pooling_is_aligned() -> None:
    """On a map whose value is the pixel's x, a region's features are its own coordinates, half a pixel not lost."""
    pool = AlignedPool(2, strides_of(4), 4)
    x_HW = (torch.arange(32.0) + 0.5).expand(32, 32)
    features = {str(level): (x_HW[None, None] * stride) for level, stride in enumerate([1, 2, 4, 8])}
    pooled = pool(features, [torch.tensor([[4.0, 4.0, 12.0, 12.0]])])
    assert torch.allclose(pooled[0, 0], torch.tensor([[6.0, 10.0], [6.0, 10.0]]))


def test_sampling_is_a_function_of_the_images_seed() -> None:
    labels = torch.cat([torch.ones(40), torch.zeros(100), -torch.ones(10)])
    sampler = ImageSampler(64, 0.25)
    sampler.seeds_B = [5, 6]
    (first, second), (negative, _) = sampler([labels, labels])
    assert (int(first.sum()), int(negative.sum())) == (16, 48)
    assert labels[first].eq(1).all()
    assert labels[negative].eq(0).all()
    assert not torch.equal(first, second)
    torch.rand(7)
    sampler.seeds_B = [6, 5]
    assert torch.equal(sampler([labels, labels])[0][0], second)


def test_proposal_losses_are_sums_over_the_requested_samples() -> None:
    proposals = RegionProposals(DetectorSettings(anchors_per_image=10), strides_of(16))
    proposals.fg_bg_sampler.seeds_B = [1]
    labels = torch.tensor([1.0, 0.0, 0.0, -1.0])
    deltas, goals = torch.zeros(4, 4), torch.full((4, 4), 0.25)
    score, box = proposals.compute_loss(torch.zeros(1, 4), deltas, [labels], [goals])
    assert float(score) == pytest.approx(3 * np.log(2) / 10)
    assert float(box) == pytest.approx(4 * 0.25 / 10)  # L1, one positive


def test_box_losses_of_regions_are_l1_of_their_own_class_over_all_regions() -> None:
    """Three regions, of which the second is an object of class 2 of two."""
    deltas_N4K = torch.zeros(3, 4 * 3)
    deltas_N4K[1, 8:] = torch.tensor([0.5, -0.25, 2.0, 0.0])
    deltas_N4K[1, 4:8] = 9.0  # of the other class, which nothing is asked of
    goals_N4 = torch.tensor([[7.0] * 4, [0.0, 0.25, -1.0, 0.0], [7.0] * 4])
    losses = box_losses(torch.zeros(3, 3), deltas_N4K, torch.tensor([0, 2, 0]), goals_N4)
    assert float(losses["loss_box"]) == pytest.approx((0.5 + 0.5 + 3.0 + 0.0) / 3)
    assert float(losses["loss_class"]) == pytest.approx(np.log(3))


def test_mask_targets_are_cut_out_of_the_matched_object() -> None:
    """Logits that agree with the object's half of a region have no loss."""
    mask_NHW = torch.zeros(1, 32, 32, dtype=torch.uint8)
    mask_NHW[0, :, :16] = 1
    logits = torch.full((1, 2, 28, 28), 50.0)
    logits[0, 1, :, 14:] = -50.0
    targets = [{"masks": mask_NHW, "labels": torch.tensor([2])}]
    region = [torch.tensor([[8.0, 8.0, 24.0, 24.0]])]
    assert float(mask_loss(logits, region, targets, [torch.tensor([0])])) == pytest.approx(0, abs=1e-6)
    targets[0]["labels"] = torch.tensor([1])
    assert float(mask_loss(logits, region, targets, [torch.tensor([0])])) == pytest.approx(25, abs=0.1)
    assert float(mask_loss(torch.zeros(0, 2, 28, 28), [torch.zeros(0, 4)], targets, [torch.zeros(0).long()])) == 0


def test_masks_are_pasted_where_their_box_is() -> None:
    masks = torch.ones(3, 28, 28)
    masks[1, :, 14:] = 0
    boxes = torch.tensor([[4.0, 2.0, 14.0, 12.0], [10.0, 0.0, 30.0, 20.0], [-5.0, 15.0, 5.0, 40.0]])
    pasted = paste_masks(masks, boxes, 20, 30)
    expected = torch.zeros(3, 20, 30, dtype=torch.bool)
    expected[0, 2:12, 4:14] = True
    expected[1, :, 10:20] = True
    expected[2, 15:, :5] = True
    assert torch.equal(pasted, expected)
    assert paste_masks(masks[:0], boxes[:0], 20, 30).shape == (0, 20, 30)


def batch() -> tuple[Any, ...]:
    masks = torch.zeros(1, 64, 64, dtype=torch.uint8)
    masks[:, 10:40, 10:30] = 1
    target = {"boxes": torch.tensor([[10.0, 10, 30, 40]]), "labels": torch.tensor([2]), "masks": masks}
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "masks": masks[:0]}
    images = torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return images, [(64, 64), (40, 64)], [target, nothing], [1, 2]


def test_every_parameter_gets_a_gradient_also_beside_an_image_without_objects() -> None:
    network = MaskRCNN(encoder(class_token=True), detection(), classes=3).train()
    losses = network(*batch())
    assert set(losses) == {"loss_objectness", "loss_rpn_box_reg", "loss_class", "loss_box", "loss_mask"}
    torch.stack(list(losses.values())).sum().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []
    no_objects = network(batch()[0], [(64, 64)] * 2, [batch()[2][1]] * 2, [1, 2])
    assert float(no_objects["loss_mask"].detach()) == float(no_objects["loss_box"].detach()) == 0


def test_padding_and_what_lies_in_it_change_nothing() -> None:
    network = MaskRCNN(encoder(class_token=True), detection(detector={"score_threshold": 0.0}), classes=3).eval()
    images, sizes, _, _ = batch()
    other = images.clone()
    other[1, :, 40:] = 99
    for first, second in zip(network.detect(images, sizes), network.detect(other, sizes), strict=True):
        assert torch.equal(first["boxes"], second["boxes"])
        assert len(first["boxes"]) > 0
    assert network.detect(images, sizes)[1]["boxes"][:, 3].max() <= 40


def test_rates_fall_from_block_to_block_and_norms_do_not_decay() -> None:
    settings = detection(layer_decay=0.5, weight_decay=0.1)
    network = MaskRCNN(encoder(class_token=False), settings, classes=3)
    where = {id(p): group for group in layer_groups(network, settings) for p in group["params"]}
    scale = {name: where[id(p)]["lr_scale"] for name, p in network.named_parameters()}
    decay = {name: where[id(p)]["weight_decay"] for name, p in network.named_parameters()}
    assert scale["backbone.pos_embed"] == scale["backbone.patch_embed.proj.weight"] == 0.5**5
    assert [scale[f"backbone.blocks.{i}.mlp.fc1.weight"] for i in range(4)] == [0.5**4, 0.5**3, 0.5**2, 0.5]
    assert scale["heads.box_predictor.score.weight"] == scale["pyramid.levels.0.0.weight"] == 1
    assert decay["backbone.pos_embed"] == decay["pyramid.levels.0.1.weight"] == 0
    assert decay["backbone.blocks.0.mlp.fc1.weight"] == 0.1


def test_sizes_that_do_not_fit_are_refused_with_the_nearest_that_does() -> None:
    with pytest.raises(UserError, match=r"image_size 100 is not .* two patches \(32 px\); the nearest is 96"):
        require_fitting(16, 100)
    with pytest.raises(UserError, match="multiple of 4 pixels for its pyramid; this one is 14"):
        require_fitting(14, 112)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"scale_range": [2.0, 0.1]}, "must be positive and rise"),
        ({"warmup_epochs": 2.0}, "warmup_epochs 2 is not less than epochs 2"),
        ({"detector": {"relative_position": True}}, "belongs to engine: detectron2"),
        ({"engine": "detectron2", "activation_checkpointing": True}, "belongs to engine: torchvision"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        detection(**changes)


def test_stochastic_depth_is_handed_out_per_image() -> None:
    from dseq_jepa.models.dropping import hand_out

    network = DetectionViT(VisionTransformer(TINY, False, drop_path=0.9), None).train()
    images = torch.rand(1, 3, 32, 32).repeat(4, 1, 1, 1)
    ids_B = np.arange(4)
    hand_out(network, seed=0, step=1, ids_B=ids_B, device=torch.device("cpu"))
    first = network(images)
    torch.rand(3)
    hand_out(network, seed=0, step=1, ids_B=ids_B[::-1].copy(), device=torch.device("cpu"))
    assert torch.equal(network(images).flip(0), first)
    assert not torch.equal(first[0], first[1]) or uniforms(0, "dropping", 1, ids_B, 1).std() == 0
