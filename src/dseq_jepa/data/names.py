"""Millions of file names in one block of memory.

    from dseq_jepa.data.names import Names; Names(["a.jpg", "b.jpg"])[1]

A list of 2.7 million strings is 400 MB of objects, and loader processes copy every page of it because reading a string
touches its reference count. One block of bytes with offsets is a third of that and stays shared.
"""

from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray


class Names(Sequence[str]):
    """An immutable sequence of strings."""

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        self._text = b"".join(encoded)
        self._ends: NDArray[np.int64] = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        """One name, or a list of them for a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"name {index} of {len(self)}")
        position = index % len(self)
        return self._text[self._ends[position] : self._ends[position + 1]].decode("utf-8", "surrogateescape")
