"""Unlearned models in a store: what a method made of a stored original, so that it is made once."""

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import nn

from .costs import measure_cost
from .data.split import Split
from .methods.base import Method
from .models.checkpoint import model_hash
from .store import Store
from .training.fleet import load_trained
from .training.recipe import Build


@final
@dataclass(frozen=True, eq=False)
class Unlearned:
    """A model without the forget set, and what it took to make: seconds, and counted passes as `Cost.to_dict` has them (None in stores of older versions)."""

    model: nn.Module
    seconds: float
    cost: dict[str, Any] | None


def unlearn_stored(
    method: Method, model: nn.Module, split: Split, *, build: Build, store: Store, seed: int = 0, device: str | torch.device = "auto"
) -> Unlearned:
    """`method(model, split, seed=seed)`, taken from the store if it is there, and kept there otherwise.

    The model is on the CPU, in eval mode. A result belongs to the original's weights, the training set, the forget set, the method with all its fields and its revision, and the seed.

    Raises:
        StoreError: the store cannot be written, or `build` or the method cannot be written as JSON.
    """
    spec = {
        "original": model_hash(model), "build": build, "data": split.train.fingerprint, "augment": split.train.augment,
        "forget": split.forget_indices, "has_retain": split.has_retain, "method": method, "seed": seed,
    } | ({"forget_classes": split.forget_classes} if split.forget_classes else {})  # fmt: skip
    cell = store.cell("unlearned", spec)

    def unlearn() -> None:
        with measure_cost() as cost:
            unlearned = method(model, split, seed=seed, device=device)
        cell.finish({"seconds": round(cost.seconds, 3), "cost": cost.to_dict()}, unlearned.state_dict())

    cell.ensure(unlearn)
    result = cell.result()
    return Unlearned(load_trained(cell, build), result["seconds"], result.get("cost"))
