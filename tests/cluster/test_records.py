"""Which rank is named as the one that the others failed because of.

pytest tests/cluster/test_records.py
"""

import os
from pathlib import Path

from dseq_jepa.cluster.records import INTERRUPTED, Attempt, End


def ended(attempt: Attempt, rank: int, code: int, *, note: str = "", told: bool = False, error: float = 0) -> None:
    """One rank that ended, and when it wrote its error, if it did."""
    attempt.write(End(rank, code, 1000.0 + rank, "n1", note, told))
    if error:
        attempt.error_file(rank).write_text("{}")
        os.utime(attempt.error_file(rank), (error, error))


def test_the_earliest_error_is_the_first_failure_also_within_a_second(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path, 0)
    for rank, error in enumerate([7.25, 7.125, 7.0625, 7.5]):
        ended(attempt, rank, 1, error=error)
    assert attempt.first_failure().rank == 2


def test_a_killed_rank_comes_before_the_errors_that_it_caused(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path, 0)
    ended(attempt, 0, 1, error=7.0)
    ended(attempt, 3, 128 + 9)
    assert attempt.first_failure().rank == 3


def test_a_rank_that_was_told_to_stop_is_no_culprit_while_there_is_another(tmp_path: Path) -> None:
    """srun kills what a failed rank leaves behind, which then looks killed."""
    attempt = Attempt(tmp_path, 0)
    ended(attempt, 0, 128 + 9, told=True)
    ended(attempt, 1, 128 + 15, told=True, error=7.0)
    assert attempt.first_failure().rank == 0
    assert not attempt.failed_untold()
    ended(attempt, 2, 1, error=7.5)
    assert attempt.first_failure().rank == 2
    assert attempt.failed_untold()


def test_ranks_that_go_on_later_did_not_fail(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path, 0)
    ended(attempt, 0, 75, note=INTERRUPTED, told=True)
    ended(attempt, 1, 0)
    assert attempt.first_failure() is None
    assert not attempt.failed_untold()
