"""A model small enough for loops: 6 x 6 patches, two blocks, width 32, random float64 parameters.

from tests.reference.tiny import encoder_state, picture, predictor_state
"""

import numpy as np
import torch
from torch import Tensor

from tests.reference.jepa import Heads

GRID, PATCH, WIDTH, NARROW, HEADS = 6, 4, 32, 16, Heads(encoder=4, predictor=2)


def random_state(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = {name: torch.randn(shape, generator=generator, dtype=torch.float64) * 0.2 for name, shape in shapes.items()}
    # Scales near one, so that tokens are visibly different after a LayerNorm.
    return {name: value + 1 if "norm" in name and name.endswith("weight") else value for name, value in state.items()}


def block_shapes(stem: str, width: int) -> dict[str, tuple[int, ...]]:
    layers = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    layers |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in layers.items():
        shapes |= {f"{stem}.{name}.weight": shape, f"{stem}.{name}.bias": shape[:1]}
    for name in ("norm1", "norm2"):
        shapes |= {f"{stem}.{name}.weight": (width,), f"{stem}.{name}.bias": (width,)}
    return shapes


def encoder_state(seed: int, class_token: bool = True) -> dict[str, Tensor]:
    shapes = {"patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH), "patch_embed.proj.bias": (WIDTH,)}
    shapes |= {"cls_token": (1, 1, WIDTH)} if class_token else {}
    shapes |= block_shapes("blocks.0", WIDTH) | block_shapes("blocks.1", WIDTH)
    return random_state(shapes | {"norm.weight": (WIDTH,), "norm.bias": (WIDTH,)}, seed)


def predictor_state(seed: int) -> dict[str, Tensor]:
    shapes = {"embed.weight": (NARROW, WIDTH), "embed.bias": (NARROW,), "mask_token": (1, 1, NARROW)}
    shapes |= block_shapes("blocks.0", NARROW) | block_shapes("blocks.1", NARROW)
    shapes |= {"norm.weight": (NARROW,), "norm.bias": (NARROW,)}
    return random_state(shapes | {"project.weight": (WIDTH, NARROW), "project.bias": (WIDTH,)}, seed)


def picture(seed: int) -> Tensor:
    side = GRID * PATCH
    return torch.randn(3, side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


RANKS_HW = np.array(
    [
        [1, 1, 1, 4, 4, 4],
        [1, 1, 1, 4, 2, 2],
        [4, 4, 4, 4, 2, 2],
        [4, 4, 4, 4, 2, 2],
        [3, 3, 4, 4, 4, 4],
        [3, 3, 3, 3, 4, 4],
    ]
)
