"""Mask R-CNN's two stages on torchvision's parts, with detectron2's choices where the two differ.

    proposals, losses = RegionProposals(settings, strides)(images, features, targets)
    detections, losses = RegionHeads(settings, strides, classes=80)(features, proposals, sizes, targets)

What is set as detectron2 has it: RoIAlign with `aligned`, also for the masks' targets; L1 box losses; the proposal
losses divided by the number of *requested* samples; unrounded anchors of eight strides; two convolutions in the
proposal head, four with LayerNorm in the box and mask heads; initial weights. Anchors and levels scale with the
patch: at 16 px they are detectron2's 32 .. 512 px and 224 px.

B images, N regions, K classes, C channels, M side of a predicted mask.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import roi_align

from dseq_jepa.evaluation.settings import DetectorSettings

ANCHOR_STRIDES = 8
"""Side of a square anchor in strides of its level."""
RATIOS = (0.5, 1.0, 2.0)
BOX_POOL, MASK_POOL = 7, 14
"""Side of a region's features in the box and mask heads."""
REGION_LEVELS = 4
"""Levels that regions are read from; the fifth is for proposals only."""
CANONICAL_PATCHES = 14
"""A region of this many patches' side is read from the level of one stride per patch (224 px at patch 16)."""

Features = dict[str, Tensor]
"""Maps by level, "0" the finest."""
Truth = list[dict[str, Tensor]]
"""Per image `boxes` (N, 4), `labels` (N,) and `masks` (N, H, W)."""


class UnroundedAnchors(AnchorGenerator):  # type: ignore[misc]  # torchvision is untyped
    """torchvision's anchors without its rounding to whole pixels."""

    def generate_anchors(
        self,
        scales: Sequence[float],
        aspect_ratios: Sequence[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> Tensor:
        """(A, 4) anchors around 0: every scale's area at every ratio of height to width."""
        ratios = torch.as_tensor(aspect_ratios, dtype=dtype, device=device).sqrt()
        sides = torch.as_tensor(scales, dtype=dtype, device=device)[:, None]
        heights, widths = (sides * ratios).flatten(), (sides / ratios).flatten()
        return torch.stack([-widths, -heights, widths, heights], dim=1) / 2


class ImageSampler(BalancedPositiveNegativeSampler):  # type: ignore[misc]  # torchvision is untyped
    """torchvision's choice of positive and negative samples, drawn from a seed of each image.

    torchvision draws from the process's generator: what happens to an image would depend on its rank and on a resume.
    """

    seeds_B: Sequence[int] = ()
    """Of the images of the batch that comes next."""

    def __call__(self, matched_idxs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Per image a mask of the positive samples and one of the negative ones."""
        both = [self._one(labels_N, seed) for labels_N, seed in zip(matched_idxs, self.seeds_B, strict=True)]
        return [positive for positive, _ in both], [negative for _, negative in both]

    def _one(self, labels_N: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator(labels_N.device).manual_seed(seed)
        left, masks = self.batch_size_per_image, []
        for rows, most in (
            (torch.where(labels_N >= 1)[0], int(self.batch_size_per_image * self.positive_fraction)),
            (torch.where(labels_N == 0)[0], self.batch_size_per_image),
        ):
            count = min(len(rows), most, left)
            chosen = rows[torch.randperm(len(rows), generator=generator, device=rows.device)[:count]]
            masks.append(torch.zeros_like(labels_N, dtype=torch.bool).index_fill(0, chosen, True))
            left -= count
        return masks[0], masks[1]


class RegionProposals(RegionProposalNetwork):  # type: ignore[misc]  # torchvision is untyped
    """Where objects may be."""

    def __init__(self, settings: DetectorSettings, strides: Sequence[int]) -> None:
        before = dict(zip(("training", "testing"), settings.proposals_before, strict=True))
        anchors = UnroundedAnchors(
            sizes=tuple((float(ANCHOR_STRIDES * stride),) for stride in strides), aspect_ratios=(RATIOS,) * len(strides)
        )
        super().__init__(
            anchors,
            RPNHead(settings.width, len(RATIOS), conv_depth=2),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=settings.anchors_per_image,
            positive_fraction=0.5,
            pre_nms_top_n=before,
            post_nms_top_n=dict.fromkeys(before, settings.proposals_after),
            nms_thresh=0.7,
        )
        self.fg_bg_sampler = ImageSampler(settings.anchors_per_image, 0.5)

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Binary cross-entropy over the sampled anchors and L1 over the positive ones, per requested sample."""
        positive, negative = (torch.cat(chosen) for chosen in self.fg_bg_sampler(labels))
        requested = self.fg_bg_sampler.batch_size_per_image * len(labels)
        truth, targets = torch.cat(labels), torch.cat(regression_targets)
        sampled = positive | negative
        score = F.binary_cross_entropy_with_logits(objectness.flatten()[sampled], truth[sampled], reduction="sum")
        box = F.l1_loss(pred_bbox_deltas[positive], targets[positive], reduction="sum")
        return score / requested, box / requested


class AlignedPool(nn.Module):
    """RoIAlign with `aligned`, each region from the level that fits its size (Lin et al. 2017, Eq. 1)."""

    def __init__(self, side: int, strides: Sequence[int], patch: int) -> None:
        super().__init__()
        self.side, self.strides = side, tuple(strides[:REGION_LEVELS])
        self.canonical = CANONICAL_PATCHES * patch
        self.middle = self.strides.index(patch)

    def level_of(self, boxes_N4: Tensor) -> Tensor:
        """(N,) positions of levels."""
        sides_N = ((boxes_N4[:, 2] - boxes_N4[:, 0]) * (boxes_N4[:, 3] - boxes_N4[:, 1])).sqrt()
        level_N = torch.floor(self.middle + torch.log2(sides_N / self.canonical + 1e-8))
        return level_N.clamp(0, len(self.strides) - 1).long()

    def forward(self, features: Features, boxes: Sequence[Tensor], _sizes: object = None) -> Tensor:
        """(N, C, side, side) features of all images' regions, in order."""
        image_N = torch.cat([torch.full_like(own[:, :1], index) for index, own in enumerate(boxes)])
        boxes_N4 = torch.cat(list(boxes))
        regions_N5 = torch.cat([image_N, boxes_N4], dim=1)
        level_N = self.level_of(boxes_N4)
        first = features["0"]
        pooled = first.new_zeros(len(regions_N5), first.shape[1], self.side, self.side)
        for level, stride in enumerate(self.strides):
            rows = torch.where(level_N == level)[0]
            own = roi_align(features[str(level)], regions_N5[rows], self.side, 1.0 / stride, aligned=True)
            pooled = pooled.index_put((rows,), own.to(pooled.dtype))
        return pooled


class RegionHeads(RoIHeads):  # type: ignore[misc]  # torchvision is untyped
    """Which of the proposals are objects, of which class, their boxes and masks."""

    def __init__(self, settings: DetectorSettings, strides: Sequence[int], patch: int, classes: int) -> None:
        width, hidden = settings.width, settings.hidden
        super().__init__(
            box_roi_pool=AlignedPool(BOX_POOL, strides, patch),
            box_head=nn.Sequential(
                *_convolutions(width), nn.Flatten(), _linear(width * BOX_POOL**2, hidden), nn.ReLU()
            ),
            box_predictor=BoxPredictor(hidden, classes),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=settings.regions_per_image,
            positive_fraction=0.25,
            bbox_reg_weights=(10.0, 10.0, 5.0, 5.0),
            score_thresh=settings.score_threshold,
            nms_thresh=0.5,
            detections_per_img=settings.detections_per_image,
            mask_roi_pool=AlignedPool(MASK_POOL, strides, patch),
            mask_head=nn.Sequential(*_convolutions(width), *_upsampling(width)),
            mask_predictor=_normal(nn.Conv2d(width, classes, 1), 0.001),
        )
        self.fg_bg_sampler = ImageSampler(settings.regions_per_image, 0.25)

    def forward(
        self, features: Features, proposals: list[Tensor], sizes: list[tuple[int, int]], targets: Truth | None = None
    ) -> tuple[Truth, dict[str, Tensor]]:
        """In training no detections and the losses of classes, boxes and masks; in testing the other way round.

        A detection has `boxes`, `labels`, `scores` and `masks` (N, M, M), probabilities within its box.
        """
        if targets is None:
            return self._detect(features, proposals, sizes), {}
        proposals, matched, labels, goals = self.select_training_samples(proposals, targets)
        logits_NK, deltas_N4K = self.box_predictor(self.box_head(self.box_roi_pool(features, proposals)))
        losses = box_losses(logits_NK, deltas_N4K, torch.cat(labels), torch.cat(goals))
        positive = [torch.where(own > 0)[0] for own in labels]
        boxes = [own[rows] for own, rows in zip(proposals, positive, strict=True)]
        matched = [own[rows] for own, rows in zip(matched, positive, strict=True)]
        logits_NKMM = self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes)))
        return [], losses | {"loss_mask": mask_loss(logits_NKMM, boxes, targets, matched)}

    def _detect(self, features: Features, proposals: list[Tensor], sizes: list[tuple[int, int]]) -> Truth:
        logits_NK, deltas_N4K = self.box_predictor(self.box_head(self.box_roi_pool(features, proposals)))
        boxes, scores, labels = self.postprocess_detections(logits_NK.float(), deltas_N4K.float(), proposals, sizes)
        logits_NKMM = self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes)))
        label_N = torch.cat(labels) - 1
        masks_NMM = logits_NKMM[torch.arange(len(label_N), device=label_N.device), label_N].float().sigmoid()
        masks = masks_NMM.split([len(own) for own in boxes])
        found = zip(boxes, labels, scores, masks, strict=True)
        return [dict(zip(("boxes", "labels", "scores", "masks"), image, strict=True)) for image in found]


class BoxPredictor(nn.Module):
    """Logits of background and K classes, and box corrections of each."""

    def __init__(self, hidden: int, classes: int) -> None:
        super().__init__()
        self.score = _normal(nn.Linear(hidden, classes + 1), 0.01)
        self.box = _normal(nn.Linear(hidden, 4 * (classes + 1)), 0.001)

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 1+K) and (N, 4 (1+K))."""
        return self.score(x_ND), self.box(x_ND)


def box_losses(logits_NK: Tensor, deltas_N4K: Tensor, labels_N: Tensor, goals_N4: Tensor) -> dict[str, Tensor]:
    """Cross-entropy over all sampled regions; L1 over those that are objects, divided by the number of all."""
    positive = torch.where(labels_N > 0)[0]
    deltas_NK4 = deltas_N4K.view(len(labels_N), -1, 4)
    box = F.l1_loss(deltas_NK4[positive, labels_N[positive]], goals_N4[positive], reduction="sum")
    return {"loss_class": F.cross_entropy(logits_NK, labels_N), "loss_box": box / max(1, len(labels_N))}


def mask_loss(logits_NKMM: Tensor, boxes: list[Tensor], targets: Truth, matched: list[Tensor]) -> Tensor:
    """Binary cross-entropy of each region's mask of its class against the matched object's, cut out and resampled."""
    if not len(logits_NKMM):
        return logits_NKMM.sum() * 0
    side = logits_NKMM.shape[-1]
    cut, labels = [], []
    for own, target, rows in zip(boxes, targets, matched, strict=True):
        regions_N5 = torch.cat([rows[:, None].to(own), own], dim=1)
        cut.append(roi_align(target["masks"][:, None].to(own), regions_N5, side, 1.0, aligned=True)[:, 0] >= 0.5)
        labels.append(target["labels"][rows] - 1)
    row_N = torch.arange(len(logits_NKMM), device=logits_NKMM.device)
    chosen_NMM = logits_NKMM[row_N, torch.cat(labels)]
    return F.binary_cross_entropy_with_logits(chosen_NMM, torch.cat(cut).to(chosen_NMM))


def _convolutions(width: int) -> list[nn.Module]:
    """Four 3 x 3 convolutions with LayerNorm over the channels."""
    layers: list[nn.Module] = []
    for _ in range(4):
        convolution = nn.Conv2d(width, width, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        layers += [convolution, LayerNorm2d(width), nn.ReLU()]
    return layers


def _upsampling(width: int) -> list[nn.Module]:
    up = nn.ConvTranspose2d(width, width, 2, stride=2)
    nn.init.kaiming_normal_(up.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(up.bias)  # type: ignore[arg-type]  # it has one
    return [up, nn.ReLU()]


def _linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.kaiming_uniform_(layer.weight, a=1)
    nn.init.zeros_(layer.bias)
    return layer


def _normal(layer: nn.Conv2d | nn.Linear, deviation: float) -> nn.Conv2d | nn.Linear:
    nn.init.normal_(layer.weight, std=deviation)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # it has one
    return layer


def strides_of(patch: int) -> list[int]:
    """Pixels per step of the five levels.

    Raises:
        ValueError: the patch is not a multiple of 4.

    """
    if patch % 4:
        raise ValueError(f"a simple feature pyramid needs a patch that is a multiple of 4, got {patch}")
    return [patch * factor // 4 for factor in (1, 2, 4, 8, 16)]


def paste_masks(masks_NMM: Tensor, boxes_N4: Tensor, height: int, width: int) -> Tensor:
    """(N, H, W) bool masks in the picture: probabilities interpolated at pixel centres, at least a half.

    Args:
        masks_NMM: probabilities within each box.
        boxes_N4: in pixels of the picture.
        height: of the picture.
        width: of the picture.

    """
    pasted_NHW = torch.zeros(len(masks_NMM), height, width, dtype=torch.bool, device=masks_NMM.device)
    for mask_MM, box, out_HW in zip(masks_NMM, boxes_N4.tolist(), pasted_NHW, strict=True):
        left, top = max(0, math.floor(box[0])), max(0, math.floor(box[1]))
        right, bottom = min(width, math.ceil(box[2])), min(height, math.ceil(box[3]))
        if right <= left or bottom <= top:
            continue
        x_W = (torch.arange(left, right, device=mask_MM.device) + 0.5 - box[0]) / (box[2] - box[0]) * 2 - 1
        y_H = (torch.arange(top, bottom, device=mask_MM.device) + 0.5 - box[1]) / (box[3] - box[1]) * 2 - 1
        grid_1HW2 = torch.stack(torch.meshgrid(x_W, y_H, indexing="xy"), dim=-1)[None]
        values = F.grid_sample(mask_MM[None, None], grid_1HW2.to(mask_MM.dtype), align_corners=False)
        out_HW[top:bottom, left:right] = values[0, 0] >= 0.5
    return pasted_NHW
