"""Verbs that judge an exported encoder, and the one that measures what its pre-training costs."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from dseq_jepa.cli.options import (
    ArchitectureName,
    ConfigFile,
    EncoderFile,
    GroupName,
    MethodName,
    Out,
    Seed,
    SettingsText,
)
from dseq_jepa.cli.resolve import of_group, resolve
from dseq_jepa.cli.running import alone_in, shown_live, spread

if TYPE_CHECKING:
    from dseq_jepa.jobs import EvaluateJob

verbs = typer.Typer()

Runner = Callable[[Any, Path, Path], Path]
"""Of a job, an encoder and a folder to write to; returns metrics.json."""


def _register(verb: str, about: str, runner: Callable[[], Runner], example: str = "") -> None:
    """Add a verb. What runs it is asked for late: that imports torch."""

    @verbs.command(
        verb,
        help=about,
        epilog=f"Example: dseq-jepa {verb} --config configs/demo.yaml {example}--method dseq-jepa "
        "--encoder out/encoder.safetensors --out out/",
    )
    def evaluate(
        encoder: EncoderFile,
        out: Out,
        settings: SettingsText = None,
        config: ConfigFile = None,
        group: GroupName = None,
        method: MethodName = None,
        architecture: ArchitectureName = None,
        seed: Seed = None,
    ) -> None:
        from dseq_jepa.models.weights import refuse_other_encoder

        kind = _kind_of(verb)
        job = resolve(kind, settings, of_group(kind, verb, group), config, (method, architecture, seed))
        refuse_other_encoder(encoder, job.model)
        spread(job)
        with alone_in(out), shown_live(job, out):
            runner()(job, encoder, out)


def _kind_of(verb: str) -> "type[EvaluateJob[Any]]":
    from dseq_jepa.jobs import DetectJob, FinetuneJob, ProbeJob, SegmentJob

    kinds: dict[str, type[EvaluateJob[Any]]] = {
        "probe": ProbeJob,
        "finetune": FinetuneJob,
        "segment": SegmentJob,
        "detect": DetectJob,
    }
    return kinds[verb]


def _probe() -> Runner:
    from dseq_jepa.evaluation.probe import evaluate

    return evaluate


def _finetune() -> Runner:
    from dseq_jepa.evaluation.finetune import finetune

    return finetune


def _segment() -> Runner:
    from dseq_jepa.evaluation.segmentation import segment

    return segment


def _detect() -> Runner:
    from dseq_jepa.evaluation.detection.job import detect

    return detect


_GOES_ON = "the same command goes on after an interruption."
_register("probe", "Run a group of linear probes on a frozen encoder.", _probe, "--group classify ")
_register("finetune", f"Fine-tune the whole encoder for classification; {_GOES_ON}", _finetune)
_register("segment", f"Train and measure semantic segmentation with UPerNet; {_GOES_ON}", _segment)
_register("detect", f"Train Mask R-CNN on an encoder and measure AP on COCO; {_GOES_ON}", _detect)


@verbs.command(epilog="Example: dseq-jepa cost --config configs/demo.yaml --method dseq-jepa --out out/")
def cost(
    out: Out,
    settings: SettingsText = None,
    config: ConfigFile = None,
    group: GroupName = None,
    method: MethodName = None,
    architecture: ArchitectureName = None,
    seed: Seed = None,
) -> None:
    """Measure what a pre-training costs: time, memory and multiply-adds of its real steps."""
    from dseq_jepa.jobs import CostJob

    job = resolve(CostJob, settings, of_group(CostJob, "cost", group), config, (method, architecture, seed))
    spread(job)
    with alone_in(out):
        from dseq_jepa.cost.measure import measure

        measure(job, out)
