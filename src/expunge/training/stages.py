"""A training in stages: each goes on from the weights of the one before it, with other samples. What a worker does for `train_sisa`."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ..data.images import Samples
from ..store import Cell
from .recipe import Build, Recipe, train_model

State = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Stage:
    """One stage of a shard's training: positions in the ensemble's samples, int64."""

    positions: Tensor
    recipe: Recipe
    seed: int
    cell: Cell | None


@dataclass(frozen=True, eq=False)
class Job:
    """What is left to do for one shard."""

    shard: int
    build: Build
    start: State | Cell | None
    stages: list[Stage]


def train_stages(data: Samples, job: Job, device: str) -> list[State | Cell]:
    """The checkpoint after each stage: weights on the CPU, or the cell that they are in."""
    checkpoint = job.start
    made: list[State | Cell] = []
    for stage in job.stages:
        if stage.cell is None:
            checkpoint = _trained(data, job.build, stage, checkpoint, device)
        else:
            stage.cell.ensure(partial(_store, stage.cell, data, job.build, stage, checkpoint, device))
            checkpoint = stage.cell
        made.append(checkpoint)
    return made


def _store(cell: Cell, data: Samples, build: Build, stage: Stage, before: State | Cell | None, device: str) -> None:
    cell.finish({"n_train": len(stage.positions), "torch": torch.__version__}, _trained(data, build, stage, before, device))


def _trained(data: Samples, build: Build, stage: Stage, before: State | Cell | None, device: str) -> State:
    def start() -> nn.Module:
        model = build()
        if before is not None:
            model.load_state_dict(weights_of(before))
        return model

    model = train_model(start, data.subset(stage.positions), stage.recipe, seed=stage.seed, device=device)
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def weights_of(checkpoint: State | Cell) -> State:
    """The weights of a checkpoint, on the CPU."""
    return checkpoint.tensors() if isinstance(checkpoint, Cell) else checkpoint
