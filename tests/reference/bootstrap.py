"""Intervals of a paired difference, by enumeration and by a plain loop.

    pytest tests/reference -k bootstrap

`exact` is the distribution that a bootstrap samples from: every resample of the test images and of the seeds, each
equally likely. It is feasible for a handful of images only.
"""

import itertools
import random
from collections.abc import Sequence
from fractions import Fraction

Answers = Sequence[Sequence[int | None]]
"""Per seed, per image: 1 right, 0 wrong, None not read."""


def accuracy(answers: Sequence[int | None]) -> Fraction:
    """Percent of the images that were read; 0 where none was."""
    read = [answer for answer in answers if answer is not None]
    return Fraction(100 * sum(read), len(read)) if read else Fraction(0)


def difference(ours: Answers, baseline: Answers, images: Sequence[int], seeds: Sequence[int]) -> Fraction:
    """Mean over the drawn seeds of the difference of the accuracies on the drawn images."""
    gaps = [
        accuracy([ours[seed][image] for image in images]) - accuracy([baseline[seed][image] for image in images])
        for seed in seeds
    ]
    return sum(gaps, Fraction(0)) / len(gaps)


def exact(ours: Answers, baseline: Answers) -> list[Fraction]:
    """The difference under every resample, ascending."""
    images, seeds = range(len(ours[0])), range(len(ours))
    return sorted(
        difference(ours, baseline, drawn_images, drawn_seeds)
        for drawn_images in itertools.product(images, repeat=len(images))
        for drawn_seeds in itertools.product(seeds, repeat=len(seeds))
    )


def sampled(ours: Answers, baseline: Answers, resamples: int, seed: int) -> list[Fraction]:
    """The difference under some random resamples, ascending."""
    draws, images, seeds = random.Random(seed), range(len(ours[0])), range(len(ours))
    return sorted(
        difference(ours, baseline, draws.choices(images, k=len(images)), draws.choices(seeds, k=len(seeds)))
        for _ in range(resamples)
    )


def quantile(ascending: Sequence[Fraction], part: float) -> float:
    """The value below which this part of the distribution lies."""
    return float(ascending[min(int(part * len(ascending)), len(ascending) - 1)])
