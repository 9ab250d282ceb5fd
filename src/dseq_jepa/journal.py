"""The journal of a job: what happened, one JSON object per line, only ever appended.

    journal = Journal(out / "journal.jsonl")
    journal.start({"step": "pretrain", "method": "dseq-jepa"}, steps=1000)
    journal.metrics(10, {"loss": 0.31})
    position = journal.sync()                                   # stored in the checkpoint
    journal = Journal.resume(out / "journal.jsonl", position)   # the next process, after a kill
    tail -f out/journal.jsonl                                   # what a person reads

The journal is the truth; MLflow is a mirror of it (tracking.py). Lines, each with `t`, seconds since 1970:

    {"kind": "run", "tags": {...}, "steps": 1000}        first line; steps: the last step that is planned, or null
    {"kind": "params", "values": {...}}                  the resolved job
    {"kind": "metrics", "step": 10, "values": {...}}
    {"kind": "event", "name": "resumed", ...}            resumed, saved, finished, failed, ...

NaN and infinities, which JSON does not have, are the texts "NaN", "Infinity" and "-Infinity" and are read back as
numbers.
"""

import contextlib
import json
import math
import operator
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

from dseq_jepa.errors import UserError
from dseq_jepa.files import write_error
from dseq_jepa.masking import masked_values

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"

_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_RESERVED = {"t", "kind", "name"}


class Journal:
    """An open journal; every line is with the operating system when its call returns, so only a crash of the machine
    can lose lines, and only those after the last `sync`.

    Opening one that exists goes on after its last whole line. One process per journal.

    Raises:
        UserError: naming the file, when it cannot be opened or written (a full disk). The first failed line raises;
            later lines are dropped so that a job which is stopping reports the first error, but `sync` raises again:
            a checkpoint must not be saved beside a journal with a gap.

    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._failure: UserError | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)
            self._position = _whole_lines(path)
            if self._position < path.stat().st_size:
                self._file.truncate(self._position)
        except OSError as error:
            raise write_error(path, error) from error

    @classmethod
    def resume(cls, path: Path, position: int) -> Self:
        """Open a journal as it was when `sync` returned `position`; what came later is computed again and cut off.

        Position 0 starts over, also where no journal exists.

        Raises:
            UserError: when the journal is shorter than the position, or the position is not the end of a line.

        """
        size = path.stat().st_size if path.exists() else 0
        if size < position or not _ends_a_line(path, position):
            raise UserError(
                f"{path}: {size} bytes do not fit the saved state, which was written after byte {position}; the "
                "journal was changed since. Restore it, or delete the job's folder to start over."
            )
        if size > position:
            try:
                os.truncate(path, position)
            except OSError as error:
                raise write_error(path, error) from error
        return cls(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self, tags: Mapping[str, str], steps: int | None = None) -> None:
        """Write the run's first line, or the event "resumed" in a journal that already has one.

        Args:
            tags: who this run is (provenance.run_tags).
            steps: the last step that is planned; fixes the mirror's stride before the run's length can be seen.
        """
        if self._position == 0:
            self._append({"kind": "run", "tags": masked_values(tags), "steps": steps})
        else:
            self._append({"kind": "event", "name": "resumed", "tags": masked_values(tags)})

    def params(self, values: Mapping[str, Json]) -> None:
        """What the run was asked to do: the resolved job."""
        self._append({"kind": "params", "values": masked_values(values)})

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Measurements at a step; anything that `float` accepts. A device tensor would be waited for here."""
        numbers = {name: float(value) for name, value in values.items()}
        self._append({"kind": "metrics", "step": operator.index(step), "values": numbers})

    def event(self, name: str, /, **fields: Json) -> None:
        """Something that happened once, with its details."""
        if clash := _RESERVED & fields.keys():
            raise ValueError(f"event {name!r}: the fields {sorted(clash)} belong to the journal itself")
        self._append({"kind": "event", "name": name, **masked_values(fields)})

    def sync(self) -> int:
        """Force all lines to the disk; returns the position in bytes that a checkpoint stores."""
        if self._failure:
            raise self._failure
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._failed(error) from error
        return self._position

    def close(self) -> None:
        """Give the file back; closing twice is fine."""
        self._file.close()

    def _append(self, record: dict[str, Any]) -> None:
        if self._failure:
            return
        line = memoryview((encode({"t": round(time.time(), 6), **record}) + "\n").encode())
        written = 0
        try:
            while written < len(line):
                written += self._file.write(line[written:]) or 0
        except OSError as error:
            with contextlib.suppress(OSError):  # the half line is harmless too: readers skip it
                self._file.truncate(self._position)
            raise self._failed(error) from error
        self._position += written

    def _failed(self, error: OSError) -> UserError:
        self._failure = write_error(self.path, error)
        return self._failure


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a journal, oldest first; a half-written last line is left out.

    Raises:
        UserError: with the line's number, when a whole line is not a JSON object.

    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: the journal cannot be read: {(error.strerror or str(error)).lower()}.") from None
    with file:
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n"):
                yield _parse(line, path, number)


def ends(path: Path, span: int = 65536) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The first and the last whole lines of a journal, at most `span` bytes of each; costs the same for any length.

    Raises:
        UserError: as `read`; lines at the end are counted from there.

    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(span)
            begin = max(0, size - span)
            file.seek(begin)
            tail = file.read(span)
    except OSError as error:
        raise UserError(f"{path}: the journal cannot be read: {(error.strerror or str(error)).lower()}.") from None
    if begin:
        tail = tail[tail.find(b"\n") + 1 :]
    first, last = (part[: part.rfind(b"\n") + 1].splitlines(keepends=True) for part in (head, tail))
    return (
        [_parse(line, path, number) for number, line in enumerate(first, start=1)],
        [_parse(line, path, number - len(last)) for number, line in enumerate(last)],
    )


def encode(value: Json) -> str:
    """One line of JSON; NaN and infinities become texts."""
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except ValueError:
        return json.dumps(_named(value), allow_nan=False, separators=(",", ":"))


def _parse(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise UserError(
            f"{path}: line {number} is not a JSON object; the file was changed or the disk lost data. "
            "Remove that line to go on without it."
        )
    return {key: _numbered(value) for key, value in record.items()} if b'NaN"' in line or b'ity"' in line else record


def _named(value: Any) -> Any:
    """Replace numbers that JSON does not have by their names."""
    if isinstance(value, Mapping):
        return {key: _named(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_named(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _numbered(value: Any) -> Any:
    """Replace their names by the numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _numbered(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_numbered(entry) for entry in value]
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value


def _whole_lines(path: Path) -> int:
    """Bytes up to and including the last line end."""
    end = path.stat().st_size
    with path.open("rb") as file:
        while end > 0:
            begin = max(0, end - 65536)
            file.seek(begin)
            found = file.read(end - begin).rfind(b"\n")
            if found >= 0:
                return begin + found + 1
            end = begin
    return 0


def _ends_a_line(path: Path, position: int) -> bool:
    if position <= 0:
        return position == 0
    with path.open("rb") as file:
        file.seek(position - 1)
        return file.read(1) == b"\n"
