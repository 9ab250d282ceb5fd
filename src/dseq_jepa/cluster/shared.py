"""Whether other machines can see a folder at all: told before a job waits for days in a queue, to fail when it starts.

file_system_of(Path("/dev/shm/out"))        # "tmpfs"
require_shared(place, elsewhere=True)       # raises for it; for ext4 it returns what to tell the person
"""

from pathlib import Path

from dseq_jepa.errors import UserError

_OF_ONE_MACHINE = {"tmpfs", "ramfs", "overlay"}
"""Memory, and the writable layer of a container: never seen from elsewhere."""
_OF_ONE_DISK = {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs"}
"""Seen from elsewhere only where this machine itself is the file server."""


def file_system_of(place: Path) -> str:
    """The type of the file system that a path is or will be on (proc(5), mountinfo)."""
    place, found = place.resolve(), (0, "")
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        point = Path(before.split()[4].encode().decode("unicode_escape"))
        if place.is_relative_to(point) and len(point.parts) >= found[0]:  # of two mounts on one point the later is seen
            found = len(point.parts), after.split()[0]
    return found[1]


def require_shared(place: Path, *, elsewhere: bool) -> str | None:
    """Refuse a place that only this machine sees.

    Args:
        place: what a job writes.
        elsewhere: whether jobs may run on other machines.

    Returns:
        A warning, where the place may be of this machine alone.

    Raises:
        UserError: naming the place and its file system.

    """
    kind = file_system_of(place) if elsewhere else ""
    if kind in _OF_ONE_MACHINE:
        raise UserError(
            f"{place} is on a file system of this machine alone ({kind}), and the jobs run on others: put the results "
            "on one that the compute nodes share. Nothing was started."
        )
    if kind in _OF_ONE_DISK:
        return (
            f"{place} is on a disk of this machine ({kind}); unless it serves that disk to the compute nodes, the job "
            "fails as soon as it starts"
        )
    return None
