"""One run of the workflow, written down as it happens: results/<config>/workflow/<invocation>/journal.jsonl.

    invocation = Invocation(Path("results/demo"), "demo")     # the Snakefile's onstart; jobs see DSEQ_WORKFLOW
    invocation.end(failed=False)                              # onsuccess, onerror

It listens to what Snakemake logs: which jobs began, ended or failed, with the end of a failed job's own log. The mirror
makes a run of it, and every job of it carries its name as the tag `workflow`. A journal that cannot be written is said
once; the workflow goes on.
"""

import logging
import os
import socket
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dseq_jepa.errors import UserError
from dseq_jepa.journal import Journal
from dseq_jepa.masking import masked
from dseq_jepa.provenance import code_version

FOLDER = "workflow"
VARIABLE = "DSEQ_WORKFLOW"
_SNAKEMAKE = "snakemake.logging"  # its logger
_TAIL_LINES, _TAIL_BYTES = 30, 16_384


class Invocation(logging.Handler):
    """Follows Snakemake's logger until `end`.

    Args:
        results: results/<config>.
        experiment: name of the MLflow experiment.
    """

    def __init__(self, results: Path, experiment: str) -> None:
        super().__init__(logging.INFO)
        self.name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}"
        os.environ[VARIABLE] = self.name
        self._began: dict[int, tuple[str, float]] = {}
        self._done = 0
        self._journal: Journal | None = None
        try:
            self._journal = Journal(results / FOLDER / self.name / "journal.jsonl")
            self._journal.start({
                "step": FOLDER, "experiment": experiment, "workflow": self.name, "host": socket.gethostname(),
                "code_version": code_version(), "command": masked(" ".join(["snakemake", *sys.argv[1:]])),
            })  # fmt: skip
        except UserError as error:
            self._give_up(error)
        logging.getLogger(_SNAKEMAKE).addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Write down one of Snakemake's events; called by its logger."""
        if self._journal is None:
            return
        try:
            match str(getattr(record, "event", "")):
                case "job_info":
                    self._job_began(record)
                case "job_finished":
                    self._job_ended(getattr(record, "job_id", -1))
                case "job_error":
                    self._job_failed(record)
        except UserError as error:
            self._give_up(error)

    def end(self, failed: bool) -> None:
        """The workflow's last word."""
        logging.getLogger(_SNAKEMAKE).removeHandler(self)
        if self._journal is None:
            return
        try:
            self._journal.event("failed" if failed else "finished", jobs=self._done)
            self._journal.sync()
            self._journal.close()
        except UserError as error:
            self._give_up(error)

    def _job_began(self, record: logging.LogRecord) -> None:
        job: Any = record
        self._began[job.jobid] = (job.rule_name, time.monotonic())
        wildcards = {key: str(value) for key, value in dict(job.wildcards or {}).items()}
        self._write("job_began", job=job.jobid, rule=job.rule_name, wildcards=wildcards, reason=str(job.reason))

    def _job_ended(self, number: int) -> None:
        rule, began = self._began.pop(number, ("", time.monotonic()))
        seconds = round(time.monotonic() - began, 3)
        self._done += 1
        self._write("job_finished", job=number, rule=rule, seconds=seconds)
        if self._journal and rule:
            self._journal.metrics(self._done, {"jobs_finished": self._done, f"seconds/{rule}": seconds})

    def _job_failed(self, record: logging.LogRecord) -> None:
        job: Any = record
        rule, began = self._began.pop(job.jobid, (job.rule_name, time.monotonic()))
        tails = {str(path): _tail(Path(str(path))) for path in job.log}
        self._write("job_failed", job=job.jobid, rule=rule, seconds=round(time.monotonic() - began, 3), logs=tails)

    def _write(self, name: str, **fields: Any) -> None:
        if self._journal:
            self._journal.event(name, **fields)

    def _give_up(self, error: UserError) -> None:
        self._journal = None
        sys.stderr.write(f"workflow journal: {error} The workflow goes on without it.\n")


def _tail(path: Path) -> str:
    """The last lines of a log; what Snakemake adds to a path ("(check log file ...)") is not part of it."""
    place = Path(str(path).partition(" (")[0])
    try:
        with place.open("rb") as file:
            file.seek(max(0, place.stat().st_size - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError as error:
        return f"cannot be read: {(error.strerror or '').lower()}"
    return "\n".join(lines[-_TAIL_LINES:])
