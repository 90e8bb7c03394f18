"""Runs a plan: first everything that is trained from scratch, then the choice of settings, then every method on every original."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..audits.compared import ORIGINAL
from ..store import Store
from ..training.executors import AnyExecutor
from ..training.fleet import train_fleet
from ..training.side_by_side import Work, finish_cells
from .plan import Plan
from .point import points
from .results import Results, collect
from .work import Run, Trials

Watch = Callable[[Results], None]


def run(
    plan: Plan,
    store: Store | str | Path,
    *,
    root: str | Path = "data",
    executor: AnyExecutor = "pool",
    workers: int | str = "auto",
    device: str | torch.device = "auto",
    watch: Watch | None = None,
) -> Results:
    """See `Plan.run`."""
    grid, store = points(plan, store, root), store if isinstance(store, Store) else Store(Path(store))
    where: dict[str, Any] = {"executor": executor, "workers": workers, "device": device}
    for point in grid:
        train_fleet([task for tasks in point.tasks.values() for task in tasks], point.pool, store, **where)

    def settled(_: Work) -> None:
        if watch:
            watch(collect(plan, grid))

    tuned = [Trials(k, name) for k, point in enumerate(grid) for name in point.methods if point.tunes(name)]
    trials = [Work(task, task.cell(grid[task.point])) for task in tuned]
    finish_cells(trials, grid, store, stage="tune methods", things="methods", done="tuned", settled=settled, **where)
    # All first seeds come before all second ones, so that a run that is stopped leaves a table of all methods.
    runs = [Run(k, name, seed) for seed in range(plan.seeds) for k, point in enumerate(grid) for name in (ORIGINAL, *point.methods)]
    works = [Work(task, cell) for task in runs if (cell := task.cell(grid[task.point])) is not None]  # None: no setting of the method works
    finish_cells(works, grid, store, stage="unlearn and audit", things="models", done="unlearned", settled=settled, **where)
    return collect(plan, grid)
