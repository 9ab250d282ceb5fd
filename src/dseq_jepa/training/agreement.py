"""What the ranks of a training agree on while it runs: whether to stop, and whether a state is due.

agreement = Agreement(world, step=0, save_seconds=600)
signal.signal(signal.SIGTERM, agreement.note)
...
answer = agreement.ask(step)          # after every step, on every rank
if answer.save or answer.stop: save(); agreement.saved()
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

import torch

from dseq_jepa.training import distributed
from dseq_jepa.training.distributed import World

ASK_SECONDS = 1.0
"""About so long a signal to stop can go unheard; a warning before a time limit or a preemption is seconds long."""


@dataclass(frozen=True)
class Answer:
    """The same on all ranks."""

    stop: bool
    """A rank was told to stop."""
    save: bool
    """The last save is too long ago on some rank's clock."""


class Agreement:
    """Signals and clocks of all ranks.

    Asking costs the ranks a wait for one another, so that it follows only so many steps as take about ASK_SECONDS:
    every step when they are slow, few when they are fast. How many is agreed on as well.

    Args:
        world: the ranks.
        step: steps that were done before.
        save_seconds: how long a rank may go on without a save.
        clock: seconds that only rise.
    """

    def __init__(
        self, world: World, step: int, save_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.signal: int | None = None
        """What told this rank to stop."""
        self._world, self._save_seconds, self._clock = world, save_seconds, clock
        self._asked_step, self._next = step, step + 1
        self._asked = self._saved = clock()

    def note(self, number: int, _frame: FrameType | None) -> None:
        """Handler of the signals to stop."""
        self.signal = number

    def saved(self) -> None:
        """A state was saved."""
        self._saved = self._clock()

    def ask(self, step: int) -> Answer:
        """What all ranks do after a step; collective every few steps."""
        if step < self._next:
            return Answer(stop=False, save=False)
        now = self._clock()
        step_seconds = (now - self._asked) / (step - self._asked_step)
        here = [self.signal is not None, now - self._saved > self._save_seconds, step_seconds]
        if self._world.size > 1:
            values = torch.tensor(here, dtype=torch.float64, device=self._world.device)
            here = distributed.all_max(values).tolist()
            self._next = step + max(1, int(ASK_SECONDS / max(here[2], 1e-6)))
        self._asked_step, self._asked = step, now
        return Answer(stop=bool(here[0]), save=bool(here[1]))
