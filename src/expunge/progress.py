"""Progress of long work, reported upwards without anybody passing a callback through.

Training loops and attacks call `report`; whoever wants to know (the command line, a notebook) wraps the call in `listen`.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far one piece of work is: `done` of `total` units of `stage`, and a figure or two about it.

    Example:
        >>> Progress("training", done=3, total=10)
        Progress(stage='training', done=3, total=10, note='')
    """

    stage: str
    done: int
    total: int
    note: str = ""


Listener = Callable[[Progress], None]
_listener: ContextVar[Listener | None] = ContextVar("expunge_progress", default=None)


@contextlib.contextmanager
def listen(listener: Listener | None) -> Iterator[None]:
    """Sends every report inside the block to `listener` (None = to whom it went before).

    Example:
        >>> seen = []
        >>> with listen(seen.append):
        ...     report("train", 1, 2)
        >>> seen[0].done
        1
    """
    token = _listener.set(listener or _listener.get())
    try:
        yield
    finally:
        _listener.reset(token)


def silent() -> contextlib.AbstractContextManager[None]:
    """Nobody hears of what is done inside the block: for stages that are too short to be shown, or no progress of the whole.

    Example:
        >>> seen = []
        >>> with listen(seen.append), silent():
        ...     report("train", 1, 2)
        >>> seen
        []
    """
    return listen(lambda _: None)


def report(stage: str, done: int, total: int, note: str = "") -> None:
    """Tells the current listener, if there is one. Costs nothing otherwise."""
    listener = _listener.get()
    if listener is not None:
        listener(Progress(stage, done, total, note))


def roughly(seconds: float) -> str:
    """A time that was not measured but estimated, with no more digits than an estimate has.

    Example:
        >>> roughly(40), roughly(1000), roughly(20_000), roughly(900_000)
        ('40 s', '17 min', '5.6 h', '10.4 d')
    """
    for limit, size, unit in ((90, 1, "s"), (90 * 60, 60, "min")):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    size, unit = (3600, "h") if seconds < 2 * 86_400 else (86_400, "d")
    return f"{seconds / size:.1f}".removesuffix(".0") + f" {unit}"
