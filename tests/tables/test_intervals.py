"""Intervals of differences against enumeration and a plain loop, and which resample they are taken over.

pytest tests/tables/test_intervals.py
"""

import gzip
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from dseq_jepa.errors import UserError
from dseq_jepa.tables.intervals import Accuracy, Records, interval, resampled
from tests.reference import bootstrap

MANY = 20_000


def run(answers: Sequence[int | None]) -> Accuracy:
    values = [np.nan if answer is None else float(answer) for answer in answers]
    return Accuracy(tuple(f"{n}.jpg" for n in range(len(answers))), np.array(values))


def samples(ours: bootstrap.Answers, baseline: bootstrap.Answers, resamples: int) -> tuple[np.ndarray, np.ndarray]:
    """(R, S) values of both systems."""
    runs = {("ours", s): run(answers) for s, answers in enumerate(ours)}
    runs |= {("baseline", s): run(answers) for s, answers in enumerate(baseline)}
    values = resampled(runs, "probe", resamples)
    return tuple(np.stack([values[name, s] for s in range(len(ours))], axis=1) for name in ("ours", "baseline"))


TINY = {
    "one seed": ([[1, 1, 0, 1, 0]], [[0, 1, 0, 0, 1]]),
    "an unreadable image": ([[1, None, 0, 1, 1]], [[0, 1, 0, None, 1]]),
    "two seeds": ([[1, 1, 0, 1], [1, 0, 0, 1]], [[0, 1, 0, 0], [1, 0, 1, 0]]),
}


@pytest.mark.parametrize("name", TINY)
def test_the_distribution_is_that_of_every_resample(name: str):
    """Values at steps between the quantiles, so that a sampled step cannot fall on the other side of one."""
    ours, baseline = TINY[name]
    every = np.array([float(value) for value in bootstrap.exact(ours, baseline)])
    ours_RS, baseline_RS = samples(ours, baseline, MANY)
    draws = np.random.default_rng(0).integers(ours_RS.shape[1], size=ours_RS.shape)
    drawn = np.take_along_axis(ours_RS - baseline_RS, draws, axis=1).mean(1)
    for step in np.arange(-99.5, 100, 20):
        assert (drawn < step).mean() == pytest.approx((every < step).mean(), abs=0.015)
    low, high = interval(ours_RS, baseline_RS)
    for end, part in ((low, 0.025), (high, 0.975)):
        around = [bootstrap.quantile(sorted(every), p) for p in (part - 0.012, part + 0.012)]
        assert around[0] - 1e-9 <= end <= around[1] + 1e-9


@pytest.mark.parametrize("seeds", [1, 3])
def test_intervals_equal_a_loop_over_resamples(seeds: int):
    draws = np.random.default_rng(seeds)
    hard_N = draws.random(200)
    ours = [(draws.random(200) < 0.3 + 0.5 * hard_N).astype(int).tolist() for _ in range(seeds)]
    baseline = [(draws.random(200) < 0.2 + 0.5 * hard_N).astype(int).tolist() for _ in range(seeds)]
    slow = bootstrap.sampled(ours, baseline, 1500, seed=1)
    fast = interval(*samples(ours, baseline, 4000))
    width = fast[1] - fast[0]
    assert fast[0] == pytest.approx(bootstrap.quantile(slow, 0.025), abs=0.1 * width)
    assert fast[1] == pytest.approx(bootstrap.quantile(slow, 0.975), abs=0.1 * width)


def test_differences_are_paired():
    """Two systems that fail on the same images have a certain difference, though each value alone is uncertain."""
    hard = [0, 1] * 50
    ours_RS, baseline_RS = samples([[1, *hard]], [[0, *hard]], 2000)
    assert np.ptp(baseline_RS) > 20
    low, high = interval(ours_RS, baseline_RS)
    assert 0 <= low < high <= 5


def test_seeds_count_as_well_as_images():
    """Every image is answered alike, so only the seeds differ: the interval is over them."""
    ours = [[1] * 40, [1] * 40, [0] * 40]
    low, high = interval(*samples(ours, [[0] * 40] * 3, 4000))
    every = [float(value) for value in bootstrap.exact([answers[:1] for answers in ours], [[0]] * 3)]
    assert (low, high) == (0.0, 100.0) == (every[0], every[-1])
    assert interval(*samples(ours[:1], [[0] * 40], 4000)) == (100.0, 100.0)


def test_the_same_images_are_drawn_for_every_system_and_again_next_time():
    answers = np.random.default_rng(2).integers(0, 2, 300).tolist()
    first = resampled({"a": run(answers), "b": run(answers)}, "probe")
    np.testing.assert_array_equal(first["a"], first["b"])
    np.testing.assert_array_equal(first["a"], resampled({"c": run(answers)}, "probe")["c"])
    assert (first["a"] != resampled({"a": run(answers)}, "another")["a"]).any()


def test_a_test_set_larger_than_one_draw_gives_the_same_numbers(monkeypatch: pytest.MonkeyPatch):
    answers = np.random.default_rng(3).integers(0, 2, 100).tolist()
    whole = resampled({"a": run(answers)}, "probe", 500)["a"]
    monkeypatch.setattr("dseq_jepa.tables.intervals._AT_ONCE", 700)  # seven resamples at a time
    np.testing.assert_array_equal(whole, resampled({"a": run(answers)}, "probe", 500)["a"])


def test_runs_on_different_images_are_refused():
    other = Accuracy(("x.jpg", "1.jpg"), np.zeros(2))
    with pytest.raises(UserError, match="cub-linear: its runs were measured on different test images"):
        resampled({"a": run([1, 0]), "b": other}, "cub-linear")


def write(path: Path, text: str) -> Path:
    path.write_bytes(gzip.compress(text.encode()))
    return path


def test_records_are_read_by_evaluation(tmp_path: Path):
    lines = ["evaluation,image,label,prediction,correct"]
    lines += [f"{name},{image}.jpg,a,a,{answer}" for name, image, answer in
              (("one", 0, 1), ("one", 1, 0), ("two", 0, 0), ("one", 2, ""))]  # fmt: skip
    records = Records()
    path = write(tmp_path / "records.csv.gz", "\n".join(lines) + "\n")
    one = records.examples(path, "one", "top1")
    assert list(one.images) == ["0.jpg", "1.jpg", "2.jpg"]
    counts = np.array(list(itertools.product(range(3), repeat=3)))[1:]
    expected = [100 * a / (a + b) if a + b else 0.0 for a, b, _ in counts.tolist()]
    np.testing.assert_allclose(one.values(counts), expected)
    path.unlink()
    assert len(records.examples(path, "two", "top1").images) == 1  # each file is read once


def test_a_mean_iou_is_that_of_the_drawn_pictures_pixels(tmp_path: Path):
    """Image 1 alone has class b, so a resample without it is the mean of one class."""
    lines = ["evaluation,image,class,intersection,union", "seg,0.jpg,a,2,4", "seg,1.jpg,a,1,4", "seg,1.jpg,b,3,4"]
    path = write(tmp_path / "records.csv.gz", "\n".join([*lines, ""]))
    overlap = Records().examples(path, "seg", "miou")
    values = overlap.values(np.array([[1.0, 1.0], [2.0, 0.0], [0.0, 2.0]]))
    np.testing.assert_allclose(values, [100 * (3 / 8 + 3 / 4) / 2, 100 * 4 / 8, 100 * (1 / 4 + 3 / 4) / 2])
    with pytest.raises(UserError, match=r"records\.csv\.gz: has no records of other"):
        Records().examples(path, "other", "miou")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot be read.*[Nn]o such file"),
        (b"plain text", "cannot be read"),
        (gzip.compress(b"evaluation,image,label,prediction,correct\n" * 900)[:-20], "cannot be read"),
        (gzip.compress(b"image,class,pixels\na,b,3\n"), "cannot be read.*'evaluation'"),
        (gzip.compress(b"evaluation,image,pixels\nprobe,b,3\n"), "not the records of a top-1 accuracy: 'correct'"),
        (gzip.compress(b"evaluation,image,correct\nprobe,b,yes\n"), "not the records of a top-1 accuracy: 'yes'"),
    ],
    ids=["missing", "not-compressed", "cut-off", "no-evaluation", "no-answer", "not-a-number"],
)
def test_records_that_cannot_be_read_are_named(tmp_path: Path, content: bytes | None, problem: str):
    path = tmp_path / "records.csv.gz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"records\.csv\.gz: .*{problem}"):
        Records().examples(path, "probe", "top1")
