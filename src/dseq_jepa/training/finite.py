"""Whether tensors hold numbers only, told without reading them to the host.

finite(model.parameters())      # a flag on the device
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


@torch.no_grad()
def finite_gradients(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Whether all gradients are numbers: a flag on the device; of a sharded run, about this rank's shards.

    By their norms, which read every entry once in one fused pass. An entry above 1e19, whose square is infinite, is
    no number either: AdamW, which keeps squares, would never move that weight again.
    """
    return finite([parameter.grad for parameter in parameters if parameter.grad is not None])


@torch.no_grad()
def finite(tensors: Iterable[Tensor]) -> Tensor:
    """Whether all entries are numbers whose squares are: a flag on the device; of shards, about this rank's."""
    shards = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    return torch.stack(torch._foreach_norm(shards)).isfinite().all()
