r"""Published checkpoints of other projects as encoders of ours, every key accounted for (docs/protocols.md 6).

    dseq-jepa import --kind mae --checkpoint mae_pretrain_vit_base.pth --config configs/paper.yaml \
        --architecture vit-b16 --out out/

Read with safetensors or torch.load(weights_only=True): nothing in a foreign file is executed. Key names and containers
as in the public code of timm, facebookresearch/{mae,dino,ijepa} and bytedance/ibot.
"""

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dseq_jepa.config import nearest
from dseq_jepa.errors import UserError
from dseq_jepa.files import file_sha256
from dseq_jepa.models.settings import ArchitectureSettings
from dseq_jepa.models.weights import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    EncoderCard,
    encoder_shapes,
    refuse_mismatches,
    unreadable,
    write_encoder,
)
from dseq_jepa.provenance import code_version

Channels = tuple[float, float, float]


@dataclass(frozen=True)
class Layout:
    """Where a project's checkpoints keep the encoder."""

    containers: tuple[str, ...]
    """Entries that may hold it, the first present one is taken; none: the file is the state dict itself."""
    prefixes: tuple[str, ...]
    """Taken off the front of every key, in this order."""
    unused: str
    """Regular expression of the keys, after the prefixes, that are not the encoder."""


LAYOUTS: dict[str, Layout] = {
    "timm": Layout(("state_dict", "model"), ("module.",), r"head\.(weight|bias)"),
    "mae": Layout(("model",), ("module.",), r"mask_token|decoder_.+|head\.(weight|bias)"),
    "dino": Layout(("teacher",), ("module.", "backbone."), r"head\..+"),
    "ibot": Layout(("state_dict", "teacher"), ("module.", "backbone."), r"head\..+|masked_embed"),
    "ijepa": Layout(("target_encoder",), ("module.",), r"(?!)"),
}


def import_checkpoint(
    path: Path,
    architecture: ArchitectureSettings,
    kind: str,
    out: Path,
    *,
    mean: Channels = IMAGENET_MEAN,
    std: Channels = IMAGENET_STD,
) -> Path:
    """Write a published encoder as out/encoder.safetensors and out/encoder.json.

    A learned `pos_embed` is kept as it is; a class token is there when the file has one.

    Args:
        path: .safetensors, or what torch.save wrote.
        architecture: what the checkpoint is; another one is refused.
        kind: whose layout it has: a key of LAYOUTS.
        out: folder to write to.
        mean: of the channels on [0, 1] that the encoder was trained with.
        std: likewise.

    Returns:
        The safetensors file.

    Raises:
        UserError: listing every key that is missing, unknown or of another shape.

    """
    if kind not in LAYOUTS:
        raise UserError(f"--kind {kind}: no such layout; {nearest(kind, LAYOUTS)}")
    layout = LAYOUTS[kind]
    content = _read(path)
    state, container = _encoder_state(content, layout, path, kind)
    unused = sorted(key for key in state if re.fullmatch(layout.unused, key))
    tensors = {key: tensor for key, tensor in state.items() if key not in unused}
    class_token = "cls_token" in tensors
    refuse_mismatches(
        str(path),
        {key: tuple(tensor.shape) for key, tensor in tensors.items()},
        encoder_shapes(architecture, class_token),
    )
    card = EncoderCard.of(
        architecture,
        class_token=class_token,
        mean=mean,
        std=std,
        checkpoint=path.name,
        epoch=float(epoch) if isinstance(epoch := content.get("epoch"), int) else None,
        score=None,
        provenance={
            "kind": kind,
            "checkpoint_sha256": file_sha256(path),
            "code_version": code_version(),
            "container": container,
            "unused_entries": sorted(str(key) for key in content if key != container) if container else [],
            "unused_keys": unused,
        },
    )
    return write_encoder(out, {key: tensor.float().numpy() for key, tensor in tensors.items()}, card)


def _read(path: Path) -> dict[str, Any]:
    """The file's mapping. Training arguments that some projects store as a Namespace are plain data and allowed."""
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, EOFError) as error:
        raise unreadable(path, error) from None
    except UnpicklingError:
        raise UserError(
            f"{path}: holds Python objects besides tensors, which are never unpickled from a foreign file; "
            "save the state dict alone and import that."
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, expected a mapping of names to tensors.")
    return content


def _encoder_state(
    content: Mapping[str, Any], layout: Layout, path: Path, kind: str
) -> tuple[dict[str, Tensor], str | None]:
    container = next((name for name in layout.containers if isinstance(content.get(name), dict)), None)
    state: Mapping[str, Any] = content[container] if container else content
    tensors = {_stripped(key, layout.prefixes): value for key, value in state.items() if isinstance(value, Tensor)}
    if len(tensors) < len(state) or not tensors:
        raise UserError(
            f"{path}: not a checkpoint in the layout of {kind}: expected tensors only, at the top or in "
            f"{' or '.join(layout.containers)}, got the entries {', '.join(map(str, list(state)[:8]))}."
        )
    return tensors, container


def _stripped(key: str, prefixes: tuple[str, ...]) -> str:
    for prefix in prefixes:
        key = key.removeprefix(prefix)
    return key
