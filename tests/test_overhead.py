"""A job's fixed overhead: what it costs to start, to write its artefacts and to end, whatever the work between.

pytest tests/test_overhead.py
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workflow.project import replaced

SECONDS = 5.0
"""Of CPU, user and system, for the whole of a job that has next to nothing to do. A busy machine takes longer, but it
needs little more of these; the better of two runs, because the first may have to compile what it imports."""
LEAST = (
    ("epochs: 2\n    batch_size: 16", "epochs: 1\n    batch_size: 96"),  # all pictures: one step
    ("keep_percent: [50, 100]", "keep_percent: [100]"),
    ("epochs: [2]", "epochs: [1]"),
)
ENCODER = "results/micro/export/dseq-jepa/vit-micro/seed0/encoder.safetensors"


@pytest.mark.parametrize(
    "words", [["pretrain"], ["probe", "--group", "large", "--encoder", ENCODER]], ids=lambda words: words[0]
)
def test_a_job_that_does_next_to_nothing_needs_less_than_five_seconds(
    words: list[str], micro: Path, tmp_path: Path
) -> None:
    config = tmp_path / "least.yaml"
    config.write_text(replaced((micro / "micro.yaml").read_text(), *LEAST))
    common = ["--config", str(config), "--method", "dseq-jepa"]
    spent = [cpu_seconds([*words, *common, "--out", str(tmp_path / out)], micro) for out in ("first", "second")]
    assert min(spent) < SECONDS


def cpu_seconds(words: list[str], folder: Path) -> float:
    """Of a process that runs a verb, and of the processes that it waited for."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    job = subprocess.Popen([sys.executable, "-m", "dseq_jepa", *words], cwd=folder, env=environment)
    _, status, usage = os.wait4(job.pid, 0)
    job.returncode = os.waitstatus_to_exitcode(status)
    assert job.returncode == 0
    return usage.ru_utime + usage.ru_stime
