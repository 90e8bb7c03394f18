"""Executors: the same calls give the same answers in this process and in others, and a dead worker takes nothing down with it."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from torch import nn

import worker_calls
from expunge.errors import ModelError
from expunge.training.executors import SerialExecutor, WorkerDied
from expunge.training.executors.processes import process_pool
from expunge.training.executors.sending import examine

PATIENCE = 120  # seconds, for machines under load


@pytest.fixture(scope="module")
def seen():
    return []


@pytest.fixture(scope="module")
def pool(seen):
    with process_pool(2, (torch.ones(1000),), seen.append) as pool:
        yield pool


def test_workers_share_one_copy_of_the_tensors(pool):
    answers = [future.result() for future in [pool.submit(worker_calls.share) for _ in range(4)]]
    assert {answer[1:] for answer in answers} == {(1000.0, True)}
    assert os.getpid() not in {answer[0] for answer in answers}


def test_each_worker_has_one_thread_and_the_parent_keeps_its_settings(pool):
    before = os.environ.get("OMP_NUM_THREADS")
    assert pool.submit(worker_calls.threads).result() == (1, "1")
    assert os.environ.get("OMP_NUM_THREADS") == before


def test_calls_run_side_by_side(pool, tmp_path):
    futures = [pool.submit(worker_calls.meet, str(tmp_path), me, 1 - me) for me in range(2)]
    assert len({future.result() for future in futures}) == 2


def test_progress_comes_back_from_a_worker(pool, seen):
    assert pool.submit(worker_calls.reporting, 3).result() == 3
    assert ("counting", 3, 3) in [(p.stage, p.done, p.total) for p in seen]


@pytest.mark.parametrize("serial", [True, False])
def test_an_error_comes_back_as_itself(pool, serial):
    executor = SerialExecutor((torch.ones(1),)) if serial else pool
    with pytest.raises(ModelError) as caught:
        executor.submit(worker_calls.fail).result()
    assert str(caught.value) == "the model failed"


def test_an_error_that_cannot_be_pickled_comes_back_as_its_traceback(pool):
    with pytest.raises(RuntimeError, match=r"in fail_awkwardly(?s:.*)Awkward: awkward"):
        pool.submit(worker_calls.fail_awkwardly).result()


def test_a_killed_worker_fails_its_own_call_only_and_is_replaced(pool):
    doomed, neighbour = pool.submit(worker_calls.die, signal.SIGKILL), pool.submit(worker_calls.nap, 0.1)
    with pytest.raises(WorkerDied, match=r"SIGKILL, often for want of memory.*fewer workers"):
        doomed.result()
    assert neighbour.result() > 0
    futures = [pool.submit(worker_calls.share) for _ in range(4)]
    assert {future.result()[1] for future in futures} == {1000.0}


def test_an_error_in_the_block_ends_the_workers_at_once():
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), process_pool(1, (torch.ones(1),)) as pool:
        future, waiting = pool.submit(worker_calls.nap, 600), pool.submit(worker_calls.nap, 600)
        raise KeyboardInterrupt
    assert time.monotonic() - start < 300  # it does not wait for the calls
    assert waiting.cancelled() or waiting.exception()
    assert future.cancelled() or isinstance(future.exception(), WorkerDied)


def test_tensors_are_sent_once_where_shared_memory_is_short(monkeypatch):
    monkeypatch.setattr("expunge.training.executors.processes._free_shared_memory", lambda: 10)
    with process_pool(1, (torch.ones(1000),)) as pool:
        assert pool.submit(worker_calls.share).result()[1:] == (1000.0, False)


def test_examine_counts_tensors_and_finds_what_cannot_be_sent(monkeypatch):
    found = examine({"data": torch.zeros(100), "model": nn.Linear(3, 2)})
    assert (found.n_bytes, found.needs_main, found.obstacle) == (400 + 32, False, None)
    assert "lambda" in examine([lambda: None]).obstacle
    assert "generator" in examine([x for x in ()] + [(x for x in ())]).obstacle

    def build():
        return None

    build.__module__, build.__qualname__ = "__main__", "build"
    main = type(sys)("__main__")
    main.build = build
    monkeypatch.setitem(sys.modules, "__main__", main)
    found = examine({"build": build})
    assert found.needs_main
    assert "notebook" in found.obstacle


SCRIPT = """
import json, os, time, torch
from expunge.training.executors.processes import process_pool
print("the script runs", flush=True)
pool = process_pool(1, (2.0,))
print(json.dumps([pool.submit(pow, 3).result(), pool.submit(divmod, 0.5).result()]), flush=True)
worker = next(iter(pool._workers)).process.pid
print(worker, flush=True)
time.sleep(600)
"""


GUARDED = """
import torch
from torch import nn
from expunge import ImageData, Recipe
from expunge.training.fleet import TrainTask, train_fleet

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))

if __name__ == "__main__":
    pool = ImageData(torch.arange(50 * 64).reshape(50, 1, 8, 8).remainder(256).to(torch.uint8), torch.arange(50) % 4, tuple("abcd"))
    tasks = [TrainTask(build=build, recipe=Recipe(epochs=1), positions=torch.arange(30), seed=seed) for seed in range(2)]
    print([cell.done for cell in train_fleet(tasks, pool, "runs", workers=2)])
"""


@pytest.mark.slow
def test_a_script_with_a_guard_may_define_its_own_model(tmp_path):
    (tmp_path / "script.py").write_text(GUARDED)
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[True, True]\n", "")


def test_a_script_without_a_guard_works_and_its_workers_end_with_it(tmp_path):
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    with subprocess.Popen([sys.executable, tmp_path / "script.py"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "the script runs\n"
            assert json.loads(process.stdout.readline()) == [8.0, [4.0, 0.0]]
            worker = int(process.stdout.readline())
        finally:
            process.kill()
        out, err = process.communicate(timeout=PATIENCE)
    assert (out, err) == ("", "")  # the worker did not run the script again
    deadline = time.monotonic() + PATIENCE
    while alive(worker):
        assert time.monotonic() < deadline, "the worker has outlived its parent"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
