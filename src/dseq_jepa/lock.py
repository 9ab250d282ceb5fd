"""One process at a time: a lock that the kernel drops with the process, and a sentence for who waits too long.

    with locked(folder / ".mirror.lock", f"{folder}: another process is mirroring this folder to MLflow"):
        ...

On one machine, or on a file system that knows `flock`.
"""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dseq_jepa.errors import UserError
from dseq_jepa.files import write_error

_PATIENCE_SECONDS = 60.0


@contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """Hold a lock file, which is made and stays.

    Args:
        path: of the lock file.
        busy: what to say when another process holds it for a minute.

    Raises:
        UserError: when it does, or when the file cannot be written.
    """
    try:
        file = path.open("w")
    except OSError as error:
        raise write_error(path, error) from error
    with file:
        until = time.monotonic() + _PATIENCE_SECONDS
        while not _taken(file.fileno()):
            if time.monotonic() > until:
                raise UserError(f"{busy}; try again when it ends.")
            time.sleep(0.05)
        yield


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
