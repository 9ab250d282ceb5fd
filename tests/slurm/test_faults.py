"""What months on a cluster bring, on a real Slurm: after each, the same bits as undisturbed, once, and nothing left.

pytest tests/slurm        # some minutes; takes root on Debian and start-slurm (DSEQ_SLURM_SCRIPTS)
"""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from dseq_jepa.jobs import PretrainJob
from tests.slurm.cluster import Launched, pretraining, slurm, start, until
from tests.training.test_loop import assert_same_run

pytestmark = pytest.mark.usefixtures("state")


@pytest.fixture
def launched(settings: PretrainJob, tmp_path: Path) -> Launched:
    return pretraining(settings, tmp_path / "run")


def fill(ballast: Path) -> None:
    """Leave no room on a disk."""
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def assert_once(launched: Launched, undisturbed: Path, starts: int, jobs: int = 1) -> None:
    """The run equals the undisturbed one, was started this often by this many jobs, and nothing of it is left."""
    assert_same_run(launched.out, undisturbed)
    found = launched.starts()
    assert len(found) == starts, found
    assert len({entry["job"] for entry in found}) == jobs, found
    until(lambda: not launched.processes(), "all processes of the job to be gone", 20)
    names = {path.name.split("-")[0] for path in (launched.out / "state").glob("*/*")}
    assert names == {"state", "checkpoint", "journal.jsonl"}
    assert len(list((launched.out / "state").glob("*/state-*.pt"))) == 2, "the last two states, nothing else"


def test_time_limits_reached_save_and_go_on(launched: Launched, undisturbed: Path) -> None:
    """Slurm's own signal, as it sends it before a limit, three times at different steps."""
    launched.start()
    for number in range(1, 4):
        launched.trained(20 * number)
        slurm("scancel", "--signal=USR2", launched.job())
        until(lambda n=number: len(launched.starts()) == n + 1, f"start {number + 1}")
    status, said = launched.end()
    assert status == 0, said
    assert "was put back into the queue" in said
    assert_once(launched, undisturbed, starts=4)


def test_scontrol_requeue(launched: Launched, undisturbed: Path) -> None:
    launched.start().trained(40)
    slurm("scontrol", "requeue", launched.job())
    status, said = launched.end()
    assert status == 0, said
    assert_once(launched, undisturbed, starts=2)


@pytest.mark.parametrize("signalled", [True, False], ids=["with the user's signal", "without"])
def test_preemption(signalled: bool, settings: PretrainJob, undisturbed: Path, state: Path, tmp_path: Path) -> None:
    """With loading processes, which the signal reaches too: proctrack/linuxproc sends it to all of a job."""
    loading = settings.loading.model_copy(update={"workers": 2})
    launched = pretraining(settings.model_copy(update={"loading": loading}), tmp_path / "run")
    parameters = state / "slurm.conf"
    before = parameters.read_text()
    if not signalled:
        parameters.write_text(before.replace("SlurmctldParameters=preempt_send_user_signal", ""))
        slurm("scontrol", "reconfigure")
    try:
        launched.start("--partition", "low").trained(40)
        slurm(
            "sbatch",
            "--wait",
            "-p",
            "high",
            "-N",
            "4",
            "--exclusive",
            "-t",
            "1",
            "-o",
            "/dev/null",
            "--wrap",
            "sleep 1",
        )
        status, said = launched.end()
    finally:
        parameters.write_text(before)
        slurm("scontrol", "reconfigure")
    assert status == 0, said
    assert_once(launched, undisturbed, starts=2)


def test_a_killed_launcher_leaves_its_job_and_the_next_one_finds_it(launched: Launched, undisturbed: Path) -> None:
    launched.start().trained(20)
    job = launched.job()
    launched.kill()
    others = [launched.start(), Launched(launched.out, launched.words, launched.options).start()]
    for other in others:
        status, said = other.end()
        assert status == 0, said
        assert f"job {job}" in said
        assert "runs or waits already" in said
    assert_once(launched, undisturbed, starts=1)


def test_a_launcher_killed_right_after_submitting_loses_nothing(launched: Launched, undisturbed: Path) -> None:
    """The job's id was not written down yet: it is found by its name."""
    launched.start().trained(1)
    job = launched.job()
    launched.kill()
    (noted,) = launched.claims.folder.glob("job-*")
    noted.unlink()
    status, said = launched.run()
    assert status == 0, said
    assert f"job {job}" in said
    assert_once(launched, undisturbed, starts=1)


def test_a_pending_job_is_found_again(launched: Launched, undisturbed: Path) -> None:
    blocker = slurm(
        "sbatch", "--parsable", "-p", "high", "-N", "4", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 60"
    )
    until(lambda: "RUNNING" in slurm("squeue", "-h", "-j", blocker, "-o", "%T"), "the blocker")
    launched.start()
    job = launched.job()
    launched.kill()
    again = launched.start()
    time.sleep(3)
    assert slurm("squeue", "-h", "-o", "%A %T").splitlines().count(f"{job} PENDING") == 1
    slurm("scancel", blocker)
    status, said = again.end()
    assert status == 0, said
    assert_once(launched, undisturbed, starts=1)


def test_ctrl_c_cancels_and_a_hang_up_detaches(launched: Launched, undisturbed: Path) -> None:
    launched.start().trained(20)
    status, said = launched.kill(signal.SIGHUP)
    assert status == 128 + signal.SIGHUP
    assert "left alone" in said
    assert slurm("squeue", "-h", "-j", launched.job(), "-o", "%T") == "RUNNING"
    launched.start().trained(40)
    status, said = launched.kill(signal.SIGINT)
    assert status == 128 + signal.SIGINT
    assert "cancelled" in said
    assert slurm("squeue", "-h", "-a") == ""
    until(lambda: not launched.processes(), "the cancelled job's processes to be gone", 20)
    status, said = launched.run()
    assert status == 0, said
    assert_once(launched, undisturbed, starts=2, jobs=2)


def test_the_controller_is_restarted(launched: Launched, undisturbed: Path, state: Path) -> None:
    launched.start().trained(20)
    os.kill(int((state / "slurmctld.pid").read_text()), signal.SIGKILL)
    time.sleep(5)
    start(state, "--no-accounting")
    status, said = launched.end()
    assert status == 0, said
    assert_once(launched, undisturbed, starts=1)


def test_a_node_dies_and_what_still_runs_there_can_write_nothing(
    launched: Launched, undisturbed: Path, state: Path
) -> None:
    """The node's daemon is killed, its step hangs: Slurm starts the job elsewhere, and the old one wakes up later."""
    launched.start().trained(20)
    node = slurm("squeue", "-h", "-j", launched.job(), "-o", "%N")
    (old,) = launched.processes()
    os.kill(old, signal.SIGSTOP)
    os.kill(int((state / f"slurmd.{node}.pid").read_text()), signal.SIGKILL)
    try:
        until(lambda: len(launched.starts()) == 2, "the start on another node")
        launched.trained(launched.steps() + 20)
        os.kill(old, signal.SIGCONT)
        status, said = launched.end()
    finally:
        start(state, "--no-accounting")
    assert status == 0, said
    assert_once(launched, undisturbed, starts=2)


def test_a_full_disk_is_said_and_the_run_goes_on_when_there_is_room(
    settings: PretrainJob, undisturbed: Path, tmp_path: Path
) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(tmp_path)], check=True)
    try:
        launched = pretraining(settings, tmp_path / "run")
        ballast = tmp_path / "ballast"
        launched.start().trained(20)
        fill(ballast)
        status, said = launched.end()
        assert status == 1
        assert "cannot be written" in said
        assert "disk" in said.split("cannot be written")[1]
        assert "_0_log.out" in said
        ballast.unlink()
        status, said = launched.run()
        assert status == 0, said
        assert_once(launched, undisturbed, starts=2, jobs=2)
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)
