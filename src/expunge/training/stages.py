"""A training in stages: each goes on from the weights of the one before it, with other samples. What a worker does for `train_sisa`."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data.images import Samples
from ..store import Cell
from .recipe import Build, Recipe, train_model

State = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Step:
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
    steps: list[Step]


def train_steps(data: Samples, job: Job, device: str) -> list[State | Cell]:
    """The checkpoint after each step: weights on the CPU, or the cell that they are in."""
    checkpoint, made = job.start, []
    for step in job.steps:
        if step.cell is None:
            checkpoint = _trained(data, job.build, step, checkpoint, device)
        else:
            step.cell.ensure(lambda step=step, before=checkpoint: _store(data, job.build, step, before, device))
            checkpoint = step.cell
        made.append(checkpoint)
    return made


def _store(data: Samples, build: Build, step: Step, before: State | Cell | None, device: str) -> None:
    step.cell.finish({"n_train": len(step.positions), "torch": torch.__version__}, _trained(data, build, step, before, device))


def _trained(data: Samples, build: Build, step: Step, before: State | Cell | None, device: str) -> State:
    def start() -> nn.Module:
        model = build()
        if before is not None:
            model.load_state_dict(weights_of(before))
        return model

    model = train_model(start, data.subset(step.positions), step.recipe, seed=step.seed, device=device)
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def weights_of(checkpoint: State | Cell) -> State:
    """The weights of a checkpoint, on the CPU."""
    return checkpoint.tensors() if isinstance(checkpoint, Cell) else checkpoint
