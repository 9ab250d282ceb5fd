"""Where a job's numbers come from: code, configuration, data, machine and how long it took.

    provenance = Provenance.begin(job.to_json(), job.digest)
    ...
    provenance.finish(out, data={"imagenet": fingerprint}, decoder="simplejpeg 1.9")    # writes out/provenance.json
    python -c 'from dseq_jepa.provenance import code_version; print(code_version())'

Versions are read from package metadata and git, so nothing heavy is imported.
"""

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from dseq_jepa import __version__
from dseq_jepa.files import file_sha256, write_atomically
from dseq_jepa.masking import masked_values

if TYPE_CHECKING:
    from dseq_jepa.jobs import Job

FILE = "provenance.json"
PACKAGE = Path(__file__).resolve().parent
_SCHEDULER = {"slurm_job": "SLURM_JOB_ID", "slurm_array_job": "SLURM_ARRAY_JOB_ID", "workflow": "DSEQ_WORKFLOW"}
_LIBRARIES = (
    "torch", "torchvision", "timm", "numpy", "scipy", "scikit-image", "pillow", "simplejpeg", "safetensors", "pydantic",
    "pandas", "mlflow", "snakemake", "transformers", "faster-coco-eval", "detectron2",
)  # fmt: skip


class Provenance:
    """Started with a job, written when it ends."""

    def __init__(self, job: Mapping[str, Any], digest: str) -> None:
        self._job, self._digest = job, digest
        self._diff = code_diff()
        self._began, self._clock = time.time(), time.perf_counter()

    @classmethod
    def begin(cls, job: str, digest: str) -> Self:
        """Note the time.

        Args:
            job: the resolved job as JSON (Job.to_json).
            digest: its identity (Job.digest).
        """
        return cls(json.loads(job), digest)

    def finish(self, out: Path, *, data: Mapping[str, str | None], decoder: str) -> Path:
        """Write out/provenance.json and return its path.

        Args:
            out: the job's folder.
            data: fingerprint of every data set that was read; null where none was taken.
            decoder: what decoded the pictures, with its version.

        Raises:
            UserError: when the file cannot be written.
        """
        record = {
            "schema": 1,
            "job": self._job,
            "config_digest": self._digest,
            "code_version": code_version(),
            "code_diff": self._diff,
            "started": _utc(self._began),
            "finished": _utc(time.time()),
            "seconds": round(time.perf_counter() - self._clock, 3),
            "host": socket.gethostname(),
            "device": _device(self._job.get("compute", {}).get("device", "cpu")),
            "processor": _processor(),
            "cores": _cores(),
            "threads": self._job.get("compute", {}).get("threads"),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "libraries": library_versions(),
            "data": dict(data),
            "decoder": decoder,
            "command": sys.argv,
            "inputs": _inputs(sys.argv[1:]),
            "scheduler": scheduler_tags(),
        }
        write_atomically(out / FILE, json.dumps(masked_values(record), indent=1) + "\n")
        return out / FILE


def run_tags(step: str, job: "Job") -> dict[str, str]:
    """Who a run is, for the first line of its journal: the tags that MLflow shows and searches."""
    from dseq_jepa.jobs import EvaluateJob

    model = job.model
    group = {"group": job.group} if isinstance(job, EvaluateJob) else {}
    return group | {
        "step": step,
        "experiment": model.experiment,
        "method": model.method,
        "architecture": model.architecture,
        "seed": str(model.seed),
        "config_digest": job.digest,
        "code_version": code_version(),
        "host": socket.gethostname(),
        "device": _device(job.compute.device),
        **scheduler_tags(),
    }


def scheduler_tags() -> dict[str, str]:
    """The Slurm job, with its array's where there is one, and the workflow's invocation that asked for this job."""
    return {name: os.environ[variable] for name, variable in _SCHEDULER.items() if os.environ.get(variable)}


def _inputs(arguments: list[str]) -> dict[str, str]:
    """SHA-256 of every file that the command line names: weights, checkpoints, selections."""
    files = (word for word in arguments if os.path.isfile(word))  # false for settings longer than a name
    return {str(Path(file)): file_sha256(Path(file)) for file in files}


@functools.cache
def code_version() -> str:
    """The commit of this checkout, with "-dirty" when the package's source differs from it.

    Outside a checkout, or where git cannot answer: the package's version and a hash of its source, such as
    "0.1.0+source.8c1f62ab03d4". Asked once per process, about 5 ms.
    """
    return _commit(PACKAGE) or f"{__version__}+source.{_source_hash(PACKAGE)}"


def _commit(package: Path) -> str | None:
    """Commit of the checkout whose src/ holds the package; a package installed inside some other repository's folder
    is not that repository's code.
    """
    if not (package.parents[1] / ".git").exists():
        return None
    command = ["git", "-C", str(package), "status", "--porcelain=v2", "--branch", "--", "."]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=10, env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = answer.stdout.splitlines()
    commit = next((line.split()[-1] for line in lines if line.startswith("# branch.oid ")), "(initial)")
    if answer.returncode or commit == "(initial)":
        return None
    return commit + ("-dirty" if any(not line.startswith("#") for line in lines) else "")


@functools.cache
def code_diff() -> str | None:
    """What the package's source differs by from the commit of `code_version`, as a patch; null when it does not.

    Asked for when a job begins: the files may change while it runs, what it imported does not.
    """
    version = code_version()
    if not version.endswith("-dirty"):
        return None
    git, package = ["git", "-C", str(PACKAGE.parents[1])], f"src/{PACKAGE.name}"
    answer = _output([*git, "diff", "HEAD", "--", package])
    for path in _output([*git, "ls-files", "--others", "--exclude-standard", "--", package]).splitlines():
        answer += _output([*git, "diff", "--no-index", "--", "/dev/null", path])
    return answer


def _output(command: list[str]) -> str:
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    return subprocess.run(command, capture_output=True, timeout=60, env=environment, check=False).stdout.decode(
        errors="replace"
    )


def _source_hash(package: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def library_versions() -> dict[str, str]:
    """Installed versions of the libraries that numbers depend on, without importing them."""
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _device(kind: str) -> str:
    """The device's kind, and the GPU's name; a job on a GPU has imported torch by now."""
    torch = sys.modules.get("torch")
    if kind != "cuda" or torch is None or not torch.cuda.is_available():
        return kind
    return f"cuda: {torch.cuda.get_device_name()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _cores() -> int:
    """Cores that this process may use; a scheduler may grant fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
