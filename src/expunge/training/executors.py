"""Where independent pieces of work run: here one after another, or in a pool of processes. Both are `concurrent.futures.Executor`s.

The standard library's process pool breaks as a whole when one worker is killed, keeps its workers alive when the parent is killed, lets
each of them print a traceback on Ctrl-C, and imports the user's script again in each. Models take minutes to train, so this pool does
better: a dead worker fails only its own call and is replaced, workers end with their parent, Ctrl-C is silent, reports of progress come
back, and scripts need no `if __name__ == "__main__":` guard.
"""

import contextlib
import io
import multiprocessing
import os
import pickle
import queue
import shutil
import signal
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
import torch.multiprocessing  # teaches multiprocessing to send tensors as shared memory
from torch import Tensor

from ..errors import ExpungeError
from ..progress import Listener, Progress, listen

SHARED_MEMORY = Path("/dev/shm")
REPORT_EVERY = 0.1  # seconds between reports of one worker
_starting = threading.Lock()


class WorkerDied(ExpungeError):
    """A worker process ended before it answered: killed from outside, out of memory, or crashed in native code."""


@final
class SerialExecutor(Executor):
    """Runs each call in this process, inside `submit`. For a GPU, for one core, and for tests.

    Args:
        shared: objects that come before the arguments of every call.
    """

    def __init__(self, shared: tuple = ()) -> None:
        self.shared = shared

    def submit(self, fn: Callable, /, *args: Any) -> Future:
        future = Future()
        try:
            future.set_result(fn(*self.shared, *args))
        except Exception as error:
            future.set_exception(error)
        return future


@final
class ProcessPool(Executor):
    """Runs calls in `workers` processes with one torch thread each.

    Use it as a context manager: leaving the block by an exception, Ctrl-C included, ends the workers at once.

    Args:
        workers: number of processes, ≥ 1.
        shared: objects that come before the arguments of every call. Each worker gets them once; tensors among them lie in shared memory.
        listener: is called, from another thread, with the progress that calls report.
    """

    def __init__(self, workers: int, shared: tuple = (), listener: Listener | None = None) -> None:
        found = examine(shared)
        self._shared = shared if found.n_bytes < _free_shared_memory() else pickle.dumps(shared)
        self._hide_main = not found.needs_main
        self._listener = listener
        self._calls: queue.SimpleQueue = queue.SimpleQueue()
        self._running: set[_Worker] = set()
        self._stopped = False
        self._broken: WorkerDied | None = None
        self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(workers)]
        for thread in self._threads:
            thread.start()

    def submit(self, fn: Callable, /, *args: Any) -> Future:
        future = Future()
        # Plain pickle: a tensor among the arguments is small, and copying it needs no file descriptor.
        self._calls.put((future, pickle.dumps((fn, args))))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        if cancel_futures:
            with contextlib.suppress(queue.Empty):
                while call := self._calls.get_nowait():
                    call[0].cancel()
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads if wait else ():
            thread.join()

    def kill(self) -> None:
        """Ends all workers now; the calls that they were running fail."""
        self._stopped = True
        for worker in list(self._running):
            worker.process.kill()
        self.shutdown(cancel_futures=True)

    def __exit__(self, kind: type | None, *error: Any) -> None:
        if kind is None:
            self.shutdown()
        else:
            self.kill()

    def _serve(self) -> None:
        """The life of one worker's thread in this process: start, call, start again if it dies."""
        worker = None
        while call := self._calls.get():
            future, data = call
            if not future.set_running_or_notify_cancel():
                continue
            try:
                worker = worker or self._start()
                future.set_result(worker.call(data, self._listener))
            except BaseException as error:
                if isinstance(error, WorkerDied):
                    self._running.discard(worker)
                    worker = None
                future.set_exception(error)
        if worker:
            worker.close()

    def _start(self) -> "_Worker":
        if self._broken:  # what kept one worker from starting keeps the next
            raise self._broken
        worker = _Worker(self._shared, self._hide_main)
        self._running.add(worker)
        if self._stopped:  # `kill` may have run while the process was starting
            worker.process.kill()
        try:
            worker.wait_until_ready()
        except WorkerDied as error:
            self._broken = error
            raise
        return worker


class _Worker:
    """A process, as the parent sees it."""

    def __init__(self, shared: tuple | bytes, hide_main: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, shared), daemon=True)
        with _starting, _worker_environment(), _main_hidden() if hide_main else contextlib.nullcontext():
            self.process.start()
        theirs.close()

    def wait_until_ready(self) -> None:
        self._receive("could not start")

    def call(self, data: bytes, listener: Listener | None) -> Any:
        with contextlib.suppress(OSError):  # a dead worker shows when its answer is read
            self.pipe.send_bytes(data)
        while isinstance(message := self._receive("ended before its work was done"), Progress):
            if listener:
                listener(message)
        if message.error is not None:
            raise message.error
        return message.value

    def close(self) -> None:
        self.process.kill()  # it is idle; leaving Python in good order takes a second
        self.process.join()
        self.pipe.close()

    def _receive(self, problem: str) -> Any:
        try:
            return pickle.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode
            why = (
                f"{signal.Signals(-code).name}{', often for want of memory' if code == -signal.SIGKILL else ''}"
                if code < 0
                else f"exit code {code}"
            )
            raise WorkerDied(
                f"a worker process {problem} ({why}). Try fewer workers if memory is short, or workers=1 to see where it crashes."
            ) from None


@dataclass
class _Answer:
    value: Any = None
    error: BaseException | None = None


def _work(pipe: Connection, shared: tuple | bytes) -> None:
    """The life of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    shared = pickle.loads(shared) if isinstance(shared, bytes) else shared
    pipe.send_bytes(pickle.dumps("ready"))
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            data = pipe.recv_bytes()
            pipe.send_bytes(_answer(pipe, data, shared))


def _answer(pipe: Connection, data: bytes, shared: tuple) -> bytes:
    try:
        fn, args = pickle.loads(data)
        with listen(_Reporter(pipe)):
            return pickle.dumps(_Answer(fn(*shared, *args)))
    except Exception as error:
        error.add_note("".join(traceback.format_exception(error)))
        try:
            data = pickle.dumps(_Answer(error=error))
            pickle.loads(data)
        except Exception:  # an exception class that does not survive pickling: its words must do
            data = pickle.dumps(_Answer(error=RuntimeError("".join(traceback.format_exception(error)))))
        return data


class _Reporter:
    """Sends progress to the parent, but not every step of a fast loop."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe, self.last = pipe, 0.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self.last >= REPORT_EVERY:
            self.last = now
            self.pipe.send_bytes(pickle.dumps(progress))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextlib.contextmanager
def _worker_environment() -> Iterator[None]:
    """What a new process inherits: one OpenMP thread, and no Ctrl-C, not even while Python starts."""
    resource_tracker.ensure_running()  # would unblock signals if it were started inside the block
    before = os.environ.get("OMP_NUM_THREADS")
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if hasattr(signal, "pthread_sigmask") else None
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        os.environ.pop("OMP_NUM_THREADS")
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before
        if blocked is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


@contextlib.contextmanager
def _main_hidden() -> Iterator[None]:
    """Keeps a new process from importing the user's script: multiprocessing tells it to if `__main__` has a file."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@dataclass
class Examined:
    """What sending an object to another process takes."""

    n_bytes: int = 0  # of its tensors
    needs_main: bool = False  # it refers to something defined in the user's script
    obstacle: str | None = None  # why it cannot be sent, in words


def examine(obj: Any) -> Examined:
    """Whether and how an object can be sent to a worker process."""
    found = Examined()
    try:
        _Examiner(found).dump(obj)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        found.obstacle = str(error)
    if found.needs_main and found.obstacle is None and not _main_can_be_imported():
        found.obstacle = 'it is defined in a notebook, or in a script without `if __name__ == "__main__":`, which a worker cannot import'
    return found


class _Examiner(pickle.Pickler):
    def __init__(self, found: Examined) -> None:
        super().__init__(io.BytesIO())
        self.found = found

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Tensor):
            self.found.n_bytes += obj.untyped_storage().nbytes()
        if isinstance(obj, Tensor | np.ndarray):
            return int, ()
        if isinstance(obj, type | types.FunctionType) and obj.__module__ == "__main__":
            self.found.needs_main = True
        return NotImplemented


def _main_can_be_imported() -> bool:
    path = getattr(sys.modules["__main__"], "__file__", None)
    return path is not None and os.path.exists(path) and "__name__" in Path(path).read_text(errors="replace")


def _free_shared_memory() -> int:
    """Bytes that tensors in shared memory may take; containers often have 64 MB."""
    return shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.exists() else sys.maxsize
