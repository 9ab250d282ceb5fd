"""Figure 2 draws what the method computes: its regions, Otsu's mask, and the other method's blocks.

pytest tests/figures/test_panels.py
"""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.path import Path as Outline

from dseq_jepa.figures import style
from dseq_jepa.figures.kept import as_input, open_kept, reading, some_pictures
from dseq_jepa.figures.panels import Found, _draw_blocks, _draw_regions, find
from dseq_jepa.methods.blocks import draw_blocks
from dseq_jepa.methods.regions import cls_saliency, ranked_regions
from tests.figures.runs import FIGURES, figure_job

Trained = tuple[Path, Path]


@pytest.fixture(scope="module")
def found(trained: Trained) -> Found:
    root, results = trained
    job, figure = figure_job(root, "panels"), FIGURES["panels"].model_copy(update={"images": 40})
    with reading(job) as device:
        kept = open_kept(job, job.models[0], 100, results, device)
        pictures = some_pictures(job, "train", 40)
        source = kept.method.target_encoder.read(as_input(pictures.images_BCHW, device), [1])[0]
        maps_BT = cls_saliency(source.class_BD, source.patches_BTD)
        result = find(job, figure, kept, pictures, device)
    np.testing.assert_array_equal(result.saliency_BGG.reshape(40, -1), maps_BT.numpy())
    expected = ranked_regions(maps_BT, 6, job.methods["dseq-jepa"].regions)
    np.testing.assert_array_equal(result.ranks_BGG.reshape(40, -1), expected.numpy())
    context, targets = draw_blocks(6, job.methods["i-jepa"].blocks, 5, 0, pictures.ids_B)
    np.testing.assert_array_equal(result.context_BGG.reshape(40, -1), context)
    np.testing.assert_array_equal(result.targets_BRGG.reshape(40, 4, -1), targets)
    return result


def test_maps_regions_and_blocks_are_those_of_the_methods(found: Found):
    assert len(np.unique(found.ranks_BGG)) > 2  # the comparison in the fixture saw regions


def test_ranked_regions_lie_inside_otsus_mask_and_what_is_left_of_it_is_too_small(found: Found):
    for mask_GG, ranks_GG in zip(found.mask_BGG, found.ranks_BGG, strict=True):
        regions_GG = (ranks_GG > 0) & (ranks_GG < ranks_GG.max())
        assert mask_GG[regions_GG].all()
        if ranks_GG.max() < 5:  # with N regions the remainder may hold components that rank lower
            left_GG = mask_GG & ~regions_GG
            for row, column in np.argwhere(left_GG):
                near = left_GG[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2]
                assert near.sum() == 1  # min_patches is 2: only single patches were dropped


def test_an_outline_encloses_exactly_its_patches():
    draws = np.random.default_rng(0)
    y, x = np.mgrid[:6, :6] * 8 + 3.5
    for density in (0.1, 0.4, 0.7, 1.0):
        mask_GG = draws.random((6, 6)) < density
        axes = Figure().subplots()
        style.outline(axes, mask_GG, 8, style.BLACK)
        inside = np.zeros(36, int)
        for line in axes.lines:
            inside += Outline(line.get_xydata()).contains_points(np.stack([x.ravel(), y.ravel()], axis=1))
        np.testing.assert_array_equal(inside.reshape(6, 6) % 2 == 1, mask_GG)


def numbers_of(axes) -> dict[str, tuple[float, float]]:
    return {text.get_text(): text.get_position() for text in axes.texts}


def test_every_region_carries_its_rank_inside_itself(found: Found):
    image = np.zeros((48, 48, 3), np.uint8)
    for ranks_GG in found.ranks_BGG:
        axes = Figure().subplots()
        _draw_regions(axes, image, ranks_GG, 8)
        numbers = numbers_of(axes)
        assert sorted(numbers) == [str(rank) for rank in range(1, ranks_GG.max() + 1)]
        for text, (x, y) in numbers.items():
            assert ranks_GG[int(y // 8), int(x // 8)] == int(text)
        assert axes.get_xlabel() == ("no region" if ranks_GG.max() == 0 else "")


def test_there_may_be_more_regions_and_blocks_than_colours():
    image = np.zeros((96, 96, 3), np.uint8)
    ranks_GG = np.full((12, 12), 10)
    ranks_GG[1:10, 1] = np.arange(1, 10)
    axes = Figure().subplots()
    _draw_regions(axes, image, ranks_GG, 8)
    assert sorted(numbers_of(axes), key=int) == [str(rank) for rank in range(1, 11)]
    axes = Figure().subplots()
    _draw_blocks(axes, image, ranks_GG == 10, ranks_GG == np.arange(1, 10)[:, None, None], 8)
    assert sorted(numbers_of(axes), key=int) == [str(block) for block in range(1, 10)]


def test_numbers_of_equal_blocks_do_not_cover_one_another():
    mask_GG = np.zeros((14, 14), bool)
    mask_GG[3:9, 4:10] = True
    axes = Figure().subplots()
    style.numbers(axes, [mask_GG] * 4, 16, style.RANKS)
    places = np.array(list(numbers_of(axes).values()))
    gaps = np.hypot(*(places[:, None] - places[None]).transpose(2, 0, 1))
    assert gaps[~np.eye(4, dtype=bool)].min() >= style.CIRCLE * 14 * 16
