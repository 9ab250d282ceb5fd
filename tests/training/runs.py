"""A pre-training small enough to kill, resume and repeat in seconds: 48 pictures, 24 steps.

python -m tests.training.runs DATA OUT METHOD      # what the tests start as a process of its own
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from dseq_jepa.config import ComputeSettings
from dseq_jepa.data.settings import DatasetSettings, LoadingSettings
from dseq_jepa.jobs import Model, PretrainJob
from dseq_jepa.methods.settings import ContrastiveSettings, JepaSettings, RegionSettings
from dseq_jepa.training.settings import LearningRate, Ramp, Recipe
from tests.methods.small import ARCHITECTURE

DSEQ = JepaSettings(
    label="DSeq-JEPA",
    class_token=True,
    generation="discriminative",
    prediction="sequential",
    curriculum=True,
    regions=RegionSettings(min_patches=2),
)
I_JEPA = JepaSettings(label="I-JEPA", class_token=False, generation="uniform", prediction="flat")
CONTRASTIVE = {"contrastive": ContrastiveSettings(projector_width=24)}
METHODS = {
    "i-jepa": I_JEPA,
    "c-jepa": I_JEPA.model_copy(update=CONTRASTIVE),
    "dseq-jepa": DSEQ,
    "dseq-c-jepa": DSEQ.model_copy(update=CONTRASTIVE),
}


def write_pictures(root: Path, count: int = 48, side: int = 56) -> Path:
    """Two classes of generated JPEGs in ImageNet's layout."""
    from PIL import Image

    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side] / side
    for n in range(count):
        folder = root / "train" / f"n{n % 2:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        centre = rng.uniform(0.2, 0.8, 2)
        disc = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < rng.uniform(0.02, 0.1)
        picture = np.stack([rng.uniform(0, 1) * x, rng.uniform(0, 1) * y, disc * (n % 2)], axis=2)
        picture = picture * 200 + rng.uniform(0, 40, picture.shape)
        Image.fromarray(picture.astype(np.uint8)).save(folder / f"{n:04d}.JPEG", quality=95)
    return root


def job(root: Path, method: str = "dseq-jepa", **recipe: Any) -> PretrainJob:
    """Settings of a run; keyword arguments change the recipe."""
    values: dict[str, Any] = {
        "epochs": 4,
        "batch_size": 8,
        "learning_rate": LearningRate(start=1e-4, peak=2e-3, end=1e-5),
        "warmup_epochs": 1,
        "weight_decay": Ramp(start=0.04, end=0.4),
        "ema": Ramp(start=0.9, end=1.0),
        "precision": "fp32",
        "log_every": 4,
    }
    return PretrainJob(
        model=Model(experiment="test", method=method, architecture="small", seed=5),
        compute=ComputeSettings(device="cpu", threads=1),
        loading=LoadingSettings(workers=0),
        method=METHODS[method],
        architecture=ARCHITECTURE,
        recipe=Recipe(**(values | recipe)),
        data=DatasetSettings(layout="imagenet", root=root),
        keep_percent=(25, 50, 75, 100),
    )


if __name__ == "__main__":
    from dseq_jepa.training.loop import pretrain

    _, data, out, settings = sys.argv
    pretrain(PretrainJob.parse(settings), Path(out))
