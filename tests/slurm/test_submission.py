"""A controller that does not answer sbatch: whether it took the job or not, there is one job and it runs once.

pytest tests/slurm/test_submission.py
"""

import os
import shutil
from pathlib import Path

import pytest

from tests.slurm.cluster import Launched

pytestmark = pytest.mark.usefixtures("state")
BUSY = """#!/bin/sh
[ -e {mark} ] && exec {sbatch} "$@"
touch {mark}
{first}
echo "sbatch: error: Batch job submission failed: {reason}" >&2
exit 1
"""
TAKEN, LOST = '{sbatch} "$@" > /dev/null', ":"


@pytest.mark.parametrize("first", [TAKEN, LOST], ids=["the job was queued", "it was not"])
@pytest.mark.parametrize(
    "reason", ["Socket timed out on send/recv operation", "Unable to contact slurm controller (connect failure)"]
)
def test_a_submission_without_an_answer_is_looked_for_before_it_is_repeated(
    first: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sbatch = shutil.which("sbatch")
    wrapper = tmp_path / "bin" / "sbatch"
    wrapper.parent.mkdir()
    first = first.format(sbatch=sbatch)
    wrapper.write_text(BUSY.format(mark=tmp_path / "mark", sbatch=sbatch, first=first, reason=reason))
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")
    scores = tmp_path / "scores.json"
    scores.write_text("no json")
    launched = Launched(tmp_path / "out", ["select", "--scores", str(scores), "--out", str(tmp_path / "out")])
    status, said = launched.run()
    assert status == 1
    assert reason in said
    assert "Nothing was started" not in said
    assert "JSONDecodeError" in said
    assert len(launched.starts()) == 1
    assert len(list(launched.claims.folder.glob("job-*"))) == 1
