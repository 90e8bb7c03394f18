"""Many models from scratch: originals, retrained models, shadow models. Each is a cell of a store; finished ones are never trained again.

A model depends on its `TrainTask` and the pool of samples alone: not on how many train at once, in which order, or where. One call may
mix all three kinds.
"""

import functools
import hashlib
import re
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from ..checks import check_indices, check_settings, setting
from ..data.images import Samples
from ..errors import ModelError
from ..rng import check_seed, fork
from ..store import Cell, Store, canonical
from .executors import AnyExecutor
from .fleet_together import finish_together, here
from .inference import logits_of
from .recipe import Build, Recipe, train_model
from .side_by_side import Work, finish_cells

PROTOCOL = 1  # raise it when training or scoring changes, so that stored models are not mistaken for new ones


class MixedVersions(UserWarning):
    """Models of one fleet were trained by different versions of expunge or torch."""


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

    Example:
        >>> import torch, expunge
        >>> build = expunge.architecture("small", expunge.load_data("digits").train)
        >>> task = expunge.TrainTask(build=build, recipe=expunge.Recipe(epochs=1), positions=torch.arange(60), seed=3, kind="original")
        >>> len(task.positions), task.seed
        (60, 3)
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

    def finish(self, cell: Cell, pool: Samples, device: str) -> None:
        """Trains the model, scores the pool with it, and writes both."""
        start = time.perf_counter()
        model = train_model(self.build, pool.subset(self.positions), self.recipe, seed=self.seed, device=device)
        self.keep(cell, model, pool, device, time.perf_counter() - start)

    def keep(self, cell: Cell, model: nn.Module, pool: Samples, device: str, seconds: float) -> None:
        """Scores the pool with the trained model, and writes both. `seconds`: that the training took."""
        start = time.perf_counter()
        logits = logits_of(model, pool)
        included = torch.zeros(len(pool), dtype=torch.bool)
        included[self.positions] = True
        correct = logits.argmax(1) == pool.labels
        result = {
            "train_accuracy": _mean(correct[included]),
            "held_out_accuracy": _mean(correct[~included]),
            "n_train": len(self.positions),
            "seconds": round(seconds + time.perf_counter() - start, 3),
            "device": device,
            "torch": torch.__version__,
            "expunge": version("expunge"),
        }
        cell.finish(result, model.state_dict(), scores={"logits": logits})


def train_fleet(
    tasks: Sequence[TrainTask],
    pool: Samples,
    store: Store | str | Path,
    *,
    executor: AnyExecutor = "pool",
    workers: int | str = "auto",
    together: int | str = "auto",
    device: str | torch.device = "auto",
) -> list[Cell]:
    """The cells of these tasks, in order, all done: what was missing has been trained, and has scored every sample of the pool.

    Each cell has tensors "weights" (the state dict) and "scores" ({"logits": float32 (N, K)}), and a result with accuracies on the samples
    that were trained on and on the others. Several processes may work on one store: each model is trained by one of them. Interrupt it
    whenever you like, and run it again to continue.

    Args:
        tasks: models to train; equal ones are trained once.
        pool: the samples that tasks choose from by position.
        store: a `Store`, or its folder, which all machines must see that train.
        executor: where to train: "pool" (processes on this machine), "serial", "ray", "slurm"; settings such as `Ray(num_gpus=0.25)`; or a
            `concurrent.futures.Executor` of yours.
        workers: how many at a time, ≥ 1, each with one thread on a CPU; "auto" = as many as there are cores, or as there is room for on the
            cluster.
        together: how many models this process trains at a time on one GPU, ≥ 1; "auto" measures what is fastest, and reports why. On a CPU "auto" is 1: one model
            keeps a core busy.
        device: "auto", "cpu", "cuda", …

    Raises:
        ModelError: some models diverged or do not fit the data; the others are kept.
        WorkerDied: a worker was killed, more often than the executor tries again; the others' models are kept.
        StoreError: the store cannot be written, or is not seen by a machine, or something cannot be sent to workers.
        ConfigError: `workers` is neither "auto" nor an integer ≥ 1, or an executor's settings cannot be met. MissingError: it is unknown or not installed.

    Cost: `recipe.epochs` passes over its samples and one over the pool, for each model that is not done.

    Example:
        >>> import tempfile, torch, expunge
        >>> pool = expunge.load_data("digits").train.subset(range(60))
        >>> build, recipe = expunge.architecture("small", pool), expunge.Recipe(epochs=1)
        >>> tasks = [expunge.TrainTask(build=build, recipe=recipe, positions=torch.arange(30), seed=seed) for seed in (1, 2)]
        >>> with tempfile.TemporaryDirectory() as store:
        ...     [cell.done for cell in expunge.train_fleet(tasks, pool, store, executor="serial")]
        [True, True]
    """
    store = store if isinstance(store, Store) else Store(Path(store))
    cells = fleet_cells(tasks, pool, store)
    works = [Work(task, cell, task.recipe.epochs) for task, cell in zip(tasks, cells, strict=True)]
    finish_cells(
        works, pool, store, stage="train models", things="models", done="trained", executor=executor, workers=workers, device=device,
        first=functools.partial(finish_together, pool=pool, together=together) if here(executor, device, together) else None,
    )  # fmt: skip
    _check_versions(cells)
    return cells


def fleet_cells(tasks: Sequence[TrainTask], pool: Samples, store: Store) -> list[Cell]:
    """The cells of these tasks, in order, done or not; nothing is trained.

    Raises:
        StoreError: a build that another process cannot import. DataError: positions outside the pool.
    """
    layers: dict[int, str] = {}
    for task in tasks:
        if id(task.build) not in layers:
            canonical(task.build)  # a lambda is refused before it is called
            layers[id(task.build)] = digest_of_layers(task.build)
    return [store.cell(task.kind, _spec(task, pool, layers[id(task.build)])) for task in tasks]


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


def _mean(correct: Tensor) -> float | None:
    return correct.double().mean().item() if len(correct) else None


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


def _check_versions(cells: Sequence[Cell]) -> None:
    """Warns if the models were not all trained by the same versions, as when two machines or two years share a store."""
    results = [cell.result() for cell in cells]
    for package in ("expunge", "torch"):
        found = Counter(result[package] for result in results if package in result)
        if len(found) > 1:
            several = ", ".join(f"{name} ({count} models)" for name, count in found.most_common())
            warnings.warn(
                f"models that are compared should be trained by one version of {package}; these were by {several}. Bits differ between versions, "
                "statistics hardly; where that matters, delete the cells of one, or use another store.",
                MixedVersions,
                stacklevel=3,
            )


def digest_of_layers(build: Build) -> str:
    """A digest of the model's layers: a function of the user's may come to build another model under the same name."""
    with fork(0):
        text = re.sub(r" at 0x[0-9a-f]+", "", str(build()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
