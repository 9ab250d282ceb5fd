"""The whole workflow on real pictures: real files, real labels, a small encoder.

    pytest tests/workflow/test_real_packs.py            # two to four minutes on two cores
    DSEQ_REAL_DATA=/data/packs pytest tests/workflow/test_real_packs.py

The packs are small subsets in official layouts; the bird crops are arranged as iNat21's species folders here.
"""

import csv
import json
import os
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest

from tests.workflow.project import ROOT, Project, replaced

PACKS = Path(os.environ.get("DSEQ_REAL_DATA", ROOT.parent / "shared" / "data"))
NEEDED = ("tiny_imagenet", "CUB_200_2011", "CUB_200_2011_crops", "stanford_cars", "CLEVR_v1.0")
MISSING = [name for name in NEEDED if not (PACKS / name).is_dir()]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(MISSING), reason=f"real pictures: no {', '.join(MISSING)} in {PACKS}; set DSEQ_REAL_DATA"),
]


def arrange_as_species(crops: Path, root: Path) -> None:
    """Link the bird crops as train/<species>/ and val/<species>/ by CUB's official split."""
    names = dict(line.split() for line in (crops / "images.txt").read_text().splitlines())
    in_train = dict(line.split() for line in (crops / "train_test_split.txt").read_text().splitlines())
    for image, name in names.items():
        link = root / ("train" if in_train[image] == "1" else "val") / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to((crops / "images" / name).resolve())


def seconds_of_stages(results: Path) -> dict[str, tuple[float, int]]:
    """Seconds and number of the jobs of each rule, from Snakemake's benchmark files."""
    stages: dict[str, list[float]] = defaultdict(list)
    for path in sorted((results / "benchmarks").rglob("*.tsv")):
        (record,) = csv.DictReader(path.open(), delimiter="\t")
        stages[path.relative_to(results / "benchmarks").parts[0].removesuffix(".tsv")].append(float(record["s"]))
    return {stage: (sum(seconds), len(seconds)) for stage, seconds in stages.items()}


def test_the_workflow_on_real_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arrange_as_species(PACKS / "CUB_200_2011_crops", tmp_path / "species")
    text = replaced(
        (Path(__file__).parent / "real.yaml").read_text(),
        ("root: PACKS/", f"root: {PACKS.resolve()}/"),
        ("root: SPECIES", f"root: {tmp_path / 'species'}"),
        ("results: RESULTS", "results: results"),
    )
    project = Project.at(tmp_path / "project", text)
    began = time.monotonic()
    shown = project.run()
    assert shown.returncode == 0, shown.stdout
    results = project.folder / "results" / "real"
    with capsys.disabled():  # stderr, because a process of `pytest --numprocesses` has no stdout
        print(file=sys.stderr)
        for stage, (seconds, count) in seconds_of_stages(results).items():
            print(f"real pictures: {stage:<12} {seconds:6.1f} s in {count} jobs", file=sys.stderr)
        print(f"real pictures: {'in all':<12} {time.monotonic() - began:6.1f} s", file=sys.stderr)

    measured = [json.loads(path.read_text()) for path in sorted((results / "evaluate").rglob("metrics.json"))]
    assert len(measured) == 2
    counted = {"imagenet-linear": 2000, "inat21-linear": 180, "cub-linear": 146, "cars-linear": 160}
    for metrics in measured:
        found = metrics["evaluations"]
        for name, images in counted.items():
            assert (found[name]["n"], found[name]["skipped_images"]) == (images, 0)
            assert found[name]["value"] > found[name]["chance"], f"{name} learned nothing"
        assert found["clevr-count"]["n"] == found["clevr-distance"]["n"] == 4
    for table, numbers in (("table1", 8), ("table3", 4)):
        rows = list(csv.DictReader((results / "tables" / f"{table}.csv").open()))
        assert len([row for row in rows if row["ours"]]) == numbers
    assert project.plan() == {}
