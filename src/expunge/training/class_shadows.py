"""Models of both worlds: those that knew the forgotten classes and those that never saw them. U-LiRA learns from them what unlearning leaves behind."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn

from ..checks import is_integer
from ..data.images import Samples
from ..data.pool import pool
from ..data.split import Split
from ..errors import ConfigError, DataError
from ..rng import check_seed
from ..store import Cell, Store
from .executors import AnyExecutor
from .fleet import TrainTask, load_trained, train_fleet
from .recipe import Build, Recipe


@final
@dataclass(frozen=True, eq=False, repr=False)
class ClassShadows:
    """Originals and retrained models of one class split, in a store. Made by `train_class_shadows`.

    Attributes:
        split, test: what was forgotten, and images that no model saw.
        originals: cells of models trained on everything; every method can unlearn them, so that all methods share them.
        retrained: cells of as many models trained without the forgotten classes.
        seeds: of the originals.

    Example:
        >>> import tempfile, expunge
        >>> train, test = (data.subset(range(60)) for data in expunge.load_data("digits"))
        >>> build, recipe = expunge.architecture("small", train), expunge.Recipe(epochs=1)
        >>> with tempfile.TemporaryDirectory() as store:
        ...     shadows = expunge.train_class_shadows(
        ...         build, expunge.forget_classes(train, [3]), test, n=3, recipe=recipe, store=store, executor="serial"
        ...     )
        ...     expunge.logits_of(shadows.original(0), test).shape
        torch.Size([60, 10])
    """

    build: Build
    recipe: Recipe
    split: Split
    test: Samples
    store: Store
    originals: tuple[Cell, ...]
    retrained: tuple[Cell, ...]
    seeds: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.originals)

    def __repr__(self) -> str:
        names = ", ".join(self.split.train.classes[k] for k in self.split.forget_classes)
        return f"ClassShadows({len(self)} originals, {len(self)} retrained models without {names})"

    def original(self, k: int) -> nn.Module:
        """Original k, on the CPU, in eval mode."""
        return load_trained(self.originals[k], self.build)

    def retrained_model(self, k: int) -> nn.Module:
        """Retrained model k, on the CPU, in eval mode."""
        return load_trained(self.retrained[k], self.build)

    @cached_property
    def original_logits(self) -> Tensor:
        """What the originals answer on the training set, followed by the test set: float32 (M, N, K)."""
        return torch.stack([cell.tensors("scores")["logits"] for cell in self.originals])

    @cached_property
    def retrained_logits(self) -> Tensor:
        """The same of the retrained models."""
        return torch.stack([cell.tensors("scores")["logits"] for cell in self.retrained])


def train_class_shadows(
    build: Build,
    split: Split,
    test: Samples,
    *,
    n: int = 8,
    recipe: Recipe,
    store: Store | str | Path,
    seed: int = 0,
    executor: AnyExecutor = "pool",
    workers: int | str = "auto",
    device: str | torch.device = "auto",
) -> ClassShadows:
    """Trains `n` originals on all of `split.train`, and `n` models without the forgotten classes.

    The originals do not depend on the split: other classes to forget share them. Models that the store has are not trained again, and more models later keep those
    of before. Interrupt it whenever you like, and run it again to continue.

    Args:
        build: returns a freshly initialised model; the architecture of the model to be audited.
        split: of whole classes, from `forget_classes`.
        test: samples that no model may see, of all classes.
        n: models of each kind, ≥ 3. U-LiRA needs 8 for usable intervals.
        recipe: how the model to be audited was trained.
        store: the folder to keep the models in.
        seed: the originals have the seeds `seed`, `seed + 2`, …, the retrained models those between.
        executor, workers, device: as in `train_fleet`.

    Raises:
        ConfigError: n is not an integer ≥ 3.
        DataError: the split is not of whole classes, or its retain data are gone.
        ModelError: a model diverged or does not fit the data. StoreError: the store cannot be written.

    Cost: 2n × `recipe.epochs` passes over the training set, and one pass over all samples for each model.

    Example:
        >>> import tempfile, expunge
        >>> train, test = (data.subset(range(60)) for data in expunge.load_data("digits"))
        >>> build, recipe = expunge.architecture("small", train), expunge.Recipe(epochs=1)
        >>> with tempfile.TemporaryDirectory() as store:
        ...     train_class_shadows(build, expunge.forget_classes(train, [3]), test, n=3, recipe=recipe, store=store, executor="serial")
        ClassShadows(3 originals, 3 retrained models without 3)
    """
    if not is_integer(n, 3):
        raise ConfigError(f"n, the number of models of each kind, must be an integer ≥ 3; got {n!r}. 8 is a start, 16 is better.")
    if not split.forget_classes or not split.has_retain:
        raise DataError(
            f"models with and without whole classes need a split of whole classes with retain data; got {split}. Make it with forget_classes(train, […])."
        )
    check_seed(seed + 2 * n)
    store = store if isinstance(store, Store) else Store(Path(store))
    everything = torch.arange(len(split.train))
    mask = torch.ones(len(split.train), dtype=torch.bool)
    mask[split.forget_indices] = False
    seeds = tuple(seed + 2 * k for k in range(n))
    kinds = [("original", everything, s) for s in seeds] + [("retrained", mask.nonzero().flatten(), s + 1) for s in seeds]
    tasks = [TrainTask(build=build, recipe=recipe, positions=p, seed=s, kind=kind) for kind, p, s in kinds]
    cells = train_fleet(tasks, pool(split.train, test), store, executor=executor, workers=workers, device=device)
    return ClassShadows(build, recipe, split, test, store, tuple(cells[:n]), tuple(cells[n:]), seeds)
