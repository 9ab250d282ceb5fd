"""One owner at a time: of all who ask, one gets the claim, and whoever lost it writes nothing more.

pytest tests/test_fence.py
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dseq_jepa.errors import UserError
from dseq_jepa.evaluation.resume import Kept, Outcome
from dseq_jepa.fence import VARIABLE, Claims, Fence
from dseq_jepa.training.checkpoint import StateStore
from dseq_jepa.training.distributed import start
from dseq_jepa.training.loop import Run, pretrain
from tests.training.runs import job, write_pictures
from tests.training.test_loop import assert_same_run

RACER = """
import sys
from pathlib import Path
from dseq_jepa.fence import Claims
claims, name = Claims(Path(sys.argv[1])), sys.argv[2]
sys.stdin.readline()
won = 0
while won < 25:
    current = claims.current()
    won += claims.take({"name": name}, after=current.token if current else 0) is not None
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def test_every_claim_has_exactly_one_winner(tmp_path: Path) -> None:
    """Four processes take 25 claims each; a lost one would leave fewer than a hundred."""
    racers = [
        subprocess.Popen([sys.executable, "-c", RACER, str(tmp_path), str(n)], stdin=subprocess.PIPE) for n in range(4)
    ]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda racer: racer.communicate(b"go\n"), racers))
    assert [racer.returncode for racer in racers] == [0] * 4
    chain = Claims(tmp_path).all()
    assert [claim.token for claim in chain] == list(range(1, 101))
    names = [claim.content["name"] for claim in chain]
    assert {name: names.count(name) for name in set(names)} == {str(n): 25 for n in range(4)}
    assert not list(tmp_path.glob(".claim*")), "nothing temporary is left"


def test_a_claim_that_is_taken_cannot_be_taken_again(tmp_path: Path) -> None:
    claims = Claims.beside(tmp_path / "out")
    assert claims.current() is None
    assert claims.take({"name": "a"}, after=0) == 1
    assert claims.take({"name": "b"}, after=0) is None
    assert claims.current().content == {"name": "a"}
    assert claims.folder == tmp_path / ".launch" / "out", "deleting what a job wrote keeps its claims"


def test_a_fence_ends_with_a_higher_claim_or_with_the_claims_themselves(tmp_path: Path) -> None:
    claims = Claims(tmp_path / "claims")
    fence = Fence(claims.folder, claims.take({}, after=0))
    fence.check()
    claims.take({"job": "17"}, after=1)
    with pytest.raises(UserError, match=r'claim 1 of this process has ended.*"job": "17"'):
        fence.check()
    for path in claims.folder.iterdir():
        path.unlink()
    with pytest.raises(UserError, match="belongs to nobody"):
        Fence(claims.folder, 2).check()


def test_what_a_superseded_process_wants_to_write_is_never_there(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The claim goes to another process in the middle of a run: no state, no weights, no journal line comes after."""
    settings = job(pictures, save_every_minutes=1e-9)
    pretrain(settings, tmp_path / "undisturbed")
    out = tmp_path / "out"
    claims = Claims.beside(out)
    monkeypatch.setenv(VARIABLE, f"{claims.folder}:{claims.take({}, after=0)}")
    run = Run(settings, out, start(settings.compute))
    optimise = run.optimise

    def superseded(batch: object) -> object:
        if run.step == 10:
            claims.take({"job": "18"}, after=1)
            frozen.update(contents(out))
        return optimise(batch)

    frozen: dict[str, bytes] = {}
    run.optimise = superseded
    with pytest.raises(UserError, match="nothing more is written") as error:
        run.train()
    run.note(error.value)
    assert frozen
    assert contents(out) == frozen
    monkeypatch.setenv(VARIABLE, f"{claims.folder}:2")
    pretrain(settings, out)
    run.journal.metrics(999, {"loss": 1.0})  # as a process would that wakes up after its successor has begun
    assert_same_run(out, tmp_path / "undisturbed")


def test_a_superseded_group_of_probes_keeps_nothing_more(tmp_path: Path) -> None:
    claims = Claims(tmp_path / "claims")
    kept = Kept(tmp_path / "state", "digest", Fence(claims.folder, claims.take({}, after=0)))
    outcome = Outcome({"value": 1.0}, "", 0)
    kept.keep("cub", outcome)
    claims.take({}, after=1)
    before = contents(tmp_path / "state")
    (tmp_path / "state" / "older digest").mkdir()
    for write in (
        lambda: kept.keep("cars", outcome),
        lambda: kept.save_epochs("cars", {"epoch": 1}),
        Kept(tmp_path / "state", "digest", Fence(claims.folder, 1)).drop_others,
    ):
        with pytest.raises(UserError, match="claim 1 of this process has ended"):
            write()
    assert contents(tmp_path / "state") == before
    assert (tmp_path / "state" / "older digest").exists()


LOCKED = """
import os, sys, time
from pathlib import Path
from dseq_jepa.cli.running import alone_in
with alone_in(Path(sys.argv[1])):
    print("alone", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def test_a_process_that_was_superseded_is_not_waited_for(tmp_path: Path) -> None:
    """It may hang for ever on a node that Slurm thinks dead; one with the same claim, or with none, is waited for."""

    def locked(claim: str, seconds: float) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", LOCKED, str(tmp_path / "out"), str(seconds)]
        environment = {**os.environ, VARIABLE: claim}
        return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    old = locked("/claims:1", 60)
    try:
        assert old.stdout.readline() == "alone\n"
        assert locked("/claims:2", 0).communicate(timeout=30) == ("alone\n", "")
        for claim in ("/claims:1", "/other:2", ""):
            waiting = locked(claim, 0)
            assert "waiting for it to end" in waiting.stderr.readline()
            waiting.kill()
            waiting.communicate()
    finally:
        old.kill()
        old.communicate()


def test_the_states_of_two_owners_never_have_the_same_name(tmp_path: Path) -> None:
    claims = Claims(tmp_path / "claims")
    stores = []
    for token in (1, 2):
        assert claims.take({}, after=token - 1) == token
        stores.append(StateStore(tmp_path / "state", Fence(claims.folder, token)))
        stores[-1].save(7, {"owner": token})
    state, warnings = stores[1].newest()
    assert (state, warnings) == ({"owner": 2}, [])
    with pytest.raises(UserError, match="claim 1 of this process has ended"):
        stores[0].save(8, {"owner": 1})
    names = sorted(path.name for path in (tmp_path / "state").glob("*.json"))
    assert names == ["state-00000007.t000001.json", "state-00000007.t000002.json"]
    assert json.loads((tmp_path / "state" / names[1]).read_text())["step"] == 7


def test_a_superseded_state_of_a_later_step_does_not_push_out_the_owners(tmp_path: Path) -> None:
    """On a network file system its process may not see for seconds that it was superseded."""
    claims = Claims(tmp_path / "claims")
    assert claims.take({}, after=0) == 1
    old = StateStore(tmp_path / "state", Fence(claims.folder, 1))
    for step in (9, 10):
        old.save(step, {"owner": 1})
    assert claims.take({}, after=1) == 2
    owner = StateStore(tmp_path / "state", Fence(claims.folder, 2))
    for step in (7, 8):
        owner.save(step, {"owner": 2})
    assert owner.newest() == ({"owner": 2}, [])
    assert {path.name for path in (tmp_path / "state").glob("*.pt")} == {
        "state-00000007.t000002.pt", "state-00000008.t000002.pt"
    }  # fmt: skip


def test_what_a_killed_save_left_goes_with_the_next_one(tmp_path: Path) -> None:
    """Its name has a step at which the next start may never save, and gigabytes behind it."""
    store = StateStore(tmp_path / "state")
    store.save(7, {})
    left = tmp_path / "state" / ".state-00000009.t000001.pt.tmp"
    left.write_bytes(b"half a state")
    store.save(8, {})
    assert not left.exists()
    assert {path.stem for path in (tmp_path / "state").iterdir()} == {"state-00000007", "state-00000008"}


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
