"""Show a running job in MLflow: its journal is mirrored every few seconds, beside the job and never in it.

    with LiveMirror(out, experiment="paper"):     # does nothing unless MLFLOW_TRACKING_URI names a server
        train()
    python -m dseq_jepa.live out paper            # what it starts; also by hand, for a job that runs without it

A process of its own and not a thread: importing MLflow takes 2 to 4 s of Python time that would hold up the training
loop, forking data loading workers while a thread holds a lock of MLflow's can hang them, and whatever the client does
when the server is down or frozen (its defaults block for minutes) happens elsewhere. The job pays one process start,
about 3 ms; the mirror reads the same file that `dseq-jepa sync` reads, so losing it loses nothing.
"""

import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from dseq_jepa.errors import UserError
from dseq_jepa.masking import masked
from dseq_jepa.sources import Source, source_of
from dseq_jepa.stores import answering, is_server
from dseq_jepa.tracking import Mirrored, Store, alone

PERIOD_SECONDS = 10.0
_IDLE_SHARE = 20.0  # a long journal is read less often: at most a twentieth of a core
PAUSE_SECONDS = 60.0  # after an error
_PATIENCE_SECONDS = 4.0  # of a job that ends


class LiveMirror:
    """Mirrors a job's journal to the tracking server while the block runs.

    Never raises, and never waits but at the end: a few seconds for the last points, then the rest is left to
    `dseq-jepa sync`.

    Args:
        folder: the job's folder, with its journal.
        experiment: name of the MLflow experiment.
    """

    def __init__(self, folder: Path, experiment: str) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        if not is_server(os.environ.get("MLFLOW_TRACKING_URI", "")):
            return
        command = [sys.executable, "-m", "dseq_jepa.live", str(folder), experiment, str(os.getpid())]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        try:
            # its own session: Ctrl-C is for the job, which then says goodbye in __exit__
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
            )
        except OSError as error:
            sys.stderr.write(f"tracking: no live mirror ({error}); run `dseq-jepa sync` later.\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def follow(folder: Path, experiment: str, parent: int) -> None:
    """Mirror a journal until SIGTERM comes or the process `parent` is gone, and once more then."""
    stop = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, end)
    os.nice(10)
    mirror = Mirror(folder, experiment)
    last = False
    while not last:
        last = stop.is_set() or os.getppid() != parent  # a killed job leaves its children to somebody else
        pause = mirror.once()
        until = time.monotonic() + pause
        while not last and time.monotonic() < until and os.getppid() == parent and not stop.wait(1.0):
            pass


class Mirror:
    """One journal's way to the server; errors are told once, until it works again."""

    def __init__(self, folder: Path, experiment: str) -> None:
        self._folder, self._experiment = folder, experiment
        self._uri = os.environ["MLFLOW_TRACKING_URI"]
        self._store: Store | None = None
        self._told = False
        importlib.import_module("mlflow")  # takes seconds, which are no part of a journal's price

    def once(self) -> float:
        """Mirror what is there; returns the seconds until the next time."""
        began = time.process_time()  # waiting for a slow server costs nobody a core
        try:
            source = source_of(self._folder)
            if source is not None:
                self._mirror(source)
        except UserError as error:
            self._store = None  # an unanswered request may have been carried out: ask what the store holds
            if not self._told:
                sys.stderr.write(f"tracking: {masked(str(error))}\n")
                self._told = True
            return PAUSE_SECONDS
        if self._told:
            sys.stderr.write("tracking: the live mirror works again.\n")
            self._told = False
        return max(PERIOD_SECONDS, _IDLE_SHARE * (time.process_time() - began))

    def _mirror(self, source: Source) -> Mirrored:
        with alone(self._folder), answering(self._uri):
            if self._store is None:
                self._store = Store(self._uri, self._experiment, self._folder)
            return self._store.mirror(source)


if __name__ == "__main__":
    follow(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else os.getppid())
