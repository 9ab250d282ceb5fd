"""How far a long loop is: one live line on a terminal, one plain line a minute in a log file.

    with Progress(total=1000, label="DSeq-JEPA pre-training", start=resumed_at) as progress:
        for batch in batches:
            ...
            progress.advance(images=len(batch))
            progress.show(loss=loss)            # a number that is on the CPU anyway
    python -m dseq_jepa pretrain ... 2> log     # DSeq-JEPA pre-training: 120/1000, 345 images/s, loss 0.3, 0:12:05 left

Everything goes to stderr. rich is imported on a terminal only, and draws without a thread of its own: data loading
forks, and forking while a thread holds rich's lock could hang the child.
"""

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

_LIVE_SECONDS = 0.25
_PLAIN_SECONDS = 60.0


class Progress:
    """Counts steps; shows step, images/s, loss and the time that is left.

    Args:
        total: steps of the whole loop.
        label: what is running.
        start: steps done before, by a run that this one resumes; not part of the rate.
        stream: where to write; stderr unless given.
        clock: seconds that only rise.
    """

    def __init__(
        self,
        total: int,
        label: str,
        start: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.label, self.done = total, label, start
        self._start, self._clock, self._stream = start, clock, stream or sys.stderr
        self._images = 0
        self._loss: float | None = None
        self._began = self._shown = clock()
        self._closed = False
        self._bar = _bar(self._stream) if self._stream.isatty() else None
        self._every = _LIVE_SECONDS if self._bar else _PLAIN_SECONDS
        if self._bar:
            self._bar.start()
            self._task = self._bar.add_task(label, total=total, completed=start, detail="")

    def advance(self, images: int = 0) -> None:
        """One more step, with the images that it used."""
        self.done += 1
        self._images += images
        if self._clock() - self._shown >= self._every:
            self._draw()

    def show(self, *, loss: float) -> None:
        """The loss that the next line shows."""
        self._loss = loss

    def close(self) -> None:
        """Show the final state and give the terminal back; closing twice is fine."""
        if self._closed:
            return
        self._closed = True
        self._draw()
        if self._bar:
            self._bar.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _draw(self) -> None:
        now = self._clock()
        self._shown = now
        detail = self._detail(now - self._began)
        if self._bar:
            self._bar.update(self._task, completed=self.done, detail=detail)
            self._bar.refresh()
        else:
            self._stream.write(f"{self.label}: {detail}\n")
            self._stream.flush()

    def _detail(self, seconds: float) -> str:
        parts = [f"{self.done}/{self.total}"]
        if self._images and seconds > 0:
            rate = self._images / seconds
            parts.append(f"{rate:.0f} images/s" if rate >= 10 else f"{rate:.2g} images/s")
        if self._loss is not None:
            parts.append(f"loss {self._loss:.4g}")
        steps = self.done - self._start
        if self.done >= self.total:
            parts.append(f"done in {duration(seconds)}")
        elif steps and not self._closed:
            parts.append(f"{duration(seconds / steps * (self.total - self.done))} left")
        return ", ".join(parts)


def _bar(stream: TextIO) -> "Bar":
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TextColumn("{task.fields[detail]}"))
    return Bar(*columns, console=Console(file=stream), auto_refresh=False)


def duration(seconds: float) -> str:
    """h:mm:ss, with days when there are any."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{days} d {hour}:{minute:02}:{second:02}" if days else f"{hour}:{minute:02}:{second:02}"
