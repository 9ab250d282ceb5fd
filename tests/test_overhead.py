"""A job's fixed overhead: what it costs to start, to write its artefacts and to end, whatever the work between.

pytest tests/test_overhead.py
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workflow.project import replaced

MOST = 1.7
"""Of CPU, user and system, for the whole of a job that has next to nothing to do, relative to importing what it
computes with: 1.1 to 1.4 were measured. The best of three runs each: the first may have to compile what it imports."""
LIBRARIES = "import torch, timm"
LEAST = (
    ("epochs: 2\n    batch_size: 16", "epochs: 1\n    batch_size: 96"),  # all pictures: one step
    ("keep_percent: [50, 100]", "keep_percent: [100]"),
    ("epochs: [2]", "epochs: [1]"),
)
ENCODER = "results/micro/export/dseq-jepa/vit-micro/seed0/encoder.safetensors"


@pytest.mark.parametrize(
    "words", [["pretrain"], ["probe", "--group", "large", "--encoder", ENCODER]], ids=lambda words: words[0]
)
def test_a_job_that_does_next_to_nothing_needs_little_more_than_its_libraries(
    words: list[str], micro: Path, tmp_path: Path
) -> None:
    config = tmp_path / "least.yaml"
    config.write_text(replaced((micro / "micro.yaml").read_text(), *LEAST))
    job = ["-m", "dseq_jepa", *words, "--config", str(config), "--method", "dseq-jepa", "--out"]
    both = [
        (cpu_seconds([*job, str(tmp_path / out)], micro), cpu_seconds(["-c", LIBRARIES], micro))
        for out in ("first", "second", "third")
    ]
    spent, imported = (min(seconds) for seconds in zip(*both, strict=True))
    assert spent < MOST * imported, f"{both}: seconds of the job, and of {LIBRARIES!r}"


def cpu_seconds(words: list[str], folder: Path) -> float:
    """Of a Python process, and of the processes that it waited for."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    job = subprocess.Popen([sys.executable, *words], cwd=folder, env=environment)
    _, status, usage = os.wait4(job.pid, 0)
    job.returncode = os.waitstatus_to_exitcode(status)
    assert job.returncode == 0
    return usage.ru_utime + usage.ru_stime
