"""The predictor: a narrow ViT from visible to hidden patches' embeddings (docs/protocols.md 1; I-JEPA, appendix A).

P packed tokens, Q mask tokens, N encoded patches, D encoder width, W predictor width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dseq_jepa.models.packing import PackedBlock, Packing, initialise, layer_norm, run_blocks
from dseq_jepa.models.positions import sincos_2d
from dseq_jepa.models.settings import ArchitectureSettings


@dataclass(frozen=True)
class PredictorTokens:
    """What the predictor sees: context tokens, and one mask token for every prediction, packed."""

    encoded_P: Tensor
    """Row of each context token among the context encoder's outputs (repeatable); any row for a mask token."""
    patch_P: Tensor
    """Patch that each token is, or stands for."""
    is_mask_P: Tensor
    """True for mask tokens."""
    masks_Q: Tensor
    """Packed rows of the mask tokens."""
    packing: Packing
    last: Packing
    """Of the last block: it computes the mask tokens alone."""


class Predictor(nn.Module):
    """Linear in, blocks, LayerNorm, linear out; a learned mask token, fixed sin-cos positions on every token."""

    pos_embed: Tensor

    def __init__(self, settings: ArchitectureSettings, *, checkpointing: bool = False) -> None:
        super().__init__()
        width = settings.predictor.width
        self.checkpointing = checkpointing
        self.embed = nn.Linear(settings.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("pos_embed", torch.from_numpy(sincos_2d(settings.grid, width)), persistent=False)
        self.blocks = nn.ModuleList(
            PackedBlock(width, settings.predictor_heads) for _ in range(settings.predictor.depth)
        )
        self.norm = layer_norm(width)
        self.project = nn.Linear(width, settings.width)
        self.apply(initialise)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, encoded_ND: Tensor, tokens: PredictorTokens) -> Tensor:
        """Predict the embedding of every masked patch.

        Args:
            encoded_ND: the context encoder's outputs.
            tokens: which of them to use where, what to predict, and who may attend to whom.

        Returns:
            (Q, D) predictions, one for each mask token in packed order.

        """
        context_PW = self.embed(encoded_ND).index_select(0, tokens.encoded_P)
        x_PW = torch.where(tokens.is_mask_P[:, None], self.mask_token[0].to(context_PW.dtype), context_PW)
        x_PW = x_PW + self.pos_embed.index_select(0, tokens.patch_P)
        x_PW = run_blocks(self.blocks[:-1], x_PW, tokens.packing, checkpointing=self.checkpointing)
        x_QW = run_blocks(self.blocks[-1:], x_PW, tokens.last, checkpointing=self.checkpointing)
        return self.project(self.norm(x_QW))  # type: ignore[no-any-return]
