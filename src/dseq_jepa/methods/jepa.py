"""I-JEPA, C-JEPA, DSeq-JEPA, DSeq-C-JEPA and every ablation: one step whose settings say where and in what order.

    dseq-jepa pretrain --config configs/demo.yaml --method dseq-jepa --out out/

A JEPA hides part of an image and predicts its embedding from the rest. I-JEPA hides random blocks and predicts them
all at once. DSeq-JEPA finds salient regions, ranks them, and predicts region i + 1 from regions 1..i. Here the two
differ in `_partition` alone: everything after it is the same code.

B images, T patches, K pixel values of a patch, P packed tokens, Q predictions, G groups (blocks or steps), D width.
"""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from dseq_jepa.draws import uniforms
from dseq_jepa.methods import partition as partitions
from dseq_jepa.methods.blocks import draw_blocks
from dseq_jepa.methods.contrastive import ContrastiveLoss, Gather, VicregTerms
from dseq_jepa.methods.gradcam import gradcam
from dseq_jepa.methods.plan import Partition, Plan, plan_prediction
from dseq_jepa.methods.regions import cls_saliency, ranked_regions
from dseq_jepa.methods.settings import ContrastiveSettings, JepaSettings
from dseq_jepa.models.predictor import Predictor
from dseq_jepa.models.settings import ArchitectureSettings
from dseq_jepa.models.vit import Tokens, VisionTransformer, patch_pixels


@dataclass(frozen=True)
class Moment:
    """When a step happens, for everything that is drawn or scheduled."""

    seed: int
    step: int
    progress: float
    """t / (T - 1): 0 at the first step, 1 at the last."""


@dataclass(frozen=True)
class StepOutput:
    """A step's loss and what the journal shows of it; all but `loss` are detached."""

    loss: Tensor
    prediction_loss: Tensor
    group_loss_BG: Tensor
    """Mean loss of each image's groups (blocks, regions or steps); NaN for a group that the image lacks."""
    flat_B: Tensor
    """Images whose groups are blocks or regions, each predicted on its own; those of the others are steps."""
    contrastive: VicregTerms | None
    saliency_BT: Tensor | None
    """The map that regions were found in. None without regions."""
    ranks_BT: Tensor | None
    """Ranked regions as found, before any fallback; 0: no region. None without regions."""
    discriminative_B: Tensor | None
    """Images that used their regions rather than random blocks. None without regions."""
    pooled_targets_BD: Tensor
    """Mean target embedding of each image, to watch for collapse."""


class Jepa(nn.Module):
    """Context encoder, its slow copy, a predictor, and a way to choose what is predicted (paper 3)."""

    def __init__(
        self, settings: JepaSettings, architecture: ArchitectureSettings, *, gather: Gather, checkpointing: bool = False
    ) -> None:
        """`gather` concatenates rows over ranks with gradient; `checkpointing` recomputes activations."""
        super().__init__()
        self.settings = settings
        self.architecture = architecture
        self.gather = gather
        self.context_encoder = VisionTransformer(architecture, settings.class_token, checkpointing=checkpointing)
        self.predictor = Predictor(architecture, checkpointing=checkpointing)
        self.contrastive = self._contrastive_loss(settings.contrastive)
        self.target_encoder = copy.deepcopy(self.context_encoder).requires_grad_(False)

    def forward(self, images_BCHW: Tensor, ids_B: NDArray[np.int64], moment: Moment) -> StepOutput:
        """One optimisation step's loss (paper 3.2 to 3.4).

        Args:
            images_BCHW: normalised images.
            ids_B: image ids, which together with the moment seed every draw.
            moment: seed, global step and progress.

        """
        pixels_BTK = patch_pixels(images_BCHW, self.architecture.patch_size)
        with torch.no_grad():
            saliency_source, target = self._target_pass(pixels_BTK)
            goals_BTD = _goals(target.patches_BTD)
            blocks = self._blocks(ids_B, moment)
            saliency_BT = self._saliency(saliency_source, pixels_BTK, blocks)
            partition, ranks_BT, discriminative_B = self._partition(saliency_BT, blocks, ids_B, moment)
            plan = plan_prediction(
                partition.to(images_BCHW.device),
                class_token=self.settings.class_token,
                prefix=self.settings.realisation == "prefix",
            )
        predictions_QD = self._predict(pixels_BTK, plan)
        goals_QD = goals_BTD.flatten(0, 1).index_select(0, plan.goals_Q)

        loss_Q = _patch_losses(predictions_QD, goals_QD)
        prediction_loss = (loss_Q * plan.weight_Q).sum()
        terms = self._contrastive_terms(predictions_QD, goals_QD, plan, partition)
        loss = prediction_loss
        if terms is not None and self.settings.contrastive is not None:
            loss = loss + self.settings.contrastive.weight * terms.total
        return StepOutput(
            loss=loss,
            prediction_loss=prediction_loss.detach(),
            group_loss_BG=_by_group(loss_Q.detach(), plan, partition),
            flat_B=partition.flat_B.to(images_BCHW.device),
            contrastive=terms,
            saliency_BT=saliency_BT,
            ranks_BT=ranks_BT,
            discriminative_B=discriminative_B,
            pooled_targets_BD=target.patches_BTD.float().mean(1),
        )

    @torch.no_grad()
    def update_target(self, momentum: float) -> None:
        """Move the target encoder towards the context encoder: target = m target + (1 - m) context."""
        targets: list[Tensor] = list(self.target_encoder.parameters())
        contexts: list[Tensor] = list(self.context_encoder.parameters())
        torch._foreach_lerp_(targets, contexts, 1.0 - momentum)

    def _target_pass(self, pixels_BTK: Tensor) -> tuple[Tokens, Tokens]:
        """One pass of the target encoder over whole images: the saliency's block, and the targets."""
        last = self.architecture.depth
        if self.settings.generation == "uniform" or self.settings.regions.saliency == "gradcam":
            (target,) = self.target_encoder.read_pixels(pixels_BTK, [last])
            return target, target
        source, target = self.target_encoder.read_pixels(pixels_BTK, [self.architecture.saliency_block, last])
        return source, target

    def _predict(self, pixels_BTK: Tensor, plan: Plan) -> Tensor:
        """(Q, D) fp32 predictions of a plan."""
        encoded_PD = self.context_encoder(pixels_BTK, plan.visible)
        return self.predictor(encoded_PD, plan.predictor).float()  # type: ignore[no-any-return]

    def _blocks(self, ids_B: NDArray[np.int64], moment: Moment) -> Partition:
        """The random blocks of every image, as I-JEPA shows and predicts them."""
        masks = draw_blocks(self.architecture.grid, self.settings.blocks, moment.seed, moment.step, ids_B)
        return partitions.flat_blocks(*(torch.from_numpy(mask) for mask in masks))

    def _saliency(self, source: Tokens, pixels_BTK: Tensor, blocks: Partition) -> Tensor | None:
        """The map that regions are found in; None for a method that shows and predicts random blocks."""
        if self.settings.generation == "uniform":
            return None
        if self.settings.regions.saliency == "gradcam":
            return self._gradcam(source.patches_BTD, pixels_BTK, blocks)
        if source.class_BD is None:
            raise RuntimeError("this saliency needs the class token; the settings' validation guarantees it")
        return cls_saliency(source.class_BD, source.patches_BTD)

    def _gradcam(self, patches_BTD: Tensor, pixels_BTK: Tensor, blocks: Partition) -> Tensor:
        """Grad-CAM of the random blocks' loss. It costs a pass of context encoder and predictor without gradient."""
        on_device = blocks.to(patches_BTD.device)
        plan = plan_prediction(on_device, class_token=self.settings.class_token, prefix=False)
        predictions_QD = self._predict(pixels_BTK, plan)

        def loss(h_BTD: Tensor) -> Tensor:
            goals_QD = _goals(h_BTD).flatten(0, 1).index_select(0, plan.goals_Q)
            return (_patch_losses(predictions_QD, goals_QD) * plan.weight_Q).sum() * len(h_BTD)  # sum over images

        return gradcam(patches_BTD, loss)

    def _partition(
        self, saliency_BT: Tensor | None, blocks: Partition, ids_B: NDArray[np.int64], moment: Moment
    ) -> tuple[Partition, Tensor | None, Tensor | None]:
        """What every image shows and predicts: random blocks, or salient regions where the curriculum allows them."""
        settings = self.settings
        if saliency_BT is None:
            if settings.prediction == "flat":
                return blocks, None, None
            ranks_BT = partitions.ranks_of_blocks(blocks.target_BGT, moment.seed, moment.step, ids_B)
            return partitions.sequential(ranks_BT, settings.blocks.targets, settings.truncate), None, None

        ranks_BT = ranked_regions(saliency_BT, self.architecture.grid, settings.regions)
        use_B = ranks_BT[:, 0] > 0  # an image without a region falls back to random blocks
        if settings.curriculum:
            coin_B = uniforms(moment.seed, "curriculum", moment.step, ids_B, 1)[:, 0] < moment.progress
            use_B = use_B & torch.from_numpy(coin_B).to(use_B.device)
        regional = self._from_regions(ranks_BT, ids_B, moment)
        return partitions.choose(use_B, regional, blocks.to(ranks_BT.device)), ranks_BT, use_B

    def _from_regions(self, ranks_BT: Tensor, ids_B: NDArray[np.int64], moment: Moment) -> Partition:
        settings, count = self.settings, self.settings.regions.count
        if settings.prediction == "flat":
            return partitions.flat_regions(ranks_BT, count - 1)
        match settings.order:
            case "spatial":
                ranks_BT = partitions.spatial_order(ranks_BT, count, self.architecture.grid)
            case "random":
                ranks_BT = partitions.random_order(ranks_BT, count, moment.seed, moment.step, ids_B)
            case "saliency":
                pass
        return partitions.sequential(ranks_BT, count - 1, settings.truncate)

    def _contrastive_loss(self, settings: ContrastiveSettings | None) -> ContrastiveLoss | None:
        """Images without a region, or whose turn it is not, have random blocks: two schemes in one batch."""
        if settings is None:
            return None
        two_schemes = self.settings.generation == "discriminative"
        return ContrastiveLoss(self.architecture.width, settings, two_schemes=two_schemes)

    def _contrastive_terms(
        self, predictions_QD: Tensor, goals_QD: Tensor, plan: Plan, partition: Partition
    ) -> VicregTerms | None:
        if self.contrastive is None:
            return None
        on_device = partition.to(predictions_QD.device)
        terms: VicregTerms = self.contrastive(predictions_QD, goals_QD, plan, on_device, self.gather)
        return terms


def _goals(patches_BTD: Tensor) -> Tensor:
    """Targets: the last block's output (after the final LayerNorm), normalised over the width without parameters."""
    return F.layer_norm(patches_BTD.float(), patches_BTD.shape[-1:])


def _patch_losses(predictions_QD: Tensor, goals_QD: Tensor) -> Tensor:
    """Smooth L1 of every prediction, mean over the width (paper Eq. 6-7)."""
    return F.smooth_l1_loss(predictions_QD, goals_QD, reduction="none").mean(1)


def _by_group(loss_Q: Tensor, plan: Plan, partition: Partition) -> Tensor:
    """(B, G) mean loss of each image's groups; NaN (0 / 0) for an empty group."""
    count_BG = partition.target_BGT.sum(2).to(loss_Q.device)
    sum_N = loss_Q.new_zeros(count_BG.numel()).index_add(0, plan.group_Q, loss_Q)
    return sum_N.view_as(count_BG) / count_BG
