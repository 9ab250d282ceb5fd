"""Crops follow torchvision's law, pixels follow PIL's, and both depend on (seed, epoch, image id) only."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as tv

from dseq_jepa.data.transforms import CROP_DRAWS, MEAN, STD, TestView, TrainView, crop_box, normalise, resample
from dseq_jepa.draws import uniforms
from dseq_jepa.errors import UserError


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Noise of every frequency: the hardest picture to resample alike."""
    random = np.random.default_rng(seed)
    layers = [
        np.asarray(
            Image.fromarray(
                random.integers(0, 256, (max(2, height // k), max(2, width // k), 3), dtype=np.uint8)
            ).resize((width, height), Image.Resampling.BICUBIC),
            dtype=float,
        )
        for k in (1, 4, 16, 64)
    ]
    return np.mean(layers, axis=0).astype(np.uint8)


@given(
    height=st.integers(1, 800),
    width=st.integers(1, 800),
    low=st.floats(0.01, 1),
    high=st.floats(0.01, 1),
    seed=st.integers(0, 2**32),
)
def test_a_crop_lies_in_the_picture(height: int, width: int, low: float, high: float, seed: int) -> None:
    box = crop_box(height, width, (min(low, high), max(low, high)), uniforms(seed, "crop", 0, [0], CROP_DRAWS)[0])
    assert box.height >= 1
    assert box.width >= 1
    assert 0 <= box.top <= height - box.height
    assert 0 <= box.left <= width - box.width


@given(
    height=st.integers(1, 800),
    width=st.integers(1, 800),
    draws=st.lists(st.floats(0, 1, exclude_max=True), min_size=22, max_size=22),
)
def test_the_geometry_is_torchvisions(height: int, width: int, draws: list[float]) -> None:
    """torchvision's own get_params, fed the same numbers in place of its random ones."""
    scale = (0.3, 1.0)
    box = crop_box(height, width, scale, np.asarray(draws))
    assert (box.top, box.left, box.height, box.width) == torchvision_box(height, width, scale, draws)


def torchvision_box(height: int, width: int, scale: tuple[float, float], draws: list[float]) -> tuple[int, ...]:
    source, places = iter(draws[:-2]), iter(draws[-2:])

    class Numbers:
        """Answers `torch.empty(1).uniform_(a, b)` from the list."""

        def uniform_(self, low: float, high: float) -> torch.Tensor:
            return torch.tensor([low + (high - low) * next(source)], dtype=torch.float64)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", lambda _: Numbers())
        patch.setattr(torch, "randint", lambda low, high, size: torch.tensor([int(next(places) * high)]))
        patch.setattr(torch, "log", lambda ratio: torch.tensor([math.log(3 / 4), math.log(4 / 3)], dtype=torch.float64))
        return tuple(
            int(v) for v in RandomResizedCrop.get_params(torch.zeros(3, height, width), [*scale], [3 / 4, 4 / 3])
        )


@pytest.mark.parametrize(
    ("height", "width", "scale"), [(375, 500, (0.3, 1.0)), (100, 400, (0.08, 1.0)), (64, 64, (0.3, 1.0))]
)
def test_the_distribution_is_torchvisions(height: int, width: int, scale: tuple[float, float]) -> None:
    count = 2000
    ours = [crop_box(height, width, scale, row) for row in uniforms(3, "crop", 0, range(count), CROP_DRAWS)]
    ours_N4 = np.asarray([(box.top, box.left, box.height, box.width) for box in ours])
    blank = torch.zeros(1, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs_N4 = np.asarray([RandomResizedCrop.get_params(blank, [*scale], [3 / 4, 4 / 3]) for _ in range(count)])
    for column in range(4):
        assert stats.ks_2samp(ours_N4[:, column], theirs_N4[:, column]).pvalue > 1e-3


@pytest.mark.parametrize("shape", [(375, 500), (500, 333), (224, 224), (64, 64), (900, 40), (31, 700)])
def test_resampling_is_pils_within_two_grey_levels_and_without_bias(shape: tuple[int, int]) -> None:
    image_HWC = photograph(*shape)
    ours = resample(image_HWC, 224).permute(1, 2, 0).numpy().astype(int)
    theirs = np.asarray(Image.fromarray(image_HWC).resize((224, 224), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(ours - theirs).max() <= 2
    assert (np.abs(ours - theirs) > 1).mean() < 1e-3
    assert np.abs((ours - theirs).mean()) < 0.01


def test_the_training_view_is_torchvisions_resized_crop() -> None:
    image_HWC = photograph(375, 500)
    for image_id in range(10):
        box = crop_box(375, 500, (0.3, 1.0), uniforms(5, "crop", 2, [image_id], CROP_DRAWS)[0])
        view_CHW = TrainView(224, (0.3, 1.0), False, 5)(image_HWC, image_id, 2)
        wanted = tv.resized_crop(Image.fromarray(image_HWC), box.top, box.left, box.height, box.width, [224, 224])
        assert view_CHW.dtype == torch.uint8
        assert (view_CHW.int() - tv.pil_to_tensor(wanted).int()).abs().max() <= 2


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (256, 256), (200, 901), (64, 64)])
def test_the_test_view_is_torchvisions_resize_and_centre_crop(height: int, width: int) -> None:
    image_HWC = photograph(height, width)
    resized = tv.resize(Image.fromarray(image_HWC), 256, tv.InterpolationMode.BICUBIC)
    wanted = tv.pil_to_tensor(tv.center_crop(resized, [224, 224]))
    assert torch.equal(TestView(224, 256)(image_HWC, 0, 0), wanted)


def test_without_resize_the_whole_picture_is_squeezed_to_a_square() -> None:
    image_HWC = photograph(80, 120)
    wanted = tv.pil_to_tensor(Image.fromarray(image_HWC).resize((64, 64), Image.Resampling.BICUBIC))
    assert torch.equal(TestView(64, None)(image_HWC, 0, 0), wanted)


def test_a_crop_larger_than_the_resized_picture_is_refused() -> None:
    with pytest.raises(UserError, match="test_resize 200 is smaller than the centre crop of 224"):
        TestView(224, 200)


def test_a_view_depends_on_seed_epoch_and_id_and_nothing_else() -> None:
    image_HWC = photograph(90, 120)
    view = TrainView(32, (0.08, 1.0), True, 1)
    first = view(image_HWC, 7, 3)
    torch.rand(5)
    assert torch.equal(view(image_HWC, 7, 3), first)
    for other in (view(image_HWC, 8, 3), view(image_HWC, 7, 4), TrainView(32, (0.08, 1.0), True, 2)(image_HWC, 7, 3)):
        assert not torch.equal(other, first)


def test_half_of_the_training_images_are_flipped_when_asked_and_none_otherwise() -> None:
    image_HWC = photograph(40, 40)
    plain, flipping = TrainView(16, (0.3, 1.0), False, 0), TrainView(16, (0.3, 1.0), True, 0)
    flipped = 0
    for image_id in range(400):
        without, with_flip = plain(image_HWC, image_id, 0), flipping(image_HWC, image_id, 0)
        assert torch.equal(with_flip, without) or torch.equal(with_flip, without.flip(-1))
        flipped += not torch.equal(with_flip, without)
    assert 160 < flipped < 240


def test_normalise_is_torchvisions() -> None:
    images_BCHW = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    wanted = tv.normalize(images_BCHW.float() / 255, list(MEAN), list(STD))
    torch.testing.assert_close(normalise(images_BCHW), wanted, rtol=0, atol=2e-6)
    assert normalise(images_BCHW).dtype == torch.float32
    assert normalise(images_BCHW[:0]).shape == (0, 3, 8, 8)
