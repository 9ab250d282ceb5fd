"""Checkpoint scores by loops: weighted kNN, RankMe and LiDAR (docs/protocols.md 2).

pytest tests/reference -k "knn or rank"
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


def cosine(left_D: Matrix, right_D: Matrix) -> float:
    """Cosine similarity."""
    return float(left_D @ right_D / math.sqrt(float(left_D @ left_D)) / math.sqrt(float(right_D @ right_D)))


def knn_votes(
    bank_ND: Matrix, bank_labels: Sequence[int], query_D: Matrix, neighbours: int, temperature: float
) -> dict[int, float]:
    """Sum per class of exp(similarity / temperature) over the nearest bank rows; the earlier row wins a tie."""
    nearest = sorted((-cosine(row_D, query_D), index) for index, row_D in enumerate(bank_ND))[:neighbours]
    votes: dict[int, float] = {}
    for negative, index in nearest:
        label = bank_labels[index]
        votes[label] = votes.get(label, 0.0) + math.exp(-negative / temperature)
    return votes


def knn_top1(
    bank_ND: Matrix,
    bank_labels: Sequence[int],
    queries_ND: Matrix,
    query_labels: Sequence[int],
    neighbours: int = 20,
    temperature: float = 0.07,
) -> float:
    """Percent of queries whose class has the most votes; the smaller class wins a tie."""
    hits = 0
    for query_D, label in zip(queries_ND, query_labels, strict=True):
        votes = knn_votes(bank_ND, bank_labels, query_D, neighbours, temperature)
        hits += min(votes, key=lambda candidate: (-votes[candidate], candidate)) == label
    return 100 * hits / len(query_labels)


def _exponential_entropy(spectrum: Matrix, eps: float) -> float:
    total = sum(abs(float(value)) for value in spectrum)
    shares = [float(value) / total + eps for value in spectrum]
    return math.exp(-sum(share * math.log(share) for share in shares))


def rankme(features_ND: Matrix, eps: float = 1e-7) -> float:
    """exp(-sum_k p_k log p_k), p_k = s_k / sum s + eps over the singular values s of the features, not centred.

    Garrido et al. 2023, https://arxiv.org/abs/2210.02885, equations 1-2; eps 1e-7 for float32. The p_k are not
    normalised again after eps.
    """
    return _exponential_entropy(np.linalg.svd(features_ND.astype(np.float64), compute_uv=False), eps)


def lidar(features_NVD: Matrix, delta: float = 1e-4, eps: float = 1e-7) -> float:
    """Effective rank of the LDA matrix of N images with V views each (every image is its own class).

    Thilak et al. 2023, https://arxiv.org/abs/2312.04000, section 4:
        between = mean_x (m_x - m)(m_x - m)^T, m_x the mean over image x's views, m the mean of the m_x
        within = mean_{x, view} (e - m_x)(e - m_x)^T + delta I
        LDA = within^{-1/2} between within^{-1/2}, eigenvalues l
        LiDAR = exp(-sum_k p_k log p_k), p_k = l_k / sum |l| + eps.
    The expectations are plain means (1/N, 1/(N V)); the defaults of delta and eps are our choice.
    """
    features_NVD = features_NVD.astype(np.float64)
    images, views, width = features_NVD.shape
    means_ND = np.stack([features_NVD[image].sum(0) / views for image in range(images)])
    mean_D = means_ND.sum(0) / images
    between_DD = np.zeros((width, width))
    within_DD = np.zeros((width, width))
    for image in range(images):
        gap_D = means_ND[image] - mean_D
        between_DD += np.outer(gap_D, gap_D) / images
        for view in range(views):
            gap_D = features_NVD[image, view] - means_ND[image]
            within_DD += np.outer(gap_D, gap_D) / (images * views)
    values_D, vectors_DD = np.linalg.eigh(within_DD + delta * np.eye(width))
    root_DD = vectors_DD @ np.diag(values_D**-0.5) @ vectors_DD.T
    # Rounding makes null eigenvalues slightly negative; they stand for zero.
    spectrum_D = np.maximum(np.linalg.eigvalsh(root_DD @ between_DD @ root_DD), 0.0)
    return _exponential_entropy(spectrum_D, eps)
