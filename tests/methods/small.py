"""A model small enough for slow references: 36 patches, 2 blocks, width 32."""

import numpy as np
import torch
from torch import Tensor

from dseq_jepa.methods.jepa import Jepa, Moment
from dseq_jepa.methods.settings import JepaSettings, RegionSettings
from dseq_jepa.models.settings import ArchitectureSettings, PredictorSettings
from tests.reference.jepa import Heads

HEADS = Heads(encoder=4, predictor=2)
ARCHITECTURE = ArchitectureSettings(
    label="test",
    image_size=48,
    patch_size=8,
    width=32,
    depth=2,
    heads=HEADS.encoder,
    saliency_block=1,
    predictor=PredictorSettings(width=16, depth=2, heads=HEADS.predictor),
    recipe="none",
)
REGIONS = RegionSettings(count=5, min_patches=1)
MOMENT = Moment(seed=3, step=17, progress=1.0)
IDS = np.array([4, 90, 17, 2])

I_JEPA = JepaSettings(label="I-JEPA", class_token=False, generation="uniform", prediction="flat")
DSEQ = JepaSettings(
    label="DSeq-JEPA", class_token=True, generation="discriminative", prediction="sequential", regions=REGIONS
)


def images(count: int = len(IDS), seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 48, 48, generator=torch.Generator().manual_seed(seed))


def build(settings: JepaSettings, seed: int = 0) -> Jepa:
    """Weights large enough that attention is far from uniform, and a target encoder unlike the context encoder."""
    torch.manual_seed(seed)
    method = Jepa(settings, ARCHITECTURE, gather=lambda rows: rows)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return method


def states(method: Jepa) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Context encoder, predictor, target encoder: the parameters themselves, so that gradients reach them."""
    parts = (method.context_encoder, method.predictor, method.target_encoder)
    return tuple(part.state_dict(keep_vars=True) for part in parts)
