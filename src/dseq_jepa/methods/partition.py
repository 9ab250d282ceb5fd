"""Every order and ablation as a `Partition`: blocks or ranked regions, flat or sequential (docs/protocols.md 1.5).

B images, G groups, T patches, R ranks of R_1..R_{N-1} (the remainder R_M is not among them).
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dseq_jepa.draws import uniforms
from dseq_jepa.methods.plan import Partition


def flat_blocks(context_BT: Tensor, targets_BGT: Tensor) -> Partition:
    """I-JEPA: every block from the context block, each on its own (docs/protocols.md 1.1)."""
    B, G, _ = targets_BGT.shape
    ones_BG = torch.ones(B, G, dtype=torch.long, device=context_BT.device)
    return Partition(context_BT.long(), targets_BGT, ones_BG, torch.ones_like(ones_BG[:, 0], dtype=torch.bool))


def flat_regions(ranks_BT: Tensor, groups: int) -> Partition:
    """Regions R_1..R_{M-1} from the remainder R_M, each on its own (docs/protocols.md 1.5, our reading)."""
    last_B1 = ranks_BT.amax(1, keepdim=True)
    rank_G1 = torch.arange(1, groups + 1, device=ranks_BT.device)[:, None]
    targets_BGT = (ranks_BT[:, None] == rank_G1) & (rank_G1 < last_B1[:, None])
    return flat_blocks((ranks_BT == last_B1) & (ranks_BT > 0), targets_BGT)


def sequential(ranks_BT: Tensor, groups: int, truncate: int | None = None) -> Partition:
    """Region i + 1 from regions 1..i, for i = 1..M-1 (paper 3.3, Eq. 5).

    The remainder R_M is predicted and never shown; with `truncate`, neither is anything beyond that rank.
    """
    last_B1 = ranks_BT.amax(1, keepdim=True)
    if truncate is not None:
        last_B1 = last_B1.clamp(max=truncate)
    visible_BT = torch.where(ranks_BT < last_B1, ranks_BT, 0)
    step_G = torch.arange(1, groups + 1, device=ranks_BT.device)
    predicted_G1 = step_G[:, None] + 1
    targets_BGT = (ranks_BT[:, None] == predicted_G1) & (predicted_G1 <= last_B1[:, None])
    flat_B = torch.zeros(len(ranks_BT), dtype=torch.bool, device=ranks_BT.device)
    return Partition(visible_BT, targets_BGT, step_G.expand(len(ranks_BT), -1), flat_B)


def choose(first_B: Tensor, first: Partition, second: Partition) -> Partition:
    """Image by image one of two partitions; the one with fewer groups gets empty ones."""
    groups = max(first.target_BGT.shape[1], second.target_BGT.shape[1])
    first, second = _with_groups(first, groups), _with_groups(second, groups)
    return Partition(
        rank_BT=torch.where(first_B[:, None], first.rank_BT, second.rank_BT),
        target_BGT=torch.where(first_B[:, None, None], first.target_BGT, second.target_BGT),
        sees_BG=torch.where(first_B[:, None], first.sees_BG, second.sees_BG),
        flat_B=torch.where(first_B, first.flat_B, second.flat_B),
    )


def _with_groups(partition: Partition, groups: int) -> Partition:
    missing = groups - partition.target_BGT.shape[1]
    if not missing:
        return partition
    empty_BGT = torch.zeros_like(partition.target_BGT[:, :1]).expand(-1, missing, -1)
    ones_BG = torch.ones_like(partition.sees_BG[:, :1]).expand(-1, missing)
    return Partition(
        partition.rank_BT,
        torch.cat([partition.target_BGT, empty_BGT], dim=1),
        torch.cat([partition.sees_BG, ones_BG], dim=1),
        partition.flat_B,
    )


def ranks_of_blocks(targets_BGT: Tensor, seed: int, step: int, ids_B: NDArray[np.int64]) -> Tensor:
    """Random blocks as a sequence in random order, (B, T) ranks (Table 4, uniform + sequential).

    A patch in several blocks belongs to the earlier one, blocks left empty are dropped, the remainder comes last.
    """
    G = targets_BGT.shape[1]
    order_BG = torch.from_numpy(uniforms(seed, "region order", step, ids_B, G)).argsort(1).to(targets_BGT.device)
    ordered_BGT = targets_BGT.gather(1, order_BG[:, :, None].expand_as(targets_BGT))
    owned_BGT = ordered_BGT & (ordered_BGT.cumsum(1) == 1)
    rank_BG = owned_BGT.any(2).cumsum(1)
    ranks_BT = (owned_BGT * rank_BG[:, :, None]).sum(1)
    return torch.where(ranks_BT > 0, ranks_BT, rank_BG[:, -1:] + 1)


def spatial_order(ranks_BT: Tensor, regions: int, grid: int) -> Tensor:
    """Regions R_1..R_{M-1} row-major by their centroids, ties by first patch; the remainder stays last (Table 5)."""
    place_T = torch.arange(ranks_BT.shape[1], device=ranks_BT.device)
    inside_BRT = ranks_BT[:, None] == torch.arange(1, regions, device=ranks_BT.device)[:, None]
    area_BR = inside_BRT.sum(2).clamp(min=1)
    first_BR = torch.where(inside_BRT, place_T, len(place_T)).amin(2)
    column_BR = (inside_BRT * (place_T % grid)).sum(2).double() / area_BR
    row_BR = (inside_BRT * (place_T // grid)).sum(2).double() / area_BR
    order_BR = first_BR.argsort(dim=1)
    for key_BR in (column_BR, row_BR):  # least significant key first, each sort stable
        order_BR = order_BR.gather(1, key_BR.gather(1, order_BR).argsort(dim=1, stable=True))
    return _reordered(ranks_BT, order_BR)


def random_order(ranks_BT: Tensor, regions: int, seed: int, step: int, ids_B: NDArray[np.int64]) -> Tensor:
    """Regions R_1..R_{M-1} in a random order, seeded per step and image; the remainder stays last (Table 5)."""
    keys_BR = torch.from_numpy(uniforms(seed, "region order", step, ids_B, regions - 1)).to(ranks_BT.device)
    return _reordered(ranks_BT, keys_BR.argsort(dim=1))


def _reordered(ranks_BT: Tensor, order_BR: Tensor) -> Tensor:
    """New ranks when region `order[k] + 1` comes (k + 1)-th among the regions that an image has."""
    last_B1 = ranks_BT.amax(1, keepdim=True)
    exists_BR = order_BR + 1 < last_B1
    new_BR = torch.zeros_like(order_BR).scatter(1, order_BR, exists_BR.cumsum(1))
    new_BL = torch.cat([torch.zeros_like(last_B1), new_BR, torch.zeros_like(last_B1)], dim=1)
    moved_BT = new_BL.gather(1, ranks_BT)
    return torch.where(ranks_BT < last_B1, moved_BT, ranks_BT)
