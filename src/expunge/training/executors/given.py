"""Calls in a `concurrent.futures.Executor` of the user's: mpi4py's, Dask's, loky's, the standard library's process pool."""

import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

from ...progress import Listener
from .base import Launcher, SharingExecutor, WorkerDied, check_workers
from .reach import Mark, mark
from .serving import answer, become_worker


@final
@dataclass(frozen=True)
class Given(Launcher):
    """Runs calls in an executor that somebody else started, and will shut down. Shared objects are sent with every call, and no progress comes back."""

    name: ClassVar[str] = "given"
    executor: Executor

    def launch(
        self, shared: tuple[Any, ...], *, tasks: Sequence[Any], workers: int | str = "auto", device: str = "cpu",
        listener: Listener | None = None, store: Path | None = None,
    ) -> SharingExecutor:  # fmt: skip
        check_workers(workers)
        return _Relay(self.executor, pickle.dumps(shared), None if store is None else mark(store))


@final
class _Relay(SharingExecutor):
    def __init__(self, executor: Executor, shared: bytes, seen: Mark | None) -> None:
        self._executor, self._shared, self._seen = executor, shared, seen
        self._open: set[Future[Any]] = set()

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Future[Any]:  # type: ignore[override]
        theirs = self._executor.submit(_call, self._shared, self._seen, pickle.dumps((fn, args)))
        ours: Future[Any] = Future()
        self._open.add(theirs)
        theirs.add_done_callback(lambda _: self._pass_on(theirs, ours))
        return ours

    def _pass_on(self, theirs: Future[Any], ours: Future[Any]) -> None:
        self._open.discard(theirs)
        if theirs.cancelled():
            ours.cancel()
            ours.set_running_or_notify_cancel()
        elif isinstance(error := theirs.exception(), BrokenExecutor):
            ours.set_exception(WorkerDied(f"the executor that you passed broke: {error} Make a new one, or fewer workers."))
        elif error is not None:
            ours.set_exception(error)
        else:
            made = pickle.loads(theirs.result())
            ours.set_exception(made.error) if made.error is not None else ours.set_result(made.value)

    def __exit__(self, *error: Any) -> None:
        for future in list(self._open):
            future.cancel()


def _call(shared: bytes, seen: Mark | None, data: bytes) -> bytes:
    become_worker()
    if seen is not None:
        seen.check()
    return answer(data, pickle.loads(shared), None)
