"""Loading processes: requests answered in order, through a stop signal to the whole job.

    for batch in load(reader, lambda: iter(requests), workers=4): ...

Where Slurm's proctrack is linuxproc or pgid, a job's SIGTERM reaches every process of it. With torch's own handler a
loading process dies of it, and the DataLoader raises before its parent has finished its step and saved.
"""

import atexit
import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from dseq_jepa.data.decode import BadImage

Request = TypeVar("Request")
Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Failure:
    """A BadImage on its way out of a worker, where an exception would arrive wrapped in the worker's traceback."""

    message: str


class _Requests(Iterable[Request], Generic[Request]):
    """Requests as the DataLoader takes them: an iterable that it opens itself."""

    def __init__(self, make: Callable[[], Iterator[Request]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[Request]:
        return self._make()


def load(
    reader: "Dataset[Result | Failure]", requests: Callable[[], Iterator[Request]], workers: int
) -> Iterator[Result]:
    """Answer requests in order.

    Args:
        reader: answers one request; lives in the workers.
        requests: opens them.
        workers: processes; 0: this one.

    Raises:
        BadImage: the first Failure that the reader answers.

    """
    results: Iterable[Result | Failure]
    if workers == 0:
        results = map(reader.__getitem__, requests())
    else:
        results = DataLoader(
            reader,
            sampler=_Requests(requests),
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=workers,
            worker_init_fn=patient(),
            pin_memory=torch.cuda.is_initialized(),  # type: ignore[no-untyped-call]  # torch ships it untyped
            generator=torch.Generator(),  # or the DataLoader would take a number from the global one
        )
    for result in results:
        if isinstance(result, Failure):
            raise BadImage(result.message)
        yield result


def _unchanged(loaded: Result) -> Result:
    return loaded


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
