"""Progress on stderr: a bar with the time left on a terminal, and now and then a line elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TextIO

from ..progress import listen, roughly

if TYPE_CHECKING:
    from rich.console import Group
    from rich.live import Live
    from rich.progress import TaskID

    from ..progress import Progress

INTERVAL = 10.0  # seconds between lines where there is no terminal


@contextlib.contextmanager
def shown() -> Iterator[None]:
    """Shows what the library reports inside the block."""
    with Bars() if sys.stderr.isatty() else contextlib.nullcontext(Lines(sys.stderr)) as listener, listen(listener):
        yield


class Lines:
    """Writes a line every `interval` seconds, and when a stage ends that had one.

    Args:
        out: where to write.
        interval: seconds between lines, ≥ 0.
        clock: returns seconds; replaced in tests.
    """

    def __init__(self, out: TextIO, interval: float = INTERVAL, clock: Callable[[], float] = time.monotonic) -> None:
        self.out, self.interval, self.clock = out, interval, clock
        self.stage, self.done, self.start, self.last, self.quiet = "", 0, clock(), clock(), True

    def __call__(self, progress: "Progress") -> None:
        now = self.clock()
        if progress.stage != self.stage or progress.done < self.done:
            self.stage, self.start, self.quiet = progress.stage, now, True
        self.done = progress.done
        ended = progress.done >= progress.total and not self.quiet
        if ended or now - self.last >= self.interval:
            left = "" if progress.done >= progress.total else time_left(now - self.start, progress)
            self.last, self.quiet = now, progress.done >= progress.total
            print(_line(progress) + left, file=self.out, flush=True)


class Bars:
    """Draws a bar for each stage; a context manager."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self.bars = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[note]}", markup=False), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            console=Console(stderr=True), transient=True,
        )  # fmt: skip
        self.stage, self.done = "", 0
        self.task: TaskID | None = None

    def __enter__(self) -> "Bars":
        return self

    def __exit__(self, *error: object) -> None:
        self.bars.stop()

    def __call__(self, progress: "Progress") -> None:
        if progress.stage != self.stage or progress.done < self.done:
            self._end()
        self.stage, self.done = progress.stage, progress.done
        if progress.done >= progress.total:
            self._end()  # what is printed from now on is not drawn around
            return
        if self.task is None:
            self.task = self.bars.add_task(progress.stage, total=progress.total, note=progress.note)
            self.bars.start()
        self.bars.update(self.task, completed=progress.done, note=progress.note)

    def _end(self) -> None:
        """Takes the bar away: one for each of many stages would fill the screen."""
        if self.task is not None:
            self.bars.remove_task(self.task)
            self.bars.stop()
            self.task = None


class LiveTable:
    """A table on a terminal that is drawn anew whenever `show` is called, with the current progress below it; elsewhere nothing. A context manager."""

    def __init__(self) -> None:
        self.live: Live | None = None
        self.header: list[str] = []
        self.rows: list[list[str]] = []
        self.note, self.stage, self.start = "", "", 0.0

    def __enter__(self) -> "LiveTable":
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            from ..progress import listen

            self.live = Live(console=Console(stderr=True), transient=True, get_renderable=self._drawn, refresh_per_second=2)
            self.lines = listen(self._note)
            self.lines.__enter__()
            self.live.start()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.live is not None:
            self.live.stop()
            self.lines.__exit__(*error)

    def show(self, table: tuple[list[str], list[list[str]]]) -> None:
        self.header, self.rows = table

    def _note(self, progress: "Progress") -> None:
        if progress.stage != self.stage:
            self.stage, self.start = progress.stage, time.monotonic()
        self.note = _line(progress) + time_left(time.monotonic() - self.start, progress)

    def _drawn(self) -> "Group":
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(*self.header, box=None, header_style="bold", pad_edge=False)
        for row in self.rows:
            table.add_row(*map(Text, row))
        return Group(table, Text(self.note))


def time_left(elapsed: float, progress: "Progress") -> str:
    """ ", 2 min left", judged by the pace since the stage began; nothing before there is a pace.

    Example:
        >>> from expunge.progress import Progress
        >>> time_left(60.0, Progress("training", 1, 3))
        ', 2 min left'
    """
    if progress.done <= 0 or elapsed <= 0:
        return ""
    seconds = elapsed * (progress.total - progress.done) / progress.done
    return f", {roughly(seconds)} left"


def _line(progress: "Progress") -> str:
    share = f"{100 * progress.done / progress.total:.0f} %" if progress.total else "0 %"
    note = f", {progress.note}" if progress.note else ""
    return f"{progress.stage}: {progress.done} of {progress.total} ({share}){note}"
