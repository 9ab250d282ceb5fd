"""A small results folder made by the real verbs, in this process: the micro configuration from data to tables."""

import json
import os
import sys
from pathlib import Path
from unittest.mock import patch

from dseq_jepa.cli import app
from dseq_jepa.config import Experiment, load
from dseq_jepa.jobs import evaluate_job, pretrain_job, score_job
from tests.workflow.project import ROOT, replaced

REPORTED = ROOT / "configs" / "reported_values.csv"


def verb(*words: str | Path) -> None:
    """Run a verb as its command line would; provenance records the command line."""
    arguments = [str(word) for word in words]
    with patch.object(sys, "argv", ["dseq-jepa", *arguments]):
        app(arguments, standalone_mode=False)


def measure(folder: Path) -> Path:
    """Make results/micro below a folder, about 15 s: every artefact of two models and two tables.

    Args:
        folder: becomes the current folder while it runs; the results lie in it.

    Returns:
        results/micro, as a path relative to the folder.

    """
    before = Path.cwd()
    os.chdir(folder)
    try:
        config = (ROOT / "tests" / "workflow" / "micro.yaml").read_text()
        Path("micro.yaml").write_text(replaced(config, ("RESULTS", "results")))
        results = Path("results/micro")
        _run(results)
        return results
    finally:
        os.chdir(before)


def _run(results: Path) -> None:
    experiment = load("micro.yaml")
    fingerprints = {}
    for name in experiment.data:
        verb("data", "make-miniature", "--config", "micro.yaml", "--data", name)
        manifest = results / f"fingerprints/{name}.json"
        verb("data", "check", "--config", "micro.yaml", "--data", name, "--out", manifest)
        fingerprints[name] = json.loads(manifest.read_text())["fingerprint"]
    for method in experiment.methods:
        _model(experiment, method, results, fingerprints)
    for table in experiment.tables:
        verb("tables", "--config", "micro.yaml", "--table", table, "--reported", REPORTED)


def _model(experiment: Experiment, method: str, results: Path, fingerprints: dict[str, str]) -> None:
    """The jobs of one model with the settings that the workflow would give them."""
    names = (experiment, method, "vit-micro", 0)
    at = {step: results / step / method / "vit-micro" / "seed0" for step in ("pretrain", "score", "export")}
    imagenet = experiment.data["imagenet"].model_copy(update={"fingerprint": fingerprints["imagenet"]})
    settings = pretrain_job(*names).model_copy(update={"data": imagenet}).to_json()
    verb("pretrain", "--settings", settings, "--out", at["pretrain"])
    settings = score_job(*names).model_copy(update={"data": imagenet}).to_json()
    verb("score", "--settings", settings, "--out", at["score"], *sorted(at["pretrain"].glob("*.safetensors")))
    verb("select", "--scores", at["score"] / "scores.json", "--out", at["export"])
    verb("export", "--selection", at["export"] / "selection.json", "--out", at["export"])
    for group in experiment.groups:
        job = evaluate_job(experiment, group, *names[1:])
        data = {key: entry.model_copy(update={"fingerprint": fingerprints[key]}) for key, entry in job.data.items()}
        out = results / "evaluate" / group / method / "vit-micro" / "seed0"
        settings = job.model_copy(update={"data": data}).to_json()
        verb("probe", "--settings", settings, "--encoder", at["export"] / "encoder.safetensors", "--out", out)
