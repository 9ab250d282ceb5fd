"""What a reader should know before trusting the numbers is said, good or bad."""

import json
from pathlib import Path

import pytest

from dseq_jepa.journal import Journal
from dseq_jepa.report.checks import checks
from dseq_jepa.report.collect import JobRecord, collect

EVALUATE = "evaluate/small/dseq-jepa/vit-micro/seed0"
PRETRAIN = "pretrain/dseq-jepa/vit-micro/seed0"


def bad(results: Path) -> list[str]:
    return [check.text for check in checks(collect(results), []) if not check.good]


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture(autouse=True)
def clean(results: Path) -> None:
    """The code under test may not be committed; that is not what is tested here."""
    for path in results.glob("**/seed0/provenance.json"):
        change(path, code_version="c0de")


def test_sound_results_have_no_bad_news(results: Path) -> None:
    assert bad(results) == []


def test_gpu_hours_count_every_gpu_and_core_hours_every_thread() -> None:
    made = {"seconds": 1800.0, "device": "cuda: NVIDIA H200", "threads": 4, "job": {"compute": {"ranks": 8}}}
    on_gpus = JobRecord(PRETRAIN, made, {"run.json": {"seconds": 7200.0, "ranks": 8}}, [], None, None)
    assert (on_gpus.gpu_hours, on_gpus.core_hours) == (16.0, 0.0)  # seconds of all its processes, not of the last one
    on_cores = JobRecord(EVALUATE, made | {"device": "cpu", "job": {}}, {}, [], None, None)
    assert (on_cores.gpu_hours, on_cores.core_hours) == (0.0, 2.0)


def test_two_versions_of_the_code(results: Path) -> None:
    change(results / PRETRAIN / "provenance.json", code_version="0ther-dirty")
    versions, dirty = bad(results)
    assert versions.startswith("Jobs ran 2 versions of the code: ")
    assert "not committed" in dirty


def test_other_data_than_was_checked(results: Path) -> None:
    change(results / "fingerprints" / "cub.json", fingerprint="f00")
    (said,) = bad(results)
    assert said.startswith("Read other data than was checked: evaluate/small/dseq-jepa/vit-micro/seed0, ")


def test_an_encoder_that_was_exported_again(results: Path) -> None:
    change(results / "export/dseq-jepa/vit-micro/seed0/provenance.json", finished="2999-01-01T00:00:00.000+00:00")
    (said,) = bad(results)
    assert "replaced since" in said
    assert EVALUATE in said


def test_skipped_pictures(results: Path) -> None:
    path = results / EVALUATE / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["evaluations"]["cub"]["skipped_images"] = 2
    path.write_text(json.dumps(metrics))
    assert bad(results) == [f"Unreadable pictures were skipped in: {EVALUATE}."]


def test_warnings_and_interruptions(results: Path) -> None:
    with Journal(results / PRETRAIN / "journal.jsonl") as journal:
        journal.event("resumed", tags={})
        journal.event("warning", text="a state was damaged")
        journal.event("finished")
    assert bad(results) == [f"Warnings in: {PRETRAIN}."]
    assert f"Interrupted, and gone on from the saved state: {PRETRAIN}." in [
        check.text for check in checks(collect(results), [])
    ]
