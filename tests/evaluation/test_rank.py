import numpy as np
import pytest
import torch

from dseq_jepa.evaluation.rank import feature_std, lidar, rankme
from tests.reference import knn as reference


@pytest.mark.parametrize("rank", [1, 3, 16])
def test_rankme_equals_the_singular_value_loop(rank: int) -> None:
    generator = torch.Generator().manual_seed(rank)
    embedding_ND = torch.randn(200, rank, generator=generator) @ torch.randn(rank, 16, generator=generator)
    assert rankme(embedding_ND) == pytest.approx(reference.rankme(embedding_ND.numpy()), rel=1e-3)
    assert rankme(embedding_ND) <= rank + 1e-3


def test_lidar_equals_the_loop_over_images_and_views() -> None:
    generator = torch.Generator().manual_seed(0)
    image_N1D = torch.randn(30, 1, 12, generator=generator) * torch.linspace(0.01, 3, 12)
    embedding_NVD = image_N1D + 0.3 * torch.randn(30, 5, 12, generator=generator)
    assert lidar(embedding_NVD) == pytest.approx(reference.lidar(embedding_NVD.numpy()), rel=1e-3)


def test_a_collapsed_encoder_has_rank_one_and_no_spread() -> None:
    constant_ND = torch.ones(50, 1) * torch.randn(1, 8)
    assert rankme(constant_ND) == pytest.approx(1, abs=1e-6)
    assert lidar(constant_ND[:, None].expand(50, 4, 8)) == pytest.approx(1, abs=1e-6)
    assert feature_std(constant_ND) == pytest.approx(0, abs=1e-6)


def test_directions_that_only_the_views_use_do_not_count() -> None:
    generator = torch.Generator().manual_seed(0)
    embedding_NVD = torch.zeros(64, 6, 10)
    embedding_NVD[..., :2] = torch.randn(64, 1, 2, generator=generator)
    embedding_NVD[..., 2:] = torch.randn(64, 6, 8, generator=generator)
    embedding_NVD[..., 2:] -= embedding_NVD[..., 2:].mean(1, keepdim=True)
    assert lidar(embedding_NVD) == pytest.approx(2, rel=0.05)
    assert rankme(embedding_NVD.flatten(0, 1)) > 5


def test_spread_is_the_mean_standard_deviation() -> None:
    embedding_ND = torch.randn(100, 5, generator=torch.Generator().manual_seed(0))
    assert feature_std(embedding_ND) == pytest.approx(float(np.std(embedding_ND.numpy(), axis=0, ddof=1).mean()))


def test_one_view_has_no_lidar() -> None:
    with pytest.raises(ValueError, match="at least 2 images with 2 views"):
        lidar(torch.randn(5, 1, 4))
