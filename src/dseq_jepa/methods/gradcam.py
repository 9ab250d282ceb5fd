"""Label-free Grad-CAM: a saliency map from the gradient of I-JEPA's own loss (paper A.1; docs/protocols.md 1.5).

    saliency_BT = gradcam(target.patches_BTD, loss)      # `regions.saliency: gradcam` (Table 7)

Grad-CAM (Selvaraju et al. 2017) weighs the channels of a layer by the mean gradient of a class score. There are no
classes here: the score is the loss L of the image's random blocks (1.1), with the target side differentiable. The
layer h is the target encoder's last block after the final LayerNorm; the LayerNorm without parameters that makes
targets of h, and everything after it, is part of L.

    w = mean over patches of dL/dh        A_j = relu(<w, h_j>)

B images, T patches, D width.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def gradcam(patches_BTD: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """The map of every image, (B, T) fp32 and not negative.

    The gradient ends at the patches, which are a leaf of their own here: it reaches no parameter, so it leaves nothing
    behind in `.grad`, sets off no exchange between ranks, and changes no encoder. A map without a positive value is all
    zero, and a constant map has no region (docs/protocols.md 1.2).

    Args:
        patches_BTD: h, the outputs of the target encoder's last block; neither written to nor differentiated.
        loss: from such patches to the sum of the images' losses. No image may enter another image's loss.

    """
    with torch.enable_grad(), torch.autocast(patches_BTD.device.type, enabled=False):
        leaf_BTD = patches_BTD.detach().float().requires_grad_()
        (gradient_BTD,) = torch.autograd.grad(loss(leaf_BTD), leaf_BTD)
    weight_BD1 = gradient_BTD.mean(1)[:, :, None]
    with torch.autocast(patches_BTD.device.type, enabled=False):
        return F.relu(leaf_BTD.detach() @ weight_BD1)[:, :, 0]
