"""Stop signals that reach the loading processes too.

pytest tests/data/test_workers.py
"""

import os
import signal
import subprocess
import sys

from torch.utils.data import DataLoader

from dseq_jepa.data.workers import patient

LEFT_BEHIND = """
import sys
from torch.utils.data import DataLoader
from dseq_jepa.data.workers import patient

kept = iter(DataLoader(range(1000), num_workers=2, worker_init_fn=patient()))
print(next(kept).item(), flush=True)
sys.kept = kept     # nothing closes it before the interpreter does
"""


def test_a_signal_to_all_processes_leaves_the_loading_ones_at_work() -> None:
    batches = iter(DataLoader(range(200), num_workers=2, worker_init_fn=patient()))
    found = [next(batches).item(), next(batches).item()]  # both are at work
    for worker in batches._workers:
        os.kill(worker.pid, signal.SIGTERM)
    found += [batch.item() for batch in batches]
    assert found == list(range(200))


def test_processes_that_nobody_closed_end_with_their_parent() -> None:
    done = subprocess.run([sys.executable, "-c", LEFT_BEHIND], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
