"""Fine-tuning's views: timm's policy, seeded per image."""

import random

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform

from dseq_jepa.data.augment import FinetuneView
from dseq_jepa.data.transforms import MEAN
from dseq_jepa.draws import seeded

PICTURE = np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8)
POLICY = "rand-m9-mstd0.5-inc1"


def test_a_view_is_a_function_of_seed_epoch_and_image():
    view = FinetuneView(32, POLICY, MEAN, 3)
    first = view(PICTURE, 7, 2)
    random.seed(1)
    np.random.seed(1)
    state = random.getstate(), np.random.get_state()[1].tolist()
    assert torch.equal(view(PICTURE, 7, 2), first)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == state
    assert not torch.equal(view(PICTURE, 7, 3), first)
    assert not torch.equal(view(PICTURE, 8, 2), first)
    assert not torch.equal(FinetuneView(32, POLICY, MEAN, 4)(PICTURE, 7, 2), first)


def test_the_policy_is_timms_with_the_parameters_of_its_create_transform():
    parameters = {"translate_const": 14, "img_mean": (124, 116, 104), "interpolation": Image.Resampling.BICUBIC}
    policy = rand_augment_transform(POLICY, parameters)
    for image_id in range(20):
        plain = FinetuneView(32, None, MEAN, 3)(PICTURE, image_id, 0)
        with seeded(3, "policy", 0, image_id):
            try:
                expected = policy(Image.fromarray(plain.permute(1, 2, 0).numpy()))
            except ValueError:  # posterize to 0 bits; see below
                continue
        found = FinetuneView(32, POLICY, MEAN, 3)(PICTURE, image_id, 0)
        assert (found.permute(1, 2, 0).numpy() == np.array(expected)).all()


def test_posterize_to_0_bits_is_black_as_it_was_before_pillow_refused_it():
    operations = FinetuneView(32, "rand-m10-inc1", MEAN, 0)._augment.ops
    posterize = next(operation for operation in operations if operation.name == "PosterizeIncreasing")
    posterize.prob = 1.0
    assert not np.array(posterize(Image.fromarray(PICTURE))).any()
    posterize.magnitude = 5
    assert np.array(posterize(Image.fromarray(PICTURE))).any()
