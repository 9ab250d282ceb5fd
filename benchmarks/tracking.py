"""What live mirroring costs a pre-training while the tracker works, is frozen, slow or gone: under 1% of its time.

    OMP_NUM_THREADS=1 python benchmarks/tracking.py                  # two minutes
    OMP_NUM_THREADS=1 python benchmarks/tracking.py --seconds 20     # for a look; too few rounds for the claim

One pre-training, the demo's I-JEPA with a journal line after every step, has four live mirrors on its journal, with a
real `mlflow server` behind each. All start healthy but one, whose every call takes 5 s; when points have arrived, one
server gets SIGSTOP and the road to another breaks. Then the steps go to the sides in turns: one mirror runs and the
others are stopped, all of them in the turn of "no tracker". In a round all sides compute the same steps.

A mirror is a process of its own, so there are three things that it can cost, and each is measured where it arises:

- CPU seconds of the training process: a claim, as a ratio to the turns without tracker;
- what the training waits for: the journal's lines, a claim as a share of the steps' wall time; and start and end of the
  mirror, once per job, a claim in seconds;
- a core, where the training leaves none free: the mirror's own CPU seconds are printed, and the wall time of the steps.
  Neither is a claim, because both say more about what else the machine does.
"""

import argparse
import math
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from support.server import Road, Server
from support.timing import keep_memory, processor, verdict

from dseq_jepa.config import load
from dseq_jepa.data.loaders import Batch
from dseq_jepa.data.miniature import make_layout
from dseq_jepa.jobs import PretrainJob, pretrain_job
from dseq_jepa.live import LiveMirror
from dseq_jepa.methods.jepa import StepOutput
from dseq_jepa.training import distributed
from dseq_jepa.training.loop import Run
from dseq_jepa.training.settings import CollapseGuard

CONFIG = Path(__file__).parents[1] / "configs" / "demo.yaml"
NONE, SIDES = "no tracker", ("healthy", "frozen", "slow", "gone")
SLOW_SECONDS = 5.0
TURN = 2  # steps
WARM_UP_SECONDS = 60.0  # at most
CLAIM_RATIO, CLAIM_SHARE, CLAIM_ONCE_SECONDS = 1.01, 0.01, 5.0


def demo_job(folder: Path) -> PretrainJob:
    """The demo's I-JEPA on a few generated pictures; 8,000 steps, all of them mirrored."""
    experiment = load(CONFIG)
    assert experiment.miniature is not None
    pictures = experiment.miniature.model_copy(
        update={"train_images": {"imagenet": 32}, "val_images": {"imagenet": 16}}
    )
    make_layout("imagenet", folder / "data", pictures)
    job = pretrain_job(experiment, "i-jepa", "vit-mini", 0)
    unwatched = CollapseGuard(patience=10**9)  # the same few pictures again and again: it may collapse
    recipe = job.recipe.model_copy(
        update={"epochs": 2000, "batch_size": 8, "log_every": 1, "save_every_minutes": 60.0, "collapse": unwatched}
    )
    data = job.data.model_copy(update={"root": folder / "data"})
    return job.model_copy(update={"recipe": recipe, "data": data, "keep_percent": (100,)})


class Mirror:
    """A live mirror of one side, on a folder of its own with the same journal."""

    def __init__(self, folder: Path, journal: Path, side: str, uri: str) -> None:
        folder.mkdir()
        os.link(journal, folder / "journal.jsonl")
        os.environ["MLFLOW_TRACKING_URI"] = uri
        began = time.perf_counter()
        self._live = LiveMirror(folder, side)
        self.once = time.perf_counter() - began
        """Seconds that the job waits for its start and end."""
        self.cpu = 0.0
        """Seconds that it spent itself, most of them importing MLflow."""
        assert self._live._process is not None
        self._pid = self._live._process.pid

    def turn(self, on: bool) -> None:
        """Let it run, or stop it where it is."""
        os.kill(self._pid, signal.SIGCONT if on else signal.SIGSTOP)

    def end(self) -> None:
        """As the job ends it."""
        ticks = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        self.cpu = (int(ticks[11]) + int(ticks[12])) / os.sysconf("SC_CLK_TCK")
        self.turn(on=True)
        began = time.perf_counter()
        self._live.__exit__(None, None, None)
        self.once += time.perf_counter() - began


class Turns:
    """Gives the steps to the sides in turns, and measures each turn.

    Args:
        mirrors: of every side but "no tracker"; those whose turn it is not are stopped.
        seconds: until no new round begins.
    """

    def __init__(self, mirrors: dict[str, Mirror], seconds: float) -> None:
        self._mirrors, self._until = mirrors, time.monotonic() + seconds
        self.sides = (NONE, *mirrors)
        self.cpu: dict[str, list[float]] = {side: [] for side in self.sides}
        self.wall: dict[str, list[float]] = {side: [] for side in self.sides}
        self.waited = dict.fromkeys(self.sides, 0.0)
        self.round, self._steps = 0, 0
        for mirror in mirrors.values():
            mirror.turn(on=False)
        self._order = self._rounds()
        self._begin()

    def step(self) -> int:
        """Which step of all rounds the next one is, the same for every side.

        Raises:
            EnoughError: when the last round is over.
        """
        if self._steps == TURN:
            self._end()
            self._begin()
        self._steps += 1
        return self.round * TURN + self._steps - 1

    def wait(self, seconds: float) -> None:
        """Count what the training waited for a line of the journal."""
        self.waited[self._side] += seconds

    def _rounds(self) -> Iterator[str]:
        while time.monotonic() < self._until:
            first = self.round % len(self.sides)  # every side has every place in the order
            yield from (*self.sides[first:], *self.sides[:first])
            self.round += 1

    def _begin(self) -> None:
        side = next(self._order, None)
        if side is None:
            raise EnoughError
        if side in self._mirrors:
            self._mirrors[side].turn(on=True)
        self._side, self._steps = side, 0
        self._clocks = time.process_time(), time.perf_counter()

    def _end(self) -> None:
        self.cpu[self._side].append(time.process_time() - self._clocks[0])
        self.wall[self._side].append(time.perf_counter() - self._clocks[1])
        if self._side in self._mirrors:
            self._mirrors[self._side].turn(on=False)


class EnoughError(Exception):
    """The phase is over; ends the training loop."""


class Measured(Run):
    """The pre-training whose steps are measured."""

    def warm_up(self, ready: Callable[[], bool]) -> None:
        """Train, unmeasured, until `ready` says so, or for a minute."""
        until = time.monotonic() + WARM_UP_SECONDS

        def watched(batch: Batch) -> StepOutput:
            self._batch = batch
            if not self.step % 50 and (ready() or time.monotonic() > until):
                raise EnoughError
            return Run.optimise(self, batch)

        self._until_enough(watched)

    def measure(self, mirrors: dict[str, Mirror], seconds: float) -> Turns:
        """Train in turns; every side has the same batch and the same draws."""
        assert self.journal is not None
        turns, line = Turns(mirrors, seconds), self.journal.metrics

        def counted(step: int, values: dict[str, float]) -> None:
            began = time.perf_counter()
            line(step, values)
            turns.wait(time.perf_counter() - began)

        def step_of_turn(_batch: Batch) -> StepOutput:
            real, self.step = self.step, turns.step()
            try:
                return Run.optimise(self, self._batch)
            finally:
                self.step = real

        self.journal.metrics = counted
        self._until_enough(step_of_turn)
        return turns

    def _until_enough(self, optimise: Callable[[Batch], StepOutput]) -> None:
        self.optimise = optimise
        try:
            self.train()
        except EnoughError:
            return


def measure(folder: Path, seconds: float, open_: ExitStack) -> tuple[Turns, dict[str, Mirror]]:
    """The training with all mirrors from start to end; servers and mirrors are left to `open_`."""
    servers = [Server(folder / name) for name in ("server", "frozen")]
    for server in servers:
        open_.callback(server.end)
    job = demo_job(folder)
    run = Measured(job, folder / "out", distributed.start(job.compute))
    for server in servers:
        server.wait()
    working, frozen = servers
    slow, gone = Road(working.port, SLOW_SECONDS), Road(working.port, 0.0)
    for road in (slow, gone):
        open_.callback(road.end)
    mirrors = {}
    addresses = dict(zip(SIDES, (working.uri, frozen.uri, slow.uri, gone.uri), strict=True))
    for side, uri in addresses.items():
        mirrors[side] = Mirror(folder / f"mirror-{side}", run.out / "journal.jsonl", side, uri)
        open_.callback(mirrors[side].end)
    quick = [(working, "healthy"), (frozen, "frozen"), (working, "gone")]
    run.warm_up(lambda: all(server.points(side) for server, side in quick))
    held = [server.points(side) for server, side in quick]
    print(f"  points of {', '.join(side for _, side in quick)} in the stores before the trouble begins: {held}")
    assert all(held), "a mirror sent nothing: there is nothing to measure"
    frozen.freeze()
    gone.end()
    turns = run.measure(mirrors, seconds)
    print(f"  and at the end: {[server.points(side) for server, side in quick]}")
    assert working.points("healthy") > held[0], "the healthy mirror stood still: its turns measured nothing"
    assert working.knows("slow"), "the slow road carried nothing: its turns measured nothing"
    return turns, mirrors


def report(turns: Turns, mirrors: dict[str, Mirror]) -> list[bool]:
    """Print what was measured; which claims hold."""
    base = turns.cpu[NONE]
    print(f"  {turns.round} rounds, {1000 * statistics.median(base) / TURN:.1f} ms of CPU a step without tracker")
    claims = []
    for side, mirror in mirrors.items():
        cpu, error = ratio(turns.cpu[side], base)
        wall, wall_error = ratio(turns.wall[side], turns.wall[NONE])
        share = turns.waited[side] / sum(turns.wall[side])
        print(f" {side}: error of the CPU ratio {error:.4f}; not claims: {mirror.cpu:.1f} CPU s in the mirror itself,")
        print(f"  wall time of a step over no tracker {wall:.3f}, error {wall_error:.3f}")
        claims += [
            verdict("CPU time of a step over no tracker", cpu, CLAIM_RATIO, at_most=True, digits=4),
            verdict("share of the time that journal lines take", share, CLAIM_SHARE, at_most=True, digits=4),
            verdict("seconds for its start and end, once per job", mirror.once, CLAIM_ONCE_SECONDS, at_most=True),
        ]
    return claims


def ratio(ours: list[float], theirs: list[float]) -> tuple[float, float]:
    """Median of the rounds' ratios, and its standard error (from the quartiles; as if the rounds were normal)."""
    ratios = [ours_ / theirs_ for ours_, theirs_ in zip(ours, theirs, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4)
    return median, 1.25 * 0.741 * (high - low) / math.sqrt(len(ratios))


def main() -> int:
    """Measure; 0 if every claim holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of measured steps; servers and imports come first")
    arguments = parser.parse_args()
    os.environ["no_proxy"] = "127.0.0.1"
    keep_memory()
    print(f"{processor()}, one thread, the demo's I-JEPA, turns of {TURN} steps", flush=True)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as open_:
        turns, mirrors = measure(Path(folder), arguments.seconds, open_)
        open_.close()
        return 0 if all(report(turns, mirrors)) else 1


if __name__ == "__main__":
    sys.exit(main())
