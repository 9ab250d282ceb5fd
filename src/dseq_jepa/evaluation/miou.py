"""Intersection over union of a whole set, from one confusion matrix of pixels (docs/protocols.md 5).

    confusion_KK = confusion(truth_HW, predicted_HW, classes=150)       # summed over pictures
    scores(confusion_KK)["miou"]

Every labelled pixel counts once. A class that is neither in the truth nor predicted anywhere is left out of the means;
one that is only predicted counts with 0. K classes, row = truth, column = prediction.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dseq_jepa.data.ade20k import IGNORED

Counts = NDArray[np.int64]


def confusion(truth_HW: NDArray[np.uint8], predicted_HW: NDArray[np.uint8], classes: int) -> Counts:
    """(K, K) pixels of one picture; those without a class in the truth are left out."""
    labelled_HW = truth_HW != IGNORED
    pairs_N = truth_HW[labelled_HW].astype(np.int64) * classes + predicted_HW[labelled_HW]
    return np.bincount(pairs_N, minlength=classes**2).reshape(classes, classes)


def overlaps(confusion_KK: Counts) -> tuple[Counts, Counts]:
    """(K,) pixels in the intersection and in the union of truth and prediction."""
    hits_K = np.diagonal(confusion_KK)
    return hits_K, confusion_KK.sum(axis=0) + confusion_KK.sum(axis=1) - hits_K


def scores(confusion_KK: Counts) -> dict[str, float]:
    """Percent: miou; pixel_accuracy, of all labelled pixels; mean_accuracy, the mean of each class's own."""
    hits_K, union_K = overlaps(confusion_KK)
    truth_K = confusion_KK.sum(axis=1)
    seen_K, true_K = union_K > 0, truth_K > 0
    return {
        "miou": 100 * float((hits_K[seen_K] / union_K[seen_K]).mean()),
        "pixel_accuracy": 100 * float(hits_K.sum() / truth_K.sum()),
        "mean_accuracy": 100 * float((hits_K[true_K] / truth_K[true_K]).mean()),
    }


def per_class(confusion_KK: Counts, names: Sequence[str]) -> dict[str, float]:
    """Percent of every class that is in the truth or predicted."""
    hits_K, union_K = overlaps(confusion_KK)
    return {names[k]: 100 * float(hits_K[k] / union_K[k]) for k in np.flatnonzero(union_K).tolist()}


def best_constant(confusion_KK: Counts) -> float:
    """Chance: the mean IoU in percent of one class everywhere, the most frequent one."""
    truth_K = confusion_KK.sum(axis=1)
    return 100 * float(truth_K.max() / truth_K.sum() / (truth_K > 0).sum())
