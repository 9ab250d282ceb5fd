"""CPU seconds of one thread, alternating between the sides so that a noisy machine disturbs all of them alike.

medians = alternate({"theirs": step_a, "ours": step_b}, rounds=5)
"""

import ctypes
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path


def alternate(sides: dict[str, Callable[[int], object]], rounds: int) -> dict[str, float]:
    """Median CPU seconds of each side over `rounds` alternations, after one that warms caches.

    A side is called with the number of the round, so that all can do the same work in the same round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(rounds + 1):
        for name, run in sides.items():
            start = time.process_time()
            run(round_)
            if round_:
                seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def keep_memory() -> None:
    """Let the allocator keep what is freed: the kernel's price for giving it again differs from minute to minute."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        trim_threshold, mmap_threshold = -1, -3  # malloc.h
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, 2**31 - 1)


def processor() -> str:
    """The CPU's name, for the record."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown CPU")


def verdict(name: str, value: float, bound: float, *, at_most: bool = False, digits: int = 2) -> bool:
    """Print a measured ratio beside its claim; whether the claim holds."""
    holds = value <= bound if at_most else value >= bound
    sign = "<=" if at_most else ">="
    print(f"  {name}: {value:.{digits}f} (claim: {sign} {bound}) {'holds' if holds else 'FAILS'}")
    return holds
