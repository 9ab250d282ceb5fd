"""Schedules equal their closed formulas at every step."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dseq_jepa.training.schedules import Schedule
from dseq_jepa.training.settings import LearningRate, Ramp, Recipe
from tests.reference import schedules as reference

PAPER = Recipe(
    epochs=600,
    batch_size=2048,
    learning_rate=LearningRate(start=2e-4, peak=8e-4, end=1e-4),
    warmup_epochs=15,
    weight_decay=Ramp(start=0.04, end=0.4),
)


@given(epochs=st.integers(1, 40), steps_per_epoch=st.integers(1, 30), data=st.data())
def test_every_step_equals_the_reference(epochs: int, steps_per_epoch: int, data: st.DataObject) -> None:
    warmup = data.draw(st.integers(0, epochs - 1))
    schedule = Schedule(PAPER.model_copy(update={"epochs": epochs, "warmup_epochs": warmup}), steps_per_epoch)
    total = epochs * steps_per_epoch
    assert schedule.steps == total
    step = data.draw(st.integers(0, total - 1))
    rate = reference.learning_rate(step, total, warmup * steps_per_epoch, 2e-4, 8e-4, 1e-4)
    assert schedule.learning_rate(step) == pytest.approx(rate, rel=1e-12)
    assert schedule.weight_decay(step) == pytest.approx(reference.weight_decay(step, total, 0.04, 0.4), rel=1e-12)
    assert schedule.momentum(step) == pytest.approx(reference.ema_momentum(step, total), rel=1e-12)
    assert schedule.progress(step) == pytest.approx(reference.curriculum(step, total), rel=1e-12)


def test_the_papers_end_points() -> None:
    schedule = Schedule(PAPER, steps_per_epoch=625)
    last = schedule.steps - 1
    assert schedule.learning_rate(0) == 2e-4
    assert schedule.learning_rate(15 * 625) == pytest.approx(8e-4)
    assert schedule.learning_rate(last) == pytest.approx(1e-4)
    assert (schedule.weight_decay(0), schedule.weight_decay(last)) == pytest.approx((0.04, 0.4))
    assert (schedule.momentum(0), schedule.momentum(last)) == pytest.approx((0.996, 1.0))
    assert (schedule.progress(0), schedule.progress(last)) == (0.0, 1.0)
