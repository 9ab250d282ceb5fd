"""Score the kept checkpoints of a run on training images, and choose one (docs/protocols.md 2).

    dseq-jepa score --config configs/demo.yaml --method dseq-jepa --out out/ run/checkpoint-*.safetensors
    dseq-jepa select --scores out/scores.json --out out/

Choosing reads and writes JSON only and imports no torch. Paths in a JSON file are relative to its folder.
"""

import json
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dseq_jepa.errors import UserError
from dseq_jepa.fence import Fence
from dseq_jepa.files import write_atomically
from dseq_jepa.jobs import ScoreJob
from dseq_jepa.provenance import Provenance

if TYPE_CHECKING:
    from dseq_jepa.data.catalog import Split
    from dseq_jepa.evaluation.features import Collected, FrozenEncoder
    from dseq_jepa.training.distributed import World

MIN_CENTRED_RANK = 2.0
"""An encoder whose pooled features, less their mean, have a lower effective rank has collapsed: what differs between
images lies in one direction. RankMe itself is not centred, and early in a run the mean that all images share (their
positions) keeps it near 1 while the rest is sound."""
MIN_FEATURE_STD = 1e-4
"""An encoder whose pooled features spread less over images has collapsed."""
LIDAR_IMAGES = 1000
"""At most so many queries are the classes of LiDAR's discriminant analysis."""
LIDAR_VIEWS = 4
"""Random crops of each; far fewer than in the LiDAR paper, enough to tell a collapsed run from a sound one."""
LIDAR_CROP_SCALE = (0.3, 1.0)
"""The crops of pre-training (docs/protocols.md 1)."""

MEASURES = ("knn_top1", "rankme", "centred_rank", "lidar", "feature_std")
"""Of a checkpoint; none of them is a number where its features are NaN or infinite."""

Row = dict[str, Any]


def score(job: ScoreJob, checkpoints: list[Path], out: Path) -> Path:
    """Score checkpoints and write out/scores.json.

    Bank and queries are disjoint, class-balanced, seeded slices of the training set; validation images are never read.
    All checkpoints see the same pictures, each decoded once.

    Args:
        job: the resolved settings.
        checkpoints: what one pre-training kept, with the same architecture.
        out: folder to write to.

    Returns:
        scores.json.

    Raises:
        UserError: a checkpoint that does not fit, or a training set too small for the slices.

    """
    from dseq_jepa.data.decode import DECODER
    from dseq_jepa.data.staging import stage
    from dseq_jepa.training import distributed

    world = distributed.start(job.compute, partial(stage, [job.data], job.loading))
    try:
        provenance = Provenance.begin(job.to_json(), job.digest)
        scores = _scores(job, checkpoints, out, world)
        if world.is_main:
            Fence.from_environment().check()
            write_atomically(out / "scores.json", json.dumps(scores, indent=1) + "\n")
            provenance.finish(out, data={"pretraining": job.data.fingerprint}, decoder=DECODER)
        return out / "scores.json"
    finally:
        distributed.stop()


def _scores(job: ScoreJob, checkpoints: list[Path], out: Path, world: "World") -> Row:
    from dseq_jepa.data.catalog import load_split
    from dseq_jepa.data.staging import staged
    from dseq_jepa.evaluation.slices import balanced_slices

    split = load_split(staged(job.data, job.loading), "train")
    protocol = job.selection
    sizes = [round(fraction * len(split)) for fraction in (protocol.query_fraction, protocol.bank_fraction)]
    if sizes[0] < 2 or sizes[1] < protocol.neighbours or sum(sizes) > len(split):
        raise UserError(
            f"{job.data.root}: {len(split):,} training images give {sizes[0]} queries and a bank of {sizes[1]}; "
            f"selection needs 2 queries and a bank of at least {protocol.neighbours} neighbours within them. Change "
            "selection.query_fraction, bank_fraction or neighbours."
        )
    query_ids, bank_ids = balanced_slices(split.labels, sizes, job.model.seed)
    opened = [_open_checkpoint(job, path, world) for path in checkpoints]
    encoders = [encoder for encoder, _ in opened]
    slices = _slices(job, encoders, split, [query_ids, bank_ids], world)
    few = balanced_slices(split.labels[query_ids], [min(LIDAR_IMAGES, len(query_ids))], job.model.seed)[0]
    viewed = _views(job, encoders, split, query_ids[few], world)
    rows = [
        {**row, "file": os.path.relpath(path, out), **_measures(job, split, queries, bank, views)}
        for path, (_, row), (queries, bank), views in zip(checkpoints, opened, slices, viewed, strict=True)
    ]
    return {
        "schema": 1,
        "model": job.model.model_dump(),
        "checkpoints": sorted(rows, key=lambda row: int(row["percent"])),
        "protocol": protocol.model_dump(mode="json"),
        "bank": len(slices[0][1].ids),
        "queries": len(slices[0][0].ids),
        "skipped_images": slices[0][0].skipped + slices[0][1].skipped,
    }


def _open_checkpoint(job: ScoreJob, path: Path, world: "World") -> tuple["FrozenEncoder", Row]:
    """A checkpoint's target encoder, and which checkpoint it is."""
    import torch

    from dseq_jepa.evaluation.features import FrozenEncoder
    from dseq_jepa.models.vit import VisionTransformer
    from dseq_jepa.models.weights import encoder_shapes, read_target, refuse_mismatches, refuse_other_architecture

    arrays, metadata = read_target(path)
    refuse_other_architecture(str(path), metadata, job.architecture)
    expected = encoder_shapes(job.architecture, job.class_token)
    del expected["pos_embed"]  # fixed, so checkpoints do not hold it
    refuse_mismatches(str(path), {key: array.shape for key, array in arrays.items()}, expected)
    model = VisionTransformer(job.architecture, job.class_token)
    model.load_state_dict({key: torch.from_numpy(array) for key, array in arrays.items()}, strict=True)
    row = {"percent": int(metadata["percent"]), "epoch": float(metadata["epoch"])}
    return FrozenEncoder(model, world.device, name=str(path)), row


def _slices(
    job: ScoreJob, encoders: list["FrozenEncoder"], split: "Split", ids: list[Any], world: "World"
) -> list[tuple["Collected", "Collected"]]:
    """Queries and bank of every encoder, seen whole: the short side is the input size, then the centre."""
    from dseq_jepa.data.transforms import TestView
    from dseq_jepa.evaluation.features import collect

    view = TestView(job.architecture.image_size, job.architecture.image_size)
    queries, bank = (
        collect(
            encoders, split, part, view=view, kinds=["mean"], world=world, loading=job.loading,
            label=f"scoring {len(encoders)} checkpoints: {name}",
        )
        for name, part in zip(("queries", "bank"), ids, strict=True)
    )  # fmt: skip
    return list(zip(queries, bank, strict=True))


def _views(
    job: ScoreJob, encoders: list["FrozenEncoder"], split: "Split", ids: Any, world: "World"
) -> list[list["Collected"]]:
    """Random crops of the same pictures for every encoder, one list of V views each."""
    from dseq_jepa.data.transforms import TrainView
    from dseq_jepa.evaluation.features import collect

    size = job.architecture.image_size
    views = [
        collect(
            encoders, split, ids, view=TrainView(size, LIDAR_CROP_SCALE, False, seed), kinds=["mean"], world=world,
            loading=job.loading, label=f"scoring {len(encoders)} checkpoints: view {seed + 1} of {LIDAR_VIEWS}",
        )
        for seed in range(LIDAR_VIEWS)
    ]  # fmt: skip
    return [list(of_encoder) for of_encoder in zip(*views, strict=True)]


def _measures(job: ScoreJob, split: "Split", queries: "Collected", bank: "Collected", views: list["Collected"]) -> Row:
    """The measures of one checkpoint; of one whose features are not finite none: `select` refuses that one alone."""
    import torch

    from dseq_jepa.evaluation.neighbours import weighted_knn
    from dseq_jepa.evaluation.rank import feature_std, lidar, rankme

    if not all(bool(seen.features["mean"].isfinite().all()) for seen in (queries, bank, *views)):
        return dict.fromkeys(MEASURES)
    bank_ND = bank.features["mean"]
    predicted = weighted_knn(
        bank_ND,
        split.labels[bank.ids],
        queries.features["mean"],
        neighbours=job.selection.neighbours,
        temperature=job.selection.temperature,
    )
    return {
        "knn_top1": 100 * float((predicted == split.labels[queries.ids]).mean()),
        "rankme": rankme(bank_ND),
        "centred_rank": rankme(bank_ND - bank_ND.mean(0)),
        "lidar": lidar(torch.stack([view.features["mean"] for view in views], dim=1)),
        "feature_std": feature_std(bank_ND),
    }


def select(scores: Path, out: Path) -> Path:
    """Choose the checkpoint with the highest kNN accuracy that has not collapsed; of equals the later one.

    Args:
        scores: scores.json.
        out: folder to write selection.json to.

    Returns:
        selection.json: the chosen checkpoint, one sentence why, and all candidates with why not.

    Raises:
        UserError: every checkpoint has collapsed.

    """
    content = json.loads(scores.read_text())
    candidates = [
        {**row, "file": os.path.relpath(scores.parent / row["file"], out), "collapsed": _collapse(row)}
        for row in content["checkpoints"]
    ]
    usable = [row for row in candidates if row["collapsed"] is None]
    if not usable:
        reasons = "; ".join(f"{row['percent']}%: {row['collapsed']}" for row in candidates)
        raise UserError(f"{scores}: every checkpoint has collapsed ({reasons}); nothing is worth exporting.")
    chosen = max(usable, key=lambda row: (row["knn_top1"], row["percent"]))
    selection = {"schema": 1, "chosen": chosen, "reason": _reason(chosen, candidates), "candidates": candidates}
    write_atomically(out / "selection.json", json.dumps(selection, indent=1) + "\n")
    return out / "selection.json"


def _collapse(row: Row) -> str | None:
    if row["knn_top1"] is None:
        return "features are NaN or infinite"
    if row["feature_std"] < MIN_FEATURE_STD:
        return f"features hardly differ between images (standard deviation {row['feature_std']:.2g})"
    if row["centred_rank"] < MIN_CENTRED_RANK:
        return f"features differ in about one direction (effective rank {row['centred_rank']:.2f} around their mean)"
    return None


def _reason(chosen: Row, candidates: list[Row]) -> str:
    """One sentence for people who did not follow the run."""
    usable = [row for row in candidates if row["collapsed"] is None and row is not chosen]
    equals = [row for row in usable if row["knn_top1"] == chosen["knn_top1"]]
    others = ", ".join(f"{row['knn_top1']:.2f}% at {row['percent']}%" for row in usable) or "none"
    reason = f"The checkpoint at {chosen['percent']}% has the highest kNN accuracy on held-out training images, "
    reason += f"{chosen['knn_top1']:.2f}% (others: {others})"
    if equals:
        reason += "; of equal ones the latest was taken"
    collapsed = [f"{row['percent']}%" for row in candidates if row["collapsed"] is not None]
    if collapsed:
        reason += f"; collapsed and refused: {', '.join(collapsed)}"
    return reason + "."
