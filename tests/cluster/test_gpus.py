"""GPUs of one machine: nobody shares one, and a job that dies gives its own back.

pytest tests/cluster/test_gpus.py
"""

import subprocess
import sys
from pathlib import Path

import pytest

from dseq_jepa.cluster.gpus import slots, visible_gpus
from dseq_jepa.errors import UserError

HOLDER = """
import subprocess, sys
from dseq_jepa.cluster.gpus import slots
with slots(int(sys.argv[1]), [0, 1, 2, 3], lambda: True) as gpus:
    child = subprocess.Popen(["sleep", "60"], close_fds=False) if sys.argv[2:] else None
    print(*gpus, child.pid if child else "", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def own_slots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def hold(count: int, *arguments: str) -> tuple[subprocess.Popen[str], list[int]]:
    command = [sys.executable, "-c", HOLDER, str(count), *arguments]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    return holder, [int(word) for word in holder.stdout.readline().split()]


def test_jobs_never_share_a_gpu_and_give_theirs_back() -> None:
    first, taken = hold(2)
    assert taken == [0, 1]
    with slots(2, [0, 1, 2, 3], lambda: True) as others:
        assert others == [2, 3]
        with slots(1, [0, 1, 2, 3], lambda: False) as none:
            assert none == []
    with slots(1, [1], lambda: False) as none:
        assert none == []
    first.communicate("")
    with slots(4, [0, 1, 2, 3], lambda: True) as all_of_them:
        assert all_of_them == [0, 1, 2, 3]


def test_a_gpu_stays_taken_while_a_process_of_the_job_lives() -> None:
    holder, (gpu, child) = hold(1, "with a child")
    holder.kill()
    holder.wait()
    with slots(1, [gpu], lambda: False) as none:
        assert none == []
    subprocess.run(["kill", str(child)], check=True)
    with slots(1, [gpu], lambda: True) as free:
        assert free == [gpu]


def test_more_than_there_are_is_an_error() -> None:
    with pytest.raises(UserError, match="--gpus 3: this machine has 2"), slots(3, [0, 1], lambda: True):
        pass


def test_only_visible_gpus_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert visible_gpus() == [3, 5]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []
