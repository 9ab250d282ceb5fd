"""AdamW as I-JEPA uses it: weight decay on matrices, none on biases, 1-d weights, class and mask tokens."""

import torch
from torch import nn

from dseq_jepa.training.settings import Recipe


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """Two groups, the second without decay; only parameters that take gradients."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        token = name.rsplit(".", 1)[-1] in ("cls_token", "mask_token")
        (free if parameter.ndim < 2 or token else decayed).append(parameter)
    groups = [{"params": decayed, "decays": True}, {"params": free, "decays": False, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate.peak, betas=recipe.betas, fused=True)


def set_rates(optimizer: torch.optim.Optimizer, learning_rate: float, weight_decay: float) -> None:
    """Put the schedule's values into the groups."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
        if group["decays"]:
            group["weight_decay"] = weight_decay
