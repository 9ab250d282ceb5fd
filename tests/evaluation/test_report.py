import gzip
import time
from pathlib import Path

import numpy as np
import pytest

from dseq_jepa.data.catalog import Split
from dseq_jepa.data.names import Names
from dseq_jepa.evaluation.heads import HeadSettings
from dseq_jepa.evaluation.report import best_constant, choose, head_rows, record_lines, top1, write_records

MEMBERS = [HeadSettings("last4", 0.1), HeadSettings("last4", 0.3), HeadSettings("last", 0.1), HeadSettings("last", 0.3)]


def test_the_reported_head_is_the_best_on_held_out_images_among_the_first_features() -> None:
    assert choose(MEMBERS, [50.0, 60.0, 99.0, 70.0]) == 1
    assert choose(MEMBERS, [60.0, 60.0, 99.0, 70.0]) == 0
    assert choose(MEMBERS[::2], None) == 0


def test_every_head_is_listed_with_both_accuracies() -> None:
    rows = head_rows(MEMBERS, [1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0])
    assert rows[2] == {"features": "last", "learning_rate": 0.1, "holdout_top1": 3.0, "top1": 7.0}
    assert head_rows(MEMBERS, None, [5.0, 6.0, 7.0, 8.0])[0]["holdout_top1"] is None


def test_accuracy_and_chance_are_in_percent() -> None:
    assert top1(np.array([[0, 1, 2, 3], [0, 0, 0, 0]]), np.array([0, 1, 2, 0])) == [75.0, 50.0]
    assert best_constant(np.array([0, 1, 2, 3])) == 25.0
    assert best_constant(np.array([0, 1, 1, 1])) == 75.0


def test_a_record_says_what_was_predicted_and_whether_it_was_right() -> None:
    split = Split(Path("root"), Names(["a.jpg", "b,c.jpg", "d.jpg"]), np.array([0, 1, 1]), ("ant", "bee"))
    lines = record_lines("cub", split, np.array([0, 2]), np.array([1, 1])).splitlines()
    assert lines == ["cub,a.jpg,ant,bee,0", 'cub,"b,c.jpg",bee,,', "cub,d.jpg,bee,bee,1"]


def test_equal_records_give_equal_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_records(tmp_path / "a", ["cub,a.jpg,ant,bee,0\n"])
    monkeypatch.setattr(time, "time", lambda: 1e9)
    write_records(tmp_path / "b", ["cub,a.jpg,ant,bee,0\n"])
    written = [(tmp_path / out / "records.csv.gz").read_bytes() for out in ("a", "b")]
    assert written[0] == written[1]
    assert gzip.decompress(written[0]).decode() == "evaluation,image,label,prediction,correct\ncub,a.jpg,ant,bee,0\n"
