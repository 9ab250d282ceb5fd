"""What a table says: means, differences, averages and the reason of every gap.

pytest tests/tables/test_assemble.py
"""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from dseq_jepa.config import Experiment
from dseq_jepa.errors import UserError
from dseq_jepa.tables.assemble import Cell, Row, Table, assemble
from dseq_jepa.tables.job import TableJob, table_job
from dseq_jepa.tables.reported import read_reported

REPORTED = Path(__file__).parents[2] / "configs" / "reported_values.csv"
PAPER_DELTAS = {  # of the values that Table 1 prints; it prints "+0.8" for the average of DSeq-JEPA ViT-L/16
    ("DSeq-JEPA", "ViT-B/16"): [1.1, 0.5, 0.5, 0.9, 1.4, 0.9],
    ("DSeq-C-JEPA", "ViT-B/16"): [0.3, 0.1, 0.4, 1.6, 1.3, 0.7],
    ("DSeq-JEPA", "ViT-L/16"): [0.8, 0.2, 0.7, 1.2, 0.8, 0.7],
    ("DSeq-C-JEPA", "ViT-L/16"): [0.4, 0.3, 0.7, 2.5, 1.1, 1.0],
    ("DSeq-JEPA", "ViT-H/16-448"): [1.3, 0.7, None, None, None, None],
}


def row_of(table: Table, system: str, architecture: str = "ViT-B/16") -> Row:
    return next(row for row in table.rows if (row.system, row.architecture) == (system, architecture))


def cell_of(table: Table, system: str, label: str) -> Cell:
    return row_of(table, system).cells[[column.label for column in table.columns].index(label)]


def table_of(experiment: Experiment, results: Path, name: str = "table1") -> Table:
    return assemble(table_job(experiment, name), results, REPORTED)


def with_seeds(experiment: Experiment, seeds: list[int]) -> Experiment:
    return experiment.model_copy(update={"seeds": seeds})


def edit(results: Path, method: str, change: dict[str, Any], evaluation: str | None = None, seed: int = 0) -> Path:
    """Change a measurement file: its top level (of the one with ImageNet's probe), or one of its evaluations."""
    files = results.glob(f"evaluate/*/{method}/vit-mini/seed{seed}/metrics.json")
    contents = {path: json.loads(path.read_text()) for path in files}
    path = next(
        path for path, content in contents.items() if (evaluation or "imagenet-linear") in content["evaluations"]
    )
    content = contents[path]
    (content if evaluation is None else content["evaluations"][evaluation]).update(change)
    path.write_text(json.dumps(content))
    return path


def test_ours_stands_beside_the_papers(demo):
    table = table_of(*demo)
    cell = cell_of(table, "DSeq-JEPA", "CUB")
    assert cell.ours is not None
    assert (cell.ours.mean, cell.reported) == (pytest.approx(42.7), 66.2)
    assert (cell.ours.images, cell.ours.chance, cell.ours.seeds) == (1000, 10.0, (0,))
    assert cell.ours.runs == ("evaluate/transfer/dseq-jepa/vit-mini/seed0",)
    assert row_of(table, "DSeq-JEPA").own_architecture == "ViT-mini/8"


def test_ours_differs_from_the_baseline_of_the_same_encoder(demo):
    table = table_of(*demo)
    assert cell_of(table, "DSeq-JEPA", "CUB").ours_delta == pytest.approx(2.5)
    assert cell_of(table, "DSeq-C-JEPA", "CUB").ours_delta == pytest.approx(-0.1)
    assert cell_of(table, "I-JEPA", "CUB").ours_delta is None


def test_the_papers_differences_follow_from_its_values(demo):
    table = table_of(*demo)
    for (system, architecture), expected in PAPER_DELTAS.items():
        deltas = [cell.reported_delta for cell in row_of(table, system, architecture).cells]
        assert [None if delta is None else round(delta, 1) for delta in deltas] == expected


def test_the_papers_averages_follow_from_its_values_except_one(demo):
    table = table_of(*demo)
    reported = read_reported(REPORTED, 1)
    for row in table.rows:
        printed = reported.row(row.system, row.architecture).values.get("average")
        cell = row.cells[-1]
        if (row.system, row.architecture) == ("MAE", "ViT-L/16"):
            assert printed is None
            assert cell.reported == pytest.approx(64.86)
            assert cell.reported_note is not None
            assert 'prints "-"' in cell.reported_note
        else:
            assert (None if cell.reported is None else round(cell.reported, 1)) == printed
            assert "for the average" not in (cell.reported_note or "")


def test_the_papers_printed_differences_follow_from_its_values_except_one(demo):
    reported = read_reported(REPORTED, 1)
    notes, compared = {}, 0
    for name in ("table1", "table2", "table3"):
        table = table_of(*demo, name)
        reported = read_reported(REPORTED, table.number)
        for row in table.rows:
            for cell, column in zip(row.cells, table.columns, strict=True):
                printed = reported.rows[row.system, row.architecture].deltas.get(column.metric)
                compared += printed is not None and cell.reported_delta is not None
                if "for this difference" in (cell.reported_note or ""):
                    notes[row.system, row.architecture, column.label] = cell.reported_note
                elif printed is not None and cell.reported_delta is not None:
                    assert f"{cell.reported_delta:+.1f}" == f"{printed:+.1f}"
    assert compared == 36
    assert notes == {
        ("DSeq-JEPA", "ViT-L/16", "Avg."): 'the paper prints "+0.8" for this difference; that of its own values is +0.7'
    }


def test_differences_of_accuracies_have_an_interval_over_the_test_images(demo):
    """25 of 1,000 answers differ, all for the better; one differs for the worse, and its interval includes 0."""
    table = table_of(*demo)
    cell = cell_of(table, "DSeq-JEPA", "CUB")
    assert cell.ours_interval is not None
    low, high = cell.ours_interval
    deviation = 100 * (0.025 * 0.975 / 1000) ** 0.5
    assert (low, high) == pytest.approx((2.5 - 1.96 * deviation, 2.5 + 1.96 * deviation), abs=0.2)
    worse = cell_of(table, "DSeq-C-JEPA", "CUB").ours_interval
    assert worse is not None
    assert worse[0] < -0.1 < worse[1] == 0.0
    assert cell_of(table, "I-JEPA", "CUB").ours_interval is None


def test_the_interval_of_an_average_is_over_all_of_its_columns(demo):
    table = table_of(*demo)
    one, average = (cell_of(table, "DSeq-JEPA", label) for label in ("CUB", "Avg."))
    assert average.ours_delta == pytest.approx(2.5)
    assert average.ours_interval is not None
    assert one.ours_interval is not None
    widths = [cell.ours_interval[1] - cell.ours_interval[0] for cell in (average, one)]
    assert widths[0] == pytest.approx(widths[1] / 5**0.5, rel=0.2)  # five test sets


def test_with_several_seeds_the_interval_is_over_both(demo, measure):
    """All seeds differ from the baseline alike, so they add nothing; one seed that does not widens the interval."""
    experiment, results = demo
    three = with_seeds(experiment, [0, 1, 2])
    measure(three, results)
    alike = cell_of(table_of(three, results), "DSeq-JEPA", "Linear").ours_interval
    files = results.glob("evaluate/*/i-jepa/vit-mini/seed2/records.csv.gz")
    path = next(file for file in files if b"imagenet-linear," in gzip.decompress(file.read_bytes()))
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    wrong = [line[:-1] + "0" if line.startswith("imagenet-linear,") else line for line in lines]
    path.write_bytes(gzip.compress("\n".join([*wrong, ""]).encode()))
    unlike = cell_of(table_of(three, results), "DSeq-JEPA", "Linear").ours_interval
    assert alike is not None
    assert unlike is not None
    assert alike[1] - alike[0] < 3
    assert unlike[1] - unlike[0] > 30


def test_what_is_no_mean_over_images_has_no_interval(demo):
    table = table_of(*demo, "table2")
    for column, expected in zip(table.columns, (False, False, True), strict=True):
        cells = [row.cells[table.columns.index(column)] for row in table.rows]
        compared = [cell for cell in cells if cell.ours_delta is not None]
        assert [cell.ours_interval is not None for cell in compared] == [expected] * 2


def test_an_average_needs_all_of_its_columns(demo):
    experiment, results = demo
    table1 = experiment.tables["table1"]
    unmeasured = {"evaluation": None, "missing": "nothing measures it"}
    columns = [column.model_copy(update=unmeasured if column.label == "Fine-tune" else {}) for column in table1.columns]
    table1 = table1.model_copy(update={"columns": columns})
    experiment = experiment.model_copy(update={"tables": {"table1": table1}})
    cell = table_of(experiment, results).rows[1].cells[-1]
    assert cell.ours is None
    assert cell.reason == "the average needs every column; there is no Fine-tune"

    measured = [column.metric for column in table1.columns if column.evaluation]
    tables = {"table1": table1.model_copy(update={"average": measured})}
    four = assemble(table_job(experiment.model_copy(update={"tables": tables}), "table1"), results, REPORTED)
    ours = cell_of(four, "I-JEPA", "Avg.").ours
    assert ours is not None
    assert ours.mean == pytest.approx((40.0 + 40.1 + 40.2 + 40.3) / 4)
    assert ours.chance == 10.0
    assert cell_of(four, "DSeq-JEPA", "Avg.").ours_delta == pytest.approx(2.5)


def test_every_gap_has_its_reason(demo):
    for name in ("table1", "table3"):
        for row in table_of(*demo, name).rows:
            for cell in row.cells:
                assert (cell.ours is None) == (cell.reason is not None)


def test_several_seeds_give_mean_and_deviation(demo, measure):
    experiment, results = demo
    three = with_seeds(experiment, [0, 1, 2])
    measure(three, results)
    cell = cell_of(table_of(three, results), "DSeq-JEPA", "Linear")
    assert cell.ours is not None
    assert cell.ours.values == (42.5, 43.5, 44.5)
    assert (cell.ours.mean, cell.ours.deviation) == (43.5, 1.0)
    assert cell.ours_delta == pytest.approx(2.5)
    assert [run[-5:] for run in cell.ours.runs] == ["seed0", "seed1", "seed2"]


def test_a_single_seed_has_no_deviation(demo):
    cell = cell_of(table_of(*demo), "I-JEPA", "Linear")
    assert cell.ours is not None
    assert cell.ours.deviation is None


def test_different_code_versions_are_said(demo):
    experiment, results = demo
    versions = [note for note in table_of(experiment, results).notes if "versions of the code" in note]
    assert versions == []
    edit(results, "c-jepa", {"code_version": "v2-dirty"})
    (note,) = (note for note in table_of(experiment, results).notes if "versions of the code" in note)
    assert "v2-dirty: C-JEPA ViT-B/16" in note


def test_unreadable_test_images_are_said(demo):
    experiment, results = demo
    edit(results, "i-jepa", {"skipped_images": 3}, "cub-linear")
    table = table_of(experiment, results)
    assert cell_of(table, "I-JEPA", "CUB").ours_note == "3 unreadable test images are not counted"
    assert cell_of(table, "I-JEPA", "Cars").ours_note is None


def test_a_missing_file_is_named(demo):
    experiment, results = demo
    path = results / "evaluate/classify/c-jepa/vit-mini/seed0/metrics.json"
    path.unlink()
    with pytest.raises(UserError, match=rf"{path}: cannot be read: .* c-jepa on vit-mini, run the workflow"):
        table_of(experiment, results)


def test_a_missing_evaluation_is_named(demo):
    experiment, results = demo
    path = results / "evaluate/transfer/c-jepa/vit-mini/seed0/metrics.json"
    content = json.loads(path.read_text())
    del content["evaluations"]["cub-linear"]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf'{path}: has no evaluation "cub-linear" \(it has cars-linear'):
        table_of(experiment, results)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "not a metrics file of this version: schema"),
        ({"evaluations": []}, "not a metrics file of this version: evaluations"),
        ({"model": {"experiment": "demo", "method": "i-jepa", "architecture": "vit-mini", "seed": 0}}, "is of"),
    ],
)
def test_a_foreign_file_is_refused(demo, change: dict[str, Any], message: str):
    experiment, results = demo
    path = edit(results, "c-jepa", change)
    with pytest.raises(UserError, match=f"{path}: {message}"):
        table_of(experiment, results)


def test_a_truncated_file_is_refused(demo):
    experiment, results = demo
    path = results / "evaluate/classify/c-jepa/vit-mini/seed0/metrics.json"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=rf"{path}: not a metrics file"):
        table_of(experiment, results)


def test_a_method_of_ones_own_has_a_row_without_the_paper(demo, measure):
    experiment, results = demo
    mine = experiment.methods["dseq-jepa"].model_copy(update={"label": "Mine"})
    row = experiment.tables["table1"].rows[2].model_copy(update={"reported": None, "method": "mine"})
    table1 = experiment.tables["table1"].model_copy(update={"rows": [*experiment.tables["table1"].rows, row]})
    update = {"methods": {**experiment.methods, "mine": mine}, "tables": {"table1": table1}}
    own = experiment.model_copy(update=update)
    measure(own, results)
    shown = table_of(own, results).rows[-1]
    assert (shown.system, shown.epochs, shown.own_epochs) == ("Mine", None, experiment.recipes["pretrain-mini"].epochs)
    assert shown.cells[0].reported is None
    assert shown.cells[0].ours_delta == pytest.approx(10.0)


def test_a_row_that_the_paper_does_not_have_is_refused_with_the_nearest(demo):
    experiment, results = demo
    table1 = experiment.tables["table1"]
    row = table1.rows[0].model_copy(update={"reported": "MEA"})
    wrong = experiment.model_copy(
        update={"tables": {"table1": table1.model_copy(update={"rows": [row, *table1.rows[1:]]})}}
    )
    with pytest.raises(UserError, match='Table 1 has no row MEA, ViT-B/16; did you mean "MAE, ViT-B/16"'):
        table_of(wrong, results)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("table,row\n", "the first line is"),
        ("table,row,architecture,epochs,metric,value\n1,MAE,ViT-B/16,x,average,1\n", "line 2: table and epochs"),
        (
            "table,row,architecture,epochs,metric,value\n1,M,B,1,average,1.0\n1,M,B,1,average,1.0\n",
            "line 3: M, B, average is given twice",
        ),
    ],
)
def test_a_broken_file_of_reported_values_is_refused_with_its_line(tmp_path: Path, text: str, message: str):
    path = tmp_path / "reported.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=f"{path}: {message}"):
        read_reported(path, 1)


def test_a_job_survives_its_json(demo):
    job = table_job(demo[0], "table3")
    assert TableJob.parse(job.to_json()) == job


def test_an_unknown_table_is_refused_with_the_nearest(demo):
    with pytest.raises(UserError, match="tables: 'tabel1' is not defined; did you mean \"table1\""):
        table_job(demo[0], "tabel1")
