"""What an experiment takes, before anything is submitted: jobs, GPU-hours, days, disk, and the data that is missing.

    dseq-jepa plan --config configs/paper.yaml --nodes 4

Where a job has run, its time is known: the seconds that a finished one noted, without the time in a queue and with that
before a kill, or the images per second in the journal of one that was begun (some minutes of a pre-training are a
calibration). For others the paper's own pre-training hours (Table 8, on 8 GPUs) are scaled by images and by the
multiply-adds of encoder and heads. How good that is was never measured: convolutions, the reading of pictures and other
GPUs have other speeds, and testing is left out. Nothing is computed and no data is read.
"""

import csv
import heapq
import json
import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

from dseq_jepa.config import Experiment
from dseq_jepa.evaluation.settings import DetectionSettings, ProbeSettings, SegmentationSettings
from dseq_jepa.figures.job import shown_models
from dseq_jepa.jobs import AnyEvaluateJob, CostJob, Model, evaluate_job, model_directory, pretrain_job
from dseq_jepa.journal import read
from dseq_jepa.methods.settings import JepaSettings, MethodSettings
from dseq_jepa.models.settings import ArchitectureSettings

PAPER_GPUS = 8
IMAGENET = 1_281_167
TRAIN_PASSES = 3
"""Forward passes that a training step costs: the backward pass is about two."""
KEPT_STATES = 3
"""The last two and the one being written."""

Source = Literal["measured", "begun", "Table 8", "scaled from Table 8", "unknown"]


@dataclass(frozen=True)
class Cost:
    """Time of one job."""

    hours: float | None
    """On `gpus` GPUs, or processes of the CPU; None where nothing tells."""
    gpus: int
    source: Source


@dataclass
class Planned:
    """One job and what it waits for."""

    step: str
    name: str
    cost: Cost
    after: list["Planned"] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """All jobs of an experiment that take time worth speaking of, and what they write."""

    experiment: Experiment
    jobs: list[Planned]
    disk_bytes: int
    """Kept weights and states of all pre-trainings."""
    missing: list[str]
    """Data sets that are not where the configuration says."""
    paper_hours: dict[str, float]
    """Pre-training hours of the paper by method and architecture."""

    def gpu_hours(self, step: str | None = None) -> float:
        """Sum over the jobs of a step whose time is known."""
        chosen = [job.cost for job in self.jobs if step in (None, job.step)]
        return sum(cost.hours * cost.gpus for cost in chosen if cost.hours is not None)

    def hours(self, gpus: int) -> float:
        """Wall time when at most so many GPUs are used at once: jobs start in order, as soon as they can."""
        return _schedule(self.jobs, gpus)


def plan(experiment: Experiment, reported: Path) -> Plan:
    """Plan everything that the tables and figures of a configuration need.

    Args:
        experiment: the configuration.
        reported: the paper's values, configs/reported_values.csv.

    """
    known = _known_hours(reported)
    models = _models(experiment)
    jobs = [job for model, groups in models.items() for job in _jobs_of(experiment, model, groups, known)]
    seeds = Counter((model.method, model.architecture) for model in models)
    disk = sum(_bytes(experiment, method, name) * count for (method, name), count in seeds.items())
    missing = [] if experiment.miniature else [
        f"{name} ({entry.layout}): {entry.root}" for name, entry in experiment.data.items() if not entry.root.is_dir()
    ]  # fmt: skip
    return Plan(experiment, jobs, disk, missing, known)


def _models(experiment: Experiment) -> dict[Model, set[str] | None]:
    """Every model that a table has a row for, with the groups of evaluations that its tables need.

    None for one that only figures show: it is pre-trained, and nothing else.
    """
    found: dict[Model, set[str] | None] = dict.fromkeys(shown_models(experiment))
    for table in experiment.tables.values():
        groups = {experiment.group_of(column.evaluation) for column in table.columns if column.evaluation}
        for row in table.rows:
            if row.method and row.architecture:
                for seed in experiment.seeds:
                    model = Model(
                        experiment=experiment.name, method=row.method, architecture=row.architecture, seed=seed
                    )
                    found[model] = groups | (found.get(model) or set())
    return dict(sorted(found.items(), key=lambda item: (item[0].method, item[0].architecture, item[0].seed)))


def _jobs_of(experiment: Experiment, model: Model, groups: set[str] | None, known: dict[str, float]) -> list[Planned]:
    """Pre-training, scoring and evaluations of one model."""
    settings = experiment.architectures[model.architecture]
    shown = f"{experiment.methods[model.method].label} {settings.label}"
    pretrain = Planned("pretrain", shown, _pretraining(experiment, model, known))
    if groups is None:
        return [pretrain]
    selection, images = experiment.selection, _images(experiment, experiment.pretraining_data)
    looked_at = len(selection.keep_percent) * (selection.bank_fraction + selection.query_fraction) * (images or 0)
    looking = _cost(experiment, model, "score", lambda: looked_at * _multiply_adds(settings), known)
    score = Planned("score", shown, looking, [pretrain])
    jobs = [pretrain, score]
    for group in sorted(groups):
        job = evaluate_job(experiment, group, model.method, model.architecture, model.seed)
        step = f"evaluate/{group}"
        after = [] if isinstance(job, CostJob) else [score]  # that needs no encoder
        jobs.append(Planned(step, shown, _evaluation(experiment, model, job, step, known), after))
    return jobs


def _pretraining(experiment: Experiment, model: Model, known: dict[str, float]) -> Cost:
    ranks = experiment.compute.ranks
    settings = experiment.architectures[model.architecture]
    recipe = experiment.recipes[settings.recipe]
    images = _images(experiment, experiment.pretraining_data)
    if measured := _measured(experiment, model, "pretrain"):
        return measured
    rate = _rate(experiment, model)
    if rate is not None and images is not None:
        return Cost(images * recipe.epochs / rate / 3600, ranks, "begun")
    label = f"{experiment.methods[model.method].label} {settings.label}"
    if experiment.compute.device != "cuda" or images is None:
        return Cost(None, ranks, "unknown")
    if (label, recipe.epochs, images) in {(name, 600, IMAGENET) for name in known} and ranks == PAPER_GPUS:
        return Cost(known[label], ranks, "Table 8")
    gpu_hours = TRAIN_PASSES * images * recipe.epochs * _multiply_adds(settings) / _speed(known)
    gpu_hours *= known[f"{_kin(experiment.methods[model.method])} ViT-B/16"] / known["I-JEPA ViT-B/16"]
    return Cost(gpu_hours / ranks, ranks, "scaled from Table 8")


def _kin(method: MethodSettings) -> str:
    """The row of Table 8 that does the same kind of work."""
    if not isinstance(method, JepaSettings):
        return "I-JEPA"
    regions = method.generation == "discriminative" or method.prediction == "sequential"
    return ("DSeq-" if regions else "") + ("C-JEPA" if method.contrastive else "JEPA" if regions else "I-JEPA")


def _evaluation(experiment: Experiment, model: Model, job: AnyEvaluateJob, step: str, known: dict[str, float]) -> Cost:
    """All evaluations of a group."""
    settings = experiment.architectures[model.architecture]

    def work() -> float:
        total = 0.0
        for entry in job.evaluations.values():
            images = _images(experiment, entry.data)
            if images is None or entry.kind == "cost":
                continue
            if isinstance(entry, ProbeSettings):
                total += images * (entry.most_passes if entry.augment else 1) * _multiply_adds(settings)
            elif entry.kind == "finetune":
                total += TRAIN_PASSES * images * entry.epochs * _multiply_adds(settings)
            else:
                seen = entry.iterations * entry.batch_size if entry.kind == "segment" else images * entry.epochs
                total += TRAIN_PASSES * seen * _with_heads(experiment, model, entry)
        return total

    return _cost(experiment, model, step, work, known)


def _with_heads(experiment: Experiment, model: Model, entry: SegmentationSettings | DetectionSettings) -> float:
    """Multiply-adds of one training picture's forward pass through encoder and heads."""
    from dseq_jepa.cost.heads import detector_multiply_adds, segmenter_multiply_adds

    settings = experiment.architectures[model.architecture]
    class_token = experiment.methods[model.method].class_token
    classes = experiment.data[entry.data].classes or 1
    if isinstance(entry, SegmentationSettings):
        return segmenter_multiply_adds(settings, entry, class_token=class_token, classes=classes)
    return detector_multiply_adds(settings, entry, class_token=class_token, classes=classes)


def _cost(experiment: Experiment, model: Model, step: str, work: Callable[[], float], known: dict[str, float]) -> Cost:
    """Time of a job that was measured, or that takes so many multiply-adds; these are counted only where needed."""
    ranks = experiment.compute.ranks
    if measured := _measured(experiment, model, step):
        return measured
    if experiment.compute.device != "cuda":
        return Cost(None, ranks, "unknown")
    return Cost(work() / _speed(known) / ranks, ranks, "scaled from Table 8")


def _speed(known: dict[str, float]) -> float:
    """Multiply-adds of an encoder that one GPU does in an hour, from I-JEPA's pre-training in Table 8."""
    vit_b = ArchitectureSettings.model_validate(
        {"label": "ViT-B/16", "image_size": 224, "patch_size": 16, "width": 768, "depth": 12, "heads": 12}
        | {"saliency_block": 10, "predictor": {}, "recipe": "none"}
    )
    return TRAIN_PASSES * IMAGENET * 600 * _multiply_adds(vit_b) / (known["I-JEPA ViT-B/16"] * PAPER_GPUS)


def _multiply_adds(settings: ArchitectureSettings) -> float:
    """Of one image's forward pass: per block and token, 12 D^2 in the layers and 2 T D in the attention."""
    tokens = (settings.image_size / settings.patch_size) ** 2
    return settings.depth * tokens * (12 * settings.width**2 + 2 * tokens * settings.width)


def _known_hours(reported: Path) -> dict[str, float]:
    """Table 8's hours on 8 GPUs by method and architecture."""
    with reported.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "pretrain_hours"]
    return {f"{row['row']} {row['architecture']}": float(row["value"]) for row in rows}


def _measured(experiment: Experiment, model: Model, step: str) -> Cost | None:
    """What a finished job of this name noted of itself; for one that notes no seconds, Snakemake's benchmark.

    The benchmark of a job behind `launch` has the time in the queue, and after a kill the last start only.
    """
    folder, ranks = model_directory(experiment.results, step, model), experiment.compute.ranks
    if (folder / "run.json").exists():
        run = json.loads((folder / "run.json").read_text())
        return Cost(run["seconds"] / 3600, run["ranks"], "measured")
    if (folder / "metrics.json").exists():
        evaluations = json.loads((folder / "metrics.json").read_text())["evaluations"]
        return Cost(sum(entry["seconds"] for entry in evaluations.values()) / 3600, ranks, "measured")
    hours = _benchmark(experiment, model, step)
    return None if hours is None else Cost(hours, ranks, "measured")


def _benchmark(experiment: Experiment, model: Model, step: str) -> float | None:
    """Hours from the start to the end of this job's last command."""
    place = experiment.directory / "benchmarks" / step / model.method / model.architecture / f"seed{model.seed}.tsv"
    if not place.exists():
        return None
    with place.open(newline="") as file:
        return float(next(csv.DictReader(file, delimiter="\t"))["s"]) / 3600


def _rate(experiment: Experiment, model: Model) -> float | None:
    """Images per second of a pre-training that was begun: the median of its journal's last points."""
    journal = model_directory(experiment.results, "pretrain", model) / "journal.jsonl"
    if not journal.exists():
        return None
    rates = [line["values"]["images_per_second"] for line in read(journal) if line["kind"] == "metrics"]
    return statistics.median(rates[-100:]) if rates else None


def _images(experiment: Experiment, name: str) -> int | None:
    """Training images of a data set, where the configuration says how many there are."""
    entry = experiment.data[name]
    if experiment.miniature:
        return experiment.miniature.train_images[entry.layout]
    return entry.train_images


def _bytes(experiment: Experiment, method: str, architecture: str) -> int:
    """What a pre-training keeps on the disk: weights at some epochs, and its last states with AdamW's two moments."""
    job = pretrain_job(experiment, method, architecture, experiment.seeds[0])
    weights, trained = _bytes_of_weights(job.method, job.architecture)
    return len(job.keep_percent) * weights + KEPT_STATES * (weights + 2 * trained)


@cache
def _bytes_of_weights(method: MethodSettings, architecture: ArchitectureSettings) -> tuple[int, int]:
    """Of all weights of a model, and of those that are trained."""
    import torch

    from dseq_jepa.methods.jepa import Jepa

    with torch.device("meta"):
        model = Jepa(method, architecture, gather=lambda rows: rows)
    weights: int = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    return weights, sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)


def _schedule(jobs: list[Planned], gpus: int) -> float:
    """Hours until the last of the jobs ends, on so many GPUs; one that needs more takes them all, and longer."""
    ends: dict[int, float] = {}
    running: list[tuple[float, int, int]] = []
    free, now = gpus, 0.0
    waiting = list(jobs)
    while waiting or running:
        for job in list(waiting):
            needed = min(job.cost.gpus, gpus)
            if needed <= free and all(ends.get(id(other), now + 1) <= now for other in job.after):
                hours = (job.cost.hours or 0.0) * job.cost.gpus / needed
                heapq.heappush(running, (now + hours, id(job), needed))
                free -= needed
                waiting.remove(job)
        now, finished, needed = heapq.heappop(running)
        ends[finished] = now
        free += needed
    return now


def shown(plan: Plan, nodes: int, gpus_per_node: int) -> str:
    """The plan as text."""
    gpus = nodes * gpus_per_node
    unit, units = ("GPU", "GPUs") if plan.experiment.compute.device == "cuda" else ("process", "processes")
    lines = [f"{'step':<24}{'jobs':>6}{unit + '-hours':>16}   from"]
    for step in dict.fromkeys(job.step for job in plan.jobs):
        chosen = [job for job in plan.jobs if job.step == step]
        sources = sorted({job.cost.source for job in chosen})
        hours = "?" if sources == ["unknown"] else f"{plan.gpu_hours(step):,.1f}"
        lines.append(f"{step:<24}{len(chosen):>6}{hours:>16}   {', '.join(sources)}")
    lines += ["", *_pretrainings(plan), ""]
    unknown = sum(job.cost.hours is None for job in plan.jobs)
    total = f"{plan.gpu_hours():,.0f} {unit}-hours; {_duration(plan.hours(gpus))} on {nodes} x {gpus_per_node} {units}"
    lines.append(f"together: {total}" + (f", without {unknown} jobs whose time is not known" if unknown else ""))
    kept = len(plan.experiment.selection.keep_percent)
    lines.append(
        f"disk: {plan.disk_bytes / 1e9:,.1f} GB for checkpoints: {kept} kept epochs and the last two states of each "
        "pre-training, and one state being written; fine-tuning, detection and segmentation delete theirs once their "
        "result is there"
    )
    lines.append(f"data sets missing: {'; '.join(plan.missing) or 'none'}")
    if unknown:
        lines.append(
            "Run a pre-training for a few minutes, then plan again: its journal tells the rate of this machine."
        )
    return "\n".join(lines)


def _duration(hours: float) -> str:
    return f"{hours:,.1f} hours" if hours < 48 else f"{hours / 24:,.1f} days"


def _pretrainings(plan: Plan) -> Iterator[str]:
    """Each pre-training's hours, beside the paper's where it has them."""
    for job in dict.fromkeys((job.name, job.cost) for job in plan.jobs if job.step == "pretrain"):
        name, cost = job
        hours = "not known" if cost.hours is None else f"{cost.hours:,.1f} h on {cost.gpus}"
        paper = plan.paper_hours.get(name)
        beside = f"   (paper: {paper} h on {PAPER_GPUS} GPUs)" if paper else ""
        yield f"  {name:<32}{hours:>20}   {cost.source}{beside}"
