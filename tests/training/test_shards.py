"""Sharded states: saved on some ranks, resumed on fewer, with the global batch and the same losses.

pytest tests/training/test_shards.py
"""

import json
from pathlib import Path

import pytest

from dseq_jepa.errors import UserError
from dseq_jepa.jobs import PretrainJob
from dseq_jepa.journal import read
from dseq_jepa.training.checkpoint import StateStore
from dseq_jepa.training.distributed import start
from dseq_jepa.training.loop import Run, pretrain
from tests.training.runs import job
from tests.training.test_loop import metrics
from tests.training.test_ranks import torchrun

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
LAST_BUT_ONE = 18
"""Step of the state before the last one, of 24."""


def keep_the_state_before_the_last(settings: PretrainJob, out: Path) -> None:
    """What a run that was killed before its end left."""
    folder = out / "state" / settings.digest
    newest = max(folder.glob("state-*.json"))
    newest.unlink()
    (left,) = folder.glob("state-*.json")
    assert json.loads(left.read_text())["step"] == LAST_BUT_ONE
    assert left.with_suffix(".pt").stat().st_size < 1e5, "weights and optimizer lie in the shards"


@pytest.mark.parametrize(("saved", "ranks"), [(8, 4), (4, 2), (4, 1)])
def test_saved_on_some_ranks_resumed_on_fewer(saved: int, ranks: int, pictures: Path, tmp_path: Path) -> None:
    settings = job(pictures, sharding="fsdp")
    run = [str(pictures), str(tmp_path), settings.to_json()]
    torchrun(saved, "tests.training.runs", *run)
    whole = metrics(tmp_path)
    keep_the_state_before_the_last(settings, tmp_path)
    if ranks == 1:
        pretrain(settings, tmp_path)
    else:
        torchrun(ranks, "tests.training.runs", *run)
    resumed = metrics(tmp_path)
    assert resumed.keys() == whole.keys()
    for step, values in whole.items():
        assert resumed[step]["loss"] == pytest.approx(values["loss"], rel=2e-3), f"step {step}"
        assert step <= LAST_BUT_ONE or resumed[step] != values, "the second half was computed again"
    (event,) = [line for line in read(tmp_path / "journal.jsonl") if line.get("name") == "accumulation"]
    assert (event["ranks"], event["parts"]) == (ranks, saved // ranks)


def test_a_damaged_shard_is_found(pictures: Path, tmp_path: Path) -> None:
    settings = job(pictures, sharding="fsdp", epochs=2)
    torchrun(2, "tests.training.runs", str(pictures), str(tmp_path), settings.to_json())
    store = StateStore(tmp_path / "state" / settings.digest)
    newest, _ = store.find()
    assert newest is not None
    shard = next(newest.with_suffix(".shards").glob("*.distcp"))
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    older, warnings = store.find()
    assert older != newest
    assert "checksum" in warnings[0]


def test_contrastive_methods_refuse_fewer_ranks_and_say_why(pictures: Path, tmp_path: Path) -> None:
    settings = job(pictures, "c-jepa")
    torchrun(2, "tests.training.runs", str(pictures), str(tmp_path), settings.to_json())
    with pytest.raises(UserError, match=r"saved on 2 ranks and this run has 1. c-jepa is contrastive.*whole batch"):
        Run(settings, tmp_path, start(settings.compute))
