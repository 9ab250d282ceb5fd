r"""Object detection and instance segmentation on an exported encoder (docs/protocols.md 4).

    dseq-jepa detect --config configs/demo.yaml --method dseq-jepa --encoder out/encoder.safetensors --out out/
    torchrun --nproc-per-node 8 -m dseq_jepa detect --config configs/paper.yaml --method dseq-jepa \
        --architecture vit-b16 --encoder out/encoder.safetensors --out out/           # 8 x H200

Two engines train the same detector from the same weights and leave the same files: metrics.json, records.csv.gz,
predictions.json.gz (COCO's result format), examples.png and provenance.json. Killed at any moment, the same command
goes on.
"""

from pathlib import Path

from dseq_jepa.evaluation.tuning import run
from dseq_jepa.jobs import DetectJob


def detect(job: DetectJob, encoder: Path, out: Path) -> Path:
    """Train a detector by the engine that the settings name and measure it; see `tuning.run`."""
    (settings,) = job.evaluations.values()
    if settings.engine == "torchvision":
        from dseq_jepa.evaluation.detection.task import DetectionTask

        return run(job, encoder, out, DetectionTask)
    from dseq_jepa.evaluation.detection.detectron2_engine import detect as detect_by_detectron2

    return detect_by_detectron2(job, encoder, out)
