"""Mistakes are told before or at submission, failures with their reason, rank and log.

pytest tests/slurm/test_errors.py
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dseq_jepa.jobs import PretrainJob
from tests.slurm.cluster import ROOT, Launched, pretraining, slurm

pytestmark = pytest.mark.usefixtures("state")


def test_an_exception_shows_the_end_of_its_traceback_and_the_log(tmp_path: Path) -> None:
    scores = tmp_path / "scores.json"
    scores.write_text("no json")
    launched = Launched(tmp_path / "out", ["select", "--scores", str(scores), "--out", str(tmp_path / "out")])
    status, said = launched.run()
    assert status == 1
    assert "Traceback (most recent call last)" in said
    assert "JSONDecodeError" in said.split("The end of ")[1]
    log = launched.claims.folder / "jobs" / "000001" / f"{launched.job()}_0_log.out"
    assert str(log) in said
    assert "JSONDecodeError" in log.read_text()


def test_unknown_partitions_and_too_many_gpus_are_refused_with_what_there_is(
    settings: PretrainJob, tmp_path: Path
) -> None:
    launched = pretraining(settings, tmp_path / "run")
    for options in (["--partition", "hihg"], ["--gpus", "9"], ["--constraint", "h200"]):
        status, said = launched.run(*options)
        assert status == 1, said
        assert "sbatch refused the job" in said
        assert options[1] in said
        assert "high infinite 4 gpu:8" in said
        assert "Traceback" not in said
    assert slurm("squeue", "-h", "-a") == ""


def test_a_limit_below_the_interval_of_states_is_refused(settings: PretrainJob, tmp_path: Path) -> None:
    recipe = settings.recipe.model_copy(update={"save_every_minutes": 10.0})
    launched = pretraining(settings.model_copy(update={"recipe": recipe}), tmp_path / "run")
    status, said = launched.run("--minutes", "10")
    assert status == 1
    assert "the time limit is not longer than the 10 minutes between saved states" in said
    status, said = launched.run("--minutes", "1", "--signal-seconds", "60")
    assert status == 1
    assert "--signal-seconds" in said


def test_a_misspelt_option_of_the_verb_waits_in_no_queue(tmp_path: Path) -> None:
    for words, expected in ((["select", "--scroes", "x"], "No such option: --scroes"), (["sleep"], "is no verb")):
        status, said = Launched(tmp_path / "out", words).run()
        assert status != 0
        assert expected in said
    assert slurm("squeue", "-h", "-a") == ""


def test_a_read_only_place_is_refused(settings: PretrainJob, tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(tmp_path)], check=True)
    try:
        status, said = pretraining(settings, tmp_path / "run").run()
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    assert status == 1
    assert "read-only" in said


def test_a_place_that_the_nodes_do_not_see_is_named(tmp_path: Path) -> None:
    """The launcher alone sees a file system of its own, as a login node sees its local disk."""
    hidden = tmp_path / "local"
    hidden.mkdir()
    words = ["export", "--selection", str(tmp_path / "selection.json"), "--out", str(hidden / "out")]
    command = [sys.executable, "-m", "dseq_jepa", "launch", "--", *words]
    script = f'mount -t tmpfs tmpfs {hidden} && exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", *command],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "file system that the compute nodes share" in done.stderr
    hidden_job = slurm("squeue", "-h", "-a", "-t", "RUNNING,PENDING")
    assert hidden_job == ""


def test_a_place_that_no_other_machine_can_see_is_refused_before_submission(tmp_path: Path) -> None:
    """The launcher's machine bears another name than the nodes', as a login node does."""
    hidden = tmp_path / "memory"
    hidden.mkdir()
    jobs = slurm("squeue", "-h", "-a", "-t", "all", "-o", "%A")
    words = ["export", "--selection", str(tmp_path / "selection.json"), "--out", str(hidden / "out")]
    command = [sys.executable, "-m", "dseq_jepa", "launch", "--", *words]
    script = f'hostname login && mount -t tmpfs tmpfs {hidden} && exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "--uts", "sh", "-c", script, "sh", *command],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert str(hidden) in done.stderr
    assert "of this machine alone (tmpfs)" in done.stderr
    assert slurm("squeue", "-h", "-a", "-t", "all", "-o", "%A") == jobs


def test_another_command_in_the_same_folder_is_refused(settings: PretrainJob, tmp_path: Path) -> None:
    launched = pretraining(settings, tmp_path / "run").start()
    launched.trained(1)
    recipe = settings.recipe.model_copy(update={"epochs": 1})
    other = pretraining(settings.model_copy(update={"recipe": recipe}), tmp_path / "run")
    status, said = other.run()
    assert status == 1
    assert "works here with another command" in said
    assert launched.kill(2)[0] == 130
