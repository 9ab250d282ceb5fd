"""The workflow with a micro configuration, run for real: what runs, what runs again, and what survives a kill.

pytest tests/workflow/test_workflow.py       # about four minutes on two cores
"""

import csv
import json
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dseq_jepa.config import load
from dseq_jepa.jobs import pretrain_job
from tests.workflow.project import NOTHING, ROOT, Project, jobs, replaced

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
MICRO = replaced((Path(__file__).parent / "micro.yaml").read_text(), ("RESULTS", "results"))
RESULTS = Path("results/micro")
MODEL = "vit-micro/seed0"
EVERYTHING = {
    "miniature": 3, "data_check": 3, "pretrain": 2, "score": 2, "select": 2, "export": 2, "probe": 4, "render": 2,
    "page": 1, "sync": 1,
}  # fmt: skip
AFTER_SELECTION = {"export": 1, "probe": 2, "render": 2, "page": 1, "sync": 1}

# What is deleted, and what has to run then: its producer, and whatever depends on it.
DELETED = {
    "data/imagenet.json": EVERYTHING | {"miniature": 1, "data_check": 1},
    "data/cub.json": {"miniature": 1, "data_check": 1, "probe": 2, "render": 2, "page": 1, "sync": 1},
    "fingerprints/imagenet.json": {
        rule: count for rule, count in (EVERYTHING | {"data_check": 1}).items() if rule != "miniature"
    },
    "fingerprints/clevr.json": {"data_check": 1, "probe": 2, "render": 2, "page": 1, "sync": 1},
    f"pretrain/dseq-jepa/{MODEL}/checkpoint-050.safetensors": {
        "pretrain": 1,
        "score": 1,
        "select": 1,
        **AFTER_SELECTION,
    },
    f"pretrain/i-jepa/{MODEL}/checkpoint-100.safetensors": {"pretrain": 1, "score": 1, "select": 1}
    | {"export": 1, "probe": 2, "render": 1, "page": 1, "sync": 1},
    f"pretrain/dseq-jepa/{MODEL}/run.json": {"pretrain": 1, "score": 1, "select": 1, **AFTER_SELECTION},
    f"score/dseq-jepa/{MODEL}/scores.json": {"score": 1, "select": 1, **AFTER_SELECTION},
    f"export/dseq-jepa/{MODEL}/selection.json": {"select": 1, **AFTER_SELECTION},
    f"export/dseq-jepa/{MODEL}/encoder.safetensors": AFTER_SELECTION,
    f"export/dseq-jepa/{MODEL}/encoder.json": AFTER_SELECTION,
    f"evaluate/large/dseq-jepa/{MODEL}/metrics.json": {"probe": 1, "render": 1, "page": 1, "sync": 1},
    f"evaluate/small/dseq-jepa/{MODEL}/records.csv.gz": {"probe": 1, "render": 2, "page": 1, "sync": 1},
    "tables/table1.csv": {"render": 1, "page": 1, "sync": 1},
    "tables/table1.md": {"render": 1, "page": 1, "sync": 1},
    "tables/table3.tex": {"render": 1, "page": 1, "sync": 1},
    "tables/table3.html": {"render": 1, "page": 1, "sync": 1},
    "report.html": {"page": 1, "sync": 1},
    "tracking/synced.json": {"sync": 1},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The micro configuration, finished."""
    project = Project.at(tmp_path_factory.mktemp("micro"), MICRO)
    shown = project.run()
    assert shown.returncode == 0, shown.stdout
    assert jobs(shown.stdout) == EVERYTHING
    return project


@pytest.fixture
def changed(project: Project) -> Iterator[Project]:
    """The finished project, whose configuration and rules may be changed; they are put back."""
    rules = project.folder / "workflow" / "rules" / "select.smk"
    kept = {path: path.read_text() for path in (project.config, rules)}
    yield project
    for path, text in kept.items():
        path.write_text(text)


def test_tables_show_what_was_measured(project: Project):
    results = project.folder / RESULTS
    rows = list(csv.DictReader((results / "tables" / "table1.csv").open()))
    measured = {(row["row"], row["metric"]): row["ours"] for row in rows if row["ours"]}
    assert len(measured) == 4  # two systems, two measured columns
    for (system, metric), value in measured.items():
        method = {"I-JEPA": "i-jepa", "DSeq-JEPA": "dseq-jepa"}[system]
        group, name = {"imagenet_linear_top1": ("large", "imagenet-linear"), "cub_linear_top1": ("small", "cub")}[
            metric
        ]
        metrics = json.loads((results / "evaluate" / group / method / MODEL / "metrics.json").read_text())
        assert float(value) == pytest.approx(metrics["evaluations"][name]["value"], abs=1e-5)
    for kind in ("md", "tex", "html"):
        assert (results / "tables" / f"table3.{kind}").stat().st_size > 0


def test_every_job_left_a_log_a_benchmark_and_its_provenance(project: Project):
    results = project.folder / RESULTS
    assert len(list((results / "logs").rglob("*.log"))) == sum(EVERYTHING.values())
    assert len(list((results / "benchmarks").rglob("*.tsv"))) == sum(EVERYTHING.values())
    for job in (f"pretrain/i-jepa/{MODEL}", f"score/i-jepa/{MODEL}", f"evaluate/small/dseq-jepa/{MODEL}"):
        provenance = json.loads((results / job / "provenance.json").read_text())
        assert provenance["config_digest"]
        assert None not in provenance["data"].values()


def test_a_second_run_does_nothing_and_says_so(project: Project):
    began = time.process_time()
    shown = project.run()
    assert NOTHING in shown.stdout
    assert time.process_time() - began < 10


def test_the_parametrised_artefacts_cover_every_rule(project: Project):
    lines = project.run("--summary").stdout.splitlines()
    declared = {line.split("\t")[0] for line in lines if line.startswith(str(RESULTS))}
    assert {str(RESULTS / path) for path in DELETED} <= declared
    kinds = {(path.split("/")[0], Path(path).suffixes[-1]) for path in DELETED}
    assert {(path.split("/")[2], Path(path).suffixes[-1]) for path in declared} == kinds


@pytest.mark.parametrize("artefact", DELETED)
def test_deleting_an_artefact_reruns_its_producer_and_dependants(project: Project, artefact: str, tmp_path: Path):
    path = project.folder / RESULTS / artefact
    path.rename(tmp_path / path.name)
    try:
        assert project.plan() == DELETED[artefact]
    finally:
        (tmp_path / path.name).rename(path)


def numbers(table: Path) -> list[str]:
    return [row["ours"] for row in csv.DictReader(table.open())]


def test_a_deleted_encoder_is_made_again_with_the_same_numbers(project: Project):
    folder = project.folder / RESULTS
    encoder, table = folder / f"export/i-jepa/{MODEL}/encoder.safetensors", folder / "tables/table1.csv"
    before, numbers_before = encoder.read_bytes(), numbers(table)
    encoder.unlink()
    shown = project.run()
    assert shown.returncode == 0, shown.stdout
    assert jobs(shown.stdout) == {"export": 1, "probe": 2, "render": 1, "page": 1, "sync": 1}
    assert encoder.read_bytes() == before
    assert numbers(table) == numbers_before
    assert project.plan() == {}


def test_what_no_result_depends_on_reruns_nothing(changed: Project):
    text = changed.config.read_text()
    changed.config.write_text(
        replaced(
            text,
            ("workers: 0", "workers: 1, stage: {folder: /scratch/elsewhere}"),
            ("log_every: 2", "log_every: 2\n    save_every_minutes: 3.0"),
        )
    )
    rules = changed.folder / "workflow" / "rules" / "select.smk"
    rules.write_text(replaced(rules.read_text(), ("dseq-jepa score --settings", "dseq-jepa  score  --settings")))
    assert changed.plan(DSEQ_LAUNCH="nice -n 19") == {}


def test_a_changed_recipe_reruns_from_the_pre_training_on(changed: Project):
    changed.config.write_text(replaced(changed.config.read_text(), ("peak: 1.0e-3", "peak: 2.0e-3")))
    expected = {rule: count for rule, count in EVERYTHING.items() if rule not in ("miniature", "data_check")}
    assert changed.plan() == expected


def test_a_changed_probe_reruns_its_group(changed: Project):
    changed.config.write_text(
        replaced(changed.config.read_text(), ("learning_rates: [1.0e-3]", "learning_rates: [2.0e-3]"))
    )
    assert changed.plan() == {"probe": 2, "render": 2, "page": 1, "sync": 1}


def test_snakemakes_own_report_shows_tables_and_the_page_with_their_captions(project: Project):
    shown = project.run("--report", "own.html")
    assert shown.returncode == 0, shown.stdout
    page = (project.folder / "own.html").read_text()
    for caption in (
        "our measurements beside the values that the paper reports",
        "one page that needs no",
        "micro, from",
    ):
        assert caption in " ".join(page.split())
    for artefact in ("table1.md", "table3.html", "report.html"):
        assert artefact in page


def test_one_table_is_a_target_by_its_name(project: Project):
    table = project.folder / RESULTS / "tables" / "table3.md"
    text = table.read_text()
    table.unlink()
    assert project.plan("table1") == {}
    assert project.plan("table3") == {"render": 1}
    assert project.plan("tables") == {"render": 1}
    table.write_text(text)
    project.run("--touch")


def test_a_second_seed_runs_every_model_once_more(changed: Project):
    changed.config.write_text(replaced(changed.config.read_text(), ("seeds: [0]", "seeds: [0, 1]")))
    assert changed.plan() == {
        "pretrain": 2, "score": 2, "select": 2, "export": 2, "probe": 4, "render": 2, "page": 1, "sync": 1,
    }  # fmt: skip


def test_a_mistyped_configuration_is_one_error_before_anything_starts(tmp_path: Path):
    project = Project.at(tmp_path / "project", replaced(MICRO, ("warmup_epochs", "warm_up_epochs")))
    shown = project.run()
    assert shown.returncode == 1
    assert 'test.yaml: recipes.micro.warm_up_epochs: unknown key; did you mean "warmup_epochs"?' in shown.stdout
    assert "Nothing was started." in shown.stdout
    assert "Traceback" not in shown.stdout
    assert not (project.folder / "results").exists()


def test_a_key_that_is_written_twice_is_refused(tmp_path: Path):
    project = Project.at(tmp_path / "project", MICRO + "seeds: [1]\n")
    shown = project.run("--dry-run")
    assert shown.returncode == 1
    assert "'seeds' is written twice" in shown.stdout


def test_the_paper_is_planned_without_its_data(tmp_path: Path):
    paper = (ROOT / "configs" / "paper.yaml").read_text()
    project = Project.at(tmp_path / "project", paper)
    planned = project.plan("table1", "table3")
    assert planned["pretrain"] == planned["export"] == 10  # five systems at B, four at L, two at H; each exactly once
    assert planned["data_check"] == 5
    assert planned["render"] == 2
    assert "miniature" not in planned


@pytest.mark.parametrize(("name", "runs"), [("demo", 13), ("paper", 19)])
def test_the_plan_has_each_distinct_pre_training_exactly_once(name: str, runs: int, tmp_path: Path):
    """Tables share their baseline rows: four systems and nine ablations; the paper has six more, on ViT-L and ViT-H."""
    experiment = load(ROOT / "configs" / f"{name}.yaml")
    project = Project.at(tmp_path / "project", (ROOT / "configs" / f"{name}.yaml").read_text())
    shown = project.run("--dry-run", "tables").stdout
    planned = re.findall(
        r"^rule pretrain:\n(?: .*\n)*? +wildcards: method=(\S+), architecture=(\S+), seed=(\d+)", shown, re.MULTILINE
    )
    rows = [row for table in experiment.tables.values() for row in table.rows if row.method]
    assert len(rows) > len(planned), "no two tables would share a row"
    wanted = {(row.method, row.architecture, str(seed)) for row in rows for seed in experiment.seeds}
    assert len(planned) == len(set(planned)) == runs
    assert set(planned) == wanted

    def nameless_digest(method: str, architecture: str, seed: str) -> str:
        job = pretrain_job(experiment, method, architecture, int(seed))
        return job.model_copy(update={"model": job.model.model_copy(update={"method": "any"})}).digest

    assert len({nameless_digest(*run) for run in planned}) == runs, "two entries are the same pre-training"


def test_a_run_that_only_a_figure_shows_is_pre_trained_and_mirrored(tmp_path: Path):
    method = (
        "  extra: {label: Extra, class_token: false, generation: uniform, prediction: flat, blocks: {min_context: 4}}"
    )
    figure = "figures: {figure6: {kind: clusters, method: extra, architecture: vit-micro}}\n"
    config = replaced(MICRO, ("methods:\n", f"methods:\n{method}\n"), ("tables:\n", f"{figure}tables:\n"))
    shown = Project.at(tmp_path / "project", config).run("--dry-run").stdout
    assert jobs(shown)["pretrain"] == 3
    assert jobs(shown)["score"] == 2
    run = "pretrain/extra/vit-micro/seed0/run.json"
    (sync,) = re.findall(r"^rule sync:\n(?: .*\n)+", shown, re.MULTILINE)
    assert run in sync


CONDA = """#!/bin/sh
echo '{"conda_version": "24.9.2", "platform": "linux-64", "conda_prefix": "/", "get": {"channel_priority": "strict"}}'
"""


@pytest.mark.parametrize("profile", ["default", "slurm"])
@pytest.mark.parametrize("deployment", [[], ["--software-deployment-method", "conda"]], ids=["one", "conda"])
def test_detection_runs_in_its_own_environment_also_where_it_is_launched(
    profile: str, deployment: list[str], tmp_path: Path
) -> None:
    """A dry run asks conda for its version only."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "conda").write_text(CONDA)
    (tmp_path / "bin" / "conda").chmod(0o755)
    project = Project.at(tmp_path / "project", (ROOT / "configs" / "paper.yaml").read_text())
    asked = ["table2", "--dry-run", "--printshellcmds", "--workflow-profile", f"workflow/profiles/{profile}"]
    shown = project.run(*asked, *deployment, PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}").stdout
    commands = re.findall(r"Shell command: +(.*) detect --settings", shown)
    assert commands, shown
    for command in commands:
        own = ["env", f"PYTHONPATH={project.folder / 'src'}"] if deployment else []
        words = shlex.split(command)
        assert words[: len(own)] == own
        if profile == "slurm":
            assert words[len(own) :][:4] == ["dseq-jepa", "launch", "--cluster", "slurm"]
            assert words[-2:] == ["--", "dseq-jepa"], "launch takes the name of the package and a verb"
            assert ("--python" in words) == bool(deployment)
        else:
            assert words[len(own) :] == (["python", "-m", "dseq_jepa"] if deployment else ["dseq-jepa"])


def test_a_failing_job_shows_its_log(tmp_path: Path):
    project = Project.at(tmp_path / "project", (ROOT / "configs" / "paper.yaml").read_text())
    shown = project.run("results/paper/fingerprints/cub.json")
    assert shown.returncode == 1
    assert "data.cub (Caltech-UCSD Birds-200-2011): data/CUB_200_2011: no such folder" in shown.stdout
    assert "get it from: https://www.vision.caltech.edu" in shown.stdout


def test_somebody_is_told_of_the_end(tmp_path: Path):
    news = tmp_path / "news"
    variables = {"DSEQ_NOTIFY": f'echo "$DSEQ_EVENT" >> {news}'}
    paper = Project.at(tmp_path / "paper", (ROOT / "configs" / "paper.yaml").read_text())
    assert paper.run("results/paper/fingerprints/cub.json", **variables).returncode == 1
    micro = Project.at(tmp_path / "micro", MICRO)
    assert micro.run(str(RESULTS / "fingerprints" / "clevr.json"), **variables).returncode == 0
    assert news.read_text() == "paper failed\nmicro finished\n"


def test_a_killed_run_goes_on_with_the_same_command(tmp_path: Path):
    """SIGKILL of Snakemake alone leaves its jobs behind; the next run must not start a second one beside them."""
    long = replaced(MICRO, ("epochs: 2\n    batch_size: 16", "epochs: 300\n    batch_size: 16"))
    project = Project.at(tmp_path / "project", long)
    folder = project.folder / RESULTS / f"pretrain/dseq-jepa/{MODEL}"
    target = str(RESULTS / f"pretrain/dseq-jepa/{MODEL}/run.json")
    with (tmp_path / "log").open("w") as log:
        first = subprocess.Popen(
            project.command(target), cwd=project.folder, stdout=log, stderr=log, start_new_session=True
        )
    journal = folder / "journal.jsonl"
    _wait_for(lambda: journal.exists() and '"metrics"' in journal.read_text(), first)

    refused = project.run(target)
    assert refused.returncode == 1
    assert "another run of this experiment is at work" in refused.stdout

    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert not (folder / "run.json").exists()
    again = project.run(target)
    assert again.returncode == 0, again.stdout
    assert (folder / "run.json").exists()
    assert "waiting for it to end" in (project.folder / RESULTS / f"logs/pretrain/dseq-jepa/{MODEL}.log").read_text()
    steps = [json.loads(line)["step"] for line in journal.read_text().splitlines() if '"metrics"' in line]
    assert steps == sorted(set(steps))
    assert project.plan(target) == {}


def _wait_for(condition, process: subprocess.Popen) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, "Snakemake ended before it could be killed"
        assert time.monotonic() < end
        time.sleep(0.1)
