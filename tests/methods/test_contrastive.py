"""The regulariser equals the slot-by-slot reference, gradient included, and multiplies no zeros."""

import numpy as np
import pytest
import torch
from torch import Tensor

from dseq_jepa.cost.count import multiply_adds
from dseq_jepa.methods.contrastive import vicreg
from dseq_jepa.methods.jepa import Moment
from dseq_jepa.methods.settings import ContrastiveSettings, JepaSettings
from tests.methods.small import DSEQ, I_JEPA, IDS, build, images
from tests.reference import vicreg as reference

CURRICULUM = DSEQ.model_copy(update={"curriculum": True})
SETTINGS = ContrastiveSettings()


def scattered(slots: int, pictures: int, rows: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Predictions and targets of rows at different places of a table, in no order."""
    place_N = torch.from_numpy(np.random.default_rng(seed).permutation(slots * pictures)[:rows])
    rows_2NW = 0.5 * torch.randn(2, rows, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return place_N, *rows_2NW.unbind()


@pytest.mark.parametrize("rows", [1, 5, 12, 30], ids=lambda rows: f"{rows} of 30 places")
def test_values_and_gradients_equal_the_reference(rows: int) -> None:
    place_N, predicted_NW, target_NW = scattered(5, 6, rows, seed=rows)
    gradients = []
    for loss in (
        lambda x, y: vicreg(x, y, place_N, (5, 6), SETTINGS).total,
        lambda x, y: reference.vicreg((place_N // 6).tolist(), x, y),
    ):
        leaves = [tensor.clone().requires_grad_() for tensor in (predicted_NW, target_NW)]
        value = loss(*leaves)
        gradients.append([value.detach(), *torch.autograd.grad(value, leaves)])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(("settings", "schemes"), [(I_JEPA, 1), (CURRICULUM, 2)], ids=["C-JEPA", "DSeq-C-JEPA"])
def test_covariances_cost_a_product_for_every_image_of_a_slot(settings: JepaSettings, schemes: int) -> None:
    start = Moment(seed=3, step=17, progress=0.0)  # of the curriculum: every image has four random blocks
    counts = []
    for width in (8, 16, 24):
        method = build(settings.model_copy(update={"contrastive": ContrastiveSettings(projector_width=width)}))
        with torch.no_grad():
            counts.append(multiply_adds(lambda method=method: method(images(), IDS, start)))
    groups, squares = 4, 8 * 8
    of_projector = 2 * 2 * len(IDS) * groups * 2 * squares  # its two square layers, for predictions and targets
    of_covariances = schemes * groups * len(IDS) * 2 * squares
    assert counts[2] - 2 * counts[1] + counts[0] == of_projector + of_covariances
