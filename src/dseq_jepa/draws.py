"""Random numbers that depend only on what they are for: (seed, purpose, step or epoch, image).

A run on any number of ranks, resumed anywhere, draws the same numbers for the same image. Counter-based: SplitMix64's
finaliser (Steele, Lea and Flood 2014, https://doi.org/10.1145/2714064.2660195) applied to each coordinate in turn,
vectorised over images.
"""

import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * _MIX_1
    state = (state ^ (state >> np.uint64(27))) * _MIX_2
    return state ^ (state >> np.uint64(31))


def uniforms(seed: int, purpose: str, when: int, ids_B: ArrayLike, count: int) -> NDArray[np.float64]:
    """(B, count) numbers in [0, 1), each a pure function of (seed, purpose, when, id, column).

    Args:
        seed: of the run.
        purpose: a name that keeps streams apart, such as "crop" or "curriculum".
        when: step or epoch.
        ids_B: image ids, non-negative.
        count: numbers per image.
    """
    with np.errstate(over="ignore"):
        state: NDArray[Any] = np.full(1, zlib.crc32(purpose.encode()), dtype=np.uint64)
        for coordinate in (np.uint64(seed), np.uint64(when)):
            state = _mix((state ^ coordinate) + _GOLDEN)
        state_B1 = _mix((state ^ np.asarray(ids_B, dtype=np.uint64)) + _GOLDEN)[:, None]
        columns = np.arange(count, dtype=np.uint64) * _GOLDEN
        bits_BK = _mix(_mix(state_B1 + columns) + _GOLDEN)
    return (bits_BK >> np.uint64(11)).astype(np.float64) * 2.0**-53


@contextmanager
def seeded(seed: int, purpose: str, when: int, identity: int) -> Iterator[int]:
    """For libraries that draw from the global generators of `random` and numpy: both are seeded inside the block, as a
    function of the coordinates of `uniforms`, and as they were after it. Yields the seed, below 2 ** 32.
    """
    number = int(uniforms(seed, purpose, when, [identity], 1)[0, 0] * 2**32)
    python, legacy = random.getstate(), np.random.get_state()
    random.seed(number)
    np.random.seed(number)
    try:
        yield number
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
