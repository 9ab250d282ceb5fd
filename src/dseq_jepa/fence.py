"""Who may write to a job's folder: numbered claims, of which the highest holds.

    claims = Claims.beside(out)                      # results/.../.launch/seed0 for results/.../seed0
    token = claims.take({"kind": "submission", ...}) # None: somebody else was faster
    Fence(claims.folder, token).check()              # raises once a higher claim exists

A claim is a file that is linked into place, which fails where its number is taken: atomic on every file system, network
ones too, without locks that die with a machine. The number is the fencing token: a process that was thought dead and
wakes up finds a higher number and stops before it writes. `dseq-jepa launch` takes claims; the jobs that it starts find
theirs in $DSEQ_CLAIM. Without that, nothing is fenced: the kernel's lock on the folder is enough on one machine.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from dseq_jepa.errors import UserError
from dseq_jepa.files import write_error

VARIABLE = "DSEQ_CLAIM"
_NAME = re.compile(r"claim-(\d{6})\.json")


@dataclass(frozen=True)
class Claim:
    """One entry of the chain."""

    token: int
    """Its number, from 1 on."""
    content: Mapping[str, Any]
    """Who took it."""


class Claims:
    """The chain of claims of one folder of artefacts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def beside(cls, place: Path) -> Self:
        """The claims of a folder or file that a job writes; they lie beside it, so that deleting it keeps them."""
        place = Path(os.path.abspath(place))
        return cls(place.parent / ".launch" / place.name)

    def current(self) -> Claim | None:
        """The claim that holds; None where none was ever taken."""
        token = max(self._tokens(), default=0)
        return Claim(token, self.read(token)) if token else None

    def read(self, token: int) -> dict[str, Any]:
        """What the holder of a claim wrote."""
        content: dict[str, Any] = json.loads(self._path(token).read_text())
        return content

    def all(self) -> list[Claim]:
        """The whole chain, oldest first."""
        return [Claim(token, self.read(token)) for token in sorted(self._tokens())]

    def take(self, content: Mapping[str, Any], after: int) -> int | None:
        """Take the claim after number `after`; its token, or None when somebody else has it already.

        Raises:
            UserError: when the folder cannot be written.

        """
        token = after + 1
        temporary = self.folder / f".claim-{os.uname().nodename}-{os.getpid()}.tmp"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with temporary.open("w") as file:
                file.write(json.dumps(dict(content)))
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(temporary, self._path(token))
            except FileExistsError:
                return None
            finally:
                temporary.unlink()
        except OSError as error:
            raise write_error(self._path(token), error) from error
        return token

    def _tokens(self) -> list[int]:
        if not self.folder.is_dir():
            return []
        return [int(found[1]) for name in os.listdir(self.folder) if (found := _NAME.fullmatch(name))]

    def _path(self, token: int) -> Path:
        return self.folder / f"claim-{token:06d}.json"


@dataclass(frozen=True)
class Fence:
    """This process's right to write; a folder of None never ends it."""

    folder: Path | None = None
    token: int = 0

    @classmethod
    def from_environment(cls) -> Self:
        """What $DSEQ_CLAIM says, FOLDER:TOKEN; no fence without it."""
        text = os.environ.get(VARIABLE, "")
        folder, _, token = text.rpartition(":")
        return cls(Path(folder), int(token)) if text else cls()

    def environment(self) -> dict[str, str]:
        """For the processes that share the right."""
        return {VARIABLE: f"{self.folder}:{self.token}"}

    def outranks(self, other: str) -> bool:
        """Whether another process's right, as its `environment` has it, ended when this one began."""
        folder, _, token = other.rpartition(":")
        return bool(folder) and folder == str(self.folder) and int(token) < self.token

    @property
    def holds(self) -> bool:
        """Whether this process may write."""
        if self.folder is None:
            return True
        current = Claims(self.folder).current()
        return current is not None and current.token == self.token

    def check(self) -> None:
        """Ask for the right to write.

        Raises:
            UserError: when a higher claim was taken, or the claims were deleted.

        """
        if not self.holds and self.folder is not None:
            current = Claims(self.folder).current()
            owner = "nobody" if current is None else json.dumps(dict(current.content))
            raise UserError(
                f"{self.folder}: claim {self.token} of this process has ended, the folder belongs to {owner} now; "
                "nothing more is written by this process."
            )
