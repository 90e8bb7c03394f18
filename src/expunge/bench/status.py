"""How much of a plan a store has, and how long the rest will take."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, final

import torch

from ..audits.compared import ORIGINAL
from ..device import resolve_device
from ..progress import roughly, silent
from ..store import Store
from ..training.executors import SerialExecutor
from ..training.fleet import TrainTask
from ..training.recipe import Recipe, train_model
from .plan import Plan
from .point import Point, points
from .work import Run, tuned_cell

PROBE = 1_024  # images that a speed is measured on where the store has no model of the kind
FORWARD = 1 / 3  # of a training pass is forward
TRAINED = {"originals": ["originals"], "retrained models": ["retrained", "development"], "shadow models": ["shadows"]}


@final
@dataclass(frozen=True)
class Kind:
    """The cells of one kind.

    Attributes:
        name: "originals", "retrained models", "shadow models", "tuned methods", "audited models" (originals and unlearned ones).
        done, total: how many.
        seconds: that the rest takes one worker, estimated.
    """

    name: str
    done: int
    total: int
    seconds: float


@final
@dataclass(frozen=True)
class Status:
    """What `Plan.status` found. `print(status)` says it in lines."""

    kinds: tuple[Kind, ...]

    @property
    def done(self) -> int:
        return sum(kind.done for kind in self.kinds)

    @property
    def total(self) -> int:
        return sum(kind.total for kind in self.kinds)

    @property
    def seconds(self) -> float:
        """That the rest takes one worker, estimated; several share it."""
        return sum(kind.seconds for kind in self.kinds)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        kinds = [{"name": k.name, "done": k.done, "total": k.total, "seconds": round(k.seconds, 1)} for k in self.kinds]
        return {"done": self.done, "total": self.total, "seconds": round(self.seconds, 1), "kinds": kinds}

    def __str__(self) -> str:
        lines = [
            f"{self.total} cells: {self.done} done, {self.total - self.done} to do"
            + (f", about {roughly(self.seconds)} of one worker" if self.seconds else "")
        ]
        return "\n".join(
            lines + [f"  {k.name}: {k.done} of {k.total}" + (f", about {roughly(k.seconds)}" if k.seconds else "") for k in self.kinds]
        )


def status(plan: Plan, store: Store | str | Path, *, root: str | Path = "data", device: str | torch.device = "auto") -> Status:
    """See `Plan.status`. Times come from what the store's models took; where it has none of the kind, from a few steps of a model that is thrown away."""
    counted: dict[str, dict[Any, float | None]] = {}
    for number, point in enumerate(points(plan, store, root)):
        pace = _Pace(point, resolve_device(device))
        for kind, key, done, seconds in _cells(point, number):
            if key not in counted.setdefault(kind, {}):  # points share models
                counted[kind][key] = None if done else seconds(pace)
    return Status(
        tuple(
            Kind(name, sum(s is None for s in cells.values()), len(cells), sum(s or 0.0 for s in cells.values()))
            for name, cells in counted.items()
        )
    )


def _cells(point: Point, number: int) -> Iterator[tuple[str, Any, bool, Callable[["_Pace"], float]]]:
    """Each cell: its kind, what it is called, whether it is done, and how long it takes."""
    for name, kinds in TRAINED.items():
        for kind in kinds:
            for task, cell in zip(point.tasks[kind], point.cells[kind], strict=True):
                yield name, cell.folder, cell.done, partial(_Pace.training, task=task)
    for name in filter(point.tunes, point.methods):
        cell = tuned_cell(point, name)
        yield "tuned methods", cell.folder, cell.done, partial(_Pace.trials, name=name)
    for seed in range(point.seeds):
        for name in (ORIGINAL, *point.methods):
            audited = Run(number, name, seed).cell(point)
            hopeless = audited is None and tuned_cell(point, name).done  # no setting works: it is done with
            key = (number, name, seed) if audited is None else audited.folder
            yield "audited models", key, hopeless or (audited is not None and audited.done), partial(_Pace.method, name=name)


class _Pace:
    """Seconds, from what finished cells of the point took."""

    def __init__(self, point: Point, device: torch.device) -> None:
        self.point, self.device = point, device
        done = [cell for cells in point.cells.values() for cell in cells if cell.done]
        passes = [cell.result()["n_train"] * cell.spec["recipe"]["epochs"] + FORWARD * len(point.pool) for cell in done]
        self.paces = [cell.result()["seconds"] / n for cell, n in zip(done, passes, strict=True)]

    @property
    def image(self) -> float:
        """Of one image, forward and backward."""
        if not self.paces:
            self.paces = [_measured(self.point, self.device)]
        return statistics.median(self.paces)

    def training(self, task: TrainTask) -> float:
        return self.image * (len(task.positions) * task.recipe.epochs + FORWARD * len(self.point.pool))

    def trials(self, name: str) -> float:
        return self.point.trials * self.method(name)

    def method(self, name: str) -> float:
        """As the runs that are there took; else by the method's own count."""
        if name == ORIGINAL:
            return 0.0
        cells = [Run(0, name, seed).cell(self.point) for seed in range(self.point.seeds)]
        took = [cell.result().get("seconds") for cell in cells if cell is not None and cell.done]
        known = [seconds for seconds in took if seconds is not None]
        if known:
            return statistics.median(known)
        train = self.point.split.train
        share = len(self.point.split.forget_indices) / len(train)
        return self.image * (self.point.methods[name].cost(share) * len(train) + FORWARD * len(self.point.pool))


def _measured(point: Point, device: torch.device) -> float:
    train = point.split.train.subset(range(min(PROBE, len(point.split.train))))
    recipe = Recipe(epochs=1, batch_size=point.recipe.batch_size, precision=point.recipe.precision)
    with silent(), SerialExecutor(device=str(device)):  # one thread on a CPU, as a worker has
        train_model(point.build, train.subset(range(min(len(train), 2 * recipe.batch_size))), recipe, device=device)  # slow the first time
        start = time.perf_counter()
        train_model(point.build, train, recipe, device=device)
        return (time.perf_counter() - start) / len(train)
