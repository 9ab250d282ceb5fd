"""Tiny data sets on disk and a tiny exported encoder, for tests that run whole evaluations."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dseq_jepa.data.settings import DatasetSettings, LoadingSettings
from dseq_jepa.evaluation.settings import ProbeSettings
from dseq_jepa.jobs import ProbeJob
from dseq_jepa.models.vit import VisionTransformer
from dseq_jepa.models.weights import EncoderCard, positions, write_encoder
from tests.models.checkpoints import CPU, MODEL

COLOURS = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200], [180, 180, 30]])


def picture(label: int, draw: np.random.Generator) -> Image.Image:
    """Noise around a class's colour."""
    pixels = COLOURS[label] + draw.integers(-30, 31, size=(36, 44, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def make_imagenet(root: Path, train: int = 48, val: int = 20, classes: int = 4) -> DatasetSettings:
    """Class folders of coloured noise."""
    draw = np.random.default_rng(0)
    for part, count in (("train", train), ("val", val)):
        for index in range(count):
            path = root / part / f"n{index % classes:08d}" / f"{index:04d}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(index % classes, draw).save(path, quality=95)
    return DatasetSettings(layout="imagenet", root=root)


def make_clevr(root: Path, train: int = 32, val: int = 12) -> DatasetSettings:
    """Scenes whose colour tells both how many objects there are and how near the nearest is."""
    draw = np.random.default_rng(1)
    for part, count in (("train", train), ("val", val)):
        scenes = []
        (root / "images" / part).mkdir(parents=True)
        for index in range(count):
            name, label = f"CLEVR_{part}_{index:06d}.png", index % 4
            picture(label, draw).save(root / "images" / part / name)
            depths = [7.9 + 0.5 * (label % 3) + further for further in range(3 + label)]
            scenes.append({"image_filename": name, "objects": [{"pixel_coords": [1, 1, depth]} for depth in depths]})
        (root / "scenes").mkdir(exist_ok=True)
        (root / "scenes" / f"CLEVR_{part}_scenes.json").write_text(json.dumps({"scenes": scenes}))
    return DatasetSettings(layout="clevr", root=root)


def export(model: VisionTransformer, out: Path) -> Path:
    """As `dseq-jepa export` writes it."""
    tensors = {key: value.numpy() for key, value in model.state_dict().items()}
    tensors["pos_embed"] = positions(model.settings, model.class_token_on)
    card = EncoderCard.of(
        model.settings, class_token=model.class_token_on, checkpoint="c", epoch=1.0, score=None, provenance={}
    )
    return write_encoder(out, tensors, card)


def probe(data: str, **changes: Any) -> ProbeSettings:
    """A short probe on kept features."""
    plain: dict[str, Any] = {
        "kind": "probe",
        "data": data, "features": ["last4"], "learning_rates": [0.5], "scale_rate_per": None, "weight_decay": 0.0,
        "epochs": [8], "batch_size": 16, "augment": False,
    }  # fmt: skip
    return ProbeSettings.model_validate(plain | changes)


def job(
    data: dict[str, DatasetSettings], evaluations: dict[str, ProbeSettings], on_bad_image: Any = "error"
) -> ProbeJob:
    """A group of evaluations."""
    return ProbeJob(
        model=MODEL, compute=CPU, loading=LoadingSettings(workers=0, on_bad_image=on_bad_image), group="classify",
        evaluations=evaluations, data=data,
    )  # fmt: skip
