"""Otsu's threshold from its definition, over all 256 thresholds.

pytest tests/reference -k otsu
"""

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray


def between_class_variances(levels: NDArray[np.uint8]) -> list[Fraction]:
    """Otsu's criterion at every threshold t in 0..255: classes are q <= t and q > t.

    w1 w2 (m1 - m2)^2, with w the number of pixels and m the mean level of a class (Otsu 1979, equation 14, up to the
    constant 1 / pixels^2); 0 where one class is empty. Exact, so that plateaus and symmetric histograms are real ties.
    """
    values = [int(level) for level in levels.reshape(-1)]
    variances = []
    for threshold in range(256):
        below = [value for value in values if value <= threshold]
        above = [value for value in values if value > threshold]
        if not below or not above:
            variances.append(Fraction(0))
            continue
        gap = Fraction(sum(below), len(below)) - Fraction(sum(above), len(above))
        variances.append(len(below) * len(above) * gap * gap)
    return variances


def exact_threshold(levels: NDArray[np.uint8]) -> int:
    """The first threshold that maximises the criterion exactly; a constant map's own level.

    It differs from scikit-image only where two thresholds tie exactly (see `tied`).
    """
    if len(np.unique(levels)) == 1:
        return int(levels.reshape(-1)[0])
    variances = between_class_variances(levels)
    return variances.index(max(variances))


def otsu_threshold(levels: NDArray[np.uint8]) -> int:
    """What `skimage.filters.threshold_otsu` returns on uint8, ties included. Foreground is q > threshold.

    The same criterion in float64 as (w1 w2) * (m1 - m2)^2 with each mean a single rounded division: on symmetric
    histograms exact ties are broken by these roundings, so an equal result needs these operations in this order.
    """
    values = [int(level) for level in levels.reshape(-1)]
    if len(set(values)) == 1:
        return values[0]
    best, winner = -1.0, 0
    for threshold in range(256):
        below = [value for value in values if value <= threshold]
        above = [value for value in values if value > threshold]
        if below and above:
            gap = float(sum(below)) / len(below) - float(sum(above)) / len(above)
            variance = float(len(below) * len(above)) * (gap * gap)
            if variance > best:
                best, winner = variance, threshold
    return winner


def tied(levels: NDArray[np.uint8]) -> bool:
    """Whether two thresholds with different foregrounds share the maximum exactly."""
    variances = between_class_variances(levels)
    best = max(variances)
    winners = [threshold for threshold in range(256) if variances[threshold] == best]
    return len({int((levels > threshold).sum()) for threshold in winners}) > 1
