"""Ranked regions of 256 saliency maps of 14 x 14 on one CPU thread: the batched code against a scikit-image loop.

    OMP_NUM_THREADS=1 python benchmarks/regions.py

Claim: at most 3 ms, or at least 3 times as fast as the loop. Both must find the same regions. Maps are Gaussian noise:
raw, as an untrained encoder gives (many small components), and smoothed over 1.3 patches (a few large ones).
"""

import sys

import numpy as np
import torch
from scipy import ndimage
from support.timing import alternate, processor
from torch import Tensor

from dseq_jepa.methods.regions import ranked_regions
from dseq_jepa.methods.settings import RegionSettings

GRID, MAPS, ROUNDS = 14, 256, 25
CLAIM_MS, CLAIM_RATIO = 3.0, 3.0
BATCHED = RegionSettings()
LOOP = RegionSettings(backend="skimage")


def maps(smoothing: float) -> Tensor:
    """(MAPS, T) saliency."""
    noise_BHW = np.random.default_rng(0).normal(size=(MAPS, GRID, GRID))
    smooth_BHW = ndimage.gaussian_filter(noise_BHW, (0, smoothing, smoothing), mode="reflect")
    return torch.from_numpy(smooth_BHW.astype(np.float32)).flatten(1)


def measure(title: str, maps_BT: Tensor) -> bool:
    """Print both times; whether the claim holds."""
    ranks_BT = ranked_regions(maps_BT, GRID, BATCHED)
    if not torch.equal(ranks_BT, ranked_regions(maps_BT, GRID, LOOP)):
        sys.exit(f"{title}: the two find different regions")
    seconds = alternate(
        {
            "loop": lambda _: ranked_regions(maps_BT, GRID, LOOP),
            "batched": lambda _: ranked_regions(maps_BT, GRID, BATCHED),
        },
        ROUNDS,
    )
    milliseconds, ratio = 1000 * seconds["batched"], seconds["loop"] / seconds["batched"]
    holds = milliseconds <= CLAIM_MS or ratio >= CLAIM_RATIO
    print(f"  {title}, {ranks_BT.amax(1).float().mean():.2f} regions per map")
    print(
        f"    scikit-image loop {1000 * seconds['loop']:.1f} ms, batched {milliseconds:.2f} ms: {ratio:.1f} x", end=""
    )
    print(f" (claim: <= {CLAIM_MS} ms or >= {CLAIM_RATIO} x) {'holds' if holds else 'FAILS'}")
    return holds


def main() -> int:
    """Measure; 0 if the claim holds on both kinds of maps."""
    torch.set_num_threads(1)
    print(f"{processor()}, one thread, {MAPS} maps of {GRID} x {GRID}")
    return 0 if all([measure("noise", maps(0.0)), measure("smooth", maps(1.3))]) else 1


if __name__ == "__main__":
    sys.exit(main())
