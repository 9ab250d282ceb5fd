"""Figure 4's numbers against a slow loop over images and steps.

pytest tests/figures/test_steps.py
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from dseq_jepa.errors import UserError
from dseq_jepa.figures.kept import as_input, batches, chosen, open_kept, reading
from dseq_jepa.figures.steps import StepLosses, draw_step_losses, measure
from dseq_jepa.methods.regions import cls_saliency
from tests.figures.runs import FIGURES, figure_job
from tests.methods.small import HEADS, states
from tests.reference.jepa import sequential_loss
from tests.reference.regions import ranked_regions

Trained = tuple[Path, Path]


def test_every_images_step_losses_equal_a_loop_over_images(trained: Trained):
    root, results = trained
    job, figure = figure_job(root, "step-loss"), FIGURES["step-loss"]
    with reading(job) as device:
        kept = open_kept(job, job.models[0], 75, results, device)
        found = measure(job, figure, kept, device)
        context, predictor, target = states(kept.method)
        split, ids_N = chosen(job, "train", figure.images)
        slow, regions, without = [], [], 0
        for image in torch.cat([as_input(batch.images_BCHW, device) for batch in batches(job, split, ids_N)]):
            source = kept.method.target_encoder.read(image[None], [job.architecture.saliency_block])[0]
            map_HW = cls_saliency(source.class_BD, source.patches_BTD).reshape(6, 6).numpy()
            ranks_HW = ranked_regions(map_HW, count=5, min_patches=2)
            if ranks_HW is None:
                without += 1
                continue
            losses = sequential_loss(context, predictor, target, image, ranks_HW, 8, HEADS).losses
            slow.append([*map(float, losses), *[np.nan] * (4 - len(losses))])
            regions.append(ranks_HW.max())
    assert found.without_region == without
    assert len(slow) > 5
    assert found.regions_N.tolist() == regions
    np.testing.assert_allclose(found.loss_NS, slow, rtol=1e-4, atol=1e-6)


def test_means_and_intervals_are_over_the_images_that_have_the_step():
    loss_NS = np.array([[1.0, np.nan], [2.0, 4.0], [6.0, 8.0]])
    losses = StepLosses(loss_NS, np.array([2, 3, 3]), without_region=0)
    mean_S, half_S, count_S = losses.summary(np.ones(3, bool))
    assert mean_S.tolist() == [3.0, 6.0]
    assert count_S.tolist() == [3, 2]
    expected = [1.959964 * np.std([1, 2, 6], ddof=1) / 3**0.5, 1.959964 * np.std([4, 8], ddof=1) / 2**0.5]
    np.testing.assert_allclose(half_S, expected)
    assert losses.summary(losses.regions_N == 3)[0].tolist() == [4.0, 6.0]


def test_a_step_that_no_image_has_is_nan_without_a_warning():
    losses = StepLosses(np.array([[1.0, np.nan], [3.0, np.nan]]), np.array([2, 2]), without_region=1)
    mean_S, half_S, count_S = losses.summary(np.ones(2, bool))
    assert count_S.tolist() == [2, 0]
    assert np.isnan(mean_S[1])
    assert np.isnan(half_S[1])


def test_a_model_that_finds_no_region_is_an_error(trained: Trained, tmp_path: Path):
    root, results = trained
    job = figure_job(root, "step-loss")
    regions = job.methods["dseq-jepa"].regions.model_copy(update={"min_patches": 36})
    method = job.methods["dseq-jepa"].model_copy(update={"regions": regions})
    job = job.model_copy(update={"methods": {"dseq-jepa": method}})
    with pytest.raises(UserError, match="none of 30 images has a salient region"):
        draw_step_losses(job, job.figure, results, tmp_path)
    assert not list(tmp_path.iterdir())
