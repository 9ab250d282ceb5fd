"""How sure a difference is: paired bootstrap over test examples and seeds, from records.csv.gz files.

    records = Records()
    runs = {name: records.examples(folder / RECORDS, "cub-linear", "top1") for name, folder in folders.items()}
    values = resampled(runs, "cub-linear")
    low, high = interval(values["dseq-jepa"][:, None], values["i-jepa"][:, None])

All systems are valued on the same resamples of the same test images, so differences are paired. Efron and Tibshirani,
An Introduction to the Bootstrap (1993), chapter 13: percentile intervals. R resamples, N test images, S seeds.
"""

import csv
import gzip
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from dseq_jepa.errors import UserError

RECORDS = "records.csv.gz"
"""Beside metrics.json: one line per test image and evaluation."""
RESAMPLES = 2000
LEVEL = 95
"""Percent of the resamples whose difference lies in the interval."""
_AT_ONCE = 1 << 22
"""Numbers drawn at a time: memory does not grow with the test set."""

Key = TypeVar("Key")
Values = NDArray[np.float64]


class Examples(Protocol):
    """What one run's records say of every test image, so that any resample of the images has a value.

    Another kind of metric is another class of this shape and an entry of READERS.
    """

    @property
    def images(self) -> Sequence[str]:
        """Which, in the order of `counts`."""

    def values(self, counts_RN: Values) -> Values:
        """(R,) the metric, in its unit, when image n counts counts_RN[:, n] times."""


@dataclass(frozen=True, eq=False)
class Accuracy:
    """Top-1 in percent of the images that could be read."""

    images: tuple[str, ...]
    correct: NDArray[np.float64]
    """1 or 0; NaN for an image that could not be read."""

    def values(self, counts_RN: Values) -> Values:
        """See `Examples`."""
        read_N = np.isfinite(self.correct)
        right_R = counts_RN @ np.where(read_N, self.correct, 0.0)
        return 100 * right_R / np.maximum(counts_RN @ read_N.astype(np.float64), 1)


@dataclass(frozen=True, eq=False)
class Overlap:
    """Mean IoU in percent, over the K classes that are in the drawn images' truth or prediction."""

    images: tuple[str, ...]
    hits: Values
    """(N, K) pixels in the intersection of truth and prediction."""
    unions: Values
    """(N, K) pixels in their union."""

    def values(self, counts_RN: Values) -> Values:
        """See `Examples`."""
        hits_RK, unions_RK = counts_RN @ self.hits, counts_RN @ self.unions
        seen_RK = unions_RK > 0
        iou_RK = np.divide(hits_RK, unions_RK, out=np.zeros_like(hits_RK), where=seen_RK)
        shares: Values = 100 * iou_RK.sum(1) / np.maximum(seen_RK.sum(1), 1)
        return shares


def _accuracy(path: Path, lines: Sequence[Mapping[str, str]]) -> Accuracy:
    answers = {"1": 1.0, "0": 0.0, "": np.nan}
    try:
        correct = [answers[line["correct"]] for line in lines]
        return Accuracy(tuple(line["image"] for line in lines), np.array(correct))
    except KeyError as error:
        raise UserError(
            f"{path}: not the records of a top-1 accuracy: {error} is not among its columns or answers."
        ) from None


def _overlap(path: Path, lines: Sequence[Mapping[str, str]]) -> Overlap:
    try:
        images, classes = ({name: i for i, name in enumerate(dict.fromkeys(line[key] for line in lines))}
                           for key in ("image", "class"))  # fmt: skip
        pixels = np.zeros((2, len(images), len(classes)))
        for line in lines:
            pixels[:, images[line["image"]], classes[line["class"]]] = int(line["intersection"]), int(line["union"])
    except (KeyError, ValueError) as error:
        raise UserError(f"{path}: not the records of a mean IoU: {error}.") from None
    return Overlap(tuple(images), pixels[0], pixels[1])


READERS: Mapping[str, Callable[[Path, Sequence[Mapping[str, str]]], Examples]] = {"top1": _accuracy, "miou": _overlap}
"""By the evaluation's `metric` in metrics.json: what its records tell of every test image."""


class Records:
    """Files of records, each read once."""

    def __init__(self) -> None:
        self._files: dict[Path, dict[str, list[dict[str, str]]]] = {}

    def examples(self, path: Path, evaluation: str, metric: str) -> Examples:
        """What a file says of the test images of one evaluation, whose metric has a reader.

        Raises:
            UserError: naming the file when it is missing, damaged, or has other records.

        """
        if path not in self._files:
            self._files[path] = _by_evaluation(path)
        if evaluation not in self._files[path]:
            raise UserError(f"{path}: has no records of {evaluation}; delete it and run the workflow again.")
        return READERS[metric](path, self._files[path][evaluation])


def _by_evaluation(path: Path) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = {}
    try:
        with gzip.open(path, "rt", encoding="utf-8", errors="surrogateescape", newline="") as file:
            for line in csv.DictReader(file):
                found.setdefault(line["evaluation"], []).append(line)
    except (OSError, EOFError, zlib.error, csv.Error, KeyError) as error:
        raise UserError(
            f"{path}: the records of single test images cannot be read ({error}); they are written with metrics.json. "
            "Delete both and run the workflow again."
        ) from None
    return found


def resampled(examples: Mapping[Key, Examples], evaluation: str, resamples: int = RESAMPLES) -> dict[Key, Values]:
    """(R,) values of every run under the same resamples of the test images.

    Args:
        examples: one run each, all of the same test images.
        evaluation: seeds the draws; a test set is resampled alike in every table.
        resamples: R.

    Raises:
        UserError: the runs were measured on different images.

    """
    first, *others = examples.values()
    if any(tuple(other.images) != tuple(first.images) for other in others):
        raise UserError(
            f"{evaluation}: its runs were measured on different test images and cannot be compared; delete their "
            "metrics.json files and run the workflow again."
        )
    parts: dict[Key, list[Values]] = {key: [] for key in examples}
    for counts_RN in _counts(len(first.images), evaluation, resamples):
        for key, run in examples.items():
            parts[key].append(run.values(counts_RN))
    return {key: np.concatenate(values) for key, values in parts.items()}


def _counts(images: int, purpose: str, resamples: int) -> Iterator[Values]:
    """How often each image is drawn, (r, N), some resamples at a time: N draws with replacement each."""
    draws = np.random.default_rng(zlib.crc32(f"test images of {purpose}".encode()))
    step = max(1, _AT_ONCE // max(1, images))
    for start in range(0, resamples, step):
        r = min(step, resamples - start)
        drawn_rN = draws.integers(images, size=(r, images)) + images * np.arange(r)[:, None]
        yield np.bincount(drawn_rN.ravel(), minlength=r * images).reshape(r, images).astype(np.float64)


def interval(ours_RS: Values, baseline_RS: Values) -> tuple[float, float]:
    """The interval of the difference of two systems' means over seeds, both (R, S), seed by seed.

    With several seeds these are drawn with replacement as well, the same for both systems: a seed stands for the same
    order of the same crops in both.
    """
    gap_RS = ours_RS - baseline_RS
    draws = np.random.default_rng(zlib.crc32(b"seeds"))
    drawn_RS = draws.integers(gap_RS.shape[1], size=gap_RS.shape)
    gap_R = np.take_along_axis(gap_RS, drawn_RS, axis=1).mean(axis=1)
    tail = (100 - LEVEL) / 2
    low, high = np.percentile(gap_R, [tail, 100 - tail])
    return float(low), float(high)
