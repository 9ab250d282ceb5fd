"""What the machine does between two log points, under the names of MLflow's system metrics.

    machine = Machine(torch.device("cuda"))
    machine.sample()      # {"system/cpu_utilization_percentage": 61, "system/gpu_0_utilization_percentage": 97, ...}

One sample costs well under a millisecond. GPUs are those that this process sees, asked by their own identity, so that a
shared machine's other GPUs stay out. The numbers never change a result and never stop a run.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch

_MEBIBYTE = 1 << 20


class Machine:
    """Samples processors, memory and GPUs.

    Args:
        device: what the run computes on; GPUs are asked only for a run on GPUs.
    """

    def __init__(self, device: torch.device) -> None:
        self._gpus = _gpus() if device.type == "cuda" else {}
        self._before = _busy_and_all()

    def sample(self) -> dict[str, float]:
        """Use since the last sample (processors) and now (memory, GPUs); percent and MiB."""
        values = self._processors() | _memory()
        for i, handle in self._gpus.items():
            values |= _gpu(f"system/gpu_{i}", handle)
        return values

    def _processors(self) -> dict[str, float]:
        before, self._before = self._before, _busy_and_all()
        if before is None or self._before is None:
            return {}
        busy, everything = (now - then for now, then in zip(self._before, before, strict=True))
        return {"system/cpu_utilization_percentage": 100 * busy / everything} if everything else {}


def _busy_and_all() -> tuple[int, int] | None:
    """Clock ticks of all cores since the machine started: spent on work, and altogether; None but on Linux."""
    try:
        ticks = [int(word) for word in Path("/proc/stat").read_text().partition("\n")[0].split()[1:9]]
    except OSError:
        return None
    idle = ticks[3] + ticks[4]  # idle, and waiting for a disk
    return sum(ticks) - idle, sum(ticks)


def _memory() -> dict[str, float]:
    """Resident memory of this process."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return {}
    return {"system/process_memory_megabytes": pages * os.sysconf("SC_PAGE_SIZE") / _MEBIBYTE}


def _gpus() -> dict[int, Any]:
    """NVML's handles of the GPUs that torch sees."""
    try:
        import pynvml  # type: ignore[import-untyped]
    except ModuleNotFoundError:  # a bare GPU machine trains without it
        sys.stderr.write("the GPUs' use is not recorded: nvidia-ml-py is not installed.\n")
        return {}
    try:
        pynvml.nvmlInit()
        uuids = (str(torch.cuda.get_device_properties(i).uuid) for i in range(torch.cuda.device_count()))
        return {i: pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}") for i, uuid in enumerate(uuids)}
    except pynvml.NVMLError as error:
        sys.stderr.write(f"the GPUs' use is not recorded: {error}.\n")
        return {}


def _gpu(name: str, handle: Any) -> dict[str, float]:
    import pynvml

    try:
        use, memory = pynvml.nvmlDeviceGetUtilizationRates(handle), pynvml.nvmlDeviceGetMemoryInfo(handle)
        watts = pynvml.nvmlDeviceGetPowerUsage(handle) / 1000
    except pynvml.NVMLError:
        return {}  # a GPU that was lost stops the run by itself
    return {
        f"{name}_utilization_percentage": float(use.gpu),
        f"{name}_memory_usage_megabytes": memory.used / _MEBIBYTE,
        f"{name}_memory_usage_percentage": 100 * memory.used / memory.total,
        f"{name}_power_usage_watts": watts,
    }
