"""Sequences of different lengths without padding, on timm's blocks.

Linear layers, norms and MLPs see the P real tokens of a batch as rows; only attention spreads them over padded tables,
because scaled_dot_product_attention wants tables. Sequences of similar length share one, so that little is padding.
The last block computes only the tokens whose output somebody reads; all others are keys.

P packed tokens, Q of them that a block computes, S sequences, L longest sequence of a table, D width, H heads, E width
of a head.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.utils.checkpoint
from numpy.typing import NDArray
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from dseq_jepa.models.dropping import ImageDropPath

SPAN = 32
"""Sequences share a padded table when their lengths, divided by this, round up to the same number."""


@dataclass(frozen=True)
class Tables:
    """Where each packed token stands in padded S x L tables that lie one after the other."""

    slots_P: Tensor
    """Row-major index into all tables."""
    shapes: tuple[tuple[int, int], ...]
    """S and L of every table."""

    def spread(self, rows_PK: Tensor) -> list[Tensor]:
        """Packed rows into the zero-padded tables, (S, L, K) each; (S, L) for numbers."""
        sizes = [sequences * length for sequences, length in self.shapes]
        flat_NK = rows_PK.new_zeros(sum(sizes), *rows_PK.shape[1:]).index_copy(0, self.slots_P, rows_PK)
        return [
            part.view(*shape, *part.shape[1:])
            for part, shape in zip(torch.split(flat_NK, sizes), self.shapes, strict=True)
        ]

    def collect(self, tables_SLK: Sequence[Tensor]) -> Tensor:
        """The tables' real tokens as packed rows, (P, K)."""
        return torch.cat([table.flatten(0, 1) for table in tables_SLK]).index_select(0, self.slots_P)


@dataclass(frozen=True)
class Packing:
    """Which tokens a block computes, and whom each of them may attend to."""

    keys: Tables
    """All tokens."""
    queries: Tables
    """The tokens that are computed; `keys` where these are all."""
    rows_Q: Tensor | None
    """Packed rows of the queries; None: all tokens, in order."""
    allowed_S1QL: list[Tensor]
    """For every table, True where a query may see a key."""


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


@dataclass(frozen=True)
class Packed:
    """An (S, C) layout without its absent tokens and empty sequences."""

    index_P: Tensor
    """Where each packed token stood in the flattened layout."""
    packing: Packing
    rows_Q: Tensor
    """Packed rows of the tokens whose output is read."""
    last: Packing
    """For the last block: it computes only what is read."""


def pack(rules: TokenRules, read_SC: Tensor) -> Packed:
    """Drop absent tokens and empty sequences.

    Args:
        rules: which tokens there are, and who sees whom.
        read_SC: tokens, among those present, whose output after the last block is read.

    """
    present_SC = rules.club_SC > 0
    # A host read: without the sizes a GPU would have to encode every patch of every image.
    present_S, read_S = torch.stack([present_SC.sum(1), read_SC.sum(1)]).cpu().numpy()
    size_S = -(-present_S // SPAN)
    members = [np.flatnonzero(size_S == size) for size in np.unique(size_S[size_S > 0])]
    index_P, keys = _tables(present_SC, present_S, members)
    index_Q, queries = _tables(read_SC, read_S, members)
    rows_Q = present_SC.flatten().cumsum(0)[index_Q] - 1
    return Packed(
        index_P,
        Packing(keys, keys, None, _allowed(rules, index_P, keys, index_P, keys)),
        rows_Q,
        Packing(keys, queries, rows_Q, _allowed(rules, index_Q, queries, index_P, keys)),
    )


def _tables(
    chosen_SC: Tensor, length_S: NDArray[np.int64], members: Sequence[NDArray[np.int64]]
) -> tuple[Tensor, Tables]:
    """Index of every chosen token in the flattened layout, and a place for each: one table for each list of members."""
    start_S, end, shapes = np.zeros_like(length_S), 0, []
    for sequences in members:
        length = -(-int(length_S[sequences].max()) // 8) * 8  # the fused GPU kernels want masks aligned to 8
        start_S[sequences] = end + length * np.arange(len(sequences))
        end += length * len(sequences)
        shapes.append((len(sequences), length))
    index_N = chosen_SC.flatten().nonzero()[:, 0]
    place_SC = torch.from_numpy(start_S).to(chosen_SC.device)[:, None] + chosen_SC.cumsum(1) - 1
    return index_N, Tables(place_SC.flatten()[index_N], tuple(shapes))


def _allowed(rules: TokenRules, index_Q: Tensor, queries: Tables, index_P: Tensor, keys: Tables) -> list[Tensor]:
    """For every table (S, 1, Q, L): who sees whom.

    Padding sees everything and is seen by nobody: no row of the softmax is empty. An empty row is NaN on the unfused
    path, and that NaN would reach real tokens in the backward pass.
    """
    rules_NK = torch.stack([rules.club_SC, rules.reach_SC, rules.open_SC.long()], dim=2).flatten(0, 1)
    result = []
    for query_SQK, key_SLK in zip(queries.spread(rules_NK[index_Q]), keys.spread(rules_NK[index_P]), strict=True):
        club_SQ1, reach_SQ1, _ = query_SQK[:, :, None].unbind(3)
        club_S1L, reach_S1L, open_S1L = key_SLK[:, None].unbind(3)
        within_reach_SQL = (open_S1L > 0) & (reach_S1L <= reach_SQ1)
        result.append(((club_SQ1 == club_S1L) | within_reach_SQL | (club_SQ1 == 0))[:, None])
    return result


layer_norm = partial(nn.LayerNorm, eps=1e-6)
"""LayerNorm of every ViT here, with the eps of MAE and I-JEPA."""


class PackedBlock(Block):  # type: ignore[misc]  # timm is untyped
    """timm's block that also takes packed rows; the same parameters, the same result.

    Stochastic depth (`drop_path` > 0) is for whole images: packed rows are never dropped.
    """

    def __init__(self, width: int, heads: int, drop_path: float = 0.0) -> None:
        super().__init__(width, heads, mlp_ratio=4.0, qkv_bias=True, norm_layer=layer_norm)
        if drop_path:
            self.drop_path1, self.drop_path2 = ImageDropPath(drop_path), ImageDropPath(drop_path)

    def forward(self, x: Tensor, packing: Packing | None = None) -> Tensor:
        """(B, L, D) without a packing and (P, D) with one; the shape stays, or becomes (Q, D) for fewer queries."""
        if packing is None:
            return super().forward(x)  # type: ignore[no-any-return]
        x = _rows(x, packing.rows_Q) + self._attend(self.norm1(x), packing)
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]

    def _attend(self, x_PD: Tensor, packing: Packing) -> Tensor:
        qkv, heads, width = self.attn.qkv, self.attn.num_heads, x_PD.shape[1]
        triples: list[tuple[Tensor, ...]]  # q (S, Q, H, E), k and v (S, L, H, E) of every table
        if packing.rows_Q is None:
            tables_SLK = packing.keys.spread(qkv(x_PD))
            triples = [table.view(*table.shape[:2], 3, heads, -1).unbind(2) for table in tables_SLK]
        else:
            q_QD = F.linear(_rows(x_PD, packing.rows_Q), qkv.weight[:width], qkv.bias[:width])
            kv_PK = F.linear(x_PD, qkv.weight[width:], qkv.bias[width:])
            triples = [
                (q.view(*q.shape[:2], heads, -1), *kv.view(*kv.shape[:2], 2, heads, -1).unbind(2))
                for q, kv in zip(packing.queries.spread(q_QD), packing.keys.spread(kv_PK), strict=True)
            ]
        mixed_SQD = []
        for triple, allowed_S1QL in zip(triples, packing.allowed_S1QL, strict=True):
            q_SHQE, k_SHLE, v_SHLE = (part.transpose(1, 2) for part in triple)
            out_SHQE = F.scaled_dot_product_attention(q_SHQE, k_SHLE, v_SHLE, attn_mask=allowed_S1QL)
            mixed_SQD.append(out_SHQE.transpose(1, 2).flatten(2))
        return self.attn.proj(packing.queries.collect(mixed_SQD))  # type: ignore[no-any-return]


def _rows(x_PD: Tensor, rows_Q: Tensor | None) -> Tensor:
    return x_PD if rows_Q is None else x_PD.index_select(0, rows_Q)


def initialise(module: nn.Module) -> None:
    """Truncated normal 0.02 for linear and convolution weights, zero biases (docs/protocols.md 1). For Module.apply."""
    if isinstance(module, nn.Linear | nn.Conv2d) and not module.weight.is_meta:  # a plan only counts: seconds less
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
