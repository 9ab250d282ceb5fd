"""Mean intersection over union in plain Python: one pixel after the other."""

from collections.abc import Iterable

IGNORED = 255


def mean_iou(pairs: Iterable[tuple[list[list[int]], list[list[int]]]], classes: int) -> dict[str, float]:
    """Percent, from (truth, prediction) label maps of a whole set."""
    hits, truths, predictions = ([0] * classes for _ in range(3))
    for truth, prediction in pairs:
        for truth_row, prediction_row in zip(truth, prediction, strict=True):
            for true, predicted in zip(truth_row, prediction_row, strict=True):
                if true == IGNORED:
                    continue
                truths[true] += 1
                predictions[predicted] += 1
                hits[true] += true == predicted
    ious = [hits[k] / (truths[k] + predictions[k] - hits[k]) for k in range(classes) if truths[k] + predictions[k]]
    recalls = [hits[k] / truths[k] for k in range(classes) if truths[k]]
    return {
        "miou": 100 * sum(ious) / len(ious),
        "pixel_accuracy": 100 * sum(hits) / sum(truths),
        "mean_accuracy": 100 * sum(recalls) / len(recalls),
    }
