"""One training step of ViT-S/16 at 224 px, fp32, one CPU thread: against masked copies and the published I-JEPA.

    OMP_NUM_THREADS=1 python benchmarks/step.py                        # ten minutes, 8 GB
    OMP_NUM_THREADS=1 python benchmarks/step.py --batch 4 --rounds 3   # a minute

A step is forward, backward, AdamW and EMA. Baselines share weights with ours and must reach the same loss first.
Saliency of an untrained encoder is noise, so the regions come from given maps: Gaussian noise smoothed over 1.3 patches
and then exponentiated, skewed until a third of an image is foreground, cut by the method's own Otsu, components of at
least 10 patches. No curriculum; maps without a region are drawn again, as they would be I-JEPA steps.
"""

import argparse
import copy
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import ndimage
from support.masked_copies import masked_copies_loss
from support.published_ijepa import Masks, draw_masks, published_ema, published_loss
from support.timing import alternate, keep_memory, processor, verdict
from torch import Tensor
from torch.nn import functional as F

from dseq_jepa.methods.blocks import draw_blocks
from dseq_jepa.methods.jepa import Jepa, Moment
from dseq_jepa.methods.regions import cls_saliency, ranked_regions
from dseq_jepa.methods.settings import JepaSettings, RegionSettings
from dseq_jepa.models.settings import ArchitectureSettings, PredictorSettings
from dseq_jepa.models.vit import Tokens, patch_pixels
from dseq_jepa.training.optimizer import build_optimizer
from dseq_jepa.training.settings import LearningRate, Ramp, Recipe

VIT_S = ArchitectureSettings(
    label="ViT-S/16",
    image_size=224,
    patch_size=16,
    width=384,
    depth=12,
    heads=6,
    saliency_block=10,
    predictor=PredictorSettings(width=384, depth=6),
    recipe="benchmark",
)
RECIPE = Recipe(
    epochs=1,
    batch_size=16,
    learning_rate=LearningRate(start=1e-4, peak=1e-4, end=1e-4),
    warmup_epochs=0,
    weight_decay=Ramp(start=0.04, end=0.04),
)
REGIONS = RegionSettings(count=5, min_patches=10)
I_JEPA = JepaSettings(label="I-JEPA", class_token=False, generation="uniform", prediction="flat")
CAUSAL = JepaSettings(
    label="DSeq-JEPA", class_token=True, generation="discriminative", prediction="sequential", regions=REGIONS
)
PREFIX = CAUSAL.model_copy(update={"realisation": "prefix"})
MOMENTUM = 0.996


def saliency_maps(count: int, skew: float, seed: int) -> Tensor:
    """(count, T) smooth random maps that have a region."""
    random = np.random.default_rng(seed)
    maps_NHW = ndimage.gaussian_filter(random.normal(size=(4 * count, 14, 14)), (0, 1.3, 1.3), mode="reflect")
    maps_NT = torch.from_numpy(np.exp(skew * maps_NHW / maps_NHW.std((1, 2), keepdims=True))).flatten(1).float()
    return maps_NT[ranked_regions(maps_NT, 14, REGIONS)[:, 0] > 0][:count]


class MappedJepa(Jepa):
    """A Jepa whose class token and patches are as similar as given maps say, all else being the real work."""

    maps_BT: Tensor

    def _target_pass(self, pixels_BTK: Tensor) -> tuple[Tokens, Tokens]:
        source, target = super()._target_pass(pixels_BTK)
        if source.class_BD is None:
            return source, target
        class_BD, patches_BTD = torch.zeros_like(source.class_BD), torch.zeros_like(source.patches_BTD)
        class_BD[:, 0], patches_BTD[:, :, 0] = math.sqrt(class_BD.shape[1]), self.maps_BT
        return Tokens(class_BD, patches_BTD), target


@dataclass
class Workload:
    """What all sides see in a round: the same pictures, maps and blocks."""

    batch: int
    skew: float
    images_BCHW: Tensor = field(init=False)
    ids_B: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.images_BCHW = torch.randn(self.batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
        self.ids_B = np.arange(self.batch)

    def maps(self, round_: int) -> Tensor:
        """(B, T) saliency."""
        return saliency_maps(self.batch, self.skew, seed=round_)

    def moment(self, round_: int) -> Moment:
        """The round as a training step."""
        return Moment(seed=0, step=round_, progress=1.0)


class Step:
    """One side: its loss, then backward, optimizer and EMA."""

    def __init__(
        self, method: MappedJepa, loss: Callable[[MappedJepa, int], Tensor], *, published: bool = False
    ) -> None:
        self.method, self.loss, self.published = copy.deepcopy(method), loss, published
        if published:
            weights = [p for p in self.method.parameters() if p.requires_grad]
            self.optimizer = torch.optim.AdamW(weights, lr=1e-4, weight_decay=0.04)
        else:
            self.optimizer = build_optimizer(self.method, RECIPE)

    def __call__(self, round_: int) -> float:
        """The whole step of a round; its loss."""
        loss = self.loss(self.method, round_)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.published:
            published_ema(self.method, MOMENTUM)
        else:
            self.method.update_target(MOMENTUM)
        return float(loss.detach())


def build(settings: JepaSettings) -> MappedJepa:
    torch.manual_seed(0)
    return MappedJepa(settings, VIT_S, gather=lambda rows: rows)


def ours(work: Workload, *, alike: bool = False) -> Callable[[MappedJepa, int], Tensor]:
    """The step as trained; `alike`: every image has the first image's blocks."""
    ids_B = np.zeros_like(work.ids_B) if alike else work.ids_B

    def loss(method: MappedJepa, round_: int) -> Tensor:
        method.maps_BT = work.maps(round_)
        return method(work.images_BCHW, ids_B, work.moment(round_)).loss

    return loss


def masked_copies(work: Workload) -> Callable[[MappedJepa, int], Tensor]:
    """The same target pass, regions and loss, with N - 1 full-length copies of every image."""

    def loss(method: MappedJepa, round_: int) -> Tensor:
        method.maps_BT = work.maps(round_)
        with torch.no_grad():
            source, target = method._target_pass(patch_pixels(work.images_BCHW, VIT_S.patch_size))
            ranks_BT = ranked_regions(cls_saliency(source.class_BD, source.patches_BTD), VIT_S.grid, REGIONS)
            goals_BTD = F.layer_norm(target.patches_BTD, target.patches_BTD.shape[-1:])
        return masked_copies_loss(method, work.images_BCHW, ranks_BT, goals_BTD)

    return loss


def published(work: Workload, *, alike: bool = False) -> Callable[[MappedJepa, int], Tensor]:
    """The published recipe with its own masks, truncated; `alike`: with our blocks, one draw for all images."""

    def loss(method: MappedJepa, round_: int) -> Tensor:
        if not alike:
            return published_loss(method, work.images_BCHW, draw_masks(work.batch, VIT_S.grid))
        context_BT, targets_BGT = draw_blocks(VIT_S.grid, I_JEPA.blocks, 0, round_, np.zeros_like(work.ids_B))
        targets = [
            torch.from_numpy(block_BT).nonzero()[:, 1].view(work.batch, -1) for block_BT in targets_BGT.swapaxes(0, 1)
        ]
        masks = Masks(torch.from_numpy(context_BT).nonzero()[:, 1].view(work.batch, -1), targets)
        return published_loss(method, work.images_BCHW, masks)

    return loss


def require_equal(name: str, first: Step, second: Step) -> None:
    """Both sides compute the same thing, or their times mean nothing."""
    losses = [float(step.loss(step.method, 0).detach()) for step in (first, second)]
    if not math.isclose(*losses, rel_tol=1e-5):
        sys.exit(f"{name}: the losses differ, {losses[0]} and {losses[1]}")
    print(f"  {name}: losses agree, {losses[0]:.6f} and {losses[1]:.6f}")


def describe(work: Workload, rounds: int) -> None:
    """Print what the maps and blocks amount to."""
    ranks_BT = torch.cat([ranked_regions(work.maps(r), VIT_S.grid, REGIONS) for r in range(1, rounds + 1)])
    last_B1 = ranks_BT.amax(1, keepdim=True)
    foreground = float((ranks_BT < last_B1).float().mean())
    print(f"  regions per image, remainder included: {float(last_B1.float().mean()):.2f}; foreground {foreground:.0%}")
    own = [draw_blocks(VIT_S.grid, I_JEPA.blocks, 0, r, work.ids_B)[0].sum(1).mean() for r in range(1, rounds + 1)]
    cut = [draw_masks(work.batch, VIT_S.grid).context_BL.shape[1] for _ in range(100)]
    print(f"  I-JEPA context: {np.mean(own):.0f} patches; cut to the batch's shortest as published: {np.mean(cut):.0f}")


def main() -> int:
    """Measure; 0 if every claim holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16, help="images per step")
    parser.add_argument("--rounds", type=int, default=3, help="alternations, after one that warms up")
    parser.add_argument("--skew", type=float, default=0.3, help="0: bare smooth noise, half of an image is foreground")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    torch.manual_seed(0)
    work = Workload(arguments.batch, arguments.skew)
    causal, prefix, flat = build(CAUSAL), build(PREFIX), build(I_JEPA)
    sides = {
        "masked copies": Step(prefix, masked_copies(work)),
        "DSeq-JEPA prefix": Step(prefix, ours(work)),
        "DSeq-JEPA causal": Step(causal, ours(work)),
        "I-JEPA": Step(flat, ours(work)),
        "published I-JEPA, truncated contexts": Step(flat, published(work), published=True),
        "I-JEPA, one draw for all images": Step(flat, ours(work, alike=True)),
        "published I-JEPA, one draw for all images": Step(flat, published(work, alike=True), published=True),
    }
    print(f"{processor()}, one thread, {VIT_S.label} 224 px, batch {work.batch}, {arguments.rounds} alternations")
    describe(work, arguments.rounds)
    require_equal("masked copies and prefix", sides["masked copies"], sides["DSeq-JEPA prefix"])
    *_, alike, published_alike = sides.values()
    require_equal("published I-JEPA and ours on equal masks", published_alike, alike)

    seconds = alternate(sides, arguments.rounds)
    for name, value in seconds.items():
        print(f"  {name}: {value:.2f} s, {1000 * value / work.batch:.0f} ms an image")
    copies, i_jepa, cut = seconds["masked copies"], seconds["I-JEPA"], seconds["published I-JEPA, truncated contexts"]
    equal = seconds["published I-JEPA, one draw for all images"] / seconds["I-JEPA, one draw for all images"]
    print(f"  not a claim: published with truncated contexts, less work, over I-JEPA {cut / i_jepa:.2f}")
    claims = [
        verdict("masked copies over causal", copies / seconds["DSeq-JEPA causal"], 5.0),
        verdict("masked copies over prefix", copies / seconds["DSeq-JEPA prefix"], 4.5),
        verdict("published I-JEPA over I-JEPA, equal tokens", equal, 1.05),
        verdict("DSeq-JEPA causal over I-JEPA", seconds["DSeq-JEPA causal"] / i_jepa, 1.2, at_most=True),
        verdict("DSeq-JEPA prefix over I-JEPA", seconds["DSeq-JEPA prefix"] / i_jepa, 1.2, at_most=True),
    ]
    return 0 if all(claims) else 1


if __name__ == "__main__":
    sys.exit(main())
