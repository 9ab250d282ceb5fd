"""A tiny architecture, and the checkpoints that a pre-training of it keeps."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from dseq_jepa.config import ComputeSettings
from dseq_jepa.data.settings import DatasetSettings, LoadingSettings
from dseq_jepa.jobs import Model, PretrainJob, canonical
from dseq_jepa.methods.settings import JepaSettings
from dseq_jepa.models.settings import ArchitectureSettings, PredictorSettings
from dseq_jepa.models.vit import VisionTransformer
from dseq_jepa.training.settings import LearningRate, Ramp, Recipe

TINY = ArchitectureSettings(
    label="ViT-test/8", image_size=32, patch_size=8, width=24, depth=4, heads=3, saliency_block=3,
    predictor=PredictorSettings(width=12, depth=1), recipe="r",
)  # fmt: skip
CPU = ComputeSettings(device="cpu", threads=1)
MODEL = Model(experiment="test", method="m", architecture="a", seed=0)


def encoder(class_token: bool, architecture: ArchitectureSettings = TINY) -> VisionTransformer:
    """A random encoder that still tells colours apart."""
    torch.manual_seed(2)
    return VisionTransformer(architecture, class_token).eval()


def pretrain_job(class_token: bool, architecture: ArchitectureSettings = TINY) -> PretrainJob:
    """The settings that a checkpoint carries."""
    return PretrainJob(
        model=MODEL, compute=CPU, loading=LoadingSettings(workers=0),
        method=JepaSettings(label="M", class_token=class_token, generation="uniform", prediction="flat"),
        architecture=architecture,
        recipe=Recipe(
            epochs=4, batch_size=8, learning_rate=LearningRate(start=0.1, peak=0.1, end=0.1), warmup_epochs=1,
            weight_decay=Ramp(start=0, end=0),
        ),
        data=DatasetSettings(layout="imagenet", root=Path("data")),
        keep_percent=(50, 100),
    )  # fmt: skip


def write_checkpoint(folder: Path, target: VisionTransformer, percent: int = 50) -> Path:
    """checkpoint-<percent>.safetensors with a target encoder and a context encoder that differs from it."""
    folder.mkdir(exist_ok=True)
    tensors = {f"target_encoder.{key}": value for key, value in target.state_dict().items()}
    tensors |= {f"context_encoder.{key}": value + 1 for key, value in target.state_dict().items()}
    job = pretrain_job(target.class_token_on, target.settings)
    about = {"epoch": 4 * percent / 100, "step": percent, "percent": percent, "job": json.loads(job.to_json())}
    path = folder / f"checkpoint-{percent:03d}.safetensors"
    save_file(tensors, path, metadata={"run": canonical(about)})
    return path
