"""What runs inside a worker, wherever that is: load the shared objects, then answer one call after another."""

import os
import pickle
import queue
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from ...progress import Listener, Progress, listen

REPORT_EVERY = 0.1  # seconds between reports of one worker


@dataclass
class Answer:
    """What comes back for one call: a value or an error."""

    value: Any = None
    error: BaseException | None = None


def become_worker(path: Sequence[str] = ()) -> None:
    """One torch thread, so that bits are the same everywhere; and modules are found where `path`, that of the parent, finds them."""
    torch.set_num_threads(1)
    sys.path += [folder for folder in path if folder not in sys.path]


def answer(data: bytes, shared: tuple[Any, ...], listener: Listener | None) -> bytes:
    """The pickled answer to a pickled call."""
    try:
        fn, args = pickle.loads(data)
        with listen(listener):
            return pickle.dumps(Answer(fn(*shared, *args)))
    except Exception as error:
        return failure(error)


def failure(error: Exception) -> bytes:
    """The pickled answer of a call that raised this."""
    error.add_note(f"on {socket.gethostname()}:\n{''.join(traceback.format_exception(error))}")
    try:
        data = pickle.dumps(Answer(error=error))
        pickle.loads(data)
    except Exception:  # an exception class that does not survive pickling: its words must do
        data = pickle.dumps(Answer(error=RuntimeError("".join(traceback.format_exception(error)))))
    return data


def serve(pipe: Connection, load: Callable[[], tuple[Any, ...]]) -> None:
    """The life of a worker at the other end of a connection. The process ends when that end has gone, also in the middle of a call.

    Args:
        pipe: to whoever sends calls.
        load: returns the shared objects; what it raises is answered to the parent.
    """
    calls: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(pipe, calls), daemon=True).start()
    try:
        shared = load()
    except Exception as error:
        _send(pipe, failure(error))
        return
    _send(pipe, pickle.dumps(Answer("ready")))
    while True:
        _send(pipe, answer(calls.get(), shared, Reporter(lambda p: _send(pipe, pickle.dumps(p)))))


def _receive(pipe: Connection, calls: queue.SimpleQueue[bytes | None]) -> None:
    try:
        while True:
            calls.put(pipe.recv_bytes())
    except (EOFError, OSError):
        os._exit(0)


def _send(pipe: Connection, data: bytes) -> None:
    try:
        pipe.send_bytes(data)
    except OSError:
        os._exit(0)


class Reporter:
    """Passes progress on, but not every step of a fast loop."""

    def __init__(self, send: Listener) -> None:
        self.send, self.last = send, 0.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self.last >= REPORT_EVERY:
            self.last = now
            self.send(progress)
