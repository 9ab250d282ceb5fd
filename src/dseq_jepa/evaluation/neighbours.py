"""Weighted nearest neighbours: the label-cheap score that chooses a checkpoint (docs/protocols.md 2).

Q queries, N bank images, D width, K neighbours.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_CHUNK = 1024
"""Queries compared with the bank at once: 128,000 bank images x 1,024 queries are 0.5 GB."""


def weighted_knn(
    bank_ND: Tensor, labels_N: NDArray[np.int64], queries_QD: Tensor, *, neighbours: int, temperature: float
) -> NDArray[np.int64]:
    """Predicted label of every query (Wu et al., 2018, arXiv:1805.01978, section 3.4).

    Each of the K bank images with the highest cosine similarity s votes for its label with weight exp(s / temperature).
    Equal votes go to the smaller label. Votes are summed in float64 in a fixed order: the same on every device.

    Raises:
        ValueError: more neighbours than the bank has images.

    """
    if neighbours > len(bank_ND):
        raise ValueError(f"{neighbours} neighbours of a bank of {len(bank_ND)} images")
    bank_DN = torch.nn.functional.normalize(bank_ND.float(), dim=1).T
    predicted = []
    for begin in range(0, len(queries_QD), _CHUNK):
        chunk_CD = torch.nn.functional.normalize(queries_QD[begin : begin + _CHUNK].float(), dim=1)
        similarity_CN = chunk_CD @ bank_DN
        nearest = similarity_CN.topk(neighbours, dim=1)
        weights_CK = np.exp(nearest.values.cpu().numpy().astype(np.float64) / temperature)
        voted_CK = labels_N[nearest.indices.cpu().numpy()]
        votes_CL = np.zeros((len(chunk_CD), int(labels_N.max()) + 1))
        np.add.at(votes_CL, (np.arange(len(chunk_CD))[:, None], voted_CK), weights_CK)
        predicted.append(votes_CL.argmax(axis=1))
    return np.concatenate(predicted)
