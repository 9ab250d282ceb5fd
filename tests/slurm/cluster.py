"""A real Slurm on this machine, and `dseq-jepa launch` on it as a person would use it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from dseq_jepa.fence import Claims
from dseq_jepa.jobs import PretrainJob
from dseq_jepa.journal import read

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(os.environ.get("DSEQ_SLURM_SCRIPTS", ROOT.parent / "shared" / "slurm"))
BUSY_SECONDS = 120


def unavailable() -> str | None:
    """Why there can be no Slurm here."""
    if not (SCRIPTS / "start-slurm").exists():
        return f"slurm: no start-slurm in {SCRIPTS} (DSEQ_SLURM_SCRIPTS)"
    if os.getuid() != 0 or shutil.which("apt-get") is None:
        return "slurm: starting one takes root on Debian"
    return None


def start(state: Path, *options: str, **environment: str) -> None:
    """Start a Slurm, or what is missing of it."""
    command = [str(SCRIPTS / "start-slurm"), *options, str(state)]
    done = subprocess.run(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    assert done.returncode == 0, done.stdout.decode()


def stop(state: Path) -> None:
    """End it."""
    subprocess.run([str(SCRIPTS / "stop-slurm"), "--remove", str(state)], check=True, capture_output=True)


def slurm(*command: str) -> str:
    """Ask Slurm."""
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def until(condition: Callable[[], object], what: str, seconds: float = BUSY_SECONDS) -> object:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"waited {seconds} s for: {what}"
        time.sleep(0.05)
    return found


@dataclass
class Launched:
    """A `dseq-jepa launch` that was started, with what it says."""

    out: Path
    words: list[str]
    options: list[str] = field(default_factory=list)
    process: subprocess.Popen[str] | None = None

    def start(self, *options: str, before: tuple[str, ...] = ()) -> "Launched":
        """Start it (again)."""
        command = [*before, sys.executable, "-m", "dseq_jepa", "launch", "--signal-seconds", "30", *self.options]
        self.process = subprocess.Popen(
            [*command, *options, "--", *self.words],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        return self

    def end(self, seconds: float = 240) -> tuple[int, str]:
        """Its exit status and all that it said."""
        said, _ = self.process.communicate(timeout=seconds)
        return self.process.returncode, said

    def run(self, *options: str) -> tuple[int, str]:
        """From start to end."""
        return self.start(*options).end()

    @property
    def claims(self) -> Claims:
        return Claims.beside(self.out)

    def job(self) -> str:
        """The id of the newest job, once it is submitted."""
        return until(lambda: self._job(), "a submitted job")

    def _job(self) -> str | None:
        files = sorted(self.claims.folder.glob("job-*"))
        return files[-1].read_text() if files else None

    def starts(self) -> list[dict[str, object]]:
        """The claims of all starts of all jobs."""
        return [dict(claim.content) for claim in self.claims.all() if claim.content["kind"] == "start"]

    def trained(self, steps: int) -> None:
        """Wait until the journal shows this many steps."""

        def seen() -> bool:
            assert self.process.poll() is None, self.process.communicate()[0]
            return self.steps() >= steps

        until(seen, f"{steps} steps")

    def steps(self) -> int:
        """The last step of the journal."""
        path = self.out / "journal.jsonl"
        lines = [line for line in read(path) if line["kind"] == "metrics"] if path.exists() else []
        return lines[-1]["step"] if lines else 0

    def processes(self) -> list[int]:
        """Processes that work in its folder."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().split(b"\0")
            except OSError:
                continue
            pid = int(path.parts[2])
            if str(self.out).encode() in words and pid != os.getpid() and b"launch" not in words:
                found.append(pid)
        return found

    def kill(self, number: int = signal.SIGKILL) -> tuple[int, str]:
        """Signal the launcher alone."""
        self.process.send_signal(number)
        return self.end()


def pretraining(job: PretrainJob, out: Path, *options: str) -> Launched:
    """A launch of a pre-training that is not started yet."""
    words = ["pretrain", "--settings", job.to_json(), "--out", str(out)]
    return Launched(out, words, ["--minutes", "20", *options])


def events(out: Path, name: str) -> list[dict[str, object]]:
    """The journal's events of a name."""
    return [line for line in read(out / "journal.jsonl") if line.get("name") == name]


def summary(out: Path) -> dict[str, object]:
    """run.json."""
    return json.loads((out / "run.json").read_text())
