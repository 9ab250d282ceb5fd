"""A plain ViT on one image, patch by patch, with attention over an explicit matrix of who may see whom.

    pytest tests/reference -k "vit or encode"

Parameter names are timm's: patch_embed.proj, cls_token, norm, blocks.N.{norm1,attn.qkv,attn.proj,norm2,mlp.fc1,mlp.fc2}
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

State = Mapping[str, Tensor]
Allowed = list[list[bool]]
"""allowed[i][j]: token i attends to token j."""
LAYER_NORM_EPS = 1e-6


class Encoded(NamedTuple):
    """Outputs of one block after the final LayerNorm."""

    class_RD: Tensor
    """One row per class copy, in the order of `class_ranks`; no rows without a class token."""
    patches_LD: Tensor
    """One row per visible patch, in the order of `visible`."""


def sincos_positions(grid: int, width: int) -> Tensor:
    """(grid^2, width) float32: the first half of the width encodes the column, the second the row.

    Each half is [sin(p w_k)] then [cos(p w_k)], w_k = 10000^(-k / (width / 4)) (MAE and I-JEPA order).
    """
    quarter = width // 4
    table = []
    for row in range(grid):
        for column in range(grid):
            line = []
            for position in (column, row):
                angles = [position / 10000 ** (k / quarter) for k in range(quarter)]
                line += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
            table.append(line)
    return torch.tensor(table, dtype=torch.float64).to(torch.float32)


def patchify(image_CHW: Tensor, patch_size: int) -> list[Tensor]:
    """Flattened (C, p, p) patches, row by row."""
    _, height, width = image_CHW.shape
    return [
        image_CHW[:, top : top + patch_size, left : left + patch_size].reshape(-1)
        for top in range(0, height, patch_size)
        for left in range(0, width, patch_size)
    ]


def embed(state: State, image_CHW: Tensor, patch_size: int) -> Tensor:
    """(T, D) patch embeddings with their positions added; no class token."""
    weight = state["patch_embed.proj.weight"]
    width = weight.shape[0]
    rows = [
        weight.reshape(width, -1) @ patch + state["patch_embed.proj.bias"] for patch in patchify(image_CHW, patch_size)
    ]
    grid = image_CHW.shape[-1] // patch_size
    return torch.stack(rows) + sincos_positions(grid, width).to(weight.dtype)


def linear(state: State, name: str, rows_LD: Tensor) -> Tensor:
    """W x + b of every row."""
    return rows_LD @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def layer_norm(state: State, name: str, rows_LD: Tensor) -> Tensor:
    """LayerNorm over the width with the biased variance, eps 1e-6."""
    centred_LD = rows_LD - rows_LD.mean(-1, keepdim=True)
    scale_L1 = torch.sqrt((centred_LD**2).mean(-1, keepdim=True) + LAYER_NORM_EPS)
    return centred_LD / scale_L1 * state[f"{name}.weight"] + state[f"{name}.bias"]


def attention(state: State, name: str, rows_LD: Tensor, allowed: Allowed, heads: int) -> Tensor:
    """Multi-head attention, one query at a time, over the keys that the query may see and no others."""
    length, width = rows_LD.shape
    head_width = width // heads
    query_LD, key_LD, value_LD = torch.split(linear(state, f"{name}.qkv", rows_LD), width, dim=1)
    outputs = []
    for i in range(length):
        seen = [j for j in range(length) if allowed[i][j]]
        parts = []
        for head in range(heads):
            columns = slice(head * head_width, (head + 1) * head_width)
            scores = key_LD[seen, columns] @ query_LD[i, columns] / math.sqrt(head_width)
            weights = torch.exp(scores - scores.max())
            parts.append((weights / weights.sum()) @ value_LD[seen, columns])
        outputs.append(torch.cat(parts))
    return linear(state, f"{name}.proj", torch.stack(outputs))


def block(state: State, name: str, rows_LD: Tensor, allowed: Allowed, heads: int) -> Tensor:
    """Pre-norm transformer block, exact GELU."""
    rows_LD = rows_LD + attention(state, f"{name}.attn", layer_norm(state, f"{name}.norm1", rows_LD), allowed, heads)
    hidden = linear(state, f"{name}.mlp.fc1", layer_norm(state, f"{name}.norm2", rows_LD))
    hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    return rows_LD + linear(state, f"{name}.mlp.fc2", hidden)


def depth(state: State) -> int:
    """Number of transformer blocks."""
    count = 0
    while f"blocks.{count}.norm1.weight" in state:
        count += 1
    return count


def full_attention(length: int) -> Allowed:
    """Everyone sees everyone."""
    return [[True] * length for _ in range(length)]


def rank_causal(class_ranks: Sequence[int], patch_ranks: Sequence[int]) -> Allowed:
    """Who sees whom in the rank-causal encoder; class copies come before the patches.

    Copy r sees itself and patches of rank <= r; a rank-r patch sees copy r and patches of rank <= r. No copy sees
    another copy.
    """
    kinds = [("copy", rank) for rank in class_ranks] + [("patch", rank) for rank in patch_ranks]
    allowed = []
    for _, rank in kinds:
        row = [other_rank == rank if other == "copy" else other_rank <= rank for other, other_rank in kinds]
        allowed.append(row)
    return allowed


def encode_blocks(
    state: State,
    image_CHW: Tensor,
    patch_size: int,
    heads: int,
    visible: Sequence[int],
    ranks: Sequence[int] | None = None,
    class_ranks: Sequence[int] = (),
) -> list[Encoded]:
    """Every block's output after the final LayerNorm, block 1 first.

    Args:
        state: encoder parameters.
        image_CHW: normalised pixels.
        patch_size: side in pixels.
        heads: attention heads.
        visible: row-major indices of the patches that enter.
        ranks: rank of each visible patch, aligned with `visible`; None: full attention.
        class_ranks: distinct ranks, one class copy each; with full attention only their number counts (one: the plain
            class token; none: no class token).
    """
    patches_LD = embed(state, image_CHW, patch_size)[list(visible)]
    rows_LD = torch.cat([*(state["cls_token"].reshape(1, -1) for _ in class_ranks), patches_LD])
    allowed = full_attention(len(rows_LD)) if ranks is None else rank_causal(class_ranks, ranks)
    outputs = []
    for index in range(depth(state)):
        rows_LD = block(state, f"blocks.{index}", rows_LD, allowed, heads)
        final_LD = layer_norm(state, "norm", rows_LD)
        outputs.append(Encoded(final_LD[: len(class_ranks)], final_LD[len(class_ranks) :]))
    return outputs


def encode(
    state: State,
    image_CHW: Tensor,
    patch_size: int,
    heads: int,
    visible: Sequence[int],
    ranks: Sequence[int] | None = None,
    class_ranks: Sequence[int] = (),
) -> Encoded:
    """The last block of `encode_blocks`."""
    return encode_blocks(state, image_CHW, patch_size, heads, visible, ranks, class_ranks)[-1]


def encode_image(state: State, image_CHW: Tensor, patch_size: int, heads: int) -> list[Encoded]:
    """Every block's output on the whole image, full attention, with the class token if the state has one."""
    patches = (image_CHW.shape[-2] // patch_size) * (image_CHW.shape[-1] // patch_size)
    class_ranks = [1] if "cls_token" in state else []
    return encode_blocks(state, image_CHW, patch_size, heads, range(patches), None, class_ranks)
