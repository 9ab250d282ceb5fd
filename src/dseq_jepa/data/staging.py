"""Copies of data sets on a disk of the node that reads them: made once per node, verified, resumed, cleaned up.

    loading: {workers: 8, stage: {folder: /scratch/$USER/dseq-jepa}}      # in a configuration: every job stages
    dseq-jepa data stage --config configs/paper.yaml                      # this node, ahead of any job
    dseq-jepa data unstage --config configs/paper.yaml                    # remove what no job uses

A shared file system serves 1.3 million small files to eight readers slowly; a local disk does not mind. In `folder`:

    <key>/             the copy, in the official layout
    <key>.json         it is complete; when this file is old, sizes and fingerprint are looked at again
    <key>.copying      locked by the one process that copies or looks; names the boot of the machine that it began under
    <key>.used         locked by every process that reads; its time stamp is the last use

The key is a hash of layout, root and fingerprint: changed data gets another copy and the old one ages. The kernel drops
locks with their processes, so a killed job leaves nothing to clean: the next one goes on where the copy stopped.
"""

import fcntl
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from dseq_jepa.data.catalog import files_of, fingerprint_of, sizes_of
from dseq_jepa.data.settings import DatasetSettings, LoadingSettings, StageSettings
from dseq_jepa.errors import UserError
from dseq_jepa.files import write_atomically, write_error
from dseq_jepa.progress import Progress

TRUST_SECONDS = 3600.0
"""Nodes clean their scratch disks by the age of files: a copy that was not looked at for so long is looked at again."""
_DAY = 86400.0
_THREADS = 16
_CHUNK = 64
_held: dict[str, tuple[Path, int]] = {}
"""Copies that this process reads, by settings and folder, with the locks that it keeps until it ends."""


def stage(data: Iterable[DatasetSettings], loading: LoadingSettings) -> None:
    """Have copies of data sets on this node, where `loading.stage` asks for them.

    Raises:
        UserError: see `staged`.

    """
    for settings in data:
        staged(settings, loading)


def staged(data: DatasetSettings, loading: LoadingSettings) -> DatasetSettings:
    """The settings of a data set with its root on this node; without `loading.stage` as they are.

    The first process of a node copies, the others wait for it. The copy stays until nobody used it for `keep_days`.

    Raises:
        UserError: there is no room, the folder cannot be written, or the data are not those of the fingerprint.

    """
    if loading.stage is None:
        return data
    folder = _folder(loading.stage)
    known = f"{folder}\0{data.model_dump_json()}"
    if known not in _held:
        expected = data.fingerprint or fingerprint_of(data)
        copy = folder / _key(data, expected)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _held[known] = copy, _use(copy)
            with _copying(copy):
                if time.time() - _looked_at(copy) > TRUST_SECONDS:
                    _complete(data, copy, expected)
            remove_unused(loading.stage, loading.stage.keep_days)
        except OSError as error:
            raise write_error(Path(error.filename or copy), error) from error
    return data.model_copy(update={"root": _held[known][0]})


def remove_unused(stage: StageSettings, days: float = 0.0) -> list[Path]:
    """Remove the copies on this node that no process reads and none has read for some days; what was removed."""
    folder = _folder(stage)
    return [copy for copy in _by_age(folder) if time.time() - _last_use(copy) >= days * _DAY and _remove(copy)]


def _folder(stage: StageSettings) -> Path:
    folder = os.path.expandvars(stage.folder)
    if "$" in folder:
        raise UserError(
            f"loading.stage.folder: {stage.folder} names a variable that is not set on {socket.gethostname()}"
        )
    return Path(os.path.abspath(folder))


def _key(data: DatasetSettings, fingerprint: str) -> str:
    text = "\0".join([data.layout, os.path.abspath(data.root), fingerprint])
    return f"{data.layout}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


# -- locks and marks ------------------------------------------------------------------------------------------------


def _use(copy: Path) -> int:
    """Say that this process reads a copy, until it ends."""
    path = copy.with_suffix(".used")
    path.touch()
    descriptor = os.open(path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


@contextmanager
def _copying(copy: Path) -> Iterator[None]:
    """Be the one process that copies or looks. What was copied before a crash of the machine may be hollow: it goes."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    with copy.with_suffix(".copying").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        if not copy.with_suffix(".json").exists() and file.read() != boot:
            shutil.rmtree(copy, ignore_errors=True)
            file.truncate(0)
            file.write(boot)
            file.flush()
        yield


def _looked_at(copy: Path) -> float:
    """When a copy was last found complete; 0 when it is not."""
    with suppress(FileNotFoundError):
        return copy.with_suffix(".json").stat().st_mtime
    return 0.0


def _last_use(copy: Path) -> float:
    return copy.with_suffix(".used").stat().st_mtime


def _by_age(folder: Path) -> list[Path]:
    """All copies, the one that was used longest ago first."""
    return sorted((path.with_suffix("") for path in folder.glob("*.used")), key=_last_use)


def _remove(copy: Path) -> bool:
    """Remove a copy unless a process uses it. The locks stay: somebody may be waiting for them."""
    with copy.with_suffix(".used").open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if not copy.exists():
            return False
        copy.with_suffix(".json").unlink(missing_ok=True)
        shutil.rmtree(copy)
        return True


# -- copying --------------------------------------------------------------------------------------------------------


def _complete(data: DatasetSettings, copy: Path, expected: str) -> None:
    """Copy what is missing and see that the whole is what the job expects."""
    _fill(data, copy)
    os.sync()  # the mark below must not reach the disk before the pictures do
    found = fingerprint_of(data.model_copy(update={"root": copy}))
    if found != expected:
        copy.with_suffix(".json").unlink(missing_ok=True)
        shutil.rmtree(copy)
        raise UserError(
            f"{data.root}: its copy on {socket.gethostname()} has fingerprint {found}, the job expects {expected}; the "
            "data changed since `dseq-jepa data check`, or while they were copied. The copy is removed; run the "
            "workflow again."
        )
    about = {"root": str(data.root), "layout": data.layout, "fingerprint": found, "host": socket.gethostname()}
    write_atomically(copy.with_suffix(".json"), json.dumps(about, indent=1) + "\n")


def _fill(data: DatasetSettings, copy: Path) -> None:
    """Copy the files that are missing or have another size."""
    names = files_of(data)
    sizes = sizes_of(data.root, names)
    there = sizes_of(copy, names)
    missing = [name for name, size, found in zip(names, sizes, there, strict=True) if size != found]
    if not missing:
        return
    _make_room(copy, sum(size for size, found in zip(sizes, there, strict=True) if size != found), data.root)
    for parent in {os.path.dirname(name) for name in missing}:
        (copy / parent).mkdir(parents=True, exist_ok=True)
    chunks = [missing[start : start + _CHUNK] for start in range(0, len(missing), _CHUNK)]
    pool = ThreadPoolExecutor(_THREADS)
    try:
        with Progress(len(names), f"{data.root} to {copy}", start=len(names) - len(missing)) as progress:
            for chunk in pool.map(lambda chunk: _copy(data.root, copy, chunk), chunks):
                for _ in chunk:
                    progress.advance(images=1)
    finally:
        pool.shutdown(cancel_futures=True)


def _copy(root: Path, copy: Path, names: list[str]) -> list[str]:
    """Copy files, each whole or not there."""
    for name in names:
        temporary = copy / f"{name}.part"
        shutil.copyfile(root / name, temporary)
        os.replace(temporary, copy / name)
    return names


def _make_room(copy: Path, needed: int, root: Path) -> None:
    """Remove copies that nobody uses, oldest first, until there is room."""
    for other in _by_age(copy.parent):
        if shutil.disk_usage(copy.parent).free > needed:
            return
        if other != copy:
            _remove(other)
    free = shutil.disk_usage(copy.parent).free
    if free <= needed:
        raise UserError(
            f"loading.stage.folder: {copy.parent} on {socket.gethostname()} has {free / 1e9:.1f} GB free, and the copy "
            f"of {root} needs {needed / 1e9:.1f} GB. Free some, name another folder, or read from the root with "
            "stage: null."
        )
