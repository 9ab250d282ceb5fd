"""Multiply-adds and parameters (docs/protocols.md 6): what torch's own counter sees, the same on every device.

    multiply_adds(lambda: encoder(images_BCHW))
    inference_multiply_adds(architecture, class_token=True)      # 17.563e9 for ViT-B/16 at 224 px

Counted are matrix products: linear layers, and both products of attention. Not counted: norms, softmax, GELU, sums, the
optimizer and the EMA, which all are elementwise.
"""

import math
from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dseq_jepa.models.settings import ArchitectureSettings
from dseq_jepa.models.vit import VisionTransformer
from dseq_jepa.models.weights import encoder_shapes


def multiply_adds(work: Callable[[], object]) -> int:
    """Multiply-adds of all matrix products that some work does, backward passes included.

    Attention runs as two plain matrix products forward and four backward: torch's counter knows the fused kernels of
    GPUs (and counts what they recompute) but not those of CPUs, so that the count would depend on the device.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops()) // 2  # torch counts a multiplication and an addition as two


def inference_multiply_adds(architecture: ArchitectureSettings, *, class_token: bool) -> int:
    """Of the encoder on one image, without a head. Computed on the meta device: no size is too large."""
    with torch.device("meta"):
        encoder = VisionTransformer(architecture, class_token).to("meta")
        image_1CHW = torch.empty(1, 3, architecture.image_size, architecture.image_size)
    with torch.no_grad():
        return multiply_adds(lambda: encoder.read(image_1CHW, [architecture.depth]))


def parameters(architecture: ArchitectureSettings, *, class_token: bool, classes: int) -> int:
    """Of the encoder as exported, fixed positions included as in timm, with a linear classifier on the last block."""
    encoder = sum(math.prod(shape) for shape in encoder_shapes(architecture, class_token).values())
    return encoder + (architecture.width + 1) * classes
