"""Why a job failed, in words: what its first failed rank left, or what the scheduler says where no rank left anything.

of_rank(End(rank=2, code=137, ...))     # "killed by SIGKILL; the kernel does that when memory runs out: ..."
of_job(State("OUT_OF_MEMORY", ...), log, began=False)       # "it ran out of memory: ask for more with --mem-mb, ..."
"""

import signal
from pathlib import Path

from dseq_jepa.cluster.records import End
from dseq_jepa.cluster.scheduler import State

LOST = {"TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE"}
"""Ends that are nobody's fault: the command is submitted again and goes on from its state."""
ENDED = ("CANCELLED", "OUT_OF_MEMORY")
"""Ends that no other start would change, though the job had saved its state and wanted to go on."""
_MORE_MEMORY = "ask for more with --mem-mb, or lower the batch"
_SAYING_ALL = {"CANCELLED": "it was cancelled", "OUT_OF_MEMORY": f"it ran out of memory: {_MORE_MEMORY}"}
"""States that leave no question about the folder or the environment."""


def of_rank(failure: End) -> str:
    """What a rank died of."""
    if failure.note:
        return failure.note
    number = failure.code - 128
    if number not in set(signal.Signals):
        return f"exit status {failure.code}"
    advice = f"; the kernel does that when memory runs out: {_MORE_MEMORY}" if number == signal.SIGKILL else ""
    return f"killed by {signal.Signals(number).name}{advice}"


def of_job(state: State, log: Path, *, began: bool) -> str:
    """What became of a job of which no rank recorded a failure."""
    what = _SAYING_ALL.get(state.name)
    if what is None and not began:
        return (
            f"it left nothing in {log.parent}, not even a log of its start. Is this folder on a file system that the "
            "compute nodes share, and does the environment exist there?"
        )
    return f"{what or 'it ended without a word of its own'}; its log: {log if log.exists() else 'none was written'}"
