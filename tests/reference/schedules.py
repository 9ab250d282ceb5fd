"""What changes over pre-training, as closed formulas of step t of T (t = 0..T-1).

    pytest tests/reference -k schedule

End points: every quantity has its start value at t = 0 and its end value at t = T-1, the last step. The learning rate
is at its peak at t = warmup_steps. A run of one step has the start values.
"""

import math


def _progress(step: int, total: int) -> float:
    return step / (total - 1) if total > 1 else 0.0


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def learning_rate(step: int, total: int, warmup_steps: int, start: float, peak: float, end: float) -> float:
    """Linear from start (t = 0) to peak (t = warmup_steps), then cosine to end (t = total - 1)."""
    if step < warmup_steps:
        return start + (peak - start) * step / warmup_steps
    if total - 1 == warmup_steps:
        return peak
    return _cosine(peak, end, (step - warmup_steps) / (total - 1 - warmup_steps))


def weight_decay(step: int, total: int, start: float, end: float) -> float:
    """Half a cosine from start (t = 0) to end (t = total - 1)."""
    return _cosine(start, end, _progress(step, total))


def ema_momentum(step: int, total: int, start: float = 0.996, end: float = 1.0) -> float:
    """Linear: start + (end - start) t / (total - 1), applied after the optimizer's step t."""
    return start + (end - start) * _progress(step, total)


def curriculum(step: int, total: int) -> float:
    """Probability t / (total - 1) that an image uses its salient regions instead of random blocks."""
    return _progress(step, total)
