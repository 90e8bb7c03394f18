"""Shadow models, trained on random halves of training and test images together: audits learn from them how members and others look."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from ..checks import check_indices, is_integer
from ..data.images import Samples, places
from ..data.pool import pool
from ..errors import ConfigError, DataError
from ..rng import check_seed, derive, permutation
from ..store import Cell, Store
from ..types import Included, Labels
from .executors import AnyExecutor
from .fleet import TrainTask, load_trained, train_fleet
from .recipe import Build, Recipe

TRAINING = 1  # purpose of a derived seed: initial weights and order, as opposed to membership


class ShadowAccuracy(NamedTuple):
    """Mean accuracy of the shadow models, as fractions: on the samples that they were trained on, and on the others."""

    included: float
    excluded: float


@final
@dataclass(frozen=True, eq=False, repr=False)
class ShadowModels:
    """What shadow models answer on every sample, and which samples each was trained on. Made by `train_shadow_models`.

    Attributes:
        logits: float32 (M, N, K); columns 0 … n_train − 1 are the training set in order, the rest is the test set.
        labels: int64 (N,).
        included: bool (M, N), True = the model was trained on the sample. Models 2k and 2k + 1 are complements, so that every column has
            exactly M / 2.
        n_train: how many columns are the training set.
        ids: int64 (N,), the id of each column's sample within its own set; None = positions there.

    Example:
        >>> import tempfile, expunge
        >>> train, test = (data.subset(range(60)) for data in expunge.load_data("digits"))
        >>> build, recipe = expunge.architecture("small", train), expunge.Recipe(epochs=1)
        >>> with tempfile.TemporaryDirectory() as store:
        ...     shadows = expunge.train_shadow_models(build, train, test, n=2, recipe=recipe, store=store, executor="serial")
        >>> shadows.logits.shape, shadows.included.sum(0).unique().tolist()  # every sample is in one of the two
        (torch.Size([2, 120, 10]), [1])
    """

    logits: Tensor
    labels: Labels
    included: Included
    n_train: int
    cells: tuple[Cell, ...] = ()
    build: Build | None = None
    recipe: Recipe | None = field(default=None)
    ids: Labels | None = None

    def __repr__(self) -> str:
        accuracy = self.accuracy
        return (
            f"ShadowModels({len(self)} models, {self.n_train} training + {len(self.labels) - self.n_train} test samples, "
            f"accuracy {accuracy.included:.3f} on their own samples, {accuracy.excluded:.3f} on others)"
        )

    def __len__(self) -> int:
        return len(self.logits)

    @cached_property
    def accuracy(self) -> ShadowAccuracy:
        """Accuracy of the models on samples that they were trained on, and on others: compare it with the audited model's."""
        correct = (self.logits.argmax(2) == self.labels).double()
        return ShadowAccuracy(correct[self.included].mean().item(), correct[~self.included].mean().item())

    def columns(self, train: Samples, test: Samples) -> Tensor:
        """The columns of these training samples, and then of these test samples, int64; −1 for one that the models were not scored on."""
        n = self.n_train
        positions = torch.cat([torch.arange(n), torch.arange(len(self.labels) - n)])
        ids = positions if self.ids is None else self.ids
        of_test = places(ids[n:], test.ids)
        return torch.cat([places(ids[:n], train.ids), torch.where(of_test < 0, of_test, n + of_test)])

    def model(self, m: int) -> nn.Module:
        """Shadow model m, on the CPU, in eval mode.

        Raises:
            DataError: there is no such model, or the models are not in a store.
            StoreError: the stored weights are damaged.
        """
        if self.build is None or not 0 <= m < len(self.cells):
            raise DataError(
                f"m must be in [0, {len(self.cells)}), the models that are in a store; got {m}. train_shadow_models stores them."
            )
        return load_trained(self.cells[m], self.build)


def train_shadow_models(
    build: Build,
    train: Samples,
    test: Samples,
    *,
    n: int = 64,
    recipe: Recipe,
    store: Store | str | Path,
    seed: int = 0,
    balanced: Sequence[int] | Tensor | None = None,
    executor: AnyExecutor = "pool",
    workers: int | str = "auto",
    device: str | torch.device = "auto",
) -> ShadowModels:
    """Trains `n` models, each on half of training and test set together, and scores every sample with each of them.

    The halves come in complementary pairs, so that every sample is in exactly n / 2 of them. Models that the store has are not trained
    again, and more models later keep those of before. Interrupt it whenever you like, and run it again to continue; several processes may
    share the store.

    Args:
        build: returns a freshly initialised model; the architecture of the model to be audited.
        train: the training set of the model to be audited.
        test: samples that it never saw.
        n: number of models, even, ≥ 2. The more, the sharper the audit: 64 is usual, 16 a start.
        recipe: how the model to be audited was trained.
        store: the folder to keep the models in.
        seed: decides halves, initial weights and orders, in [0, 2**63).
        balanced: positions in `train`, an even number, of which every model is trained on exactly half; `sample_leakage` needs that of the samples that models are to forget.
        executor, workers: where and how many models are trained at a time, as in `train_fleet`.
        device: "auto", "cpu", "cuda", …

    Raises:
        ConfigError: n is not an even integer ≥ 2.
        DataError: the two sets do not fit one another, or an odd number of positions in `balanced`.
        ModelError: a model diverged or does not fit the data. StoreError: the store cannot be written.

    Cost: n × `recipe.epochs` passes over half of the samples, and n × one over all.

    Example:
        >>> import tempfile, expunge
        >>> train, test = (data.subset(range(60)) for data in expunge.load_data("digits"))
        >>> build, recipe = expunge.architecture("small", train), expunge.Recipe(epochs=1)
        >>> with tempfile.TemporaryDirectory() as store:
        ...     len(train_shadow_models(build, train, test, n=2, recipe=recipe, store=store, executor="serial"))
        2
    """
    tasks = shadow_tasks(build, train, test, n=n, recipe=recipe, seed=seed, balanced=balanced)
    samples = pool(train, test)
    cells = train_fleet(tasks, samples, store, executor=executor, workers=workers, device=device)
    logits = torch.stack([cell.tensors("scores")["logits"] for cell in cells])
    included = torch.zeros(n, len(samples), dtype=torch.bool)
    for row, task in zip(included, tasks, strict=True):
        row[task.positions] = True
    return ShadowModels(logits, samples.labels, included, len(train), tuple(cells), build, recipe, torch.cat([train.ids, test.ids]))


def shadow_tasks(
    build: Build, train: Samples, test: Samples, *, n: int, recipe: Recipe, seed: int = 0, balanced: Sequence[int] | Tensor | None = None
) -> list[TrainTask]:
    """What `train_shadow_models` trains, one task a model, on positions in the pool of both sets.

    Args, Raises: as there.
    """
    if not is_integer(n, 2) or n % 2:
        raise ConfigError(
            f"n, the number of shadow models, must be an even integer ≥ 2; got {n!r}. They are trained on complementary halves."
        )
    check_seed(seed)
    n_samples = len(train) + len(test)
    included = halves(n_samples, n, seed, None if balanced is None else check_indices(balanced, len(train), "balanced"))
    return [
        TrainTask(
            build=build,
            recipe=recipe,
            positions=row.nonzero().flatten(),
            seed=derive(seed, TRAINING, m),
            kind="shadow",
            name=f"shadow model {m}",
        )
        for m, row in enumerate(included)
    ]


def halves(n_samples: int, n_models: int, seed: int, balanced: Tensor | None = None) -> Included:
    """Which samples each of an even number of models is trained on: models 2k and 2k + 1 share a random order's first half and second half.

    Each model gets exactly half of the samples at the positions `balanced`, an even number.

    Raises:
        DataError: `balanced` names an odd number of samples.

    Example:
        >>> halves(4, 2, seed=0).sum(0)
        tensor([1, 1, 1, 1])
        >>> halves(100, 2, seed=0, balanced=torch.arange(10))[:, :10].sum(1)
        tensor([5, 5])
    """
    balanced = torch.empty(0, dtype=torch.int64) if balanced is None else balanced
    if len(balanced) % 2:
        raise DataError(
            f"balanced must name an even number of samples, so that each model gets half of them; got {len(balanced)}. Leave one out."
        )
    mask = torch.zeros(n_samples, dtype=torch.bool)
    mask[balanced] = True
    included = torch.zeros(n_models, n_samples, dtype=torch.bool)
    for pair in range(n_models // 2):
        order = permutation(n_samples, seed, pair)
        for part in (order[mask[order]], order[~mask[order]]):
            included[2 * pair, part[: len(part) // 2]] = True
            included[2 * pair + 1, part[len(part) // 2 :]] = True
    return included
