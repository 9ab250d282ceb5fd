"""Jobs of fine-tuning, segmentation and detection in this process or in one that can be killed.

python -m tests.evaluation.tuned VERB SAVE_SECONDS SETTINGS ENCODER OUT
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dseq_jepa.data.settings import DatasetSettings, LoadingSettings
from dseq_jepa.evaluation.finished import Finished
from dseq_jepa.evaluation.tuning import Tuning
from dseq_jepa.jobs import DetectJob, EvaluateJob, FinetuneJob, SegmentJob
from dseq_jepa.journal import read
from tests.models.checkpoints import CPU, MODEL

JOBS: dict[str, Any] = {"finetune": FinetuneJob, "segment": SegmentJob, "detect": DetectJob}


def tuned_job(verb: str, data: DatasetSettings, settings: dict[str, Any], on_bad_image: str = "error") -> Any:
    """One evaluation, called "e"."""
    return JOBS[verb].parse(
        json.dumps(
            {
                "model": MODEL.model_dump(), "compute": CPU.model_dump(), "group": verb,
                "loading": LoadingSettings(workers=0, on_bad_image=on_bad_image).model_dump(),
                "evaluations": {"e": {"kind": verb, "data": "d"} | settings},
                "data": {"d": data.model_dump(mode="json")},
            }
        )
    )  # fmt: skip


def start(
    verb: str, job: EvaluateJob[Any], weights: Path, out: Path, *, ranks: int = 1, save_seconds: int = 0
) -> "subprocess.Popen[str]":
    """A process of its own, whose state is saved after every step."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    command = ["-m", "tests.evaluation.tuned", verb, str(save_seconds), job.to_json(), str(weights), str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *launcher, *command], stderr=subprocess.PIPE, text=True, env=environment)


def killed_after(process: "subprocess.Popen[str]", out: Path, step: int, number: int = signal.SIGKILL) -> str:
    """Send a signal once the journal has got to a step; returns what the process wrote to stderr."""
    deadline = time.monotonic() + 300
    while not any(line >= step for line in steps_of(out)):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    return process.communicate(timeout=120)[1]


def steps_of(out: Path) -> list[int]:
    """Steps of the journal's points so far."""
    path = out / "journal.jsonl"
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    points = (json.loads(line) for line in lines if line.endswith("\n"))
    return [point["step"] for point in points if point["kind"] == "metrics"]


def result_of(out: Path) -> dict[str, Any]:
    """Without what a clock says, and without the commit, which may change while tests run."""
    content: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    del content["code_version"]
    assert content["evaluations"]["e"].pop("seconds") > 0
    return content


def logged(out: Path) -> list[tuple[int, dict[str, float]]]:
    """The journal's points."""
    return [(line["step"], line["values"]) for line in read(out / "journal.jsonl") if line["kind"] == "metrics"]


def same_outcome(one: Path, other: Path) -> None:
    """Metrics, records and curves are equal to the bit."""
    assert result_of(one) == result_of(other)
    assert (one / "records.csv.gz").read_bytes() == (other / "records.csv.gz").read_bytes()
    assert logged(one) == logged(other)


@contextmanager
def weights_noted() -> Iterator[list[dict[str, Tensor]]]:
    """The weights at the end of every training in the block, which no file keeps."""
    publish, noted = Tuning.publish, []

    def note(self: Tuning, finished: Finished) -> Path:
        noted.append({name: value.clone() for name, value in self.task.model.state_dict().items()})
        return publish(self, finished)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Tuning, "publish", note)
        yield noted


def same_weights(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Equal to the bit."""
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


if __name__ == "__main__":
    from dseq_jepa.evaluation import tuning

    verb, seconds, settings, encoder, out = sys.argv[1:]
    tuning.SAVE_SECONDS = float(seconds)
    if verb == "finetune":
        from dseq_jepa.evaluation.finetune import finetune as run
    elif verb == "detect":
        from dseq_jepa.evaluation.detection.job import detect as run
    else:
        from dseq_jepa.evaluation.segmentation import segment as run
    run(JOBS[verb].parse(settings), Path(encoder), Path(out))
