"""The same bits from the same input: what a resumed training on a CPU promises.

same_bits(torch.device("cpu"))      # before anything is built; a GPU is left as fast as it is
"""

import torch


def same_bits(device: torch.device) -> None:
    """Let torch use deterministic algorithms only, where the device is a CPU."""
    if device.type != "cpu":
        return
    torch.use_deterministic_algorithms(True)
    # torch then also fills whatever it allocates, to expose reads of uninitialised memory: 4% of the demo's step.
    # (torch makes the name at run time, so its types do not have it.)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
