"""The step of the public I-JEPA code (Assran et al. 2023), written anew: whole batches, contexts of equal length.

    pytest tests/reference -k public

It shares nothing with the other references, so that agreement means something. Parameter names are the public ones:
patch_embed.proj, blocks.N.*, norm; predictor_embed, mask_token, predictor_blocks.N.*, predictor_norm, predictor_proj.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

State = Mapping[str, Tensor]


class PublicStep(NamedTuple):
    """Outputs of one step; rows are block-major: all images' first block, then all images' second, ..."""

    loss: Tensor
    predictions_NLD: Tensor
    goals_NLD: Tensor


def to_public_names(predictor_state: State) -> dict[str, Tensor]:
    """Our predictor's parameters under the public code's names."""
    renamed = {"embed": "predictor_embed", "blocks": "predictor_blocks", "norm": "predictor_norm"}
    renamed |= {"project": "predictor_proj", "mask_token": "mask_token"}
    result = {}
    for name, value in predictor_state.items():
        head, dot, tail = name.partition(".")
        result[renamed[head] + dot + tail] = value
    return result


def positions(grid: int, width: int) -> Tensor:
    """(1, grid^2, width) sin-cos table, float32."""
    frequency = 10000.0 ** (-np.arange(width // 4) * 4 / width)
    row_T, column_T = np.divmod(np.arange(grid * grid), grid)
    x_TK, y_TK = column_T[:, None] * frequency, row_T[:, None] * frequency
    table = np.concatenate([np.sin(x_TK), np.cos(x_TK), np.sin(y_TK), np.cos(y_TK)], axis=1)
    return torch.from_numpy(table.astype(np.float32))[None]


def _pick(tokens_BTD: Tensor, indices_BL: Tensor) -> Tensor:
    return torch.stack([tokens_D[keep] for tokens_D, keep in zip(tokens_BTD, indices_BL, strict=True)])


def _norm(state: State, name: str, x_BLD: Tensor) -> Tensor:
    return F.layer_norm(x_BLD, x_BLD.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)


def _dense(state: State, name: str, x_BLD: Tensor) -> Tensor:
    return F.linear(x_BLD, state[f"{name}.weight"], state[f"{name}.bias"])


def _transformer(state: State, stem: str, x_BLD: Tensor, heads: int) -> Tensor:
    number = 0
    while f"{stem}.{number}.norm1.weight" in state:
        name = f"{stem}.{number}"
        qkv = _dense(state, f"{name}.attn.qkv", _norm(state, f"{name}.norm1", x_BLD))
        q, k, v = (part.reshape(*part.shape[:2], heads, -1).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x_BLD = x_BLD + _dense(state, f"{name}.attn.proj", mixed)
        hidden = F.gelu(_dense(state, f"{name}.mlp.fc1", _norm(state, f"{name}.norm2", x_BLD)))
        x_BLD = x_BLD + _dense(state, f"{name}.mlp.fc2", hidden)
        number += 1
    return x_BLD


def public_encoder(state: State, images_BCHW: Tensor, heads: int, keep_BL: Tensor | None = None) -> Tensor:
    """(B, L, D) embeddings of the kept patches; of all of them without `keep_BL`."""
    weight = state["patch_embed.proj.weight"]
    tokens_BTD = F.conv2d(images_BCHW, weight, state["patch_embed.proj.bias"], stride=weight.shape[-1])
    grid, width = tokens_BTD.shape[-1], tokens_BTD.shape[1]
    tokens_BTD = tokens_BTD.flatten(2).transpose(1, 2) + positions(grid, width).to(weight.dtype)
    if keep_BL is not None:
        tokens_BTD = _pick(tokens_BTD, keep_BL)
    return _norm(state, "norm", _transformer(state, "blocks", tokens_BTD, heads))


def public_predictor(
    state: State, context_BLD: Tensor, context_BL: Tensor, targets: Sequence[Tensor], heads: int, grid: int
) -> Tensor:
    """(blocks * B, patches of a block, D): every block of every image is a batch row of its own.

    Args:
        state: predictor parameters under the public names.
        context_BLD: embeddings of the context patches.
        context_BL: their indices.
        targets: (B, L) patch indices per target block, all of one length.
        heads: attention heads.
        grid: patches per side.
    """
    token_11P = state["mask_token"]
    table_BTP = positions(grid, token_11P.shape[-1]).to(token_11P.dtype).expand(len(context_BL), -1, -1)
    seen_BLP = _dense(state, "predictor_embed", context_BLD) + _pick(table_BTP, context_BL)
    rows = [torch.cat([seen_BLP, token_11P + _pick(table_BTP, target_BL)], dim=1) for target_BL in targets]
    x_NLP = _norm(state, "predictor_norm", _transformer(state, "predictor_blocks", torch.cat(rows), heads))
    return _dense(state, "predictor_proj", x_NLP[:, context_BL.shape[1] :])


def public_step(
    encoder_state: State,
    predictor_state: State,
    target_state: State,
    images_BCHW: Tensor,
    context_BL: Tensor,
    targets: Sequence[Tensor],
    encoder_heads: int,
    predictor_heads: int,
) -> PublicStep:
    """Loss of a batch: smooth L1, mean over every image, block, patch and channel."""
    grid = images_BCHW.shape[-1] // encoder_state["patch_embed.proj.weight"].shape[-1]
    with torch.no_grad():
        whole_BTD = public_encoder(target_state, images_BCHW, encoder_heads)
        whole_BTD = F.layer_norm(whole_BTD, whole_BTD.shape[-1:])
        goals_NLD = torch.cat([_pick(whole_BTD, target_BL) for target_BL in targets])
    context_BLD = public_encoder(encoder_state, images_BCHW, encoder_heads, context_BL)
    predictions_NLD = public_predictor(predictor_state, context_BLD, context_BL, targets, predictor_heads, grid)
    return PublicStep(F.smooth_l1_loss(predictions_NLD, goals_NLD), predictions_NLD, goals_NLD)
