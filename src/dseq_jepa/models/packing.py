"""Sequences of different lengths without padding, on timm's blocks.

Linear layers, norms and MLPs see the P real tokens of a batch as rows; only attention spreads them over a padded
S x L table, because scaled_dot_product_attention wants one. Padding therefore costs attention scores and nothing else.

P packed tokens, S sequences, L longest sequence, D width, H heads, E width of a head.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch
import torch.utils.checkpoint
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Packing:
    """Where each packed token stands in the padded table, and who may attend to whom."""

    slots_P: Tensor
    """Row-major index into the S x L table."""
    sequences: int
    length: int
    allowed_S1LL: Tensor
    """True where a query (first L) may see a key (second L)."""

    def spread(self, rows_PK: Tensor) -> Tensor:
        """Packed rows into the zero-padded table, (S, L, K)."""
        table = rows_PK.new_zeros(self.sequences * self.length, rows_PK.shape[-1])
        return table.index_copy(0, self.slots_P, rows_PK).view(self.sequences, self.length, -1)

    def collect(self, table_SLK: Tensor) -> Tensor:
        """The table's real tokens as packed rows, (P, K)."""
        return table_SLK.reshape(self.sequences * self.length, -1).index_select(0, self.slots_P)


@dataclass(frozen=True)
class TokenRules:
    """Who sees whom in an (S, C) layout: a query sees its club, and the open keys up to its reach.

    Rank-causal attention with one class-token copy per rank is `reach = club = rank` with the copies not open; mask
    tokens that see a context up to a rank and one another are a club of their own; full attention is one club.
    """

    club_SC: Tensor
    """Tokens with the same number see one another; 0: no token here."""
    reach_SC: Tensor
    """Highest reach of the open tokens that this token sees, from 1."""
    open_SC: Tensor
    """Whether tokens of other clubs may see this one."""


def pack(rules: TokenRules) -> tuple[Tensor, Packing]:
    """Drop absent tokens and empty sequences.

    Returns:
        index_P: where each packed token stood in the flattened (S, C) layout, and the packing.

    """
    present_SC = rules.club_SC > 0
    count_S = present_SC.sum(1)
    # A host read: without the sizes a GPU would have to encode every patch of every image.
    sequences, longest = torch.stack([(count_S > 0).sum(), count_S.max()]).tolist()
    length = -(-longest // 8) * 8  # the fused GPU kernels want masks aligned to 8
    index_P = present_SC.flatten().nonzero()[:, 0]
    sequence_S = (count_S > 0).cumsum(0) - 1
    column_SC = present_SC.cumsum(1) - 1
    slots_P = sequence_S[index_P // present_SC.shape[1]] * length + column_SC.flatten()[index_P]

    def table(values_SC: Tensor) -> Tensor:
        flat = values_SC.new_zeros(sequences * length)
        return flat.index_copy(0, slots_P, values_SC.flatten()[index_P]).view(sequences, length)

    allowed = _attention_table(table(rules.club_SC), table(rules.reach_SC), table(rules.open_SC))
    return index_P, Packing(slots_P, sequences, length, allowed)


def _attention_table(club_SL: Tensor, reach_SL: Tensor, open_SL: Tensor) -> Tensor:
    """(S, 1, L, L), queries before keys.

    Padding is club 0 and sees padding: no row of the softmax is empty. An empty row is NaN on the unfused path, and
    that NaN would reach real tokens in the backward pass.
    """
    same_club_SLL = club_SL[:, :, None] == club_SL[:, None, :]
    within_reach_SLL = open_SL[:, None, :] & (reach_SL[:, None, :] <= reach_SL[:, :, None])
    return (same_club_SLL | within_reach_SLL)[:, None]


layer_norm = partial(nn.LayerNorm, eps=1e-6)
"""LayerNorm of every ViT here, with the eps of MAE and I-JEPA."""


class PackedBlock(Block):  # type: ignore[misc]  # timm is untyped
    """timm's block that also takes packed rows; the same parameters, the same result."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads, mlp_ratio=4.0, qkv_bias=True, norm_layer=layer_norm)

    def forward(self, x: Tensor, packing: Packing | None = None) -> Tensor:
        """(B, L, D) without a packing, (P, D) with one; the shape stays."""
        if packing is None:
            return super().forward(x)  # type: ignore[no-any-return]
        x = x + self._attend(self.norm1(x), packing)
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]

    def _attend(self, x_PD: Tensor, packing: Packing) -> Tensor:
        heads = self.attn.num_heads
        table_SLK = packing.spread(self.attn.qkv(x_PD))
        q_SHLE, k_SHLE, v_SHLE = table_SLK.view(*table_SLK.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4)
        out_SHLE = F.scaled_dot_product_attention(q_SHLE, k_SHLE, v_SHLE, attn_mask=packing.allowed_S1LL)
        return self.attn.proj(packing.collect(out_SHLE.transpose(1, 2)))  # type: ignore[no-any-return]


def initialise(module: nn.Module) -> None:
    """Truncated normal 0.02 for linear and convolution weights, zero biases (PROTOCOLS 1). For Module.apply."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def run_blocks(blocks: Iterable[nn.Module], x: Tensor, packing: Packing | None, *, checkpointing: bool) -> Tensor:
    """All blocks in turn, recomputing activations in the backward pass when asked to."""
    for block in blocks:
        if checkpointing and torch.is_grad_enabled():
            x = torch.utils.checkpoint.checkpoint(block, x, packing, use_reentrant=False)
        else:
            x = block(x, packing)
    return x
