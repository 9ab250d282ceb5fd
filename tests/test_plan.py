"""A plan's numbers: Table 8 for the paper's runs, measurements where there are any, and sizes that come true.

pytest tests/test_plan.py
"""

import json
from pathlib import Path

import pytest

from dseq_jepa.config import Experiment, load
from dseq_jepa.plan import KEPT_STATES, Cost, Planned, _bytes, _schedule, plan, shown
from dseq_jepa.training.loop import pretrain
from tests.training.runs import job, write_pictures

ROOT = Path(__file__).parents[1]
REPORTED = ROOT / "configs" / "reported_values.csv"


@pytest.fixture(scope="module")
def paper() -> Experiment:
    return load(ROOT / "configs" / "paper.yaml")


def test_the_papers_runs_take_the_papers_hours_and_larger_ones_more(paper: Experiment) -> None:
    planned = plan(paper, REPORTED)
    hours = {job.name: job.cost for job in planned.jobs if job.step == "pretrain"}
    assert hours["DSeq-JEPA ViT-B/16"] == Cost(26.5, 8, "Table 8")
    assert hours["I-JEPA ViT-B/16"] == Cost(24.2, 8, "Table 8")
    large = hours["DSeq-JEPA ViT-L/16"]
    assert large.source == "scaled from Table 8"
    assert large.hours == pytest.approx(26.5 * 3.5, rel=0.03), "24 x 1024^2 / (12 x 768^2), attention apart"
    text = shown(planned, 4, 8)
    assert "26.5 h on 8   Table 8   (paper: 26.5 h on 8 GPUs)" in text


def test_every_model_of_every_table_is_planned_once(paper: Experiment) -> None:
    planned = plan(paper, REPORTED)
    rows = {(row.method, row.architecture) for table in paper.tables.values() for row in table.rows if row.method}
    assert sum(job.step == "pretrain" for job in planned.jobs) == len(rows) * len(paper.seeds)
    assert sum(job.step == "score" for job in planned.jobs) == len(rows) * len(paper.seeds)
    assert f"pretrain {len(rows) * len(paper.seeds)}" in " ".join(shown(planned, 1, 8).split())


def test_a_model_that_only_a_figure_shows_is_pre_trained_and_nothing_else(paper: Experiment) -> None:
    before = plan(paper, REPORTED)
    figure = paper.figures["figure4"].model_copy(update={"method": "extra"})
    extra = {"extra": paper.methods["dseq-jepa"].model_copy(update={"label": "Extra"})}
    changed = {"methods": paper.methods | extra, "figures": paper.figures | {"figure4": figure}, "seeds": [0, 1]}
    planned = plan(paper.model_copy(update=changed), REPORTED)
    assert [job.step for job in planned.jobs if job.name == "Extra ViT-B/16"] == ["pretrain"], "for the first seed"
    assert planned.disk_bytes > 2 * before.disk_bytes


def test_missing_data_sets_are_named(paper: Experiment, tmp_path: Path) -> None:
    data = {name: entry.model_copy(update={"root": tmp_path / name}) for name, entry in paper.data.items()}
    (tmp_path / "cub").mkdir()
    missing = plan(paper.model_copy(update={"data": data}), REPORTED).missing
    assert not any(entry.startswith("cub ") for entry in missing)
    assert len(missing) == len(data) - 1


def test_what_was_measured_here_replaces_what_the_paper_says(paper: Experiment, tmp_path: Path) -> None:
    here = paper.model_copy(update={"results": tmp_path})
    method = next(name for name, entry in paper.methods.items() if entry.label == "DSeq-JEPA")
    architecture = next(name for name, entry in paper.architectures.items() if entry.label == "ViT-B/16")
    place = Path(method) / architecture / f"seed{paper.seeds[0]}"
    journal = here.directory / "pretrain" / place / "journal.jsonl"
    journal.parent.mkdir(parents=True)
    point = {"t": 1, "kind": "metrics", "step": 10, "values": {"images_per_second": 16000.0}}
    journal.write_text(json.dumps(point) + "\n")

    def cost() -> Cost:
        (found,) = [job.cost for job in plan(here, REPORTED).jobs if (job.step, job.name) == ("pretrain", NAME)]
        return found

    assert cost().source == "begun"
    assert cost().hours == pytest.approx(1_281_167 * 600 / 16000 / 3600)
    benchmark = here.directory / "benchmarks" / "pretrain" / place.with_suffix(".tsv")
    benchmark.parent.mkdir(parents=True)
    benchmark.write_text("s\th:m:s\n7200.0\t2:00:00\n")
    assert cost() == Cost(2.0, 8, "measured")
    (journal.parent / "run.json").write_text(json.dumps({"seconds": 1800.0, "ranks": 4}))
    assert cost() == Cost(0.5, 4, "measured"), "its own seconds, without the queue"


def test_an_evaluation_takes_the_seconds_that_it_noted(paper: Experiment, tmp_path: Path) -> None:
    here = paper.model_copy(update={"results": tmp_path})
    place = Path("evaluate") / "inat21" / "dseq-jepa" / "vit-b16" / f"seed{paper.seeds[0]}"
    for folder in (here.directory / place, (here.directory / "benchmarks" / place).parent):
        folder.mkdir(parents=True)
    (here.directory / "benchmarks" / place.with_suffix(".tsv")).write_text("s\th:m:s\n7200.0\t2:00:00\n")
    noted = {"evaluations": {"a": {"seconds": 900.0}, "b": {"seconds": 2700.0}}}
    (here.directory / place / "metrics.json").write_text(json.dumps(noted))
    planned = plan(here, REPORTED)
    (found,) = [job.cost for job in planned.jobs if (job.step, job.name) == ("evaluate/inat21", NAME)]
    assert found == Cost(1.0, 8, "measured")


def test_heads_are_part_of_a_dense_evaluations_time(paper: Experiment) -> None:
    """UPerNet at 512 px: 607e9 multiply-adds a crop, of which ViT-B does 107e9; 3 passes of 160,000 batches of 16."""
    planned = plan(paper, REPORTED)
    speed = 3 * 1_281_167 * 600 * 17.33e9 / (24.2 * 8)
    costs = {job.step: job.cost for job in planned.jobs if job.name == NAME}
    segmenting, detecting = costs["evaluate/segment"], costs["evaluate/detect"]
    assert segmenting.hours == pytest.approx(3 * 160_000 * 16 * 607e9 / speed / 8, rel=0.01)
    assert detecting.hours == pytest.approx(3 * 118_287 * 25 * 789e9 / speed / 8, rel=0.01)


NAME = "DSeq-JEPA ViT-B/16"


def test_the_planned_disk_is_what_a_run_takes(tmp_path: Path) -> None:
    settings = job(write_pictures(tmp_path / "pictures"))
    pretrain(settings, tmp_path / "out")
    state = tmp_path / "out" / "state" / settings.digest
    kept = sum(path.stat().st_size for path in state.glob("checkpoint-*"))
    states = [path.stat().st_size for path in state.glob("state-*.pt")]
    experiment = load(ROOT / "configs" / "demo.yaml")
    values = {"small": settings.architecture.model_copy(update={"recipe": "own"})}
    experiment = experiment.model_copy(
        update={"architectures": values, "recipes": {"own": settings.recipe}, "methods": {"own": settings.method}}
    )
    planned = _bytes(experiment, "own", "small")
    assert kept + KEPT_STATES * states[0] == pytest.approx(planned, rel=0.15), "headers of small files are the rest"


def test_wall_time_by_hand() -> None:
    """Two chains and a long job on two GPUs: 3 + 2 on one, 4 on the other, and the last pair together."""
    first = Planned("a", "", Cost(3, 1, "measured"))
    after = Planned("b", "", Cost(2, 1, "measured"), [first])
    long = Planned("c", "", Cost(4, 1, "measured"))
    wide = Planned("d", "", Cost(1, 2, "measured"), [after])
    assert _schedule([first, after, long, wide], 2) == 6
    assert _schedule([first, after, long, wide], 1) == 3 + 2 + 4 + 2
    assert _schedule([first, after, long, wide], 9) == 6
