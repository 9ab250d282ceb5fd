"""BatchNorm whose statistics are over the images of all ranks, for networks that are trained through it.

network = over_ranks(network, device)

B images of this rank, C channels, H W pixels.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn import functional as with_gradient


class RankBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d over the images of all ranks, on any device; torch's own SyncBatchNorm is for GPUs only."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """As BatchNorm2d's on the whole batch."""
        if not self.training:
            return super().forward(x_BCHW)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        x_BCHW = x_BCHW.float()  # as batch_norm does under autocast
        count = x_BCHW.numel() // x_BCHW.shape[1] * dist.get_world_size()
        mean_C = with_gradient.all_reduce(x_BCHW.sum(dim=(0, 2, 3))) / count  # type: ignore[no-untyped-call]
        centred_BCHW = x_BCHW - mean_C[:, None, None]
        variance_C = with_gradient.all_reduce(centred_BCHW.square().sum(dim=(0, 2, 3))) / count  # type: ignore[no-untyped-call]
        with torch.no_grad():
            self.running_mean.lerp_(mean_C, self.momentum)
            self.running_var.lerp_(variance_C * count / (count - 1), self.momentum)
        scale_C = self.weight * (variance_C + self.eps).rsqrt()
        result_BCHW: Tensor = centred_BCHW * scale_C[:, None, None] + self.bias[:, None, None]
        return result_BCHW


def over_ranks(network: nn.Module, device: torch.device) -> nn.Module:
    """The network with batch statistics over all ranks."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-any-return, no-untyped-call]
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                shared = RankBatchNorm2d(child.num_features, child.eps, child.momentum)
                shared.load_state_dict(child.state_dict())
                setattr(module, name, shared)
    return network
