"""provenance.json says where numbers come from, in a checkout, in somebody else's repository and without git."""

import hashlib
import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dseq_jepa import __version__, provenance
from dseq_jepa.provenance import PACKAGE, Provenance, code_version, run_tags

PRINT = "from dseq_jepa.provenance import code_version; print(code_version())"


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    return subprocess.run(
        ["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def version_of(source: Path, **environment: str) -> str:
    answer = subprocess.run(
        [sys.executable, "-c", PRINT],
        env={"PYTHONPATH": str(source), "PATH": "/usr/bin:/bin", **environment},
        cwd="/",
        check=True,
        capture_output=True,
        text=True,
    )
    return answer.stdout.strip()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package in src/ of a folder of its own."""
    shutil.copytree(PACKAGE, tmp_path / "project" / "src" / "dseq_jepa", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "project" / ".gitignore").write_text("__pycache__/\n")
    return tmp_path / "project"


def test_a_checkout_is_its_commit_and_says_when_the_source_differs(copy: Path) -> None:
    git(copy, "init", "-q")
    git(copy, "add", ".")
    git(copy, "commit", "-qm", "x")
    commit = git(copy, "rev-parse", "HEAD")
    assert version_of(copy / "src") == commit
    (copy / "notes.txt").write_text("not code")
    assert version_of(copy / "src") == commit
    (copy / "src" / "dseq_jepa" / "new.py").write_text("")
    assert version_of(copy / "src") == commit + "-dirty"


def test_without_git_it_is_the_version_and_the_source(copy: Path) -> None:
    before = version_of(copy / "src")
    assert before.startswith(f"{__version__}+source.")
    assert version_of(copy / "src") == before
    (copy / "src" / "dseq_jepa" / "new.py").write_text("")
    assert version_of(copy / "src") != before


def test_without_the_git_program_it_is_the_source(copy: Path) -> None:
    git(copy, "init", "-q")
    assert version_of(copy / "src", PATH="/nowhere").startswith(f"{__version__}+source.")


def test_a_repository_around_an_installed_package_is_not_its_code(copy: Path, tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "somebody's project")
    assert version_of(copy / "src").startswith(f"{__version__}+source.")


def test_the_version_is_asked_for_once_and_quickly() -> None:
    code_version.cache_clear()
    start = time.perf_counter()
    first = code_version()
    assert time.perf_counter() - start < 0.5  # about 5 ms on an idle machine
    start = time.perf_counter()
    assert code_version() == first
    assert time.perf_counter() - start < 0.001


def test_the_record_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["dseq-jepa", "sync", "--uri", "https://me:secret@host"])
    job = {"model": {"seed": 0}, "compute": {"device": "cpu", "threads": 2}}
    started = Provenance.begin(json.dumps(job), "abc")
    time.sleep(0.02)
    path = started.finish(tmp_path / "out", data={"imagenet": "f00", "cub": None}, decoder="simplejpeg 1.9.0")
    record = json.loads(path.read_text())
    assert path == tmp_path / "out" / provenance.FILE
    assert set(record) == {
        "schema", "job", "config_digest", "code_version", "started", "finished", "seconds", "host", "device",
        "processor", "cores", "threads", "python", "platform", "libraries", "data", "decoder", "command",
        "code_diff", "inputs", "scheduler",
    }  # fmt: skip
    assert record["job"] == job
    assert (record["config_digest"], record["threads"], record["device"]) == ("abc", 2, "cpu")
    assert 0.02 <= record["seconds"] < 1
    assert record["started"] < record["finished"]
    assert record["data"] == {"imagenet": "f00", "cub": None}
    assert record["libraries"]["pydantic"].count(".") == 2
    assert record["command"] == ["dseq-jepa", "sync", "--uri", "https://***@host"]


def test_files_that_the_command_names_are_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = tmp_path / "encoder.safetensors"
    encoder.write_bytes(b"weights")
    settings = json.dumps({"model": "x" * 9000})
    monkeypatch.setattr(
        sys, "argv", ["dseq-jepa", "probe", "--settings", settings, "--encoder", str(encoder), "--out", str(tmp_path)]
    )
    record = json.loads(Provenance.begin("{}", "abc").finish(tmp_path, data={}, decoder="none").read_text())
    assert record["inputs"] == {str(encoder): hashlib.sha256(b"weights").hexdigest()}


def test_the_scheduler_and_the_workflow_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "DSEQ_WORKFLOW"):
        monkeypatch.delenv(name, raising=False)
    assert provenance.scheduler_tags() == {}
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("DSEQ_WORKFLOW", "20260101T100000-7")
    assert provenance.scheduler_tags() == {"slurm_job": "4711", "workflow": "20260101T100000-7"}


def test_uncommitted_changes_are_recorded_as_a_patch_that_makes_them_again(copy: Path, tmp_path: Path) -> None:
    git(copy, "init", "-q")
    git(copy, "add", ".")
    git(copy, "commit", "-qm", "x")
    assert diff_of(copy / "src") == "None"
    (copy / "src" / "dseq_jepa" / "draws.py").write_text("changed = 1\n")
    (copy / "src" / "dseq_jepa" / "new.py").write_text("new = 1\n")
    patch = diff_of(copy / "src")
    git(copy, "stash", "-uq")
    (tmp_path / "code.patch").write_text(patch)
    git(copy, "apply", str(tmp_path / "code.patch"))
    assert (copy / "src" / "dseq_jepa" / "draws.py").read_text() == "changed = 1\n"
    assert (copy / "src" / "dseq_jepa" / "new.py").read_text() == "new = 1\n"


def diff_of(source: Path) -> str:
    code = "import sys; from dseq_jepa.provenance import code_diff; sys.stdout.write(str(code_diff()))"
    environment = {"PYTHONPATH": str(source), "PATH": "/usr/bin:/bin"}
    return subprocess.run([sys.executable, "-c", code], env=environment, cwd="/", check=True, capture_output=True,
                          text=True).stdout  # fmt: skip


def test_importing_it_is_light() -> None:
    code = (
        "import sys, dseq_jepa.provenance as p; p.library_versions()\n"
        "sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'mlflow', 'pydantic')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_tags_name_the_run() -> None:
    from dseq_jepa.config import ComputeSettings
    from dseq_jepa.data.settings import LoadingSettings
    from dseq_jepa.jobs import Job, Model

    job = Job(
        model=Model(experiment="demo", method="dseq-jepa", architecture="tiny", seed=3),
        compute=ComputeSettings(device="cpu", threads=1),
        loading=LoadingSettings(workers=0),
    )
    tags = run_tags("pretrain", job)
    assert tags["step"] == "pretrain"
    assert (tags["method"], tags["architecture"], tags["seed"]) == ("dseq-jepa", "tiny", "3")
    assert (tags["host"], tags["device"]) == (socket.gethostname(), "cpu")
    assert (tags["config_digest"], tags["code_version"]) == (job.digest, code_version())
