"""What a finished training left, by the digest of all that it depends on: asked for again, it is shown, not computed.

    finished = Finished(out, resume.digest(job, encoder))
    write_metrics(finished.folder, ...)     # the last file says that the others are whole
    finished.show()                         # all of them appear in out; False where nothing is finished

A workflow that was killed deletes the results of a job that lived on, and asks for them again. The states that could
give them in minutes are gone by then; these files are small, and share their place on the disk with those in out.
"""

from dataclasses import dataclass
from pathlib import Path

from dseq_jepa.evaluation.report import METRICS
from dseq_jepa.files import show


@dataclass(frozen=True)
class Finished:
    """The artefacts of one digest."""

    out: Path
    digest: str

    @property
    def folder(self) -> Path:
        """Where they are written."""
        return self.out / "state" / f"finished-{self.digest}"

    def show(self) -> bool:
        """Put them in their place, if they are whole."""
        if not (self.folder / METRICS).exists():
            return False
        for path in sorted(self.folder.glob("[!.]*"), key=lambda path: path.name == METRICS):
            path.touch()  # the workflow takes a result that is older than its inputs for an old one
            show(path, self.out / path.name)
        return True
