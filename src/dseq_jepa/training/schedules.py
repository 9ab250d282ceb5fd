"""Quantities that change with the step (docs/protocols.md 1): functions of t in 0 .. T-1, so a resume needs no state.

schedule = Schedule(recipe, steps_per_epoch=625)
schedule.learning_rate(0), schedule.momentum(schedule.steps - 1)
"""

import math

from dseq_jepa.training.settings import Recipe


class Schedule:
    """Learning rate, weight decay, EMA momentum and progress of a recipe."""

    def __init__(self, recipe: Recipe, steps_per_epoch: int) -> None:
        self.recipe = recipe
        self.steps = recipe.epochs * steps_per_epoch
        """T: optimisation steps of the whole run."""
        self.warmup = min(round(recipe.warmup_epochs * steps_per_epoch), self.steps - 1)
        """W: the step at which the learning rate peaks."""

    def progress(self, step: int) -> float:
        """From 0 at the first step to 1 at the last: t / (T - 1)."""
        return step / max(1, self.steps - 1)

    def learning_rate(self, step: int) -> float:
        """Linear from `start` at t = 0 to `peak` at t = W, then cosine to `end` at t = T - 1."""
        rate = self.recipe.learning_rate
        if step < self.warmup:
            return rate.start + (rate.peak - rate.start) * step / self.warmup
        return _cosine(rate.peak, rate.end, (step - self.warmup) / max(1, self.steps - 1 - self.warmup))

    def weight_decay(self, step: int) -> float:
        """Cosine from `start` to `end`."""
        return _cosine(self.recipe.weight_decay.start, self.recipe.weight_decay.end, self.progress(step))

    def momentum(self, step: int) -> float:
        """Linear from `start` to `end`; applied after the optimizer step t."""
        ema = self.recipe.ema
        return ema.start + (ema.end - ema.start) * self.progress(step)


def _cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine from `start` at 0 to `end` at 1."""
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * progress))
