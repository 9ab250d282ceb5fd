"""Slurm's real time limits: with its warning, and where nothing heeds one until the job is killed.

pytest tests/slurm/test_limits.py       # minutes: a limit is a whole number of them
"""

import os
from pathlib import Path

import pytest

from dseq_jepa.jobs import PretrainJob
from tests.slurm.cluster import Launched, pretraining
from tests.slurm.test_faults import assert_once

pytestmark = pytest.mark.usefixtures("state")

SLOW = """
import sys, importlib.abc
class Slow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "dseq_jepa.training.optimizer":
            import time, torch
            step = torch.optim.AdamW.step
            def slowly(self, *arguments, **named):
                time.sleep({seconds})
                return step(self, *arguments, **named)
            torch.optim.AdamW.step = slowly
        return None
sys.meta_path.insert(0, Slow())
"""
DEAF = """
import signal
install = signal.signal
for number in (signal.SIGUSR2, signal.SIGTERM):
    install(number, signal.SIG_IGN)
signal.signal = lambda number, handler: None if number in (signal.SIGUSR2, signal.SIGTERM) else install(number, handler)
"""


@pytest.mark.timeout(900)
def test_limits_that_run_out_cost_no_bit(
    settings: PretrainJob, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two slow runs at once: one is warned and goes on in the same job, one is killed and submitted again."""
    warned = slowed(settings, tmp_path / "warned", "2", "45", SLOW.format(seconds=1.5), monkeypatch)
    killed = slowed(settings, tmp_path / "killed", "1", "1", SLOW.format(seconds=1.0) + DEAF, monkeypatch)
    status, said = warned.end(600)
    assert status == 0, said
    assert "was put back into the queue" in said
    assert_once(warned, undisturbed, starts=len(warned.starts()))
    assert len(warned.starts()) >= 3, "two limits at least"
    status, said = killed.end(600)
    assert status == 0, said
    assert "TIMEOUT on n" in said
    assert "the same command is submitted again" in said
    jobs = len(killed.starts())
    assert jobs >= 2
    assert_once(killed, undisturbed, starts=jobs, jobs=jobs)


def slowed(
    settings: PretrainJob, folder: Path, minutes: str, warning: str, code: str, monkeypatch: pytest.MonkeyPatch
) -> Launched:
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")])))
    launched = pretraining(settings, folder / "run")
    launched.options = []
    launched.start("--minutes", minutes, "--signal-seconds", warning)
    monkeypatch.undo()
    return launched
