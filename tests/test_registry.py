"""What MLflow shows beside curves, from real artefacts: data sets, encoders that load, descriptions with links."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from dseq_jepa.journal import Journal
from dseq_jepa.tracking import sync

MODEL = "demo.dseq-jepa.vit-micro"
SELECT = "select: dseq-jepa / ViT-micro/8 / seed 0"
PRETRAIN = "dseq-jepa / ViT-micro/8 / seed 0"


@pytest.fixture(scope="module")
def mirrored(micro: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The micro results, with a log, a figure, a report and a failed workflow, mirrored once."""
    results = tmp_path_factory.mktemp("mirrored") / "micro"
    shutil.copytree(micro / "results" / "micro", results)
    files = {
        "logs/pretrain/dseq-jepa/vit-micro/seed0.log": "step 1\n", "figures/figure2.png": "png",
        "figures/figure2.caption.md": "**Figure 2.**", "report.html": "<!doctype html>",
    }  # fmt: skip
    for name, text in files.items():
        (results / name).parent.mkdir(parents=True, exist_ok=True)
        (results / name).write_text(text)
    for name, end in (("20260101T100000-7", None), ("20260102T100000-8", "failed")):
        with Journal(results / "workflow" / name / "journal.jsonl") as journal:
            journal.start({"step": "workflow", "workflow": name, "command": "snakemake table1"})
            journal.event("job_failed", job=3, rule="probe", seconds=1.5, logs={"logs/x.log": "error: the reason"})
            journal.metrics(1, {"seconds/pretrain": 12.5})
            if end:
                journal.event(end, jobs=1)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    sync(results, "demo")
    return results


@pytest.fixture
def client(mirrored: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{mirrored}/mlflow.db")


def runs(client: Any) -> dict[str, Any]:
    found = client.search_runs([client.get_experiment_by_name("demo").experiment_id])
    return {run.info.run_name: run for run in found}


def test_data_sets_are_inputs_with_their_fingerprints(mirrored: Path, client: Any) -> None:
    def inputs(run: Any) -> set[tuple[str, str, str]]:
        return {
            (entry.dataset.name, tag.value, entry.dataset.digest)
            for entry in run.inputs.dataset_inputs
            for tag in entry.tags
            if tag.key == "mlflow.data.context"
        }

    digests = {p.stem: json.loads(p.read_text())["fingerprint"][:36] for p in (mirrored / "fingerprints").glob("*")}
    found = runs(client)
    assert inputs(found[PRETRAIN]) == {("imagenet", "pre-training", digests["imagenet"])}
    assert inputs(found[SELECT]) == {("imagenet", "selection", digests["imagenet"])}
    assert inputs(found[f"small: {PRETRAIN}"]) == {(n, "evaluation", digests[n]) for n in ("cub", "clevr")}


def test_the_registered_encoder_is_the_exported_one_with_its_card_and_aliases(mirrored: Path, client: Any) -> None:
    export = mirrored / "export/dseq-jepa/vit-micro/seed0"
    version = client.get_model_version_by_alias(MODEL, "selected")
    source = Path(client.get_model_version_download_uri(MODEL, version.version).removeprefix("file://"))
    assert (source / "encoder.safetensors").read_bytes() == (export / "encoder.safetensors").read_bytes()
    card = json.loads((export / "encoder.json").read_text())
    assert version.tags["config_digest"] == card["provenance"]["config_digest"]
    assert card["provenance"]["checkpoint_sha256"] in version.description
    assert version.run_id == runs(client)[SELECT].info.run_id
    candidate = client.get_registered_model(MODEL).aliases.get("paper-candidate")
    dirty = card["provenance"]["code_version"].endswith("-dirty")
    assert candidate == (None if dirty else version.version)


def test_the_card_s_code_builds_the_encoder(client: Any, mirrored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(mirrored / "export/dseq-jepa/vit-micro/seed0")
    description = client.get_model_version_by_alias(MODEL, "selected").description
    code = re.search(r"```python\n(.*?)```", description, re.DOTALL)
    assert code
    exec("import timm, safetensors.torch\n" + code[1])


def test_descriptions_lead_up_and_down(client: Any) -> None:
    found = runs(client)
    experiment = client.get_experiment_by_name("demo")

    def note(name: str) -> str:
        return str(found[name].data.tags["mlflow.note.content"])

    def link(name: str) -> str:
        return f"[{name}](#/experiments/{experiment.experiment_id}/runs/{found[name].info.run_id})"

    for child in (SELECT, f"small: {PRETRAIN}", f"large: {PRETRAIN}"):
        assert link(child) in note(PRETRAIN)
        assert link(PRETRAIN) in note(child)
    assert link(PRETRAIN) in experiment.tags["mlflow.note.content"]
    top1 = found[f"small: {PRETRAIN}"].data.metrics["cub/top1"]
    assert f"cub/top1 {top1:.2f}" in experiment.tags["mlflow.note.content"]


def test_a_pre_training_has_the_curves_that_people_look_for(client: Any) -> None:
    wanted = {
        "loss", "loss_block_1", "loss_step_1", "learning_rate", "weight_decay", "ema_momentum", "curriculum_p",
        "target_effective_rank", "regions_per_image", "images_per_second", "data_wait",
        "system/cpu_utilization_percentage",
    }  # fmt: skip
    assert wanted <= runs(client)[PRETRAIN].data.metrics.keys()


def test_invocations_of_the_workflow_are_runs(client: Any) -> None:
    found = runs(client)
    failed, killed = found["workflow 20260102T100000"], found["workflow 20260101T100000"]
    assert (failed.info.status, killed.info.status) == ("FAILED", "KILLED")
    assert failed.data.tags["jobs_failed"] == "1"
    assert failed.data.metrics == {"seconds/pretrain": 12.5}
    note = failed.data.tags["mlflow.note.content"]
    assert "`snakemake table1`" in note
    assert "error: the reason" in note


def test_logs_figures_and_the_report_are_artefacts(client: Any) -> None:
    found = runs(client)

    def artefacts(name: str, folder: str | None = None) -> set[str]:
        return {entry.path for entry in client.list_artifacts(found[name].info.run_id, folder)}

    assert artefacts(PRETRAIN, "logs") == {"logs/seed0.log"}
    assert artefacts("tables and figures") == {"tables", "figures", "report.html"}
    assert artefacts("tables and figures", "figures") == {"figures/figure2.png", "figures/figure2.caption.md"}


def test_doing_it_again_changes_nothing(mirrored: Path, client: Any) -> None:
    before = {name: (run.data.tags, run.info.run_id) for name, run in runs(client).items()}
    for path in mirrored.glob("*/dseq-jepa/vit-micro/seed0/*.json"):
        os.utime(path)  # looks changed
    assert sync(mirrored, "demo").new_points == 0
    after = {name: (run.data.tags, run.info.run_id) for name, run in runs(client).items()}
    marks = ("dseq_jepa.mark", "dseq_jepa.files")
    assert {n: ({k: v for k, v in t.items() if k not in marks}, i) for n, (t, i) in after.items()} == {
        n: ({k: v for k, v in t.items() if k not in marks}, i) for n, (t, i) in before.items()
    }
    assert len(client.search_model_versions(f"name='{MODEL}'")) == 1
