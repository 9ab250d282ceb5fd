"""What a run shows of itself between two log points, and when it must stop: NaN, infinity, collapse.

Everything is summed on the device; the host reads it at log points only.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dseq_jepa.errors import UserError
from dseq_jepa.evaluation.rank import feature_std, rankme
from dseq_jepa.methods.jepa import StepOutput
from dseq_jepa.training.distributed import World, all_sum, gather
from dseq_jepa.training.settings import CollapseGuard

IDS_SHOWN = 16
KINDS = ("block", "region", "step")
"""What a group can be: a random block, a region predicted on its own, or a step of a sequence."""
_NEVER = torch.iinfo(torch.long).max


class Interval:
    """Sums over the steps since the last log point."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.steps = 0
        self.sums: dict[str, Tensor] = {}
        """Values whose mean over steps is shown."""
        self.counts: dict[str, Tensor] = {}
        """Values that are shown as ratios of one another."""
        self._first_bad_2 = torch.full((2,), _NEVER, device=world.device)
        """First step whose loss, and first whose gradients, were no numbers."""
        self._recent: list[tuple[int, float, Sequence[int]]] = []

    def add(
        self, parts: Sequence[StepOutput], finite: Tensor, step: int, learning_rate: float, ids: Sequence[int]
    ) -> None:
        """Count one step, which was computed in one or more parts; `finite`: whether its gradients are."""
        self.steps += 1
        for output in parts:
            for name, value in _means(output).items():
                self.sums[name] = self.sums.get(name, 0) + value / len(parts)
            for name, value in _counts(output).items():
                self.counts[name] = self.counts.get(name, 0) + value
        finite_loss = torch.stack([output.loss.detach() for output in parts]).isfinite().all()
        now_2 = torch.where(torch.stack([finite_loss, finite]), _NEVER, step)
        self._first_bad_2 = torch.minimum(self._first_bad_2, now_2)
        self._recent.append((step, learning_rate, ids))

    def check(self) -> None:
        """Stop the run if any step since the last look had a loss or a gradient that is no number, on any rank.

        A gradient counts by itself: one step later it has made the weights NaN, and the loss would tell too late for a
        state that is saved between the two.

        Raises:
            UserError: with the step, its learning rate and its images' ids.

        """
        recent, self._recent = self._recent, []
        if not int(all_sum((self._first_bad_2 < _NEVER).any().long())):
            return
        firsts = gather(self._first_bad_2.tolist())
        first = min(min(of_rank) for of_rank in firsts)
        losses = [loss == first for loss, _ in firsts]
        if any(losses) and not losses[self.world.rank]:
            raise UserError("another rank's loss became NaN or infinite; its own message has the step and the images.")
        what = "the loss" if any(losses) else "a gradient, but not the loss,"
        step, rate, ids = next(entry for entry in recent if entry[0] == first)
        shown = ", ".join(map(str, ids[:IDS_SHOWN])) + (", ..." if len(ids) > IDS_SHOWN else "")
        raise UserError(
            f"step {step}: {what} became NaN or infinite at learning rate {rate:.3g}, images {shown}. No state was "
            "saved after it: lower the rate or look at these images, then run the same command to go on from the last "
            "good state."
        )

    def means(self) -> dict[str, float]:
        """What the journal shows of the interval, over all ranks; starts the next one."""
        steps = self.steps * self.world.size
        means = {name: float(all_sum(value)) / steps for name, value in sorted(self.sums.items())}
        counts: dict[str, Any] = {name: all_sum(value).tolist() for name, value in sorted(self.counts.items())}
        self.steps, self.sums, self.counts = 0, {}, {}
        for kind in KINDS:
            of_groups = zip(counts[f"images with {kind}"], counts[f"loss of {kind}"], strict=True)
            means |= {f"loss_{kind}_{i}": loss / images for i, (images, loss) in enumerate(of_groups, 1) if images}
        if counts.get("region images"):
            means["regions_per_image"] = counts["regions"] / counts["region images"]
            means["patches_per_region"] = counts["region patches"] / (counts["regions"] - counts["region images"])
        return means

    def state(self) -> list[dict[str, Any]]:
        """What every rank has so far, for the checkpoint: an interval may span a save. Collective."""
        sums, counts = ({n: v.cpu() for n, v in values.items()} for values in (self.sums, self.counts))
        return gather({"steps": self.steps, "sums": sums, "counts": counts})

    def restore(self, states: list[dict[str, Any]]) -> None:
        """Undo `state`; on another number of ranks than before, with the same means over all of them."""
        mine = states[self.world.rank] if len(states) == self.world.size else self._shared(states)
        self.steps = mine["steps"]
        self.sums, self.counts = (
            {name: value.to(self.world.device) for name, value in mine[part].items()} for part in ("sums", "counts")
        )

    def _shared(self, states: list[dict[str, Any]]) -> dict[str, Any]:
        """The first rank takes over what all had; sums become means over ranks, whose number is another now."""
        first = float(self.world.is_main)
        factors = {"sums": first * self.world.size / len(states), "counts": first}
        return {"steps": states[0]["steps"]} | {
            part: {name: sum(state[part][name] for state in states) * factor for name in states[0][part]}
            for part, factor in factors.items()
        }


def _means(output: StepOutput) -> dict[str, Tensor]:
    values = {"loss": output.loss.detach(), "loss_prediction": output.prediction_loss}
    if output.contrastive is not None:
        values["loss_invariance"] = output.contrastive.invariance.detach()
        values["loss_variance"] = output.contrastive.variance.detach()
        values["loss_covariance"] = output.contrastive.covariance.detach()
    if output.ranks_BT is not None and output.discriminative_B is not None:
        values["images_without_region"] = (output.ranks_BT[:, 0] == 0).float().mean()
        values["images_with_regions_used"] = output.discriminative_B.float().mean()
    return values


def _counts(output: StepOutput) -> dict[str, Tensor]:
    values: dict[str, Tensor] = {}
    for kind, of_kind_B in _kinds(output).items():
        loss_BG = torch.where(of_kind_B[:, None], output.group_loss_BG, torch.nan)
        values[f"loss of {kind}"] = loss_BG.nansum(0)
        values[f"images with {kind}"] = (~loss_BG.isnan()).sum(0)
    if output.ranks_BT is not None:
        last_B1 = output.ranks_BT.amax(1, keepdim=True)
        values["region images"] = (last_B1 > 0).sum()
        values["regions"] = last_B1.sum()
        values["region patches"] = (output.ranks_BT < last_B1).sum()
    return values


def _kinds(output: StepOutput) -> dict[str, Tensor]:
    """Which images' groups are of which kind: the i-th random block and the i-th step are different tasks."""
    flat_B, regional_B = output.flat_B, output.discriminative_B
    if regional_B is None:
        regional_B = torch.zeros_like(flat_B)
    return dict(zip(KINDS, (flat_B & ~regional_B, flat_B & regional_B, ~flat_B), strict=True))


class CollapseWatch:
    """Counts consecutive log points at which the targets hardly differ between images."""

    def __init__(self, guard: CollapseGuard, strikes: int = 0) -> None:
        self.guard = guard
        self.strikes = strikes

    def look(self, pooled_targets_BD: Tensor, step: int) -> dict[str, float]:
        """Spread of the pooled targets of a batch; stops the run after `patience` bad looks.

        Raises:
            UserError: when the representation has collapsed.

        """
        spread = feature_std(pooled_targets_BD)
        rank = rankme(pooled_targets_BD - pooled_targets_BD.mean(0))  # centred: a constant has rank 1
        low = spread < self.guard.min_target_std or rank < self.guard.min_effective_rank
        self.strikes = self.strikes + 1 if low else 0
        if self.strikes >= self.guard.patience:
            raise UserError(
                f"step {step}: the representation has collapsed: at {self.strikes} log points in a row all images had "
                f"nearly the same target (standard deviation {spread:.2g}, allowed from "
                f"{self.guard.min_target_std:.2g}; effective rank {rank:.2f}, allowed from "
                f"{self.guard.min_effective_rank}). Usual causes: the learning "
                "rate is too high, the EMA momentum too low, or the context sees its targets. The bounds are "
                "recipes.*.collapse."
            )
        return {"target_std": spread, "target_effective_rank": rank}
