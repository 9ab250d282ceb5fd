"""The network: scales, windows, statistics over ranks."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dseq_jepa.evaluation.backbone import Backbone
from dseq_jepa.evaluation.settings import SegmentationSettings
from dseq_jepa.evaluation.upernet import RankBatchNorm2d, Segmenter, read_blocks, slide, window_starts
from tests.evaluation.pictures import export
from tests.models.checkpoints import encoder

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


def statistics(rank: int, port: int, out: Path) -> None:
    """On one of two ranks: half of a batch through RankBatchNorm2d."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.manual_seed(0)
    x, weight = torch.randn(6, 4, 3, 3) * 3 + 1, torch.randn(6, 4, 3, 3)
    norm = RankBatchNorm2d(4)
    mine = x[3 * rank : 3 * rank + 3].clone().requires_grad_()
    result = norm(mine)
    (result * weight[3 * rank : 3 * rank + 3]).sum().backward()
    torch.save({"y": result.detach(), "dx": mine.grad, "norm": norm.state_dict()}, out / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_statistics_over_ranks_equal_those_of_the_whole_batch(tmp_path: Path):
    import socket
    import subprocess

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = "import sys; from pathlib import Path; from tests.evaluation.test_upernet import statistics; "
    code += "statistics(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))"
    ranks = [subprocess.Popen([sys.executable, "-c", code, str(r), str(port), str(tmp_path)]) for r in (0, 1)]
    assert [process.wait(timeout=100) for process in ranks] == [0, 0]
    torch.manual_seed(0)
    x, weight = (torch.randn(6, 4, 3, 3) * 3 + 1).requires_grad_(), torch.randn(6, 4, 3, 3)
    norm = nn.BatchNorm2d(4)
    result = norm(x)
    (result * weight).sum().backward()
    parts: list[dict[str, Any]] = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert torch.allclose(torch.cat([part["y"] for part in parts]), result, atol=1e-5)
    assert x.grad is not None
    assert torch.allclose(torch.cat([part["dx"] for part in parts]), x.grad, atol=1e-5)
    for name in ("running_mean", "running_var"):
        assert torch.allclose(parts[0]["norm"][name], norm.state_dict()[name], atol=1e-5)
        assert torch.equal(parts[0]["norm"][name], parts[1]["norm"][name])
