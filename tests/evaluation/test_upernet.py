"""The network: its scales, its heads and sliding windows."""

from pathlib import Path

import pytest
import torch
from torch import nn

from dseq_jepa.evaluation.backbone import Backbone
from dseq_jepa.evaluation.settings import SegmentationSettings
from dseq_jepa.evaluation.upernet import Segmenter, read_blocks, slide, window_starts
from tests.evaluation.pictures import export
from tests.models.checkpoints import TINY, encoder

SETTINGS = SegmentationSettings.model_validate(
    {
        "kind": "segment", "data": "d", "batch_size": 2, "learning_rate": 0.1, "layer_decay": 1.0, "iterations": 2,
        "warmup_iterations": 0, "crop_size": 64, "stride": 40, "width": 16, "auxiliary_width": 8, "drop_path": 0.0,
        "dropout": 0.0,
    }
)  # fmt: skip


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    torch.manual_seed(0)
    path = export(encoder(True), tmp_path_factory.mktemp("encoder"))
    return Segmenter(Backbone.load(path, SETTINGS, image_size=64), SETTINGS, 7).eval()


@pytest.mark.parametrize(
    ("depth", "blocks"), [(12, [4, 6, 8, 12]), (24, [8, 12, 16, 24]), (6, [2, 3, 4, 6]), (4, [1, 2, 3, 4])]
)
def test_the_blocks_are_mmsegmentations_scaled_to_the_depth(depth: int, blocks: list[int]):
    assert read_blocks(depth) == blocks


@pytest.mark.parametrize(("depth", "blocks"), [(1, [1, 1, 1, 1]), (3, [1, 2, 2, 3]), (5, [2, 2, 3, 5])])
def test_a_shallow_encoder_is_read_more_than_once_at_a_block(depth: int, blocks: list[int], tmp_path: Path):
    assert read_blocks(depth) == blocks
    shallow = TINY.model_copy(update={"depth": depth, "saliency_block": depth})
    shown = Segmenter(Backbone.load(export(encoder(True, shallow), tmp_path), SETTINGS, image_size=64), SETTINGS, 7)
    assert shown.eval()(torch.randn(1, 3, 64, 64))[0].shape == (1, 7, 32, 32)


def test_scales_are_4_2_1_and_a_half_and_the_auxiliary_head_reads_the_third(network: Segmenter):
    maps = network.pyramid([torch.randn(1, 24, 8, 8)] * 4)
    assert [one.shape[-1] for one in maps] == [32, 16, 8, 4]
    logits, auxiliary = network(torch.randn(2, 3, 64, 64))
    assert (logits.shape, auxiliary.shape) == ((2, 7, 32, 32), (2, 7, 8, 8))


def test_both_heads_are_transformers_own_with_a_dropout_before_the_last_layer(network: Segmenter):
    from transformers import UperNetConfig
    from transformers.models.upernet.modeling_upernet import UperNetHead

    config = UperNetConfig(hidden_size=16)
    config.num_labels = 7
    plain = UperNetHead(config, [24] * 4).eval()
    renamed = {name.replace("classifier.1.", "classifier."): v for name, v in network.decoder.state_dict().items()}
    plain.load_state_dict(renamed)
    maps = network.pyramid([torch.randn(1, 24, 8, 8)] * 4)
    assert torch.equal(plain(maps), network.decoder(maps))


@pytest.mark.parametrize("length", [64, 65, 100, 104, 105, 300])
def test_windows_cover_the_side_and_end_at_the_border(length: int):
    starts = window_starts(length, 64, 40)
    covered = set().union(*(range(start, start + 64) for start in starts))
    assert covered == set(range(length))
    assert len(starts) == max(0, -(-(length - 64) // 40)) + 1
    assert window_starts(683, 512, 341) == [0, 171]
    assert window_starts(40, 64, 40) == [0]


def by_hand(network: Segmenter, picture: torch.Tensor) -> torch.Tensor:
    """mmsegmentation's slide inference, one window after the other."""
    _, height, width = picture.shape
    total, seen = torch.zeros(7, height, width), torch.zeros(height, width)
    for row in range(max(height - 64 + 39, 0) // 40 + 1):
        for column in range(max(width - 64 + 39, 0) // 40 + 1):
            bottom, right = min(row * 40 + 64, height), min(column * 40 + 64, width)
            top, left = max(bottom - 64, 0), max(right - 64, 0)
            logits, _ = network(picture[None, :, top:bottom, left:right])
            total[:, top:bottom, left:right] += nn.functional.interpolate(logits, (64, 64), mode="bilinear")[0]
            seen[top:bottom, left:right] += 1
    return total / seen


@torch.no_grad()
def test_sliding_windows_are_averaged(network: Segmenter):
    picture = torch.randn(3, 97, 131)
    expected = by_hand(network, picture)
    for at_once in (1, 3, 8):
        assert torch.allclose(slide(network, picture, 64, 40, at_once), expected, atol=1e-4)


@torch.no_grad()
def test_a_picture_smaller_than_a_window_is_padded_for_it(network: Segmenter):
    picture = torch.randn(3, 33, 64)
    logits = slide(network, picture, 64, 40)
    padded = torch.zeros(3, 64, 64)
    padded[:, :33] = picture
    whole = nn.functional.interpolate(network(padded[None])[0], (64, 64), mode="bilinear")[0]
    assert logits.shape == (7, 33, 64)
    assert torch.allclose(logits, whole[:, :33], atol=1e-5)
