"""Runs that are killed, poisoned, starved of disk or repeated: nothing is lost, nothing is hidden."""

import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from dseq_jepa.errors import UserError
from dseq_jepa.jobs import PretrainJob
from dseq_jepa.journal import read
from dseq_jepa.methods.settings import JepaSettings
from dseq_jepa.training.checkpoint import StateStore
from dseq_jepa.training.distributed import start
from dseq_jepa.training.loop import Run, checkpoint_name, pretrain
from tests.training.poisoned import poison_gradients
from tests.training.runs import DSEQ, I_JEPA, METHODS, job

GOLDEN = Path(__file__).with_name("golden_losses.json")
ROOT = Path(__file__).parents[2]
FAST = 1e-9
"""Minutes between saves: a state after every step."""


def process(settings: PretrainJob, out: Path, preexec: Callable[[], None] | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.training.runs", str(settings.data.root), str(out), settings.to_json()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=preexec,
    )


def metrics(out: Path) -> dict[int, dict[str, float]]:
    """Values by step; a step that is logged twice fails the test."""
    found: dict[int, dict[str, float]] = {}
    for line in read(out / "journal.jsonl"):
        if line["kind"] == "metrics":
            assert line["step"] not in found, f"step {line['step']} was logged twice"
            found[line["step"]] = line["values"]
    return found


def timeless(values: dict[str, float]) -> dict[str, float]:
    timed = ("images_per_second", "data_wait", "system/")
    return {name: value for name, value in values.items() if not name.startswith(timed)}


@pytest.fixture(scope="module")
def undisturbed(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that all disturbed ones must equal."""
    out = tmp_path_factory.mktemp("undisturbed")
    pretrain(job(pictures), out)
    return out


def assert_same_run(out: Path, expected: Path) -> None:
    for percent in (25, 50, 75, 100):
        ours_kept, theirs_kept = (load_file(folder / checkpoint_name(percent)) for folder in (out, expected))
        assert ours_kept.keys() == theirs_kept.keys()
        assert all(torch.equal(value, theirs_kept[name]) for name, value in ours_kept.items())
    ours, theirs = metrics(out), metrics(expected)
    assert {s: timeless(v) for s, v in ours.items()} == {s: timeless(v) for s, v in theirs.items()}


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("method", ["dseq-jepa", "dseq-c-jepa"])
def test_kill_9_at_any_moment_then_the_same_command_gives_the_same_bits(
    method: str, pictures: Path, tmp_path: Path
) -> None:
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "killed"
    pretrain(job(pictures, method), undisturbed)
    settings = job(pictures, method, save_every_minutes=FAST)
    states = out / "state" / settings.digest
    rng = np.random.default_rng(0)
    kills = 0
    for after in (3, 9, 16):
        victim = process(settings, out)
        while victim.poll() is None:
            newest = max((int(p.stem.split("-")[1]) for p in states.glob("state-*.json")), default=0)
            if newest >= after:
                time.sleep(rng.uniform(0, 0.08))  # anywhere in a step or a save
                victim.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
        victim.communicate()
        kills += victim.returncode == -signal.SIGKILL
    assert kills == 3
    assert process(settings, out).wait() == 0
    assert_same_run(out, undisturbed)
    assert any("projector" in name for name in load_file(out / checkpoint_name(100))) == ("-c-" in method)


@pytest.mark.slow
def test_sigterm_saves_says_so_and_the_same_command_goes_on(pictures: Path, undisturbed: Path, tmp_path: Path) -> None:
    settings = job(pictures)
    victim = process(settings, tmp_path)
    journal = tmp_path / "journal.jsonl"
    while victim.poll() is None and not (journal.exists() and b'"step":4' in journal.read_bytes()):
        time.sleep(0.002)
    victim.terminate()
    _, error = victim.communicate()
    assert victim.returncode != 0
    assert "stopped by signal 15 after step" in error
    pretrain(settings, tmp_path)
    assert_same_run(tmp_path, undisturbed)


def test_a_finished_run_is_not_computed_again_and_its_lost_artefacts_come_back(
    pictures: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = job(pictures)
    pretrain(settings, tmp_path)
    (tmp_path / checkpoint_name(50)).unlink()
    monkeypatch.setattr(Run, "optimise", lambda *_: pytest.fail("a finished run trained again"))
    pretrain(settings, tmp_path)
    assert_same_run(tmp_path, undisturbed)
    for percent in (25, 50, 75, 100):
        name = checkpoint_name(percent)
        assert (tmp_path / name).read_bytes() == (undisturbed / name).read_bytes(), "equal settings, equal files"


def test_a_changed_configuration_starts_anew_and_the_old_run_can_be_gone_back_to(
    pictures: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrain(job(pictures), tmp_path)
    pretrain(job(pictures, epochs=1), tmp_path)
    assert max(metrics(tmp_path)) == 6
    monkeypatch.setattr(Run, "optimise", lambda *_: pytest.fail("a finished run trained again"))
    pretrain(job(pictures), tmp_path)
    assert_same_run(tmp_path, undisturbed)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "gone"])
def test_a_damaged_state_is_found_and_the_one_before_is_used(
    damage: str, pictures: Path, undisturbed: Path, tmp_path: Path
) -> None:
    settings = job(pictures, save_every_minutes=FAST)
    pretrain(settings, tmp_path)
    states = sorted((tmp_path / "state" / settings.digest).glob("state-*.pt"))
    assert len(states) == 2, "the last two states are kept, nothing else"
    content = states[-1].read_bytes()
    if damage == "truncated":
        states[-1].write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        states[-1].write_bytes(content[:1000] + bytes([content[1000] ^ 1]) + content[1001:])
    else:
        states[-1].unlink()
    pretrain(settings, tmp_path)
    warnings = [line["text"] for line in read(tmp_path / "journal.jsonl") if line.get("name") == "warning"]
    assert len(warnings) == 1
    assert "using the state before it" in warnings[0]
    assert_same_run(tmp_path, undisturbed)


def test_states_that_are_all_damaged_are_an_error_and_not_a_silent_restart(pictures: Path, tmp_path: Path) -> None:
    settings = job(pictures)
    pretrain(settings, tmp_path)
    for path in (tmp_path / "state" / settings.digest).glob("state-*.pt"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="every saved state is damaged"):
        pretrain(settings, tmp_path)


def test_a_full_disk_is_a_clear_error_and_the_last_good_state_stays(pictures: Path, tmp_path: Path) -> None:
    settings = job(pictures, save_every_minutes=FAST)
    first = process(settings, tmp_path)
    states = tmp_path / "state" / settings.digest
    while first.poll() is None and not list(states.glob("state-0000000[3-9].json")):
        time.sleep(0.002)
    first.kill()
    first.communicate()
    size = max(path.stat().st_size for path in states.glob("state-*.pt"))

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))

    _, error = process(settings, tmp_path, limit).communicate()
    assert "cannot be written" in error
    state, warnings = StateStore(states).newest()
    assert state is not None
    assert not warnings
    pretrain(settings, tmp_path)


def test_a_loss_that_is_no_number_stops_with_step_rate_and_images(pictures: Path, tmp_path: Path) -> None:
    settings = job(pictures, save_every_minutes=FAST)
    run = Run(settings, tmp_path, start(settings.compute))
    optimise = run.optimise
    poisoned: list[list[int]] = []

    def poison(batch: object) -> object:
        if run.step == 5:
            with torch.no_grad():
                next(run.method.predictor.parameters()).fill_(float("nan"))
            poisoned.append(batch.ids_B.tolist())
        return optimise(batch)

    run.optimise = poison
    with pytest.raises(UserError) as error:
        run.train()
    message = str(error.value)
    assert message.startswith("step 5: the loss became NaN or infinite at learning rate 0.00")
    assert ", ".join(map(str, poisoned[0])) in message
    state, _ = StateStore(tmp_path / "state" / settings.digest).newest()
    assert state["step"] <= 5
    assert all(torch.isfinite(value).all() for value in state["model"].values())


@pytest.mark.parametrize("method", METHODS)
def test_a_loss_that_is_no_number_is_reported_at_the_next_log_point_though_later_steps_are_poisoned_too(
    method: str, pictures: Path, tmp_path: Path
) -> None:
    settings = job(pictures, method, log_every=4)
    run = Run(settings, tmp_path, start(settings.compute))
    optimise = run.optimise

    def poison(batch: object) -> object:
        if run.step == 8:
            with torch.no_grad():
                next(run.method.predictor.parameters()).fill_(float("nan"))
        return optimise(batch)

    run.optimise = poison
    with pytest.raises(UserError, match=r"^step 8: the loss became NaN or infinite at learning rate 0\.00.*images "):
        run.train()
    assert run.step == 12


@pytest.mark.parametrize("step", [5, 23])
def test_a_gradient_that_is_no_number_stops_before_anything_is_saved(step: int, pictures: Path, tmp_path: Path) -> None:
    """Steps after which weights are kept; the second is the last one, whose weights no later loss would judge."""
    settings = job(pictures)
    run = Run(settings, tmp_path, start(settings.compute))
    poison_gradients(run, step)
    with pytest.raises(UserError, match=rf"^step {step}: a gradient, but not the loss, became NaN .* images \d+, "):
        run.train()
    kept = {path.name for path in run.store.directory.glob("checkpoint-*")}
    assert kept == {checkpoint_name(percent) for percent in (25, 50, 75, 100) if percent * 24 / 100 <= step}
    state, _ = run.store.newest()
    assert (state["step"] if state else 0) <= step


def test_a_collapse_stops_the_run_with_an_explanation(pictures: Path, tmp_path: Path) -> None:
    settings = job(pictures, log_every=1)
    guard = settings.recipe.collapse.model_copy(update={"min_effective_rank": 1e6, "patience": 3})
    settings = settings.model_copy(update={"recipe": settings.recipe.model_copy(update={"collapse": guard})})
    with pytest.raises(UserError, match=r"step 3: the representation has collapsed.*Usual causes"):
        pretrain(settings, tmp_path)
    last = list(read(tmp_path / "journal.jsonl"))[-1]
    assert last["name"] == "failed"
    assert "collapsed" in last["text"]


@pytest.mark.parametrize(
    ("method", "kinds"),
    [
        (METHODS["i-jepa"], {"block"}),
        (METHODS["dseq-jepa"], {"block", "step"}),
        (DSEQ.model_copy(update={"prediction": "flat"}), {"block", "region"}),
        (I_JEPA.model_copy(update={"prediction": "sequential"}), {"step"}),
    ],
    ids=["I-JEPA", "curriculum", "curriculum, flat", "blocks in a sequence"],
)
def test_losses_of_blocks_regions_and_steps_are_journalled_apart(
    method: JepaSettings, kinds: set[str], pictures: Path, tmp_path: Path
) -> None:
    settings = job(pictures, log_every=1, epochs=2).model_copy(update={"method": method})
    run = Run(settings, tmp_path, start(settings.compute))
    optimise, outputs = run.optimise, []
    run.optimise = lambda batch: outputs.append(optimise(batch)) or outputs[-1]
    run.train()
    seen = set()
    for output, values in zip(outputs, metrics(tmp_path).values(), strict=True):
        losses: dict[str, list[float]] = {}
        for image, of_image in enumerate(output.group_loss_BG.tolist()):
            regional = output.discriminative_B is not None and bool(output.discriminative_B[image])
            alone = "region" if regional else "block"
            sequential = method.prediction == "sequential" and (regional or method.generation == "uniform")
            for i, loss in enumerate(of_image, start=1):
                if not math.isnan(loss):
                    losses.setdefault(f"loss_{'step' if sequential else alone}_{i}", []).append(loss)
        shown = {name: value for name, value in values.items() if name[-1].isdigit()}
        assert shown == pytest.approx({name: sum(each) / len(each) for name, each in losses.items()}, rel=1e-5)
        seen |= {name.split("_")[1] for name in shown}
    assert seen == kinds


def test_accumulated_parts_give_the_whole_batchs_step(pictures: Path, tmp_path: Path) -> None:
    for parts in (1, 4):
        pretrain(job(pictures, epochs=1, accumulation=parts), tmp_path / str(parts))
    whole, parted = (load_file(tmp_path / str(parts) / checkpoint_name(100)) for parts in (1, 4))
    for name, value in whole.items():
        torch.testing.assert_close(parted[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_a_run_of_two_steps_keeps_every_percentage(pictures: Path, tmp_path: Path) -> None:
    pretrain(job(pictures, epochs=1, batch_size=24), tmp_path)
    steps = {}
    for percent in (25, 50, 75, 100):
        with safe_open(tmp_path / checkpoint_name(percent), framework="pt") as file:
            about = json.loads(file.metadata()["run"])
        assert about["percent"] == percent
        steps[percent] = about["step"]
    assert steps == {25: 1, 50: 1, 75: 2, 100: 2}


def test_contrastive_methods_refuse_accumulation(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="c-jepa is contrastive"):
        pretrain(job(pictures, "c-jepa", accumulation=2), tmp_path)


def test_activation_checkpointing_and_bf16_run(pictures: Path, tmp_path: Path) -> None:
    pretrain(job(pictures, epochs=1, activation_checkpointing=True), tmp_path / "recomputed")
    pretrain(job(pictures, epochs=1), tmp_path / "stored")
    recomputed, stored = (load_file(tmp_path / name / checkpoint_name(100)) for name in ("recomputed", "stored"))
    for name, value in stored.items():
        torch.testing.assert_close(recomputed[name], value, rtol=1e-4, atol=1e-6, msg=name)
    pretrain(job(pictures, epochs=1, precision="bf16"), tmp_path / "bf16")
    weights = load_file(tmp_path / "bf16" / checkpoint_name(100))
    assert {value.dtype for value in weights.values()} == {torch.float32}


@pytest.mark.parametrize("method", METHODS)
def test_golden_losses(method: str, pictures: Path, tmp_path: Path) -> None:
    """The first losses of every row stay what they were: refactoring and speed work must not move them.

    To record them for a deliberate change of the method: delete the file and run this test once.
    """
    pretrain(job(pictures, method, log_every=1, epochs=2), tmp_path)
    losses = [values["loss"] for _, values in sorted(metrics(tmp_path).items())]
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if method not in golden:
        GOLDEN.write_text(json.dumps(golden | {method: losses}, indent=1) + "\n")
        pytest.fail(f"recorded the golden losses of {method} in {GOLDEN.name}: look at them and commit them")
    assert losses == pytest.approx(golden[method], rel=2e-4)
