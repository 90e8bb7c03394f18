"""Many models from scratch: originals, retrained models, shadow models. Each is a cell of a store; finished ones are never trained again.

A model depends on its `TrainTask` and the pool of samples alone: not on how many train at once, in which order, or where. One call may
mix all three kinds.
"""

import contextlib
import contextvars
import hashlib
import math
import os
import queue
import re
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from multiprocessing import current_process
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from ..checks import check_indices, check_settings, is_integer, setting
from ..data.images import Samples
from ..device import resolve_device
from ..errors import ConfigError, ExpungeError, ModelError, StoreError
from ..progress import Progress, listen, report
from ..rng import check_seed, fork
from ..store import POLL, Cell, Store, canonical
from .executors import ProcessPool, SerialExecutor, WorkerDied, examine
from .inference import logits_of
from .recipe import Build, Recipe, train_model

STAGE = "train models"
PROTOCOL = 1  # raise it when training or scoring changes, so that stored models are not mistaken for new ones


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class TrainTask:
    """One model to train.

    Args:
        build: returns a freshly initialised model; an `Architecture`, or a function that other processes can import.
        recipe: how to train.
        positions: the samples of the pool to train on, int64, unique.
        seed: of initial weights, order and augmentation, in [0, 2**63).
        kind: "original", "retrained" or "shadow": the folder of the store.
        name: for messages; not part of the result's identity.
    """

    build: Build
    recipe: Recipe
    positions: Tensor
    seed: int = 0
    kind: str = setting("shadow", choices=("original", "retrained", "shadow"))
    name: str = ""

    def __post_init__(self) -> None:
        check_settings(self)
        check_seed(self.seed)

    def __str__(self) -> str:
        return self.name or f"{self.kind} model with seed {self.seed}"


def train_fleet(
    tasks: Sequence[TrainTask],
    pool: Samples,
    store: Store | str | Path,
    *,
    workers: int | str = "auto",
    device: str | torch.device = "auto",
) -> list[Cell]:
    """The cells of these tasks, in order, all done: what was missing has been trained, and has scored every sample of the pool.

    Each cell has tensors "weights" (the state dict) and "scores" ({"logits": float32 (N, K)}), and a result with accuracies on the samples
    that were trained on and on the others. Several processes may work on one store: each model is trained by one of them. Interrupt it
    whenever you like, and run it again to continue.

    Args:
        tasks: models to train; equal ones are trained once.
        pool: the samples that tasks choose from by position.
        store: a `Store`, or its folder.
        workers: processes on a CPU, ≥ 1, each with one thread; "auto" = one for each core. On a GPU models are trained one after another.
        device: "auto", "cpu", "cuda", …

    Raises:
        ModelError: some models diverged or do not fit the data; the others are kept.
        WorkerDied: a worker process was killed; the others' models are kept.
        StoreError: the store cannot be written, or something cannot be sent to worker processes.
        ConfigError: `workers` is neither "auto" nor an integer ≥ 1.

    Cost: `recipe.epochs` passes over its samples and one over the pool, for each model that is not done.
    """
    device = resolve_device(device)
    cells = _cells(tasks, pool, store if isinstance(store, Store) else Store(store))
    items = {cell.folder.name: _Item(task, cell) for task, cell in zip(tasks, cells, strict=True) if not cell.done}
    workers = count_workers(workers, device, list(items.values()), pool)
    if items:
        _Run(items, pool, device, workers).run()
    return cells


def load_trained(cell: Cell, build: Build) -> nn.Module:
    """The model of a finished cell, on the CPU, in eval mode.

    Raises:
        StoreError: the cell is not done, or damaged. ModelError: the weights are not those of a model that `build` makes.
    """
    with fork(0):
        model = build()
    try:
        model.load_state_dict(cell.tensors("weights"))
    except RuntimeError as error:
        raise ModelError(
            f"build() must make the model that was stored in {cell.folder}; {error} Pass the function that it was trained with."
        ) from None
    return model.eval()


@dataclass(frozen=True)
class _Item:
    task: TrainTask
    cell: Cell


@dataclass(frozen=True)
class _Outcome:
    """What a worker answers; the model itself is in the store."""

    done: bool  # False: another process is training this model
    warnings: list[tuple[type[Warning], str]]


def _train(pool: Samples, item: _Item, device: str) -> _Outcome:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with item.cell.claim() as mine, _named_progress(item.cell):
            if mine:
                _train_claimed(pool, item, device)
    return _Outcome(item.cell.done, [(w.category, str(w.message)) for w in caught])


def _train_claimed(pool: Samples, item: _Item, device: str) -> None:
    start, task = time.perf_counter(), item.task
    model = train_model(task.build, pool.subset(task.positions), task.recipe, seed=task.seed, device=device)
    logits = logits_of(model, pool)
    included = torch.zeros(len(pool), dtype=torch.bool)
    included[task.positions] = True
    correct = logits.argmax(1) == pool.labels
    result = {
        "train_accuracy": _mean(correct[included]),
        "held_out_accuracy": _mean(correct[~included]),
        "n_train": len(task.positions),
        "seconds": round(time.perf_counter() - start, 3),
        "device": str(device),
        "torch": torch.__version__,
    }
    item.cell.finish(result, model.state_dict(), scores={"logits": logits})


def _mean(correct: Tensor) -> float | None:
    return correct.double().mean().item() if len(correct) else None


@contextlib.contextmanager
def _named_progress(cell: Cell) -> Iterator[None]:
    """Passes the progress of one training on under the key of its cell, so that the parent knows whose it is."""
    outer = contextvars.copy_context()
    with listen(lambda p: outer.run(report, cell.folder.name, p.done, p.total)):
        yield


class _Run:
    """One pass over the models that are not done."""

    def __init__(self, items: dict[str, _Item], pool: Samples, device: torch.device, workers: int) -> None:
        self.items, self.pool, self.device, self.workers = items, pool, device, workers
        self.events: queue.SimpleQueue[Progress | Future] = queue.SimpleQueue()
        self.board = _Board(items)
        self.running: dict[Future, _Item] = {}
        self.failures: dict[_Item, ExpungeError] = {}
        self.flags: dict[tuple[type[Warning], str], None] = {}

    def run(self) -> None:
        with listen(self.board), self._executor() as executor:
            self._work(executor, deque(self.items.values()))
        for category, message in self.flags:
            warnings.warn(message, category, stacklevel=4)
        if self.failures:
            raise _summary(self.failures, len(self.items))

    def _executor(self) -> contextlib.AbstractContextManager[Executor]:
        if self.workers > 1:
            return ProcessPool(self.workers, (self.pool,), self.events.put)
        return one_thread(SerialExecutor((self.pool,)), self.device)

    def _work(self, executor: Executor, waiting: deque[_Item]) -> None:
        busy: list[_Item] = []
        while waiting or self.running:
            while waiting and (self.workers > 1 or not self.running):
                self._submit(executor, waiting.popleft())
            event = self.events.get()
            if isinstance(event, Progress):
                self.board(event)
            else:
                busy += self._settle(event)
            if busy and not (waiting or self.running):
                time.sleep(POLL)
                waiting, busy = deque(busy), []

    def _submit(self, executor: Executor, item: _Item) -> None:
        future = executor.submit(_train, item, str(self.device))
        self.running[future] = item
        future.add_done_callback(self.events.put)

    def _settle(self, future: Future) -> list[_Item]:
        """Notes what became of a model; returns it if another process is at it."""
        item, error = self.running.pop(future), future.exception()
        if isinstance(error, ModelError | WorkerDied):
            self.failures[item] = error
        elif error is not None:  # a full disk or a mistake in the code would stop the other models too
            raise error
        else:
            outcome = future.result()
            self.flags.update(dict.fromkeys(outcome.warnings))
            if not outcome.done:
                return [item]
        self.board.finish(item.cell)
        return []


class _Board:
    """Adds up the progress of all models, in epochs, for whoever listened when the fleet began."""

    def __init__(self, items: dict[str, _Item]) -> None:
        self.context = contextvars.copy_context()
        self.epochs = {key: item.task.recipe.epochs for key, item in items.items()}
        self.shares = dict.fromkeys(items, 0.0)
        self.finished: set[str] = set()

    def __call__(self, progress: Progress) -> None:
        self.shares[progress.stage] = progress.done / progress.total
        self._report()

    def finish(self, cell: Cell) -> None:
        self.shares[cell.folder.name] = 1.0
        self.finished.add(cell.folder.name)
        self._report()

    def _report(self) -> None:
        done = math.floor(sum(self.epochs[key] * share for key, share in self.shares.items()) + 1e-6)
        self.context.run(report, STAGE, done, sum(self.epochs.values()), f"{len(self.finished)} of {len(self.epochs)} models")


def _summary(failures: dict[_Item, ExpungeError], n: int) -> ExpungeError:
    item, error = next(iter(failures.items()))
    names = ", ".join(str(item.task) for item in list(failures)[:5]) + (", …" if len(failures) > 5 else "")
    summary = type(error)(
        f"{len(failures)} of {n} models were not trained: {names}. The first one, {item.task}: {error} "
        "The others are kept; run again to continue."
    )
    summary.__cause__ = error
    return summary


def _cells(tasks: Sequence[TrainTask], pool: Samples, store: Store) -> list[Cell]:
    layers: dict[int, str] = {}
    for task in tasks:
        if id(task.build) not in layers:
            canonical(task.build)  # a lambda is refused before it is called
            layers[id(task.build)] = digest_of_layers(task.build)
    return [store.cell(task.kind, _spec(task, pool, layers[id(task.build)])) for task in tasks]


def _spec(task: TrainTask, pool: Samples, layers: str) -> dict[str, Any]:
    return {
        "build": task.build,
        "layers": layers,
        "recipe": task.recipe,
        "seed": task.seed,
        "data": pool.fingerprint,
        "augment": pool.augment,
        "positions": check_indices(task.positions, len(pool), f"positions of the {task}"),
        "protocol": PROTOCOL,
    }


def digest_of_layers(build: Build) -> str:
    """A digest of the model's layers: a function of the user's may come to build another model under the same name."""
    with fork(0):
        text = re.sub(r" at 0x[0-9a-f]+", "", str(build()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def count_workers(workers: int | str, device: torch.device, tasks: Sequence[Any], pool: Samples) -> int:
    """How many processes shall do these tasks, each with the pool: as many as asked for, or as there are cores or tasks; 1 where more is impossible or no use."""
    if workers != "auto" and not is_integer(workers, 1):
        raise ConfigError(f"workers must be 'auto' or an integer ≥ 1; got {workers!r}. Pass the number of processes to train in.")
    if device.type != "cpu" or workers == 1 or len(tasks) < 2 or current_process().daemon:  # a daemon may not have children
        return 1
    obstacle = examine((pool, tasks)).obstacle
    if obstacle and workers != "auto":
        raise StoreError(
            f"models and data must be such that worker processes can import them; got: {obstacle}. "
            "Move them to a module, or pass workers=1."
        )
    return 1 if obstacle else min(_cores() if workers == "auto" else workers, len(tasks))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def one_thread(executor: Executor, device: torch.device) -> Iterator[Executor]:
    """On a CPU, one torch thread inside the block: with more, sums are added in another order, and the bits differ from a worker's."""
    before = torch.get_num_threads()
    try:
        if device.type == "cpu":
            torch.set_num_threads(1)
        yield executor
    finally:
        torch.set_num_threads(before)
