"""The cost of a small pre-training: what is measured, what is extrapolated, and what is said about it.

pytest tests/cost/test_measure.py
"""

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from dseq_jepa.cost.count import inference_multiply_adds, parameters
from dseq_jepa.cost.measure import measure
from dseq_jepa.cost.settings import CostSettings
from dseq_jepa.data.loaders import Batch
from dseq_jepa.errors import UserError
from dseq_jepa.jobs import CostJob
from dseq_jepa.methods.jepa import StepOutput
from dseq_jepa.training.loop import Run
from tests.training import runs

SETTINGS = CostSettings(kind="cost", data="imagenet", warmup_steps=1, steps=3, counted_steps=2)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_pictures(tmp_path_factory.mktemp("pictures"))


def job(pictures: Path, method: str = "dseq-jepa", settings: CostSettings = SETTINGS, ranks: int = 1) -> CostJob:
    run = runs.job(pictures, method)
    return CostJob(
        model=run.model,
        compute=run.compute.model_copy(update={"ranks": ranks}),
        loading=run.loading,
        group="cost",
        evaluations={"cost": settings},
        data={"imagenet": run.data},
        method=run.method,
        architecture=run.architecture,
        recipe=run.recipe,
    )


def measured(job: CostJob, out: Path) -> dict[str, Any]:
    measure(job, out)
    return json.loads((out / "metrics.json").read_text())["evaluations"]["cost"]


@pytest.fixture
def optimised(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, int]]:
    """Progress and images of every step that is really made."""
    seen: list[tuple[float, int]] = []
    optimise = Run.optimise

    def note(run: Run, batch: Batch) -> StepOutput:
        seen.append((run.schedule.progress(run.step), len(batch.images_BCHW)))
        return optimise(run, batch)

    monkeypatch.setattr(Run, "optimise", note)
    return seen


def test_hours_are_the_median_step_times_all_steps_of_the_run(pictures: Path, tmp_path: Path) -> None:
    result = measured(job(pictures), tmp_path)
    values = result["values"]
    assert len(result["step_seconds"]) == 3
    assert values["step_seconds"] == statistics.median(result["step_seconds"])
    steps = 4 * (48 // 8)  # 4 epochs of 48 pictures in batches of 8
    assert values["pretrain_hours"] == result["value"] == pytest.approx(values["step_seconds"] * steps / 3600)
    assert values["images_per_second"] == pytest.approx(8 / values["step_seconds"])
    assert "extrapolated from the median of 3 steps to 4 epochs on 1 process" in result["notes"]["pretrain_hours"]
    assert "resident set" in result["notes"]["pretrain_memory_gb"]
    assert 0.1 < values["pretrain_memory_gb"] < 20  # Python with torch alone is 0.3 GB
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.json", "provenance.json"}


def test_what_is_counted_does_not_depend_on_the_run(pictures: Path, tmp_path: Path) -> None:
    settings = runs.job(pictures).architecture
    once, again = (measured(job(pictures), tmp_path / name)["values"] for name in ("once", "again"))
    for key in ("pretrain_gflops", "target_gflops", "inference_gflops", "parameters_m"):
        assert once[key] == again[key]
    assert once["inference_gflops"] == once["target_gflops"]
    assert once["inference_gflops"] == inference_multiply_adds(settings, class_token=True) / 1e9
    assert once["parameters_m"] == parameters(settings, class_token=True, classes=2) / 1e6
    assert once["pretrain_gflops"] > 2 * once["target_gflops"]


def test_a_contrastive_step_costs_its_projector_more(pictures: Path, tmp_path: Path) -> None:
    plain, contrastive = (measured(job(pictures, name), tmp_path / name)["values"] for name in ("i-jepa", "c-jepa"))
    assert contrastive["pretrain_gflops"] > plain["pretrain_gflops"]
    assert contrastive["inference_gflops"] == plain["inference_gflops"]


def test_a_process_alone_takes_its_share_of_the_batch_and_says_so(
    optimised: list[tuple[float, int]], pictures: Path, tmp_path: Path
) -> None:
    result = measured(job(pictures, ranks=2), tmp_path)
    assert {images for _, images in optimised} == {4}
    values = result["values"]
    assert values["images_per_second"] == pytest.approx(8 / values["step_seconds"])
    assert values["pretrain_hours"] == pytest.approx(values["step_seconds"] * 24 / 3600)
    assert "on 2 processes, of which 1 measured" in result["notes"]["pretrain_hours"]
    with pytest.raises(UserError, match="batch_size 8 cannot be shared equally by 3 ranks"):
        measure(job(pictures, ranks=3), tmp_path)


def test_steps_are_spread_over_the_curriculum(
    optimised: list[tuple[float, int]], pictures: Path, tmp_path: Path
) -> None:
    measure(job(pictures), tmp_path)
    progress = [place for place, _ in optimised]
    assert len(progress) == 1 + 3 + 2
    assert statistics.fmean(progress[1:4]) == pytest.approx(0.5, abs=0.05)
    assert statistics.fmean(progress[4:]) == pytest.approx(0.5, abs=0.05)
    assert progress[1] < 0.25 < 0.75 < progress[3]


def test_a_run_that_is_too_short_to_measure_is_refused(pictures: Path, tmp_path: Path) -> None:
    long = SETTINGS.model_copy(update={"steps": 30})
    with pytest.raises(UserError, match="33 steps are to be measured, but this pre-training has 24; lower steps"):
        measure(job(pictures, settings=long), tmp_path)
