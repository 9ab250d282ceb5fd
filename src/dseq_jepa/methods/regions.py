"""Where to predict, in what order: saliency -> Otsu -> components -> ranked regions (paper 3.2; docs/protocols.md 1.2).

    ranks_BT = ranked_regions(saliency_BT, grid=14, settings=RegionSettings())

The whole batch at once: on a CPU through one scipy.ndimage.label call, on a GPU through matrix products that never
leave it. Both equal `by_scikit_image`, the reference that `regions.backend: skimage` selects, on every map.
B images, T patches, a square grid of G x G = T.
"""

import math
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from dseq_jepa.methods.settings import RegionSettings

LEVELS = 256
_EIGHT_NEIGHBOURS = np.stack([np.zeros((3, 3), int), np.ones((3, 3), int), np.zeros((3, 3), int)])


def cls_saliency(class_BD: Tensor, patches_BTD: Tensor) -> Tensor:
    """A_j = <c, z_j> / sqrt(D), (B, T) fp32: the class token's similarity to every patch (paper 3.2)."""
    with torch.autocast(patches_BTD.device.type, enabled=False):
        similarity_BT1 = patches_BTD.float() @ class_BD.float()[:, :, None]
    return similarity_BT1[:, :, 0] / math.sqrt(class_BD.shape[-1])


def ranked_regions(saliency_BT: Tensor, grid: int, settings: RegionSettings) -> Tensor:
    """Rank of every patch: 1 for the most salient region up to M for the remainder; all 0 where no region is found.

    Args:
        saliency_BT: a map per image, row-major; one that is not finite has no region.
        grid: patches per side.
        settings: N, the smallest component and the range of region scales.

    Returns:
        (B, T) int64 on the saliency's device. M <= N; regions are disjoint and cover the image.

    """
    if settings.backend == "skimage":
        maps_BHW = saliency_BT.detach().cpu().numpy().reshape(-1, grid, grid)
        ranks = [by_scikit_image(map_HW, settings).ravel() for map_HW in maps_BHW]
        return torch.from_numpy(np.stack(ranks)).to(saliency_BT.device)
    if saliency_BT.device.type == "cpu":
        return torch.from_numpy(_on_cpu(saliency_BT.detach().numpy(), grid, settings))
    return on_device(saliency_BT.detach(), grid, settings)


Sizes = TypeVar("Sizes", NDArray[Any], Tensor)


def _kept(area: Sizes, patches: int, settings: RegionSettings) -> Sizes:
    """Which component sizes are neither too small nor too large."""
    scale = area / patches
    return (area >= settings.min_patches) & (scale >= settings.min_region_scale) & (scale <= settings.max_region_scale)


def _on_cpu(saliency_BT: NDArray[np.float32], grid: int, settings: RegionSettings) -> NDArray[np.int64]:
    B, T = saliency_BT.shape
    low_B1, high_B1 = saliency_BT.min(1, keepdims=True), saliency_BT.max(1, keepdims=True)
    with np.errstate(invalid="ignore", over="ignore"):
        span_B1 = high_B1 - low_B1
        varied_B1 = (span_B1 > 0) & (span_B1 < math.inf)  # neither is true of NaN
        saliency_BT = (saliency_BT - low_B1) / np.where(varied_B1, span_B1, 1)
    saliency_BT = np.where(varied_B1, saliency_BT, np.float32(0))
    levels_BT = (LEVELS - 1) * saliency_BT // 1
    foreground_BT = (levels_BT > _otsu_on_cpu(levels_BT.astype(np.int64))[:, None]) & varied_B1

    labels_BHW, components = ndimage.label(foreground_BT.reshape(B, grid, grid), structure=_EIGHT_NEIGHBOURS)
    labels_N = labels_BHW.ravel()  # components are numbered image by image, each by its first patch
    area_K = np.bincount(labels_N, minlength=components + 1)[1:]
    score_K = np.bincount(labels_N, weights=saliency_BT.ravel(), minlength=components + 1)[1:] / area_K
    image_K = np.zeros(components + 1, np.int64)
    image_K[labels_N] = np.arange(B).repeat(T)
    image_K = image_K[1:]

    kept_K = np.flatnonzero(_kept(area_K, T, settings))
    kept_K = kept_K[np.lexsort((kept_K, -area_K[kept_K], -score_K[kept_K], image_K[kept_K]))]
    found_B = np.bincount(image_K[kept_K], minlength=B)
    place_K = np.arange(len(kept_K)) - (np.cumsum(found_B) - found_B)[image_K[kept_K]]
    top_K = place_K < settings.count - 1
    rank_K = np.zeros(components + 1, np.int64)
    rank_K[kept_K[top_K] + 1] = place_K[top_K] + 1
    remainder_B1 = np.where(found_B > 0, np.minimum(found_B, settings.count - 1) + 1, 0)[:, None]
    ranks_BT: NDArray[np.int64] = rank_K[labels_N].reshape(B, T)
    covered_BT: NDArray[np.int64] = np.where(ranks_BT > 0, ranks_BT, remainder_B1)
    return covered_BT


def _otsu_on_cpu(levels_BT: NDArray[np.int64]) -> NDArray[np.int64]:
    """First threshold of greatest between-class variance, per image; arithmetic in scikit-image's order."""
    B, T = levels_BT.shape
    offset_B1 = LEVELS * np.arange(B)[:, None]
    counts_BL = np.bincount((levels_BT + offset_B1).ravel(), minlength=B * LEVELS).reshape(B, LEVELS)
    below_BL = counts_BL.cumsum(1)
    sum_below_BL = (counts_BL * np.arange(LEVELS)).cumsum(1)
    above_BL = T - below_BL
    sum_above_BL = sum_below_BL[:, -1:] - sum_below_BL
    with np.errstate(divide="ignore", invalid="ignore"):
        distance_BL = sum_below_BL / below_BL - sum_above_BL / above_BL
        variance_BL = (below_BL * above_BL) * distance_BL**2
    best_B: NDArray[np.int64] = np.nan_to_num(variance_BL[:, :-1], nan=-1.0).argmax(axis=1)
    return best_B


def on_device(saliency_BT: Tensor, grid: int, settings: RegionSettings) -> Tensor:
    """The same, without leaving the saliency's device and without a data-dependent loop."""
    B, T = saliency_BT.shape
    low_B1, high_B1 = saliency_BT.amin(1, keepdim=True), saliency_BT.amax(1, keepdim=True)
    span_B1 = high_B1 - low_B1
    varied_B1 = (span_B1 > 0) & (span_B1 < math.inf)
    saliency_BT = (saliency_BT - low_B1) / torch.where(varied_B1, span_B1, 1)
    saliency_BT = torch.where(varied_B1, saliency_BT, 0)
    levels_BT = ((LEVELS - 1) * saliency_BT).floor().long()
    foreground_BT = (levels_BT > _otsu_on_device(levels_BT)[:, None]) & varied_B1
    label_BT = _first_connected(foreground_BT, grid)

    # A component is known by its first patch: sums land there. In fp64 they are exact, so their order is free.
    area_BT = torch.zeros_like(label_BT).scatter_add(1, label_BT, foreground_BT.long())
    inside_BT = torch.where(foreground_BT, saliency_BT, 0).double()
    score_BT = torch.zeros_like(inside_BT).scatter_add(1, label_BT, inside_BT) / area_BT.clamp(min=1)
    kept_BT = _kept(area_BT, T, settings)
    by_area_BT = area_BT.argsort(dim=1, descending=True, stable=True)
    score_of_BT = torch.where(kept_BT, score_BT, -1.0).gather(1, by_area_BT)
    best_BT = by_area_BT.gather(1, score_of_BT.argsort(dim=1, descending=True, stable=True))

    found_B1 = kept_BT.sum(1, keepdim=True).clamp(max=settings.count - 1)
    place_T = torch.arange(T, device=saliency_BT.device).expand(B, T)
    rank_of_place_BT = torch.where(place_T < found_B1, place_T + 1, 0)
    rank_of_first_BT = torch.zeros_like(label_BT).scatter(1, best_BT, rank_of_place_BT)
    ranks_BT = torch.where(foreground_BT, rank_of_first_BT.gather(1, label_BT), 0)
    remainder_B1 = torch.where(found_B1 > 0, found_B1 + 1, 0)
    return torch.where(ranks_BT > 0, ranks_BT, remainder_B1)


def _otsu_on_device(levels_BT: Tensor) -> Tensor:
    B, T = levels_BT.shape
    ones_BT = torch.ones_like(levels_BT)
    counts_BL = torch.zeros(B, LEVELS, dtype=torch.long, device=levels_BT.device).scatter_add(1, levels_BT, ones_BT)
    below_BL = counts_BL.cumsum(1)
    sum_below_BL = (counts_BL * torch.arange(LEVELS, device=levels_BT.device)).cumsum(1)
    above_BL = T - below_BL
    sum_above_BL = sum_below_BL[:, -1:] - sum_below_BL
    distance_BL = sum_below_BL.double() / below_BL - sum_above_BL.double() / above_BL
    variance_BL = ((below_BL * above_BL) * distance_BL**2)[:, :-1].nan_to_num(nan=-1.0)
    best_B1 = variance_BL.amax(1, keepdim=True)
    place_L = torch.arange(LEVELS - 1, device=levels_BT.device)
    return torch.where(variance_BL == best_B1, place_L, LEVELS).amin(1)


def _first_connected(foreground_BT: Tensor, grid: int) -> Tensor:
    """First patch of each patch's 8-connected component, (B, T); a background patch is its own.

    Reachability by squaring: after ceil(log2 T) squarings of the adjacency every path is covered, a bound that holds
    for any map (a spiral included), so no loop has to ask the device whether it has converged.
    """
    T = grid * grid
    device = foreground_BT.device
    row_T, column_T = torch.arange(T, device=device) // grid, torch.arange(T, device=device) % grid
    near_TT = ((row_T[:, None] - row_T).abs() <= 1) & ((column_T[:, None] - column_T).abs() <= 1)
    linked_BTT = near_TT & foreground_BT[:, :, None] & foreground_BT[:, None, :]
    linked_BTT = linked_BTT | torch.eye(T, dtype=torch.bool, device=device)
    reach_BTT = linked_BTT.to(torch.float32 if device.type == "cpu" else torch.bfloat16)
    for _ in range(math.ceil(math.log2(T))):
        reach_BTT = (reach_BTT @ reach_BTT).clamp(max=1)
    place_T = torch.arange(T, device=device)
    return torch.where(reach_BTT > 0, place_T, T).amin(2)


def by_scikit_image(saliency_HW: NDArray[np.float32], settings: RegionSettings) -> NDArray[np.int64]:
    """One map through scikit-image: the slow reference, (H, W) ranks or zeros where no region is found."""
    from skimage.measure import label, regionprops

    saliency_HW, foreground_HW = foreground_by_scikit_image(saliency_HW)
    labels_HW = label(foreground_HW, connectivity=2)
    components = [
        (-saliency_HW[labels_HW == region.label].astype(np.float64).mean(), -region.area, region.label)
        for region in regionprops(labels_HW)
        if _kept(np.array(region.area), saliency_HW.size, settings)
    ]
    top = sorted(components)[: settings.count - 1]
    ranks_HW = np.full(saliency_HW.shape, len(top) + 1 if top else 0, np.int64)
    for rank, (_, _, name) in enumerate(top, start=1):
        ranks_HW[labels_HW == name] = rank
    return ranks_HW


def foreground_by_scikit_image(saliency_HW: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """A map on [0, 1], and where it is above Otsu's threshold; one that is constant or not finite is nowhere."""
    from skimage.filters import threshold_otsu

    low, high = saliency_HW.min(), saliency_HW.max()
    with np.errstate(invalid="ignore", over="ignore"):
        span = high - low
    if not 0 < span < math.inf:
        return np.zeros_like(saliency_HW), np.zeros(saliency_HW.shape, np.bool_)
    scaled_HW = (saliency_HW - low) / span
    levels_HW = np.floor((LEVELS - 1) * scaled_HW).astype(np.uint8)
    return scaled_HW, levels_HW > threshold_otsu(levels_HW)
