"""How a verb that works for long runs: alone in its folder, on all its ranks, mirrored while it runs."""

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from dseq_jepa.jobs import Job


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Wait until no other process works in a folder.

    A job outlives a workflow that is killed; the next workflow's job then waits for it and finds its work done. The
    kernel drops the lock with the process. Ranks other than the first write nothing and need no lock. A process that
    `dseq-jepa launch` superseded may hang for ever, and its fence lets it write nothing: it is not waited for.
    """
    from dseq_jepa.fence import VARIABLE, Fence

    if os.environ.get("RANK", "0") != "0":
        yield
        return
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            if Fence.from_environment().outranks(file.read()):
                yield
                return
            typer.echo(f"{out}: another process works in this folder; waiting for it to end.", err=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(os.environ.get(VARIABLE, ""))
        file.flush()
        yield


def shown_live(job: "Job", out: Path) -> AbstractContextManager[object]:
    """Mirror the journal while the job runs, where MLFLOW_TRACKING_URI names a server."""
    from dseq_jepa.live import LiveMirror

    if os.environ.get("RANK", "0") != "0":
        return nullcontext()
    return LiveMirror(out, os.environ.get("MLFLOW_EXPERIMENT_NAME", job.model.experiment))


def spread(job: "Job") -> None:
    """Start the configured number of processes, each with this same command, unless this is one of them already."""
    if job.compute.ranks > 1 and "RANK" not in os.environ:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(job.compute.ranks)]
        os.execv(sys.executable, [sys.executable, *launcher, "-m", "dseq_jepa", *sys.argv[1:]])  # noqa: S606
