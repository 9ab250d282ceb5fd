"""Several processes and nodes: the same numbers as torchrun gives, and one that dies takes all others with it.

pytest tests/slurm/test_ranks.py
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dseq_jepa.jobs import PretrainJob
from dseq_jepa.training.loop import checkpoint_name
from tests.slurm.cluster import ROOT, pretraining, slurm, summary, until
from tests.training.test_loop import assert_same_run

pytestmark = pytest.mark.usefixtures("state")
FOUR = ["--nodes", "2", "--tasks", "2"]


@pytest.fixture(scope="module")
def on_four(settings: PretrainJob, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run on four ranks that every disturbed one must equal, from torchrun."""
    out = tmp_path_factory.mktemp("torchrun")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"]
    words = ["-m", "dseq_jepa", "pretrain", "--settings", settings.to_json(), "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, *words], cwd=ROOT, env=environment, check=True, capture_output=True)
    return out


def test_two_nodes_with_two_ranks_give_the_bits_of_torchrun_also_after_a_requeue(
    settings: PretrainJob, on_four: Path, tmp_path: Path
) -> None:
    launched = pretraining(settings, tmp_path / "run", *FOUR).start()
    launched.trained(8)
    assert slurm("squeue", "-h", "-j", launched.job(), "-o", "%D %C") == "2 4"
    slurm("scancel", "--signal=USR2", launched.job())
    status, said = launched.end()
    assert status == 0, said
    assert len(launched.starts()) == 2
    assert summary(launched.out)["ranks"] == 4
    assert_same_run(launched.out, on_four)
    until(lambda: not launched.processes(), "all processes of the job to be gone", 20)


def test_a_rank_that_is_killed_brings_all_down_in_seconds_and_is_named(
    settings: PretrainJob, on_four: Path, tmp_path: Path
) -> None:
    launched = pretraining(settings, tmp_path / "run", *FOUR).start()
    launched.trained(4)
    victim = next(pid for pid in launched.processes() if rank_of(pid) == 3 and is_verb(pid))
    os.kill(victim, signal.SIGKILL)
    began = time.monotonic()
    status, said = launched.end()
    assert time.monotonic() - began < 30
    assert status == 128 + signal.SIGKILL
    assert "failed: rank 3 on" in said
    assert "the kernel does that when memory runs out" in said
    until(lambda: not launched.processes(), "all ranks to be gone", 20)
    status, said = launched.run()
    assert status == 0, said
    assert_same_run(launched.out, on_four)


def test_the_rank_that_failed_first_is_shown_with_its_traceback(settings: PretrainJob, tmp_path: Path) -> None:
    """Rank 2 alone cannot read the saved state; the others fail because it is gone."""
    launched = pretraining(settings, tmp_path / "run", *FOUR).start()
    launched.trained(4)
    launched.kill(signal.SIGINT)
    state = next((launched.out / "state").glob("*/"))
    (tmp_path / "sitecustomize.py").write_text(FAILING)
    environment = {"PYTHONPATH": str(tmp_path)}
    os.environ |= environment
    try:
        status, said = launched.run()
    finally:
        del os.environ["PYTHONPATH"]
    assert status == 1, said
    assert "failed: rank 2 on" in said
    shown = said.split("failed: rank 2")[1]
    assert "ZeroDivisionError: only rank 2" in shown
    assert state.exists()


FAILING = """
import os
if os.environ.get("RANK") == "2":
    import sys, importlib.abc
    class Break(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):
            if name == "dseq_jepa.training.loop":
                from dseq_jepa.training.checkpoint import StateStore
                def load(self, path):
                    raise ZeroDivisionError("only rank 2")
                StateStore.load = load
            return None
    sys.meta_path.insert(0, Break())
"""


def rank_of(pid: int) -> int:
    """The rank that a process was given."""
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next((int(entry[5:]) for entry in variables if entry.startswith(b"RANK=")), -1)


def is_verb(pid: int) -> bool:
    return b"pretrain" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")


def test_a_whole_pretraining_on_another_number_of_ranks_stays_close(
    settings: PretrainJob, undisturbed: Path, tmp_path: Path
) -> None:
    """Stopped on four ranks and resumed on two, against one: sums in another order, so the last bits differ."""
    launched = pretraining(settings, tmp_path / "run", *FOUR).start()
    launched.trained(20)
    launched.kill(signal.SIGINT)
    launched.options = [*launched.options[:2], "--tasks", "2"]
    status, said = launched.run()
    assert status == 0, said
    ours, theirs = (load_file(folder / checkpoint_name(100)) for folder in (launched.out, undisturbed))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0.05, atol=2e-2, msg=name)
