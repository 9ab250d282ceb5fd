"""How patches organise themselves: similarity maps and patch clusters at every kept checkpoint (Figures 6 and 7).

dseq-jepa figures --config configs/demo.yaml --figure figure6

The patches of each image are clustered by k-means on the directions of the target encoder's last-block embeddings.
A cluster keeps its number and colour from checkpoint to checkpoint: those of a checkpoint are matched to the next one's
by the patches that they share (Hungarian method), starting from the last checkpoint, where cluster 1 is the most
similar to the class token. B images, T patches, D width, G patches per side, C checkpoints.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from dseq_jepa.figures import style
from dseq_jepa.figures.job import FigureJob
from dseq_jepa.figures.kept import Kept, Pictures, as_input, open_kept, part_in_words, reading, some_pictures
from dseq_jepa.figures.settings import ClustersSettings
from dseq_jepa.methods.regions import cls_saliency
from dseq_jepa.models.vit import Tokens

INCHES = 0.95
"""Side of a panel."""
RESTARTS = 10
ITERATIONS = 30

Labels = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Seen:
    """What one checkpoint's target encoder makes of the pictures."""

    label: str
    similarity_BT: NDArray[np.float32]
    labels_BT: Labels
    """Clusters, numbered alike over checkpoints; 0 is the first."""


def draw_clusters(job: FigureJob, figure: ClustersSettings, results: Path, out: Path) -> list[Path]:
    """Write the figure; see `write_figure`."""
    with reading(job) as device:
        pictures = some_pictures(job, figure.split, figure.images)
        seen = []
        for percent in job.kept:
            kept = open_kept(job, job.models[0], percent, results, device)
            seen.append(_look(kept, pictures, figure.clusters, device))
    seen = matched(seen)
    with style.applied():
        return style.save(_draw(job, pictures, seen), out, job.name, list(_caption(job, figure, pictures, seen)))


def _look(kept: Kept, pictures: Pictures, clusters: int, device: torch.device) -> Seen:
    architecture = kept.method.architecture
    images_BCHW = as_input(pictures.images_BCHW, device)
    source, last = kept.method.target_encoder.read(images_BCHW, [architecture.saliency_block, architecture.depth])
    patches_BTD = last.patches_BTD.float().cpu().numpy().astype(np.float64)
    labels = [
        cluster(patches_TD, clusters, seed=int(i)) for patches_TD, i in zip(patches_BTD, pictures.ids_B, strict=True)
    ]
    return Seen(kept.label, _similarity(source).cpu().numpy(), np.stack(labels))


def _similarity(tokens: Tokens) -> torch.Tensor:
    """(B, T): of every patch to the class token, or to the mean patch of an encoder without one."""
    query_BD = tokens.patches_BTD.mean(1) if tokens.class_BD is None else tokens.class_BD
    return cls_saliency(query_BD, tokens.patches_BTD)


def cluster(patches_TD: NDArray[np.float64], clusters: int, seed: int) -> Labels:
    """(T,) labels 0..clusters-1 by k-means on unit vectors: the best of several seeded starts."""
    directions_TD = patches_TD - patches_TD.mean(0)
    directions_TD /= np.maximum(np.linalg.norm(directions_TD, axis=1, keepdims=True), 1e-12)
    draws = np.random.default_rng(seed)
    tries = [_k_means(directions_TD, clusters, draws) for _ in range(RESTARTS)]
    return min(tries, key=lambda found: found[0])[1]


def _k_means(rows_TD: NDArray[np.float64], clusters: int, draws: np.random.Generator) -> tuple[float, Labels]:
    """Squared distances to the centres, summed, and (T,) labels; fewer clusters where fewer rows differ."""
    centres_KD = rows_TD[[draws.integers(len(rows_TD))]]
    while len(centres_KD) < clusters:  # k-means++ (Arthur and Vassilvitskii, 2007): far rows are likelier
        gap_T = _squared_distances(rows_TD, centres_KD).min(1)
        if not gap_T.any():
            break
        centres_KD = np.vstack([centres_KD, rows_TD[draws.choice(len(rows_TD), p=gap_T / gap_T.sum())]])
    for _ in range(ITERATIONS):
        labels_T = _squared_distances(rows_TD, centres_KD).argmin(1)
        there = np.unique(labels_T)  # an emptied cluster keeps its centre
        centres_KD[there] = [rows_TD[labels_T == label].mean(0) for label in there]
    gap_TK = _squared_distances(rows_TD, centres_KD)
    return float(gap_TK.min(1).sum()), gap_TK.argmin(1)


def _squared_distances(rows_TD: NDArray[np.float64], centres_KD: NDArray[np.float64]) -> NDArray[np.float64]:
    """(T, K), exactly zero between equal rows."""
    gaps_KT: list[NDArray[np.float64]] = [((rows_TD - centre_D) ** 2).sum(1) for centre_D in centres_KD]
    return np.stack(gaps_KT, axis=1)


def matched(seen: Sequence[Seen]) -> list[Seen]:
    """The same clusters, numbered alike at all checkpoints of an image."""
    labels_CBT = np.stack([checkpoint.labels_BT for checkpoint in seen])
    for b in range(labels_CBT.shape[1]):
        labels_CBT[-1, b] = by_similarity(labels_CBT[-1, b], seen[-1].similarity_BT[b])
        for c in range(len(seen) - 2, -1, -1):
            labels_CBT[c, b] = match(labels_CBT[c, b], labels_CBT[c + 1, b])
    return [
        Seen(checkpoint.label, checkpoint.similarity_BT, labels_BT)
        for checkpoint, labels_BT in zip(seen, labels_CBT, strict=True)
    ]


def by_similarity(labels_T: Labels, similarity_T: NDArray[np.float32]) -> Labels:
    """Numbered anew: cluster 0 has the greatest mean similarity."""
    found, labels_T = np.unique(labels_T, return_inverse=True)
    means = [similarity_T[labels_T == label].mean() for label in range(len(found))]
    place: Labels = np.argsort(np.argsort(means)[::-1])
    return place[labels_T]


def match(labels_T: Labels, reference_T: Labels) -> Labels:
    """Numbered anew: one number for one number, so that as many patches as possible have the reference's number."""
    count = 1 + max(labels_T.max(), reference_T.max())
    shared = np.zeros((count, count), np.int64)
    np.add.at(shared, (labels_T, reference_T), 1)
    _, number = linear_sum_assignment(shared, maximize=True)
    renamed: Labels = number[labels_T]
    return renamed


def _draw(job: FigureJob, pictures: Pictures, seen: Sequence[Seen]) -> Figure:
    lines, columns = len(pictures.names), len(seen)
    side, patch = job.architecture.grid, job.architecture.patch_size
    drawn = style.new_figure(INCHES * (1 + 2 * columns), INCHES * lines + 0.5)
    widths = [1, columns, columns]
    originals, maps, groups = drawn.subfigures(1, 3, squeeze=False, width_ratios=widths, wspace=0.02)[0]
    originals.suptitle(" ")
    maps.suptitle(f"similarity to the {_query(job)}")
    groups.suptitle("patch clusters")
    image_axes = originals.subplots(lines, 1, squeeze=False)
    map_axes, group_axes = (part.subplots(lines, columns, squeeze=False) for part in (maps, groups))
    for i, image_HWC in enumerate(pictures.drawable()):
        style.panel(image_axes[i, 0], image_HWC, "image" if i == 0 else None)
        for c, checkpoint in enumerate(seen):
            title = checkpoint.label if i == 0 else None
            similarity_GG = checkpoint.similarity_BT[i].reshape(side, side)
            style.heat(map_axes[i, c], similarity_GG, job.architecture.image_size, title)
            style.clusters(group_axes[i, c], checkpoint.labels_BT[i].reshape(side, side), patch, title)
    return drawn


def _query(job: FigureJob) -> str:
    return "class token" if job.methods[job.models[0].method].class_token else "mean patch"


def _caption(job: FigureJob, figure: ClustersSettings, pictures: Pictures, seen: Sequence[Seen]) -> Iterable[str]:
    label = job.methods[figure.method].label
    yield (
        f"How patches organise themselves while {label} ({job.architecture.label}) is pre-trained: the target "
        f"encoder at {', '.join(checkpoint.label for checkpoint in seen)} on {part_in_words(figure.split)}."
    )
    if job.miniature:
        yield "The pictures are generated and the encoder is small and briefly trained."
    yield (
        f"Similarity: of every patch to the {_query(job)} at block {job.architecture.saliency_block}, from low (dark) "
        "to high (light), each map on its own scale."
    )
    yield (
        f"Clusters: the patches of each image in {figure.clusters} groups, by k-means on the directions of their "
        "embeddings around the image's mean."
    )
    yield (
        "Numbers and colours are matched from checkpoint to checkpoint by the patches that clusters share; at the last "
        f"one, cluster 1 is the most similar to the {_query(job)}. They mean nothing from image to image beyond that."
    )
    yield f"Pictures: {', '.join(pictures.names)}."
