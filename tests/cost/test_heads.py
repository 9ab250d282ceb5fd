"""Heads' multiply-adds are those of their layers, summed by hand.

pytest tests/cost/test_heads.py
"""

from pathlib import Path

from dseq_jepa.config import load
from dseq_jepa.cost.count import inference_multiply_adds
from dseq_jepa.cost.heads import detector_multiply_adds, segmenter_multiply_adds

PAPER = load(Path(__file__).parents[2] / "configs" / "paper.yaml")
BASE = PAPER.architectures["vit-b16"]


def conv(side: int, inputs: int, outputs: int, kernel: int = 3) -> int:
    """Of a square map; a transposed one of stride 2 and kernel 2 counts its smaller side."""
    return side**2 * kernel**2 * inputs * outputs


def test_upernets_are_its_convolutions() -> None:
    found = segmenter_multiply_adds(BASE, PAPER.evaluations["ade20k-segment"], class_token=False, classes=150)
    encoder = inference_multiply_adds(BASE.model_copy(update={"image_size": 512}), class_token=False)
    pyramid = conv(32, 768, 768, 2) + conv(64, 768, 768, 2) + conv(32, 768, 768, 2)
    pooled = sum(conv(side, 768, 768, 1) for side in (1, 2, 3, 6)) + conv(16, 5 * 768, 768)
    levels = sum(conv(side, 768, 768, 1) + conv(side, 768, 768) for side in (128, 64, 32))
    last = conv(128, 4 * 768, 768) + conv(128, 768, 150, 1)
    auxiliary = conv(32, 768, 256) + conv(32, 256, 150, 1)
    assert found == encoder + pyramid + pooled + levels + last + auxiliary


def test_mask_r_cnns_are_its_layers() -> None:
    settings = PAPER.evaluations["coco-detect"]
    found = detector_multiply_adds(BASE, settings, class_token=False, classes=80)
    tokens, padded = 64**2, 70**2  # windows of 14 x 14 cover 70 x 70
    linear = conv(64, 3 * 16**2, 768, 1) + 4 * 12 * tokens * 768**2 + 8 * (4 * padded + 8 * tokens) * 768**2
    encoder = linear + 4 * 2 * tokens**2 * 768 + 8 * 2 * padded * 14**2 * 768
    up = conv(64, 768, 384, 2) + conv(128, 384, 192, 2) + conv(64, 768, 384, 2)
    sides = {256: 192, 128: 384, 64: 768, 32: 768}
    levels = sum(conv(side, width, 256, 1) + conv(side, 256, 256) for side, width in sides.items())
    proposals = sum(2 * conv(side, 256, 256) + conv(side, 256, 3 + 12, 1) for side in (*sides, 16))
    boxes = 512 * (4 * conv(7, 256, 256) + 49 * 256 * 1024 + 1024 * 81 + 1024 * 4 * 81)
    masks = 128 * (4 * conv(14, 256, 256) + conv(14, 256, 256, 2) + conv(28, 256, 80, 1))
    assert found == encoder + up + levels + proposals + boxes + masks
