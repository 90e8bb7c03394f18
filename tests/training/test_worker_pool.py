"""The pool of workers of any kind, on workers that are objects of this process: retries, lost workers, late workers, and the end."""

import os
import pickle
import threading
import time

import pytest

from expunge.errors import StoreError
from expunge.training.executors import WorkerDied
from expunge.training.executors.workers import Worker, WorkerPool


class Fake(Worker):
    """Answers by calling the function here; `ready` and `alive` are events that a test sets and clears."""

    def __init__(self, made, ready=True, fails=None):
        self.ready, self.fails, self.killed = threading.Event(), fails, threading.Event()
        if ready:
            self.ready.set()
        self.closed = False
        made.append(self)

    def wait_until_ready(self):
        while not self.ready.wait(0.01):
            if self.killed.is_set():
                raise WorkerDied("killed while it started")
        if self.fails:
            raise self.fails

    def call(self, data, listener):
        fn, args = pickle.loads(data)
        if fn is time.sleep:
            if self.killed.wait(*args):
                raise WorkerDied("killed")
            return None
        if self.killed.is_set() or fn is os.abort:
            raise WorkerDied("gone")
        return fn(*args)

    def kill(self):
        self.killed.set()

    def close(self):
        self.kill()
        self.closed = True


@pytest.fixture
def made():
    return []


@pytest.mark.parametrize("retries", [0, 2])
def test_a_call_whose_worker_dies_is_made_again_so_often_and_then_fails(made, retries):
    with WorkerPool(1, lambda: Fake(made), retries=retries) as pool:
        with pytest.raises(WorkerDied):
            pool.submit(os.abort).result(60)
        assert pool.submit(abs, -1).result(60) == 1
    assert len(made) == retries + 2
    assert all(worker.closed for worker in made)


def test_a_worker_that_is_not_ready_keeps_no_call_from_being_done(made):
    with WorkerPool(2, lambda: Fake(made, ready=not made)) as pool:
        assert list(pool.map(abs, range(-5, 0))) == [5, 4, 3, 2, 1]
        pool.submit(os.abort)  # even the only one that was ready may go: the other one takes over
        made[1].ready.set()
        assert pool.submit(abs, -1).result(60) == 1


def test_the_end_does_not_wait_for_a_worker_that_never_started(made):
    ended = []
    with WorkerPool(3, lambda: Fake(made, ready=not made), end=lambda: ended.append(True)) as pool:
        assert pool.submit(abs, -1).result(60) == 1
    assert all(worker.closed for worker in made) and ended == [True]
    with pytest.raises(WorkerDied):
        pool.submit(abs, -1).result(60)


def test_a_worker_that_cannot_start_fails_all_calls_with_the_reason(made):
    with WorkerPool(1, lambda: Fake(made, fails=StoreError("not seen")), retries=3) as pool:
        futures = [pool.submit(abs, -1) for _ in range(3)]
        for future in futures:
            with pytest.raises(StoreError, match="not seen"):
                future.result(60)
        with pytest.raises(StoreError):
            pool.submit(abs, -1).result(60)
    assert len(made) == 1  # a mistake is not tried again; a death is


def test_a_worker_that_dies_while_it_starts_is_started_again(made):
    with WorkerPool(1, lambda: Fake(made, fails=WorkerDied("node gone") if len(made) < 2 else None), retries=2) as pool:
        assert pool.submit(abs, -1).result(60) == 1
    assert len(made) == 3


def test_leaving_by_an_error_kills_what_runs_and_cancels_what_waits(made):
    with pytest.raises(KeyboardInterrupt), WorkerPool(1, lambda: Fake(made), retries=5) as pool:
        first, second = pool.submit(time.sleep, 60), pool.submit(time.sleep, 60)
        while not first.running():
            time.sleep(0.01)
        raise KeyboardInterrupt
    assert isinstance(first.exception(0), WorkerDied)
    assert second.cancelled()
    assert len(made) == 1


def test_shutdown_waits_for_calls_or_cancels_those_that_wait(made):
    pool = WorkerPool(1, lambda: Fake(made))
    slow, waiting = pool.submit(time.sleep, 0.2), pool.submit(abs, -1)
    pool.shutdown()
    assert slow.done() and waiting.result(0) == 1
    pool = WorkerPool(1, lambda: Fake(made))
    slow = pool.submit(time.sleep, 0.2)
    while not slow.running():
        time.sleep(0.01)
    waiting = pool.submit(abs, -1)
    pool.shutdown(wait=False, cancel_futures=True)
    assert waiting.cancelled() and slow.result(60) is None


def test_a_cancelled_call_is_never_made(made):
    with WorkerPool(1, lambda: Fake(made)) as pool:
        slow, waiting = pool.submit(time.sleep, 0.2), pool.submit(os.abort)
        assert waiting.cancel()
        assert pool.submit(abs, -1).result(60) == 1
    assert slow.done() and len(made) == 1
