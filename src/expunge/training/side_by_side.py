"""Cells worked off side by side: in any executor, in any order, by any number of processes on one store, each cell by one of them."""

import contextlib
import contextvars
import dataclasses
import queue
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ..errors import ExpungeError, ModelError
from ..progress import Progress, listen, report
from ..store import POLL, Cell, Store
from .board import Board
from .executors import AnyExecutor, SerialExecutor, SharingExecutor, WorkerDied, check_workers, launcher_of

LATE = 120.0  # seconds


class Task(Protocol):
    """What finishes a cell. It is sent to a worker; `str(task)` names it in messages."""

    def finish(self, cell: Cell, shared: Any, device: str) -> None:
        """Computes the result and writes it; the cell is claimed."""


@dataclass(frozen=True, eq=False)
class Work:
    """One cell that is to be finished.

    Attributes:
        size: how much work that is, in units that a progress bar adds up, ≥ 1.
    """

    task: Task
    cell: Cell
    size: int = 1


def finish_cells(
    works: Sequence[Work],
    shared: Any,
    store: Store,
    *,
    stage: str,
    things: str,
    done: str = "done",
    executor: AnyExecutor = "pool",
    workers: int | str = "auto",
    device: str | torch.device = "auto",
    settled: Callable[[Work], None] | None = None,
    first: Callable[..., "dict[Work, ExpungeError]"] | None = None,
) -> None:
    """Returns when every cell is done; those that are done already cost nothing, and those that another process is at are waited for.

    Args:
        works: equal cells are worked off once.
        shared: goes to each worker once, and is given to every task.
        store: which all workers must see.
        stage, things, done: words for reports and messages: "train models", "models", "trained".
        executor, workers, device: as in `train_fleet`.
        settled: called in this process whenever a cell is done or has failed.
        first: works off what it can in this process, `first(works, board=…, device=…)`, and returns what failed; the executor does the rest.

    Raises:
        ModelError, WorkerDied: some tasks failed; the others are done. StoreError: the store cannot be written, or something cannot be sent to workers.
        ConfigError, MissingError: no such executor, or it cannot do what is asked for.
    """
    launcher = launcher_of(executor)
    device = launcher.device_for(device)
    check_workers(workers)
    todo = {w.cell.folder.name: dataclasses.replace(w, cell=_anywhere(w.cell)) for w in works if not w.cell.done}
    if not todo:
        return
    run = _Run(todo, device, Board({key: work.size for key, work in todo.items()}, stage, things), settled or (lambda _: None))
    if first is not None:
        run.failures = first(list(todo.values()), board=run.board, device=device)
        run.left = [work for work in todo.values() if work not in run.failures and not work.cell.done]
    with launcher.launch((shared,), tasks=run.left, workers=workers, device=device, listener=run.events.put, store=store.root) as running:
        run.work(running)
    run.tell(things, done)
    _wait_until_seen([work.cell for work in todo.values()])


@dataclass(frozen=True)
class _Outcome:
    """What a worker answers; the result itself is in the store."""

    done: bool  # False: another process is at it
    warnings: list[tuple[type[Warning], str]]


def _finish(shared: Any, work: Work, device: str) -> _Outcome:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with work.cell.claim() as mine, _named_progress(work.cell):
            if mine:
                work.task.finish(work.cell, shared, device)
    return _Outcome(work.cell.done, [(w.category, str(w.message)) for w in caught])


@contextlib.contextmanager
def _named_progress(cell: Cell) -> Iterator[None]:
    """Passes the progress of one task on under the key of its cell, so that the parent knows whose it is."""
    outer = contextvars.copy_context()
    with listen(lambda p: outer.run(report, cell.folder.name, p.done, p.total)):
        yield


class _Run:
    """One pass over the cells that are not done."""

    def __init__(self, todo: dict[str, Work], device: str, board: Board, settled: Callable[[Work], None]) -> None:
        self.todo, self.device, self.board, self.settled = todo, device, board, settled
        self.events: queue.SimpleQueue[Progress | Future[Any]] = queue.SimpleQueue()
        self.left = list(todo.values())
        self.running: dict[Future[Any], Work] = {}
        self.failures: dict[Work, ExpungeError] = {}
        self.flags: dict[tuple[type[Warning], str], None] = {}

    def work(self, executor: SharingExecutor) -> None:
        """Returns when every cell is done or has failed."""
        waiting, busy = deque(self.left), []
        serial = isinstance(executor, SerialExecutor)  # works inside `submit`: one at a time, or a failure would show at the very end
        with listen(self.board):
            while waiting or self.running:
                while waiting and not (serial and self.running):
                    self._submit(executor, waiting.popleft())
                event = self.events.get()
                if isinstance(event, Progress):
                    self.board(event)
                else:
                    busy += self._settle(event)
                if busy and not (waiting or self.running):
                    time.sleep(POLL)
                    waiting, busy = deque(busy), []

    def tell(self, things: str, done: str) -> None:
        """Passes on the warnings, and raises what went wrong."""
        for category, message in self.flags:
            warnings.warn(message, category, stacklevel=5)
        if self.failures:
            raise _summary(self.failures, len(self.todo), things, done)

    def _submit(self, executor: SharingExecutor, work: Work) -> None:
        future = executor.submit(_finish, work, self.device)
        self.running[future] = work
        future.add_done_callback(self.events.put)

    def _settle(self, future: Future[Any]) -> list[Work]:
        """Notes what became of a cell; returns it if another process is at it."""
        work, error = self.running.pop(future), future.exception()
        if isinstance(error, ModelError | WorkerDied):
            self.failures[work] = error
        elif error is not None:  # a full disk or a mistake in the code would stop the others too
            raise error
        else:
            outcome = future.result()
            self.flags.update(dict.fromkeys(outcome.warnings))
            if not outcome.done:
                return [work]
        self.board.finish(work.cell.folder.name)
        self.settled(work)
        return []


def _summary(failures: dict[Work, ExpungeError], n: int, things: str, done: str) -> ExpungeError:
    work, error = next(iter(failures.items()))
    names = ", ".join(str(each.task) for each in list(failures)[:5]) + (", …" if len(failures) > 5 else "")
    summary = type(error)(
        f"{len(failures)} of {n} {things} were not {done}: {names}. The first one, {work.task}: {error} The others are kept; run again to continue."
    )
    summary.__cause__ = error
    return summary


def _anywhere(cell: Cell) -> Cell:
    """The cell by a path that means the same in a worker, whatever folder that is in."""
    return dataclasses.replace(cell, folder=cell.folder.absolute())


def _wait_until_seen(cells: Sequence[Cell]) -> None:
    """What another machine has written to a network disk is seen here up to a minute later."""
    deadline = time.monotonic() + LATE
    while not all(cell.done for cell in cells) and time.monotonic() < deadline:
        time.sleep(POLL)
