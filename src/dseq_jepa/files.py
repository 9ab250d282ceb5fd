"""Files that are whole or not there: every artefact is written beside its place, flushed to disk and renamed.

    from dseq_jepa.files import atomically, file_sha256, write_atomically
    write_atomically(out / "metrics.json", json.dumps(metrics))
    with atomically(out / "encoder.safetensors") as temporary:
        save_file(tensors, temporary)

A kill at any moment leaves the old file or the new one. The temporary file has a fixed name (`.NAME.tmp`), so what a
killed process leaves behind is overwritten by the next one and never piles up.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dseq_jepa.errors import UserError

_CHUNK = 1 << 20
_UMASK = os.umask(0)
os.umask(_UMASK)  # there is no way to read it but to set it
_ADVICE = {
    errno.ENOSPC: "the disk is full; free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
    errno.EFBIG: "the file would be larger than this process or file system allows",
    errno.EACCES: "permission denied; check who owns the folder",
    errno.EROFS: "the file system is read-only",
}


def write_error(path: Path, error: OSError) -> UserError:
    """The sentence for a failed write: which file, why, and what to do."""
    reason = _ADVICE.get(error.errno or 0, (error.strerror or str(error)).lower())
    return UserError(f"{path}: cannot be written: {reason}.")


def write_atomically(path: Path, content: bytes | str) -> None:
    """Replace a file by `content` (text as UTF-8); its folder is made if missing.

    Raises:
        UserError: when the disk is full or the place cannot be written; what was there before is untouched.

    """
    with atomically(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomically(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder; when the block ends well, it is flushed to disk and renamed to `path`.

    For writers that want a path (safetensors, gzip). One writer per path at a time.

    Raises:
        UserError: for an OSError inside the block or while renaming. Other errors pass through. In all cases the
            temporary file is removed and what was at `path` before is untouched.

    """
    temporary = path.parent / f".{path.name}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.chmod(0o666 & ~_UMASK)  # some writers (safetensors) make files that only their owner can read
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise write_error(path, error) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def show(path: Path, place: Path) -> None:
    """Make a file appear at another place of the same disk as well, replacing what was there."""
    place.unlink(missing_ok=True)
    os.link(path, place)


def leave_behind(path: Path) -> None:
    """Make a file this process's own: one that was thought dead may hold the old one open, and may write to that."""
    if path.exists():
        with atomically(path) as temporary:
            shutil.copyfile(path, temporary)


def _flush(path: Path) -> None:
    """Force a file's content, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, 64 hexadecimal digits; reads 1 MiB at a time."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
