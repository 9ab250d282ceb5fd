"""Loading processes that outlive a stop signal, so that the step under way can be finished and saved.

    DataLoader(..., worker_init_fn=patient())

Where Slurm's proctrack is linuxproc or pgid, and on a workstation, a job's SIGTERM reaches every process of it. With
torch's own handler a loading process dies of it, and the DataLoader raises before its parent has saved anything.
"""

import atexit
import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable
from functools import partial
from types import FrameType


def patient() -> Callable[[int], None]:
    """A `worker_init_fn` with which SIGTERM ends a loading process only while its parent exits.

    torch and multiprocessing end processes by SIGTERM then, and wait for them: ignoring it would hang the exit.
    """
    leaving = multiprocessing.RawValue(ctypes.c_byte, 0)
    atexit.register(setattr, leaving, "value", 1)
    return partial(_stay, leaving)


def _stay(leaving: ctypes.c_byte, worker: int) -> None:
    del worker

    def told(number: int, frame: FrameType | None) -> None:
        del number, frame
        if leaving.value:
            os._exit(0)

    signal.signal(signal.SIGTERM, told)
