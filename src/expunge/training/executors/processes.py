"""Calls in a pool of processes on this machine.

The standard library's process pool breaks as a whole when one worker is killed, keeps its workers alive when the parent is killed, lets
each of them print a traceback on Ctrl-C, and imports the user's script again in each. Models take minutes to train, so this pool does
better: a dead worker fails only its own call and is replaced, workers end with their parent, Ctrl-C is silent, reports of progress come
back, and scripts need no `if __name__ == "__main__":` guard.
"""

import contextlib
import multiprocessing
import os
import pickle
import shutil
import signal
import sys
import threading
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import current_process, resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ClassVar, final

import torch
import torch.multiprocessing  # teaches multiprocessing to send tensors as shared memory

from ...checks import setting
from ...errors import StoreError
from ...progress import Listener
from .base import Launcher, SharingExecutor, check_workers
from .sending import examine
from .serial import SerialExecutor
from .serving import become_worker, serve
from .workers import ConnectedWorker, WorkerPool

SHARED_MEMORY = Path("/dev/shm")
_starting = threading.Lock()


@final
@dataclass(frozen=True, kw_only=True)
class ProcessPool(Launcher):
    """Runs calls in processes on this machine, one torch thread each: "auto" is one for each core. On a GPU, or with one worker, calls run in this process.

    Args:
        retries: how often a call is made again whose process died, ≥ 0. A process dies for want of memory more often than by accident, so none.

    Example:
        >>> with ProcessPool().launch((2,), tasks=[3, 4], workers=2) as executor:
        ...     list(executor.map(pow, [3, 4]))
        [8, 16]
    """

    name: ClassVar[str] = "pool"
    retries: int = setting(0, ge=0)

    def launch(
        self, shared: tuple[Any, ...], *, tasks: Sequence[Any], workers: int | str = "auto", device: str = "cpu",
        listener: Listener | None = None, store: Path | None = None,
    ) -> SharingExecutor:  # fmt: skip
        check_workers(workers)
        daemon = current_process().daemon  # may not have children
        if torch.device(device).type != "cpu" or workers == 1 or len(tasks) < 2 or daemon:
            return SerialExecutor(shared, device)
        found = examine((shared, tasks))
        if found.obstacle and workers != "auto":
            raise StoreError(
                f"models and data must be such that worker processes can import them; got: {found.obstacle}. "
                "Move them to a module, or pass workers=1."
            )
        n = 1 if found.obstacle else min(_cores() if isinstance(workers, str) else workers, len(tasks))
        return SerialExecutor(shared, device) if n == 1 else process_pool(n, shared, listener, tasks=tasks, retries=self.retries)


def process_pool(
    workers: int, shared: tuple[Any, ...] = (), listener: Listener | None = None, *, tasks: Sequence[Any] = (), retries: int = 0
) -> WorkerPool:
    """A pool of processes. Each gets the shared objects once; tensors among them lie in shared memory where there is enough of it.

    Args: as `ProcessPool.launch` has them; tasks: tell whether a worker must import the user's script.
    """
    sent = shared if examine(shared).n_bytes < _free_shared_memory() else pickle.dumps(shared)
    needs_main = examine((shared, tasks)).needs_main
    return WorkerPool(workers, lambda: ProcessWorker(sent, needs_main), listener=listener, retries=retries)


@final
class ProcessWorker(ConnectedWorker):
    """A process on this machine."""

    pipe: Connection

    def __init__(self, shared: tuple[Any, ...] | bytes, needs_main: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, shared), daemon=True)
        with _starting, _worker_environment(), contextlib.nullcontext() if needs_main else _main_hidden():
            self.process.start()
        theirs.close()

    def wait_until_ready(self) -> None:
        self.hear_ready()

    def kill(self) -> None:
        self.process.kill()  # leaving Python in good order takes a second

    def close(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()

    def obituary(self, problem: str) -> str:
        self.process.join()
        code = self.process.exitcode or 0
        why = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        why += ", often for want of memory" if code == -signal.SIGKILL else ""
        return f"a worker process {problem} ({why}). Try fewer workers if memory is short, or workers=1 to see where it crashes."


def _work(pipe: Connection, shared: tuple[Any, ...] | bytes) -> None:
    """The life of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    become_worker()
    serve(pipe, lambda: pickle.loads(shared) if isinstance(shared, bytes) else shared)


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


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _free_shared_memory() -> int:
    """Bytes that tensors in shared memory may take; containers often have 64 MB."""
    return shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.exists() else sys.maxsize
