"""VICReg of a global batch on one CPU thread: a table of slots by images against every row in every slot.

    OMP_NUM_THREADS=1 python benchmarks/vicreg.py

Claims: forward and backward at least 6 times as fast for C-JEPA, 2.5 times for DSeq-C-JEPA. The other side is the plain
way to do this without waiting for the device, and what this project did before: slots of both schemes, each with all
rows, zeros where a row belongs to another slot. Both sides must give the same loss and gradient. 512 images, width
1024; C-JEPA has four blocks an image, DSeq-C-JEPA four blocks in half of them and one to four regions in the others.

S slots, B images, N rows, W width.
"""

import sys

import torch
from support.timing import alternate, keep_memory, processor, verdict
from torch import Tensor
from torch.nn import functional as F

from dseq_jepa.methods.contrastive import vicreg
from dseq_jepa.methods.settings import ContrastiveSettings

IMAGES, GROUPS, WIDTH, ROUNDS = 512, 4, 1024, 5
SETTINGS = ContrastiveSettings()


def dense(predicted_NW: Tensor, target_NW: Tensor, slot_N: Tensor) -> Tensor:
    """The same total with every row in every slot."""
    member_SN = F.one_hot(slot_N, 2 * GROUPS).T.float()
    count_S = member_SN.sum(1)
    counts_S = count_S >= 2
    mean_SW = (member_SN @ predicted_NW) / count_S.clamp(min=1)[:, None]
    centred_SNW = (predicted_NW - mean_SW[:, None]) * member_SN[:, :, None]
    covariance_SWW = centred_SNW.transpose(1, 2) @ centred_SNW / (count_S - 1).clamp(min=1)[:, None, None]
    variance_SW = covariance_SWW.diagonal(dim1=1, dim2=2)
    spread_S = F.relu(1 - torch.sqrt(variance_SW + 1e-4)).mean(1)
    off_diagonal_S = (covariance_SWW.square().sum((1, 2)) - variance_SW.square().sum(1)) / WIDTH
    terms_S = torch.where(counts_S, SETTINGS.variance * spread_S + SETTINGS.covariance * off_diagonal_S, 0)
    return SETTINGS.invariance * F.mse_loss(predicted_NW, target_NW) + 2 / counts_S.sum() * terms_S.sum()


def slots_of(*, two_schemes: bool) -> tuple[Tensor, Tensor]:
    """(N,) slot and image of every row: blocks in the first half of the images or in all, regions in the others."""
    image_BG = torch.arange(IMAGES)[:, None].expand(-1, GROUPS)
    group_BG = torch.arange(GROUPS).expand(IMAGES, -1)
    if not two_schemes:
        return group_BG.flatten(), image_BG.flatten()
    regional_BG = image_BG >= IMAGES // 2
    has_BG = ~regional_BG | (group_BG <= image_BG % GROUPS)
    return (group_BG + GROUPS * ~regional_BG)[has_BG], image_BG[has_BG]


def measure(title: str, claim: float, *, two_schemes: bool) -> bool:
    """Print both times; whether the claim holds."""
    slot_N, image_N = slots_of(two_schemes=two_schemes)
    torch.manual_seed(0)
    predicted_NW, target_NW = (torch.randn(len(slot_N), WIDTH, requires_grad=True) for _ in range(2))
    shape = (GROUPS * (2 if two_schemes else 1), IMAGES)

    def step(loss: Tensor) -> tuple[Tensor, ...]:
        return loss, *torch.autograd.grad(loss, (predicted_NW, target_NW))

    sides = {
        "every row in every slot": lambda _: step(dense(predicted_NW, target_NW, slot_N)),
        "slots by images": lambda _: step(
            vicreg(predicted_NW, target_NW, slot_N * IMAGES + image_N, shape, SETTINGS).total
        ),
    }
    expected, ours = (side(0) for side in sides.values())
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-7)
    seconds = alternate(sides, ROUNDS)
    print(f"  {title}, {len(slot_N)} rows")
    for name, value in seconds.items():
        print(f"    {name}: {1000 * value:.0f} ms")
    before, now = seconds.values()
    return verdict(f"{title}, every row in every slot over slots by images", before / now, claim)


def main() -> int:
    """Measure; 0 if both claims hold."""
    torch.set_num_threads(1)
    keep_memory()
    print(f"{processor()}, one thread, {IMAGES} images, width {WIDTH}")
    claims = [measure("C-JEPA", 6.0, two_schemes=False), measure("DSeq-C-JEPA", 2.5, two_schemes=True)]
    return 0 if all(claims) else 1


if __name__ == "__main__":
    sys.exit(main())
