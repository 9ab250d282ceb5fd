import gzip
import time
from pathlib import Path

import numpy as np
import pytest

from dseq_jepa.data.catalog import Split
from dseq_jepa.data.names import Names
from dseq_jepa.evaluation.heads import HeadSettings
from dseq_jepa.evaluation.report import (
    best_constant,
    head_rows,
    record_lines,
    sweep_rows,
    top1,
    winners,
    write_records,
)

MEMBERS = [HeadSettings(kind, epochs, 0.1) for kind in ("last4", "last") for epochs in (10, 30)]


def test_of_each_kind_of_features_the_best_on_held_out_images_wins_and_of_equals_the_first() -> None:
    assert winners(MEMBERS, [50.0, 60.0, 99.0, 70.0]) == [1, 2]
    assert winners(MEMBERS, [60.0, 60.0, 69.0, 70.0]) == [0, 3]


def test_every_head_and_every_candidate_is_listed_with_its_accuracy() -> None:
    row = {"features": "last", "epochs": 10, "learning_rate": 0.1}
    assert head_rows(MEMBERS, [5.0, 6.0, 7.0, 8.0])[2] == row | {"top1": 7.0}
    swept = sweep_rows(MEMBERS, [1.0, 2.0, 4.0, 3.0])
    assert swept[2] == row | {"holdout_top1": 4.0, "chosen": True}
    assert [entry["chosen"] for entry in swept] == [False, True, True, False]


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
