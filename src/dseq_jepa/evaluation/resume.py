"""What a group of evaluations has finished, kept under out/state until the same job ends: a kill costs minutes.

    kept = Kept(out / "state", digest, fence)
    kept.outcome("cub")        # None, or what an earlier process measured
    kept.epochs("cub")         # None, or the heads after the last saved epoch

The folder's name is the digest of everything that results depend on, so nothing stale is ever read. Safe to delete.
"""

import functools
import hashlib
import io
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from dseq_jepa.fence import Fence
from dseq_jepa.files import file_sha256, write_atomically
from dseq_jepa.jobs import EvaluateJob, canonical
from dseq_jepa.provenance import PACKAGE


@dataclass(frozen=True)
class Outcome:
    """One finished evaluation."""

    result: dict[str, Any]
    """Its entry in metrics.json."""
    records: str
    """Its lines of records.csv, without heading."""
    journal: int
    """Position of the journal after it."""


def digest(job: EvaluateJob[Any], encoder: Path) -> str:
    """Identity of what is measured: settings, weights, card and source code, uncommitted changes included."""
    files = (file_sha256(path) for path in (encoder, encoder.with_suffix(".json")))
    return hashlib.sha256(canonical([job.digest, *files, _source()]).encode()).hexdigest()[:16]


@functools.cache
def _source() -> str:
    return canonical({str(path.relative_to(PACKAGE)): file_sha256(path) for path in sorted(PACKAGE.rglob("*.py"))})


class Kept:
    """Results and states of one digest; those of other digests are dropped. A superseded process writes none."""

    def __init__(self, root: Path, digest: str, fence: Fence) -> None:
        self.folder, self._fence = root / digest, fence
        self._others = [path for path in root.glob("*") if path != self.folder] if root.exists() else []

    def drop_others(self) -> None:
        """Delete what another digest left. One rank does this."""
        self._fence.check()
        for path in self._others:
            shutil.rmtree(path)

    def outcome(self, evaluation: str) -> Outcome | None:
        """What was measured, if it was."""
        path = self.folder / f"{evaluation}.json"
        return Outcome(**json.loads(path.read_text())) if path.exists() else None

    def keep(self, evaluation: str, outcome: Outcome) -> None:
        """Store a finished evaluation and forget its epochs."""
        self._fence.check()
        write_atomically(self.folder / f"{evaluation}.json", json.dumps(asdict(outcome)))
        (self.folder / f"{evaluation}.pt").unlink(missing_ok=True)

    def epochs(self, evaluation: str) -> dict[str, Any] | None:
        """The last saved state of an evaluation that was being trained."""
        path = self.folder / f"{evaluation}.pt"
        return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None

    def save_epochs(self, evaluation: str, state: dict[str, Any]) -> None:
        """Replace it."""
        buffer = io.BytesIO()  # torch hides the cause of a failed write to a file
        torch.save(state, buffer)
        self._fence.check()
        write_atomically(self.folder / f"{evaluation}.pt", buffer.getvalue())
