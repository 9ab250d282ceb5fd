"""The log of a job while it grows, and its end.

log = Tail(path, from_end=True)     # from the last lines on
log.copy()                          # what was added, to stdout
"""

import sys
from pathlib import Path

_LINES = 30


class Tail:
    """Copies a growing file to stdout."""

    def __init__(self, path: Path, *, from_end: bool) -> None:
        self.path, self.position = path, 0
        if from_end and path.exists():
            self.position = path.stat().st_size - len("\n".join([*last_lines(path), ""]).encode())

    def copy(self) -> None:
        """What was added since the last time."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(max(0, self.position))
            added = file.read()
        self.position = max(0, self.position) + len(added)
        if added:
            sys.stdout.buffer.write(added)
            sys.stdout.buffer.flush()


def last_lines(path: Path) -> list[str]:
    """The end of a log."""
    if not path.exists():
        return ["(no log was written)"]
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 65536))
        return file.read().decode(errors="replace").splitlines()[-_LINES:]
