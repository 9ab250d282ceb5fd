import numpy as np
import pytest
import torch

from dseq_jepa.evaluation.neighbours import weighted_knn
from tests.reference.knn import knn_top1, knn_votes


@pytest.mark.parametrize("seed", range(5))
def test_predictions_equal_the_loop_over_queries(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    bank_ND, queries_QD = torch.randn(60, 7, generator=generator), torch.randn(40, 7, generator=generator)
    labels_N = torch.randint(0, 5, (60,), generator=generator).numpy()
    predicted_Q = weighted_knn(bank_ND, labels_N, queries_QD, neighbours=9, temperature=0.07)
    for query_D, predicted in zip(queries_QD.double().numpy(), predicted_Q, strict=True):
        votes = knn_votes(bank_ND.double().numpy(), labels_N.tolist(), query_D, 9, 0.07)
        assert predicted == max(votes, key=lambda label: votes[label])
    truth_Q = torch.randint(0, 5, (40,), generator=generator).numpy()
    expected = knn_top1(
        bank_ND.double().numpy(), labels_N.tolist(), queries_QD.double().numpy(), truth_Q.tolist(), 9, 0.07
    )
    assert 100 * np.mean(predicted_Q == truth_Q) == pytest.approx(expected)


def test_one_close_neighbour_outvotes_many_far_ones() -> None:
    bank_ND = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    predicted_Q = weighted_knn(
        bank_ND, np.array([3, 1, 1, 1]), torch.tensor([[2.0, 0.1]]), neighbours=4, temperature=0.07
    )
    assert predicted_Q.tolist() == [3]


def test_the_length_of_an_embedding_does_not_matter() -> None:
    bank_ND, queries_QD = torch.randn(30, 4), torch.randn(10, 4)
    labels_N = np.arange(30) % 3
    plain_Q = weighted_knn(bank_ND, labels_N, queries_QD, neighbours=5, temperature=0.1)
    lengths_N1 = torch.rand(30, 1) + 0.5
    scaled_Q = weighted_knn(bank_ND * lengths_N1, labels_N, 7 * queries_QD, neighbours=5, temperature=0.1)
    assert plain_Q.tolist() == scaled_Q.tolist()


def test_more_neighbours_than_images_are_refused() -> None:
    with pytest.raises(ValueError, match="20 neighbours of a bank of 6"):
        weighted_knn(torch.randn(6, 2), np.zeros(6, dtype=np.int64), torch.randn(1, 2), neighbours=20, temperature=1)
