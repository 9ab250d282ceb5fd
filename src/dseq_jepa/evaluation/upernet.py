"""UPerNet on a plain ViT (docs/protocols.md 5): four blocks' tokens at four scales, decoder and auxiliary head.

    network = Segmenter(backbone, settings, classes=150)
    logits, auxiliary = network(backbone.normalise(images_BCHW))        # (B, 150, 4h, 4w) and (B, 150, h, w)

The heads are transformers', which equal mmsegmentation's layer by layer; as in its MAE recipe a channel dropout stands
before each last convolution, and the batch statistics are over all ranks. Unlike its MAE backbone, this one stays a
plain ViT: no relative position bias and no LayerScale are added. B images, D width, K classes, h w patches per side.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import UperNetConfig
from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

from dseq_jepa.evaluation.backbone import Backbone
from dseq_jepa.evaluation.settings import SegmentationSettings
from dseq_jepa.models.dropping import ImageDropout2d

AUXILIARY_LEVEL = 2
"""Of the four, from 0: the patches' own scale."""


def read_blocks(depth: int) -> list[int]:
    """The blocks whose output is read, 1-based: 4, 6, 8 and 12 of 12, and the same fractions of another depth."""
    return [max(1, round(depth * part)) for part in (1 / 3, 1 / 2, 2 / 3, 1)]


class Pyramid(nn.Module):
    """Four maps of one scale at four scales: x4, x2, x1 and x0.5 (mmsegmentation's Feature2Pyramid)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            [
                nn.Sequential(
                    nn.ConvTranspose2d(width, width, 2, 2),
                    nn.BatchNorm2d(width),
                    nn.GELU(),
                    nn.ConvTranspose2d(width, width, 2, 2),
                ),
                nn.ConvTranspose2d(width, width, 2, 2),
                nn.Identity(),
                nn.MaxPool2d(2, 2),
            ]
        )

    def forward(self, maps_BDhw: list[Tensor]) -> list[Tensor]:
        """Finest first."""
        return [scale(x_BDhw) for scale, x_BDhw in zip(self.scales, maps_BDhw, strict=True)]


class Segmenter(nn.Module):
    """Encoder, pyramid, UPerNet's decoder and the FCN head that helps to train it."""

    def __init__(self, backbone: Backbone, settings: SegmentationSettings, classes: int) -> None:
        super().__init__()
        width = backbone.settings.width
        self.backbone, self.blocks = backbone, read_blocks(backbone.settings.depth)
        config = UperNetConfig(
            hidden_size=settings.width,
            auxiliary_channels=settings.auxiliary_width,
            auxiliary_in_channels=width,
        )
        config.num_labels = classes
        self.pyramid = Pyramid(width)
        levels = [width] * 4
        self.decoder: nn.Module = UperNetHead(config, levels)  # type: ignore[no-untyped-call]  # half typed
        self.auxiliary: nn.Module = UperNetFCNHead(config, levels, AUXILIARY_LEVEL)
        for head, channels in ((self.decoder, settings.width), (self.auxiliary, settings.auxiliary_width)):
            head.apply(_initialise)
            last = head.get_submodule("classifier")
            nn.init.normal_(last.get_parameter("weight"), std=0.01)
            head.set_submodule("classifier", nn.Sequential(ImageDropout2d(settings.dropout, channels), last))

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of both heads, of normalised images as large as the backbone's grid."""
        grid = images_BCHW.shape[-1] // self.backbone.settings.patch_size
        tokens = self.backbone(images_BCHW, self.blocks)
        maps = self.pyramid([x_BTD.transpose(1, 2).unflatten(2, (-1, grid)) for x_BTD in tokens])
        return self.decoder(maps), self.auxiliary(maps)


def _initialise(module: nn.Module) -> None:
    """As mmsegmentation's ConvModule. For Module.apply."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows along one side begin; the last one ends at the border (mmsegmentation's slide inference)."""
    count = max(length - window + stride - 1, 0) // stride + 1
    return [max(min(index * stride + window, length) - window, 0) for index in range(count)]


def slide(network: Segmenter, picture_CHW: Tensor, window: int, stride: int, at_once: int = 8) -> Tensor:
    """Mean logits of overlapping windows.

    Args:
        network: in evaluation mode.
        picture_CHW: normalised, of any size; one smaller than a window is padded with zeros for it.
        window: side in pixels.
        stride: between windows.
        at_once: windows of one forward pass.

    Returns:
        (K, H, W).

    """
    _, height, width = picture_CHW.shape
    padded_CHW = F.pad(picture_CHW, (0, max(0, window - width), 0, max(0, window - height)))
    places = [
        (top, left)
        for top in window_starts(padded_CHW.shape[1], window, stride)
        for left in window_starts(padded_CHW.shape[2], window, stride)
    ]
    total_KHW: Tensor | None = None
    seen_HW = padded_CHW.new_zeros(padded_CHW.shape[1:])
    for begin in range(0, len(places), at_once):
        some = places[begin : begin + at_once]
        logits_BKhw, _ = network(torch.stack([padded_CHW[:, y : y + window, x : x + window] for y, x in some]))
        whole_BKHW = F.interpolate(logits_BKhw.float(), (window, window), mode="bilinear")
        if total_KHW is None:
            total_KHW = whole_BKHW.new_zeros(whole_BKHW.shape[1], *padded_CHW.shape[1:])
        for (top, left), part_KHW in zip(some, whole_BKHW, strict=True):
            total_KHW[:, top : top + window, left : left + window] += part_KHW
            seen_HW[top : top + window, left : left + window] += 1
    assert total_KHW is not None
    return (total_KHW / seen_HW)[:, :height, :width]
