"""Every verb explains itself quickly; a mistake of the user is a sentence, a mistake of ours a traceback.

pytest tests/test_cli.py
"""

import fcntl
import json
import resource
import subprocess
import sys
from pathlib import Path

import click
import pytest
from typer.main import get_command

from dseq_jepa.cli import app
from dseq_jepa.config import load

MICRO = Path(__file__).parent / "workflow" / "micro.yaml"


def verbs(command: click.Command, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    children = getattr(command, "commands", {})
    return [verb for name, child in children.items() for verb in verbs(child, (*prefix, name))] or [prefix]


PAPER = Path(__file__).parents[1] / "configs" / "paper.yaml"
VERBS = verbs(get_command(app))


def run(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dseq_jepa", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "micro.yaml"
    path.write_text(MICRO.read_text().replace("RESULTS", str(tmp_path / "results")))
    return path


def test_the_verbs_are_those_of_the_design():
    names = {" ".join(verb) for verb in VERBS}
    assert names >= {"data make-miniature", "data check", "pretrain", "score", "select", "export", "import", "probe"}
    assert names >= {"tables", "sync", "dashboard"}


@pytest.mark.parametrize("verb", [(), ("data",), *VERBS], ids=" ".join)
def test_help_takes_less_than_a_second_and_shows_an_example(verb: tuple[str, ...]):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    shown = run(*verb, "--help", env={"COLUMNS": "400", "PATH": "/usr/bin"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Seconds of this process, not of the clock: the machine may be busy with something else.
    assert (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime) < 1
    assert shown.returncode == 0
    if verb in VERBS:
        assert f"Example: dseq-jepa {' '.join(verb)} " in shown.stdout


def test_help_imports_nothing_heavy():
    code = "import sys, dseq_jepa.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "timm", "mlflow", "pandas", "pydantic"} & set(loaded)


def test_a_users_mistake_is_its_sentence_and_exit_status_1(tmp_path: Path):
    failed = run("pretrain", "--config", str(tmp_path / "none.yaml"), "--out", str(tmp_path))
    assert failed.returncode == 1
    assert failed.stdout == ""
    assert failed.stderr.startswith(f"error: {tmp_path / 'none.yaml'}: cannot be read")
    assert "Traceback" not in failed.stderr


def test_our_mistake_is_a_traceback():
    failed = run("pretrain", "--settings", "{}", "--out", "out")
    assert failed.returncode == 1
    assert "Traceback" in failed.stderr


def test_a_misspelt_method_is_refused_before_anything_is_imported(config: Path, tmp_path: Path):
    failed = run("pretrain", "--config", str(config), "--method", "dseq-jeap", "--out", str(tmp_path / "out"))
    assert failed.stderr == "error: methods: 'dseq-jeap' is not defined; did you mean \"dseq-jepa\"?\n"
    assert not (tmp_path / "out").exists()


def test_check_reports_every_missing_data_set_and_where_to_get_it(config: Path):
    failed = run("data", "check", "--config", str(config))
    assert failed.returncode == 1
    for name in ("imagenet", "cub", "clevr"):
        assert f"data.{name} (" in failed.stderr
    assert failed.stderr.count("get it from: https://") == 3


def test_generated_data_passes_the_check_and_leaves_a_manifest(config: Path, tmp_path: Path):
    root = tmp_path / "results" / "micro" / "data" / "cub"
    run("data", "make-miniature", "--config", str(config), "--data", "cub", check=True)
    checked = run("data", "check", "--config", str(config), "--data", "cub", "--out", str(tmp_path / "cub.json"))
    assert checked.returncode == 0, checked.stderr
    manifest = json.loads((tmp_path / "cub.json").read_text())
    assert manifest["root"] == str(root)
    assert manifest["images"] == {"train": 40, "val": 20}


@pytest.mark.slow
def test_two_processes_never_work_in_one_folder(config: Path, tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    arguments = ["pretrain", "--config", str(config), "--out", str(out)]
    with (out / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        second = subprocess.Popen(
            [sys.executable, "-m", "dseq_jepa", *arguments], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert second.stderr is not None
        assert "another process works in this folder; waiting" in second.stderr.readline()
        assert second.poll() is None
    _, errors = second.communicate(timeout=60)
    assert "no such folder" in errors or "expected" in errors  # it went on, and found no data


@pytest.mark.slow
def test_every_kind_of_published_checkpoint_can_be_named():
    from dseq_jepa.models.imports import LAYOUTS

    shown = run("import", "--help", env={"COLUMNS": "400", "PATH": "/usr/bin"}).stdout
    *others, last = LAYOUTS
    assert f"{', '.join(others)} or {last}" in shown


@pytest.mark.parametrize("verb", sorted({e.kind for e in load(PAPER).evaluations.values()} - {"cost"}))
def test_every_evaluation_refuses_an_encoder_of_another_architecture(verb: str, tmp_path: Path):
    from tests.models.checkpoints import TINY

    card = {
        "schema": 1, "architecture": TINY.model_dump(mode="json"), "class_token": False,
        "timm": {"model": "x", "kwargs": {}}, "image_size": 32, "patch_size": 8, "checkpoint": "x", "epoch": 1.0,
        "score": 1.0, "provenance": {"architecture": "vit-l16"},
    }  # fmt: skip
    (tmp_path / "encoder.json").write_text(json.dumps(card))
    encoder, out = str(tmp_path / "encoder.safetensors"), str(tmp_path / "out")
    found = run(verb, "--config", str(PAPER), "--architecture", "vit-b16", "--encoder", encoder, "--out", out)
    assert found.returncode == 1
    assert "is an encoder of vit-l16, and its results would stand under vit-b16" in found.stderr
