"""GPUs of one machine that several jobs share: each takes free ones and nobody else gets them until it ends.

    with slots(2, [0, 1, 2, 3], lambda: True) as gpus:      # [2, 3] while another job has 0 and 1
        ...

A slot is a lock on a file, dropped by the kernel with the last process that inherited it. All or none are taken, so
that two jobs never wait for one another.
"""

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dseq_jepa.errors import UserError


def visible_gpus() -> list[int]:
    """Numbers of the GPUs that this process may use."""
    text = os.environ.get("CUDA_VISIBLE_DEVICES")
    if text is not None:
        return [int(word) for word in text.split(",") if word.strip().isdigit()]
    return sorted(int(path.name[6:]) for path in Path("/dev").glob("nvidia[0-9]*"))


@contextmanager
def slots(count: int, visible: Sequence[int], go_on: Callable[[], bool]) -> Iterator[list[int] | None]:
    """Hold `count` of the visible GPUs, waiting for them as long as `go_on()`; None when 0 are asked for.

    Raises:
        UserError: when there are fewer on this machine.

    """
    if count == 0:
        yield None
        return
    if len(visible) < count:
        raise UserError(f"--gpus {count}: this machine has {len(visible)}; ask for fewer, or for another machine")
    folder = Path(tempfile.gettempdir()) / f"dseq-jepa-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    taken = _take(folder, visible, count)
    while not taken and go_on():
        time.sleep(0.5)
        taken = _take(folder, visible, count)
    try:
        yield sorted(taken)
    finally:
        for descriptor in taken.values():
            os.close(descriptor)


def _take(folder: Path, gpus: Sequence[int], count: int) -> dict[int, int]:
    """Locks of `count` free GPUs by number; empty when there are not that many."""
    taken: dict[int, int] = {}
    with (folder / "all").open("w") as everybody:
        fcntl.flock(everybody, fcntl.LOCK_EX)
        for gpu in gpus:
            if len(taken) == count:
                break
            descriptor = os.open(folder / str(gpu), os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                continue
            os.set_inheritable(descriptor, True)
            taken[gpu] = descriptor
    if len(taken) == count:
        return taken
    for descriptor in taken.values():
        os.close(descriptor)
    return {}
