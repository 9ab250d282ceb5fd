"""How many directions a set of embeddings really uses: RankMe and LiDAR.

    python -c 'import torch; from dseq_jepa.evaluation.rank import rankme; print(rankme(torch.randn(512, 64)))'

Both are exp(entropy) of a normalised spectrum: 1 for a collapsed encoder, at most the width. Everything is computed in
float64 on the CPU. N images, V views of each, D width.
"""

import torch
from torch import Tensor

RIDGE = 1e-4
"""delta of the LiDAR paper (section 4): added to the diagonal of the within-image covariance."""


def rankme(embedding_ND: Tensor) -> float:
    """RankMe (Garrido et al., 2023, arXiv:2210.02885, eq. 1-2): exp(entropy) of the singular values, not centred.

    Works on the smaller of the two products of the matrix with itself, whose eigenvalues are the squared singular
    values: 100,000 embeddings cost one product and an eigendecomposition of the width.
    """
    rows_ND = embedding_ND.double().cpu()
    tall = len(rows_ND) > rows_ND.shape[1]
    return _spectral_entropy(_eigenvalues(rows_ND.T @ rows_ND if tall else rows_ND @ rows_ND.T).sqrt())


def lidar(embedding_NVD: Tensor) -> float:
    """LiDAR (Thilak et al., 2023, arXiv:2312.04000, eq. 1-3): effective rank of a linear discriminant analysis.

    Every image is a class and its V augmented views are the samples: the spectrum is that of the between-image
    covariance after whitening by the within-image covariance (+ RIDGE on the diagonal). At most N - 1.

    Raises:
        ValueError: fewer than two images or views, which have no covariance.

    """
    images, views, width = embedding_NVD.shape
    if images < 2 or views < 2:
        raise ValueError(f"LiDAR needs at least 2 images with 2 views each, got {images} with {views}")
    rows_NVD = embedding_NVD.double().cpu()
    centre_ND = rows_NVD.mean(dim=1)
    between_ND = centre_ND - centre_ND.mean(dim=0)
    within_KD = (rows_NVD - centre_ND[:, None]).reshape(-1, width)
    within_DD = within_KD.T @ within_KD / (images * views)
    within_DD += RIDGE * torch.eye(width, dtype=torch.float64)
    values_D, vectors_DD = torch.linalg.eigh(within_DD)
    whitened_ND = between_ND @ (vectors_DD * values_D.rsqrt())
    return _spectral_entropy(_eigenvalues(whitened_ND.T @ whitened_ND / images))


def feature_std(embedding_ND: Tensor) -> float:
    """Standard deviation over images, mean over the width: 0 when every image gets the same embedding."""
    return float(embedding_ND.double().cpu().std(dim=0).mean())


def _eigenvalues(symmetric_DD: Tensor) -> Tensor:
    """Eigenvalues without rounding noise below zero or below the precision of the largest."""
    values_D = torch.linalg.eigvalsh(symmetric_DD)
    floor = values_D[-1] * len(values_D) * torch.finfo(torch.float64).eps
    return torch.where(values_D > floor, values_D, 0)


def _spectral_entropy(spectrum_D: Tensor) -> float:
    total = spectrum_D.sum()
    if total <= 0:
        return 1.0
    share_D = spectrum_D / total
    return float(torch.special.entr(share_D).sum().exp())
