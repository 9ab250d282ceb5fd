"""Decode + crop of 500 x 375 JPEGs, per core: ours against torchvision's ImageFolder + PIL at the same crop law.

    OMP_NUM_THREADS=1 python benchmarks/decode.py

Claim: at least 1.5 times as fast. Both read the same files, decode to RGB and take RandomResizedCrop(224, area 0.3-1).
The other side then does what its recipe does (ToTensor, Normalize); ours hands over uint8, which the device normalises.
One process, one thread, CPU seconds, alternating medians. Pictures are generated (fractal noise with edges, about as
many bytes as ImageNet's); with DSEQ_REAL_DATA, also ImageNet photographs of 500 x 375 or 375 x 500.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import transforms
from torchvision.datasets import ImageFolder

from dseq_jepa.data.catalog import Split, load_split
from dseq_jepa.data.decode import DECODER, decode
from dseq_jepa.data.settings import DatasetSettings
from dseq_jepa.data.transforms import MEAN, STD, TrainView

CLAIM = 1.5
ROUNDS = 9
PICTURES = 32


def photograph(seed: int) -> Image.Image:
    """Noise whose power falls with frequency, as in photographs, and a few hard edges."""
    random = np.random.default_rng(seed)
    image_HWC = np.zeros((375, 500, 3))
    for octave in range(7):
        size = (500 // 2**octave + 1, 375 // 2**octave + 1)
        coarse = Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
        image_HWC += 2.0**octave * (np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC)) - 128.0) / 40
    for _ in range(6):
        top, left, height, width = random.integers(0, [300, 400, 150, 200])
        image_HWC[top : top + height, left : left + width] += random.normal(0, 30, 3)
    return Image.fromarray((image_HWC + 128).clip(0, 255).astype(np.uint8))


def generate(root: Path) -> None:
    """An ImageNet tree of one class."""
    for part, count in (("train", PICTURES), ("val", 1)):
        folder = root / part / "n00000000"
        folder.mkdir(parents=True)
        for i in range(count):
            photograph(i).save(folder / f"{i}.JPEG", quality=90)


def link_real(source: Path, root: Path) -> int:
    """Links to the real photographs of the size that the claim is about; their number."""
    (root / "train" / "n00000000").mkdir(parents=True)
    (root / "val").symlink_to(root / "train")
    count = 0
    for file in sorted(source.glob("train/*/*")):
        if sorted(Image.open(file).size) == [375, 500]:
            (root / "train" / "n00000000" / file.name).symlink_to(file)
            count += 1
    return count


def theirs(root: Path) -> Callable[[], None]:
    """Read every picture once as the common recipe does."""
    crop = transforms.RandomResizedCrop(224, scale=(0.3, 1.0))
    dataset = ImageFolder(
        str(root / "train"), transforms.Compose([crop, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    )

    def run() -> None:
        for i in range(len(dataset)):
            dataset[i]

    return run


def ours(split: Split) -> Callable[[], None]:
    """Read every picture once as the loaders do."""
    view = TrainView(224, (0.3, 1.0), False, 0)

    def run() -> None:
        for i in range(len(split)):
            path = split.path(i)
            view(decode(path.read_bytes(), str(path)), i, 0)

    return run


def measure(root: Path, title: str) -> float:
    """Print milliseconds per picture of both and return the ratio."""
    split = load_split(DatasetSettings(layout="imagenet", root=root), "train")
    sides = {"ImageFolder + PIL": theirs(root), "ours": ours(split)}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(ROUNDS + 1):
        for name, run in sides.items():
            start = time.process_time()
            run()
            if round_:  # the first warms caches
                seconds[name].append(time.process_time() - start)
    medians = {name: 1000 * float(np.median(values)) / len(split) for name, values in seconds.items()}
    ratio = medians["ImageFolder + PIL"] / medians["ours"]
    kilobytes = sum(split.path(i).stat().st_size for i in range(len(split))) / len(split) / 1024
    print(f"{title} ({len(split)} pictures, {kilobytes:.0f} KiB each)")
    print("".join(f"  {name}: {value:.2f} ms a picture\n" for name, value in medians.items()), end="")
    print(f"  decode + crop: {ratio:.2f} x (claim: {CLAIM} x)")
    return ratio


def main() -> int:
    """Measure; 0 if the claim holds on every set of pictures."""
    torch.set_num_threads(1)
    print(DECODER)
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder) / "generated")
        ratios.append(measure(Path(folder) / "generated", "generated, 500 x 375"))
        source = Path(os.environ.get("DSEQ_REAL_DATA", "")) / "imagenet_fullres"
        if link_real(source, Path(folder) / "real"):
            ratios.append(measure(Path(folder) / "real", "ImageNet photographs, 500 x 375"))
        else:
            print("ImageNet photographs: none found (DSEQ_REAL_DATA)")
    return 0 if min(ratios) >= CLAIM else 1


if __name__ == "__main__":
    sys.exit(main())
