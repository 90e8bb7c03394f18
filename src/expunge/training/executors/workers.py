"""A pool of workers of any kind: processes here, actors of a Ray cluster, jobs of Slurm.

Each worker has a thread in this process, which starts it, hands it one call after another, and starts another if it dies. A call is taken
only by a worker that is ready: one that waits for its turn on a cluster, or for a node that is lost, keeps no call from being done.
"""

import contextlib
import pickle
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, final

from ...progress import Listener, Progress
from .base import SharingExecutor, WorkerDied


class Worker(ABC):
    """A worker, as this process sees it."""

    @abstractmethod
    def wait_until_ready(self) -> None:
        """Raises WorkerDied if it ends before, or what kept it from starting."""

    @abstractmethod
    def call(self, data: bytes, listener: Listener | None) -> Any:
        """What the pickled (function, arguments) return; raises what they raise, or WorkerDied."""

    @abstractmethod
    def kill(self) -> None:
        """Ends it at once, from any thread; whoever waits for it gets WorkerDied."""

    @abstractmethod
    def close(self) -> None:
        """Ends it, and frees what it holds here. Its own thread does this last."""


class ConnectedWorker(Worker):
    """A worker at the other end of a connection, where `serving.serve` runs."""

    pipe: Connection | None = None

    @abstractmethod
    def obituary(self, problem: str) -> str:
        """Says that it ended, and why as far as that is known."""

    def hear_ready(self) -> None:
        answer = self._receive("could not start")
        if answer.error is not None:
            raise answer.error

    def call(self, data: bytes, listener: Listener | None) -> Any:
        assert self.pipe is not None  # it is ready
        with contextlib.suppress(OSError):  # a dead worker shows when its answer is read
            self.pipe.send_bytes(data)
        while isinstance(message := self._receive("ended before its work was done"), Progress):
            if listener:
                listener(message)
        if message.error is not None:
            raise message.error
        return message.value

    def _receive(self, problem: str) -> Any:
        assert self.pipe is not None
        try:
            return pickle.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):
            raise WorkerDied(self.obituary(problem)) from None


@dataclass(eq=False)
class _Call:
    future: Future[Any]
    data: bytes
    deaths: int = 0  # workers that died of it, or during it


@final
class WorkerPool(SharingExecutor):
    """Runs calls in several workers.

    Args:
        workers: how many, ≥ 1.
        start: makes a worker; called again when one has died.
        dumps: pickles (function, arguments).
        listener: is called, from another thread, with the progress that calls report.
        retries: how often a call is made again whose worker died, and a worker started that did not start, ≥ 0.
        end: is called when all workers have ended.
    """

    def __init__(
        self,
        workers: int,
        start: Callable[[], Worker],
        *,
        dumps: Callable[[Any], bytes] = pickle.dumps,
        listener: Listener | None = None,
        retries: int = 0,
        end: Callable[[], None] = lambda: None,
    ) -> None:
        self._make, self._dumps, self._listener, self._retries, self._end_with = start, dumps, listener, retries, end
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._open: set[Future[Any]] = set()
        self._workers: set[Worker] = set()
        self._stopped = False
        self._broken: BaseException | None = None
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(workers)]
        for thread in self._threads:
            thread.start()

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Future[Any]:  # type: ignore[override]
        future: Future[Any] = Future()
        self._open.add(future)
        future.add_done_callback(self._open.discard)
        self._put(_Call(future, self._dumps((fn, args))))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        if cancel_futures:
            self._fail_waiting(None)
        if wait:
            self._finish()
        else:
            threading.Thread(target=self._finish, daemon=True).start()

    def kill(self) -> None:
        """Ends all workers now; the calls that they were running fail."""
        self._stopped = True
        self._fail_waiting(None)
        self._end()

    def __exit__(self, kind: type | None, *error: Any) -> None:
        try:
            if kind is None:
                self.shutdown()
        finally:
            self.kill()

    def _finish(self) -> None:
        wait(list(self._open))
        self._end()

    def _end(self) -> None:
        self._stopped = True
        for worker in list(self._workers):
            worker.kill()
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            thread.join()
        self._fail_waiting(WorkerDied("the pool of workers has ended."))
        end, self._end_with = self._end_with, lambda: None
        end()

    def _serve(self) -> None:
        """The place of one worker: start it, hand it calls until it dies or all is done, start another."""
        while worker := self._started():
            try:
                while (call := self._calls.get()) and self._do(worker, call):
                    pass
            finally:
                self._discard(worker)
            if call is None:
                return

    def _started(self) -> Worker | None:
        """A worker that is ready; None if the pool has ended, or no worker can be started: then all calls fail of that."""
        for attempt in range(self._retries + 1):
            worker = None
            if self._stopped or self._broken:
                return None
            try:
                worker = self._make()
                self._workers.add(worker)
                if self._stopped:  # `kill` may have run while it was made
                    worker.kill()
                worker.wait_until_ready()
                return worker
            except BaseException as error:
                if worker:
                    self._discard(worker)
                if not isinstance(error, WorkerDied) or attempt == self._retries:
                    self._fail_waiting(error)
        return None

    def _discard(self, worker: Worker) -> None:
        self._workers.discard(worker)
        worker.close()

    def _do(self, worker: Worker, call: _Call) -> bool:
        """Whether the worker is alive after this call."""
        if not call.deaths and not call.future.set_running_or_notify_cancel():
            return True
        try:
            value = worker.call(call.data, self._listener)
        except WorkerDied as error:
            call.deaths += 1
            if call.deaths > self._retries or self._stopped:
                call.future.set_exception(error)
            else:
                self._put(call)
            return False
        except BaseException as error:
            call.future.set_exception(error)
        else:
            call.future.set_result(value)
        return True

    def _put(self, call: _Call) -> None:
        with self._lock:
            if self._broken is None:
                self._calls.put(call)
                return
        call.future.set_exception(self._broken)

    def _fail_waiting(self, error: BaseException | None) -> None:
        """Cancels the calls that no worker has taken; if an error is given, they and all that may come fail of it."""
        with self._lock:
            self._broken = self._broken or error
            taken = []
            with contextlib.suppress(queue.Empty):
                while True:
                    taken.append(self._calls.get_nowait())
        for call in taken:
            if call is None:  # tells a thread to end, whatever becomes of the calls
                self._calls.put(None)
                continue
            if call.deaths:  # was running before its worker died, and cannot be cancelled any more
                call.future.set_exception(error or WorkerDied("the pool of workers has ended."))
            elif error is None:
                call.future.cancel()
                call.future.set_running_or_notify_cancel()
            elif call.future.set_running_or_notify_cancel():
                call.future.set_exception(error)
