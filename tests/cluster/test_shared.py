"""Folders that no other machine can see are refused, those that it may not see are warned of.

pytest tests/cluster/test_shared.py
"""

import os
from pathlib import Path

import pytest

from dseq_jepa.cluster.shared import file_system_of, require_shared
from dseq_jepa.errors import UserError

MEMORY = Path("/dev/shm")


@pytest.fixture
def memory() -> Path:
    if not os.path.ismount(MEMORY):
        pytest.skip(f"shared: {MEMORY} is no file system in memory here; Linux has one")
    return MEMORY


def test_a_folder_in_memory_is_refused_where_jobs_run_elsewhere(memory: Path, tmp_path: Path) -> None:
    link = tmp_path / "results"
    link.symlink_to(memory)
    for place in (memory / "not" / "yet", link / "out"):
        assert file_system_of(place) == "tmpfs"
        with pytest.raises(UserError, match=r"machine alone \(tmpfs\).*Nothing was started"):
            require_shared(place, elsewhere=True)
        assert require_shared(place, elsewhere=False) is None


def test_a_local_disk_is_warned_of_and_others_are_not() -> None:
    kinds = {Path(line.split()[1]): line.split()[2] for line in Path("/proc/mounts").read_text().splitlines()}
    for point in ("/", "/proc"):
        assert file_system_of(Path(point)) == kinds[Path(point)]
    assert require_shared(Path("/proc"), elsewhere=True) is None
    if kinds[Path("/")] == "ext4":
        assert "disk of this machine (ext4)" in str(require_shared(Path("/"), elsewhere=True))
